//! The table of members as operators read it in `docs/create-options.md`, and a check
//! that it knows what engines publish.

use std::fmt::Write as _;

use super::members::{CONFIG, HOST, Member, Rule, Shape};

const BEGIN: &str = "<!-- the table begins; it is written by EDGEKEEP_BLESS=1 cargo nextest run -p edgekeep-core page -->\n";
const END: &str = "<!-- the table ends -->\n";

fn listed(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// Returns the values to which a module may set a member without a grant, and the grant
/// that allows more.
fn decision(member: &Member, path: &str) -> (String, String) {
    let option = format!("`options = [\"{path}\"]`");
    let with = |words: &str, grant: &str| (words.to_owned(), grant.to_owned());
    match member.rule {
        Rule::Free => with("anything", ""),
        Rule::Host => with("by member", ""),
        Rule::Empty => ("nothing".to_owned(), option),
        Rule::Absent => ("nothing, not even an empty list".to_owned(), option),
        Rule::OneOf(words) => (listed(words), option),
        Rule::Within(first, last) => (format!("{first} to {last}"), option),
        Rule::Names(names) => (listed(names), option),
        Rule::Namespace(kind, words) => {
            (listed(words), format!("`namespaces = [\"{kind}\"]` for `host`"))
        }
        Rule::TakenAway if member.name == "CapAdd" => with("taken away", "`capabilities`"),
        Rule::TakenAway => with("taken away", "`privileged = true`"),
        Rule::Binds | Rule::Volumes => with("volumes of the engine's own", "`binds`, `volumes`"),
        Rule::Mounts => with("volumes of the engine's own, memory", "`binds`, `volumes`"),
        Rule::Devices => with("nothing", "`devices`"),
        Rule::Env => ("`NAME=VALUE`".to_owned(), option),
        Rule::Labels => {
            ("any but `io.containers.*`, `io.podman.*`, `PODMAN_SYSTEMD_UNIT`".to_owned(), option)
        }
        Rule::WorkingDir => ("any but in `/proc`, `/sys`, `/dev/fd`".to_owned(), option),
        Rule::Groups => ("any but `keep-groups`".to_owned(), option),
        Rule::Ports | Rule::AllPorts => {
            with("any; nothing with `published_ports = \"granted\"`", "`ports`")
        }
        Rule::Ulimits => with("any but `nice`, `rtprio`, `rttime`", "`ulimits`"),
        Rule::Sysctls => with("nothing", "`sysctls`"),
        Rule::Runtime => with("the engine's default", "`runtimes`"),
        Rule::Security => {
            ("`no-new-privileges`, `seccomp=builtin`, `apparmor=docker-default`".to_owned(), option)
        }
        Rule::Network | Rule::Networking => {
            with("networks by name, `none`, `default`", "`namespaces = [\"network\"]` for `host`")
        }
        Rule::OomScore => ("0 and more".to_owned(), option),
        Rule::Log => ("`json-file`, `local`, `journald`, `k8s-file`, `none`".to_owned(), option),
    }
}

fn rows(members: &[Member], path: &str, table: &mut String) {
    for member in members {
        let full = if path.is_empty() {
            member.name.to_owned()
        } else {
            format!("{path}.{}", member.name)
        };
        let (without, grant) = decision(member, &full);
        writeln!(table, "| `{full}` | {without} | {} | {grant} |", member.why).expect("text");
        match member.shape {
            Shape::Plain => {}
            Shape::Members(inner) => rows(inner, &full, table),
            Shape::List(inner) => rows(inner, &format!("{full}[]"), table),
            Shape::Map(inner) => rows(inner, &format!("{full}.*"), table),
            Shape::Lists(inner) => rows(inner, &format!("{full}.*[]"), table),
        }
    }
}

#[test]
fn the_page_for_operators_has_the_table_as_it_is() {
    let mut table = "| member | without a grant | why | grant |\n|---|---|---|---|\n".to_owned();
    rows(CONFIG, "", &mut table);
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/create-options.md");
    let page = std::fs::read_to_string(&path).expect("the page is there");
    let (before, rest) = page.split_once(BEGIN).expect("the table begins");
    let (_, after) = rest.split_once(END).expect("the table ends");
    let expected = format!("{before}{BEGIN}\n{table}\n{END}{after}");
    if std::env::var_os("EDGEKEEP_BLESS").is_some() {
        std::fs::write(&path, &expected).expect("the page can be written");
        return;
    }
    assert_eq!(page, expected, "run with EDGEKEEP_BLESS=1");
}

/// Paths of the members that Docker's API up to 1.52 and Podman's compatible API publish
/// for the body of a create call.
const PUBLISHED: &str = "
    Hostname Domainname User AttachStdin AttachStdout AttachStderr ExposedPorts Tty OpenStdin StdinOnce Env Cmd
    Healthcheck.Test Healthcheck.Interval Healthcheck.Timeout Healthcheck.Retries Healthcheck.StartPeriod
    Healthcheck.StartInterval ArgsEscaped Image Volumes WorkingDir Entrypoint NetworkDisabled MacAddress OnBuild Labels
    StopSignal StopTimeout Shell Name EnvMerge UnsetEnv UnsetEnvAll
    NetworkingConfig.EndpointsConfig.*.IPAMConfig NetworkingConfig.EndpointsConfig.*.Links
    NetworkingConfig.EndpointsConfig.*.MacAddress NetworkingConfig.EndpointsConfig.*.Aliases
    NetworkingConfig.EndpointsConfig.*.DriverOpts NetworkingConfig.EndpointsConfig.*.GwPriority
    NetworkingConfig.EndpointsConfig.*.NetworkID NetworkingConfig.EndpointsConfig.*.EndpointID
    NetworkingConfig.EndpointsConfig.*.Gateway NetworkingConfig.EndpointsConfig.*.IPAddress
    NetworkingConfig.EndpointsConfig.*.IPPrefixLen NetworkingConfig.EndpointsConfig.*.IPv6Gateway
    NetworkingConfig.EndpointsConfig.*.GlobalIPv6Address NetworkingConfig.EndpointsConfig.*.GlobalIPv6PrefixLen
    NetworkingConfig.EndpointsConfig.*.DNSNames
    HostConfig.CpuShares HostConfig.Memory HostConfig.CgroupParent HostConfig.BlkioWeight
    HostConfig.BlkioWeightDevice[].Path HostConfig.BlkioWeightDevice[].Weight
    HostConfig.BlkioDeviceReadBps[].Path HostConfig.BlkioDeviceReadBps[].Rate HostConfig.BlkioDeviceWriteBps[].Path
    HostConfig.BlkioDeviceWriteBps[].Rate HostConfig.BlkioDeviceReadIOps[].Path HostConfig.BlkioDeviceReadIOps[].Rate
    HostConfig.BlkioDeviceWriteIOps[].Path HostConfig.BlkioDeviceWriteIOps[].Rate HostConfig.CpuPeriod
    HostConfig.CpuQuota HostConfig.CpuRealtimePeriod HostConfig.CpuRealtimeRuntime HostConfig.CpusetCpus
    HostConfig.CpusetMems HostConfig.Devices[].PathOnHost HostConfig.Devices[].PathInContainer
    HostConfig.Devices[].CgroupPermissions HostConfig.DeviceCgroupRules HostConfig.DeviceRequests[].Driver
    HostConfig.DeviceRequests[].Count HostConfig.DeviceRequests[].DeviceIDs HostConfig.DeviceRequests[].Capabilities
    HostConfig.DeviceRequests[].Options HostConfig.KernelMemory HostConfig.KernelMemoryTCP HostConfig.MemoryReservation
    HostConfig.MemorySwap HostConfig.MemorySwappiness HostConfig.NanoCpus HostConfig.OomKillDisable HostConfig.Init
    HostConfig.PidsLimit HostConfig.Ulimits[].Name HostConfig.Ulimits[].Soft HostConfig.Ulimits[].Hard
    HostConfig.CpuCount HostConfig.CpuPercent HostConfig.IOMaximumIOps HostConfig.IOMaximumBandwidth HostConfig.Binds
    HostConfig.ContainerIDFile HostConfig.LogConfig.Type HostConfig.LogConfig.Config HostConfig.NetworkMode
    HostConfig.PortBindings.*[].HostIp HostConfig.PortBindings.*[].HostPort HostConfig.RestartPolicy.Name
    HostConfig.RestartPolicy.MaximumRetryCount HostConfig.AutoRemove HostConfig.VolumeDriver HostConfig.VolumesFrom
    HostConfig.Mounts[].Type HostConfig.Mounts[].Source HostConfig.Mounts[].Target HostConfig.Mounts[].ReadOnly
    HostConfig.Mounts[].Consistency HostConfig.Mounts[].BindOptions.Propagation
    HostConfig.Mounts[].BindOptions.NonRecursive HostConfig.Mounts[].BindOptions.CreateMountpoint
    HostConfig.Mounts[].BindOptions.ReadOnlyNonRecursive HostConfig.Mounts[].BindOptions.ReadOnlyForceRecursive
    HostConfig.Mounts[].VolumeOptions.NoCopy HostConfig.Mounts[].VolumeOptions.Labels
    HostConfig.Mounts[].VolumeOptions.Subpath HostConfig.Mounts[].VolumeOptions.DriverConfig.Name
    HostConfig.Mounts[].VolumeOptions.DriverConfig.Options HostConfig.Mounts[].ImageOptions.Subpath
    HostConfig.Mounts[].TmpfsOptions.SizeBytes HostConfig.Mounts[].TmpfsOptions.Mode
    HostConfig.Mounts[].TmpfsOptions.Options HostConfig.Mounts[].ClusterOptions HostConfig.ConsoleSize
    HostConfig.Annotations HostConfig.CapAdd HostConfig.CapDrop HostConfig.CgroupnsMode HostConfig.Dns
    HostConfig.DnsOptions HostConfig.DnsSearch HostConfig.ExtraHosts HostConfig.GroupAdd HostConfig.IpcMode
    HostConfig.Cgroup HostConfig.Links HostConfig.OomScoreAdj HostConfig.PidMode HostConfig.Privileged
    HostConfig.PublishAllPorts HostConfig.ReadonlyRootfs HostConfig.SecurityOpt HostConfig.StorageOpt HostConfig.Tmpfs
    HostConfig.UTSMode HostConfig.UsernsMode HostConfig.ShmSize HostConfig.Sysctls HostConfig.Runtime
    HostConfig.Isolation HostConfig.MaskedPaths HostConfig.ReadonlyPaths HostConfig.Capabilities HostConfig.DiskQuota";

#[test]
fn each_member_that_engines_publish_has_a_decision_of_its_own() {
    let mut table = String::new();
    rows(CONFIG, "", &mut table);
    for path in PUBLISHED.split_whitespace() {
        assert_eq!(table.matches(&format!("| `{path}` |")).count(), 1, "{path}");
    }
    let undecided = |member: &Member| member.why.is_empty();
    assert!(!CONFIG.iter().chain(HOST).any(undecided));
}
