use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;

use super::measure::{ConnectionSeries, RouteSeries, UNNAMED};
use super::request::Request;
use super::response::{HttpError, Response};
use crate::peer::Caller;

type Answer = Pin<Box<dyn Future<Output = Result<Response, HttpError>> + Send>>;
type Handler<S> = Box<dyn Fn(Arc<S>, Request) -> Answer + Send + Sync>;
type SenderChanged<S> = Box<dyn Fn(Arc<S>, Arc<Caller>, String) -> Done + Send + Sync>;
type Failed<S> = Box<dyn Fn(&S, &FailedCall<'_>) + Send + Sync>;
type Flooded<S> = Box<dyn Fn(&S, u32, Duration) + Send + Sync>;
/// The end of what a hook does.
type Done = Pin<Box<dyn Future<Output = ()> + Send>>;
type Connected<S> = Box<dyn Fn(Arc<S>, Arc<Caller>) -> Done + Send + Sync>;

struct Route<S> {
    method: Method,
    pattern: &'static str,
    /// Index into the service's versions from which the route is open.
    since: usize,
    handler: Handler<S>,
    series: RouteSeries,
}

/// A call that a handler answered with an error.
#[derive(Debug)]
pub struct FailedCall<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its route's pattern.
    pub route: &'static str,
    /// The text of the route's first placeholder, as the caller wrote it.
    pub first: Option<&'a str>,
    /// The answer.
    pub error: &'a HttpError,
}

/// The routes of one service, and the state that their handlers share.
pub struct Router<S> {
    state: Arc<S>,
    /// The API's name in metrics.
    api: &'static str,
    versions: &'static [&'static str],
    routes: Vec<Route<S>>,
    no_route: RouteSeries,
    connections: ConnectionSeries,
    connected: Option<Connected<S>>,
    sender_changed: SenderChanged<S>,
    failed: Option<Failed<S>>,
    flooded: Option<Flooded<S>>,
}

impl<S> std::fmt::Debug for Router<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.routes.iter().map(|route| (&route.method, route.pattern)))
            .finish()
    }
}

