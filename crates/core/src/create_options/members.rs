//! The members of an engine's create body: how they are spelled, what they hold, and what
//! a module without elevated permissions may set them to.
//!
//! Engines decode their JSON without regard to case, by Unicode's simple folding, and let
//! the last of two spellings win or add. So a member is first given the spelling of this
//! table, wherever it stands.

use serde_json::{Map, Value};

use super::{Refusal, Why, shown};

/// The shape of a member's value, as far as the engine spells the names in it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// A plain value, or members with free names.
    Plain,
    /// Members of this table.
    Members(&'static [Member]),
    /// A list of objects.
    List(&'static [Member]),
    /// Free names, each with an object.
    Map(&'static [Member]),
    /// Free names, each with a list of objects.
    Lists(&'static [Member]),
}

/// The values to which a module without elevated permissions may set a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Anything.
    Free,
    /// Nothing: absent, null, false, 0 or empty.
    Empty,
    /// Not even an empty value.
    Absent,
    /// One of these words, or nothing.
    OneOf(&'static [&'static str]),
    /// A number in this range, or nothing.
    Within(i64, i64),
    /// An object with these names only.
    Names(&'static [&'static str]),
    /// `host` with a grant of this name space, else one of these words.
    Namespace(&'static str, &'static [&'static str]),
    /// Not judged: taken away where it is not granted.
    TakenAway,
    /// A list of `SOURCE:TARGET[:OPTIONS]`.
    Binds,
    /// An object whose names are paths in the container, or binds for some engines.
    Volumes,
    /// A list of mounts.
    Mounts,
    /// A list of devices.
    Devices,
    /// A list of `NAME=VALUE`.
    Env,
    /// Labels by name.
    Labels,
    /// A folder in the container.
    WorkingDir,
    /// Groups by number or by their name in the image.
    Groups,
    /// Ports of the host by port of the container.
    Ports,
    /// Publication of ports that the engine chooses.
    AllPorts,
    /// Limits by name.
    Ulimits,
    /// Kernel parameters by name.
    Sysctls,
    /// The program that runs containers.
    Runtime,
    /// Security options.
    Security,
    /// A mode of networking.
    Network,
    /// Endpoints by network name.
    Networking,
    /// The readiness of the kernel to end the container when memory is short.
    OomScore,
    /// The log driver.
    Log,
    /// The host's side; has a table of its own.
    Host,
}

/// A member of the engine's body.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) rule: Rule,
    /// The reason for the rule. Where something is refused, the reason is a sentence
    /// about "it".
    pub(super) why: &'static str,
}

const fn is(name: &'static str, rule: Rule, why: &'static str) -> Member {
    Member { name, shape: Shape::Plain, rule, why }
}

const fn free(name: &'static str, why: &'static str) -> Member {
    is(name, Rule::Free, why)
}

const fn empty(name: &'static str, why: &'static str) -> Member {
    is(name, Rule::Empty, why)
}

const fn shaped(name: &'static str, shape: Shape, rule: Rule, why: &'static str) -> Member {
    Member { name, shape, rule, why }
}

const INSIDE: &str = "concerns what runs in the container alone";
const LESS: &str = "only takes away";
const LIMIT: &str =
    "a limit of its own cgroup; without one it has the engine's default, which is none";
const ATTACHED: &str = "concerns who attaches to it";
const NET: &str = "concerns its place in networks that it may join";
const WINDOWS: &str = "means nothing on Linux";
const JUDGED: &str = "judged with the whole";

/// The container's own side.
pub(super) static CONFIG: &[Member] = &[
    free("Hostname", INSIDE),
    free("Domainname", INSIDE),
    free("User", "uid 0 is the default already, and passes every check of a group"),
    free("AttachStdin", ATTACHED),
    free("AttachStdout", ATTACHED),
    free("AttachStderr", ATTACHED),
    free("ExposedPorts", "only says what the image listens on"),
    free("Tty", INSIDE),
    free("OpenStdin", ATTACHED),
    free("StdinOnce", ATTACHED),
    is("Env", Rule::Env, "it takes variables from the engine's own environment (Podman)"),
    empty("EnvMerge", "it takes variables from the engine's own environment (Podman)"),
    free("UnsetEnv", LESS),
    free("UnsetEnvAll", LESS),
    free("Cmd", INSIDE),
    shaped(
        "Healthcheck",
        Shape::Members(HEALTHCHECK),
        Rule::Free,
        "runs in the container; what it starts gets no identity (`after-exec`)",
    ),
    free("ArgsEscaped", WINDOWS),
    free("Image", "replaced by the id of the image that was measured"),
    empty("Name", "it names the container, which the daemon does"),
    is("Volumes", Rule::Volumes, "it mounts what its names say (Podman)"),
    is(
        "WorkingDir",
        Rule::WorkingDir,
        "it may lead out of the container through a descriptor that the runtime left open",
    ),
    free("Entrypoint", INSIDE),
    free("NetworkDisabled", LESS),
    free("MacAddress", NET),
    free("OnBuild", "engines ignore it"),
    is(
        "Labels",
        Rule::Labels,
        "it makes the engine's host renew the container or restart units (Podman)",
    ),
    free("StopSignal", INSIDE),
    is(
        "StopTimeout",
        Rule::Within(0, 3600),
        "it keeps the container from being stopped within an hour",
    ),
    free("Shell", INSIDE),
    free("Cpuset", LIMIT),
    shaped("HostConfig", Shape::Members(HOST), Rule::Host, JUDGED),
    shaped(
        "NetworkingConfig",
        Shape::Members(NETWORKING),
        Rule::Networking,
        "it joins a network that is not the module's own",
    ),
];

/// The host's side. Some engines take these at the top level too.
pub(super) static HOST: &[Member] = &[
    is("Binds", Rule::Binds, "it mounts places of the host"),
    shaped("Mounts", Shape::List(MOUNT), Rule::Mounts, "it mounts places of the host"),
    empty("VolumesFrom", "it mounts the volumes of another container"),
    is("VolumeDriver", Rule::OneOf(&["local"]), "a volume driver reaches what the driver reaches"),
    is("Privileged", Rule::TakenAway, "it elevates the container"),
    is("CapAdd", Rule::TakenAway, "it elevates the container"),
    free("CapDrop", LESS),
    empty("Capabilities", "it elevates the container"),
    is("NetworkMode", Rule::Network, "it would be in the host's network or in another container's"),
    is("PidMode", Rule::Namespace("pid", &["private"]), "it would see and end others' processes"),
    is(
        "IpcMode",
        Rule::Namespace("ipc", &["none", "private", "shareable"]),
        "it would share others' memory",
    ),
    is("UTSMode", Rule::Namespace("uts", &["private"]), "it would rename the host"),
    is("UsernsMode", Rule::Namespace("user", &["private"]), "its root would be the host's root"),
    is("CgroupnsMode", Rule::Namespace("cgroup", &["private"]), "it would see all cgroups"),
    empty("Cgroup", "it leaves the cgroup that modules are measured by"),
    empty("CgroupParent", "it leaves the cgroup that modules are measured by"),
    shaped("Devices", Shape::List(DEVICE), Rule::Devices, "it gives devices of the host"),
    shaped(
        "DeviceRequests",
        Shape::List(DEVICE_REQUEST),
        Rule::Empty,
        "it gives devices of the host",
    ),
    empty("DeviceCgroupRules", "it gives devices of the host"),
    is("SecurityOpt", Rule::Security, "it weakens what separates containers"),
    is("Sysctls", Rule::Sysctls, "it sets kernel parameters"),
    is("Runtime", Rule::Runtime, "another program runs the container"),
    is("GroupAdd", Rule::Groups, "it keeps the groups of the engine itself (Podman)"),
    is("OomScoreAdj", Rule::OomScore, "it keeps the kernel from ending it before others"),
    empty("OomKillDisable", "it keeps the kernel from ending it"),
    is("MaskedPaths", Rule::Absent, "it opens parts of /proc and /sys that engines close"),
    is("ReadonlyPaths", Rule::Absent, "it opens parts of /proc and /sys that engines close"),
    empty("Links", "it shows another container's environment"),
    empty(
        "Annotations",
        "it tells the runtime, or Podman, what nobody else checks (hooks, files to remove)",
    ),
    empty(
        "ContainerIDFile",
        "it names a file of the host, which Podman removes with the container",
    ),
    is("Isolation", Rule::OneOf(&["default"]), "it reaches beyond the container"),
    shaped(
        "LogConfig",
        Shape::Members(LOG),
        Rule::Log,
        "it sends logs elsewhere by the engine's own connection",
    ),
    shaped("PortBindings", Shape::Lists(PORT), Rule::Ports, "it publishes a port of the host"),
    is("PublishAllPorts", Rule::AllPorts, "it publishes ports of the host that the engine chooses"),
    shaped(
        "RestartPolicy",
        Shape::Members(RESTART),
        Rule::Free,
        "a module that the engine starts is measured anew",
    ),
    free("AutoRemove", "taken away: a module that stopped must be there to be started again"),
    free("ConsoleSize", ATTACHED),
    free("Dns", NET),
    free("DnsOptions", NET),
    free("DnsSearch", NET),
    free("ExtraHosts", INSIDE),
    free("ReadonlyRootfs", LESS),
    is(
        "StorageOpt",
        Rule::Names(&["size", "inodes"]),
        "it tells the storage driver more than a size",
    ),
    free("Tmpfs", "memory of its own; counts in its limit"),
    free("ShmSize", "memory of its own; counts in its limit"),
    shaped(
        "Ulimits",
        Shape::List(ULIMIT),
        Rule::Ulimits,
        "it gets precedence over what else runs on the host",
    ),
    free("Init", "a small program of the engine's own as first process"),
    free("CpuShares", LIMIT),
    free("Memory", LIMIT),
    free("NanoCpus", LIMIT),
    free("BlkioWeight", LIMIT),
    shaped("BlkioWeightDevice", Shape::List(WEIGHT), Rule::Free, LIMIT),
    shaped("BlkioDeviceReadBps", Shape::List(THROTTLE), Rule::Free, LIMIT),
    shaped("BlkioDeviceWriteBps", Shape::List(THROTTLE), Rule::Free, LIMIT),
    shaped("BlkioDeviceReadIOps", Shape::List(THROTTLE), Rule::Free, LIMIT),
    shaped("BlkioDeviceWriteIOps", Shape::List(THROTTLE), Rule::Free, LIMIT),
    free("CpuPeriod", LIMIT),
    free("CpuQuota", LIMIT),
    empty("CpuRealtimePeriod", "it gets precedence over what else runs on the host"),
    empty("CpuRealtimeRuntime", "it gets precedence over what else runs on the host"),
    free("CpusetCpus", LIMIT),
    free("CpusetMems", LIMIT),
    free("DiskQuota", LIMIT),
    free("KernelMemory", LIMIT),
    free("KernelMemoryTCP", LIMIT),
    free("MemoryReservation", LIMIT),
    free("MemorySwap", LIMIT),
    free("MemorySwappiness", LIMIT),
    free("PidsLimit", LIMIT),
    free("CpuCount", WINDOWS),
    free("CpuPercent", WINDOWS),
    free("IOMaximumIOps", WINDOWS),
    free("IOMaximumBandwidth", WINDOWS),
];

static HEALTHCHECK: &[Member] = &[
    free("Test", INSIDE),
    free("Interval", INSIDE),
    free("Timeout", INSIDE),
    free("StartPeriod", INSIDE),
    free("StartInterval", INSIDE),
    free("Retries", INSIDE),
];

static NETWORKING: &[Member] =
    &[shaped("EndpointsConfig", Shape::Map(ENDPOINT), Rule::Free, JUDGED)];

static ENDPOINT: &[Member] = &[
    free("IPAMConfig", NET),
    free("Links", "names for other containers of a network that it is in"),
    free("Aliases", "other names for it; who answers to a name shows it by its certificate"),
    is(
        "NetworkID",
        Rule::Network,
        "engines take it before the name, so it could be the host's network",
    ),
    empty("EndpointID", "engines make it up"),
    free("Gateway", NET),
    free("IPAddress", NET),
    free("IPPrefixLen", NET),
    free("IPv6Gateway", NET),
    free("GlobalIPv6Address", NET),
    free("GlobalIPv6PrefixLen", NET),
    free("MacAddress", NET),
    empty(
        "DriverOpts",
        "it tells the network's driver what to do, which sets kernel parameters too",
    ),
    free("GwPriority", NET),
    free("DNSNames", NET),
];

static MOUNT: &[Member] = &[
    free(
        "Type",
        "one of `bind`, `volume`, `tmpfs`; images, clusters and pipes hold what is others'",
    ),
    free("Source", "a place of the host, or a volume: judged with all other places"),
    free("Target", INSIDE),
    free("ReadOnly", LESS),
    is(
        "Consistency",
        Rule::OneOf(&["default", "consistent", "cached", "delegated"]),
        "Podman writes it among other words",
    ),
    shaped("BindOptions", Shape::Members(BIND_OPTIONS), Rule::Free, JUDGED),
    shaped("VolumeOptions", Shape::Members(VOLUME_OPTIONS), Rule::Free, JUDGED),
    shaped(
        "TmpfsOptions",
        Shape::Members(TMPFS_OPTIONS),
        Rule::Free,
        "memory of its own; counts in its limit",
    ),
    shaped(
        "ImageOptions",
        Shape::Members(IMAGE_OPTIONS),
        Rule::Free,
        "without a meaning for the types above",
    ),
    free("ClusterOptions", "without a meaning for the types above"),
];

static BIND_OPTIONS: &[Member] = &[
    is(
        "Propagation",
        Rule::OneOf(&["private", "rprivate", "slave", "rslave", "shared", "rshared"]),
        "Podman writes it among other words; what is shared needs a grant as an option",
    ),
    free("NonRecursive", LESS),
    free("CreateMountpoint", "an empty folder at a place that is granted"),
    free("ReadOnlyNonRecursive", "with it a mount counts as writable: what is mounted below is"),
    free("ReadOnlyForceRecursive", LESS),
];

static VOLUME_OPTIONS: &[Member] = &[
    free("NoCopy", LESS),
    free("Labels", "of a volume, which nobody reads"),
    free("Subpath", LESS),
    shaped(
        "DriverConfig",
        Shape::Members(DRIVER),
        Rule::Free,
        "judged as the volume that it makes",
    ),
];

static TMPFS_OPTIONS: &[Member] =
    &[free("SizeBytes", LIMIT), free("Mode", INSIDE), free("Options", INSIDE)];

static IMAGE_OPTIONS: &[Member] = &[free("Subpath", LESS)];

static DRIVER: &[Member] = &[free("Name", JUDGED), free("Options", JUDGED)];

static DEVICE: &[Member] =
    &[free("PathOnHost", JUDGED), free("PathInContainer", INSIDE), free("CgroupPermissions", LESS)];

static DEVICE_REQUEST: &[Member] = &[
    free("Driver", JUDGED),
    free("Count", JUDGED),
    free("DeviceIDs", JUDGED),
    free("Capabilities", JUDGED),
    free("Options", JUDGED),
];

static LOG: &[Member] = &[free("Type", JUDGED), free("Config", JUDGED)];

static PORT: &[Member] = &[free("HostIp", JUDGED), free("HostPort", JUDGED)];

static RESTART: &[Member] = &[free("Name", INSIDE), free("MaximumRetryCount", INSIDE)];

static ULIMIT: &[Member] = &[free("Name", JUDGED), free("Soft", JUDGED), free("Hard", JUDGED)];

static WEIGHT: &[Member] =
    &[free("Path", "a device of the host, whose number is looked up"), free("Weight", LIMIT)];

static THROTTLE: &[Member] =
    &[free("Path", "a device of the host, whose number is looked up"), free("Rate", LIMIT)];

/// The member of this name, at the top level.
pub(super) fn at_top(name: &str) -> Option<&'static Member> {
    CONFIG.iter().chain(HOST).find(|member| member.name == name)
}

