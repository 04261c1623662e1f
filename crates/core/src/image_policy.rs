//! Images that modules may be made from: those that the deployment pins by their content,
//! and those that carry a signature which the operator asks for. Pure; a signature itself
//! is checked where the cryptography is.
//!
//! Signatures are "simple signing" payloads, as cosign and others make them: JSON that
//! names a repository and a digest, signed as it stands. They lie in a folder of the
//! device, so that no network is needed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Sha256Digest;
use crate::grants::Pattern;

/// The operator's requirements on images (`[image_policy]`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagePolicy {
    /// Folder of `sha256-<hex>.payload` and `sha256-<hex>.sig`; hex of the manifest's
    /// digest or of the image id.
    pub signatures: String,
    /// Rules by repository.
    pub rules: Vec<ImageRule>,
    /// True if images that no rule is about are refused.
    pub refuse_unmatched: bool,
}

/// The requirements on the images of some repositories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRule {
    /// Pattern with `*` and `?` over the whole name, `docker.io/library/` included where
    /// it is left out in deployments.
    pub images: String,
    /// P-256 public keys in PEM of which one must have signed; empty: no signature is
    /// asked for.
    pub keys: Vec<String>,
}

/// An image as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: Sha256Digest,
    /// Digests of manifests under which registries gave it. An image that was imported or
    /// built has none.
    pub manifests: Vec<Sha256Digest>,
    /// Its names, repositories with tag or digest.
    pub names: Vec<String>,
}

impl Image {
    /// Reads an engine's inspection; `None` if it has not the documented form.
    #[must_use]
    pub fn from_inspect(answer: &Value) -> Option<Self> {
        let texts = |member: &str| -> Vec<String> {
            let items = answer[member].as_array().into_iter().flatten();
            items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
        };
        let by_digest = texts("RepoDigests");
        let manifests =
            by_digest.iter().filter_map(|name| name.rsplit_once('@')?.1.parse().ok()).collect();
        let names = texts("RepoTags").into_iter().chain(by_digest).collect();
        Some(Self { id: answer["Id"].as_str()?.parse().ok()?, manifests, names })
    }

    /// The digests that say what it is.
    pub fn digests(&self) -> impl Iterator<Item = Sha256Digest> + '_ {
        self.manifests.iter().copied().chain([self.id])
    }
}

/// The reason why an image may not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageRefusal {
    /// The text that the deployment pins is no digest.
    #[error("{member} of the settings must be 64 hex digits, optionally after \"sha256:\"")]
    NotADigest {
        /// `imageHash` or `digest`.
        member: &'static str,
    },
    /// Another image than the deployment pins.
    #[error("{member} of the settings is {wanted}, but the image is {id}{}", .manifests)]
    Other {
        /// `imageHash` or `digest`.
        member: &'static str,
        /// The pinned digest.
        wanted: Sha256Digest,
        /// The id of the image that is there.
        id: Sha256Digest,
        /// Its manifests, in words.
        manifests: String,
    },
    /// No rule is about it.
    #[error(
        "no rule of [image_policy] is about image {name:?}, and images without a rule are refused; add one"
    )]
    Unmatched {
        /// Its name.
        name: String,
    },
    /// A signature is asked for, and none counts.
    #[error("image {name:?} must be signed by a key of [image_policy], and is not: {why}")]
    NotSigned {
        /// Its name.
        name: String,
        /// Words on what was found instead.
        why: String,
    },
}

