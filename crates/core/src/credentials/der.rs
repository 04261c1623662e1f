//! DER, read strictly: definite lengths in their shortest form, low tag numbers.

/// Tags of the types that are looked at.
pub(super) mod tag {
    pub(in super::super) const BOOLEAN: u8 = 0x01;
    pub(in super::super) const INTEGER: u8 = 0x02;
    pub(in super::super) const BIT_STRING: u8 = 0x03;
    pub(in super::super) const OCTET_STRING: u8 = 0x04;
    pub(in super::super) const NULL: u8 = 0x05;
    pub(in super::super) const OID: u8 = 0x06;
    pub(in super::super) const UTF8_STRING: u8 = 0x0c;
    pub(in super::super) const NUMERIC_STRING: u8 = 0x12;
    pub(in super::super) const PRINTABLE_STRING: u8 = 0x13;
    pub(in super::super) const T61_STRING: u8 = 0x14;
    pub(in super::super) const IA5_STRING: u8 = 0x16;
    pub(in super::super) const UTC_TIME: u8 = 0x17;
    pub(in super::super) const GENERALIZED_TIME: u8 = 0x18;
    pub(in super::super) const UNIVERSAL_STRING: u8 = 0x1c;
    pub(in super::super) const BMP_STRING: u8 = 0x1e;
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

/// Levels of nesting that are followed where a value may be anything.
const DEPTH: usize = 16;

/// One element.
#[derive(Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// The element with its tag and length.
    pub(super) whole: &'a [u8],
}

/// Reads elements one after the other.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// Returns true if nothing is left.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the bytes that are left.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Returns the tag of the next element.
    pub(super) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element, of any type.
    pub(super) fn any(&mut self) -> Option<Element<'a>> {
        let (tag, header, length) = header(self.0)?;
        let content = self.0.get(header..header.checked_add(length)?)?;
        let (whole, rest) = self.0.split_at_checked(header + length)?;
        self.0 = rest;
        Some(Element { tag, content, whole })
    }

    /// The next element, which has to have this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Option<Element<'a>> {
        if self.peek()? == tag { self.any() } else { None }
    }

    /// The content of the next element, which has to have this tag, as a reader.
    pub(super) fn inside(&mut self, tag: u8) -> Option<Self> {
        self.expect(tag).map(|element| Self(element.content))
    }

    /// The next element if it has this tag; `Some(None)` if another or none follows.
    pub(super) fn optional(&mut self, tag: u8) -> Option<Option<Element<'a>>> {
        if self.peek() == Some(tag) { self.any().map(Some) } else { Some(None) }
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Option<()> {
        self.is_empty().then_some(())
    }

    /// An INTEGER in its shortest form.
    pub(super) fn integer(&mut self) -> Option<&'a [u8]> {
        let content = self.expect(tag::INTEGER)?.content;
        is_integer(content).then_some(content)
    }

    /// An OBJECT IDENTIFIER.
    pub(super) fn oid(&mut self) -> Option<&'a [u8]> {
        let content = self.expect(tag::OID)?.content;
        is_oid(content).then_some(content)
    }

    /// A BIT STRING; returns its bytes without the count of unused bits.
    pub(super) fn bit_string(&mut self) -> Option<&'a [u8]> {
        let content = self.expect(tag::BIT_STRING)?.content;
        is_bit_string(content).then(|| &content[1..])
    }
}

/// Tag, length of tag and length, and length of the content.
pub(super) fn header(input: &[u8]) -> Option<(u8, usize, usize)> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if tag & 0x1f == 0x1f {
        return None;
    }
    if first < 0x80 {
        return Some((tag, 2, usize::from(first)));
    }
    let count = usize::from(first & 0x7f);
    if count == 0 || count > 4 {
        return None;
    }
    let bytes = rest.get(..count)?;
    let length = bytes.iter().fold(0usize, |length, byte| length << 8 | usize::from(*byte));
    // The shortest form only.
    (bytes[0] != 0 && length >= 0x80).then_some((tag, 2 + count, length))
}

fn is_integer(content: &[u8]) -> bool {
    match content {
        [] => false,
        [0, second, ..] => *second >= 0x80,
        [0xff, second, ..] => *second < 0x80,
        _ => true,
    }
}

fn is_oid(content: &[u8]) -> bool {
    let Some(last) = content.last() else { return false };
    let padded = |pair: &[u8]| pair[0] < 0x80 && pair[1] == 0x80;
    *last < 0x80 && content[0] != 0x80 && !content.windows(2).any(padded)
}

