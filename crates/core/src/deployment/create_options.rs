//! Create options: the engine's create body as a string, in one piece or in numbered
//! ones.

use serde_json::{Map, Value};

use super::node::Node;
use super::{DeploymentError, Reason};

/// Characters in one piece, when create options are written.
pub const CHUNK_CHARACTERS: usize = 512;

/// Pieces that create options may have.
pub const CHUNK_LIMIT: usize = 100;

const NAME: &str = "createOptions";

/// Cuts create options into members `createOptions`, `createOptions01`, ... of at most
/// [`CHUNK_CHARACTERS`] characters. `None` if they do not fit into [`CHUNK_LIMIT`]
/// pieces.
#[must_use]
pub fn split_create_options(text: &str) -> Option<Vec<(String, String)>> {
    let characters: Vec<char> = text.chars().collect();
    let mut pieces: Vec<String> =
        characters.chunks(CHUNK_CHARACTERS).map(|piece| piece.iter().collect()).collect();
    if pieces.is_empty() {
        pieces.push(String::new());
    }
    if pieces.len() > CHUNK_LIMIT {
        return None;
    }
    let name = |index| if index == 0 { NAME.to_owned() } else { format!("{NAME}{index:02}") };
    Some(pieces.into_iter().enumerate().map(|(index, piece)| (name(index), piece)).collect())
}

/// The create options of a module's `settings`. Absent, blank and `null` are the empty
/// object.
pub(super) fn parse(settings: &Node<'_>) -> Result<Map<String, Value>, DeploymentError> {
    let whole = settings.present(NAME)?;
    let mut pieces = numbered_pieces(settings)?;
    let Some(whole) = whole else {
        return match pieces.first() {
            Some((_, first)) => Err(first.error(Reason::ChunkGap)),
            None => Ok(Map::new()),
        };
    };
    if pieces.is_empty() {
        return match whole.value {
            Value::Null => Ok(Map::new()),
            Value::Object(members) => Ok(members.clone()),
            _ => from_text(&whole, whole.text()?),
        };
    }
    pieces.sort_by_key(|(number, _)| *number);
    let mut text = whole.text()?.to_owned();
    for ((number, piece), expected) in pieces.iter().zip(1..) {
        if *number == expected - 1 {
            return Err(piece.error(Reason::Twice));
        }
        if *number != expected {
            return Err(piece.error(Reason::ChunkGap));
        }
        text.push_str(piece.text()?);
    }
    if pieces.len() >= CHUNK_LIMIT {
        return Err(whole.error(Reason::Expected("in at most 100 pieces")));
    }
    from_text(&whole, &text)
}

/// Members named like [`NAME`] and a number.
fn numbered_pieces<'a>(settings: &Node<'a>) -> Result<Vec<(usize, Node<'a>)>, DeploymentError> {
    let number = |name: &str| {
        let (prefix, digits) = name.split_at_checked(NAME.len())?;
        let numbered = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
        // A number too large to read is a gap for sure.
        (numbered && prefix.eq_ignore_ascii_case(NAME))
            .then(|| digits.parse().unwrap_or(usize::MAX))
    };
    let members = settings.object()?.iter();
    Ok(members
        .filter_map(|(name, value)| Some((number(name)?, settings.child(name, value))))
        .collect())
}

fn from_text(node: &Node<'_>, text: &str) -> Result<Map<String, Value>, DeploymentError> {
    let text = text.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("null") {
        return Ok(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(node.error(Reason::Expected("a JSON object"))),
        Err(error) => Err(node.error(Reason::CreateOptions(error))),
    }
}