impl<S: Send + Sync + 'static> Router<S> {
    /// A service without routes that accepts `versions`, oldest first. With none,
    /// requests need not name one.
    #[must_use]
    pub fn new(state: Arc<S>, versions: &'static [&'static str]) -> Self {
        Self {
            state,
            api: UNNAMED,
            versions,
            routes: Vec::new(),
            no_route: RouteSeries::of_no_route(UNNAMED),
            connections: ConnectionSeries::of(UNNAMED),
            connected: None,
            sender_changed: Box::new(|_, _, _| Box::pin(std::future::ready(()))),
            failed: None,
            flooded: None,
        }
    }

    /// Names the API in metrics. Goes before its routes.
    #[must_use]
    pub fn named(mut self, api: &'static str) -> Self {
        debug_assert!(self.routes.is_empty(), "an API is named before its routes");
        self.api = api;
        self.no_route = RouteSeries::of_no_route(api);
        self.connections = ConnectionSeries::of(api);
        self
    }

    /// Adds a route. `pattern` is `/`-separated; a segment in braces takes any one
    /// segment. `since` is the version from which the route is open.
    ///
    /// # Panics
    /// If `since` is not one of the service's versions (`""` for a service without): a
    /// mistake in the daemon's own table.
    #[must_use]
    pub fn route<H, F>(
        mut self,
        method: Method,
        pattern: &'static str,
        since: &str,
        handler: H,
    ) -> Self
    where
        H: Fn(Arc<S>, Request) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response, HttpError>> + Send + 'static,
    {
        let position = self.versions.iter().position(|version| *version == since);
        let position = position.or((self.versions.is_empty() && since.is_empty()).then_some(0));
        let since = position.expect("a route opens with one of the service's versions");
        let handler: Handler<S> = Box::new(move |state, request| Box::pin(handler(state, request)));
        let series = RouteSeries::of(self.api, &method, pattern);
        self.routes.push(Route { method, pattern, since, handler, series });
        self
    }

    /// Tells of calls that a handler answered with an error.
    #[must_use]
    pub fn on_failed(mut self, tell: impl Fn(&S, &FailedCall<'_>) + Send + Sync + 'static) -> Self {
        self.failed = Some(Box::new(tell));
        self
    }

    /// Tells of users who flood a shared socket with connections that come to nothing:
    /// the user id, and the time for which the user is kept out.
    #[must_use]
    pub fn on_flood(mut self, tell: impl Fn(&S, u32, Duration) + Send + Sync + 'static) -> Self {
        self.flooded = Some(Box::new(tell));
        self
    }

    /// Sets a hook that runs as soon as a connection is accepted on which nothing was
    /// sent yet, before a request is read from it. The hook looks at the caller while the
    /// caller still is the process that connected. A caller that has sent something
    /// before it was accepted is looked at by the handler, if the kernel told the
    /// caller's socket.
    #[must_use]
    pub fn on_connected<F>(
        mut self,
        hook: impl Fn(Arc<S>, Arc<Caller>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.connected = Some(Box::new(move |state, caller| Box::pin(hook(state, caller))));
        self
    }

    /// Sets a hook that runs when a connection is refused because another process than
    /// the one that connected sent bytes. The hook may, for example, write to the audit
    /// trail. Its last argument is method and path as sent.
    #[must_use]
    pub fn on_sender_changed<F>(
        mut self,
        hook: impl Fn(Arc<S>, Arc<Caller>, String) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let hook = move |state, caller, what| -> Done { Box::pin(hook(state, caller, what)) };
        self.sender_changed = Box::new(hook);
        self
    }

    /// Method and pattern of every route, for tests that walk the whole table.
    pub fn routes(&self) -> impl Iterator<Item = (&Method, &'static str)> {
        self.routes.iter().map(|route| (&route.method, route.pattern))
    }

    pub(super) fn connections(&self) -> &ConnectionSeries {
        &self.connections
    }

    pub(super) fn flooded(&self, user: u32, lasting: Duration) {
        self.connections.kept_out.increment();
        if let Some(tell) = &self.flooded {
            tell(&self.state, user, lasting);
        }
    }

    pub(super) async fn connected(&self, caller: &Arc<Caller>) {
        if let Some(hook) = &self.connected {
            hook(Arc::clone(&self.state), Arc::clone(caller)).await;
        }
    }

    /// Returns true if callers are looked at when they connect, which needs to know their
    /// sockets.
    pub(super) fn looks_at_callers(&self) -> bool {
        self.connected.is_some()
    }

    pub(super) async fn refuse_sender(&self, caller: &Arc<Caller>, what: String) {
        self.connections.sender_changed.increment();
        (self.sender_changed)(Arc::clone(&self.state), Arc::clone(caller), what).await;
    }

    pub(super) async fn answer(
        &self,
        caller: Arc<Caller>,
        request: http::Request<Incoming>,
    ) -> Response {
        let begun = Instant::now();
        let mut series = &self.no_route;
        let answer = self
            .dispatch(caller, request, &mut series)
            .await
            .unwrap_or_else(HttpError::into_response);
        series.count(answer.status(), begun.elapsed());
        answer
    }

    /// `series` becomes that of the route, if there is one.
    async fn dispatch<'a>(
        &'a self,
        caller: Arc<Caller>,
        request: http::Request<Incoming>,
        series: &mut &'a RouteSeries,
    ) -> Result<Response, HttpError> {
        let (parts, body) = request.into_parts();
        let query = parse_query(parts.uri.query().unwrap_or_default());
        let version = self.version(&query)?;
        let mut path_known = false;
        for route in &self.routes {
            if version < route.since {
                continue;
            }
            let Some(params) = match_path(route.pattern, parts.uri.path()) else { continue };
            path_known = true;
            // The server leaves the body of an answer to HEAD out.
            let same = route.method == parts.method
                || parts.method == Method::HEAD && route.method == Method::GET;
            if !same {
                continue;
            }
            *series = &route.series;
            let told = self
                .failed
                .as_ref()
                .map(|tell| (tell, parts.method.clone(), params.first().cloned()));
            let request = Request {
                caller,
                version: self.versions.get(version).copied().unwrap_or_default(),
                route: route.pattern,
                parts,
                body: Some(body),
                params,
                query,
            };
            let answer = (route.handler)(Arc::clone(&self.state), request).await;
            if let (Err(error), Some((tell, method, first))) = (&answer, told) {
                let call = FailedCall {
                    method: &method,
                    route: route.pattern,
                    first: first.as_deref(),
                    error,
                };
                tell(&self.state, &call);
            }
            return answer;
        }
        // 400 where HTTP would say 405: what clients of the compatible services get (wire
        // facts 1.3).
        if path_known {
            Err(HttpError::bad_request("method not allowed"))
        } else {
            Err(HttpError::new(StatusCode::NOT_FOUND, "not found"))
        }
    }

    fn version(&self, query: &[(String, String)]) -> Result<usize, HttpError> {
        if self.versions.is_empty() {
            return Ok(0);
        }
        let asked = query
            .iter()
            .rev()
            .find(|(key, _)| key == "api-version")
            .map(|(_, value)| value.as_str());
        let asked = asked.ok_or_else(|| HttpError::bad_request("api-version not specified"))?;
        let known = self.versions.iter().position(|version| *version == asked);
        known.ok_or_else(|| {
            let shown: String = asked.chars().take(32).collect();
            HttpError::bad_request(format!("invalid api-version {shown:?}"))
        })
    }
}

/// The placeholders' texts if the raw path fits the pattern: segments are compared before
/// decoding, so that an encoded slash never makes a path of another shape.
fn match_path(pattern: &str, path: &str) -> Option<Vec<String>> {
    let mut params = Vec::new();
    let mut segments = path.split('/');
    for expected in pattern.split('/') {
        let segment = segments.next()?;
        if expected.starts_with('{') {
            if segment.is_empty() {
                return None;
            }
            params.push(percent_decode_str(segment).decode_utf8().ok()?.into_owned());
        } else if expected != segment {
            return None;
        }
    }
    segments.next().is_none().then_some(params)
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    let decode =
        |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .take(32)
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn placeholders_are_decoded_after_matching() {
        assert_eq!(
            match_path("/modules/{m}", "/modules/%24edgeAgent"),
            Some(vec!["$edgeAgent".into()])
        );
        assert_eq!(match_path("/modules/{m}", "/modules/a%2Fstart"), Some(vec!["a/start".into()]));
        assert_eq!(match_path("/modules/{m}/start", "/modules/a%2Fstart"), None);
        assert_eq!(match_path("/modules/{m}", "/modules/"), None);
        assert_eq!(match_path("/modules/{m}", "/modules/a/b"), None);
        assert_eq!(match_path("/modules/{m}", "/modules/%ff"), None, "not UTF-8");
        assert_eq!(match_path("/modules/", "/modules/"), Some(vec![]));
    }

    proptest! {
        #[test]
        fn a_literal_route_never_matches_another_path(path in "/[a-z/%2f.]{0,20}") {
            prop_assert_eq!(match_path("/trust-bundle", &path).is_some(), path == "/trust-bundle");
        }
    }
}
