//! The `exec-module` call of moduled's executable, alone, for the tests.

fn main() {
    std::process::exit(edgekeep_runtime::process::launcher::main());
}
