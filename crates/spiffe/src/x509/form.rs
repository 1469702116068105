//! The form of a certificate (X.690, 8 and 10; RFC 5280, 4.1 and 4.2), where it is stricter than the
//! parser is: what another reader would refuse, or read as something else, is no certificate here.

use x509_parser::oid_registry::{OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519};

use super::{Validity, der, names};
use crate::key::{PublicKey, PublicKeyKind};

/// 2.5.29, under which most extensions have their identifiers.
pub(super) const CE: [u8; 2] = [0x55, 0x1d];
/// 1.3.6.1.5.5.7.1.1: authority information access.
const AUTHORITY_INFO_ACCESS: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 1, 1];

/// The signed part of a certificate, taken apart: what each part holds, of the type that it has to be. The
/// parser takes a value of another type for one that is expected here and there.
pub(super) struct Frame<'a> {
    version: Option<&'a [u8]>,
    serial: &'a [u8],
    algorithm: &'a [u8],
    issuer: &'a [u8],
    validity: &'a [u8],
    subject: &'a [u8],
    key: &'a [u8],
    key_algorithm: &'a [u8],
    extensions: &'a [u8],
}

/// An extension.
pub(super) struct Extension<'a> {
    pub(super) id: &'a [u8],
    pub(super) is_critical: bool,
    pub(super) value: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Takes a whole certificate apart.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn of_certificate(whole: &'a [u8]) -> Result<Self, &'static str> {
        if !der::is_strict(whole) {
            return Err("not in DER");
        }
        let parts = der::elements(whole).next().and_then(|(_, parts)| der::exactly(parts));
        let Some([(der::SEQUENCE, tbs), (der::SEQUENCE, algorithm), (der::BIT_STRING, _)]) = parts else {
            return Err(ANOTHER_TYPE);
        };
        // The algorithm inside the signed part must be the one outside (RFC 5280, 4.1.1.2).
        Self::read(tbs).filter(|frame| frame.algorithm == algorithm).ok_or(ANOTHER_TYPE)
    }

    /// Takes the signed part apart.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn of_signed_part(tbs: &'a [u8]) -> Result<Self, &'static str> {
        if !der::is_strict(tbs) {
            return Err("not in DER");
        }
        match der::elements(tbs).next() {
            Some((der::SEQUENCE, tbs)) => Self::read(tbs).ok_or(ANOTHER_TYPE),
            _ => Err(ANOTHER_TYPE),
        }
    }

    fn read(tbs: &'a [u8]) -> Option<Self> {
        let mut parts = der::elements(tbs).peekable();
        let version = match parts.next_if(|(tag, _)| *tag == 0xa0) {
            Some((_, version)) => match der::exactly(version)? {
                [(der::INTEGER, version)] => Some(version),
                _ => return None,
            },
            None => None,
        };
        let mut part = |wanted| parts.next().filter(|(tag, _)| *tag == wanted).map(|(_, part)| part);
        let frame = Self {
            version,
            serial: part(der::INTEGER)?,
            algorithm: part(der::SEQUENCE)?,
            issuer: part(der::SEQUENCE)?,
            validity: part(der::SEQUENCE)?,
            subject: part(der::SEQUENCE)?,
            key: part(der::SEQUENCE)?,
            key_algorithm: &[],
            extensions: &[],
        };
        let [(der::SEQUENCE, key_algorithm), (der::BIT_STRING, _)] = der::exactly(frame.key)? else {
            return None;
        };
        let is_algorithm = |parts| der::elements(parts).next().is_some_and(|(tag, _)| tag == der::OID);
        if !is_algorithm(frame.algorithm) || !is_algorithm(key_algorithm) {
            return None;
        }
        // Unique identifiers, extensions.
        let mut rest = parts.skip_while(|(tag, _)| matches!(tag, 0x81 | 0x82));
        let extensions = match rest.next() {
            // Go's parser passes over further lists.
            Some((0xa3, lists)) if der::elements(lists).all(|(tag, _)| tag == der::SEQUENCE) => {
                der::elements(lists).next().map_or(&[][..], |(_, extensions)| extensions)
            }
            Some(_) => return None,
            None => &[],
        };
        let frame = Self { key_algorithm, extensions, ..frame };
        let is_framed = |part| extension(part).is_some();
        (rest.next().is_none() && der::elements(extensions).all(is_framed)).then_some(frame)
    }

    /// The version; `None` for the first, which is not written.
    pub(super) const fn version(&self) -> Option<&'a [u8]> {
        self.version
    }

    /// What it is to be signed with.
    pub(super) const fn algorithm(&self) -> &'a [u8] {
        self.algorithm
    }

    /// What the public key is made of.
    pub(super) const fn key(&self) -> &'a [u8] {
        self.key
    }

    /// From when to when it holds, if that is written as it has to be.
    pub(super) fn validity(&self) -> Option<Validity> {
        let [not_before, not_after] = der::exactly(self.validity)?;
        Some(Validity {
            not_before: der::read_instant(not_before)?,
            not_after: der::read_instant(not_after)?,
        })
    }

    /// The extensions.
    pub(super) fn extensions(&self) -> impl Iterator<Item = Extension<'a>> + use<'a> {
        der::elements(self.extensions).filter_map(extension)
    }

    /// Checks what the parts hold, whose key is `key`.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn check(&self, key: &PublicKey) -> Result<(), &'static str> {
        if self.serial.first().is_some_and(|first| first & 0x80 != 0) {
            return Err("negative serial number");
        }
        if !is_name(self.subject) || !is_name(self.issuer) {
            return Err("name cannot be read");
        }
        let kind = der::elements(self.key_algorithm).next().map_or(&[][..], |(_, kind)| kind);
        check_key(key, kind == OID_KEY_TYPE_EC_PUBLIC_KEY.as_bytes())?;
        if self.extensions().all(|extension| is_extension(extension.id, extension.value)) {
            Ok(())
        } else {
            Err("extension cannot be read")
        }
    }
}

