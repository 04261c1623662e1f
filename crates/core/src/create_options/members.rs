//! The members of an engine's create body: how they are spelled, what they hold, and what a module without elevated
//! permissions may set them to.
//!
//! Engines decode their JSON without regard to case, by Unicode's simple folding, and let the last of two spellings win or
//! add. So a member is first given the spelling of this table, wherever it stands.

use serde_json::{Map, Value};

use super::{Refusal, Why, shown};

/// What a member holds, as far as its own members are spelled by the engine.
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
}

/// What a module without elevated permissions may set a member to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Anything: it concerns the container alone.
    Free,
    /// Nothing: absent, null, false, 0 or empty.
    Empty,
    /// Not even an empty value.
    Absent,
    /// One of these words, or nothing.
    OneOf(&'static [&'static str]),
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
    /// How willingly the kernel ends it.
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
}

const fn is(name: &'static str, rule: Rule) -> Member {
    Member { name, shape: Shape::Plain, rule }
}

const fn free(name: &'static str) -> Member {
    is(name, Rule::Free)
}

const fn empty(name: &'static str) -> Member {
    is(name, Rule::Empty)
}

const fn shaped(name: &'static str, shape: Shape, rule: Rule) -> Member {
    Member { name, shape, rule }
}

/// The container's own side.
pub(super) static CONFIG: &[Member] = &[
    free("Hostname"),
    free("Domainname"),
    free("User"),
    free("AttachStdin"),
    free("AttachStdout"),
    free("AttachStderr"),
    free("ExposedPorts"),
    free("Tty"),
    free("OpenStdin"),
    free("StdinOnce"),
    free("Env"),
    free("Cmd"),
    shaped("Healthcheck", Shape::Members(HEALTHCHECK), Rule::Free),
    free("ArgsEscaped"),
    free("Image"),
    is("Volumes", Rule::Volumes),
    free("WorkingDir"),
    free("Entrypoint"),
    free("NetworkDisabled"),
    free("MacAddress"),
    free("OnBuild"),
    free("Labels"),
    free("StopSignal"),
    free("StopTimeout"),
    free("Shell"),
    free("Cpuset"),
    shaped("HostConfig", Shape::Members(HOST), Rule::Host),
    shaped("NetworkingConfig", Shape::Members(NETWORKING), Rule::Networking),
];

/// The host's side. Some engines take these at the top level too.
pub(super) static HOST: &[Member] = &[
    is("Binds", Rule::Binds),
    shaped("Mounts", Shape::List(MOUNT), Rule::Mounts),
    empty("VolumesFrom"),
    is("VolumeDriver", Rule::OneOf(&["local"])),
    is("Privileged", Rule::TakenAway),
    is("CapAdd", Rule::TakenAway),
    free("CapDrop"),
    empty("Capabilities"),
    is("NetworkMode", Rule::Network),
    is("PidMode", Rule::Namespace("pid", &["private"])),
    is("IpcMode", Rule::Namespace("ipc", &["none", "private", "shareable"])),
    is("UTSMode", Rule::Namespace("uts", &["private"])),
    is("UsernsMode", Rule::Namespace("user", &["private"])),
    is("CgroupnsMode", Rule::Namespace("cgroup", &["private"])),
    empty("Cgroup"),
    empty("CgroupParent"),
    shaped("Devices", Shape::List(DEVICE), Rule::Devices),
    empty("DeviceRequests"),
    empty("DeviceCgroupRules"),
    is("SecurityOpt", Rule::Security),
    is("Sysctls", Rule::Sysctls),
    is("Runtime", Rule::Runtime),
    empty("GroupAdd"),
    is("OomScoreAdj", Rule::OomScore),
    empty("OomKillDisable"),
    is("MaskedPaths", Rule::Absent),
    is("ReadonlyPaths", Rule::Absent),
    // On a default bridge a link brings the other container's environment.
    empty("Links"),
    empty("Annotations"),
    empty("ContainerIDFile"),
    is("Isolation", Rule::OneOf(&["default"])),
    shaped("LogConfig", Shape::Members(LOG), Rule::Log),
    free("PortBindings"),
    free("PublishAllPorts"),
    shaped("RestartPolicy", Shape::Members(RESTART), Rule::Free),
    free("AutoRemove"),
    free("ConsoleSize"),
    free("Dns"),
    free("DnsOptions"),
    free("DnsSearch"),
    free("ExtraHosts"),
    free("ReadonlyRootfs"),
    free("StorageOpt"),
    free("Tmpfs"),
    free("ShmSize"),
    shaped("Ulimits", Shape::List(ULIMIT), Rule::Free),
    free("Init"),
    free("CpuShares"),
    free("Memory"),
    free("NanoCpus"),
    free("BlkioWeight"),
    free("BlkioWeightDevice"),
    free("BlkioDeviceReadBps"),
    free("BlkioDeviceWriteBps"),
    free("BlkioDeviceReadIOps"),
    free("BlkioDeviceWriteIOps"),
    free("CpuPeriod"),
    free("CpuQuota"),
    free("CpuRealtimePeriod"),
    free("CpuRealtimeRuntime"),
    free("CpusetCpus"),
    free("CpusetMems"),
    free("DiskQuota"),
    free("KernelMemory"),
    free("KernelMemoryTCP"),
    free("MemoryReservation"),
    free("MemorySwap"),
    free("MemorySwappiness"),
    free("PidsLimit"),
    free("CpuCount"),
    free("CpuPercent"),
    free("IOMaximumIOps"),
    free("IOMaximumBandwidth"),
];

