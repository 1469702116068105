//! Private keys of files, in the forms that SPIRE's programs read: PKCS#8 (RFC 5958), PKCS#1 (RFC 8017)
//! and SEC 1 (RFC 5915).
//!
//! Keys are taken apart here and put together anew, so that what is believed of them is what Go's library
//! believes: where PKCS#8 names a curve, that one counts and what the key itself says of it is passed over;
//! a public half is made anew; a curve that is written out in numbers is none.

use zeroize::Zeroizing;

use super::pkcs8::{EC, ED25519, P256, P384, P521, RSA};
use super::{KeyError, PrivateKey};
use crate::x509::{der, pem};

/// A form of private keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyForm {
    /// Any key, with the name of its algorithm before it.
    Pkcs8,
    /// An RSA key by itself.
    Pkcs1,
    /// An EC key by itself.
    Sec1,
}

/// Why bytes are no private key of the form that is wanted. The words are those of Go's library.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// They are a key of another form.
    #[error("x509: failed to parse private key (use {} instead for this key format)", .0.reader())]
    Other(KeyForm),
    /// They are no key.
    #[error("malformed key")]
    Malformed,
    /// More stands behind an RSA key.
    #[error("asn1: syntax error: trailing data")]
    Trailing,
    /// The curve is not named, or by a name that is not known.
    #[error("x509: unknown elliptic curve")]
    Curve,
    /// The key is of a version that is not known.
    #[error("x509: unknown EC private key version {0}")]
    Version(u8),
    /// The number is longer than the curve allows.
    #[error("x509: invalid private key length")]
    Length,
    /// What stands in PKCS#8 is wrong.
    #[error("x509: failed to parse {0} private key embedded in PKCS#8: {1}")]
    Embedded(&'static str, Box<Self>),
    /// It is a key, but none that is used here.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl KeyForm {
    /// The form of keys in PEM blocks of a label.
    #[must_use]
    pub fn of_label(label: &str) -> Option<Self> {
        match label {
            "PRIVATE KEY" => Some(Self::Pkcs8),
            "RSA PRIVATE KEY" => Some(Self::Pkcs1),
            "EC PRIVATE KEY" => Some(Self::Sec1),
            _ => None,
        }
    }

    const fn reader(self) -> &'static str {
        match self {
            Self::Pkcs8 => "ParsePKCS8PrivateKey",
            Self::Pkcs1 => "ParsePKCS1PrivateKey",
            Self::Sec1 => "ParseECPrivateKey",
        }
    }

    /// The form that bytes have, as far as their outermost parts tell.
    fn of(key: &[u8]) -> Option<Self> {
        let parts: Vec<_> = der::items(key).take(9).map(|(tag, _)| tag).collect();
        match parts.as_slice() {
            [der::INTEGER, der::SEQUENCE, der::OCTET_STRING, ..] => Some(Self::Pkcs8),
            [der::INTEGER, der::OCTET_STRING, ..] => Some(Self::Sec1),
            [der::INTEGER, rest @ ..]
                if rest.len() >= 5 && rest.iter().take(5).all(|tag| *tag == der::INTEGER) =>
            {
                Some(Self::Pkcs1)
            }
            _ => None,
        }
    }
}

impl PrivateKey {
    /// Reads a private key in DER, of this form and no other.
    ///
    /// # Errors
    /// [`FormError`].
    pub fn from_form(form: KeyForm, key: &[u8]) -> Result<Self, FormError> {
        Ok(Self::from_der(&rewritten(form, key)?)?)
    }

    /// Reads a private key in DER, of whatever form it is.
    ///
    /// # Errors
    /// [`FormError`].
    pub fn from_any_form(key: &[u8]) -> Result<Self, FormError> {
        Ok(Self::from_der(&in_pkcs8(key)?)?)
    }
}

/// The private key of a PEM file for TLS as PKCS#8: that of the first block whose label says that it is a
/// private key, in whatever form it is. `None` if there is no such block.
#[must_use]
pub fn private_key_of_pem(text: &[u8]) -> Option<Result<Zeroizing<Vec<u8>>, FormError>> {
    let is_key = |label: &str| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY");
    let block = pem(text).into_iter().find(|block| is_key(&block.label))?;
    Some(in_pkcs8(&block.contents))
}

fn in_pkcs8(key: &[u8]) -> Result<Zeroizing<Vec<u8>>, FormError> {
    rewritten(KeyForm::of(key).ok_or(FormError::Malformed)?, key)
}

