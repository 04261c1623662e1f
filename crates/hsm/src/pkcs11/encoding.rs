//! Between what tokens speak and what certificates hold.

/// The DER sequence of the two integers of an ECDSA signature, of which a token returns
/// the bytes one after the other.
pub(super) fn ecdsa_der(raw: &[u8]) -> Option<Vec<u8>> {
    if raw.is_empty() || !raw.len().is_multiple_of(2) || raw.len() > 2 * 66 {
        return None;
    }
    let (r, s) = raw.split_at(raw.len() / 2);
    let mut body = der_integer(r);
    body.extend(der_integer(s));
    let mut signature = vec![0x30];
    // Two integers of at most 67 bytes: the length has one or two bytes.
    if body.len() >= 0x80 {
        signature.push(0x81);
    }
    signature.push(u8::try_from(body.len()).ok()?);
    signature.extend(body);
    Some(signature)
}

/// A positive DER integer of at most 127 bytes.
fn der_integer(big_endian: &[u8]) -> Vec<u8> {
    let zeros = big_endian.iter().take_while(|byte| **byte == 0).count();
    let digits = &big_endian[zeros..];
    let sign_byte = digits.first().is_none_or(|first| *first >= 0x80);
    let mut integer = vec![0x02, digits.len() as u8 + u8::from(sign_byte)];
    if sign_byte {
        integer.push(0);
    }
    integer.extend_from_slice(digits);
    integer
}

/// The uncompressed point in a `CKA_EC_POINT`: in a DER octet string by the standard,
/// bare by some libraries.
pub(super) fn ec_point(attribute: &[u8], field_len: usize) -> Option<Vec<u8>> {
    let point_len = 1 + 2 * field_len;
    let point = match attribute {
        [0x04, len, point @ ..] if usize::from(*len) == point.len() && point.len() == point_len => {
            point
        }
        [0x04, 0x81, len, point @ ..]
            if usize::from(*len) == point.len() && point.len() == point_len =>
        {
            point
        }
        bare if bare.len() == point_len => bare,
        _ => return None,
    };
    (point.first() == Some(&0x04)).then(|| point.to_vec())
}

/// A number without the zeros in front.
pub(super) fn without_leading_zeros(number: &[u8]) -> Vec<u8> {
    number[number.iter().take_while(|byte| **byte == 0).count()..].to_vec()
}

/// Returns true if one big-endian number is below another. `limit` has no leading zeros.
pub(super) fn is_below(number: &[u8], limit: &[u8]) -> bool {
    let number = &number[number.iter().take_while(|byte| **byte == 0).count()..];
    (number.len(), number) < (limit.len(), limit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_are_as_short_as_can_be_and_positive() {
        assert_eq!(ecdsa_der(&[0, 1, 0x80, 0]).unwrap(), [0x30, 8, 2, 1, 1, 2, 3, 0, 0x80, 0]);
        assert_eq!(ecdsa_der(&[0, 0]).unwrap(), [0x30, 6, 2, 1, 0, 2, 1, 0]);
        let long = ecdsa_der(&[0xff; 132]).unwrap();
        assert_eq!(&long[..5], [0x30, 0x81, 138, 2, 67]);
        assert_eq!(long.len(), 3 + 138);
        assert_eq!(ecdsa_der(&[]), None);
        assert_eq!(ecdsa_der(&[1, 2, 3]), None);
    }

    #[test]
    fn points_are_found_in_either_form() {
        let mut point = vec![4];
        point.extend([7; 64]);
        let mut wrapped = vec![4, 65];
        wrapped.extend(&point);
        assert_eq!(ec_point(&wrapped, 32).as_ref(), Some(&point));
        assert_eq!(ec_point(&point, 32).as_ref(), Some(&point));
        assert_eq!(ec_point(&point, 48), None);
        assert_eq!(ec_point(&wrapped[..66], 32), None);
        point[0] = 2;
        assert_eq!(ec_point(&point, 32), None);
    }

    proptest! {
        #[test]
        fn comparing_numbers_is_comparing_their_values(a: u64, b: u64, zeros in 0usize..4) {
            let mut padded = vec![0; zeros];
            padded.extend(a.to_be_bytes());
            prop_assert_eq!(is_below(&padded, &without_leading_zeros(&b.to_be_bytes())), a < b);
        }

        #[test]
        fn no_bytes_make_reading_a_point_panic(bytes in prop::collection::vec(any::<u8>(), 0..140)) {
            let _ = ec_point(&bytes, 32);
        }
    }
}