const ANOTHER_TYPE: &str = "part of another type";

fn extension((tag, parts): (u8, &[u8])) -> Option<Extension<'_>> {
    let mut parts = der::elements(parts).peekable();
    let (der::OID, id) = parts.next()? else { return None };
    let is_critical = parts.next_if(|(tag, _)| *tag == der::BOOLEAN).is_some_and(|(_, is)| is == [0xff]);
    let (der::OCTET_STRING, value) = parts.next()? else { return None };
    (tag == der::SEQUENCE && parts.next().is_none()).then_some(Extension { id, is_critical, value })
}

/// Whether the subject of a request can be read: strict DER, whose texts are text. Values may be of other
/// types too.
pub(super) fn is_asked(subject: &[u8]) -> bool {
    let mut attributes = der::items(subject).flat_map(|(_, set)| der::elements(set));
    let is_read = |(tag, value): (u8, &[u8])| {
        !matches!(tag, der::UTF8_STRING | der::PRINTABLE_STRING | 0x12 | 0x16 | 0x1e) || is_text(tag, value)
    };
    der::is_strict(subject)
        && attributes.all(|(_, attribute)| der::elements(attribute).nth(1).is_none_or(is_read))
}

/// Whether the extensions that a request asks for, the value of an attribute, are each there once, with
/// alternative names of the form that certificates have them in.
pub(super) fn are_asked(value: &[u8]) -> bool {
    let Some((_, extensions)) = der::items(value).next() else { return true };
    let mut seen = Vec::new();
    der::elements(extensions).all(|(_, extension)| {
        let parts: Vec<_> = der::elements(extension).collect();
        let (Some((_, id)), Some((_, held))) = (parts.first(), parts.last()) else { return false };
        let is_new = !seen.contains(id);
        seen.push(id);
        let names = id.strip_prefix(&CE).is_some_and(|id| id == [17]);
        is_new && (!names || is_extension(id, held))
    })
}