/// The key as PKCS#8, with nothing in it that does not count.
fn rewritten(form: KeyForm, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, FormError> {
    let found = KeyForm::of(key).ok_or(FormError::Malformed)?;
    if form == KeyForm::Pkcs1 && has_more(key) {
        return Err(FormError::Trailing);
    }
    if found != form {
        return Err(FormError::Other(found));
    }
    match form {
        KeyForm::Sec1 => ec(None, key),
        KeyForm::Pkcs1 => rsa(key),
        KeyForm::Pkcs8 => {
            let mut parts = der::items(key).skip(1).map(|(_, contents)| contents);
            let (Some(algorithm), Some(inner)) = (parts.next(), parts.next()) else {
                return Err(FormError::Malformed);
            };
            let mut algorithm = der::elements(algorithm);
            let within = |kind| move |error| FormError::Embedded(kind, Box::new(error));
            match algorithm.next() {
                Some((der::OID, RSA)) => rewritten(KeyForm::Pkcs1, inner).map_err(within("RSA")),
                Some((der::OID, EC)) => {
                    let named = algorithm.next().filter(|(tag, _)| *tag == der::OID).map(|(_, name)| name);
                    if let Some(other) = KeyForm::of(inner).filter(|form| *form != KeyForm::Sec1) {
                        return Err(within("EC")(FormError::Other(other)));
                    }
                    ec(named, inner).map_err(within("EC"))
                }
                Some((der::OID, ED25519)) => Ok(wrapped(&[&der::oid(ED25519)], inner)),
                Some((der::OID, _)) => Err(KeyError::Unsupported.into()),
                _ => Err(FormError::Malformed),
            }
        }
    }
}

/// Whether bytes stand behind the first element.
fn has_more(der: &[u8]) -> bool {
    let contents = der::elements(der).next().map_or(0, |(_, contents)| contents.len());
    let long = der.get(1).filter(|first| **first > 0x7f).map_or(0, |first| usize::from(first & 0x7f));
    der.len() > 2 + long + contents
}

fn rsa(key: &[u8]) -> Result<Zeroizing<Vec<u8>>, FormError> {
    let (_, contents) = der::elements(key).next().ok_or(FormError::Malformed)?;
    Ok(wrapped(&[&der::oid(RSA), &der::null()], &Zeroizing::new(der::tlv(der::SEQUENCE, contents))))
}

fn ec(named: Option<&[u8]>, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, FormError> {
    let mut parts = der::items(key);
    let (Some((der::INTEGER, version)), Some((der::OCTET_STRING, number))) = (parts.next(), parts.next())
    else {
        return Err(FormError::Malformed);
    };
    let own = match parts.next() {
        Some((0xa0, parameters)) => match der::elements(parameters).next() {
            Some((der::OID, name)) => Some(name),
            _ => return Err(FormError::Malformed),
        },
        _ => None,
    };
    match version {
        [1] => {}
        [other] => return Err(FormError::Version(*other)),
        _ => return Err(FormError::Malformed),
    }
    let curve = named.or(own).ok_or(FormError::Curve)?;
    let size = match curve {
        P256 => 32,
        P384 => 48,
        P521 => 66,
        super::pkcs8::P224 => return Err(KeyError::Unsupported.into()),
        _ => return Err(FormError::Curve),
    };
    // Some write the number with too many zeros, some without any.
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let number = number.get(zeros..).unwrap_or_default();
    let missing = size_left(size, number.len())?;
    let mut padded = Zeroizing::new(vec![0; missing]);
    padded.extend_from_slice(number);
    let inner = Zeroizing::new(der::cat(der::SEQUENCE, &[&der::unsigned(&[1]), &der::octets(&padded)]));
    Ok(wrapped(&[&der::oid(EC), &der::oid(curve)], &inner))
}

fn size_left(size: usize, taken: usize) -> Result<usize, FormError> {
    size.checked_sub(taken).ok_or(FormError::Length)
}

fn wrapped(algorithm: &[&[u8]], key: &[u8]) -> Zeroizing<Vec<u8>> {
    let algorithm = der::cat(der::SEQUENCE, algorithm);
    let key = Zeroizing::new(der::octets(key));
    Zeroizing::new(der::cat(der::SEQUENCE, &[&der::unsigned(&[]), &algorithm, &key]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyKind;

    /// A key in all forms that it has, PKCS#8 first.
    fn forms(kind: KeyKind) -> (PrivateKey, Vec<u8>, Vec<u8>) {
        let key = PrivateKey::generate(kind).unwrap();
        let whole = key.to_pkcs8().unwrap().to_vec();
        let (tag, inner) = der::items(&whole).nth(2).unwrap();
        assert_eq!(tag, der::OCTET_STRING);
        let inner = inner.to_vec();
        (key, whole, inner)
    }

    fn number(sec1: &[u8]) -> Vec<u8> {
        der::items(sec1).nth(1).unwrap().1.to_vec()
    }

    fn sec1(version: u8, number: &[u8], rest: &[&[u8]]) -> Vec<u8> {
        let begin = [der::unsigned(&[version]), der::octets(number)];
        let parts: Vec<&[u8]> = begin.iter().map(Vec::as_slice).chain(rest.iter().copied()).collect();
        der::cat(der::SEQUENCE, &parts)
    }

    #[test]
    fn each_form_is_read_and_others_are_told_by_name() {
        let (rsa, rsa_pkcs8, pkcs1) = forms(KeyKind::Rsa2048);
        let (ec, ec_pkcs8, inner) = forms(KeyKind::EcP256);
        let own = sec1(1, &number(&inner), &[&der::explicit(0, &der::oid(P256))]);
        let read = |form, key: &[u8]| PrivateKey::from_form(form, key);

        assert_eq!(read(KeyForm::Pkcs8, &rsa_pkcs8).unwrap().public(), rsa.public());
        assert_eq!(read(KeyForm::Pkcs1, &pkcs1).unwrap().public(), rsa.public());
        assert_eq!(read(KeyForm::Pkcs8, &ec_pkcs8).unwrap().public(), ec.public());
        assert_eq!(read(KeyForm::Sec1, &own).unwrap().public(), ec.public());
        for (form, key, found) in [
            (KeyForm::Pkcs1, &rsa_pkcs8, KeyForm::Pkcs8),
            (KeyForm::Sec1, &pkcs1, KeyForm::Pkcs1),
            (KeyForm::Pkcs8, &own, KeyForm::Sec1),
        ] {
            assert_eq!(read(form, key).err(), Some(FormError::Other(found)));
        }
        for key in [&rsa_pkcs8, &pkcs1] {
            assert_eq!(PrivateKey::from_any_form(key).unwrap().public(), rsa.public());
        }
        for key in [&ec_pkcs8, &own] {
            assert_eq!(PrivateKey::from_any_form(key).unwrap().public(), ec.public());
        }
        assert_eq!(
            FormError::Other(KeyForm::Sec1).to_string(),
            "x509: failed to parse private key (use ParseECPrivateKey instead for this key format)"
        );
    }

    #[test]
    fn of_two_curves_that_of_pkcs8_counts() {
        let (key, _, inner) = forms(KeyKind::EcP256);
        let number = number(&inner);
        let written_out = der::cat(der::SEQUENCE, &[]);
        let under = |parameters: &[u8], key: &[u8]| {
            let whole = wrapped(&[&der::oid(EC), parameters], key);
            PrivateKey::from_form(KeyForm::Pkcs8, &whole).map(|key| key.public().clone())
        };
        let unknown = Err(FormError::Embedded("EC", Box::new(FormError::Curve)));

        let named = sec1(1, &number, &[&der::explicit(0, &der::oid(P384))]);
        assert_eq!(under(&der::oid(P256), &named).as_ref(), Ok(key.public()));
        let bare = sec1(1, &number, &[]);
        assert_eq!(under(&der::oid(P256), &bare).as_ref(), Ok(key.public()));
        assert_eq!(under(&written_out, &bare), unknown);
        let own = sec1(1, &number, &[&der::explicit(0, &der::oid(P256))]);
        assert_eq!(under(&written_out, &own).as_ref(), Ok(key.public()));
    }

    #[test]
    fn what_is_wrong_with_a_key_is_told() {
        let (key, _, inner) = forms(KeyKind::EcP256);
        let number = number(&inner);
        let curve = der::explicit(0, &der::oid(P256));
        let read = |key: &[u8]| PrivateKey::from_form(KeyForm::Sec1, key).map(|key| key.public().clone());

        let long = [&[0, 0][..], &number].concat();
        assert_eq!(read(&sec1(1, &long, &[&curve])).as_ref(), Ok(key.public()));
        assert_eq!(read(&sec1(1, &[&number[..], &[0]].concat(), &[&curve])), Err(FormError::Length));
        assert_eq!(read(&sec1(2, &number, &[&curve])), Err(FormError::Version(2)));
        assert_eq!(read(&sec1(1, &number, &[])), Err(FormError::Curve));
        let (_, _, pkcs1) = forms(KeyKind::Rsa2048);
        for more in [&[0][..], &[5, 0]] {
            let longer = [&pkcs1[..], more].concat();
            assert_eq!(PrivateKey::from_form(KeyForm::Pkcs1, &longer).err(), Some(FormError::Trailing));
        }
        for no_key in [&b""[..], b"no key", &[0x30, 0], &inner[..20]] {
            assert_eq!(PrivateKey::from_any_form(no_key).err(), Some(FormError::Malformed));
        }
    }
}
