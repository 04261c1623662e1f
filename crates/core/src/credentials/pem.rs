//! PEM: blocks found in what people have, and strict blocks written anew (RFC 7468).

use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::fault::Fault;

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
/// Longest label that is looked for.
const LABEL_LIMIT: usize = 64;

/// Takes base64 with or without padding: what is inside tells whether it is whole.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Writes one strict block: lines of 64 characters, each with a line end.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::with_capacity(text.len() + text.len() / 64 + 2 * label.len() + 32);
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

/// One block as it was found.
pub(super) struct Block<'a> {
    /// The offset at which the search goes on.
    pub(super) next: usize,
    /// The label, or why there is none.
    pub(super) label: Result<&'a str, Fault>,
    /// The content, or why it cannot be read.
    pub(super) content: Result<Zeroizing<Vec<u8>>, Fault>,
}

/// Returns the offset of the next block, at `from` or behind it.
pub(super) fn find_begin(text: &[u8], from: usize) -> Option<usize> {
    find(text, BEGIN, from)
}

/// The block that begins at `start`.
pub(super) fn block(text: &[u8], start: usize) -> Block<'_> {
    let label_at = start + BEGIN.len();
    let Some(label) = label(text, label_at) else {
        return Block {
            next: label_at,
            label: Err(Fault::BeginLine),
            content: Err(Fault::BeginLine),
        };
    };
    let label_end = label_at + label.len();
    let broken = |next, fault: Fault| Block { next, label: Ok(label), content: Err(fault) };
    // The dashes behind the label may be those in front of the next BEGIN.
    let begin = find(text, BEGIN, label_end).unwrap_or(text.len());
    let body_at = label_end + DASHES.len();
    let Some(end) = find(&text[..begin], END, body_at) else {
        return broken(begin, Fault::Unfinished);
    };
    let end_label_at = end + END.len();
    let end_label = self::label(&text[..begin], end_label_at);
    let next = end_label.map_or(end_label_at, |label| end_label_at + label.len() + DASHES.len());
    match end_label {
        None => broken(next, Fault::Unfinished),
        Some(other) if other != label => broken(next, Fault::OtherEnd),
        Some(_) => Block { next, label: Ok(label), content: decode(&text[body_at..end]) },
    }
}

/// The label that begins at `at`, up to the five dashes that end it.
fn label(text: &[u8], at: usize) -> Option<&str> {
    let near = text.get(at..)?;
    let near = &near[..near.len().min(LABEL_LIMIT + DASHES.len())];
    let label = &near[..find(near, DASHES, 0)?];
    let is_label = |byte: &u8| matches!(byte, b' '..=b'~');
    (!label.is_empty() && label.iter().all(is_label))
        .then(|| std::str::from_utf8(label).ok())
        .flatten()
}

/// Decodes the text between a block's two lines.
fn decode(body: &[u8]) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let body = body.trim_ascii();
    let first = body.split(|byte| *byte == b'\n' || *byte == b'\r').next().unwrap_or(body);
    let body = if first.contains(&b':') {
        // RFC 1421 headers, up to an empty line.
        if find(body, b"ENCRYPTED", 0).is_some() {
            return Err(Fault::Encrypted);
        }
        after_empty_line(body).ok_or(Fault::Base64)?
    } else {
        body
    };
    base64(body).ok_or(Fault::Base64)
}

fn after_empty_line(body: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    for line in body.split(|byte| *byte == b'\n') {
        at += line.len() + 1;
        if line.trim_ascii().is_empty() {
            return body.get(at..);
        }
    }
    None
}

/// Decodes base64 with white space anywhere. A line end may also be written out, as `\n`
/// in JSON or a shell's variable.
pub(super) fn base64(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut compact = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'\\' if matches!(after.first(), Some(b'n' | b'r')) => rest = &after[1..],
            byte if byte.is_ascii_whitespace() || byte == 0x0b => {}
            byte => compact.push(byte),
        }
    }
    let mut content = Zeroizing::new(vec![0; compact.len() / 4 * 3 + 3]);
    let length = LENIENT.decode_slice(&*compact, &mut content).ok()?;
    content.truncate(length);
    Some(content)
}

/// Returns the offset of `what`, at `from` or behind it.
pub(super) fn find(text: &[u8], what: &[u8], from: usize) -> Option<usize> {
    let first = *what.first()?;
    let mut at = from;
    while let Some(step) = text.get(at..)?.iter().position(|byte| *byte == first) {
        at += step;
        if text[at..].starts_with(what) {
            return Some(at);
        }
        at += 1;
    }
    None
}
