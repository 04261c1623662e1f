//! One case: so many callers, each in a thread of its own, together so many requests; and
//! connections held beside them.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};

/// Longest time of one request.
const PATIENCE: Duration = Duration::from_secs(30);

/// A case that is to be run.
#[derive(Debug)]
pub(crate) struct Case {
    socket: String,
    request: Vec<u8>,
    callers: u64,
    requests: u64,
    /// True if a caller uses one connection for all its requests.
    keep_alive: bool,
    /// True if a connect fails that would have to wait.
    non_blocking: bool,
}

/// Outcome of a case.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Latencies of the requests that were answered with a success.
    latencies: Vec<Duration>,
    /// Connections refused, or closed without an answer.
    refused: u64,
    /// Of these, connects that would have had to wait.
    again: u64,
    /// Answered, but with no success.
    failed: u64,
    first_error: Option<String>,
    elapsed: Duration,
}

impl Case {
    /// Reads a case; `variable` gives the environment.
    pub(crate) fn new(
        case: &Value,
        variable: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Self> {
        let text =
            |name: &str| case[name].as_str().with_context(|| format!("a case needs \"{name}\""));
        let count = |name: &str| {
            case[name].as_u64().with_context(|| format!("a case needs the number \"{name}\""))
        };
        let socket = match case["socket"].as_str() {
            Some(socket) => socket.to_owned(),
            None => {
                let uri =
                    variable("IOTEDGE_WORKLOADURI").context("IOTEDGE_WORKLOADURI is not set")?;
                uri.strip_prefix("unix://")
                    .context("IOTEDGE_WORKLOADURI is not unix:///path")?
                    .to_owned()
            }
        };
        let own = |name| variable(name).unwrap_or_default();
        let path = text("path")?;
        let path = path
            .replace("{m}", &own("IOTEDGE_MODULEID"))
            .replace("{g}", &own("IOTEDGE_MODULEGENERATIONID"));
        let body = if case["body"].is_null() { String::new() } else { case["body"].to_string() };
        let keep_alive = case["keepAlive"].as_bool().unwrap_or(false);
        let non_blocking = case["nonBlocking"].as_bool().unwrap_or(false);
        let request = format!(
            "{} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            text("method")?,
            if keep_alive { "keep-alive" } else { "close" },
            body.len()
        );
        let (callers, requests) = (count("callers")?, count("requests")?);
        anyhow::ensure!(
            (1..=256).contains(&callers) && requests > 0,
            "1 to 256 callers and at least one request"
        );
        Ok(Self {
            socket,
            request: request.into_bytes(),
            callers,
            requests,
            keep_alive,
            non_blocking,
        })
    }

    /// Makes all requests.
    pub(crate) fn run(&self) -> anyhow::Result<Outcome> {
        let left = AtomicU64::new(self.requests);
        let outcome = Mutex::new(Outcome::default());
        let ready = Barrier::new(usize::try_from(self.callers)? + 1);
        let begin = std::thread::scope(|scope| {
            for _ in 0..self.callers {
                scope.spawn(|| {
                    ready.wait();
                    let own = self.caller(&left);
                    outcome.lock().unwrap_or_else(PoisonError::into_inner).add(own);
                });
            }
            ready.wait();
            Instant::now()
        });
        let mut outcome = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcome.elapsed = begin.elapsed();
        outcome.latencies.sort_unstable();
        Ok(outcome)
    }

    fn caller(&self, left: &AtomicU64) -> Outcome {
        let mut own = Outcome::default();
        let mut buffer = Vec::with_capacity(8192);
        let mut kept = None;
        while left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
        {
            buffer.clear();
            let begin = Instant::now();
            match self.request(&mut kept, &mut buffer) {
                Ok(()) if buffer.starts_with(b"HTTP/1.1 2") => own.latencies.push(begin.elapsed()),
                Ok(()) if buffer.is_empty() => own.refuse("closed without an answer".to_owned()),
                Ok(()) => {
                    own.failed += 1;
                    own.first_error
                        .get_or_insert_with(|| String::from_utf8_lossy(&buffer).into_owned());
                }
                Err(error) => {
                    own.again += u64::from(error.kind() == io::ErrorKind::WouldBlock);
                    own.refuse(error.to_string());
                }
            }
        }
        own
    }

    fn connect(&self) -> io::Result<UnixStream> {
        if !self.non_blocking {
            return UnixStream::connect(&self.socket);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(self.socket.as_str())?)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// One request, over the connection of the last one if there is one and it is to be
    /// kept.
    fn request(&self, kept: &mut Option<UnixStream>, answer: &mut Vec<u8>) -> io::Result<()> {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => {
                let stream = self.connect()?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream
            }
        };
        stream.write_all(&self.request)?;
        if !self.keep_alive {
            return stream.read_to_end(answer).map(|_| ());
        }
        let mut chunk = [0; 4096];
        while !is_complete(answer) {
            match stream.read(&mut chunk)? {
                0 => return Ok(()),
                count => answer.extend_from_slice(&chunk[..count]),
            }
        }
        *kept = Some(stream);
        Ok(())
    }
}

/// Returns true if the answer is whole: a head, and a body of the length that the head
/// tells.
fn is_complete(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let head = std::str::from_utf8(&answer[..end]).unwrap_or_default();
    let length = head.lines().filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    answer.len() >= end + 4 + length.unwrap_or(0)
}

impl Outcome {
    fn refuse(&mut self, why: String) {
        self.refused += 1;
        self.first_error.get_or_insert(why);
    }