/// The body with every member that engines know in its one spelling.
///
/// # Errors
/// A member stands there twice, in two spellings.
pub(super) fn canonical(body: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    respelled(
        body,
        &|name| CONFIG.iter().chain(HOST).find(|member| folds_to(name, member.name)),
        "",
    )
}

fn respelled(
    members: &Map<String, Value>,
    known: &dyn Fn(&str) -> Option<&'static Member>,
    path: &str,
) -> Result<Map<String, Value>, Refusal> {
    let mut all = Map::new();
    for (name, value) in members {
        let member = known(name);
        let name = member.map_or(name.as_str(), |member| member.name);
        let path = join(path, name);
        let value = match member {
            Some(member) => inside(value, member.shape, &path)?,
            None => value.clone(),
        };
        if all.insert(name.to_owned(), value).is_some() {
            return Err(Refusal { option: path, why: Why::Twice });
        }
    }
    Ok(all)
}

fn inside(value: &Value, shape: Shape, path: &str) -> Result<Value, Refusal> {
    let table = |table: &'static [Member]| {
        move |name: &str| table.iter().find(|member| folds_to(name, member.name))
    };
    Ok(match (shape, value) {
        (Shape::Members(known), Value::Object(members)) => {
            Value::Object(respelled(members, &table(known), path)?)
        }
        (Shape::Map(known), Value::Object(entries)) => {
            let mut all = Map::new();
            for (name, entry) in entries {
                all.insert(name.clone(), inside(entry, Shape::Members(known), &join(path, name))?);
            }
            Value::Object(all)
        }
        (Shape::Lists(known), Value::Object(entries)) => {
            let mut all = Map::new();
            for (name, entry) in entries {
                all.insert(name.clone(), inside(entry, Shape::List(known), &join(path, name))?);
            }
            Value::Object(all)
        }
        (Shape::List(known), Value::Array(items)) => {
            let items = items.iter().enumerate();
            items
                .map(|(index, item)| {
                    inside(item, Shape::Members(known), &format!("{path}[{index}]"))
                })
                .collect::<Result<Vec<_>, _>>()?
                .into()
        }
        _ => value.clone(),
    })
}

pub(super) fn join(path: &str, name: &str) -> String {
    let name = shown(name);
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

/// Returns true if an engine takes `written` for `name`, which is ASCII. Two letters
/// beyond ASCII fold into ASCII letters.
fn folds_to(written: &str, name: &str) -> bool {
    let folded = written.chars().map(|c| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(name.chars().map(|c| c.to_ascii_lowercase()))
}
