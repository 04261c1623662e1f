//! Everything that is in a file, in the order of the file, whatever the file is for.

use zeroize::Zeroizing;

use super::structure::{self, Structure};
use super::{Certificate, Fault, Limits, Place, PrivateKey, der, pem};

/// The content of a block or DER value.
pub(super) enum Thing {
    Certificate {
        certificate: Certificate,
        /// True if something follows it in its block.
        trailing: bool,
    },
    Key(PrivateKey),
    /// A SubjectPublicKeyInfo.
    PublicKey(Vec<u8>),
    Fault {
        fault: Fault,
        /// True if it is, or should have been, a private key.
        of_key: bool,
    },
}

impl Thing {
    const fn fault(fault: Fault) -> Self {
        let of_key = matches!(
            fault,
            Fault::Encrypted | Fault::OtherKey | Fault::OpenSsh | Fault::TpmKey | Fault::Jwk
        );
        Self::Fault { fault, of_key }
    }
}

/// Finds all that is in a file and hands it to `found` in the order of the file.
pub(super) fn things(
    content: &[u8],
    limits: &Limits,
    mut found: impl FnMut(Place, Thing),
) -> Result<(), Fault> {
    if content.len() > limits.bytes {
        return Err(Fault::Long { limit: limits.bytes });
    }
    let text = plain(content);
    let text = text
        .as_deref()
        .map_or_else(|| content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content), Vec::as_slice);
    if text.trim_ascii().is_empty() {
        return Err(Fault::Empty);
    }
    let mut walk = Walk { text, at: 0, block: 0, counted: (0, 1) };
    walk.der(limits, &mut found)?;
    while let Some(start) = pem::find_begin(text, walk.at) {
        let block = pem::block(text, start);
        let place = walk.begin(start, limits)?;
        let place = Place { line: Some(walk.line(start)), ..place };
        walk.at = block.next;
        found(place, in_block(block.label, block.content));
        walk.der(limits, &mut found)?;
    }
    if walk.block > 0 {
        return Ok(());
    }
    // Nothing is marked: the bare base64 of a value, or nothing that is known.
    let whole = text.trim_ascii();
    let place = Place { line: None, offset: 0, block: 1 };
    if is_jwk(whole) {
        found(place, Thing::fault(Fault::Jwk));
        return Ok(());
    }
    if let Some(decoded) = pem::base64(whole)
        && let Some((structure, rest)) = structure::first_of(&decoded)
    {
        found(Place { line: Some(1), ..place }, of_value(structure, &decoded, rest));
        return Ok(());
    }
    Err(Fault::Nothing)
}

struct Walk<'a> {
    text: &'a [u8],
    at: usize,
    block: usize,
    /// The offset up to which lines have been counted, and the number of the line there.
    counted: (usize, usize),
}

impl Walk<'_> {
    fn begin(&mut self, offset: usize, limits: &Limits) -> Result<Place, Fault> {
        if self.block >= limits.blocks {
            return Err(Fault::ManyBlocks { limit: limits.blocks });
        }
        self.block += 1;
        Ok(Place { line: None, offset, block: self.block })
    }

    fn line(&mut self, offset: usize) -> usize {
        let (from, line) = self.counted;
        let step = &self.text[from..offset];
        let ends = step.iter().enumerate().filter(|(at, byte)| {
            **byte == b'\n' || **byte == b'\r' && step.get(at + 1).is_none_or(|next| *next != b'\n')
        });
        self.counted = (offset, line + ends.count());
        self.counted.1
    }

    /// Takes the DER values that stand here, with nothing but white space before each.
    fn der(&mut self, limits: &Limits, found: &mut impl FnMut(Place, Thing)) -> Result<(), Fault> {
        for taken in 0.. {
            let rest = self.text[self.at..].trim_ascii_start();
            let start = self.text.len() - rest.len();
            let Some((structure, after)) = structure::first_of(rest) else {
                let fault = if structure::begins_like_one(rest) {
                    Some(Fault::CutOff)
                } else {
                    (taken > 0 && !rest.is_empty() && pem::find_begin(rest, 0).is_none())
                        .then_some(Fault::Trailing)
                };
                if let Some(fault) = fault {
                    found(self.begin(start, limits)?, Thing::fault(fault));
                }
                break;
            };
            let place = self.begin(start, limits)?;
            let whole = &rest[..rest.len() - after.len()];
            found(place, of_value(structure, whole, &[]));
            self.at = start + whole.len();
        }
        Ok(())
    }
}

