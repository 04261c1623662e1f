//! Programs that we did not write.

use std::path::PathBuf;
use std::process::{Command, Output};

fn with_file(pem: &str, run: impl FnOnce(&PathBuf) -> Output) -> Result<String, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let file = folder.path().join("certificates.pem");
    std::fs::write(&file, pem).map_err(|error| error.to_string())?;
    let output = run(&file);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Counts the certificates that openssl reads from a file of PEM.
///
/// # Errors
/// With openssl's words, if it cannot read the file to its end.
///
/// # Panics
/// If openssl cannot be run.
pub fn count_by_openssl(pem: &str) -> Result<usize, String> {
    let out = with_file(pem, |file| {
        Command::new("openssl").args(["storeutl", "-noout", "-certs"]).arg(file).output().unwrap()
    })?;
    let count =
        out.lines().find_map(|line| line.strip_prefix("Total found: ")?.trim().parse().ok());
    count.ok_or(out)
}

/// Counts the certificates that Python's `ssl` loads as roots from a file of PEM.
///
/// # Errors
/// With Python's words, if it refuses the file.
///
/// # Panics
/// If Python cannot be run.
pub fn count_by_python(pem: &str) -> Result<usize, String> {
    const LOAD: &str = "import ssl, sys\ncontext = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)\n\
                        context.load_verify_locations(cafile=sys.argv[1])\nprint(context.cert_store_stats()['x509'])";
    let out = with_file(pem, |file| {
        Command::new("python3").args(["-c", LOAD]).arg(file).output().unwrap()
    })?;
    out.trim().parse().map_err(|_| out)
}

/// Returns true if a text is PEM of certificates as RFC 7468 writes it strictly, and
/// nothing else.
#[must_use]
pub fn is_strict(pem: &str) -> bool {
    let mut is_inside = false;
    let mut short = false;
    for line in pem.split_inclusive('\n') {
        match (line, is_inside) {
            ("-----BEGIN CERTIFICATE-----\n", false) => (is_inside, short) = (true, false),
            ("-----END CERTIFICATE-----\n", true) => is_inside = false,
            (line, true) if !short => {
                let Some(line) = line.strip_suffix('\n') else { return false };
                let of_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
                if line.is_empty() || line.len() > 64 || !line.bytes().all(of_base64) {
                    return false;
                }
                short = line.len() < 64;
            }
            _ => return false,
        }
    }
    !is_inside
}
