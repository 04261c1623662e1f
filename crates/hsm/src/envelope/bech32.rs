//! Bech32 (BIP 173) without its length limit, as age writes keys.

use zeroize::Zeroizing;

const LETTERS: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const CHECKSUM_LEN: usize = 6;
const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];

fn checksum_step(sum: u32, value: u8) -> u32 {
    let top = sum >> 25;
    let sum = (sum & 0x01ff_ffff) << 5 ^ u32::from(value);
    GENERATOR
        .iter()
        .enumerate()
        .filter(|(bit, _)| top >> bit & 1 == 1)
        .fold(sum, |sum, (_, term)| sum ^ term)
}

fn checksum(prefix: &str, values: &[u8]) -> u32 {
    let high = prefix.bytes().map(|byte| byte >> 5);
    let low = prefix.bytes().map(|byte| byte & 31);
    high.chain([0]).chain(low).chain(values.iter().copied()).fold(1, checksum_step)
}

/// The bytes in a text that has this prefix, which is in lower case. The text is all in
/// one case or the other.
pub(super) fn decode(prefix: &str, text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mixed = text.bytes().any(|byte| byte.is_ascii_lowercase())
        && text.bytes().any(|byte| byte.is_ascii_uppercase());
    if mixed || !text.is_ascii() {
        return None;
    }
    let text = Zeroizing::new(text.to_ascii_lowercase());
    let letters = text.strip_prefix(prefix)?.strip_prefix('1')?;
    let value = |letter: u8| Some(LETTERS.iter().position(|known| *known == letter)? as u8);
    let values = Zeroizing::new(letters.bytes().map(value).collect::<Option<Vec<u8>>>()?);
    if values.len() < CHECKSUM_LEN || checksum(prefix, &values) != 1 {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(values.len()));
    let (mut held, mut bits) = (0_u32, 0);
    for value in &values[..values.len() - CHECKSUM_LEN] {
        held = held << 5 | u32::from(*value);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    // What is left over is padding: fewer than five bits, all zero.
    (bits < 5 && held & ((1 << bits) - 1) == 0).then_some(bytes)
}

/// The text of these bytes.
#[cfg(test)]
pub(super) fn encode(prefix: &str, bytes: &[u8]) -> String {
    let mut values = Vec::new();
    let (mut held, mut bits) = (0_u32, 0);
    for byte in bytes {
        held = held << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            values.push((held >> bits & 31) as u8);
        }
    }
    if bits > 0 {
        values.push((held << (5 - bits) & 31) as u8);
    }
    let mut padded = values.clone();
    padded.extend([0; CHECKSUM_LEN]);
    let sum = checksum(prefix, &padded) ^ 1;
    values.extend((0..CHECKSUM_LEN).map(|at| (sum >> (5 * (5 - at)) & 31) as u8));
    let letters: String =
        values.iter().map(|value| char::from(LETTERS[usize::from(*value)])).collect();
    format!("{prefix}1{letters}")
}
