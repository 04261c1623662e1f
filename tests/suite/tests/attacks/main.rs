//! The attack suite: what others may try to get a module's identity, and the one reason
//! for which each is refused.
//!
//! The answer to an attacker is a bare 403; the reason is asserted through the audit
//! trail (`GET /status`). Attacks on container modules need an engine
//! (`EDGEKEEP_TEST_ENGINE=unix:///path`), without which their tests say that they are
//! skipped. They pass with Docker and with Podman's compatible socket.
//!
//! | attack | test | reason |
//! |---|---|---|
//! | a stranger of the same user | `host::a_stranger_of_the_same_user_is_refused_on_every_socket` | `not-in-module` |
//! | another user, another user's socket | `host::another_user_is_refused` | `other-user` |
//! | a copy of the module with its environment | `host::a_copy_of_the_module_with_its_environment_is_not_the_module` | `not-in-module` |
//! | another module's identity, socket, certificate name | `host::a_module_gets_no_identity_but_its_own`, `host::no_module_gets_a_certificate_in_a_neighbours_name` | `socket-of-another-module`, `not-in-module`, `name-of-another-module` |
//! | the legacy socket with another id | `host::a_stranger_…`, `host::a_module_gets_no_identity_but_its_own` | `not-in-module`, `not-registered` |
//! | a program that the module starts | `host::another_program_that_a_module_starts_is_refused` | `executable-changed` |
//! | a child that sends on its parent's connection | `host::bytes_of_a_child_…` | `sender-changed` |
//! | a passed descriptor | `exec::a_connection_passed_to_another_process_is_refused` | `sender-changed` |
//! | one half of a request from another process; forged credentials; a connection whose maker ended | `connections` | `sender-changed` |
//! | a thread whose process looks ended | `connections::a_thread_whose_process_looks_ended_is_refused` | `caller-gone` |
//! | a connection to the daemon before this one | `connections::what_connected_to_an_earlier_daemon_…` | closed |
//! | descriptors of others, calls past the filter, other namespaces | `connections::no_host_module_takes_descriptors_…` | refused system call |
//! | exec between requests, in the middle of one | `exec::a_program_that_takes_over_…`, `exec::another_program_that_a_module_becomes_…` | `caller-changed`, `executable-changed` |
//! | exec of the registered program after asking | `exec::a_program_that_asks_and_then_becomes_the_registered_one_…` | `connection-not-held`, `connection-inheritable` |
//! | what a process that is known has become since its last connection | `kept` | as for one that is not known |
//! | the pid of an ended process, used again | `pids::a_process_with_the_number_of_the_one_that_connected_is_refused` | `caller-gone` |
//! | the pid of an ended process that is known | `pids::a_process_with_the_number_of_one_that_is_known_is_refused` | `not-in-module` |
//! | a process of a pid namespace that cannot be seen | `pids::a_process_that_the_daemon_cannot_see_is_refused` | `pid-not-visible` |
//! | a user namespace of its own, in which a process may lie about its executable | `host::a_process_in_a_user_namespace_of_its_own_is_refused` | `other-user-namespace` |
//! | a program in memory, or whose file is gone, that takes the registered content while it runs | `executables::a_program_in_memory_…`, `executables::a_program_whose_file_is_removed_…` | `executable-nameless` |
//! | a program that rewrites its own file | `executables::the_kernel_keeps_a_program_…` | `executable-changed` |
//! | content that changes without a sign, after it was measured | `executables::content_that_changes_without_a_sign_is_not_remembered` | `executable-changed` |
//! | an overlay of layers that the module writes to | `executables::a_program_on_layers_…` | `executable-not-final` |
//! | another file named as the executable (`PR_SET_MM`), a listener of system calls | `executables::no_host_module_names_its_executable_…` | refused system call |
//! | a filter of system calls from before `execve`, in a container | `engine::a_program_that_filters_system_calls_…` | `foreign-filter` |
//! | a container with a capability to name its executable | `engine::a_container_that_may_name_its_executable_…` | `executable-of-its-choice` |
//! | ptrace | `host::a_module_under_a_debugger_is_refused_as_long_as_it_is` | `traced` |
//! | left the tree, put into the group | `host::a_process_that_left_the_modules_tree_is_refused`, `host::a_process_put_into_the_modules_group_from_outside_is_refused` | `not-a-descendant` |
//! | a changed executable, a program in the writable layer | `host::an_executable_that_changed_…`, `engine::with_the_strictest_policy_…` | not started, `executable-changed` |
//! | another container, with forged names, sharing namespaces or volumes | `engine::another_container_with_the_modules_socket_is_refused`, `engine::a_container_that_forges_the_modules_place_is_refused` | `not-in-module` |
//! | another image or container in the module's place | `engine::a_container_put_in_the_modules_place_is_refused`, `engine::a_tag_moved_between_create_and_start_…` | `container-changed` |
//! | another module's socket mounted | `engine::a_module_with_anothers_socket_mounted_gets_neither_identity` | `not-in-module`, `socket-of-another-module` |
//! | a module with uid 0 and the daemon's sockets | `engine::a_module_with_uid_0_is_not_the_agent_and_not_its_neighbour` | `not-in-module` |
//! | a renamed container, a committed one in its place | `engine::a_container_renamed_and_committed_…` | `container-changed`, `not-in-module` |
//! | a health check of the engine | `engine::a_health_check_is_not_the_module` | `not-a-descendant`, `after-exec` |
//! | engine `exec`, plain and detached | `engine::what_the_engine_brings_into_the_container_…`, `engine::a_detached_exec_…` | `not-a-descendant`, `after-exec` |
//! | a flood of connections to the shared socket | `flood::a_user_who_floods_…` | kept out by the kernel |
//! | hostile ids on every route and engine path | `names` | 400, 403 or 404 as documented |
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

mod attest;
mod connections;
mod engine;
mod exec;
mod executables;
mod flood;
mod host;
mod kept;
mod names;
mod pids;
mod scripts;

use std::path::PathBuf;

use edgekeep_testkit::{Builder, Device, Engine, Image, program, wait_for};

/// Returns the programs in the images of these tests. The images run the first program
/// unless they are told otherwise.
fn programs() -> Vec<PathBuf> {
    let mut programs: Vec<PathBuf> = ["calls", "intruder", "thermometer"].map(program).into();
    programs.extend(["/bin/sh", "/bin/cp", "/bin/sleep", "/usr/bin/setsid"].map(PathBuf::from));
    programs
}

/// A device with a container engine and a host program as its agent.
fn with_engine(engine: &Engine) -> Builder {
    Device::builder().engine(engine, engine.uri())
}

fn image(engine: &Engine) -> Image {
    engine.import(&programs(), "first")
}

/// Waits until the device has its Edge CA, which module certificates need.
fn wait_for_edge_ca(device: &Device) {
    wait_for("the Edge CA certificate", || device.status().edge_ca_expiration);
}
