//! The checks of a whole device: what takes systemd as the first process, cgroup v2, a
//! TPM at `/dev/tpmrm0`, an older kernel, and the daemons as users of their own.
//!
//! `cargo xtask vm` boots a machine in which this program runs once. It installs what a
//! package would, and does each check in turn; later ones build upon earlier ones. A line
//! for each goes to the file that is its argument: `ok NAME`, or `not ok NAME: WHY`;
//! lines that begin with `#` are remarks. `--list` prints the names instead, so that the
//! outside knows which lines must come. Not to be run on a machine that is to be kept.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "what it finds is printed")]
#![allow(clippy::unwrap_used, reason = "a check says what it expects by unwrapping it")]

mod containers;
mod daemons;
mod device;
mod host_modules;
mod restarts;
mod setup;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Mutex;

use device::Device;
use edgekeep_daemon::arguments::Synopsis;

/// One check: its name, which is a sentence, and what it does; it panics if it is not so.
type Check = (&'static str, fn(&mut Device));

macro_rules! checks {
    ($($module:ident :: $name:ident),* $(,)?) => { [$((concat!(stringify!($module), "::", stringify!($name)), $module::$name)),*] };
}

const CHECKS: &[Check] = &checks![
    setup::the_machine_is_what_the_checks_are_for,
    setup::the_package_is_installed_and_configured,
    daemons::each_daemon_is_ready_under_systemd_as_its_own_user,
    daemons::the_store_key_is_sealed_by_the_machines_tpm,
    daemons::the_device_gets_its_identity_and_says_that_it_is_well,
    daemons::what_this_kernel_lacks_is_named,
    containers::a_container_under_the_systemd_driver_gets_its_token,
    containers::what_the_engine_brings_into_a_container_is_refused,
    containers::another_container_with_the_modules_socket_is_refused,
    host_modules::limits_of_a_host_module_stand_in_its_scope,
    host_modules::a_host_module_that_uses_more_memory_than_it_may_is_ended,
    restarts::a_restart_of_moduled_leaves_containers_and_host_modules_running,
    restarts::an_upgrade_leaves_containers_and_host_modules_running,
    host_modules::without_leave_to_make_scopes_limits_stand_below_moduleds_own_group,
    restarts::removing_keeps_the_keys_and_purging_takes_them,
];

/// Message of the last panic, and its place in the code.
static WHY: Mutex<String> = Mutex::new(String::new());

const LIST: &str = "--list";

const SYNOPSIS: Synopsis = Synopsis {
    name: "device-checks",
    version: env!("CARGO_PKG_VERSION"),
    summary: "Installs edgekeep on this machine and checks it. Not for a machine that is to be kept.",
    usage: "--list | FILE",
    flags: &[(LIST, "Print the names of the checks, and do nothing else")],
    variables: &[],
};

fn main() -> ExitCode {
    let given = match SYNOPSIS.given(1..=1) {
        Ok(given) => given,
        Err(code) => return code,
    };
    if given.flags.contains(LIST) {
        CHECKS.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let path = &given.operands[0];
    let Ok(mut report) = OpenOptions::new().append(true).create(true).open(path) else {
        return SYNOPSIS.refuse(&format!("cannot write {}", path.display()));
    };
    let mut say = move |line: &str| {
        println!("{line}");
        let _ = writeln!(report, "{line}").and_then(|()| report.flush());
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("a panic without words");
        *WHY.lock().unwrap() = format!("{place}: {text}");
    }));
    let mut device = Device::default();
    let mut failed = false;
    for (name, check) in CHECKS {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| check(&mut device)));
        for remark in device.remarks.drain(..) {
            say(&format!("# {name}: {}", one_line(&remark)));
        }
        match outcome {
            Ok(()) => say(&format!("ok {name}")),
            Err(_) => {
                failed = true;
                say(&format!("not ok {name}: {}", one_line(&WHY.lock().unwrap())));
                // Nothing can be said about a device that does not come up.
                if name.starts_with("setup::") || name.starts_with("daemons::each") {
                    break;
                }
            }
        }
    }
    say("# done");
    ExitCode::from(u8::from(failed))
}

/// A text as one line of bounded length.
fn one_line(text: &str) -> String {
    text.trim().replace('\n', " | ").chars().take(2000).collect()
}
