//! Judgements of what probes found: functions over values.

use serde_json::Value;

use super::outcome::Outcome;

/// Days that a certificate should be valid for.
const FEW_DAYS: f64 = 7.0;
const MIB: u64 = 1 << 20;

/// A name that stands in certificates and that peers look up (RFC 1123; 64 characters are
/// what a common name has room for).
pub(super) fn hostname(name: &str) -> Outcome {
    const WHY: &str =
        "modules and children of the device find it, and check its certificate, by this name";
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let fix = "set `hostname` at the top of config.toml, and run: edgekeep config apply";
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Outcome::Ok;
    }
    if name.len() > 64 {
        return Outcome::error(
            format!("the name has {} characters, and certificates have room for 64", name.len()),
            WHY,
            fix,
        );
    }
    if !name.split('.').all(label) {
        return Outcome::warning(format!("{name:?} is no name of a host"), WHY, fix);
    }
    Outcome::Ok
}

/// Room on the file system of the daemons' state, in bytes.
pub(super) fn disk(free: u64, total: u64) -> Outcome {
    const WHY: &str = "daemons cannot write down identities, certificates and the log of key uses";
    let details = format!("{} MiB of {} MiB are free", free / MIB, total / MIB);
    let fix = "free some: edgekeep images --collect, journalctl --vacuum-size=100M; df -h /var/lib/edgekeep";
    if free < 16 * MIB {
        Outcome::error(details, WHY, fix)
    } else if free < 200 * MIB {
        Outcome::warning(details, WHY, fix)
    } else {
        Outcome::Ok
    }
}

/// Certificates by id and days left.
pub(super) fn certificates(lines: &[(String, f64, Option<String>)]) -> Outcome {
    const WHY: &str = "modules and the cloud refuse what is not valid";
    let worst = lines.iter().min_by(|one, other| one.1.total_cmp(&other.1));
    let Some((id, days, error)) = worst else { return Outcome::Ok };
    let why_not =
        error.as_ref().map_or_else(String::new, |error| format!("; its renewal failed: {error}"));
    let fix = format!("edgekeep certs show {id}; edgekeep certs renew {id}");
    if *days <= 0.0 {
        Outcome::error(format!("{id} is not valid any more{why_not}"), WHY, fix)
    } else if *days < FEW_DAYS && error.is_some() {
        Outcome::warning(format!("{id} is valid for {days:.1} days{why_not}"), WHY, fix)
    } else {
        Outcome::Ok
    }
}

/// The settings of Docker's daemon about logs of containers.
pub(super) fn logrotate(daemon: &Value) -> Outcome {
    let driver = daemon["log-driver"].as_str().unwrap_or("json-file");
    let bounded = daemon["log-opts"]["max-size"].is_string();
    if driver != "json-file" || bounded {
        // Others bound themselves, or keep nothing on this device.
        return Outcome::Ok;
    }
    Outcome::warning(
        "logs of containers grow without a bound",
        "the disk fills up, and everything else stops",
        "set \"log-driver\": \"local\" in /etc/docker/daemon.json, and restart docker; containers that are there are to \
         be made anew",
    )
}

/// Judges an engine's hardening by its answer at `/info`.
pub(super) fn hardening(info: &Value) -> Outcome {
    const WHY: &str = "a module that breaks out of its program meets nothing that holds it";
    let options = info["SecurityOptions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let has = |name: &str| {
        options.iter().any(|option| option.as_str().is_some_and(|option| option.contains(name)))
    };
    if !has("seccomp") || has("profile=unconfined") {
        return Outcome::warning(
            "the engine filters no system calls of containers",
            WHY,
            "take \"seccomp-profile\": \"unconfined\" out of the engine's settings, or use a kernel with seccomp",
        );
    }
    if !has("apparmor") && !has("selinux") {
        return Outcome::warning(
            "the engine uses neither AppArmor nor SELinux",
            WHY,
            "apt install apparmor, and restart the engine",
        );
    }
    Outcome::Ok
}

/// Judges the place of a container's storage folder, which its environment names.
pub(super) fn storage(container: &Value) -> Outcome {
    let env = container["Config"]["Env"].as_array().map(Vec::as_slice).unwrap_or_default();
    let folder = env
        .iter()
        .filter_map(Value::as_str)
        .find_map(|entry| {
            entry.strip_prefix("storageFolder=").or(entry.strip_prefix("StorageFolder="))
        })
        .unwrap_or("/tmp");
    let mounts = container["Mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let lies_in = |mount: &Value| {
        mount["Destination"]
            .as_str()
            .is_some_and(|place| std::path::Path::new(folder).starts_with(place))
    };
    if mounts.iter().any(lies_in) {
        return Outcome::Ok;
    }
    Outcome::warning(
        format!("its folder {folder} lies in the container"),
        "what it has stored, messages for the cloud too, is lost when the container is made anew",
        "mount a folder of the host, and name it: storageFolder in the module's environment, and Binds in its create options",
    )
}

