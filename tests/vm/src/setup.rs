//! Preconditions of all other checks: the machine, and an installed device.

use std::path::Path;

use edgekeep_core::layout::Daemon;
use edgekeep_sim::token::Key;
use edgekeep_testkit::sha256_of;

use crate::device::{Device, ID, PAYLOAD, agent_caller, root, run, says, unit, wait_for};

/// A port of the simulated cloud that nothing else has.
const CLOUD_PORT: &str = "8443";
/// A program that takes all the memory it can get.
const HOG: &str = "/usr/bin/tail";

pub(crate) fn the_machine_is_what_the_checks_are_for(device: &mut Device) {
    assert_eq!(std::fs::read_to_string("/proc/1/comm").unwrap().trim(), "systemd");
    assert!(
        Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        "cgroup v2 is mounted at /sys/fs/cgroup"
    );
    assert!(Path::new("/dev/tpmrm0").exists(), "there is a TPM");
    let kernel = says("uname", &["--kernel-release"]);
    assert!(kernel.starts_with("6.1."), "the kernel is older than SO_PEERPIDFD (6.5): {kernel}");
    device.remark(format!(
        "kernel {kernel}, {}",
        says("systemctl", &["--version"]).lines().next().unwrap_or_default()
    ));
    let driver = wait_for("the engine answers", || {
        let told = run(
            "docker",
            &["info", "--format", "{{.CgroupDriver}} {{.CgroupVersion}} {{.ServerVersion}}"],
        );
        told.status.success().then(|| String::from_utf8_lossy(&told.stdout).trim().to_owned())
    });
    assert!(driver.starts_with("systemd 2 "), "the engine's cgroup driver and version: {driver}");
    device.remark(format!("engine: {driver}"));
}

/// As the operator does it: the package, then the configuration.
pub(crate) fn the_package_is_installed_and_configured(device: &mut Device) {
    says("dpkg", &["--install", &format!("{PAYLOAD}/edgekeep.deb")]);
    for daemon in Daemon::ALL {
        let unit = unit(daemon);
        assert_eq!(says("systemctl", &["is-enabled", &unit]).trim(), "enabled", "{unit}");
        let state = says("systemctl", &["show", "--value", "--property=ActiveState", &unit]);
        assert_eq!(state.trim(), "inactive", "{unit} waits for its configuration");
    }
    // Else it is started when it is first asked, which takes a while in an emulated
    // machine.
    says("systemctl", &["restart", "polkit.service"]);

    let key = Key::new(b"a key of the simulated device...".to_vec()).unwrap();
    let ca = root().config_file().with_file_name("cloud.pem");
    let enrol = format!("{ID}={}", key.expose_base64());
    let sim = format!("{PAYLOAD}/bin/edgekeep-sim");
    let words = [
        "--unit=cloud",
        &sim,
        "--port",
        CLOUD_PORT,
        "--enrol",
        &enrol,
        "--ca-out",
        ca.to_str().unwrap(),
    ];
    says("systemd-run", &words);
    wait_for("the simulated cloud", || ca.exists().then_some(()));

    let agent = agent_caller();
    agent.open_to_all();
    let environment =
        agent.environment().map(|(name, value)| format!("{name} = {value:?}\n")).concat();
    device.agent = Some(agent);
    let calls = format!("{PAYLOAD}/bin/calls");
    std::fs::write(
        root().config_file(),
        format!(
            "hostname = \"press-04.plant7\"\n\
             [provisioning]\nsource = \"dps\"\nglobal_endpoint = \"https://localhost:{CLOUD_PORT}\"\nid_scope = \"0ne00000001\"\n\
             [provisioning.attestation]\nmethod = \"symmetric_key\"\nregistration_id = \"{ID}\"\n\
             symmetric_key = {{ value = \"{key}\" }}\n\
             [cloud]\ntrusted_certs = [\"file://{ca}\"]\n\
             [tpm]\ntcti = \"device:/dev/tpmrm0\"\n\
             [aziot_keys]\nseal = \"tpm\"\n\
             [moby_runtime]\nuri = \"unix:///run/docker.sock\"\nnetwork = \"edgekeep\"\n\
             [agent]\ntype = \"process\"\n[agent.config]\nimage = \"calls\"\n[agent.env]\n{environment}\
             [host_modules.calls]\nexecutable = \"{calls}\"\nsha256 = \"{calls_sha256}\"\n\
             [host_modules.limited]\nexecutable = \"{calls}\"\nsha256 = \"{calls_sha256}\"\n\
             memory_max = \"64M\"\ncpu_quota = \"50%\"\npids_max = 32\n\
             [host_modules.hog]\nexecutable = \"{HOG}\"\nsha256 = \"{hog_sha256}\"\nargs = [\"/dev/zero\"]\n\
             memory_max = \"48M\"\n",
            key = key.expose_base64(),
            ca = ca.display(),
            calls_sha256 = sha256_of(Path::new(&calls)),
            hog_sha256 = sha256_of(Path::new(HOG)),
        ),
    )
    .unwrap();
    says("edgekeep", &["config", "apply"]);
}
