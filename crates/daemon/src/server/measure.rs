//! Metrics of the server: answers and their latency by route, connections, refusals of
//! connections.
//!
//! Labels are the route table's own patterns, never what a caller sent.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};

use crate::metrics::{Counter, Families, Family, Gauge, Histogram};

static REQUESTS: Family<Counter, 4> = Family::new(
    "edgekeep_http_requests",
    "Answered requests by API, route and class of status.",
    ["api", "method", "route", "status"],
)
.sparse();
static DURATION: Family<Histogram, 3> = Family::new(
    "edgekeep_http_request_duration_seconds",
    "Time from a request's head to its answer's head.",
    ["api", "method", "route"],
)
.sparse();
static OPEN: Family<Gauge, 1> =
    Family::new("edgekeep_http_open_connections", "Open connections.", ["api"]);
static ACCEPTED: Family<Counter, 1> =
    Family::new("edgekeep_http_connections", "Connections that were accepted.", ["api"]);
static REFUSED: Family<Counter, 2> = Family::new(
    "edgekeep_http_refused_connections",
    "Connections that were refused: over the limit of a uid (told, or just dropped), abandoned by the peer before it was \
     looked at, without peer credentials, or with bytes from another process than the one that connected.",
    ["api", "reason"],
);
static KEPT_OUT: Family<Counter, 1> = Family::new(
    "edgekeep_http_kept_out",
    "Times that a user was kept out of a shared socket for a while, after a flood of connections that came to nothing.",
    ["api"],
);

/// Metrics that every server has.
pub static FAMILIES: Families = &[&REQUESTS, &DURATION, &OPEN, &ACCEPTED, &REFUSED, &KEPT_OUT];

/// The name that an API has in metrics, until it is given one.
pub(super) const UNNAMED: &str = "other";
/// Label that stands for the route of a request that has none.
const NO_ROUTE: &str = "none";

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The series of one route.
#[derive(Debug)]
pub(super) struct RouteSeries {
    by_class: [Arc<Counter>; 5],
    duration: Arc<Histogram>,
}

impl RouteSeries {
    pub(super) fn of(api: &'static str, method: &Method, route: &'static str) -> Self {
        let method = word(method);
        Self {
            by_class: CLASSES.map(|class| REQUESTS.with([api, method, route, class])),
            duration: DURATION.with([api, method, route]),
        }
    }

    pub(super) fn of_no_route(api: &'static str) -> Self {
        Self {
            by_class: CLASSES.map(|class| REQUESTS.with([api, NO_ROUTE, NO_ROUTE, class])),
            duration: DURATION.with([api, NO_ROUTE, NO_ROUTE]),
        }
    }

    pub(super) fn count(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        self.by_class[class].increment();
        self.duration.observe(took);
    }
}

/// The series of one API's connections.
#[derive(Debug, Clone)]
pub(super) struct ConnectionSeries {
    pub(super) open: Arc<Gauge>,
    pub(super) accepted: Arc<Counter>,
    pub(super) over_limit: Arc<Counter>,
    pub(super) dropped: Arc<Counter>,
    pub(super) abandoned: Arc<Counter>,
    pub(super) no_credentials: Arc<Counter>,
    pub(super) sender_changed: Arc<Counter>,
    pub(super) kept_out: Arc<Counter>,
}

impl ConnectionSeries {
    pub(super) fn of(api: &'static str) -> Self {
        let refused = |reason| REFUSED.with([api, reason]);
        Self {
            open: OPEN.with([api]),
            accepted: ACCEPTED.with([api]),
            over_limit: refused("over-limit"),
            dropped: refused("dropped"),
            abandoned: refused("abandoned"),
            no_credentials: refused("no-credentials"),
            sender_changed: refused("sender-changed"),
            kept_out: KEPT_OUT.with([api]),
        }
    }
}

/// A method that a route can have. Any other is one word: the table is the program's own.
fn word(method: &Method) -> &'static str {
    ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"]
        .into_iter()
        .find(|word| *word == method.as_str())
        .unwrap_or("OTHER")
}
