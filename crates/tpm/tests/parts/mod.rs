//! Foreign parts that a test needs. Where one is missing the test is skipped, by name; in
//! CI it fails.

use std::path::Path;

/// Returns true if any of these programs (or files, if absolute) is missing. Then prints
/// the test's name and the missing programs.
pub(crate) fn missing(wanted: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let is_there = |part: &str| match part.strip_prefix('/') {
        Some(_) => Path::new(part).exists(),
        None => folders.iter().any(|folder| folder.join(part).is_file()),
    };
    let missing: Vec<&str> = wanted.iter().copied().filter(|part| !is_there(part)).collect();
    if missing.is_empty() {
        return false;
    }
    let in_ci =
        std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
    assert!(!in_ci, "{} missing, and in CI nothing is skipped", missing.join(", "));
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("skipping {test}: {} missing", missing.join(", "));
    true
}