    fn add(&mut self, mut other: Self) {
        self.latencies.append(&mut other.latencies);
        self.refused += other.refused;
        self.again += other.again;
        self.failed += other.failed;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    /// The latency below which `share` of all lie, in microseconds.
    fn percentile(&self, share: f64) -> Option<f64> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let rank = (self.latencies.len() as f64 * share).ceil() as usize;
        let latency = self.latencies.get(rank.max(1) - 1)?;
        Some(latency.as_secs_f64() * 1e6)
    }

    /// The result as it is sent.
    pub(crate) fn to_json(&self) -> Value {
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let per_second = self.latencies.len() as f64 / self.elapsed.as_secs_f64().max(1e-9);
        json!({
            "ok": self.latencies.len(),
            "refused": self.refused,
            "again": self.again,
            "failed": self.failed,
            "firstError": self.first_error,
            "p50Us": self.percentile(0.5),
            "p90Us": self.percentile(0.9),
            "p99Us": self.percentile(0.99),
            "perSecond": per_second,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let latencies = (1..=100).map(Duration::from_micros).collect();
        let outcome = Outcome { latencies, ..Outcome::default() };
        let rounded = |share| outcome.percentile(share).map(f64::round);
        assert_eq!((rounded(0.5), rounded(0.99)), (Some(50.0), Some(99.0)));
        assert_eq!(Outcome::default().percentile(0.5), None);
    }

    #[test]
    fn a_case_says_what_it_lacks() {
        let new = |case| Case::new(&case, |_| None).unwrap_err().to_string();
        assert_eq!(new(json!({ "path": "/" })), "IOTEDGE_WORKLOADURI is not set");
        assert_eq!(
            new(json!({ "socket": "/s", "path": "/", "callers": 1, "requests": 1 })),
            "a case needs \"method\""
        );
    }

    #[test]
    fn an_answer_is_whole_when_its_body_has_its_length() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
        assert!(is_complete(answer));
        assert!((0..answer.len()).all(|length| !is_complete(&answer[..length])));
        assert!(is_complete(b"HTTP/1.1 204 No Content\r\nDate: x\r\n\r\n"));
    }

    #[test]
    fn answers_refusals_and_failures_are_counted_apart() {
        let folder = std::env::temp_dir().join(format!("edgekeep-load-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let answers = ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n\r\n", ""];
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let count = stream.read(&mut request).unwrap();
                assert!(request[..count].starts_with(b"POST /modules/m%201/x HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let case = json!({ "socket": socket, "method": "POST", "path": "/modules/{m}/x", "body": {"a": 1},
            "callers": 1, "requests": 3 });
        let variable = |name: &str| (name == "IOTEDGE_MODULEID").then(|| "m%201".to_owned());
        let outcome = Case::new(&case, variable).unwrap().run().unwrap().to_json();
        std::fs::remove_dir_all(&folder).unwrap();
        let counts = ["ok", "failed", "refused"].map(|name| outcome[name].as_u64().unwrap());
        assert_eq!(counts, [1, 1, 1], "{outcome}");
        assert!(outcome["firstError"].as_str().unwrap().starts_with("HTTP/1.1 403"));
    }
}
