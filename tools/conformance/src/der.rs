//! DER, as much of it as the suites write and take apart themselves.

/// One element of a DER sequence: its content and what follows it.
pub(crate) struct Element<'a> {
    /// The content octets.
    pub(crate) content: &'a [u8],
    /// What comes behind.
    pub(crate) rest: &'a [u8],
}

/// Reads the element that `bytes` begins with.
pub(crate) fn read(bytes: &[u8]) -> Option<Element<'_>> {
    let (_tag, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let length = if first < 0x80 {
        usize::from(first)
    } else {
        let (octets, behind) = rest.split_at_checked(usize::from(first & 0x7f))?;
        rest = behind;
        octets.iter().fold(0, |length, octet| (length << 8) | usize::from(*octet))
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some(Element { content, rest })
}

/// The contents of the elements that `bytes` is made of.
pub(crate) fn elements(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some(element) = read(bytes) {
        found.push(element.content);
        bytes = element.rest;
    }
    found
}

/// An element with this tag around `parts`.
pub(crate) fn write(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = vec![tag];
    if length < 0x80 {
        bytes.push(u8::try_from(length).expect("checked to be small"));
    } else {
        let octets = length.to_be_bytes();
        let used = octets.iter().position(|octet| *octet != 0).map_or(&[][..], |first| &octets[first..]);
        bytes.push(0x80 | u8::try_from(used.len()).expect("a length has at most eight octets"));
        bytes.extend_from_slice(used);
    }
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// A SEQUENCE of `parts`.
pub(crate) fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    write(0x30, parts)
}

/// An OBJECT IDENTIFIER written with dots.
pub(crate) fn oid(dotted: &str) -> Vec<u8> {
    let arcs: Vec<u64> = dotted.split('.').map(|arc| arc.parse().expect("an arc is a number")).collect();
    let mut content = vec![u8::try_from(arcs[0] * 40 + arcs[1]).expect("the first arcs are small")];
    for arc in &arcs[2..] {
        let mut octets = vec![u8::try_from(arc & 0x7f).expect("seven bits")];
        let mut left = arc >> 7;
        while left > 0 {
            octets.push(u8::try_from(left & 0x7f).expect("seven bits") | 0x80);
            left >>= 7;
        }
        content.extend(octets.iter().rev());
    }
    write(0x06, &[&content])
}

/// The dotted form of an OBJECT IDENTIFIER's content.
pub(crate) fn dotted(content: &[u8]) -> String {
    let mut arcs = Vec::new();
    let mut arc = 0_u64;
    for octet in content {
        arc = (arc << 7) | u64::from(octet & 0x7f);
        if octet & 0x80 == 0 {
            arcs.push(arc);
            arc = 0;
        }
    }
    if let Some(first) = arcs.first().copied() {
        let top = (first / 40).min(2);
        arcs.splice(0..1, [top, first - top * 40]);
    }
    arcs.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_survive_both_ways() {
        for text in ["1.2.840.10045.4.3.2", "2.5.29.17", "1.3.6.1.5.5.7.3.1", "2.999.3"] {
            let written = if text == "2.999.3" { vec![0x06, 3, 0x88, 0x37, 3] } else { oid(text) };
            assert_eq!(dotted(read(&written).unwrap().content), text);
        }
    }

    #[test]
    fn long_contents_have_long_lengths() {
        let content = vec![7; 300];
        let written = write(0x04, &[&content]);

        assert_eq!(written[..4], [0x04, 0x82, 0x01, 0x2c]);
        assert_eq!(read(&written).unwrap().content, content);
        assert_eq!(elements(&sequence(&[&written, &written])[4..]).len(), 2);
    }
}
