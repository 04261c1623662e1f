//! Container images of our own programs, made without a registry: the programs and the
//! shared libraries they need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::http::{self, Body};
use crate::{command, parts};

/// Makes the image `name`, which holds `programs` (the first is its entry point) in
/// `/bin`.
pub(crate) fn import(engine: &Path, name: &str, programs: &[PathBuf]) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let root = folder.path();
    for directory in ["bin", "tmp", "run", "var/run"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for program in programs {
        let place = root.join("bin").join(program.file_name().unwrap_or_default());
        fs::copy(program, &place).with_context(|| format!("cannot copy {}", program.display()))?;
        if parts::find("strip").is_some() {
            let mut strip = Command::new("strip");
            strip.arg(&place);
            command::output(strip)?;
        }
        for library in libraries(program)? {
            let place = root.join(library.strip_prefix("/")?);
            fs::create_dir_all(place.parent().unwrap_or(root))?;
            fs::copy(&library, &place)
                .with_context(|| format!("cannot copy {}", library.display()))?;
        }
    }
    let archive = folder.path().with_extension("tar");
    let archived = (|| {
        let mut tar = Command::new("tar");
        tar.arg("--create").arg("--file").arg(&archive).arg("--directory").arg(root).arg(".");
        command::output(tar)?;
        fs::read(&archive).context("cannot read the archive")
    })();
    let _ = fs::remove_file(&archive);
    let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
    let entry =
        programs.first().and_then(|program| program.file_name()?.to_str()).context("no program")?;
    // ENTRYPOINT ["/bin/<entry>"]
    let entry = format!("ENTRYPOINT%20%5B%22%2Fbin%2F{entry}%22%5D");
    let target = format!("/images/create?fromSrc=-&repo={repository}&tag={tag}&changes={entry}");
    http::json(engine, "POST", &target, Body::Tar(&archived?))
        .with_context(|| format!("cannot import {name}"))?;
    Ok(())
}

/// The loader and the libraries that a program is linked to.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    Ok(paths(&command::output(ldd)?))
}

/// The absolute paths in the output of `ldd`.
fn paths(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_and_the_kernels_own_is_not() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            paths(ldd),
            [
                Path::new("/lib/x86_64-linux-gnu/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }
}