/// Whether extensions of this identifier have to be read: key identifiers, usages, names, constraints, what
/// is said about policies, and where to learn about the issuer.
pub(super) fn is_needed(id: &[u8]) -> bool {
    matches!(id.strip_prefix(&CE), Some([14 | 15 | 17 | 19 | 30 | 33 | 35..=37 | 54]))
        || id == AUTHORITY_INFO_ACCESS
}

/// Whether extensions of this identifier may be critical: those that are needed, policies, and where to ask
/// about revocation.
pub(super) fn is_understood(id: &[u8]) -> bool {
    is_needed(id) || matches!(id.strip_prefix(&CE), Some([31 | 32]))
}

/// Whether a public key has the form of its kind: an algorithm with the parameters that it has to have, and
/// whole bytes, of RSA two positive numbers.
pub(crate) fn is_public_key(spki: &[u8]) -> bool {
    let parts = der::elements(spki).next().and_then(|(_, parts)| der::exactly(parts));
    let Some([(der::SEQUENCE, algorithm), (der::BIT_STRING, [0, key @ ..])]) = parts else { return false };
    let algorithm: Vec<_> = der::elements(algorithm).collect();
    let Some(((der::OID, id), parameters)) = algorithm.split_first() else { return false };
    let fits = if *id == OID_PKCS1_RSAENCRYPTION.as_bytes() {
        let numbers: Vec<_> = der::items(key).collect();
        let is_positive = |number: &[u8]| !matches!(number, [0x80..=0xff, ..] | [0]);
        matches!(parameters, [(der::NULL_TAG, _)])
            && der::is_strict(key)
            && key.first() == Some(&der::SEQUENCE)
            && matches!(numbers.as_slice(), [(der::INTEGER, n), (der::INTEGER, e)] if is_positive(n) && is_positive(e))
    } else if *id == OID_SIG_ED25519.as_bytes() {
        parameters.is_empty() && key.len() == 32
    } else {
        *id != OID_KEY_TYPE_EC_PUBLIC_KEY.as_bytes() || matches!(parameters, [(der::OID, _)])
    };
    fits && spki.first() == Some(&der::SEQUENCE) && der::is_strict(spki)
}

/// Whether the contents of an extension fit its identifier; those of unknown ones may be anything.
fn is_extension(id: &[u8], value: &[u8]) -> bool {
    let outer = |wanted| value.first() == Some(&wanted);
    let mut items = der::items(value);
    let fits = match id.strip_prefix(&CE) {
        // Subject key identifier, key usage.
        Some([14]) => outer(der::OCTET_STRING),
        Some([15]) => outer(der::BIT_STRING),
        Some([17]) => outer(der::SEQUENCE) && items.all(is_alternative_name),
        // Basic constraints: whether it is a CA, and how many may follow.
        Some([19]) => {
            let tags: Vec<u8> = items.map(|(tag, _)| tag).collect();
            outer(der::SEQUENCE)
                && matches!(
                    tags.as_slice(),
                    [] | [der::BOOLEAN] | [der::INTEGER] | [der::BOOLEAN, der::INTEGER]
                )
        }
        // Name constraints: admitted and excluded ones, at least one of each kind that is there. The parser
        // would pass over what stands behind an empty list.
        Some([30]) => {
            let kinds: Vec<_> = items.collect();
            outer(der::SEQUENCE)
                && matches!(kinds.as_slice(), [(0xa0 | 0xa1, _)] | [(0xa0, _), (0xa1, _)])
                && kinds.iter().all(|(_, subtrees)| !subtrees.is_empty())
                && kinds.iter().flat_map(|(_, subtrees)| der::elements(subtrees)).all(is_subtree)
        }
        // CRL distribution points: each by a full name, if it has one.
        Some([31]) => {
            let is_point = |(tag, point): (u8, &[u8])| {
                let name = der::elements(point).next().filter(|(tag, _)| *tag == 0xa0);
                let is_full = |(_, name)| der::elements(name).next().is_some_and(|(tag, _)| tag == 0xa0);
                tag == der::SEQUENCE && name.is_none_or(is_full)
            };
            outer(der::SEQUENCE) && items.all(is_point)
        }
        // Certificate policies, none of them twice.
        Some([32]) => {
            let mut seen = Vec::new();
            let is_policy = |(tag, policy)| {
                let id = der::elements(policy).next().filter(|(tag, _)| *tag == der::OID);
                tag == der::SEQUENCE
                    && id.is_some_and(|(_, id)| {
                        let is_new = !seen.contains(&id);
                        seen.push(id);
                        is_new
                    })
            };
            outer(der::SEQUENCE) && items.all(is_policy)
        }
        // Authority key identifier.
        Some([35]) => outer(der::SEQUENCE) && items.all(|(tag, _)| matches!(tag, 0x80 | 0xa1 | 0x82)),
        // Extended key usage.
        Some([37]) => outer(der::SEQUENCE) && items.all(|(tag, _)| tag == der::OID),
        _ if id == AUTHORITY_INFO_ACCESS => {
            outer(der::SEQUENCE)
                && items.all(|(tag, access)| {
                    tag == der::SEQUENCE
                        && der::elements(access).next().is_some_and(|(tag, _)| tag == der::OID)
                })
        }
        _ => return true,
    };
    fits && der::is_strict(value)
}

