use std::path::{Path, PathBuf};

use edgekeep_daemon::store::sha256;

/// A program of the workspace, as it was built beside the running test.
///
/// # Panics
/// It was not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has an executable");
    // target/<profile>/deps/<test>
    let folder = test.parent().and_then(Path::parent).expect("a test lies in a target folder");
    let program = folder.join(name);
    assert!(
        program.exists(),
        "{} is missing; build it with: cargo build --workspace --bins",
        program.display()
    );
    program
}

/// The SHA-256 of a file, in hex.
///
/// # Panics
/// It cannot be read.
#[must_use]
pub fn sha256_of(path: &Path) -> String {
    let content = std::fs::read(path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let digest = sha256(&content).to_string();
    digest.strip_prefix("sha256:").map_or(digest.clone(), str::to_owned)
}
