//! Points of the curve P-256 as keys services answer them (SEC 1, section 2.3): the
//! published form is compressed, while requests for certificates carry the uncompressed
//! one.
//!
//! The arithmetic is over public values once for each load of a key, hence neither fast
//! nor of constant time.

/// Length of an uncompressed point, in bytes.
pub const UNCOMPRESSED_LEN: usize = 65;
/// Length of a compressed point, in bytes.
pub const COMPRESSED_LEN: usize = 33;

/// DER of the curve's object identifier (1.2.840.10045.3.1.7), as keys services answer
/// it.
pub const P256_OID_DER: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];

/// Reason why bytes are no point of the curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no point of the curve P-256")]
pub struct NotOnCurve;

/// Returns the uncompressed form of a point in either form.
///
/// # Errors
/// If the bytes are of neither form, or name no point of the curve.
pub fn uncompressed(point: &[u8]) -> Result<[u8; UNCOMPRESSED_LEN], NotOnCurve> {
    let (x, y) = match point {
        [sign @ (2 | 3), x @ ..] if point.len() == COMPRESSED_LEN => {
            let x = Element::read(x)?;
            let y = x.curve().square_root().ok_or(NotOnCurve)?;
            // The curve has no point with y = 0, so one of the two roots is odd.
            (x, if y.is_odd() == (*sign == 3) { y } else { y.negated() })
        }
        [4, coordinates @ ..] if point.len() == UNCOMPRESSED_LEN => {
            let (x, y) = coordinates.split_at(32);
            let (x, y) = (Element::read(x)?, Element::read(y)?);
            if y.times(y) != x.curve() {
                return Err(NotOnCurve);
            }
            (x, y)
        }
        _ => return Err(NotOnCurve),
    };
    let mut out = [4; UNCOMPRESSED_LEN];
    out[1..33].copy_from_slice(&x.bytes());
    out[33..].copy_from_slice(&y.bytes());
    Ok(out)
}

/// A number below the field's prime; limbs from the least to the most significant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Element([u64; 4]);

/// The prime, 2^256 - 2^224 + 2^192 + 2^96 - 1.
const PRIME: [u64; 4] = [u64::MAX, 0xffff_ffff, 0, 0xffff_ffff_0000_0001];
/// A quarter of the prime's successor: raising to it takes square roots, as the prime is
/// 3 modulo 4.
const ROOT_EXPONENT: [u64; 4] = [0, 0x4000_0000, 0x4000_0000_0000_0000, 0x3fff_ffff_c000_0000];
/// The curve's coefficient b; its a is -3 (FIPS 186-4, section D.1.2.3).
const B: Element = Element([
    0x3bce_3c3e_27d2_604b,
    0x651d_06b0_cc53_b0f6,
    0xb3eb_bd55_7698_86bc,
    0x5ac6_35d8_aa3a_93e7,
]);
/// 2^512 modulo the prime.
const R_SQUARED: [u64; 4] = [3, 0xffff_fffb_ffff_ffff, 0xffff_ffff_ffff_fffe, 0x4_ffff_fffd];
const ONE: Element = Element([1, 0, 0, 0]);
const ZERO: Element = Element([0; 4]);

impl Element {
    /// Reads 32 bytes, big-endian. A number that is not below the prime is not a
    /// canonical coordinate.
    fn read(bytes: &[u8]) -> Result<Self, NotOnCurve> {
        let mut limbs = [0; 4];
        let words = bytes.chunks_exact(8);
        if bytes.len() != 32 {
            return Err(NotOnCurve);
        }
        for (limb, word) in limbs.iter_mut().rev().zip(words) {
            *limb = word.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        }
        if without_prime(&limbs).is_some() { Err(NotOnCurve) } else { Ok(Self(limbs)) }
    }