/// Checks an image against what the deployment pins, each by image id or by manifest
/// digest; blank pins nothing.
///
/// # Errors
/// The first pin that does not hold.
pub fn pinned(image: &Image, pins: &[(&'static str, Option<&str>)]) -> Result<(), ImageRefusal> {
    for &(member, pin) in pins {
        let Some(pin) = pin.map(str::trim).filter(|pin| !pin.is_empty()) else { continue };
        // As engines write it in names too: `repository@sha256:...`.
        let pin = pin.rsplit_once('@').map_or(pin, |(_, digest)| digest);
        let wanted: Sha256Digest = pin.parse().map_err(|_| ImageRefusal::NotADigest { member })?;
        if !image.digests().any(|digest| digest == wanted) {
            let known: Vec<String> =
                image.manifests.iter().take(4).map(ToString::to_string).collect();
            let manifests = match known.is_empty() {
                true => ", and no registry gave it".to_owned(),
                false => format!(", by a registry {}", known.join(", ")),
            };
            return Err(ImageRefusal::Other { member, wanted, id: image.id, manifests });
        }
    }
    Ok(())
}

/// A name taken apart, with what deployments leave out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Registry and path.
    pub repository: String,
    /// The tag; absent if the name has a digest.
    pub tag: Option<String>,
}

/// Takes an image's name apart; `None` if it is an image's id.
#[must_use]
pub fn name(reference: &str) -> Option<Name> {
    if reference.parse::<Sha256Digest>().is_ok() {
        return None;
    }
    let (path, digest) = match reference.split_once('@') {
        Some((path, digest)) => (path, Some(digest)),
        None => (reference, None),
    };
    let slash = path.rfind('/').map_or(0, |slash| slash + 1);
    let (path, tag) = match path[slash..].rfind(':') {
        Some(colon) => (&path[..slash + colon], Some(path[slash + colon + 1..].to_owned())),
        None => (path, None),
    };
    let repository = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => {
            let host = host.to_ascii_lowercase();
            let host = if host == "index.docker.io" { "docker.io".to_owned() } else { host };
            let rest = if host == "docker.io" && !rest.contains('/') {
                format!("library/{rest}")
            } else {
                rest.into()
            };
            format!("{host}/{rest}")
        }
        Some(_) => format!("docker.io/{path}"),
        None => format!("docker.io/library/{path}"),
    };
    let tag =
        if digest.is_some() { None } else { Some(tag.unwrap_or_else(|| "latest".to_owned())) };
    Some(Name { repository, tag })
}

/// The requirements on an image before it may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<'a> {
    /// Each must have a signature that [`signed`] accepts.
    pub rules: Vec<&'a ImageRule>,
}

impl ImagePolicy {
    /// Returns the requirements on an image that a deployment calls `reference`. The
    /// image may have other names, too. The rules for all its names apply, so that a
    /// second name does not lead around a rule.
    ///
    /// # Errors
    /// It is refused whatever its signatures.
    pub fn ask(&self, reference: &str, image: &Image) -> Result<Asked<'_>, ImageRefusal> {
        let called = name(reference);
        let others = image.names.iter().filter_map(|other| name(other));
        let mut rules: Vec<&ImageRule> = Vec::new();
        for name in called.iter().cloned().chain(others) {
            if let Some(rule) = self.rule(&name.repository)
                && !rules.contains(&rule)
            {
                rules.push(rule);
            }
        }
        let matched = match &called {
            Some(name) => self.rule(&name.repository).is_some(),
            None => !rules.is_empty(),
        };
        if !matched && self.refuse_unmatched {
            return Err(ImageRefusal::Unmatched { name: reference.to_owned() });
        }
        rules.retain(|rule| !rule.keys.is_empty());
        Ok(Asked { rules })
    }

    /// The rule about a repository: of those that fit the one with the longest pattern.
    fn rule(&self, repository: &str) -> Option<&ImageRule> {
        let fitting =
            self.rules.iter().filter(|rule| Pattern::new(&rule.images).matches(repository));
        fitting.max_by_key(|rule| rule.images.len())
    }
}

/// Longest payload that is read, in bytes.
pub const PAYLOAD_LIMIT: usize = 64 * 1024;

