use proptest::prelude::*;
use serde_json::json;

use super::members::HOST;
use super::*;

fn options(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        other => panic!("not an object: {other}"),
    }
}

/// The options in canonical form, judged for the module `m1` with paths that lead where
/// they say.
fn judged(value: Value, grant: &Grant, elevated: bool) -> Result<(), String> {
    judged_with(value, grant, elevated, &[])
}

fn judged_with(
    value: Value,
    grant: &Grant,
    elevated: bool,
    links: &[(&str, &str)],
) -> Result<(), String> {
    judged_among(value, grant, elevated, links, Volumes::new())
}

/// With volumes that exist.
fn judged_among(
    value: Value,
    grant: &Grant,
    elevated: bool,
    links: &[(&str, &str)],
    volumes: Volumes,
) -> Result<(), String> {
    let module: ModuleId = "m1".parse().unwrap();
    let own =
        ["/run/aziot", "/run/iotedge", "/var/lib/edgekeep", "/etc/edgekeep"].map(str::to_owned);
    let open = ["/run/iotedge/workload.sock".to_owned()];
    let options = canonical(&options(value)).map_err(|refusal| refusal.to_string())?;
    let resolve = |path: String| {
        let link = links
            .iter()
            .find(|(from, _)| *from == path)
            .map_or(path.clone(), |(_, to)| (*to).to_owned());
        (path, Some(link))
    };
    let resolved = paths_to_resolve(&options, &volumes, grant).into_iter().map(resolve).collect();
    let judge = Judge {
        module: &module,
        grant,
        elevated,
        ports: PublishedPorts::Any,
        own_state: OwnState::Hide,
        present: &own,
        own: &own,
        open: &open,
    };
    judge.judge(&options, &Found { volumes, resolved }).map_err(|refusal| refusal.to_string())
}

fn refused(value: &Value) -> String {
    judged(value.clone(), &Grant::default(), false).expect_err(&value.to_string())
}