    fn bytes(self) -> [u8; 32] {
        let mut out = [0; 32];
        for (word, limb) in out.chunks_exact_mut(8).zip(self.0.iter().rev()) {
            word.copy_from_slice(&limb.to_be_bytes());
        }
        out
    }

    fn is_odd(self) -> bool {
        self.0[0] & 1 == 1
    }

    fn plus(self, other: Self) -> Self {
        let mut sum = [0; 4];
        let mut carry = false;
        for ((sum, a), b) in sum.iter_mut().zip(self.0).zip(other.0) {
            let (partial, first) = a.overflowing_add(b);
            let (whole, second) = partial.overflowing_add(u64::from(carry));
            (*sum, carry) = (whole, first || second);
        }
        // Beyond 256 bits the subtraction borrows from the carry, which is then used up.
        let (difference, borrow) = minus_prime(&sum);
        if carry || !borrow { Self(difference) } else { Self(sum) }
    }

    fn negated(self) -> Self {
        if self == ZERO {
            return self;
        }
        let mut difference = [0; 4];
        let mut borrow = false;
        for ((difference, p), a) in difference.iter_mut().zip(PRIME).zip(self.0) {
            let (partial, first) = p.overflowing_sub(a);
            let (whole, second) = partial.overflowing_sub(u64::from(borrow));
            (*difference, borrow) = (whole, first || second);
        }
        Self(difference)
    }

    fn times(self, other: Self) -> Self {
        // The first product lacks a factor of 2^256, which the second one brings.
        Self(montgomery(&montgomery(&self.0, &other.0), &R_SQUARED))
    }

    fn power(self, exponent: [u64; 4]) -> Self {
        bits(exponent).fold(ONE, |product, bit| {
            let squared = product.times(product);
            if bit { squared.times(self) } else { squared }
        })
    }

    fn square_root(self) -> Option<Self> {
        let root = self.power(ROOT_EXPONENT);
        (root.times(root) == self).then_some(root)
    }

    /// Returns x³ - 3x + b.
    fn curve(self) -> Self {
        let cubed = self.times(self).times(self);
        cubed.plus(self.plus(self).plus(self).negated()).plus(B)
    }
}

/// Returns the product of two numbers below the prime, divided by 2^256 (Montgomery's
/// method; the prime is -1 modulo 2^64, which spares a factor).
fn montgomery(a: &[u64; 4], b: &[u64; 4]) -> [u64; 4] {
    let mut sum = [0; 6];
    for factor in b {
        add_product(&mut sum, a, *factor);
        // Makes the lowest limb 0.
        let multiple = sum[0];
        add_product(&mut sum, &PRIME, multiple);
        sum.rotate_left(1);
        sum[5] = 0;
    }
    let low = [sum[0], sum[1], sum[2], sum[3]];
    let (difference, borrow) = minus_prime(&low);
    if sum[4] != 0 || !borrow { difference } else { low }
}

/// Adds `a` times `factor`.
fn add_product(sum: &mut [u64; 6], a: &[u64; 4], factor: u64) {
    let mut carry = 0;
    for (at, limb) in sum.iter_mut().enumerate() {
        let product = u128::from(a.get(at).copied().unwrap_or(0)) * u128::from(factor);
        let whole = product + u128::from(*limb) + carry;
        (*limb, carry) = (whole as u64, whole >> 64);
    }
}

/// Returns the difference to the prime, if the number is not below it.
fn without_prime(limbs: &[u64; 4]) -> Option<[u64; 4]> {
    let (difference, borrow) = minus_prime(limbs);
    (!borrow).then_some(difference)
}

fn minus_prime(limbs: &[u64; 4]) -> ([u64; 4], bool) {
    let mut difference = [0; 4];
    let mut borrow = false;
    for ((difference, a), p) in difference.iter_mut().zip(limbs).zip(PRIME) {
        let (partial, first) = a.overflowing_sub(p);
        let (whole, second) = partial.overflowing_sub(u64::from(borrow));
        (*difference, borrow) = (whole, first || second);
    }
    (difference, borrow)
}

