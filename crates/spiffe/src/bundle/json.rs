//! The SPIFFE bundle format (SPIFFE Trust Domain and Bundle, section 4) and plain JWK sets.
//!
//! An element with an unknown or missing `use` is ignored (4.2.2); one that is meant for us and cannot
//! be used fails the document, as it does in SPIRE: half a bundle would silently distrust the rest. What
//! operators hand in must be readable in whole, as in SPIRE; what endpoints serve may hold elements of
//! kinds that are still to come (4.2.1), see [`Bundle::from_endpoint`].

use serde_json::{Map, Value};

use super::{Bundle, JwtAuthority, JwtAuthorityError, X509Authority};
use crate::jwk::Jwk;
use crate::key::PublicKey;
use crate::x509::Certificate;
use crate::{TrustDomain, UnixSecs};

/// The longest document that is read.
const MAX_DOCUMENT: usize = 16 * 1024 * 1024;
/// The most keys of a document that are read.
const MAX_KEYS: usize = 10_000;
/// The longest refresh hint, in seconds, that is taken from clients and documents: ten years.
pub const MAX_HINT: i64 = 315_360_000;

/// Why a document is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleJsonError {
    /// It is not JSON of the right form.
    #[error("unable to parse JWKS: {0}")]
    Malformed(String),
    /// It has no `keys`.
    #[error("no authorities found")]
    NoKeys,
    /// An X.509 authority has no or several certificates.
    #[error("expected a single certificate in x509-svid entry {index}; got {count}")]
    NotOneCertificate {
        /// Its place in the document.
        index: usize,
        /// How many it has.
        count: usize,
    },
    /// An X.509 authority could anchor nothing.
    #[error("error adding X.509 authority {index}: {why}")]
    BadX509Authority {
        /// Its place among those of its kind.
        index: usize,
        /// What is wrong.
        why: String,
    },
    /// A JWT authority cannot be used.
    #[error("error adding authority {index} of JWKS: {why}")]
    BadJwtAuthority {
        /// Its place in the document.
        index: usize,
        /// What is wrong.
        why: String,
    },
    /// A WIT authority cannot be used.
    #[error("error adding WIT authority {index} of JWKS: {why}")]
    BadWitAuthority {
        /// Its place in the document.
        index: usize,
        /// What is wrong.
        why: String,
    },
}

