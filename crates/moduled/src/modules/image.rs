//! The image that a module is made from, measured before anything is made of it: the pins
//! of the deployment and the signatures that the operator asks for. The rules are
//! [`edgekeep_core::image_policy`]'s.

use std::path::Path;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_base::file::{self, Rules};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::image_policy::{
    Image, ImagePolicy, ImageRefusal, ImageRule, PAYLOAD_LIMIT, payload_fits, pinned,
};
use edgekeep_runtime::engine::{Engine, EngineError};

use crate::modules::spec::ValidSpec;

/// Longest signature that is read, in bytes.
const SIGNATURE_LIMIT: usize = 1024;

/// Measures the image that is present under the name of the settings, and returns its id.
/// A container that is made of this id later is made of this image, whatever the name
/// means by then.
///
/// # Errors
/// The engine's; the image is absent; 403 if it is not what was pinned, or not signed.
pub(crate) async fn measured(
    engine: &Engine,
    spec: &ValidSpec,
    policy: Option<&ImagePolicy>,
) -> Result<Sha256Digest, MeasureError> {
    let reference = &spec.settings.image;
    let image =
        Image::from_inspect(&engine.image_inspect(reference).await?).ok_or(EngineError::NotJson)?;
    let pins = [
        ("imageHash", spec.settings.image_hash.as_deref()),
        ("digest", spec.settings.digest.as_deref()),
    ];
    pinned(&image, &pins)?;
    if let Some(policy) = policy {
        for rule in policy.ask(reference, &image)?.rules {
            let (policy, rule, reference, image) =
                (policy.clone(), rule.clone(), reference.clone(), image.clone());
            let looked = move || signed(&policy, &rule, &reference, &image);
            let found = tokio::task::spawn_blocking(looked).await;
            let found = found.unwrap_or_else(|_| Err("its signatures cannot be read".to_owned()));
            found.map_err(|why| ImageRefusal::NotSigned {
                name: spec.settings.image.clone(),
                why,
            })?;
        }
    }
    Ok(image.id)
}

/// Failure to get a measured image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    /// The engine has none, or does not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It may not be used.
    #[error(transparent)]
    Refused(#[from] ImageRefusal),
}

/// Looks for one signature of one of the rule's keys.
fn signed(
    policy: &ImagePolicy,
    rule: &ImageRule,
    reference: &str,
    image: &Image,
) -> Result<(), String> {
    let folder = Path::new(&policy.signatures);
    let mut why =
        format!("{} has no sha256-{}.payload and .sig", folder.display(), image_file(image));
    for digest in image.digests() {
        let file = |extension: &str| folder.join(format!("sha256-{}.{extension}", digest.hex()));
        let Some(payload) = read(&file("payload"), PAYLOAD_LIMIT)? else { continue };
        let Some(signature) = read(&file("sig"), SIGNATURE_LIMIT)? else { continue };
        let checked = verify(&rule.keys, &payload, &signature);
        // What is not signed is not even read.
        match checked.and_then(|()| payload_fits(&payload, reference, image, rule)) {
            Ok(()) => return Ok(()),
            Err(other) => why = format!("{}: {other}", file("sig").display()),
        }
    }
    Err(why)
}

/// The name under which a signature is looked for first.
fn image_file(image: &Image) -> String {
    image.digests().next().map(|digest| digest.hex()).unwrap_or_default()
}

