//! Distinguished names, kept as the DER they came in so that an issuer's name survives to the byte.

use std::fmt;
use std::sync::Arc;

use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use super::der;

/// A distinguished name in DER. Cheap to clone; equal only if equal to the byte.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Arc<[u8]>);

/// The attributes that subjects are made of here (RFC 4519; X.520).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// `C`
    Country,
    /// `O`
    Organization,
    /// `OU`
    OrganizationalUnit,
    /// `L`
    Locality,
    /// `ST`
    Province,
    /// `STREET`
    StreetAddress,
    /// `POSTALCODE`
    PostalCode,
    /// `CN`
    CommonName,
    /// `serialNumber`
    SerialNumber,
    /// `x500UniqueIdentifier`
    UniqueIdentifier,
}

impl Attribute {
    const fn oid(self) -> &'static [u8] {
        match self {
            Self::Country => &[0x55, 4, 6],
            Self::Organization => &[0x55, 4, 10],
            Self::OrganizationalUnit => &[0x55, 4, 11],
            Self::Locality => &[0x55, 4, 7],
            Self::Province => &[0x55, 4, 8],
            Self::StreetAddress => &[0x55, 4, 9],
            Self::PostalCode => &[0x55, 4, 17],
            Self::CommonName => &[0x55, 4, 3],
            Self::SerialNumber => &[0x55, 4, 5],
            Self::UniqueIdentifier => &[0x55, 4, 45],
        }
    }
}

impl Name {
    /// A name of the given attributes in order; values of one attribute side by side share a set, as
    /// Go writes them.
    #[must_use]
    pub fn new(attributes: &[(Attribute, &str)]) -> Self {
        let mut sets = Vec::new();
        for group in attributes.chunk_by(|(a, _), (b, _)| a == b) {
            let mut values: Vec<Vec<u8>> = group
                .iter()
                .map(|(attribute, value)| {
                    der::cat(der::SEQUENCE, &[&der::oid(attribute.oid()), &der::string(value)])
                })
                .collect();
            // DER: the elements of a set are in the order of their encodings.
            values.sort();
            sets.extend(der::tlv(der::SET, &values.concat()));
        }
        Self(der::tlv(der::SEQUENCE, &sets).into())
    }

    /// The name of this DER, taken from a certificate that was parsed.
    #[must_use]
    pub fn from_der(der: &[u8]) -> Self {
        Self(der.into())
    }

    /// This name with `attribute` as its last, in place of all values that it had of it.
    #[must_use]
    pub fn with(&self, attribute: Attribute, value: &str) -> Self {
        let mut sets = Vec::with_capacity(self.0.len() + value.len() + 16);
        if let Ok((_, name)) = X509Name::from_der(&self.0) {
            for set in name.iter_rdn() {
                let values: Vec<_> = set
                    .iter()
                    .filter(|one| one.attr_type().as_bytes() != attribute.oid())
                    .map(|one| {
                        let value = one.attr_value();
                        let text = der::cat(value.header.tag().0.try_into().unwrap_or(0), &[value.data]);
                        der::cat(der::SEQUENCE, &[&der::oid(one.attr_type().as_bytes()), &text])
                    })
                    .collect();
                if !values.is_empty() {
                    sets.extend(der::tlv(der::SET, &values.concat()));
                }
            }
        }
        let value = der::cat(der::SEQUENCE, &[&der::oid(attribute.oid()), &der::string(value)]);
        sets.extend(der::tlv(der::SET, &value));
        Self(der::tlv(der::SEQUENCE, &sets).into())
    }

    /// The DER.
    #[must_use]
    pub fn as_der(&self) -> &[u8] {
        &self.0
    }

    /// Whether it has no attributes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // A sequence of nothing.
        self.0.as_ref() == [0x30, 0]
    }

    /// The values of one attribute, given by its dotted object identifier.
    #[must_use]
    pub fn values(&self, oid: &str) -> Vec<String> {
        self.attributes().into_iter().filter(|(name, _)| name == oid).map(|(_, value)| value).collect()
    }

    /// The first common name; empty for none.
    #[must_use]
    pub fn common_name(&self) -> String {
        self.values("2.5.4.3").into_iter().next_back().unwrap_or_default()
    }

    /// The dotted object identifier and value of every attribute, in order.
    #[must_use]
    pub fn attributes(&self) -> Vec<(String, String)> {
        let Ok((_, name)) = X509Name::from_der(&self.0) else { return Vec::new() };
        name.iter_attributes()
            .map(|attribute| {
                let value = attribute.as_str().map_or_else(
                    |_| String::from_utf8_lossy(attribute.as_slice()).into_owned(),
                    str::to_owned,
                );
                (attribute.attr_type().to_id_string(), value)
            })
            .collect()
    }
}

impl fmt::Display for Name {
    /// RFC 2253 as Go prints it: the last relative name first, values of a set joined by `+`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok((_, name)) = X509Name::from_der(&self.0) else { return f.write_str("(unreadable name)") };
        let sets: Vec<_> = name.iter_rdn().collect();
        for (index, set) in sets.iter().rev().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            for (index, attribute) in set.iter().enumerate() {
                if index > 0 {
                    f.write_str("+")?;
                }
                let oid = attribute.attr_type().to_id_string();
                let value = attribute.as_str().unwrap_or_default();
                write!(f, "{}={}", short_name(&oid).unwrap_or(&oid), escaped(value))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "SERIALNUMBER",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.17" => "POSTALCODE",
        _ => return None,
    })
}

fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (index, c) in value.chars().enumerate() {
        let special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
            || (c == ' ' && (index == 0 || index == last))
            || (c == '#' && index == 0);
        if special {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_as_go_prints_them() {
        let name = Name::new(&[
            (Attribute::Country, "US"),
            (Attribute::Organization, "SPIRE"),
            (Attribute::CommonName, "a, b"),
        ]);

        assert_eq!(name.to_string(), "CN=a\\, b,O=SPIRE,C=US");
        assert_eq!(name.common_name(), "a, b");
    }

    #[test]
    fn an_attribute_is_added_last_and_replaces_what_there_was() {
        let name = Name::new(&[
            (Attribute::Country, "US"),
            (Attribute::Country, "DE"),
            (Attribute::CommonName, "a_b"),
            (Attribute::Organization, "SPIRE"),
        ]);

        let added = name.with(Attribute::UniqueIdentifier, "00ff");
        let replaced = added.with(Attribute::CommonName, "c");

        assert_eq!(added.to_string(), "2.5.4.45=00ff,O=SPIRE,CN=a_b,C=DE+C=US");
        assert_eq!(added.as_der().len(), name.as_der().len() + 15);
        assert_eq!(replaced.to_string(), "CN=c,2.5.4.45=00ff,O=SPIRE,C=DE+C=US");
        assert_eq!(Name::new(&[]).with(Attribute::Country, "US"), Name::new(&[(Attribute::Country, "US")]));
    }
}
