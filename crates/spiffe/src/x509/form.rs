//! The form of a certificate (X.690, 8 and 10; RFC 5280, 4.1 and 4.2), where it is stricter than the
//! parser is: what another reader would refuse, or read as something else, is no certificate here.

use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY;

use super::der;
use crate::key::{PublicKey, PublicKeyKind};

/// 2.5.29, under which most extensions have their identifiers.
const CE: [u8; 2] = [0x55, 0x1d];
/// 1.3.6.1.5.5.7.1.1: authority information access.
const AUTHORITY_INFO_ACCESS: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 1, 1];

/// Checks the form of `certificate`, which was read from `whole`.
///
/// # Errors
/// What is wrong.
pub(super) fn check(
    whole: &[u8],
    certificate: &X509Certificate<'_>,
    key: &PublicKey,
) -> Result<(), &'static str> {
    if !der::is_strict(whole) {
        return Err("not in DER");
    }
    if !has_frame(whole) {
        return Err("part of another type");
    }
    let tbs = &certificate.tbs_certificate;
    if tbs.raw_serial().first().is_some_and(|first| first & 0x80 != 0) {
        return Err("negative serial number");
    }
    if ![tbs.subject.as_raw(), tbs.issuer.as_raw()].into_iter().all(is_name) {
        return Err("name cannot be read");
    }
    check_key(key, tbs.subject_pki.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY)?;
    if tbs.extensions().iter().all(|extension| is_extension(extension.oid.as_bytes(), extension.value)) {
        Ok(())
    } else {
        Err("extension cannot be read")
    }
}

/// Whether the parts are of the types that they have to be: the parser takes a value of another type for
/// one that is expected here and there.
fn has_frame(whole: &[u8]) -> bool {
    let outer: Vec<_> = der::items(whole).collect();
    let [(der::SEQUENCE, tbs), (der::SEQUENCE, algorithm), (der::BIT_STRING, _)] = outer.as_slice() else {
        return false;
    };
    let mut parts = der::elements(tbs).peekable();
    let has_version = parts.next_if(|(tag, _)| *tag == 0xa0).is_none_or(|(_, version)| {
        let version: Vec<_> = der::elements(version).collect();
        matches!(version.as_slice(), [(der::INTEGER, _)])
    });
    let fixed: Vec<_> = parts.by_ref().take(6).collect();
    let [
        (der::INTEGER, _),
        (der::SEQUENCE, inner),
        (der::SEQUENCE, _),
        (der::SEQUENCE, _),
        (der::SEQUENCE, _),
        (der::SEQUENCE, key),
    ] = fixed.as_slice()
    else {
        return false;
    };
    let key: Vec<_> = der::elements(key).collect();
    let [(der::SEQUENCE, key), (der::BIT_STRING, _)] = key.as_slice() else { return false };
    let is_algorithm = |parts: &[u8]| der::elements(parts).next().is_some_and(|(tag, _)| tag == der::OID);
    // The algorithm inside the signed part must be the one outside (RFC 5280, 4.1.1.2).
    if !has_version || inner != algorithm || !is_algorithm(inner) || !is_algorithm(key) {
        return false;
    }
    // Unique identifiers, extensions.
    let mut rest = parts.skip_while(|(tag, _)| matches!(tag, 0x81 | 0x82));
    let Some((tag, extensions)) = rest.next() else { return true };
    let is_framed = |(tag, extension): (u8, &[u8])| {
        let tags: Vec<u8> = der::elements(extension).map(|(tag, _)| tag).collect();
        tag == der::SEQUENCE
            && matches!(
                tags.as_slice(),
                [der::OID, der::OCTET_STRING] | [der::OID, der::BOOLEAN, der::OCTET_STRING]
            )
    };
    tag == 0xa3
        && rest.next().is_none()
        && der::elements(extensions).all(|(tag, _)| tag == der::SEQUENCE)
        && der::items(extensions).all(is_framed)
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
        // Name constraints: admitted and excluded ones, of which there is at least one kind.
        Some([30]) => {
            outer(der::SEQUENCE)
                && items.next().is_some_and(|(tag, _)| matches!(tag, 0xa0 | 0xa1))
                && items.all(|(tag, _)| tag == 0xa1)
        }
        // CRL distribution points, authority key identifier.
        Some([31]) => outer(der::SEQUENCE) && items.all(|(tag, _)| tag == der::SEQUENCE),
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

/// Whether strict DER is a name: sets of attributes with values that are text.
fn is_name(name: &[u8]) -> bool {
    // The parser cuts a name where it does not understand it.
    der::is_strict(name)
        && name.first() == Some(&der::SEQUENCE)
        && der::items(name).all(|(tag, set)| {
            let mut attributes = der::elements(set);
            tag == der::SET
                && attributes.all(|(tag, attribute)| {
                    let mut parts = der::elements(attribute);
                    let (oid, value) = (parts.next(), parts.next());
                    let is_all = parts.next().is_none();
                    tag == der::SEQUENCE
                        && is_all
                        && oid.is_some_and(|(tag, _)| tag == der::OID)
                        && value.is_some_and(|(tag, text)| is_text(tag, text))
                })
        })
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
        0x1e => text.len().is_multiple_of(2),
        _ => false,
    }
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
            der::tlv(der::SEQUENCE, &der::tlv(der::SET, &attribute))
        };

        assert!(is_name(&name(der::UTF8_STRING, "\u{e9}".as_bytes())));
        assert!(is_name(&name(der::PRINTABLE_STRING, b"a *& b")));
        assert!(is_name(&der::tlv(der::SEQUENCE, &[])));
        assert!(!is_name(&name(der::UTF8_STRING, &[0xff])));
        assert!(!is_name(&name(der::PRINTABLE_STRING, b"a_b")));
        assert!(!is_name(&name(der::OCTET_STRING, b"a")));
        assert!(!is_name(&der::tlv(der::SEQUENCE, &der::tlv(der::SEQUENCE, &[]))));
    }

    #[test]
    fn extensions_hold_what_their_identifier_says() {
        let sequence = |items: &[&[u8]]| der::cat(der::SEQUENCE, items);
        let usage = der::oid(&[0x2b, 6, 1, 5, 5, 7, 3, 1]);

        assert!(is_extension(&[0x55, 0x1d, 37], &sequence(&[&usage])));
        assert!(!is_extension(&[0x55, 0x1d, 37], &sequence(&[&der::null()])));
        assert!(!is_extension(&[0x55, 0x1d, 30], &sequence(&[])));
        assert!(!is_extension(&[0x55, 0x1d, 15], &sequence(&[])));
        assert!(is_extension(&[0x55, 0x1d, 99], &[1, 2, 3]));
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
