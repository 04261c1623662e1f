//! What moduled's executable does when it is called as `exec-module`, alone, for the
//! tests.

fn main() {
    std::process::exit(edgekeep_runtime::process::launcher::main());
}