#[test]
fn without_elevated_permissions_each_way_to_the_host_is_refused_by_its_name() {
    let host = |member: &str, value: Value| json!({ "HostConfig": { member: value } });
    let endpoint =
        |value: Value| json!({ "NetworkingConfig": { "EndpointsConfig": { "n": value } } });
    let mount = |mut more: Value| {
        let mut mount = json!({ "Type": "volume", "Source": "v", "Target": "/x" });
        mount.as_object_mut().unwrap().append(more.as_object_mut().unwrap_or(&mut Map::new()));
        host("Mounts", json!([mount]))
    };
    let volume = json!({ "Type": "volume", "Target": "/x", "VolumeOptions": { "DriverConfig": {
        "Name": "local", "Options": { "type": "none", "o": "bind", "device": "/etc" } } } });
    for (value, option) in [
        (host("NetworkMode", json!("host")), "HostConfig.NetworkMode"),
        (host("NetworkMode", json!("container:m2")), "HostConfig.NetworkMode"),
        (host("NetworkMode", json!("ns:/proc/1/ns/net")), "HostConfig.NetworkMode"),
        (host("PidMode", json!("host")), "HostConfig.PidMode"),
        (host("PidMode", json!("container:m2")), "HostConfig.PidMode"),
        (host("IpcMode", json!("host")), "HostConfig.IpcMode"),
        (host("UTSMode", json!("host")), "HostConfig.UTSMode"),
        (host("UsernsMode", json!("host")), "HostConfig.UsernsMode"),
        (host("CgroupnsMode", json!("host")), "HostConfig.CgroupnsMode"),
        (host("Devices", json!([{ "PathOnHost": "/dev/mem" }])), "HostConfig.Devices[0]"),
        (host("DeviceRequests", json!([{ "Count": -1 }])), "HostConfig.DeviceRequests"),
        (host("DeviceCgroupRules", json!(["a *:* rwm"])), "HostConfig.DeviceCgroupRules"),
        (host("Binds", json!(["data:/data", "/var/run/docker.sock:/s"])), "HostConfig.Binds[1]"),
        (host("Binds", json!(["/:/host:ro"])), "HostConfig.Binds[0]"),
        (host("Binds", json!(["//etc:/x"])), "HostConfig.Binds[0]"),
        (host("Binds", json!(["./etc:/x"])), "HostConfig.Binds[0]"),
        (
            host("Mounts", json!([{ "Type": "bind", "Source": "/proc", "Target": "/x" }])),
            "HostConfig.Mounts[0].Source",
        ),
        (
            host("Mounts", json!([volume])),
            "HostConfig.Mounts[0].VolumeOptions.DriverConfig.Options.device",
        ),
        (
            host(
                "Mounts",
                json!([{ "Type": "volume", "VolumeOptions": { "DriverConfig": { "Name": "nfs" } } }]),
            ),
            "HostConfig.Mounts[0].VolumeOptions.DriverConfig",
        ),
        (host("Mounts", json!([{ "Type": "glob" }])), "HostConfig.Mounts[0]"),
        (host("Binds", json!(["v:/x:O,upperdir=/etc,workdir=/root"])), "HostConfig.Binds[0]"),
        (host("Binds", json!(["v:/x:ro,OfTheFuture"])), "HostConfig.Binds[0]"),
        (json!({ "Volumes": { "v:/x:O,upperdir=/etc": {} } }), "Volumes.v:/x:O,upperdir=/etc"),
        (
            mount(json!({ "BindOptions": { "Propagation": "of-the-future" } })),
            "HostConfig.Mounts[0].BindOptions.Propagation",
        ),
        (mount(json!({ "Consistency": "of-the-future" })), "HostConfig.Mounts[0].Consistency"),
        (mount(json!({ "OfTheFuture": { "a": "/etc" } })), "HostConfig.Mounts[0].OfTheFuture"),
        (
            mount(json!({ "BindOptions": { "OfTheFuture": 1 } })),
            "HostConfig.Mounts[0].BindOptions.OfTheFuture",
        ),
        (
            host("LogConfig", json!({ "Type": "k8s-file", "Config": { "path": "/etc/cron.d/x" } })),
            "HostConfig.LogConfig.Config.path",
        ),
        (
            host("LogConfig", json!({ "Type": "json-file", "Config": { "of-the-future": "x" } })),
            "HostConfig.LogConfig.Config.of-the-future",
        ),
        (host("Healthcheck", json!({ "x": 1 })), "HostConfig.Healthcheck"),
        (json!({ "Healthcheck": { "LogDestination": "/etc" } }), "Healthcheck.LogDestination"),
        (
            endpoint(json!({ "DriverOpts": { "com.docker.network.endpoint.sysctls": "x" } })),
            "NetworkingConfig.EndpointsConfig.n.DriverOpts",
        ),
        (endpoint(json!({ "NetworkID": "host" })), "NetworkingConfig.EndpointsConfig.n.NetworkID"),
        (endpoint(json!({ "OfTheFuture": 1 })), "NetworkingConfig.EndpointsConfig.n.OfTheFuture"),
        (
            host("SecurityOpt", json!(["no-new-privileges", "seccomp=unconfined"])),
            "HostConfig.SecurityOpt[1]",
        ),
        (host("SecurityOpt", json!(["apparmor=unconfined"])), "HostConfig.SecurityOpt[0]"),
        (host("SecurityOpt", json!(["no-new-privileges:false"])), "HostConfig.SecurityOpt[0]"),
        (host("SecurityOpt", json!(["systempaths=unconfined"])), "HostConfig.SecurityOpt[0]"),
        (
            host("Sysctls", json!({ "net.ipv4.ip_forward": "1" })),
            "HostConfig.Sysctls.net.ipv4.ip_forward",
        ),
        (host("Runtime", json!("kata")), "HostConfig.Runtime"),
        (host("CgroupParent", json!("/")), "HostConfig.CgroupParent"),
        (host("GroupAdd", json!(["docker", "keep-groups"])), "HostConfig.GroupAdd[1]"),
        (host("GroupAdd", json!(["Keep-Groups"])), "HostConfig.GroupAdd[0]"),
        (
            host("Ulimits", json!([{ "Name": "nofile" }, { "name": "rtprio", "hard": 99 }])),
            "HostConfig.Ulimits[1]",
        ),
        (host("Ulimits", json!([{ "Name": "NICE", "Hard": 40 }])), "HostConfig.Ulimits[0]"),
        (host("CpuRealtimeRuntime", json!(950_000)), "HostConfig.CpuRealtimeRuntime"),
        (host("CpuRealtimePeriod", json!(1_000_000)), "HostConfig.CpuRealtimePeriod"),
        (
            host("StorageOpt", json!({ "size": "1G", "overlay.mount_program": "/x" })),
            "HostConfig.StorageOpt.overlay.mount_program",
        ),
        (host("ContainerIDFile", json!("/etc/shadow")), "HostConfig.ContainerIDFile"),
        (
            host("Annotations", json!({ "io.podman.annotations.cid-file": "/etc/shadow" })),
            "HostConfig.Annotations",
        ),
        (
            host("Annotations", json!({ "run.oci.hooks.stdout": "/dev/kmsg" })),
            "HostConfig.Annotations",
        ),
        (
            host("DeviceRequests", json!([{ "driver": "cdi", "deviceids": ["/dev/mem"] }])),
            "HostConfig.DeviceRequests",
        ),
        (host("Devices", json!([{ "PathOnHost": "nvidia.com/gpu=all" }])), "HostConfig.Devices[0]"),
        (host("NetworkMode", json!("slirp4netns")), "HostConfig.NetworkMode"),
        (host("NetworkMode", json!("Pasta")), "HostConfig.NetworkMode"),
        (
            host("NetworkMode", json!("slirp4netns:allow_host_loopback=true")),
            "HostConfig.NetworkMode",
        ),
        (host("UsernsMode", json!("keep-id")), "HostConfig.UsernsMode"),
        (host("IpcMode", json!("container:m2")), "HostConfig.IpcMode"),
        (host("Cgroup", json!("container:m2")), "HostConfig.Cgroup"),
        (host("OomKillDisable", json!(true)), "HostConfig.OomKillDisable"),
        (host("VolumeDriver", json!("plant/sshfs")), "HostConfig.VolumeDriver"),
        (host("Isolation", json!("hyperv")), "HostConfig.Isolation"),
        (
            host("Mounts", json!([{ "Type": "image", "Source": "other:1", "Target": "/x" }])),
            "HostConfig.Mounts[0]",
        ),
        (
            host("Mounts", json!([{ "Type": "cluster", "Source": "c", "Target": "/x" }])),
            "HostConfig.Mounts[0]",
        ),
        (
            host("Mounts", json!([{ "Type": "npipe", "Source": "p", "Target": "/x" }])),
            "HostConfig.Mounts[0]",
        ),
        (host("Mounts", json!([{ "Type": "devpts", "Target": "/x" }])), "HostConfig.Mounts[0]"),
        (host("SecurityOpt", json!(["unmask=ALL"])), "HostConfig.SecurityOpt[0]"),
        (host("SecurityOpt", json!(["label:disable"])), "HostConfig.SecurityOpt[0]"),
        (host("SecurityOpt", json!(["seccomp=/etc/shadow"])), "HostConfig.SecurityOpt[0]"),
        (
            host(
                "LogConfig",
                json!({ "Type": "json-file", "Config": { "tag": "{{pad .Name 9999999999 0}}" } }),
            ),
            "HostConfig.LogConfig.Config.tag",
        ),
        (
            host(
                "LogConfig",
                json!({ "Type": "json-file", "Config": { "max-buffer-size": "900g" } }),
            ),
            "HostConfig.LogConfig.Config.max-buffer-size",
        ),
        (host("LogConfig", json!({ "Type": "passthrough" })), "HostConfig.LogConfig"),
        (json!({ "Env": ["A=1", "*"] }), "Env[1]"),
        (json!({ "Env": ["HTTPS_PROXY"] }), "Env[0]"),
        (json!({ "EnvMerge": ["*"] }), "EnvMerge"),
        (json!({ "Name": "m2" }), "Name"),
        (json!({ "WorkingDir": "/proc/self/fd/7" }), "WorkingDir"),
        (json!({ "WorkingDir": "x/../../proc/1/cwd" }), "WorkingDir"),
        (json!({ "WorkingDir": "/dev/fd/8/../.." , "Tty": true }), "WorkingDir"),
        (json!({ "StopTimeout": -1 }), "StopTimeout"),
        (json!({ "StopTimeout": 1_000_000_000 }), "StopTimeout"),
        (
            json!({ "Labels": { "a": "b", "io.containers.autoupdate": "registry" } }),
            "Labels.io.containers.autoupdate",
        ),
        (
            json!({ "Labels": { "PODMAN_SYSTEMD_UNIT": "sshd.service" } }),
            "Labels.PODMAN_SYSTEMD_UNIT",
        ),
        (json!({ "Healthcheck": { "NoWait": true } }), "Healthcheck.NoWait"),
        (endpoint(json!({ "EndpointID": "x" })), "NetworkingConfig.EndpointsConfig.n.EndpointID"),
        (host("OomScoreAdj", json!(-1000)), "HostConfig.OomScoreAdj"),
        (host("MaskedPaths", json!([])), "HostConfig.MaskedPaths"),
        (host("ReadonlyPaths", json!([])), "HostConfig.ReadonlyPaths"),
        (host("VolumesFrom", json!(["m2"])), "HostConfig.VolumesFrom"),
        (host("Links", json!(["m2:x"])), "HostConfig.Links"),
        (host("LogConfig", json!({ "Type": "syslog" })), "HostConfig.LogConfig"),
        (host("Annotations", json!({ "a": "b" })), "HostConfig.Annotations"),
        (host("OfTheFuture", json!(true)), "HostConfig.OfTheFuture"),
        (host("Binds", json!("/etc:/x")), "HostConfig.Binds"),
        (json!({ "HostConfig": "x" }), "HostConfig"),
        (json!({ "Privileged": true }), "Privileged"),
        (json!({ "Binds": ["/etc:/x"] }), "Binds[0]"),
        (json!({ "Volumes": { "/etc:/x": {} } }), "Volumes./etc:/x"),
        (json!({ "OfTheFuture": 1 }), "OfTheFuture"),
        (
            json!({ "NetworkingConfig": { "EndpointsConfig": { "host": {} } } }),
            "NetworkingConfig.host",
        ),
    ] {
        let message = refused(&value);
        assert!(
            message.starts_with(&format!("create option {option} is refused: ")),
            "{value}: {message}"
        );
        assert_eq!(judged(value.clone(), &Grant::default(), true).err(), only_relative(&value));
    }
}

