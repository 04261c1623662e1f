//! RSASSA-PSS around the bare private-key operation (RFC 8017, sections 9.1.1 and B.2.1).
//!
//! TLS 1.3 has RSA signatures in this form alone. The keys service's published interface
//! has no such mechanism, but the operation without padding, so the padding is made here.

use aws_lc_rs::digest::{Algorithm, Digest, digest};
use aws_lc_rs::rand;

/// The last byte of every encoded message.
const TRAILER: u8 = 0xbc;

/// Returns the block for the private-key operation of a key of `bits` bits, as long as
/// the modulus. The salt is as long as the digest, as TLS has it (RFC 8446, section
/// 4.2.3). `None` if the modulus is too short for the digest, or there is no randomness.
pub(crate) fn encoded(
    algorithm: &'static Algorithm,
    message: &[u8],
    bits: usize,
) -> Option<Vec<u8>> {
    let mut salt = vec![0; algorithm.output_len()];
    rand::fill(&mut salt).ok()?;
    with_salt(algorithm, digest(algorithm, message), &salt, bits)
}

fn with_salt(
    algorithm: &'static Algorithm,
    message: Digest,
    salt: &[u8],
    bits: usize,
) -> Option<Vec<u8>> {
    let encoded_bits = bits.checked_sub(1)?;
    let length = encoded_bits.div_ceil(8);
    let zeros = length.checked_sub(message.as_ref().len() + salt.len() + 2)?;
    let hash = digest(algorithm, &[&[0; 8], message.as_ref(), salt].concat());
    let mut block = vec![0; zeros];
    block.push(1);
    block.extend_from_slice(salt);
    let mask = mask(algorithm, hash.as_ref(), block.len());
    for (byte, mask) in block.iter_mut().zip(mask) {
        *byte ^= mask;
    }
    *block.first_mut()? &= 0xff >> (8 * length - encoded_bits);
    block.extend_from_slice(hash.as_ref());
    block.push(TRAILER);
    // The modulus of a key of 8n + 1 bits is a byte longer than the encoded message.
    let mut whole = vec![0; bits.div_ceil(8) - length];
    whole.append(&mut block);
    Some(whole)
}

/// MGF1.
fn mask(algorithm: &'static Algorithm, seed: &[u8], length: usize) -> Vec<u8> {
    (0u32..)
        .flat_map(|count| {
            let block = digest(algorithm, &[seed, &count.to_be_bytes()].concat());
            block.as_ref().to_vec()
        })
        .take(length)
        .collect()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, SHA384, SHA512};

    use super::*;

    #[test]
    fn a_block_is_as_long_as_the_modulus_and_below_it() {
        for algorithm in [&SHA256, &SHA384, &SHA512] {
            for bits in [2048, 2049, 3072, 4095, 4096] {
                let block = encoded(algorithm, b"message", bits).unwrap();
                assert_eq!(block.len(), bits.div_ceil(8));
                let ones = block.iter().position(|byte| *byte != 0).unwrap();
                let leading = ones * 8 + block[ones].leading_zeros() as usize;
                assert!(block.len() * 8 - leading < bits, "{bits}");
                assert_eq!(block.last(), Some(&TRAILER));
            }
        }
    }

    #[test]
    fn a_modulus_that_is_too_short_for_digest_and_salt_is_refused() {
        assert_eq!(encoded(&SHA512, b"message", 1024), None);
        assert_eq!(encoded(&SHA256, b"message", 0), None);
        assert!(encoded(&SHA512, b"message", 1040).is_some());
    }

    #[test]
    fn equal_messages_have_different_blocks() {
        assert_ne!(encoded(&SHA256, b"message", 2048), encoded(&SHA256, b"message", 2048));
    }
}