/// A point is written in full, on a curve that is known. (Whether it is on the curve shows when something
/// is verified with it.)
fn check_key(key: &PublicKey, is_point: bool) -> Result<(), &'static str> {
    let length = match key.kind() {
        PublicKeyKind::EcP256 => 65,
        PublicKeyKind::EcP384 => 97,
        PublicKeyKind::EcP521 => 133,
        PublicKeyKind::Other if is_point => return Err("unsupported elliptic curve"),
        PublicKeyKind::Rsa(_) | PublicKeyKind::Ed25519 | PublicKeyKind::Other => return Ok(()),
    };
    match key.raw() {
        raw @ [4, ..] if raw.len() == length => Ok(()),
        _ => Err("point must be uncompressed"),
    }
}

/// Whether strict DER is what a name is made of: sets of attributes with values that are text.
fn is_name(sets: &[u8]) -> bool {
    let is_attribute = |(tag, attribute)| match der::exactly(attribute) {
        Some([(der::OID, _), (kind, text)]) => tag == der::SEQUENCE && is_text(kind, text),
        _ => false,
    };
    der::elements(sets).all(|(tag, set)| tag == der::SET && der::elements(set).all(is_attribute))
}

fn is_text(tag: u8, text: &[u8]) -> bool {
    match tag {
        der::UTF8_STRING => std::str::from_utf8(text).is_ok(),
        // The asterisk and the ampersand are not of it, and in use.
        der::PRINTABLE_STRING => {
            text.iter().all(|byte| byte.is_ascii_alphanumeric() || b" '()+,-./:=?*&".contains(byte))
        }
        // NumericString, TeletexString, IA5String, BMPString.
        0x12 => text.iter().all(|byte| byte.is_ascii_digit() || *byte == b' '),
        0x14 => true,
        0x16 => text.is_ascii(),
        0x1e => is_basic_text(text),
        _ => false,
    }
}

/// Whether text is in two bytes a character, without surrogates and what is no character.
fn is_basic_text(text: &[u8]) -> bool {
    let (points, rest) = text.as_chunks::<2>();
    let is_character = |point: &[u8; 2]| !matches!(u16::from_be_bytes(*point), 0xd800..=0xdfff | 0xfdd0..=0xfdef | 0xfffe | 0xffff);
    rest.is_empty() && points.iter().all(is_character)
}