/// A file's content; `None` if it is not there.
fn read(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, String> {
    // Whoever wrote the file: what is in it is signed.
    match file::read(path, Rules::named(limit as u64)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// Checks that one of the keys made the signature over the payload as it stands. The
/// signature is base64 of an ASN.1 ECDSA signature.
fn verify(keys: &[String], payload: &[u8], signature: &[u8]) -> Result<(), String> {
    let text: Vec<u8> =
        signature.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let signature = STANDARD.decode(text).map_err(|_| "the signature is not base64".to_owned())?;
    let good = keys.iter().filter_map(|pem| public_key(pem)).any(|key| {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(payload, &signature).is_ok()
    });
    if good { Ok(()) } else { Err("none of the keys made the signature".to_owned()) }
}

/// The public key's point out of its PEM; `None` if it is no P-256 key.
fn public_key(pem: &str) -> Option<Vec<u8>> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    // Everything before the point is the same in every P-256 key.
    let point = pem.contents.get(26..)?;
    (pem.label == "PUBLIC KEY" && pem.contents.len() == 91 && pem.contents.starts_with(P256))
        .then(|| point.to_vec())
}

/// DER up to the point: the algorithm (elliptic curve), its curve (P-256) and the bit
/// string's head.
const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::json;

    use super::*;

    fn openssl(folder: &Path, words: &[&str]) {
        let output = Command::new("openssl")
            .args(words)
            .current_dir(folder)
            .output()
            .expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A folder with the keys `a` and `b` and a signature by `a` for the image as
    /// `plant/app`.
    fn signatures(image: &Image) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for name in ["a", "b"] {
            openssl(path, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", name]);
            openssl(path, &["ec", "-in", name, "-pubout", "-out", &format!("{name}.pem")]);
        }
        let base = format!("sha256-{}", image.digests().next().unwrap().hex());
        let payload = json!({ "critical": { "identity": { "docker-reference": "docker.io/plant/app" },
            "image": { "docker-manifest-digest": image.digests().next().unwrap().to_string() },
            "type": "cosign container image signature" }, "optional": {} });
        std::fs::write(path.join(format!("{base}.payload")), payload.to_string()).unwrap();
        openssl(
            path,
            &["dgst", "-sha256", "-sign", "a", "-out", "raw", &format!("{base}.payload")],
        );
        openssl(path, &["base64", "-in", "raw", "-out", &format!("{base}.sig")]);
        folder
    }

    #[test]
    fn an_image_is_accepted_by_a_signature_that_openssl_made_and_by_no_other() {
        let image =
            Image { id: Sha256Digest::new([7; 32]), manifests: Vec::new(), names: Vec::new() };
        let folder = signatures(&image);
        let policy = ImagePolicy {
            signatures: folder.path().display().to_string(),
            ..ImagePolicy::default()
        };
        let key = |name: &str| {
            std::fs::read_to_string(folder.path().join(format!("{name}.pem"))).unwrap()
        };
        let look = |keys: &[&str], reference: &str| {
            let rule =
                ImageRule { images: "*".into(), keys: keys.iter().map(|name| key(name)).collect() };
            signed(&policy, &rule, reference, &image)
        };
        assert_eq!(look(&["a"], "plant/app:1"), Ok(()));
        assert_eq!(look(&["b", "a"], "plant/app:1"), Ok(()));
        assert!(
            look(&["b"], "plant/app:1")
                .unwrap_err()
                .contains("none of the keys made the signature")
        );
        assert!(look(&["a"], "plant/other:1").unwrap_err().contains("the signature is for"));
        let payload = folder.path().join(format!("sha256-{}.payload", image.id.hex()));
        let text = std::fs::read_to_string(&payload).unwrap();
        std::fs::write(&payload, text.replace("plant/app", "plant/apq")).unwrap();
        assert!(
            look(&["a"], "plant/apq").unwrap_err().contains("none of the keys made the signature")
        );
        std::fs::write(&payload, vec![b' '; PAYLOAD_LIMIT + 1]).unwrap();
        assert!(look(&["a"], "plant/app").unwrap_err().contains("is longer than"));
        std::fs::remove_file(&payload).unwrap();
        assert!(look(&["a"], "plant/app").unwrap_err().contains(".payload and .sig"));
    }

    #[test]
    fn only_a_p256_key_is_one() {
        let folder = tempfile::tempdir().unwrap();
        openssl(
            folder.path(),
            &["ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", "k"],
        );
        openssl(folder.path(), &["ec", "-in", "k", "-pubout", "-out", "p"]);
        assert_eq!(public_key(&std::fs::read_to_string(folder.path().join("p")).unwrap()), None);
        assert_eq!(public_key("not PEM"), None);
    }
}
