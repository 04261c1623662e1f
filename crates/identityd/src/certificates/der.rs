//! Writing DER: just what an X.509 certificate needs.

/// Tags of the types that are written here.
pub(super) mod tag {
    pub(in super::super) const BOOLEAN: u8 = 0x01;
    pub(in super::super) const INTEGER: u8 = 0x02;
    pub(in super::super) const BIT_STRING: u8 = 0x03;
    pub(in super::super) const OCTET_STRING: u8 = 0x04;
    pub(in super::super) const NULL: u8 = 0x05;
    pub(in super::super) const OID: u8 = 0x06;
    pub(in super::super) const UTF8_STRING: u8 = 0x0c;
    pub(in super::super) const UTC_TIME: u8 = 0x17;
    pub(in super::super) const GENERALIZED_TIME: u8 = 0x18;
    pub(in super::super) const SEQUENCE: u8 = 0x30;
    pub(in super::super) const SET: u8 = 0x31;
    /// `[n]`, constructed.
    pub(in super::super) const fn explicit(n: u8) -> u8 {
        0xa0 | n
    }
    /// `[n]`, primitive.
    pub(in super::super) const fn implicit(n: u8) -> u8 {
        0x80 | n
    }
}

/// One element around `content`.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    out.push(tag);
    match content.len() {
        length @ 0..=0x7f => out.push(length as u8),
        length => {
            let bytes = length.to_be_bytes();
            let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - 1);
            out.push(0x80 | (bytes.len() - first) as u8);
            out.extend_from_slice(&bytes[first..]);
        }
    }
    out.extend_from_slice(content);
    out
}

/// One element around the concatenation of `parts`.
pub(super) fn group(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    element(tag, &parts.concat())
}

/// A BIT STRING of whole bytes.
pub(super) fn bit_string(bytes: &[u8]) -> Vec<u8> {
    group(tag::BIT_STRING, &[&[0], bytes])
}

/// A moment as certificates have it: two digits of the year until 2049, four from 2050 on.
pub(super) fn time(moment: time::OffsetDateTime) -> Vec<u8> {
    let moment = moment.to_offset(time::UtcOffset::UTC);
    let (year, month, day) = moment.to_calendar_date();
    let (hour, minute, second) = moment.to_hms();
    let month = u8::from(month);
    let rest = format!("{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
    if (1950..2050).contains(&year) {
        element(tag::UTC_TIME, format!("{:02}{rest}", year % 100).as_bytes())
    } else {
        element(tag::GENERALIZED_TIME, format!("{year:04}{rest}").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn lengths_take_as_few_bytes_as_they_need() {
        assert_eq!(element(tag::OCTET_STRING, &[7])[..2], [4, 1]);
        assert_eq!(element(tag::OCTET_STRING, &[0; 127])[..2], [4, 127]);
        assert_eq!(element(tag::OCTET_STRING, &[0; 128])[..3], [4, 0x81, 128]);
        assert_eq!(element(tag::OCTET_STRING, &[0; 256])[..4], [4, 0x82, 1, 0]);
        assert_eq!(element(tag::OCTET_STRING, &[]), [4, 0]);
    }

    #[test]
    fn times_change_their_form_in_2050() {
        assert_eq!(time(datetime!(2049-12-31 23:59:59 UTC))[2..], *b"491231235959Z");
        assert_eq!(time(datetime!(2050-01-01 00:00:00 UTC))[2..], *b"20500101000000Z");
        assert_eq!(time(datetime!(2050-01-01 00:00:00 UTC))[0], tag::GENERALIZED_TIME);
    }

    proptest! {
        #[test]
        fn a_parser_reads_back_what_was_written(content in proptest::collection::vec(any::<u8>(), 0..70_000)) {
            let written = element(tag::OCTET_STRING, &content);
            let (rest, read) = x509_parser::der_parser::parse_der(&written).unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!(read.as_slice().unwrap(), &content[..]);
        }
    }
}