/// Whether a name constraint can be applied to the names that it is for; those of kinds that are not
/// evaluated may be anything.
fn is_subtree((tag, subtree): (u8, &[u8])) -> bool {
    let Some((kind, base)) = der::elements(subtree).next() else { return false };
    let text = || std::str::from_utf8(base).ok().filter(|text| text.is_ascii());
    let is_domain = |text: &str| {
        let domain = text.strip_prefix('.').unwrap_or(text);
        text.is_empty() || names::is_domain(domain)
    };
    let fits = match kind {
        0x81 => text()
            .is_some_and(|text| if text.contains('@') { names::is_mailbox(text) } else { is_domain(text) }),
        0x82 => text().is_some_and(is_domain),
        0x86 => text().is_some_and(|text| text.parse::<std::net::IpAddr>().is_err() && is_domain(text)),
        0x87 => is_range(base),
        0xa1 | 0xa2 | 0xa6 | 0xa7 => false,
        _ => true,
    };
    tag == der::SEQUENCE && fits
}

/// Whether these are an address and the mask of a prefix.
fn is_range(range: &[u8]) -> bool {
    let (_, mask) = range.split_at(range.len() / 2);
    let ones = mask.iter().map(|byte| byte.leading_ones()).sum::<u32>();
    let set = mask.iter().map(|byte| byte.count_ones()).sum::<u32>();
    let is_prefix = mask.iter().skip_while(|byte| **byte == 0xff).skip(1).all(|byte| *byte == 0);
    matches!(range.len(), 8 | 32) && ones == set && is_prefix
}