fn is_bit_string(content: &[u8]) -> bool {
    match content {
        [] => false,
        [unused] => *unused == 0,
        [unused, ..] => *unused < 8,
    }
}

/// Returns true if a string keeps to its own alphabet, as far as readers refuse those
/// that do not.
pub(super) fn is_text(element: Element<'_>) -> bool {
    let content = element.content;
    match element.tag {
        tag::UTF8_STRING => std::str::from_utf8(content).is_ok(),
        tag::BMP_STRING => {
            let unit = |pair: &[u8]| {
                char::from_u32(u32::from(pair[0]) << 8 | u32::from(pair[1])).is_some()
            };
            content.len().is_multiple_of(2) && content.chunks_exact(2).all(unit)
        }
        tag::UNIVERSAL_STRING => {
            let unit = |four: &[u8]| {
                let code = four.iter().fold(0u32, |code, byte| code << 8 | u32::from(*byte));
                char::from_u32(code).is_some()
            };
            content.len().is_multiple_of(4) && content.chunks_exact(4).all(unit)
        }
        tag::NUMERIC_STRING | tag::PRINTABLE_STRING | tag::T61_STRING | tag::IA5_STRING => true,
        tag::BIT_STRING => is_bit_string(content),
        _ => false,
    }
}

/// Returns true if an element of any type is well formed, down to its innermost parts.
pub(super) fn is_well_formed(element: Element<'_>) -> bool {
    fn check(element: Element<'_>, depth: usize) -> bool {
        let content = element.content;
        if element.tag & 0x20 != 0 {
            let mut inner = Reader::new(content);
            while !inner.is_empty() {
                let Some(next) = inner.any() else { return false };
                if depth == 0 || !check(next, depth - 1) {
                    return false;
                }
            }
            return true;
        }
        match element.tag {
            tag::BOOLEAN => matches!(content, [0 | 0xff]),
            tag::INTEGER => is_integer(content),
            tag::BIT_STRING => is_bit_string(content),
            tag::NULL => content.is_empty(),
            tag::OID => is_oid(content),
            // SEQUENCE and SET are always constructed; zero is the end of an indefinite
            // length.
            0 | 0x10 | 0x11 => false,
            tag::UTF8_STRING | tag::BMP_STRING | tag::UNIVERSAL_STRING => is_text(element),
            _ => true,
        }
    }
    check(element, DEPTH)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_have_their_shortest_form() {
        assert_eq!(header(&[0x30, 0x7f]), Some((0x30, 2, 127)));
        assert_eq!(header(&[0x30, 0x81, 0x80]), Some((0x30, 3, 128)));
        assert_eq!(header(&[0x30, 0x82, 1, 0]), Some((0x30, 4, 256)));
        for bad in [
            &[0x30][..],
            &[0x30, 0x80],
            &[0x30, 0x81, 0x7f],
            &[0x30, 0x82, 0, 0x80],
            &[0x30, 0x85, 1, 0, 0, 0, 0],
        ] {
            assert_eq!(header(bad), None, "{bad:x?}");
        }
    }

    #[test]
    fn values_are_what_their_tag_says() {
        let read = |tag: u8, content: &[u8]| is_well_formed(Element { tag, content, whole: &[] });
        assert!(
            read(tag::INTEGER, &[0, 0x80])
                && !read(tag::INTEGER, &[0, 0x7f])
                && !read(tag::INTEGER, &[])
        );
        assert!(
            read(tag::OID, &[0x55, 4, 3])
                && !read(tag::OID, &[0x55, 0x80, 1])
                && !read(tag::OID, &[0x81])
        );
        assert!(read(tag::NULL, &[]) && !read(tag::NULL, &[0]));
        assert!(read(tag::UTF8_STRING, "é".as_bytes()) && !read(tag::UTF8_STRING, &[0xe9]));
        assert!(read(tag::BMP_STRING, &[0, 0x41]) && !read(tag::BMP_STRING, &[0x41]));
        assert!(!read(tag::BMP_STRING, &[0xd8, 0]));
        assert!(read(tag::SEQUENCE, &[5, 0]) && !read(tag::SEQUENCE, &[5, 1]) && !read(0x10, &[]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut reader = Reader::new(&bytes);
            while let Some(element) = reader.any() {
                let _ = is_well_formed(element);
                prop_assert!(element.whole.ends_with(element.content));
            }
        }
    }
}