impl Bundle {
    /// Reads a bundle of `trust_domain` in SPIFFE format.
    ///
    /// # Errors
    /// Any of [`BundleJsonError`].
    pub fn from_spiffe_json(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleJsonError> {
        Self::read(trust_domain, document, Source::Operator)
    }

    /// Reads what a bundle endpoint serves for `trust_domain`: elements of an unknown kind or use are
    /// passed over unread, the others are judged as authorities that clients hand in.
    ///
    /// # Errors
    /// Any of [`BundleJsonError`].
    pub fn from_endpoint(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleJsonError> {
        let bundle = Self::read(trust_domain, document, Source::Endpoint)?;
        for (index, authority) in bundle.x509_authorities.iter().enumerate() {
            X509Authority::parse(&authority.der)
                .map_err(|why| BundleJsonError::BadX509Authority { index, why: why.to_string() })?;
        }
        Ok(bundle)
    }

    /// Reads the elements that count.
    fn read(trust_domain: TrustDomain, document: &[u8], source: Source) -> Result<Self, BundleJsonError> {
        let members = members(document)?;
        let malformed = |why: &str| BundleJsonError::Malformed(why.to_owned());
        let mut bundle = Self::empty(trust_domain);
        for value in each(&members, "spiffe_sequence") {
            bundle.sequence_number = if value.is_null() {
                0
            } else {
                value.as_u64().ok_or_else(|| malformed("spiffe_sequence is no integer"))?
            };
        }
        for value in each(&members, "spiffe_refresh_hint") {
            bundle.refresh_hint = if value.is_null() {
                0
            } else {
                let hint = value.as_i64().filter(|hint| (0..=MAX_HINT).contains(hint));
                hint.ok_or_else(|| malformed("spiffe_refresh_hint is no number of seconds"))?
            };
        }
        let counts = match source {
            Source::Operator => |_: &Value| true,
            Source::Endpoint => is_for_us,
        };
        for (index, jwk) in jwks(&members, counts)?.iter().enumerate() {
            bundle.take(index, jwk, source)?;
        }
        Ok(bundle)
    }

    /// Reads a plain JWK set as the Workload API hands it to workloads (6.2.2): every key is a JWT
    /// authority, whatever its `use`.
    ///
    /// # Errors
    /// Any of [`BundleJsonError`].
    pub fn from_jwt_jwks(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleJsonError> {
        let mut bundle = Self::empty(trust_domain);
        for (index, jwk) in jwks(&members(document)?, |_: &Value| true)?.iter().enumerate() {
            let authority =
                key_authority(jwk).map_err(|why| BundleJsonError::BadJwtAuthority { index, why })?;
            bundle.jwt_authorities.push(authority);
        }
        Ok(bundle)
    }

    fn take(&mut self, index: usize, jwk: &Jwk, source: Source) -> Result<(), BundleJsonError> {
        match jwk.usage.as_str() {
            "x509-svid" => match jwk.certificates.as_slice() {
                [certificate] => {
                    let der = certificate.to_shared();
                    if self.x509_authorities.iter().all(|known| known.der != der) {
                        self.x509_authorities.push(X509Authority { der, tainted: false });
                    }
                }
                several => {
                    return Err(BundleJsonError::NotOneCertificate { index, count: several.len() });
                }
            },
            "jwt-svid" => {
                key_authority(jwk)
                    .and_then(|authority| add(&mut self.jwt_authorities, authority, source))
                    .map_err(|why| BundleJsonError::BadJwtAuthority { index, why })?;
            }
            "wit-svid" => {
                key_authority(jwk)
                    .and_then(|authority| add(&mut self.wit_authorities, authority, source))
                    .map_err(|why| BundleJsonError::BadWitAuthority { index, why })?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The bundle in SPIFFE format, indented by four blanks as SPIRE prints it, without a final newline.
    /// Keys of kinds that have no JWK are left out.
    #[must_use]
    pub fn to_spiffe_json(&self) -> String {
        let x509 = self.x509_authorities.iter().filter_map(|authority| {
            let certificate = Certificate::parse(&authority.der).ok()?;
            Jwk::write("x509-svid", "", certificate.public_key(), Some(&authority.der)).ok()
        });
        let jwt = written("jwt-svid", &self.jwt_authorities);
        let wit = written("wit-svid", &self.wit_authorities);
        let keys = x509.chain(jwt).chain(wit).collect::<Vec<_>>();
        document(&keys, self.sequence_number, self.refresh_hint)
    }

    /// The JWT authorities as a plain JWK set without `use`, as workloads get them (Workload API, 6.2.2).
    #[must_use]
    pub fn to_jwt_jwks(&self) -> String {
        document(&written("", &self.jwt_authorities).collect::<Vec<_>>(), 0, 0)
    }
}

/// Where a document comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Somebody hands it in.
    Operator,
    /// It is fetched.
    Endpoint,
}

/// Adds a key. An operator's second key of an id takes the place of the first, as in SPIRE; an endpoint
/// that serves two cannot mean both.
fn add(authorities: &mut Vec<JwtAuthority>, authority: JwtAuthority, source: Source) -> Result<(), String> {
    let other =
        |known: &JwtAuthority| known.key_id == authority.key_id && known.public_key != authority.public_key;
    if source == Source::Endpoint && authorities.iter().any(other) {
        return Err(JwtAuthorityError::Ambiguous(authority.key_id).to_string());
    }
    authorities.retain(|known| known.key_id != authority.key_id);
    authorities.push(authority);
    Ok(())
}

fn written<'a>(
    usage: &'a str,
    authorities: &'a [JwtAuthority],
) -> impl Iterator<Item = Map<String, Value>> + 'a {
    authorities.iter().filter_map(move |authority| {
        let key = PublicKey::from_spki(&authority.public_key).ok()?;
        Jwk::write(usage, &authority.key_id, &key, None).ok()
    })
}

fn key_authority(jwk: &Jwk) -> Result<JwtAuthority, String> {
    if jwk.key_id.is_empty() {
        return Err("keyID cannot be empty".to_owned());
    }
    Ok(JwtAuthority {
        key_id: jwk.key_id.clone(),
        public_key: jwk.key.spki().into(),
        expires_at: UnixSecs(0),
        tainted: false,
    })
}

/// The members of a document that is not too long, in their order; none of its keys repeats any.
fn members(document: &[u8]) -> Result<Vec<(String, Value)>, BundleJsonError> {
    let malformed = |why: &dyn std::fmt::Display| BundleJsonError::Malformed(why.to_string());
    if document.len() > MAX_DOCUMENT {
        return Err(malformed(&"document is too long"));
    }
    check_duplicate_keys(document)?;
    let members: Members = serde_json::from_slice(document).map_err(|error| malformed(&error))?;
    Ok(members.0)
}

/// The members of an object in their order, also those that stand there twice.
struct Members(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> serde::de::Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// Whether an element is of a use and of a kind that are known here.
fn is_for_us(element: &Value) -> bool {
    let is_one_of = |name: &str, known: &[&str]| match element.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => known.contains(&text.as_str()),
        // Neither is a name: that is for the reader to refuse.
        Some(_) => true,
    };
    !element.is_object()
        || (is_one_of("use", &["x509-svid", "jwt-svid", "wit-svid"]) && is_one_of("kty", &["EC", "RSA"]))
}

/// The keys of a document that count.
fn jwks(members: &[(String, Value)], counts: fn(&Value) -> bool) -> Result<Vec<Jwk>, BundleJsonError> {
    let malformed = |why: &dyn std::fmt::Display| BundleJsonError::Malformed(why.to_string());
    let mut found = Err(BundleJsonError::NoKeys);
    for value in each(members, "keys") {
        found = if value.is_null() {
            Err(BundleJsonError::NoKeys)
        } else {
            let keys = value.as_array().filter(|keys| keys.len() <= MAX_KEYS);
            let keys = keys.ok_or_else(|| malformed(&"keys is no array"))?;
            let read = keys.iter().filter(|key| counts(key)).map(Jwk::read);
            Ok(read.collect::<Result<_, _>>().map_err(|why| malformed(&why))?)
        };
    }
    found
}

/// The values of a member, whose name may be in any letter case: each is read, and the last one counts, as
/// with SPIRE's reader.
fn each<'a>(members: &'a [(String, Value)], name: &str) -> impl Iterator<Item = &'a Value> {
    members.iter().filter(move |(key, _)| is_named(key, name)).map(|(_, value)| value)
}

/// Whether a member is meant: case does not matter to SPIRE's reader, in whose eyes the long s and the
/// Kelvin sign too are letters of another case.
fn is_named(key: &str, name: &str) -> bool {
    let folded = |letter| match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        _ => letter.to_ascii_lowercase(),
    };
    key.chars().map(folded).eq(name.chars())
}