static HEALTHCHECK: &[Member] =
    &[free("Test"), free("Interval"), free("Timeout"), free("StartPeriod"), free("StartInterval"), free("Retries")];

static NETWORKING: &[Member] = &[shaped("EndpointsConfig", Shape::Map(ENDPOINT), Rule::Free)];

static ENDPOINT: &[Member] = &[
    free("IPAMConfig"),
    free("Links"),
    free("Aliases"),
    // Engines take it before the name.
    is("NetworkID", Rule::Network),
    free("MacAddress"),
    // Among them the kernel's parameters of the interface.
    empty("DriverOpts"),
    free("GwPriority"),
    free("DNSNames"),
];

static MOUNT: &[Member] = &[
    free("Type"),
    free("Source"),
    free("Target"),
    free("ReadOnly"),
    is("Consistency", Rule::OneOf(&["default", "consistent", "cached", "delegated"])),
    shaped("BindOptions", Shape::Members(BIND_OPTIONS), Rule::Free),
    shaped("VolumeOptions", Shape::Members(VOLUME_OPTIONS), Rule::Free),
    free("TmpfsOptions"),
    free("ImageOptions"),
    free("ClusterOptions"),
];

static BIND_OPTIONS: &[Member] = &[
    is("Propagation", Rule::OneOf(&["private", "rprivate", "slave", "rslave", "shared", "rshared"])),
    free("NonRecursive"),
    free("CreateMountpoint"),
    free("ReadOnlyNonRecursive"),
    free("ReadOnlyForceRecursive"),
];

static VOLUME_OPTIONS: &[Member] =
    &[free("NoCopy"), free("Labels"), free("Subpath"), shaped("DriverConfig", Shape::Members(DRIVER), Rule::Free)];

static DRIVER: &[Member] = &[free("Name"), free("Options")];

static DEVICE: &[Member] = &[free("PathOnHost"), free("PathInContainer"), free("CgroupPermissions")];

static LOG: &[Member] = &[free("Type"), free("Config")];

static RESTART: &[Member] = &[free("Name"), free("MaximumRetryCount")];

static ULIMIT: &[Member] = &[free("Name"), free("Soft"), free("Hard")];

/// The member of this name, at the top level.
pub(super) fn at_top(name: &str) -> Option<&'static Member> {
    CONFIG.iter().chain(HOST).find(|member| member.name == name)
}

/// The body with every member that engines know in its one spelling.
///
/// # Errors
/// A member stands there twice, in two spellings.
pub(super) fn canonical(body: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    respelled(body, &|name| CONFIG.iter().chain(HOST).find(|member| folds_to(name, member.name)), "")
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
    let table = |table: &'static [Member]| move |name: &str| table.iter().find(|member| folds_to(name, member.name));
    Ok(match (shape, value) {
        (Shape::Members(known), Value::Object(members)) => Value::Object(respelled(members, &table(known), path)?),
        (Shape::Map(known), Value::Object(entries)) => {
            let mut all = Map::new();
            for (name, entry) in entries {
                all.insert(name.clone(), inside(entry, Shape::Members(known), &join(path, name))?);
            }
            Value::Object(all)
        }
        (Shape::List(known), Value::Array(items)) => {
            let items = items.iter().enumerate();
            items
                .map(|(index, item)| inside(item, Shape::Members(known), &format!("{path}[{index}]")))
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

/// Whether an engine takes `written` for `name`, which is ASCII: two letters beyond ASCII fold into it.
fn folds_to(written: &str, name: &str) -> bool {
    let folded = written.chars().map(|c| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(name.chars().map(|c| c.to_ascii_lowercase()))
}
