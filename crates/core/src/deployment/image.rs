//! Image names and registry addresses.

use super::node::Node;
use super::{DeploymentError, Reason};

/// The registry of images that have no registry in their name.
const DEFAULT_REGISTRY: &str = "https://index.docker.io/v1/";

/// Stands for the parent device at the start of an image or a registry address; a port
/// follows.
const UPSTREAM: &str = "$upstream:";

/// The registry that an image comes from, as credentials name it. An image without any
/// folder never gets credentials.
#[must_use]
pub fn registry_of(image: &str) -> Option<&str> {
    let (first, _) = image.split_once('/')?;
    let is_host = first.contains(['.', ':']) || first == "localhost";
    Some(if is_host { first } else { DEFAULT_REGISTRY })
}

/// A container image: trimmed, with `$upstream` replaced and `:latest` added where
/// neither tag nor digest stands.
pub(super) fn normalised(node: &Node<'_>, parent: Option<&str>) -> Result<String, DeploymentError> {
    let text = node.filled()?.trim();
    refuse_placeholder(node, text)?;
    if !text.bytes().all(|c| c.is_ascii_graphic()) {
        return Err(node.error(Reason::Expected("an image name: printable ASCII without blanks")));
    }
    let mut image = with_parent(node, text, parent)?;
    let last = image.rsplit('/').next().unwrap_or_default();
    let (named, digest) = match last.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (last, None),
    };
    let mut parts = named.split(':');
    let good = parts.next().is_some_and(|name| !name.is_empty())
        && parts.next().is_none_or(|tag| !tag.is_empty())
        && parts.next().is_none()
        && digest.is_none_or(|digest| {
            digest.split_once(':').is_some_and(|(kind, hex)| !kind.is_empty() && !hex.is_empty())
        });
    if !good {
        return Err(node.error(Reason::Expected("an image name like registry/folder/name:tag")));
    }
    if digest.is_none() && !named.contains(':') {
        image.push_str(":latest");
    }
    Ok(image)
}

/// The name under which the device's configuration knows a host program.
pub(super) fn registered_program(node: &Node<'_>) -> Result<String, DeploymentError> {
    let text = node.filled()?.trim();
    refuse_placeholder(node, text)?;
    // An image name's characters, so that a device may register a program under the name
    // that a container would have.
    let first = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    let allowed = text.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-/:@".contains(&c));
    if first && allowed && text.len() <= 256 {
        return Ok(text.to_owned());
    }
    Err(node.error(Reason::Expected(
        "the name of a host program of this device: a letter or digit, then letters, digits and _.-/:@",
    )))
}

/// A registry's address.
pub(super) fn registry_address(
    node: &Node<'_>,
    parent: Option<&str>,
) -> Result<String, DeploymentError> {
    let text = node.filled()?.trim();
    refuse_placeholder(node, text)?;
    with_parent(node, text, parent)
}

/// Replaces `$upstream:<port>` at the start by the parent's name; a text that starts with
/// another `$` is refused.
fn with_parent(
    node: &Node<'_>,
    text: &str,
    parent: Option<&str>,
) -> Result<String, DeploymentError> {
    if !text.starts_with('$') {
        return Ok(text.to_owned());
    }
    let port_and_rest = text.strip_prefix(UPSTREAM);
    let Some(rest) =
        port_and_rest.filter(|rest| rest.starts_with(|c: char| ('1'..='9').contains(&c)))
    else {
        return Err(node.error(Reason::Expected("$upstream:<port> if it starts with '$'")));
    };
    let parent = parent.ok_or_else(|| node.error(Reason::NoParent))?;
    Ok(format!("{parent}:{rest}"))
}

/// `<` and `>` can be in no image and no address, but are in every template.
fn refuse_placeholder(node: &Node<'_>, text: &str) -> Result<(), DeploymentError> {
    let Some(start) = text.find(['<', '>']) else { return Ok(()) };
    let end = text[start..].find('>').map_or(text.len(), |end| start + end + 1);
    Err(node.error(Reason::Placeholder(text[start..end].chars().take(64).collect())))
}