/// A protocol towards the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upstream {
    Https,
    Mqtt,
    Amqp,
}

impl Upstream {
    pub(super) const fn port(self) -> u16 {
        match self {
            Self::Https => 443,
            Self::Mqtt => 8883,
            Self::Amqp => 5671,
        }
    }
}

/// The protocol that a containerised agent speaks: AMQP, if its environment has no other.
/// Programs of the host speak what they like.
pub(super) fn upstream(kind: &str, protocol: Option<&str>) -> Option<Upstream> {
    match protocol.map(str::to_ascii_lowercase).as_deref() {
        Some("mqtt") => Some(Upstream::Mqtt),
        Some("amqpws" | "mqttws") => Some(Upstream::Https),
        Some("amqp") => Some(Upstream::Amqp),
        _ if kind == "docker" => Some(Upstream::Amqp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rank(outcome: &Outcome) -> u8 {
        outcome.rank()
    }

    #[test]
    fn names_of_hosts_and_addresses_pass_and_what_no_certificate_holds_does_not() {
        for name in ["press", "press-04.plant7.example", "10.0.0.7", "fd00::1"] {
            assert_eq!(hostname(name), Outcome::Ok, "{name}");
        }
        for name in ["", "a..b", "-a", "a_b", "a-"] {
            assert_eq!(rank(&hostname(name)), 1, "{name}");
        }
        assert_eq!(rank(&hostname(&"a".repeat(65))), 2);
    }

    #[test]
    fn little_room_is_warned_of_and_none_is_an_error() {
        assert_eq!(disk(MIB << 10, MIB << 12), Outcome::Ok);
        assert_eq!(rank(&disk(199 * MIB, MIB << 12)), 1);
        assert_eq!(rank(&disk(15 * MIB, MIB << 12)), 2);
    }

    #[test]
    fn the_certificate_that_ends_first_counts_and_one_that_is_renewed_is_none_to_tell() {
        let line =
            |id: &str, days, error: Option<&str>| (id.to_owned(), days, error.map(str::to_owned));
        assert_eq!(certificates(&[line("a", 2.0, None), line("b", 80.0, None)]), Outcome::Ok);
        let late = certificates(&[line("a", 80.0, None), line("b", 2.0, Some("no answer"))]);
        assert!(
            matches!(&late, Outcome::Warning(found) if found.details.contains("b is valid for 2.0 days")),
            "{late:?}"
        );
        assert_eq!(rank(&certificates(&[line("a", -1.0, None)])), 2);
    }

    #[test]
    fn only_json_files_without_a_size_grow() {
        assert_eq!(rank(&logrotate(&json!({}))), 1);
        assert_eq!(logrotate(&json!({ "log-driver": "local" })), Outcome::Ok);
        assert_eq!(logrotate(&json!({ "log-opts": { "max-size": "10m" } })), Outcome::Ok);
    }

    #[test]
    fn an_engine_without_filters_or_labels_is_told() {
        let info = |options: &[&str]| json!({ "SecurityOptions": options });
        assert_eq!(
            hardening(&info(&["name=apparmor", "name=seccomp,profile=builtin"])),
            Outcome::Ok
        );
        assert_eq!(rank(&hardening(&info(&["name=apparmor"]))), 1);
        assert_eq!(
            rank(&hardening(&info(&["name=apparmor", "name=seccomp,profile=unconfined"]))),
            1
        );
        assert_eq!(rank(&hardening(&info(&["name=seccomp,profile=builtin"]))), 1);
    }

    #[test]
    fn storage_lies_on_the_host_if_a_mount_is_at_or_above_it() {
        let container = |place: &str| json!({ "Config": { "Env": ["storageFolder=/data/hub"] }, "Mounts": [{ "Destination": place }] });
        assert_eq!(storage(&container("/data")), Outcome::Ok);
        assert_eq!(rank(&storage(&container("/dat"))), 1);
    }

    #[test]
    fn only_the_protocol_in_use_is_asked_for() {
        assert_eq!(upstream("docker", None), Some(Upstream::Amqp));
        assert_eq!(upstream("docker", Some("MqttWs")), Some(Upstream::Https));
        assert_eq!(upstream("process", Some("Mqtt")), Some(Upstream::Mqtt));
        assert_eq!(upstream("process", None), None);
    }
}
