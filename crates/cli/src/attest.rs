//! `attest`: why a process is served as a module, or why not, line by line.

use std::fmt::Write as _;
use std::process::ExitCode;

use edgekeep_api::attestation::{Attestation, Facts, Registered, Seen};
use edgekeep_api::management::ManagementClient;
use edgekeep_core::attestation::{DenyReason, Workload};

use crate::arguments::{AttestOptions, Context};
use crate::output::{self, Columns, Hue, Style};

pub(crate) async fn run(context: &Context, options: &AttestOptions) -> anyhow::Result<ExitCode> {
    let client = ManagementClient::new(&context.management);
    // A number is a pid; a module that is called like one is looked at by the pid of its process and `--module`.
    let attestation = match options.subject.parse::<u32>() {
        Ok(pid) => client.attestation(Some(pid), options.module.as_deref()).await?,
        Err(_) => client.attestation(None, Some(&options.subject)).await?,
    };
    if context.json {
        output::print_json(&attestation)?;
    } else {
        output::print(&render(&attestation, Style::stdout()))?;
    }
    Ok(if attestation.allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(attestation: &Attestation, style: Style) -> String {
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
        &format!("Registration of {}", output::printable(&attestation.module)),
        registration(attestation.registration.as_ref()),
    );
    part("What runs", facts(&attestation.facts));
    part(&format!("Process {}", attestation.pid), evidence(attestation.evidence.as_ref()));
    let _ = writeln!(text, "{}", style.paint(Hue::Head, "Checks"));
    let mut columns = Columns::default();
    for check in &attestation.checks {
        let (hue, word) = match check.passed {
            Some(true) => (Hue::Good, "ok"),
            Some(false) => (Hue::Bad, "NOT"),
            None => (Hue::Plain, "-"),
        };
        columns.row(vec![
            (hue, word.to_owned()),
            (Hue::Plain, check.reason.to_string()),
            (Hue::Plain, meaning(check.reason).to_owned()),
        ]);
    }
    text.push_str(&columns.render(style, "  "));
    match attestation.checks.iter().find(|check| check.passed == Some(false)) {
        None => {
            let verdict = style.paint(Hue::Good, "served");
            let _ = writeln!(text, "This process is {verdict} as {}.", output::printable(&attestation.module));
        }
        Some(failed) => {
            let verdict = style.paint(Hue::Bad, "refused");
            let _ = writeln!(text, "This process is {verdict}: {}. {}", failed.reason, remedy(failed.reason));
        }
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
    rows.extend(facts.init.map(|init| ("first process", format!("{} (start time {})", init.pid, init.start_time))));
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
            measurement.unmodified_from_image.map(|same| ("same in image", if same { "yes" } else { "no" }.into())),
        );
    }
    rows.push(("user", format!("uid {} gid {}", seen.uid, seen.gid)));
    rows.push(("cgroup", seen.cgroup.clone()));
    rows.extend(seen.container.as_ref().map(|container| ("container", container.to_string())));
    rows.push(("namespaces", format!("pid {} user {}", seen.pid_namespace, seen.user_namespace)));
    rows.push(("tracer", if seen.tracer == 0 { "none".into() } else { seen.tracer.to_string() }));
    let chain: Vec<String> = seen.ancestry.iter().map(|ancestor| ancestor.process.pid.to_string()).collect();
    rows.push(("ancestors", chain.join(" < ")));
    rows
}

fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// What holds when the check passes.
fn meaning(reason: DenyReason) -> &'static str {
    match reason {
        DenyReason::SocketOfAnotherModule => "it asks on its own socket",
        DenyReason::NotRegistered => "the module is registered",
        DenyReason::FactsUnknown => "it is known what runs",
        DenyReason::NotRunning => "the module runs",
        DenyReason::PidNotVisible => "the process is visible",
        DenyReason::CallerGone => "the process lives",
        DenyReason::CallerChanged => "it did not change while it was looked at",
        DenyReason::Traced => "no debugger is attached",
        DenyReason::OtherUser => "it runs as the module's user",
        DenyReason::NotInModule => "it is in the module's container or group",
        DenyReason::NotADescendant => "it stems from the module's first process",
        DenyReason::AfterExec => "the engine's exec did not leave it behind",
        DenyReason::ContainerChanged => "the registered container runs",
        DenyReason::ImageChanged => "it runs the registered image",
        DenyReason::OptionsChanged => "it was created with the registered options",
        DenyReason::NotOnHost => "it runs on the host itself, in no container or namespace of its own",
        DenyReason::NotInUnit => "it is in the registered unit's control group",
        DenyReason::ExecutableUnmeasured => "its executable can be measured",
        DenyReason::ExecutableChanged => "its executable is the registered one",
        DenyReason::OtherUserNamespace => "it is in the module's user namespace",
        DenyReason::ConnectionInheritable => "it holds its connection in a descriptor that is closed on exec",
        DenyReason::ConnectionNotHeld => "it still holds its connection",
        _ => "",
    }
}