/// Judges the content of a PEM block.
fn in_block(label: Result<&str, Fault>, content: Result<Zeroizing<Vec<u8>>, Fault>) -> Thing {
    let label = match label {
        Ok(label) => label,
        Err(fault) => return Thing::fault(fault),
    };
    if let Some(fault) = by_label(label) {
        return Thing::fault(fault);
    }
    let of_key = label.ends_with("PRIVATE KEY");
    let content = match content {
        Ok(content) => content,
        Err(fault) => return Thing::Fault { fault, of_key },
    };
    match structure::first_of(&content) {
        Some((Structure::Certificate(certificate), rest)) if label == "TRUSTED CERTIFICATE" => {
            if rejects(rest) {
                return Thing::fault(Fault::Rejected);
            }
            Thing::Certificate { certificate, trailing: false }
        }
        Some((structure, rest)) => of_value(structure, &content, rest),
        None => match label {
            "CERTIFICATE" | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE" => {
                Thing::fault(Fault::Damaged)
            }
            _ if of_key => Thing::Fault { fault: Fault::Damaged, of_key },
            label if label.ends_with("PUBLIC KEY") => Thing::fault(Fault::PublicKey),
            label if label.ends_with("PARAMETERS") => Thing::fault(Fault::Parameters),
            _ => Thing::fault(Fault::Label),
        },
    }
}

/// Returns the fault that a label stands for, whatever the block holds.
fn by_label(label: &str) -> Option<Fault> {
    match label {
        "ENCRYPTED PRIVATE KEY" => Some(Fault::Encrypted),
        "OPENSSH PRIVATE KEY" => Some(Fault::OpenSsh),
        "TSS2 PRIVATE KEY" => Some(Fault::TpmKey),
        "PKCS7" | "CMS" | "PKCS #7 SIGNED DATA" => Some(Fault::Pkcs7),
        "PKCS12" => Some(Fault::Pkcs12),
        _ => None,
    }
}

fn of_value(structure: Structure, whole: &[u8], rest: &[u8]) -> Thing {
    let value = &whole[..whole.len() - rest.len()];
    let trailing = !rest.is_empty();
    match structure {
        Structure::Certificate(certificate) => Thing::Certificate { certificate, trailing },
        Structure::Key(_) if trailing => Thing::Fault { fault: Fault::Damaged, of_key: true },
        Structure::PublicKey if trailing => Thing::fault(Fault::Damaged),
        Structure::Key(form) => {
            Thing::Key(PrivateKey { form, der: Zeroizing::new(value.to_vec()) })
        }
        Structure::PublicKey => Thing::PublicKey(value.to_vec()),
        Structure::OtherKey => Thing::fault(Fault::OtherKey),
        Structure::EncryptedKey => Thing::fault(Fault::Encrypted),
        Structure::Request => Thing::fault(Fault::Request),
        Structure::RevocationList => Thing::fault(Fault::RevocationList),
        Structure::Pkcs7 => Thing::fault(Fault::Pkcs7),
        Structure::Pkcs12 => Thing::fault(Fault::Pkcs12),
    }
}

/// Returns true if OpenSSL's data behind a trusted certificate names uses that it is
/// rejected for, or cannot be read.
fn rejects(auxiliary: &[u8]) -> bool {
    if auxiliary.is_empty() {
        return false;
    }
    let mut outer = der::Reader::new(auxiliary);
    let Some(mut inner) = outer.inside(der::tag::SEQUENCE) else { return true };
    while let Some(element) = inner.any() {
        if element.tag == der::tag::explicit(0) {
            return true;
        }
    }
    !inner.is_empty()
}

fn is_jwk(text: &[u8]) -> bool {
    text.starts_with(b"{") && pem::find(text, b"\"kty\"", 0).is_some()
}

/// UTF-16, told by its mark or its zeros, as UTF-8. What is not ASCII cannot be part of
/// what is looked for.
fn plain(content: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (body, big) = match content {
        [0xff, 0xfe, body @ ..] => (body, false),
        [0xfe, 0xff, body @ ..] => (body, true),
        [b'-', 0, b'-', 0, ..] => (content, false),
        [0, b'-', 0, b'-', ..] => (content, true),
        _ => return None,
    };
    let narrow = |pair: &[u8]| {
        let (low, high) = if big { (pair[1], pair[0]) } else { (pair[0], pair[1]) };
        if high == 0 && low.is_ascii() { low } else { b'?' }
    };
    Some(Zeroizing::new(body.chunks_exact(2).map(narrow).collect()))
}