/// A value that Podman writes among words with commas between them cannot add a word of
/// its own.
#[test]
fn a_mount_in_which_an_engine_could_read_two_places_is_refused_with_any_permissions() {
    for (more, member) in [
        (json!({ "Source": "/a,src=/etc" }), "Source"),
        (json!({ "Target": "/x,source=/etc" }), "Target"),
        (json!({ "Consistency": "cached,src=/etc" }), "Consistency"),
        (
            json!({ "BindOptions": { "Propagation": "private,src=/etc" } }),
            "BindOptions.Propagation",
        ),
    ] {
        let mut mount =
            json!({ "Type": "bind", "Source": "/run/iotedge/workload.sock", "Target": "/x" });
        for (name, value) in more.as_object().unwrap() {
            mount[name] = value.clone();
        }
        for elevated in [true, false] {
            let message =
                judged(json!({ "HostConfig": { "Mounts": [mount] } }), &Grant::default(), elevated);
            let start = format!(
                "create option HostConfig.Mounts[0].{member} is refused: it must be a text without commas"
            );
            assert!(message.as_ref().expect_err(member).starts_with(&start), "{message:?}");
        }
    }
}

#[test]
fn each_place_of_a_mount_is_judged_whichever_an_engine_takes() {
    let grant = Grant { binds: vec!["/srv".into()], ..Grant::default() };
    let judged = |kind: &str, source: &str, driver: Value| {
        let options = json!({ "DriverConfig": { "Options": driver } });
        let mount =
            json!({ "Type": kind, "Source": source, "Target": "/x", "VolumeOptions": options });
        judged(json!({ "HostConfig": { "Mounts": [mount] } }), &grant, false)
    };
    let bind = json!({ "type": "none", "o": "bind,ro", "device": "/srv/data" });
    assert_eq!(judged("volume", "v", bind.clone()), Ok(()));
    let message =
        judged("bind", "/etc", bind).expect_err("the device is granted, the source is not");
    assert!(message.contains("it mounts /etc of the host"), "{message}");
    for driver in [
        json!({ "type": "overlay", "o": "lowerdir=/etc,upperdir=/srv/u,workdir=/srv/w", "device": "/srv/u" }),
        json!({ "type": "none", "o": "bind,lowerdir=/etc", "device": "/srv" }),
        json!({ "device": "/srv", "of-the-future": "/etc" }),
        json!({ "type": "nfs", "o": "addr=10.0.0.1", "device": ":/x" }),
    ] {
        let message =
            judged("volume", "v", driver).expect_err("other file systems take other places");
        assert!(message.contains("Mounts[0].VolumeOptions.DriverConfig is refused"), "{message}");
    }
}

#[test]
fn a_place_granted_for_reading_gets_no_other_owner_and_no_other_label() {
    let grant = Grant { binds: vec!["/srv:ro".into()], ..Grant::default() };
    let bind = |words: &str| {
        judged(json!({ "HostConfig": { "Binds": [format!("/srv:/x:{words}")] } }), &grant, false)
    };
    assert_eq!(bind("ro"), Ok(()));
    for words in ["ro,U", "ro,Z", "z,ro", "rw", "O"] {
        assert!(bind(words).expect_err(words).contains("it mounts /srv of the host"), "{words}");
    }
    let log = |path: &str| json!({ "HostConfig": { "LogConfig": { "Type": "k8s-file", "Config": { "path": path } } } });
    assert!(judged(log("/srv/log"), &grant, false).is_err());
    for elevated in [true, false] {
        let message = judged(log("/run/aziot/x"), &grant, elevated).expect_err("own");
        assert!(message.contains("this device's own sockets or state"), "{message}");
    }
    let grant = Grant { binds: vec!["/srv".into()], ..Grant::default() };
    assert_eq!(judged(log("/srv/log"), &grant, false), Ok(()));
}

fn volume(driver: &str, options: Value) -> Volume {
    let options = serde_json::from_value(options).unwrap();
    Volume { driver: driver.to_owned(), options }
}

/// Returns volumes that an attacker, or an operator, may have made before.
fn existing() -> Volumes {
    let bind =
        |device: &str| volume("local", json!({ "type": "none", "o": "bind", "device": device }));
    let overlay = "lowerdir=/srv,upperdir=/run/aziot/up,workdir=/run/aziot/work";
    [
        ("plain", volume("local", json!({}))),
        ("etc", bind("/etc")),
        ("data", bind("/srv/data")),
        ("keys", bind("/var/run/aziot")),
        ("disk", volume("local", json!({ "type": "ext4", "device": "/dev/vda1" }))),
        ("share", volume("local", json!({ "type": "nfs", "o": "addr=10.0.0.1", "device": ":/x" }))),
        (
            "layers",
            volume("local", json!({ "type": "overlay", "o": overlay, "device": "overlay" })),
        ),
        ("plugin", volume("plant/sshfs", json!({}))),
    ]
    .map(|(name, volume)| (name.to_owned(), volume))
    .into()
}

