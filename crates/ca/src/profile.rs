//! What goes into a credential: lifetimes, subjects, claims. All of it is decided here, from the
//! configuration, the authority and the time; nothing is decided twice.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use plugin::CredentialComposer;
use spiffe::x509::{Attribute, Name, Serial, Validity};
use spiffe::{IdError, SpiffeId, TrustDomain, UnixSecs};

use crate::authority::random;

/// How far validity starts in the past, for clocks that are behind.
const BACKDATE: i64 = 10;

/// The rules that the configuration sets.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Whose credentials these are.
    pub trust_domain: TrustDomain,
    /// The subject of CA certificates.
    pub ca_subject: CaSubject,
    /// Lifetime of CA certificates and of token keys.
    pub ca_ttl: Duration,
    /// Lifetime of X.509-SVIDs whose entry sets none.
    pub x509_svid_ttl: Duration,
    /// Lifetime of JWT-SVIDs whose entry sets none.
    pub jwt_svid_ttl: Duration,
    /// Lifetime of WIT-SVIDs whose request sets none.
    pub wit_svid_ttl: Duration,
    /// Lifetime of agents' SVIDs.
    pub agent_ttl: Duration,
    /// `iss` of JWT-SVIDs; absent if empty.
    pub jwt_issuer: String,
    /// `iss` of WIT-SVIDs; absent if empty.
    pub wit_issuer: String,
    /// What may change credentials before they are checked and signed.
    pub composers: Composers,
    server_id: SpiffeId,
}

/// The credential composers in their order. Cheap to clone.
#[derive(Clone, Default)]
pub struct Composers(Arc<[Arc<dyn CredentialComposer>]>);

impl Composers {
    /// These, one after the other.
    #[must_use]
    pub fn new(composers: Vec<Arc<dyn CredentialComposer>>) -> Self {
        Self(composers.into())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<dyn CredentialComposer>> {
        self.0.iter()
    }
}

impl fmt::Debug for Composers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|composer| composer.info().name())).finish()
    }
}

/// `ca_subject`: all empty means the default, `C=US,O=SPIFFE`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaSubject {
    /// `country`
    pub country: Vec<String>,
    /// `organization`
    pub organization: Vec<String>,
    /// `common_name`
    pub common_name: String,
}

impl Profile {
    /// The rules of SPIRE's defaults.
    ///
    /// # Errors
    /// Never for a valid trust domain.
    pub fn new(trust_domain: TrustDomain) -> Result<Self, IdError> {
        let hour = Duration::from_secs(3600);
        Ok(Self {
            server_id: trust_domain.id_with_path("/spire/server")?,
            trust_domain,
            ca_subject: CaSubject::default(),
            ca_ttl: 24 * hour,
            x509_svid_ttl: hour,
            jwt_svid_ttl: Duration::from_secs(300),
            wit_svid_ttl: hour,
            agent_ttl: hour,
            jwt_issuer: String::new(),
            wit_issuer: String::new(),
            composers: Composers::default(),
        })
    }

    /// The id of the server itself.
    #[must_use]
    pub const fn server_id(&self) -> &SpiffeId {
        &self.server_id
    }

    /// The subject of a CA certificate, which names its own serial number.
    pub(crate) fn ca_name(&self, serial: &Serial) -> Name {
        let is_default = self.ca_subject == CaSubject::default();
        let serial = serial.to_string();
        let mut attributes = Vec::new();
        if is_default {
            attributes.extend([(Attribute::Country, "US"), (Attribute::Organization, "SPIFFE")]);
        }
        let subject = &self.ca_subject;
        attributes.extend(subject.country.iter().map(|value| (Attribute::Country, value.as_str())));
        attributes.extend(subject.organization.iter().map(|value| (Attribute::Organization, value.as_str())));
        if !subject.common_name.is_empty() {
            attributes.push((Attribute::CommonName, &subject.common_name));
        }
        attributes.push((Attribute::SerialNumber, &serial));
        Name::new(&attributes)
    }
}

