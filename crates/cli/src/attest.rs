//! `attest`: why a process is served as a module, or why not, line by line; and why
//! callers were refused.

use std::fmt::Write as _;
use std::process::ExitCode;

use edgekeep_api::attestation::{Attestation, Check, Facts, PastRefusal, Registered, Seen};
use edgekeep_api::management::ManagementClient;
use edgekeep_core::attestation::{Holding, Workload};
use edgekeep_core::host::Accounts;
use time::OffsetDateTime;

use crate::arguments::{AttestOptions, Context};
use crate::failure;
use crate::output::{self, Columns, Hue, Style, age, moment, printable};

/// Refusals that are shown if no number is given.
const SHOWN: usize = 10;

pub(crate) async fn run(context: &Context, options: &AttestOptions) -> anyhow::Result<ExitCode> {
    let client = ManagementClient::new(&context.management);
    let subject = options.subject.as_deref();
    if options.refusals {
        let refusals = client.refusals(subject, options.last.unwrap_or(SHOWN)).await;
        let refusals = failure::of_our_own_route(refusals)?;
        if context.json {
            output::print_json(&refusals)?;
        } else {
            let users = Accounts {
                passwd: std::fs::read_to_string("/etc/passwd").unwrap_or_default(),
                ..Accounts::default()
            };
            output::print(&render_past(
                &refusals.refusals,
                &users,
                Style::stdout(),
                OffsetDateTime::now_utc(),
            ))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // A number is a pid; a module that is called like one is looked at by the pid of its
    // process and `--module`.
    let attestation = match subject.map(|subject| (subject, subject.parse::<u32>())) {
        Some((_, Ok(pid))) => client.attestation(Some(pid), options.module.as_deref()).await,
        Some((module, Err(_))) => client.attestation(None, Some(module)).await,
        None => anyhow::bail!("name a process or a module, or ask for --refusals"),
    };
    let attestation = failure::of_our_own_route(attestation)?;
    if context.json {
        output::print_json(&attestation)?;
    } else {
        output::print(&render(&attestation, Style::stdout()))?;
    }
    Ok(if attestation.allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(attestation: &Attestation, style: Style) -> String {
    let mut text = known(attestation, style);
    let _ = writeln!(text, "{}", style.paint(Hue::Head, "Checks"));
    text.push_str(&checks(&attestation.checks, style, "  "));
    match attestation.checks.iter().find(|check| check.passed == Some(false)) {
        None => {
            let verdict = style.paint(Hue::Good, "served");
            let _ =
                writeln!(text, "This process is {verdict} as {}.", printable(&attestation.module));
        }
        Some(failed) => {
            let verdict = style.paint(Hue::Bad, "refused");
            let explained = failed.reason.explained();
            let _ = writeln!(text, "This process is {verdict}: {}.", failed.reason);
            let _ = writeln!(text, "  cause:  {}\n  remedy: {}", explained.cause, explained.remedy);
        }
    }
    text
}

/// Renders the registration, the facts of the running module, and the kernel's evidence
/// on the process.
fn known(attestation: &Attestation, style: Style) -> String {
    let mut text = String::new();
    let mut part = |title: &str, rows: Vec<(&str, String)>| {
        let _ = writeln!(text, "{}", style.paint(Hue::Head, title));
        let mut columns = Columns::default();
        for (name, value) in rows {
            columns.row(vec![(Hue::Plain, name.to_owned()), (Hue::Plain, value)]);
        }
        text.push_str(&columns.render(style, "  "));
    };
    part(
        &format!("Registration of {}", printable(&attestation.module)),
        registration(attestation.registration.as_ref()),
    );
    part("What runs", facts(&attestation.facts));
    part(&format!("Process {}", attestation.pid), evidence(attestation.evidence.as_ref()));
    text
}

fn checks(checks: &[Check], style: Style, indent: &str) -> String {
    let mut columns = Columns::default();
    for check in checks {
        let (hue, word) = match check.passed {
            Some(true) => (Hue::Good, "ok"),
            Some(false) => (Hue::Bad, "NOT"),
            None => (Hue::Plain, "-"),
        };
        columns.row(vec![
            (hue, word.to_owned()),
            (Hue::Plain, check.reason.to_string()),
            (Hue::Plain, check.reason.explained().check.to_owned()),
        ]);
    }
    columns.render(style, indent)
}

fn render_past(
    refusals: &[PastRefusal],
    users: &Accounts,
    style: Style,
    now: OffsetDateTime,
) -> String {
    if refusals.is_empty() {
        return "no refusals are known\n".to_owned();
    }
    let mut text = String::new();
    for (at, refusal) in refusals.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        text.push_str(&past(refusal, users, style, now));
        let Some(attestation) = &refusal.attestation else {
            text.push_str("  checks:  not kept; of earlier runs only the audit trail tells\n");
            continue;
        };
        if refusals.len() == 1 {
            text.push_str(&known(attestation, style));
            let _ = writeln!(text, "{}", style.paint(Hue::Head, "Checks"));
        } else {
            text.push_str("  checks, as they were then:\n");
        }
        text.push_str(&checks(
            &attestation.checks,
            style,
            if refusals.len() == 1 { "  " } else { "    " },
        ));
    }
    text
}

/// Renders a past refusal: time, reason, request, caller, cause and remedy.
fn past(refusal: &PastRefusal, users: &Accounts, style: Style, now: OffsetDateTime) -> String {
    let ago = |time: &str| {
        moment(time).map_or_else(|| printable(time), |time| format!("{} ago", age(time, now)))
    };
    let times = match refusal.count {
        1 => String::new(),
        count => format!(", {count} times since {}", printable(&refusal.first_time)),
    };
    let reason = style.paint(Hue::Bad, &refusal.reason.to_string());
    let asked = if refusal.module.is_empty() { "no module" } else { &refusal.module };
    let mut text =
        format!("{} ({}{times}): {reason}\n", printable(&refusal.time), ago(&refusal.time));
    let _ = writeln!(text, "  asked:   {} as {}", printable(&refusal.route), printable(asked));
    let _ = writeln!(text, "  caller:  {}", caller(refusal, users));
    let explained = &refusal.explanation;
    let _ = writeln!(
        text,
        "  cause:   {}\n  remedy:  {}",
        printable(&explained.cause),
        printable(&explained.remedy)
    );
    text
}

fn caller(refusal: &PastRefusal, users: &Accounts) -> String {
    let caller = &refusal.caller;
    let pid =
        if caller.pid == 0 { "pid not visible".to_owned() } else { format!("pid {}", caller.pid) };
    // In a container the same number is another user.
    let name = users.name(caller.uid).filter(|_| caller.container.is_none());
    let name = name.map(|name| format!(" ({})", printable(name))).unwrap_or_default();
    let mut text = format!("{pid}, uid {}{name}", caller.uid);
    if let Some(path) = &caller.executable {
        let _ = write!(text, ", {}", printable(path));
    }
    if let Some(container) = &caller.container {
        let _ = write!(text, ", in container {:.12}", container.as_str());
    }
    match (&caller.module, &caller.container) {
        (Some(module), _) => {
            let _ = write!(text, " of module {}", printable(module));
        }
        (None, Some(_)) => text.push_str(" of no module"),
        (None, None) => {}
    }
    text
}

fn registration(registered: Option<&Registered>) -> Vec<(&'static str, String)> {
    let Some(registered) = registered else { return vec![("none", String::new())] };
    let mut rows = vec![("policy", word(&registered.policy))];
    match &registered.workload {
        Workload::Container { container, image, options } => {
            rows.push(("container", container.to_string()));
            rows.push(("image", image.to_string()));
            rows.push(("options", options.to_string()));
        }
        Workload::Process { executable, uid } => {
            rows.push(("executable", executable.to_string()));
            rows.push(("uid", uid.to_string()));
        }
        Workload::Service { unit, uid, executable } => {
            rows.extend(unit.as_ref().map(|unit| ("unit", unit.to_string())));
            rows.extend(executable.map(|executable| ("executable", executable.to_string())));
            rows.extend(uid.map(|uid| ("uid", uid.to_string())));
        }
    }
    rows.extend(registered.generation.clone().map(|generation| ("generation", generation)));
    rows
}

fn facts(facts: &Facts) -> Vec<(&'static str, String)> {
    let mut rows = vec![("state", facts.state.clone())];
    rows.extend(
        facts.init.map(|init| {
            ("first process", format!("{} (start time {})", init.pid, init.start_time))
        }),
    );
    rows.extend(facts.container.as_ref().map(|container| ("container", container.to_string())));
    rows.extend(facts.image.clone().map(|image| ("image", image)));
    rows.extend(facts.options.clone().map(|options| ("options", options)));
    rows.extend(facts.cgroup.clone().map(|cgroup| ("cgroup", cgroup)));
    rows.extend(facts.exec_since.map(|since| ("engine exec", format!("since start time {since}"))));
    rows
}

fn evidence(seen: Option<&Seen>) -> Vec<(&'static str, String)> {
    let Some(seen) = seen else { return vec![("cannot be looked at", String::new())] };
    let file = &seen.executable;
    let mut rows = vec![
        ("start time", seen.process.start_time.to_string()),
        ("executable", seen.path.clone()),
        ("file", format!("device {} inode {} size {}", file.device, file.inode, file.size)),
    ];
    if let Some(measurement) = seen.measurement {
        rows.push(("digest", measurement.digest.to_string()));
        rows.extend(
            measurement
                .unmodified_from_image
                .map(|same| ("same in image", if same { "yes" } else { "no" }.into())),
        );
    }
    rows.push(("user", format!("uid {} gid {}", seen.uid, seen.gid)));
    rows.push(("cgroup", seen.cgroup.clone()));
    rows.extend(seen.container.as_ref().map(|container| ("container", container.to_string())));
    rows.push(("namespaces", format!("pid {} user {}", seen.pid_namespace, seen.user_namespace)));
    rows.push(("tracer", if seen.tracer == 0 { "none".into() } else { seen.tracer.to_string() }));
    rows.extend(seen.filters.map(|filters| ("call filters", filters.to_string())));
    if let Some(holding) = seen.connection {
        let how = match holding {
            Holding::CloseOnExec => "in a descriptor that is closed on exec",
            Holding::Inheritable => "in a descriptor that survives exec",
            Holding::NotHeld => "not held any more",
            Holding::Untold => "the kernel does not tell",
        };
        rows.push(("connection", how.to_owned()));
    }
    let chain: Vec<String> =
        seen.ancestry.iter().map(|ancestor| ancestor.process.pid.to_string()).collect();
    rows.push(("ancestors", chain.join(" < ")));
    rows
}

fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use edgekeep_core::attestation::DenyReason;

    use super::*;

    fn refused() -> Attestation {
        let stopped = edgekeep_core::attestation::RunningFacts::Stopped;
        Attestation {
            module: "m1\u{7}".into(),
            pid: 7,
            allowed: false,
            registration: None,
            facts: Facts::from(&stopped),
            evidence: None,
            checks: vec![
                Check { reason: DenyReason::SocketOfAnotherModule, passed: None },
                Check { reason: DenyReason::NotRegistered, passed: Some(false) },
            ],
            explanation: Some(DenyReason::NotRegistered.into()),
        }
    }

    #[test]
    fn the_failed_check_its_reason_and_its_remedy_are_shown_and_nothing_steers_the_terminal() {
        let text = render(&refused(), Style::plain());
        assert!(text.contains("NOT  not-registered"), "{text}");
        assert!(
            text.contains("This process is refused: not-registered.\n  cause:  This daemon has no"),
            "{text}"
        );
        assert!(!text.contains('\u{7}'), "{text:?}");
        let served = Attestation { allowed: true, checks: Vec::new(), ..refused() };
        assert!(render(&served, Style::plain()).contains("This process is served as m1"));
    }

    fn past_refusal(attestation: Option<Attestation>) -> PastRefusal {
        PastRefusal {
            module: "m1".into(),
            route: "POST /sign".into(),
            reason: DenyReason::NotRegistered,
            explanation: DenyReason::NotRegistered.into(),
            count: 12,
            first_time: "2026-07-01T10:00:00Z".into(),
            time: "2026-07-01T11:58:00Z".into(),
            caller: edgekeep_api::attestation::RefusedCaller {
                pid: 77,
                uid: 1000,
                executable: Some("/usr/bin/curl\u{7}".into()),
                container: None,
                module: None,
            },
            attestation,
        }
    }

    #[test]
    fn a_past_refusal_says_when_who_why_and_what_to_do_with_each_check() {
        let users = Accounts {
            passwd: "alice:x:1000:1000::/home/alice:/bin/sh\n".into(),
            ..Accounts::default()
        };
        let now = time::macros::datetime!(2026-07-01 12:00 UTC);
        let two = [past_refusal(Some(refused())), past_refusal(None)];
        let text = render_past(&two, &users, Style::plain(), now);
        let explained = DenyReason::NotRegistered.explained();
        let expected = format!(
            "2026-07-01T11:58:00Z (2 minutes ago, 12 times since 2026-07-01T10:00:00Z): not-registered\n  \
               asked:   POST /sign as m1\n  \
               caller:  pid 77, uid 1000 (alice), /usr/bin/curl\u{fffd}\n  \
               cause:   {}\n  remedy:  {}\n  \
               checks, as they were then:\n    \
                 -    socket-of-another-module  it asks on its own socket\n    \
                 NOT  not-registered            the module is registered\n\n",
            explained.cause, explained.remedy
        );
        assert_eq!(text.split_at(expected.len()).0, expected);
        assert!(text.ends_with("only the audit trail tells\n"), "{text}");
        assert!(
            render_past(&two[..1], &users, Style::plain(), now).contains("What runs\n"),
            "one is shown whole"
        );
        assert_eq!(render_past(&[], &users, Style::plain(), now), "no refusals are known\n");
        let mut inside = past_refusal(None);
        inside.caller.container = Some("ab".repeat(32).parse().expect("an id"));
        inside.caller.module = Some("m2".into());
        assert!(
            caller(&inside, &users).starts_with("pid 77, uid 1000, "),
            "not the host's user of that number"
        );
        assert!(
            caller(&inside, &users).ends_with("in container abababababab of module m2"),
            "{}",
            caller(&inside, &users)
        );
    }
}
