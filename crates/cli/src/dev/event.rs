//! Events of a running simulated device, one a line.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use edgekeep_core::attestation::DenyReason;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::output::{Hue, Style, printable};

/// One event. As JSON: an object with `time` (RFC 3339), `elapsedMs` (since the start),
/// `event` (the name in kebab case) and the fields in camel case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[non_exhaustive]
pub enum Event {
    /// The bring-up begins.
    Starting {
        /// The device's root folder.
        root: PathBuf,
    },
    /// The simulated cloud can be reached.
    Cloud {
        /// Base URL of the provisioning service.
        dps: String,
        /// Host name of the hub, with its port.
        hub: String,
        /// The provisioning service's scope.
        scope_id: String,
        /// Base URL of the routes that administer it.
        admin: String,
        /// The CA that devices trust.
        ca: PathBuf,
    },
    /// The configuration is written and applied.
    Configured {
        /// The configuration.
        file: PathBuf,
        /// True if the file is the user's own, which was left as it is.
        own: bool,
    },
    /// A process was started.
    Started {
        /// `cloud`, `keyd`, `identityd` or `moduled`.
        name: &'static str,
        /// Its process id.
        pid: u32,
    },
    /// A daemon answers.
    Ready {
        /// The daemon.
        name: &'static str,
        /// From its start to its first answer.
        ms: u64,
    },
    /// All daemons answer; here.
    Sockets {
        /// Keys API.
        keyd: PathBuf,
        /// Identity API.
        identityd: PathBuf,
        /// Certificates API.
        certd: PathBuf,
        /// Management API.
        management: PathBuf,
        /// Folder of the modules' workload sockets.
        modules: PathBuf,
    },
    /// The device has an identity at the hub.
    Provisioned {
        /// The hub.
        hub: String,
        /// The device.
        device_id: String,
    },
    /// A module is new or has another status.
    Module {
        /// The module.
        name: String,
        /// `running`, `stopped`, `failed`, `dead`, `unknown`, or `removed`.
        status: String,
        /// Status before; `None` if the module is new.
        previous: Option<String>,
        /// In words.
        description: String,
    },
    /// A caller was refused.
    Refused {
        /// The module that was named.
        module: String,
        /// Method and route.
        route: String,
        /// The one reason.
        reason: DenyReason,
        /// The caller's process.
        pid: u32,
        /// The caller's user.
        uid: u32,
    },
    /// Something keeps the device from working; said once until it changes.
    Problem {
        /// In words.
        message: String,
    },
    /// The device has an identity, and the agent and all modules that should run do.
    DeviceReady {
        /// From the start of the bring-up.
        ms: u64,
        /// The modules that run.
        modules: Vec<String>,
    },
    /// A line that a process wrote.
    Log {
        /// The process.
        name: &'static str,
        /// The line.
        line: String,
    },
    /// A process ended by itself.
    Exited {
        /// The process.
        name: &'static str,
        /// Exit status, in words.
        how: String,
        /// Time until the process is started again, in milliseconds.
        restart_in_ms: u64,
    },
    /// The device is being stopped.
    Stopping,
    /// All is stopped.
    Stopped {
        /// The root folder, if it was kept.
        root: Option<PathBuf>,
    },
}

/// Milliseconds, as events hold them.
#[must_use]
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Writer of events to standard output.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    begin: Instant,
    json: bool,
    style: Style,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Stamped<'a> {
    time: String,
    elapsed_ms: u64,
    #[serde(flatten)]
    event: &'a Event,
}

impl Events {
    pub(crate) fn new(json: bool) -> Self {
        Self { begin: Instant::now(), json, style: Style::stdout() }
    }