/// The subject of an X.509-SVID: what was asked for, if anything, else `C=US,O=SPIRE`; the first DNS
/// name becomes the common name in any case. Attributes that are not kept were asked for too: the
/// subject may end up empty.
pub(crate) fn svid_name(wanted: Option<&Name>, dns_names: &[String]) -> Name {
    static USUAL: LazyLock<Name> =
        LazyLock::new(|| Name::new(&[(Attribute::Country, "US"), (Attribute::Organization, "SPIRE")]));
    if wanted.is_none() && dns_names.is_empty() {
        return USUAL.clone();
    }
    let is_kept = |oid: &str| ORDER.iter().any(|(_, kept, _)| *kept == oid);
    let mut values = wanted.map(Values::of).unwrap_or_default();
    let has_others = wanted.is_some_and(|name| name.attributes().iter().any(|(oid, _)| !is_kept(oid)));
    if values.0.is_empty() && !has_others {
        values.set(Attribute::Country, "US");
        values.set(Attribute::Organization, "SPIRE");
    }
    if let Some(first) = dns_names.first() {
        values.set(Attribute::CommonName, first);
    }
    values.name()
}

/// The subject of a downstream CA: its parent's, with the unit that says how deep it is.
pub(crate) fn downstream_name(parent: &Name, depth: usize) -> Name {
    let mut values = Values::of(parent);
    values.set(Attribute::OrganizationalUnit, &format!("DOWNSTREAM-{depth}"));
    values.name()
}

/// From when to when a credential holds that is made at `now` for `ttl` by an authority that ends at
/// `cap`.
pub(crate) fn validity(now: UnixSecs, ttl: Duration, cap: Option<UnixSecs>) -> Validity {
    let not_after = now.plus(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
    let not_after = cap.map_or(not_after, |cap| not_after.min(cap));
    Validity { not_before: now.plus(-BACKDATE), not_after }
}

/// The lifetime asked for in seconds, or the default: neither zero nor less is a lifetime.
pub(crate) fn lifetime(wanted: i64, default: Duration) -> Duration {
    u64::try_from(wanted).ok().filter(|wanted| *wanted > 0).map_or(default, Duration::from_secs)
}

/// A random serial number of up to 128 bits; never zero.
pub(crate) fn new_serial() -> Serial {
    loop {
        let bytes: [u8; 16] = random();
        if bytes != [0; 16] {
            return Serial::from_be_bytes(&bytes);
        }
    }
}

/// The attributes of a name that survive being read and written by Go, in the order it writes them.
#[derive(Default)]
struct Values(Vec<(Attribute, String)>);

impl Values {
    fn of(name: &Name) -> Self {
        let attributes = name.attributes();
        let values = ORDER.into_iter().flat_map(|(attribute, oid, kept)| {
            let mut values: Vec<_> =
                attributes.iter().filter(|(of, _)| of == oid).map(|(_, value)| value.clone()).collect();
            if kept == Kept::Last {
                values.drain(..values.len().saturating_sub(1));
                values.retain(|value| !value.is_empty());
            }
            values.into_iter().map(move |value| (attribute, value))
        });
        Self(values.collect())
    }

    fn set(&mut self, attribute: Attribute, value: &str) {
        let rank = |of: Attribute| ORDER.iter().position(|(attribute, ..)| *attribute == of);
        self.0.retain(|(of, _)| *of != attribute);
        let at = self.0.iter().position(|(of, _)| rank(*of) > rank(attribute)).unwrap_or(self.0.len());
        self.0.insert(at, (attribute, value.to_owned()));
    }

    fn name(&self) -> Name {
        let attributes: Vec<_> =
            self.0.iter().map(|(attribute, value)| (*attribute, value.as_str())).collect();
        Name::new(&attributes)
    }
}

/// Which values of an attribute are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    All,
    Last,
}