/// What an operator can do about a refusal.
fn remedy(reason: DenyReason) -> &'static str {
    match reason {
        DenyReason::NotRegistered => "Create the module through the management API, as its deployment does.",
        DenyReason::FactsUnknown => "See `edgekeep status`: the container engine does not answer.",
        DenyReason::NotRunning => "Start the module: `edgekeep restart MODULE`.",
        DenyReason::PidNotVisible => "Run the daemon in the host's pid namespace.",
        DenyReason::CallerGone | DenyReason::CallerChanged => "Try again with a process that goes on running.",
        DenyReason::Traced => "Detach the debugger.",
        DenyReason::OtherUser => "Run the program as the registered user.",
        DenyReason::NotInModule => "Only processes of the module itself are served: ask from inside it.",
        DenyReason::NotADescendant => {
            "What the engine's exec starts is not the module. For debugging only, set the policy of this module to \
             \"process\" in [module_policies]."
        }
        DenyReason::NotOnHost => {
            "Run the service on the host, without namespaces of its own, or make it a container module."
        }
        DenyReason::NotInUnit => {
            "Only processes of the unit itself are served; see [host_services] in the configuration, which needs a unit, or \
             a user and an executable."
        }
        DenyReason::AfterExec => "Restart the module; then what it starts itself can be told apart again.",
        DenyReason::ContainerChanged | DenyReason::ImageChanged | DenyReason::OptionsChanged => {
            "The container was made or changed behind the daemon's back: remove it, and let the agent create it anew."
        }
        DenyReason::ExecutableUnmeasured => {
            "The policy \"executable\" needs an engine with overlay folders and an executable below 1 GiB."
        }
        DenyReason::ExecutableChanged => {
            "Build the program into the image, or register its new digest in [host_modules] or [host_services]."
        }
        DenyReason::OtherUserNamespace => {
            "Run the program without a user namespace of its own, or use policy \"image\"."
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use edgekeep_api::attestation::Check;
    use edgekeep_core::attestation::checks;

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
        }
    }

    #[test]
    fn the_failed_check_its_reason_and_its_remedy_are_shown_and_nothing_steers_the_terminal() {
        let text = render(&refused(), Style::plain());
        assert!(text.contains("NOT  not-registered"), "{text}");
        assert!(text.contains("This process is refused: not-registered. Create the module"), "{text}");
        assert!(!text.contains('\u{7}'), "{text:?}");
        let served = Attestation { allowed: true, checks: Vec::new(), ..refused() };
        assert!(render(&served, Style::plain()).contains("This process is served as m1"));
    }

    #[test]
    fn every_check_has_a_meaning_and_every_refusal_of_a_process_a_remedy() {
        for workload in [
            Workload::Process { executable: edgekeep_core::digest::Sha256Digest::new([0; 32]), uid: 0 },
            Workload::Container {
                container: "a".repeat(64).parse().expect("an id"),
                image: edgekeep_core::digest::Sha256Digest::new([0; 32]),
                options: edgekeep_core::digest::Sha256Digest::new([0; 32]),
            },
            Workload::Service {
                unit: Some("collector.service".parse().expect("a unit")),
                uid: Some(990),
                executable: Some(edgekeep_core::digest::Sha256Digest::new([0; 32])),
            },
        ] {
            let registration = edgekeep_core::attestation::Registration {
                module: "m1".parse().expect("an id"),
                generation: None,
                policy: edgekeep_core::attestation::Policy::Executable,
                workload,
            };
            for reason in checks(Some(&registration)) {
                assert_ne!(meaning(reason), "", "{reason}");
                assert!(reason.is_of_connection() || !remedy(reason).is_empty(), "{reason}");
            }
        }
    }
}