    /// Writes one event. A reader that went away does not end the device.
    pub(crate) fn emit(&self, event: &Event) {
        let line = if self.json {
            json_line(event, OffsetDateTime::now_utc(), self.begin.elapsed())
        } else {
            match text_line(event, self.style) {
                Some(line) => format!("{:>9.3}s  {line}", self.begin.elapsed().as_secs_f64()),
                None => return,
            }
        };
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

fn json_line(event: &Event, now: OffsetDateTime, elapsed: Duration) -> String {
    let stamped = Stamped {
        time: now.format(&Rfc3339).unwrap_or_default(),
        elapsed_ms: milliseconds(elapsed),
        event,
    };
    serde_json::to_string(&stamped).unwrap_or_default()
}

/// The event for a reader; `None` for one that tells a reader nothing.
fn text_line(event: &Event, style: Style) -> Option<String> {
    let line = |hue: Hue, who: &str, what: &str| {
        Some(format!("{} {what}", style.paint(hue, &format!("{who:<10}"))))
    };
    let show = |path: &PathBuf| path.display().to_string();
    match event {
        Event::Starting { root } => line(Hue::Head, "device", &format!("folder {}", show(root))),
        Event::Cloud { dps, hub, scope_id, .. } => line(
            Hue::Head,
            "cloud",
            &format!("simulated: provisioning {dps} (scope {scope_id}), hub {hub}"),
        ),
        Event::Configured { file, own: false } => {
            line(Hue::Head, "config", &format!("applied {}", show(file)))
        }
        Event::Configured { file, own: true } => {
            line(Hue::Head, "config", &format!("applied your {} as it is", show(file)))
        }
        Event::Started { .. } => None,
        Event::Ready { name, ms } => line(Hue::Good, name, &format!("answers after {ms} ms")),
        Event::Sockets { keyd, identityd, certd, management, modules } => {
            let what = format!(
                "keys {}, identity {}, certificates {}, management {}, modules {}",
                show(keyd),
                show(identityd),
                show(certd),
                show(management),
                show(modules)
            );
            line(Hue::Head, "sockets", &what)
        }
        Event::Provisioned { hub, device_id } => {
            line(Hue::Good, "device", &format!("is {} at {}", printable(device_id), printable(hub)))
        }
        Event::Module { name, status, description, .. } => {
            let hue = match status.as_str() {
                "running" => Hue::Good,
                "failed" | "dead" | "unknown" => Hue::Bad,
                _ => Hue::Warning,
            };
            let description =
                if description.is_empty() { String::new() } else { format!(" ({description})") };
            line(hue, "module", &printable(&format!("{name} {status}{description}")))
        }
        Event::Refused { module, route, reason, pid, uid } => {
            let what = format!("{route} for {module}: {reason} (pid {pid}, uid {uid})");
            line(Hue::Bad, "refused", &printable(&what))
        }
        Event::Problem { message } => line(Hue::Bad, "problem", &printable(message)),
        Event::DeviceReady { ms, modules } => line(
            Hue::Good,
            "device",
            &printable(&format!("ready after {ms} ms, running: {}", modules.join(", "))),
        ),
        Event::Log { name, line: text } => Some(format!(
            "{} | {}",
            style.paint(Hue::Plain, &format!("{name:<10}")),
            printable(text)
        )),
        Event::Exited { name, how, restart_in_ms } => {
            line(Hue::Bad, name, &format!("{how}; starting it again in {restart_in_ms} ms"))
        }
        Event::Stopping => line(Hue::Head, "device", "stopping"),
        Event::Stopped { root: Some(root) } => {
            line(Hue::Head, "device", &format!("stopped; kept in {}", show(root)))
        }
        Event::Stopped { root: None } => line(Hue::Head, "device", "stopped"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn an_event_is_one_json_object_with_time_and_name() {
        let event = Event::DeviceReady { ms: 812, modules: vec!["edgeAgent".into()] };
        let line =
            json_line(&event, datetime!(2026-07-01 12:00:00.5 UTC), Duration::from_millis(815));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = json!({
            "time": "2026-07-01T12:00:00.5Z", "elapsedMs": 815, "event": "device-ready", "ms": 812, "modules": ["edgeAgent"],
        });
        assert_eq!(value, expected);
        assert!(!line.contains('\n'));
        let event = Event::Exited { name: "keyd", how: "exit code 1".into(), restart_in_ms: 200 };
        let line = json_line(&event, datetime!(2026-07-01 12:00 UTC), Duration::ZERO);
        assert!(line.contains("\"restartInMs\":200"), "{line}");
    }

    #[test]
    fn a_log_line_cannot_steer_the_terminal() {
        let event = Event::Log { name: "keyd", line: "\u{1b}[2Jgone".into() };
        assert_eq!(
            text_line(&event, Style::plain()).as_deref(),
            Some("keyd       | \u{fffd}[2Jgone")
        );
    }
}
