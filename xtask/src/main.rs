//! The tasks of this repository: `cargo xtask --help`.
//!
//! Touches: what lies below the target folder, temporary folders, packages of the system
//! when it runs as root and a part is missing, and child processes, all of which it ends.
//! CI calls exactly these tasks.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task talks to the person who started it"
)]

mod bench;
mod ci;
mod command;
mod demo;
mod device;
mod engine;
mod foreign;
mod fuzz;
mod http;
mod image;
mod interrupt;
mod outcomes;
mod package;
mod parts;
mod podman;
mod references;
mod rooms;
mod suite;
mod test;
mod vm;
mod widths;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", version, about = "The tasks of this repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every test, those against real parts included; installs or names what is
    /// missing
    Test(test::Options),
    /// Check format, lints, dependencies, and run every test
    Ci,
    /// Bring up a simulated device, run a deployment on it, and show what happens
    Demo(demo::Options),
    /// Check a whole device in a virtual machine: systemd, cgroup v2, a TPM, an older
    /// kernel
    Vm(vm::Options),
    /// Make the Debian package of a device
    Package(package::Options),
    /// Try inputs on every parser at a trust boundary
    Fuzz(fuzz::Options),
    /// Measure calls, memory and sizes
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let result = interrupt::watch().and_then(|()| match Arguments::parse().task {
        Task::Test(options) => test::run(&options),
        Task::Ci => ci::run(),
        Task::Demo(options) => demo::run(&options),
        Task::Vm(options) => vm::run(&options),
        Task::Package(options) => package::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Bench(options) => bench::run(&options),
    });
    let Err(error) = result else { return ExitCode::SUCCESS };
    if error.is::<interrupt::Interrupted>() {
        eprintln!("interrupted");
        return ExitCode::from(130);
    }
    match error.downcast_ref::<command::Failed>() {
        // It has said why itself.
        Some(failed) if failed.explained => ExitCode::from(failed.code),
        _ => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
