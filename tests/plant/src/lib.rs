//! Certificates and keys of a small plant, made by openssl, in every form that people
//! have them in; and foreign programs that read certificates. For tests.
#![expect(clippy::unwrap_used, reason = "a test's part says what it expects by unwrapping it")]

mod forms;
mod readers;

use std::path::Path;
use std::process::Command;

pub use forms::{CertificateForm, KeyForm, Says};
pub use readers::{count_by_openssl, count_by_python, is_strict};

fn openssl(folder: &Path, line: &str) -> Vec<u8> {
    let output =
        Command::new("openssl").args(line.split(' ')).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Files `root`, `ca` below it, `server` below that, and `other`, a second root: each
/// `.pem` and `.key`, on P-256.
#[derive(Debug)]
pub struct Plant {
    folder: tempfile::TempDir,
}

impl Plant {
    /// Makes all of it.
    ///
    /// # Panics
    /// If openssl fails.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "starts programs")]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        for name in ["root", "other"] {
            openssl(
                at,
                &format!(
                    "req -x509 {new_key} -keyout {name}.key -out {name}.pem -subj /CN={name} -days 30"
                ),
            );
        }
        std::fs::write(at.join("ca.ext"), "basicConstraints=critical,CA:true\n").unwrap();
        std::fs::write(at.join("server.ext"), "basicConstraints=CA:false\n").unwrap();
        for (name, issuer) in [("ca", "root"), ("server", "ca")] {
            openssl(
                at,
                &format!("req -new {new_key} -keyout {name}.key -out {name}.csr -subj /CN={name}"),
            );
            let signer = format!(
                "-CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial -days 20 -extfile {name}.ext"
            );
            openssl(at, &format!("x509 -req -in {name}.csr -out {name}.pem {signer}"));
        }
        Self { folder }
    }

    /// The folder of the files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The output of an openssl command, run beside the files. Words are separated by
    /// single spaces.
    ///
    /// # Panics
    /// If openssl fails.
    pub fn openssl(&self, line: &str) -> Vec<u8> {
        openssl(self.folder.path(), line)
    }

    /// A file's content.
    ///
    /// # Panics
    /// If there is no such file.
    #[must_use]
    pub fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    /// A file's content as text.
    ///
    /// # Panics
    /// If there is no such file, or it is no text.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.file(name)).unwrap()
    }

    /// A certificate in DER.
    ///
    /// # Panics
    /// If there is no certificate of this name.
    #[must_use]
    pub fn der(&self, name: &str) -> Vec<u8> {
        self.openssl(&format!("x509 -in {name}.pem -outform DER"))
    }
}
