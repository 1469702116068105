//! Name constraints (RFC 5280, 4.2.1.10) with the meaning that Go's verifier gives them, since SPIRE's
//! upstream authorities rely on it: a URI constraint also admits subdomains.

use x509_parser::extensions::{GeneralName, NameConstraints};

use super::parse::AltNames;

/// The constraints of one signing certificate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Constraints {
    permitted: Subtrees,
    excluded: Subtrees,
    partial: bool,
}

#[derive(Clone, Debug, Default)]
struct Subtrees {
    uris: Vec<String>,
    dns: Vec<String>,
    emails: Vec<String>,
    /// Address and mask, one behind the other.
    ips: Vec<Vec<u8>>,
}

impl Constraints {
    pub(super) fn read(constraints: &NameConstraints<'_>) -> Self {
        let mut read = Self::default();
        for subtree in constraints.permitted_subtrees.iter().flatten() {
            read.partial |= !read.permitted.add(&subtree.base);
        }
        for subtree in constraints.excluded_subtrees.iter().flatten() {
            read.partial |= !read.excluded.add(&subtree.base);
        }
        read
    }

    /// Whether there are constraints of kinds that are not evaluated.
    pub(super) const fn is_partial(&self) -> bool {
        self.partial
    }

    /// Whether all names are admitted.
    pub(super) fn admit(&self, names: &AltNames) -> bool {
        // Where any names are constrained, those that cannot be judged are not admitted.
        if !names.dns.iter().all(|name| is_domain(name)) || !names.emails.iter().all(|name| is_mailbox(name))
        {
            return false;
        }
        let uri_host = |uri: &String| uri_host(uri).map(str::to_owned);
        admit(&names.uris, &self.permitted.uris, &self.excluded.uris, |name, constraint| {
            uri_host(name).is_some_and(|host| domain_matches(&host, constraint))
        }) && names.uris.iter().all(|uri| {
            // A URI without a usable host cannot be judged: refused where URIs are constrained.
            let constrained = !self.permitted.uris.is_empty() || !self.excluded.uris.is_empty();
            !constrained || uri_host(uri).is_some()
        }) && admit(&names.dns, &self.permitted.dns, &self.excluded.dns, |name, constraint| {
            domain_matches(name, constraint)
        }) && admit(&names.emails, &self.permitted.emails, &self.excluded.emails, |name, constraint| {
            email_matches(name, constraint)
        }) && admit(&names.ips, &self.permitted.ips, &self.excluded.ips, |name, constraint| {
            address_matches(name, constraint)
        })
    }
}

impl Subtrees {
    /// Adds a constraint; `false` if its kind is not evaluated.
    fn add(&mut self, base: &GeneralName<'_>) -> bool {
        if let GeneralName::URI(uri) = base {
            self.uris.push((*uri).to_owned());
        } else if let GeneralName::DNSName(dns) = base {
            self.dns.push((*dns).to_owned());
        } else if let GeneralName::RFC822Name(email) = base {
            self.emails.push((*email).to_owned());
        } else if let GeneralName::IPAddress(range) = base {
            self.ips.push(range.to_vec());
        } else {
            return false;
        }
        true
    }
}

fn admit<N, C>(names: &[N], permitted: &[C], excluded: &[C], matches: impl Fn(&N, &C) -> bool) -> bool {
    names.iter().all(|name| {
        !excluded.iter().any(|constraint| matches(name, constraint))
            && (permitted.is_empty() || permitted.iter().any(|constraint| matches(name, constraint)))
    })
}

/// The host of a URI, without user and port; none if it is empty or an address.
fn uri_host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.starts_with('[') {
        return None;
    }
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    (!host.is_empty() && host.parse::<std::net::Ipv4Addr>().is_err()).then_some(host)
}

/// Whether `domain` is `constraint` or below it; with a leading dot only below it.
fn domain_matches(domain: &str, constraint: &str) -> bool {
    if constraint.is_empty() {
        return true;
    }
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    let (constraint, only_below) =
        constraint.strip_prefix('.').map_or((constraint, false), |constraint| (constraint, true));
    let split = domain.len().checked_sub(constraint.len());
    let Some((head, tail)) = split.and_then(|at| domain.split_at_checked(at)) else { return false };
    if !tail.eq_ignore_ascii_case(constraint) {
        return false;
    }
    if head.is_empty() { !only_below } else { head.ends_with('.') }
}

/// Whether a name is made of labels.
pub(super) fn is_domain(name: &str) -> bool {
    !name.is_empty()
        && name.split('.').all(|label| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// Whether a name is a mailbox at a domain.
pub(super) fn is_mailbox(name: &str) -> bool {
    name.rsplit_once('@').is_some_and(|(local, domain)| !local.is_empty() && is_domain(domain))
}

fn email_matches(email: &str, constraint: &str) -> bool {
    let Some((local, domain)) = email.rsplit_once('@') else { return false };
    match constraint.rsplit_once('@') {
        Some((wanted, at)) => local == wanted && domain.eq_ignore_ascii_case(at),
        None => domain_matches(domain, constraint),
    }
}

fn address_matches(address: &[u8], constraint: &[u8]) -> bool {
    let (network, mask) = constraint.split_at(constraint.len() / 2);
    address.len() == network.len()
        && address
            .iter()
            .zip(network)
            .zip(mask)
            .all(|((address, network), mask)| address & mask == network & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains() {
        assert!(domain_matches("example.org", "example.org"));
        assert!(domain_matches("a.Example.org", "example.org"));
        assert!(domain_matches("a.example.org", ".example.org"));
        assert!(domain_matches("anything", ""));
        assert!(!domain_matches("example.org", ".example.org"));
        assert!(!domain_matches("badexample.org", "example.org"));
        assert!(!domain_matches("org", "example.org"));
    }

    #[test]
    fn names_that_cannot_be_judged_are_not_admitted() {
        let names = |dns: &str, email: &str| AltNames {
            dns: vec![dns.to_owned()],
            emails: vec![email.to_owned()],
            ..AltNames::default()
        };
        let unconstrained = Constraints::default();

        assert!(unconstrained.admit(&names("a.test", "a@b.test")));
        assert!(!unconstrained.admit(&names("a..test", "a@b.test")));
        assert!(!unconstrained.admit(&names("a.test", "b.test")));
    }

    #[test]
    fn hosts_of_uris() {
        assert_eq!(uri_host("spiffe://example.org/a"), Some("example.org"));
        assert_eq!(uri_host("https://u@h.test:80/a?b"), Some("h.test"));
        assert_eq!(uri_host("spiffe://1.2.3.4/a"), None);
        assert_eq!(uri_host("urn:x"), None);
    }

    #[test]
    fn addresses() {
        assert!(address_matches(&[10, 1, 2, 3], &[10, 0, 0, 0, 255, 0, 0, 0]));
        assert!(!address_matches(&[11, 1, 2, 3], &[10, 0, 0, 0, 255, 0, 0, 0]));
    }
}