const ORDER: [(Attribute, &str, Kept); 9] = [
    (Attribute::Country, "2.5.4.6", Kept::All),
    (Attribute::Province, "2.5.4.8", Kept::All),
    (Attribute::Locality, "2.5.4.7", Kept::All),
    (Attribute::StreetAddress, "2.5.4.9", Kept::All),
    (Attribute::PostalCode, "2.5.4.17", Kept::All),
    (Attribute::Organization, "2.5.4.10", Kept::All),
    (Attribute::OrganizationalUnit, "2.5.4.11", Kept::All),
    (Attribute::CommonName, "2.5.4.3", Kept::Last),
    (Attribute::SerialNumber, "2.5.4.5", Kept::Last),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check_svid_name(wanted: &[(Attribute, &str)], dns_names: &[&str], text: &str) {
        let wanted = (!wanted.is_empty()).then(|| Name::new(wanted));
        let dns_names: Vec<_> = dns_names.iter().map(ToString::to_string).collect();
        assert_eq!(svid_name(wanted.as_ref(), &dns_names).to_string(), text);
    }

    #[test]
    fn k10_serial_numbers_are_long_and_never_come_twice() {
        let serials: Vec<String> = (0..100_000).map(|_| new_serial().to_string()).collect();

        let distinct: std::collections::HashSet<&String> = serials.iter().collect();
        assert_eq!(distinct.len(), serials.len());
        // A number of 128 random bits has fewer than 31 digits once in 340 million.
        let long = serials.iter().filter(|serial| serial.len() > 30).count();
        assert!(long > 99_990, "{long} of {} have more than 30 digits", serials.len());
    }

    #[test]
    fn subjects_of_svids() {
        check_svid_name(&[], &[], "O=SPIRE,C=US");
        check_svid_name(&[], &["a.test", "b.test"], "CN=a.test,O=SPIRE,C=US");
        check_svid_name(
            &[(Attribute::CommonName, "cn"), (Attribute::Country, "DE"), (Attribute::Organization, "org")],
            &[],
            "CN=cn,O=org,C=DE",
        );
        check_svid_name(&[(Attribute::CommonName, "cn")], &["d.test"], "CN=d.test");
        check_svid_name(&[(Attribute::UniqueIdentifier, "x")], &[], "");
        check_svid_name(&[(Attribute::UniqueIdentifier, "x")], &["d.test"], "CN=d.test");
        check_svid_name(&[(Attribute::CommonName, "")], &[], "O=SPIRE,C=US");
        check_svid_name(
            &[
                (Attribute::Organization, "o"),
                (Attribute::Locality, "l"),
                (Attribute::PostalCode, "1"),
                (Attribute::Province, "st"),
                (Attribute::StreetAddress, "street"),
            ],
            &[],
            "O=o,POSTALCODE=1,STREET=street,L=l,ST=st",
        );
    }

    #[test]
    fn subjects_of_authorities() {
        let mut profile = Profile::new(TrustDomain::parse("example.org").unwrap()).unwrap();
        let serial = Serial::from_be_bytes(&[1, 0]);

        let default = profile.ca_name(&serial);
        assert_eq!(default.to_string(), "SERIALNUMBER=256,O=SPIFFE,C=US");
        let downstream = downstream_name(&default, 1);
        assert_eq!(downstream.to_string(), "SERIALNUMBER=256,OU=DOWNSTREAM-1,O=SPIFFE,C=US");
        let deeper = downstream_name(&downstream, 2);
        assert_eq!(deeper.to_string(), "SERIALNUMBER=256,OU=DOWNSTREAM-2,O=SPIFFE,C=US");

        profile.ca_subject.common_name = "my ca".into();
        assert_eq!(profile.ca_name(&serial).to_string(), "SERIALNUMBER=256,CN=my ca");
    }

    #[test]
    fn a05_lifetimes_are_backdated_and_capped() {
        let now = UnixSecs(1000);
        let minute = Duration::from_secs(60);

        assert_eq!(
            validity(now, minute, None),
            Validity { not_before: UnixSecs(990), not_after: UnixSecs(1060) }
        );
        assert_eq!(validity(now, minute, Some(UnixSecs(1030))).not_after, UnixSecs(1030));
        assert_eq!(lifetime(0, minute), minute);
        assert_eq!(lifetime(-5, minute), minute);
        assert_eq!(lifetime(5, minute), Duration::from_secs(5));
    }
}