/// Bits from the most to the least significant.
fn bits(limbs: [u64; 4]) -> impl Iterator<Item = bool> {
    (0..256).rev().map(move |bit| limbs[bit / 64] >> (bit % 64) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    /// The curve's base point (FIPS 186-4, section D.1.2.3).
    const GX: &str = "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296";
    const GY: &str = "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";

    #[test]
    fn the_base_point_is_found_from_its_compressed_form() {
        let whole = hex(&format!("04{GX}{GY}"));
        assert_eq!(uncompressed(&hex(&format!("03{GX}"))).unwrap(), *whole);
        assert_eq!(uncompressed(&whole).unwrap(), *whole);
        let other = uncompressed(&hex(&format!("02{GX}"))).unwrap();
        assert_ne!(other, *whole);
        assert_eq!(uncompressed(&other), Ok(other), "the other root is on the curve too");
    }

    #[test]
    fn what_is_no_point_is_refused() {
        let prime = "ffffffff00000001000000000000000000000000ffffffffffffffffffffffff";
        let mut moved = hex(&format!("04{GX}{GY}"));
        moved[64] ^= 1;
        for bytes in [
            vec![],
            vec![0],
            hex(&format!("05{GX}")),
            hex(&format!("0{}{GX}", 4)),
            hex(&format!("02{GX}00")),
            hex(&format!("06{GX}{GY}")),
            // Not a canonical coordinate, although it is 0 modulo the prime, which is one
            // of a point.
            hex(&format!("02{prime}")),
            // No point has this x.
            hex(&format!("02{}01", "00".repeat(31))),
            moved,
        ] {
            let known = bytes.len();
            assert_eq!(uncompressed(&bytes), Err(NotOnCurve), "{known} bytes: {bytes:x?}");
        }
        assert!(
            uncompressed(&hex(&format!("02{}", "00".repeat(32)))).is_ok(),
            "x = 0 is one of a point"
        );
    }

    #[test]
    fn the_constants_are_what_they_are_said_to_be() {
        let mut power = ONE;
        for _ in 0..512 {
            power = power.plus(power);
        }
        assert_eq!(power.0, R_SQUARED);
        assert_eq!(Element(PRIME).plus(ZERO), ZERO);
    }

    proptest! {
        #[test]
        fn products_are_those_of_adding_again_and_again(a: [u64; 4], b: [u64; 4]) {
            let below = |limbs| without_prime(&limbs).map_or(Element(limbs), Element);
            let (a, b) = (below(a), below(b));
            let slow = bits(b.0).fold(ZERO, |sum, bit| {
                let doubled = sum.plus(sum);
                if bit { doubled.plus(a) } else { doubled }
            });
            prop_assert_eq!(a.times(b), slow);
        }

        #[test]
        fn any_bytes_are_refused_or_name_a_point_and_its_opposite(x: [u8; 32], odd: bool) {
            let compressed = |sign| [&[sign], &x[..]].concat();
            let sign = if odd { 3 } else { 2 };
            match uncompressed(&compressed(sign)) {
                Ok(point) => {
                    prop_assert_eq!(&point[1..33], &x);
                    prop_assert_eq!(point[64] & 1 == 1, odd);
                    // Told by the equation, not by how the root was found.
                    prop_assert_eq!(uncompressed(&point), Ok(point));
                    let other = uncompressed(&compressed(5 - sign)).unwrap();
                    prop_assert_ne!(other, point);
                }
                Err(NotOnCurve) => prop_assert!(uncompressed(&compressed(5 - sign)).is_err()),
            }
        }

        #[test]
        fn other_lengths_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assume!(![COMPRESSED_LEN, UNCOMPRESSED_LEN].contains(&bytes.len()));
            prop_assert!(uncompressed(&bytes).is_err());
        }
    }
}