/// Checks that a payload, whose signature was good, is about this image under this name.
///
/// # Errors
/// The mismatch, in words.
pub fn payload_fits(
    payload: &[u8],
    reference: &str,
    image: &Image,
    rule: &ImageRule,
) -> Result<(), String> {
    let payload: Value =
        serde_json::from_slice(payload).map_err(|_| "the signed payload is not JSON".to_owned())?;
    let critical = &payload["critical"];
    let kind = critical["type"].as_str().unwrap_or_default();
    if !matches!(kind, "cosign container image signature" | "atomic container signature") {
        return Err("the signed payload is not about a container image".to_owned());
    }
    let digest =
        critical["image"]["docker-manifest-digest"].as_str().and_then(|digest| digest.parse().ok());
    if !digest.is_some_and(|digest: Sha256Digest| image.digests().any(|own| own == digest)) {
        return Err("the signed payload is about another image".to_owned());
    }
    let signed = critical["identity"]["docker-reference"].as_str().unwrap_or_default();
    let Some(signed_name) = name(signed).filter(|_| !signed.is_empty()) else {
        return Err("the signed payload names no repository".to_owned());
    };
    // A signature for one repository is none for another, which may be signed by the same
    // key.
    let of_name = match name(reference) {
        Some(called) => {
            let tagged = signed.rsplit('/').next().is_some_and(|last| last.contains(':'));
            called.repository == signed_name.repository
                && (!tagged || called.tag.is_none() || called.tag == signed_name.tag)
        }
        None => Pattern::new(&rule.images).matches(&signed_name.repository),
    };
    if of_name { Ok(()) } else { Err(format!("the signature is for {:?}", signed_name.repository)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn digest(byte: u8) -> Sha256Digest {
        Sha256Digest::new([byte; 32])
    }

    fn image(names: &[&str]) -> Image {
        Image {
            id: digest(1),
            manifests: vec![digest(2)],
            names: names.iter().map(|name| (*name).into()).collect(),
        }
    }

    fn policy(rules: &[(&str, &[&str])]) -> ImagePolicy {
        let rules = rules.iter().map(|(images, keys)| ImageRule {
            images: (*images).into(),
            keys: keys.iter().map(|key| (*key).into()).collect(),
        });
        ImagePolicy { rules: rules.collect(), ..ImagePolicy::default() }
    }

    #[test]
    fn a_pin_holds_by_image_id_or_manifest_and_blank_pins_nothing() {
        let image = image(&[]);
        for pin in
            [None, Some(""), Some(" "), Some(&*digest(1).to_string()), Some(&*digest(2).hex())]
        {
            assert_eq!(pinned(&image, &[("digest", pin)]), Ok(()), "{pin:?}");
        }
        assert_eq!(pinned(&image, &[("digest", Some(&format!("app@{}", digest(2))))]), Ok(()));
        let other = pinned(
            &image,
            &[("imageHash", Some(&digest(1).to_string())), ("digest", Some(&digest(3).hex()))],
        );
        let message = other.expect_err("another").to_string();
        assert!(
            message
                .starts_with(&format!("digest of the settings is {}, but the image is", digest(3))),
            "{message}"
        );
        let wrong =
            pinned(&image, &[("imageHash", Some("latest"))]).expect_err("no digest").to_string();
        assert!(wrong.starts_with("imageHash of the settings must be 64 hex digits"), "{wrong}");
    }

    #[test]
    fn names_are_whole_however_they_are_written() {
        for (written, repository, tag) in [
            ("app", "docker.io/library/app", Some("latest")),
            ("plant/app:1", "docker.io/plant/app", Some("1")),
            ("docker.io/app", "docker.io/library/app", Some("latest")),
            ("index.docker.io/plant/app", "docker.io/plant/app", Some("latest")),
            ("Host:5000/a/b:2", "host:5000/a/b", Some("2")),
            ("localhost/a", "localhost/a", Some("latest")),
            ("host.example/a@sha256:00", "host.example/a", None),
        ] {
            let name = name(written).expect(written);
            assert_eq!(
                (name.repository.as_str(), name.tag.as_deref()),
                (repository, tag),
                "{written}"
            );
        }
        assert_eq!(name(&digest(1).to_string()), None);
    }

    #[test]
    fn the_longest_pattern_counts_and_another_name_leads_around_no_rule() {
        let policy =
            policy(&[("*", &[]), ("docker.io/plant/*", &["a"]), ("docker.io/plant/app", &["b"])]);
        let asked = |reference: &str, names: &[&str]| {
            let rules = policy.ask(reference, &image(names)).expect("no refusal").rules;
            rules.iter().map(|rule| rule.keys[0].clone()).collect::<Vec<_>>()
        };
        assert_eq!(asked("plant/app:1", &[]), ["b"]);
        assert_eq!(asked("plant/tool", &["plant/tool:latest"]), ["a"]);
        assert_eq!(asked("other", &["other:latest"]), Vec::<String>::new());
        assert_eq!(asked("other", &["other:latest", "plant/app:1"]), ["b"]);
        assert_eq!(asked(&digest(1).to_string(), &["docker.io/plant/tool@sha256:00"]), ["a"]);
    }

    #[test]
    fn an_image_without_a_rule_is_refused_if_the_operator_says_so() {
        let mut policy = policy(&[("docker.io/plant/*", &["a"])]);
        policy.refuse_unmatched = true;
        assert!(policy.ask("plant/app", &image(&[])).is_ok());
        for reference in ["other", &*digest(1).to_string()] {
            let refused = policy.ask(reference, &image(&[])).expect_err(reference).to_string();
            assert!(refused.starts_with("no rule of [image_policy] is about image"), "{refused}");
        }
        // Another name of the image does not make this one known.
        assert!(policy.ask("other", &image(&["plant/app:1"])).is_err());
    }

    fn payload(reference: &str, digest: Sha256Digest, kind: &str) -> Vec<u8> {
        json!({ "critical": { "identity": { "docker-reference": reference }, "type": kind,
            "image": { "docker-manifest-digest": digest.to_string() } }, "optional": null })
        .to_string()
        .into_bytes()
    }

    #[test]
    fn a_payload_counts_for_its_image_and_its_name_alone() {
        const KIND: &str = "cosign container image signature";
        let (image, rules) = (image(&[]), policy(&[("docker.io/plant/*", &["a"])]));
        let fits = |payload: &[u8], reference: &str| {
            payload_fits(payload, reference, &image, &rules.rules[0])
        };
        assert_eq!(fits(&payload("plant/app", digest(2), KIND), "docker.io/plant/app:7"), Ok(()));
        assert_eq!(
            fits(&payload("plant/app", digest(1), KIND), "plant/app"),
            Ok(()),
            "by image id"
        );
        assert_eq!(fits(&payload("plant/app:7", digest(2), KIND), "plant/app:7"), Ok(()));
        assert_eq!(fits(&payload("plant/app", digest(2), KIND), &digest(1).to_string()), Ok(()));
        for (payload, why) in [
            (payload("plant/app", digest(3), KIND), "about another image"),
            (
                payload("plant/tool", digest(2), KIND),
                "the signature is for \"docker.io/plant/tool\"",
            ),
            (payload("plant/app:8", digest(2), KIND), "the signature is for"),
            (payload("", digest(2), KIND), "names no repository"),
            (payload("plant/app", digest(2), "something else"), "not about a container image"),
            (b"{".to_vec(), "is not JSON"),
        ] {
            let message = fits(&payload, "plant/app:7").expect_err(why);
            assert!(message.contains(why), "{message}");
        }
        assert!(fits(&payload("other/app", digest(2), KIND), &digest(1).to_string()).is_err());
    }

    proptest! {
        #[test]
        fn a_whole_name_stays_as_it_is(written in "([a-z]{1,4}(\\.[a-z]{1,3})?(:[0-9]{1,4})?/)?([a-z]{1,4}/){0,2}[a-z]{1,4}(:[a-z0-9]{1,3})?") {
            if let Some(once) = name(&written) {
                let again = name(&once.repository).expect("a name");
                prop_assert_eq!(again.repository, once.repository);
            }
        }

        #[test]
        fn no_payload_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), reference in "\\PC{0,20}") {
            let rule = ImageRule { images: "*".into(), keys: Vec::new() };
            prop_assert!(payload_fits(&bytes, &reference, &image(&[]), &rule).is_err());
        }
    }
}