/// Members each once: a second one would be read by some and overlooked by others.
struct Once;

impl<'de> serde::Deserialize<'de> for Once {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> serde::de::Visitor<'de> for Members {
            type Value = Once;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Once, A::Error> {
                let mut seen = std::collections::BTreeSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    map.next_value::<serde::de::IgnoredAny>()?;
                    if let Some(twice) = seen.replace(key) {
                        return Err(serde::de::Error::custom(format_args!("duplicate member {twice:?}")));
                    }
                }
                Ok(Once)
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Refuses keys with duplicate members: a plain map sees only the last of them.
fn check_duplicate_keys(document: &[u8]) -> Result<(), BundleJsonError> {
    struct TopLevel;
    impl<'de> serde::de::Visitor<'de> for TopLevel {
        type Value = ();

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key::<String>()? {
                if is_named(&key, "keys") {
                    map.next_value::<Option<Vec<Once>>>()?;
                } else {
                    map.next_value::<serde::de::IgnoredAny>()?;
                }
            }
            Ok(())
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(document);
    serde::de::Deserializer::deserialize_map(&mut reader, TopLevel)
        .map_err(|error| BundleJsonError::Malformed(error.to_string()))
}

/// Writes the document by hand: the order of members is part of the form.
fn document(keys: &[Map<String, Value>], sequence: u64, hint: i64) -> String {
    let mut text = String::from("{\n    \"keys\": [");
    for (index, key) in keys.iter().enumerate() {
        text.push_str(if index == 0 { "\n" } else { ",\n" });
        text.push_str("        {");
        let known = ["use", "kty", "kid", "crv", "x", "y", "n", "e", "x5c"];
        let mut first = true;
        for name in known {
            let Some(value) = key.get(name) else { continue };
            text.push_str(if first { "\n" } else { ",\n" });
            first = false;
            let value = value.as_array().map_or_else(
                || value.to_string(),
                |items| {
                    let items: Vec<String> =
                        items.iter().map(|item| format!("                {item}")).collect();
                    format!("[\n{}\n            ]", items.join(",\n"))
                },
            );
            text.push_str(&format!("            \"{name}\": {value}"));
        }
        text.push_str("\n        }");
    }
    text.push_str(if keys.is_empty() { "]" } else { "\n    ]" });
    if sequence != 0 {
        text.push_str(&format!(",\n    \"spiffe_sequence\": {sequence}"));
    }
    if hint != 0 {
        text.push_str(&format!(",\n    \"spiffe_refresh_hint\": {hint}"));
    }
    text.push_str("\n}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_members_that_repeat_each_is_read_and_the_last_counts() {
        let read = |text: &str| {
            let trust_domain = TrustDomain::parse("example.org").unwrap();
            Bundle::from_spiffe_json(trust_domain, text.as_bytes())
        };

        let bundle = read(r#"{"spiffe_sequence":1,"keys":null,"Keys":[],"SPIFFE_SEQUENCE":9}"#).unwrap();

        assert_eq!(bundle.sequence_number, 9);
        assert_eq!(read(r#"{"keys":[],"keys":null}"#), Err(BundleJsonError::NoKeys));
        assert!(read(r#"{"keys":[{"kty":""}],"keys":[]}"#).is_err());
        assert_eq!(read("{\"keyſ\":[],\"\u{212a}eys\":null}"), Err(BundleJsonError::NoKeys));
        assert!(read(r#"{"keys":[],"\u017fpiffe_sequence":"7"}"#).is_err());
        assert!(read(r#"{"keys":[],"spiffe_sequence":{},"spiffe_sequence":7}"#).is_err());
    }

    #[test]
    fn keys_without_id_are_refused_by_their_kind() {
        let key = crate::key::PrivateKey::generate(crate::key::KeyKind::EcP256).unwrap();
        let said = |usage: &str| {
            let jwk = Value::Object(Jwk::write(usage, "", key.public(), None).unwrap());
            let document = format!("{{\"keys\":[{jwk}]}}");
            let trust_domain = TrustDomain::parse("example.org").unwrap();
            Bundle::from_spiffe_json(trust_domain, document.as_bytes()).unwrap_err().to_string()
        };

        assert_eq!(said("jwt-svid"), "error adding authority 0 of JWKS: keyID cannot be empty");
        assert_eq!(said("wit-svid"), "error adding WIT authority 0 of JWKS: keyID cannot be empty");
    }

    #[test]
    fn what_is_still_to_come_is_passed_over_in_what_endpoints_serve() {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let read = |element: &str| {
            let document = format!("{{\"keys\":[{element}],\"spiffe_refresh_hint\":60,\"more\":{{}}}}");
            Bundle::from_endpoint(trust_domain.clone(), document.as_bytes())
        };
        let nothing = Ok(Bundle { refresh_hint: 60, ..Bundle::empty(trust_domain.clone()) });

        for unknown in [
            r#"{"use":"x509-svid","kty":"OKP"}"#,
            r#"{"use":"x509-svid"}"#,
            r#"{"use":"X509-SVID","kty":"EC"}"#,
            r#"{"kty":"EC"}"#,
            r#"{"use":"later","kty":"EC","x":7}"#,
        ] {
            assert_eq!(read(unknown), nothing, "{unknown}");
        }
        for broken in [
            r#"{"use":"x509-svid","kty":"EC"}"#,
            r#"{"use":7,"kty":"EC"}"#,
            r#"{"use":"jwt-svid","kty":[]}"#,
            "7",
        ] {
            assert!(matches!(read(broken), Err(BundleJsonError::Malformed(_))), "{broken}");
        }
    }

    #[test]
    fn what_workloads_get_reads_back() {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let key = crate::key::PrivateKey::generate(crate::key::KeyKind::EcP256).unwrap();
        let mut bundle = Bundle::empty(trust_domain.clone());
        bundle.jwt_authorities.push(JwtAuthority {
            key_id: "one".into(),
            public_key: key.public().spki().into(),
            expires_at: UnixSecs(0),
            tainted: false,
        });

        let read = Bundle::from_jwt_jwks(trust_domain.clone(), bundle.to_jwt_jwks().as_bytes());

        assert_eq!(read, Ok(bundle));
        assert_eq!(Bundle::from_jwt_jwks(trust_domain, b"{}"), Err(BundleJsonError::NoKeys));
    }
}
