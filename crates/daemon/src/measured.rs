//! The measurements of this process by itself: its executable and its settings.

use std::fs::File;
use std::io::{self, Read as _};

use aws_lc_rs::digest::{Context, SHA256};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::hardware::without_secrets;
use serde::Serialize;

use crate::store::sha256;

/// The executable of this process. The link leads to the file that runs, also if another
/// one has its name by now.
const EXECUTABLE: &str = "/proc/self/exe";
/// Bytes that are hashed at once.
const STEP: usize = 64 << 10;

/// The measurements of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// SHA-256 of the executable.
    pub executable: Sha256Digest,
    /// SHA-256 of the settings in force, as JSON without secrets.
    pub settings: Sha256Digest,
}

impl Measured {
    /// Measures this process. To be called before it gives up its rights, which reach no
    /// executable.
    ///
    /// # Errors
    /// If the executable cannot be read, or the settings cannot be written as JSON.
    pub fn take(settings: &impl Serialize) -> io::Result<Self> {
        let settings = without_secrets(|| serde_json::to_vec(settings))?;
        Ok(Self { executable: executable()?, settings: sha256(&settings) })
    }
}

fn executable() -> io::Result<Sha256Digest> {
    let mut file = File::open(EXECUTABLE)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; STEP];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => context.update(&buffer[..count]),
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok(Sha256Digest::new(digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_the_one_that_runs_and_settings_count_by_their_content() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let one = Measured::take(&[1, 2]).unwrap();
        assert_eq!(one.executable, sha256(&bytes));
        assert_eq!(one.settings, sha256(b"[1,2]"));
        assert_ne!(one.settings, Measured::take(&[2, 1]).unwrap().settings);
    }
}