/// Whether a name is of a kind that is passed over, or in the form of its kind.
fn is_alternative_name((tag, name): (u8, &[u8])) -> bool {
    match tag {
        // rfc822Name, dNSName, URI: of ASCII.
        0x81 | 0x82 | 0x86 => name.is_ascii(),
        // iPAddress.
        0x87 => matches!(name.len(), 4 | 16),
        // The same as a part of several, which no reader expects.
        0xa1 | 0xa2 | 0xa6 | 0xa7 => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text() {
        let name = |tag, value: &[u8]| {
            let attribute = der::cat(der::SEQUENCE, &[&der::oid(&[0x55, 4, 3]), &der::tlv(tag, value)]);
            der::tlv(der::SET, &attribute)
        };

        assert!(is_name(&name(der::UTF8_STRING, "\u{e9}".as_bytes())));
        assert!(is_name(&name(der::PRINTABLE_STRING, b"a *& b")));
        assert!(is_name(&[]));
        assert!(!is_name(&name(der::UTF8_STRING, &[0xff])));
        assert!(!is_name(&name(der::PRINTABLE_STRING, b"a_b")));
        assert!(is_name(&name(0x1e, &[0x20, 0xac])));
        assert!(!is_name(&name(0x1e, &[0xd8, 0x3d, 0xde, 0])));
        assert!(!is_name(&name(der::OCTET_STRING, b"a")));
        assert!(!is_name(&der::tlv(der::SEQUENCE, &[])));
    }

    #[test]
    fn extensions_hold_what_their_identifier_says() {
        let sequence = |items: &[&[u8]]| der::cat(der::SEQUENCE, items);
        let usage = der::oid(&[0x2b, 6, 1, 5, 5, 7, 3, 1]);

        assert!(is_extension(&[0x55, 0x1d, 37], &sequence(&[&usage])));
        assert!(!is_extension(&[0x55, 0x1d, 37], &sequence(&[&der::null()])));
        assert!(!is_extension(&[0x55, 0x1d, 30], &sequence(&[])));
        assert!(!is_extension(&[0x55, 0x1d, 30], &sequence(&[&der::explicit(0, &[])])));
        assert!(is_extension(&[0x55, 0x1d, 31], &sequence(&[&sequence(&[&der::implicit(1, &[0, 1])])])));
        assert!(!is_extension(&[0x55, 0x1d, 31], &sequence(&[&sequence(&[&der::explicit(0, &[])])])));
        let policy = sequence(&[&usage, &sequence(&[&der::tlv(0x1a, b"any")])]);
        assert!(is_extension(&[0x55, 0x1d, 32], &sequence(&[&policy])));
        assert!(!is_extension(&[0x55, 0x1d, 32], &sequence(&[&policy, &policy])));
        assert!(!is_extension(&[0x55, 0x1d, 32], &sequence(&[&sequence(&[])])));
        assert!(!is_extension(&[0x55, 0x1d, 15], &sequence(&[])));
        assert!(is_extension(&[0x55, 0x1d, 99], &[1, 2, 3]));
    }

    #[test]
    fn keys_have_the_form_of_their_kind() {
        let key = |parameters: &[u8], numbers: &[u8]| {
            let algorithm =
                der::cat(der::SEQUENCE, &[&der::oid(OID_PKCS1_RSAENCRYPTION.as_bytes()), parameters]);
            is_public_key(&der::cat(der::SEQUENCE, &[&algorithm, &der::bits(numbers)]))
        };
        let numbers = |modulus: &[u8]| der::cat(der::SEQUENCE, &[modulus, &der::unsigned(&[1, 0, 1])]);

        assert!(key(&der::null(), &numbers(&der::unsigned(&[0xff]))));
        assert!(!key(&[], &numbers(&der::unsigned(&[0xff]))));
        assert!(!key(&der::null(), &numbers(&der::tlv(der::INTEGER, &[0xff]))));
        assert!(!key(&der::null(), &numbers(&der::unsigned(&[]))));
        assert!(!key(&der::null(), &[&numbers(&der::unsigned(&[1]))[..], &[0]].concat()));
    }

    #[test]
    fn constraints_can_be_applied() {
        let admits = |kind, base: &[u8]| {
            let subtree = der::tlv(der::SEQUENCE, &der::tlv(kind, base));
            is_extension(&[0x55, 0x1d, 30], &der::tlv(der::SEQUENCE, &der::explicit(0, &subtree)))
        };

        for (kind, base) in
            [(0x82, "a.test"), (0x82, ".a.test"), (0x82, ""), (0x81, "a@b.test"), (0x81, ".b")]
        {
            assert!(admits(kind, base.as_bytes()), "{base}");
        }
        assert!(admits(0x86, b"example.org"));
        assert!(admits(0x87, &[10, 0, 0, 0, 255, 128, 0, 0]));
        assert!(admits(0xa4, &der::tlv(der::SEQUENCE, &[])));
        for (kind, base) in
            [(0x82, "a..b"), (0x82, "a."), (0x82, "a b"), (0x82, "\u{e9}"), (0x81, "@"), (0x81, "a@")]
        {
            assert!(!admits(kind, base.as_bytes()), "{base}");
        }
        let excluded = der::tlv(der::SEQUENCE, &der::tlv(0x82, b"a.test"));
        let behind_none = der::cat(der::SEQUENCE, &[&der::explicit(0, &[]), &der::explicit(1, &excluded)]);
        assert!(!is_extension(&[0x55, 0x1d, 30], &behind_none));
        assert!(!admits(0x86, b"1.2.3.4"));
        assert!(!admits(0x87, &[10, 0, 0, 0]));
        assert!(!admits(0x87, &[10, 0, 0, 0, 0, 255, 0, 0]));
        assert!(!admits(0x87, &[10, 0, 0, 0, 128, 128, 0, 0]));
    }

    #[test]
    fn alternative_names_have_the_form_of_their_kind() {
        assert!(is_alternative_name((0x82, b"a.test")));
        assert!(is_alternative_name((0x87, &[127, 0, 0, 1])));
        assert!(is_alternative_name((0xa0, b"")));
        assert!(!is_alternative_name((0x82, "\u{e9}".as_bytes())));
        assert!(!is_alternative_name((0x87, &[127, 0, 1])));
        assert!(!is_alternative_name((0xa6, b"spiffe://a.test/b")));
    }
}