/// The ways in which an engine takes a volume by its name.
fn by_name(name: &str) -> [(Value, &'static str); 5] {
    let bind = format!("{name}:/x");
    let mount = json!([{ "Type": "volume", "Source": name, "Target": "/x" }]);
    [
        (json!({ "HostConfig": { "Binds": [bind] } }), "HostConfig.Binds[0]"),
        (json!({ "Binds": [bind] }), "Binds[0]"),
        (json!({ "Volumes": { &bind: {} } }), "Volumes."),
        (json!({ "HostConfig": { "Mounts": mount } }), "HostConfig.Mounts[0].Source"),
        (json!({ "Mounts": mount }), "Mounts[0].Source"),
    ]
}

#[test]
fn a_volume_that_exists_is_judged_as_what_it_was_made_to_be() {
    let judged = |value: &Value, grant: &Grant, elevated| {
        judged_among(value.clone(), grant, elevated, &[], existing())
    };
    let none = Grant::default();
    for (name, why) in [
        ("etc", "it mounts /etc of the host by the volume etc"),
        ("data", "it mounts /srv/data of the host by the volume data"),
        ("disk", "the volume disk was made with options that reach beyond"),
        ("share", "the volume share was made with options"),
        ("plugin", "the volume plugin was made with options"),
    ] {
        for (value, option) in by_name(name) {
            let message = judged(&value, &none, false).expect_err(name);
            assert!(
                message.starts_with(&format!("create option {option}")) && message.contains(why),
                "{message}"
            );
            assert_eq!(judged(&value, &none, true), Ok(()), "elevated");
            let grant = Grant { volumes: vec![name.to_owned()], ..Grant::default() };
            assert_eq!(judged(&value, &grant, false), Ok(()), "granted by its name");
        }
    }
    for (value, _) in by_name("plain").into_iter().chain(by_name("of-the-future")) {
        assert_eq!(judged(&value, &none, false), Ok(()));
    }
    let grant = |bind: &str| Grant { binds: vec![bind.to_owned()], ..Grant::default() };
    for (value, _) in by_name("data") {
        assert_eq!(judged(&value, &grant("/srv"), false), Ok(()), "granted as a place");
        assert!(judged(&value, &grant("/srv:ro"), false).is_err(), "but to be read only");
    }
    let read_only = json!({ "HostConfig": { "Binds": ["data:/x:ro"] } });
    assert_eq!(judged(&read_only, &grant("/srv:ro"), false), Ok(()));
}

#[test]
fn no_volume_leads_to_the_devices_own_places_with_any_permissions() {
    let granted = Grant { volumes: vec!["keys".into(), "layers".into()], ..Grant::default() };
    for (name, elevated) in [("keys", true), ("keys", false), ("layers", true), ("layers", false)] {
        for (value, _) in by_name(name) {
            let message = judged_among(value, &granted, elevated, &[], existing()).expect_err(name);
            assert!(message.contains("this device's own sockets or state"), "{message}");
        }
    }
    let overlay = json!({ "type": "overlay", "device": "overlay", "o": "lowerdir=/a:/var/lib/edgekeep,upperdir=/u" });
    for options in [overlay, json!({ "type": "none", "o": "bind", "device": "/etc/edgekeep" })] {
        let mount = json!({ "Type": "volume", "Target": "/x", "VolumeOptions": { "DriverConfig": { "Options": options } } });
        let message = judged(json!({ "HostConfig": { "Mounts": [mount] } }), &granted, true)
            .expect_err("own");
        assert!(message.contains("Mounts[0].VolumeOptions.DriverConfig.Options"), "{message}");
    }
    // What Podman removes with the container.
    for host in [
        json!({ "ContainerIDFile": "/var/lib/edgekeep/keyd/store.key" }),
        json!({ "Annotations": { "io.podman.annotations.cid-file": "/var/lib/edgekeep/keyd/store.key" } }),
    ] {
        let message = judged(json!({ "HostConfig": host }), &granted, true).expect_err("own");
        assert!(message.contains("this device's own sockets or state"), "{message}");
    }
}

/// The mounts of a container, judged as those of the module `m1`.
fn made(mounts: &[MadeMount], wanted: Value, grant: &Grant, elevated: bool) -> Result<(), String> {
    let module: ModuleId = "m1".parse().unwrap();
    let own =
        ["/run/aziot", "/run/iotedge", "/var/lib/edgekeep", "/etc/edgekeep"].map(str::to_owned);
    let judge = Judge {
        module: &module,
        grant,
        elevated,
        ports: PublishedPorts::Any,
        own_state: OwnState::Hide,
        present: &own,
        own: &own,
        open: &[],
    };
    let volumes: Volumes =
        existing().into_iter().filter(|(name, _)| volumes_made(mounts).contains(name)).collect();
    let resolved = paths_made(mounts, &volumes, grant)
        .into_iter()
        .map(|path| (path.clone(), Some(path)))
        .collect();
    let nothing = "/var/lib/edgekeep/moduled/nothing:/x/edgekeep:ro";
    let added =
        ["/var/lib/edgekeep/moduled/containers/m1:/var/run/iotedge", nothing].map(str::to_owned);
    let judged = judge.judge_made(mounts, &options(wanted), &added, &Found { volumes, resolved });
    judged.map_err(|refusal| refusal.to_string())
}

fn mount(kind: &str, name: Option<&str>, source: &str) -> MadeMount {
    let (kind, source, target) = (kind.to_owned(), source.to_owned(), "/x".to_owned());
    MadeMount { kind, name: name.map(str::to_owned), source, target, writable: true, shared: false }
}

#[test]
fn what_the_engine_really_mounted_is_judged_before_it_is_started() {
    let volume =
        |name: &str| mount("volume", Some(name), &format!("/var/lib/docker/volumes/{name}/_data"));
    let none = Grant::default();
    let one =
        |mount: MadeMount, grant: &Grant, elevated| made(&[mount], json!({}), grant, elevated);
    let own = MadeMount {
        source: "/var/lib/edgekeep/moduled/containers/m1".into(),
        target: "/run/iotedge".into(),
        ..mount("bind", None, "")
    };
    let elsewhere = MadeMount { target: "/x".into(), ..own.clone() };
    assert_eq!(
        made(&[own, volume("plain"), mount("tmpfs", None, "")], json!({}), &none, false),
        Ok(())
    );
    assert!(one(elsewhere, &none, true).is_err(), "not what the daemon added");
    for (mount, why) in [
        (volume("etc"), "it mounts /etc of the host by the volume etc"),
        (volume("disk"), "the volume disk was made with options"),
        (volume("gone"), "a volume that the engine can describe"),
        (mount("volume", None, "/x"), "a volume that the engine can describe"),
        (mount("bind", None, "/etc"), "it mounts /etc of the host"),
        (mount("image", None, ""), "of the kind \"image\""),
        (mount("cluster", Some("plain"), ""), "of the kind \"cluster\""),
    ] {
        let message = one(mount.clone(), &none, false).expect_err(why);
        assert!(
            message.starts_with("create option Mounts (/x in the container that was made)"),
            "{message}"
        );
        assert!(message.contains(why), "{message}");
        assert_eq!(one(mount.clone(), &none, true), Ok(()), "elevated");
        let from = Grant { options: vec!["HostConfig.VolumesFrom".into()], ..Grant::default() };
        assert_eq!(one(mount, &from, false), Ok(()), "granted with all that another container has");
    }
    let from = Grant { options: vec!["HostConfig.VolumesFrom".into()], ..Grant::default() };
    for mount in [volume("keys"), volume("layers"), mount("bind", None, "/run/aziot/keyd.sock")] {
        for grant in [&none, &from] {
            for elevated in [true, false] {
                let message = one(mount.clone(), grant, elevated).expect_err("own");
                assert!(message.contains("this device's own sockets or state"), "{message}");
            }
        }
    }
    // The engine's own name for layers over a folder that was judged.
    let layered = |word: &str| json!({ "HostConfig": { "Binds": [format!("/srv:/x:{word}")] } });
    let merged =
        || mount("bind", None, "/run/containers/overlay-containers/1/userdata/overlay/2/merge");
    assert_eq!(made(&[merged()], layered("O"), &none, false), Ok(()));
    assert!(made(&[merged()], layered("rw"), &none, false).is_err());
}

/// Returns the answer that `m1` gets about its options with these policies.
fn with_policies(
    value: Value,
    grant: &Grant,
    ports: PublishedPorts,
    own_state: OwnState,
) -> Result<Vec<String>, String> {
    let module: ModuleId = "m1".parse().unwrap();
    let own =
        ["/run/aziot", "/run/iotedge", "/var/lib/edgekeep", "/etc/edgekeep"].map(str::to_owned);
    let elevated = ports == PublishedPorts::Any;
    let judge = Judge {
        module: &module,
        grant,
        elevated,
        ports,
        own_state,
        present: &own[..3],
        own: &own,
        open: &[],
    };
    let options = canonical(&options(value)).unwrap();
    let volumes = existing();
    let resolved = paths_to_resolve(&options, &volumes, grant).into_iter();
    let resolved =
        resolved.map(|path| (path.clone(), Some(path.replace("/root-of-all", "/")))).collect();
    let found = Found { volumes, resolved };
    let judged = judge.judge(&options, &found).and_then(|()| judge.hidden(&options, &found));
    judged.map(|hidden| hidden.into_iter().collect()).map_err(|refusal| refusal.to_string())
}

#[test]
fn the_devices_own_places_are_hidden_in_a_mount_of_what_lies_above_them() {
    let hidden = |bind: &str, grant: &[&str], own_state| {
        let grant = Grant {
            binds: grant.iter().map(|grant| (*grant).to_owned()).collect(),
            ..Grant::default()
        };
        with_policies(
            json!({ "HostConfig": { "Binds": [bind] } }),
            &grant,
            PublishedPorts::Any,
            own_state,
        )
    };
    let of = |bind: &str| hidden(bind, &[], OwnState::Hide).unwrap();
    assert_eq!(
        of("/:/host:ro"),
        ["/host/run/aziot", "/host/run/iotedge", "/host/var/lib/edgekeep"]
    );
    assert_eq!(of("//.//:/host/"), of("/:/host:ro"));
    assert_eq!(of("/root-of-all:/host"), of("/:/host:ro"), "by a link");
    assert_eq!(
        of("/var/run:/var/run"),
        ["/var/run/aziot", "/var/run/iotedge"],
        "the container's own names"
    );
    assert_eq!(of("/var/lib:/"), ["/edgekeep"]);
    for bind in [
        "/etc:/e",
        "/srv:/s",
        "/var/run/docker.sock:/d",
        "/dev:/dev",
        "/run/aziot-other:/x",
        "v:/run",
    ] {
        assert_eq!(of(bind), Vec::<String>::new(), "{bind}: nothing of it is there");
    }
    let granted = hidden("/:/host", &["/", "/run/aziot"], OwnState::Hide).unwrap();
    assert_eq!(
        granted,
        ["/host/run/iotedge", "/host/var/lib/edgekeep"],
        "what a grant names is seen"
    );
    assert_eq!(hidden("/:/host", &[], OwnState::Show).unwrap(), Vec::<String>::new());
    let refused = hidden("/run:/host", &[], OwnState::Refuse).unwrap_err();
    assert!(
        refused
            .starts_with("create option HostConfig.Binds[0] is refused: /run/aziot, which holds"),
        "{refused}"
    );
    let mount = json!([{ "Type": "bind", "Source": "/", "Target": "/h" }]);
    let mount = json!({ "HostConfig": { "Mounts": mount } });
    let by_mount =
        with_policies(mount, &Grant::default(), PublishedPorts::Any, OwnState::Hide).unwrap();
    assert_eq!(by_mount.len(), 3);
}

#[test]
fn a_container_in_which_own_places_are_seen_is_not_started() {
    let mount = |source: &str, target: &str| MadeMount {
        target: target.to_owned(),
        ..mount("bind", None, source)
    };
    let refused = made(&[mount("/var/lib", "/v")], json!({}), &Grant::default(), true).unwrap_err();
    assert!(refused.contains("/var/lib/edgekeep, which holds"), "{refused}");
    let covered = [mount("/var/lib", "/v"), mount("/srv", "/v/edgekeep")];
    assert_eq!(made(&covered, json!({}), &Grant::default(), true), Ok(()));
    assert_eq!(
        made(&[mount("/etc", "/x")], json!({}), &Grant::default(), true),
        Ok(()),
        "covered by the daemon"
    );
}

#[test]
fn where_ports_are_granted_no_other_is_published() {
    let grant = |ports: &[&str]| Grant {
        ports: ports.iter().map(|port| (*port).to_owned()).collect(),
        ..Grant::default()
    };
    let bound = |key: &str, binding: Value, ports: &[&str]| {
        let host = json!({ "HostConfig": { "PortBindings": { key: [binding] } } });
        with_policies(host, &grant(ports), PublishedPorts::Granted, OwnState::Hide).map(drop)
    };
    let usual = |port: &str| json!({ "HostPort": port });
    assert_eq!(bound("443/tcp", usual("443"), &["443"]), Ok(()));
    assert_eq!(bound("53/udp", usual("53"), &["50-60/udp"]), Ok(()));
    assert_eq!(
        bound("80", json!({ "hostip": "127.0.0.1", "HOSTPORT": "80" }), &["127.0.0.1:80"]),
        Ok(())
    );
    assert_eq!(
        bound("80", json!({ "HostIp": "0.0.0.0", "HostPort": "80-82" }), &["80-90"]),
        Ok(())
    );
    assert_eq!(bound("80", json!({}), &["0"]), Ok(()));
    for (key, binding, remedy) in [
        ("22/tcp", usual("22"), "ports = [\"22\"]"),
        ("443/udp", usual("443"), "ports = [\"443/udp\"]"),
        ("80", json!({ "hostport": "22" }), "ports = [\"22\"]"),
        ("80", json!({}), "ports = [\"0\"]"),
        ("80", json!({ "HostIp": "::1", "HostPort": "80" }), "ports = [\"[::1]:80\"]"),
        ("80", usual("440-450"), "ports = [\"440-450\"]"),
    ] {
        let refused = bound(key, binding, &["443", "127.0.0.1:22"]).expect_err(remedy);
        assert!(refused.contains(remedy) && refused.contains("PortBindings."), "{refused}");
    }
    for binding in [
        usual("x"),
        usual("+22"),
        json!({ "HostPort": 22 }),
        json!({ "HostIp": "plant", "HostPort": "443" }),
    ] {
        assert!(bound("80", binding, &["443", "22"]).is_err());
    }
    let all = |ports: &[&str]| {
        let host = json!({ "HostConfig": { "PublishAllPorts": true } });
        with_policies(host, &grant(ports), PublishedPorts::Granted, OwnState::Hide).map(drop)
    };
    assert!(all(&["0", "443"]).expect_err("udp too").contains("ports = [\"0\", \"0/udp\"]"));
    assert_eq!(all(&["0", "0/udp"]), Ok(()));
}

#[test]
fn what_deployments_usually_set_besides_is_free() {
    for value in [
        json!({ "HostConfig": { "GroupAdd": ["20", "video"], "StorageOpt": { "size": "1G" }, "Tmpfs": { "/t": "size=1m" } } }),
        json!({ "HostConfig": { "LogConfig": { "Type": "json-file", "Config": {
            "tag": "{{.Name}}/{{ .ID }}", "mode": "non-blocking", "max-buffer-size": "4m", "max-file": "7" } } } }),
        json!({ "HostConfig": { "Ulimits": [{ "Name": "core", "Soft": 0, "Hard": 0 }, { "Name": "memlock", "Hard": -1 }] } }),
        json!({ "HostConfig": { "BlkioDeviceReadBps": [{ "Path": "/dev/sda", "Rate": 1 }], "PidsLimit": -1, "ShmSize": 64 } }),
        json!({ "WorkingDir": "/app", "StopTimeout": 60, "Env": ["A=", "B=*"], "Labels": { "vendor": "x" } }),
        json!({ "HostConfig": { "Mounts": [{ "Type": "tmpfs", "Target": "/t", "TmpfsOptions": { "SizeBytes": 1 } }] } }),
        json!({ "HostConfig": { "Mounts": [{ "Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions":
            { "Subpath": "a", "DriverConfig": { "Name": "local", "Options": { "type": "tmpfs", "device": "tmpfs" } } } }] } }),
        json!({ "Healthcheck": { "Test": ["CMD", "/x"], "Interval": 1_000_000_000 }, "HostConfig": { "PublishAllPorts": true } }),
    ] {
        assert_eq!(judged(value.clone(), &Grant::default(), false), Ok(()), "{value}");
    }
    let grant = Grant { ulimits: vec!["rtprio".into()], ..Grant::default() };
    let limit =
        json!({ "HostConfig": { "Ulimits": [{ "Name": "rtprio", "Soft": 10, "Hard": 10 }] } });
    assert_eq!(judged(limit, &grant, false), Ok(()));
}

#[test]
fn a_grant_for_reading_covers_no_mount_below_which_writing_goes_on() {
    let grant = Grant { binds: vec!["/srv:ro".into()], ..Grant::default() };
    let mount = |options: Value| {
        let mount = json!({ "Type": "bind", "Source": "/srv", "Target": "/x", "ReadOnly": true, "BindOptions": options });
        judged(json!({ "HostConfig": { "Mounts": [mount] } }), &grant, false)
    };
    assert_eq!(mount(json!({ "ReadOnlyForceRecursive": true })), Ok(()));
    assert!(
        mount(json!({ "ReadOnlyNonRecursive": true }))
            .expect_err("writable below")
            .contains("it mounts /srv")
    );
}

/// With elevated permissions all but a relative path is the engine's to judge.
fn only_relative(value: &Value) -> Option<String> {
    value.to_string().contains("./etc").then(|| {
        "create option HostConfig.Binds[0] is refused: it must be an absolute path".to_owned()
    })
}

#[test]
fn what_concerns_the_container_alone_is_free() {
    let usual = json!({
        "ExposedPorts": { "8080/tcp": {} }, "Cmd": ["x"], "Env": ["A=1"], "Volumes": { "/data": {} }, "User": "1000",
        "NetworkingConfig": { "EndpointsConfig": { "azure-iot-edge": { "Aliases": ["x"] } } },
        "HostConfig": {
            "PortBindings": { "443/tcp": [{ "HostPort": "443" }] }, "Binds": ["data:/data", "cache:/c:ro"],
            "Mounts": [{ "Type": "volume", "Source": "v", "Target": "/v" }, { "Type": "tmpfs", "Target": "/t" }],
            "LogConfig": { "Type": "json-file", "Config": { "max-size": "10m" } }, "Memory": 1_000_000, "OomScoreAdj": 100,
            "NetworkMode": "azure-iot-edge", "IpcMode": "private", "SecurityOpt": ["no-new-privileges:true"],
            "Devices": [], "Privileged": false, "PidMode": "", "Sysctls": {}, "MaskedPaths": null, "Init": true,
            "Ulimits": [{ "Name": "nofile", "Soft": 1, "Hard": 1 }], "RestartPolicy": { "Name": "no" },
        },
    });
    assert_eq!(judged(usual, &Grant::default(), false), Ok(()));
}

#[test]
fn what_is_granted_to_the_module_is_accepted_and_nothing_beside_it() {
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    let grant = Grant {
        binds: list(&["/srv/models:ro", "/srv/data"]),
        devices: list(&["/dev/video0", "/dev/snd"]),
        namespaces: list(&["network"]).into_iter().collect(),
        sysctls: list(&["net.core.somaxconn"]),
        runtimes: list(&["nvidia"]),
        options: list(&["HostConfig.SecurityOpt"]),
        ..Grant::default()
    };
    let host = |member: &str, value: Value| {
        judged(json!({ "HostConfig": { member: value } }), &grant, false)
    };
    for (member, value) in [
        (
            "Binds",
            json!([
                "/srv/models/a:/m:ro",
                "/srv/models:/n:ro",
                "/srv/data/y:/d",
                "/srv/data/x:/e:rw"
            ]),
        ),
        (
            "Mounts",
            json!([{ "Type": "bind", "Source": "/srv/models", "Target": "/m", "ReadOnly": true }]),
        ),
        ("Devices", json!([{ "PathOnHost": "/dev/video0" }, { "PathOnHost": "/dev/snd/timer" }])),
        ("NetworkMode", json!("host")),
        ("Sysctls", json!({ "net.core.somaxconn": "1024" })),
        ("Runtime", json!("nvidia")),
        ("SecurityOpt", json!(["label=disable"])),
    ] {
        assert_eq!(host(member, value), Ok(()), "{member}");
    }
    for (member, value, why) in [
        ("Binds", json!(["/srv/models:/m"]), "it mounts /srv/models of the host"),
        ("Binds", json!(["/srv/models:/m:ro,rw"]), "it mounts /srv/models of the host"),
        ("Binds", json!(["/srv/database:/d"]), "it mounts /srv/database of the host"),
        ("Binds", json!(["/srv/data/../../etc:/d"]), "it mounts /srv/data/../../etc of the host"),
        ("Binds", json!(["/srv/data:/d:rshared"]), "appears on the host"),
        ("Devices", json!([{ "PathOnHost": "/dev/video1" }]), "it gives the device /dev/video1"),
        ("Devices", json!([{}]), "it gives the device "),
        ("PidMode", json!("host"), "the pid name space"),
        ("NetworkMode", json!("container:m2"), "the network name space"),
        ("Runtime", json!("kata"), "another program runs the container"),
        ("Sysctls", json!({ "kernel.core_pattern": "|/x" }), "it sets a kernel parameter"),
    ] {
        let message = host(member, value).expect_err(member);
        assert!(message.contains(why), "{message}");
    }
    let message = host("Binds", json!(["/srv/x:/d"])).expect_err("not granted");
    assert_eq!(
        message,
        "create option HostConfig.Binds[0] is refused: it mounts /srv/x of the host, and elevated permissions are off \
         (allow_elevated_docker_permissions = false); take it out, or grant it: [modules.\"m1\".grant] binds = [\"/srv/x\"]"
    );
}

#[test]
fn a_link_in_a_granted_folder_must_not_lead_out_of_it() {
    let grant = Grant { binds: vec!["/srv/data".into()], ..Grant::default() };
    let bind = |source: &str| json!({ "HostConfig": { "Binds": [format!("{source}:/d")] } });
    let out = judged_with(bind("/srv/data/x"), &grant, false, &[("/srv/data/x", "/etc")]);
    assert!(out.expect_err("leads out").contains("it mounts /srv/data/x of the host"));
    // The operator's own link is what was granted.
    let moved = [("/srv/data", "/mnt/disk"), ("/srv/data/x", "/mnt/disk/x")];
    assert_eq!(judged_with(bind("/srv/data/x"), &grant, false, &moved), Ok(()));
}

#[test]
fn a_place_that_the_module_could_replace_by_a_link_is_refused() {
    let grant =
        Grant { binds: vec!["/srv".into()], volumes: vec!["data".into()], ..Grant::default() };
    let host =
        |host: Value| judged_among(json!({ "HostConfig": host }), &grant, false, &[], existing());
    let mount = json!([{ "Type": "bind", "Source": "/srv/data/x", "Target": "/e" }]);
    let log = json!({ "Type": "k8s-file", "Config": { "path": "/srv/data/log" } });
    for (options, option) in [
        (json!({ "Binds": ["/srv/data:/d", "/srv/data/x:/e"] }), "Binds[1]"),
        (json!({ "Binds": ["/srv/data/x/y:/e:ro", "/srv/data:/d"] }), "Binds[0]"),
        (json!({ "Binds": ["/srv/data:/d"], "Mounts": mount }), "Mounts[0].Source"),
        (json!({ "Binds": ["data:/d"], "Mounts": mount }), "Mounts[0].Source"),
        (json!({ "Binds": ["/srv/data:/d"], "LogConfig": log }), "LogConfig.Config.path"),
    ] {
        let message = host(options).expect_err(option);
        let start = format!(
            "create option HostConfig.{option} is refused: the module could put a link in place of /srv/"
        );
        assert!(message.starts_with(&start), "{message}");
    }
    for binds in [
        json!(["/srv/data:/d:ro", "/srv/data/x:/e"]),
        json!(["/srv/data:/d", "/srv/database:/e", "/srv/data:/f"]),
    ] {
        assert_eq!(host(json!({ "Binds": binds })), Ok(()));
    }
}

#[test]
fn own_sockets_and_state_are_out_of_reach_with_any_permissions_but_a_grant_that_names_them() {
    let bind = |source: &str| json!({ "HostConfig": { "Binds": [format!("{source}:/d")] } });
    for source in [
        "/run/aziot/keyd.sock",
        "/var/run/aziot",
        "/run//aziot/./keyd.sock",
        "/home/../run/aziot",
        "/var/lib/edgekeep/moduled/mnt/m2",
        "/run/iotedge",
        "/var/run/iotedge/mgmt.sock",
        "/etc/edgekeep/config.toml",
    ] {
        for grant in
            [Grant::default(), Grant { binds: vec!["/".into(), "/run".into()], ..Grant::default() }]
        {
            for elevated in [true, false] {
                let message = judged(bind(source), &grant, elevated).expect_err(source);
                assert!(message.contains("this device's own sockets or state"), "{message}");
            }
        }
    }
    let message = judged_with(bind("/tmp/x"), &Grant::default(), true, &[("/tmp/x", "/run/aziot")]);
    assert!(message.expect_err("a link").contains("it reaches /run/aziot"));
    let mount = json!({ "HostConfig": { "Mounts": [{ "type": "bind", "SOURCE": "/run/aziot", "target": "/x" }] } });
    assert!(
        judged(mount, &Grant::default(), true)
            .expect_err("a mount")
            .contains("HostConfig.Mounts[0].Source")
    );
    for elevated in [true, false] {
        let grant = Grant { binds: vec!["/run/iotedge/mgmt.sock".into()], ..Grant::default() };
        assert_eq!(judged(bind("/var/run/iotedge/mgmt.sock"), &grant, elevated), Ok(()));
        // Where everybody calls, everybody is measured.
        assert_eq!(
            judged(bind("/var/run/iotedge/workload.sock"), &Grant::default(), elevated),
            Ok(())
        );
    }
    assert_eq!(
        judged(bind("/"), &Grant::default(), true),
        Ok(()),
        "as existing deployments have it"
    );
}

#[test]
fn another_spelling_of_a_member_is_the_member_and_two_are_refused() {
    for name in ["hostconfig", "HOSTCONFIG", "Ho\u{17f}tConfig", "hoStcOnfIg"] {
        let message = refused(&json!({ name: { "PIDMODE": "host" } }));
        assert!(message.starts_with("create option HostConfig.PidMode is refused"), "{message}");
    }
    let message = refused(&json!({ "HostConfig": { "\u{17f}y\u{17f}ctls": { "a": "1" } } }));
    assert!(message.starts_with("create option HostConfig.Sysctls.a is refused"), "{message}");
    for elevated in [true, false] {
        for (value, option) in [
            (json!({ "HostConfig": {}, "hostconfig": {} }), "HostConfig"),
            (json!({ "Labels": {}, "labels": { "a": "b" } }), "Labels"),
            (json!({ "Image": "a", "image": "b" }), "Image"),
            (
                json!({ "HostConfig": { "Mounts": [{ "Source": "a", "source": "/etc" }] } }),
                "HostConfig.Mounts[0].Source",
            ),
        ] {
            let message = judged(value, &Grant::default(), elevated).expect_err(option);
            assert_eq!(
                message,
                format!(
                    "create option {option} is refused: it is given twice, in two spellings; keep one"
                )
            );
        }
    }
    let names = json!({ "Labels": { "Image": "a", "image": "b" }, "Env": ["x"] });
    assert_eq!(
        Value::Object(canonical(&options(names.clone())).unwrap()),
        names,
        "free names stay as they are"
    );
}

#[test]
fn what_existing_services_take_silently_is_taken_but_for_what_is_granted() {
    let taken = |host: Value, grant: &Grant| {
        let mut options = options(json!({ "HostConfig": host }));
        let names = without_elevation(&mut options, grant).unwrap();
        (options["HostConfig"].clone(), names)
    };
    let asked = json!({ "Privileged": true, "CapAdd": ["NET_ADMIN"], "CapDrop": ["MKNOD"] });
    let none = Grant::default();
    let (host, names) = taken(asked.clone(), &none);
    assert_eq!(host, json!({ "Privileged": false, "CapDrop": ["CHOWN", "SETUID", "MKNOD"] }));
    assert_eq!(names, ["HostConfig.Privileged", "HostConfig.CapAdd"]);
    let nothing = json!({ "Privileged": false, "CapAdd": [] });
    assert_eq!(taken(nothing.clone(), &none), (nothing, vec![]));
    let grant = Grant { capabilities: vec!["cap_net_admin".into()], ..Grant::default() };
    let (host, names) = taken(json!({ "CapAdd": ["NET_ADMIN", "SYS_ADMIN"] }), &grant);
    assert_eq!((&host["CapAdd"], &host["Privileged"]), (&json!(["NET_ADMIN"]), &json!(false)));
    assert_eq!(names, ["HostConfig.CapAdd"]);
    let grant =
        Grant { privileged: true, capabilities: vec!["NET_ADMIN".into()], ..Grant::default() };
    assert_eq!(taken(asked.clone(), &grant), (asked, vec![]));
}

fn any_json() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        prop::sample::select(
            HOST.iter().chain(members::CONFIG).map(|member| member.name).collect::<Vec<_>>()
        )
        .prop_map(str::to_owned),
        "[a-zA-Zſ\u{212a}]{1,8}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        prop::sample::select(vec![
            "host",
            "/etc:/x",
            "/run/aziot:/x",
            "a:b",
            "",
            "container:x",
            "/..//",
            ":",
            "::"
        ])
        .prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_is_asked_an_answer_comes_and_none_beyond_a_line(value in any_json(), elevated in any::<bool>()) {
        let value = if value.is_object() { value } else { json!({ "HostConfig": value }) };
        if let Err(message) = judged(value.clone(), &Grant::default(), elevated) {
            prop_assert!(message.starts_with("create option "));
            prop_assert!(!message.contains('\n'));
        }
        if let Ok(mut options) = canonical(&options(value)) {
            let _ = without_elevation(&mut options, &Grant::default());
        }
    }

    #[test]
    fn the_spelling_of_a_name_changes_no_verdict(
        member in prop::sample::select(HOST.iter().map(|member| member.name).collect::<Vec<_>>()),
        value in any_json(), upper in any::<u64>(),
    ) {
        let respelled: String = member.chars().enumerate().map(|(index, c)| match (upper >> (index % 64) & 1, c) {
            (1, 's' | 'S') => 'ſ',
            (1, 'k' | 'K') => '\u{212a}',
            (1, c) => c.to_ascii_uppercase(),
            (_, c) => c.to_ascii_lowercase(),
        }).collect();
        let plain = judged(json!({ "HostConfig": { member: value.clone() } }), &Grant::default(), false);
        let other = judged(json!({ "hostconfig": { respelled: value } }), &Grant::default(), false);
        prop_assert_eq!(plain, other);
    }

    #[test]
    fn no_path_of_the_host_is_mounted_without_a_grant_however_it_is_written(
        path in "(/|\\./|/\\./|//|/a/\\.\\./){1,3}[a-z./]{0,12}", target in "/[a-z]{1,4}", more in "(:[a-z,]{0,6})?",
    ) {
        let bind = format!("{path}:{target}{more}");
        for value in [
            json!({ "HostConfig": { "Binds": [bind] } }), json!({ "Binds": [bind] }), json!({ "Volumes": { &bind: {} } }),
            json!({ "HostConfig": { "Mounts": [{ "Type": "bind", "Source": path, "Target": target }] } }),
        ] {
            prop_assert!(judged(value, &Grant::default(), false).is_err());
        }
    }
}

#[test]
fn an_engine_is_not_told_to_remove_a_module_by_itself() {
    for (asked, was_asked) in [(json!(true), true), (json!(false), false)] {
        let mut options = json!({ "HostConfig": { "AutoRemove": asked, "Init": true } })
            .as_object()
            .unwrap()
            .clone();
        assert_eq!(without_self_removal(&mut options), was_asked);
        assert_eq!(Value::Object(options), json!({ "HostConfig": { "Init": true } }));
    }
    assert!(!without_self_removal(&mut Map::new()));
}
