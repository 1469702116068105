//! What each request is answered with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use prost::Message;
use proto::sds::core::BuildVersion;
use proto::sds::tls::secret::Type;
use proto::sds::tls::{CertificateValidationContext, Secret, SpiffeCertValidatorConfig};
use proto::sds::version::SemanticVersion;
use spiffe::{Bundle, Entry, UnixSecs, X509Authority};

use super::*;
use crate::fixtures::{self, entry, svid};
use crate::state::{AgentState, Change};

/// An agent with two identities for `uid:1`, of which the first federates with `other.test` and
/// `a.test`.
pub(in crate::api::sds) fn world() -> Vec<Entry> {
    let foreign = ["other.test", "a.test"].map(|name| TrustDomain::parse(name).unwrap());
    vec![
        Entry { federates_with: foreign.into(), ..entry("1", "/web", &["uid:1"]) },
        entry("2", "/db", &["uid:1"]),
    ]
}

fn bundle(name: &str) -> Bundle {
    let mut bundle = Bundle::empty(TrustDomain::parse(name).unwrap());
    bundle.x509_authorities.push(X509Authority { der: Arc::from(name.as_bytes()), tainted: false });
    bundle
}

fn state(entries: Vec<Entry>, issued: &[&str]) -> AgentState {
    let svids = entries.iter().filter(|entry| issued.contains(&entry.id.as_str()));
    let svids = svids.map(|entry| (entry.id.clone(), Some(svid(entry, UNIX_EPOCH)))).collect();
    let synced = Change::Synced {
        entries: entries.into_iter().map(Arc::new).collect(),
        own: Some(bundle("example.org")),
        federated: vec![bundle("other.test"), bundle("a.test")],
        at: UnixSecs(1),
    };
    fixtures::state().apply(synced).apply(Change::Issued(svids))
}

pub(in crate::api::sds) fn update(entries: Vec<Entry>, issued: &[&str]) -> Update {
    Update::of(&state(entries, issued), &entry("", "/x", &["uid:1"]).selector_set)
}

fn config() -> SdsConfig {
    fixtures::config().sds
}

fn names(names: &[&str]) -> Names {
    Names::new(names.iter().map(ToString::to_string))
}

/// The names of the secrets that these names bring.
fn selected(update: &Update, asked: &[&str]) -> Vec<String> {
    match select(update, &config(), &names(asked), Validation::Spiffe) {
        Ok(Selected::Ready(resources)) => resources.into_iter().map(|resource| resource.name).collect(),
        Ok(Selected::Pending) => vec!["pending".to_owned()],
        Err(refusal) => vec![refusal.to_string()],
    }
}

#[test]
fn each_name_brings_its_secret() {
    let update = update(world(), &["1", "2"]);
    let check = |asked: &[&str], found: &[&str]| assert_eq!(selected(&update, asked), found, "{asked:?}");

    check(&["default"], &["default"]);
    check(&["ROOTCA"], &["ROOTCA"]);
    check(&["ALL"], &["ALL"]);
    check(&["spiffe://example.org"], &["spiffe://example.org"]);
    check(&["spiffe://other.test"], &["spiffe://other.test"]);
    check(&["spiffe://example.org/db", "", "ROOTCA"], &["ROOTCA", "spiffe://example.org/db"]);
    let everything = [
        "spiffe://example.org",
        "spiffe://a.test",
        "spiffe://other.test",
        "spiffe://example.org/web",
        "spiffe://example.org/db",
    ];
    check(&[], &everything);
    check(&["", ""], &everything);
    check(&everything, &everything);
}

#[test]
fn what_is_asked_for_by_two_names_is_answered_under_one() {
    let update = update(world(), &["1", "2"]);
    let check = |asked: &[&str], left: &str| {
        let refusal = format!("workload is not authorized for the requested identities [{left}]");
        assert_eq!(selected(&update, asked), [refusal], "{asked:?}");
    };

    check(&["spiffe://example.org", "ROOTCA"], "\"ROOTCA\"");
    check(&["ROOTCA", "ALL"], "\"ALL\"");
    check(&["spiffe://example.org", "ROOTCA", "ALL"], "\"ALL\" \"ROOTCA\"");
    check(&["spiffe://example.org/web", "default"], "\"default\"");
    // The second identity has but one name.
    assert_eq!(
        selected(&update, &["spiffe://example.org/db", "default"]),
        ["default", "spiffe://example.org/db"]
    );
}

#[test]
fn unknown_names_are_refused_in_order() {
    let known = update(world(), &["1", "2"]);
    let refusal = |update: &Update, asked: &[&str]| {
        let refused = select(update, &config(), &names(asked), Validation::Spiffe);
        let status = Status::from(refused.err().unwrap());
        (status.code(), status.message().to_owned())
    };
    let unauthorized = |list: &str| {
        let text = format!("workload is not authorized for the requested identities [{list}]");
        (tonic::Code::InvalidArgument, text)
    };

    assert_eq!(refusal(&known, &["z", "ROOTCA", "a\"\n"]), unauthorized(r#""a\"\n" "z""#));
    assert_eq!(refusal(&known, &["spiffe://third.test"]), unauthorized("\"spiffe://third.test\""));
    let nobody = update(Vec::new(), &[]);
    assert_eq!(refusal(&nobody, &["default"]), unauthorized("\"default\""));
    assert_eq!(selected(&nobody, &[]), ["spiffe://example.org"]);
    assert_eq!(selected(&nobody, &["ROOTCA"]), ["ROOTCA"]);
    let long = "x".repeat(MOST_LISTED);
    assert_eq!(refusal(&known, &["a", &long]), unauthorized("\"a\" .."));
}

#[test]
fn what_is_being_signed_is_waited_for_and_what_is_not_is_refused() {
    let second = update(world(), &["2"]);

    assert_eq!(selected(&second, &["spiffe://example.org/web"]), ["pending"]);
    assert_eq!(selected(&second, &["spiffe://example.org/db"]), ["spiffe://example.org/db"]);
    assert_eq!(selected(&second, &["default"]), ["default"]);
    let refused =
        "workload is not authorized for the requested identities [\"nobody\" \"spiffe://example.org/web\"]";
    assert_eq!(selected(&second, &["spiffe://example.org/web", "nobody"]), [refused]);
    let none = update(world(), &[]);
    assert_eq!(selected(&none, &["default", "ROOTCA"]), ["pending"]);
    assert_eq!(selected(&none, &[]), ["pending"]);
    assert_eq!(selected(&none, &["ROOTCA"]), ["ROOTCA"]);

    let refused = state(world(), &[])
        .apply(Change::Issued(vec![(spiffe::EntryId::new("1"), None), (spiffe::EntryId::new("2"), None)]));
    let refused = Update::of(&refused, &entry("", "/x", &["uid:1"]).selector_set);
    assert_eq!(selected(&refused, &[]).len(), 3);
    assert!(selected(&refused, &["default"])[0].starts_with("workload is not authorized"));
}

#[test]
fn names_are_those_of_the_configuration() {
    let update = update(world(), &["1", "2"]);
    let config = SdsConfig {
        svid_name: "mine".to_owned(),
        bundle_name: "same".to_owned(),
        all_bundles_name: "same".to_owned(),
        disable_spiffe_validation: false,
    };
    let select = |asked: &[&str]| select(&update, &config, &names(asked), Validation::Spiffe);

    let Ok(Selected::Ready(found)) = select(&["mine", "same"]) else { panic!("refused") };
    assert_eq!(found.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["same", "mine"]);
    // Of two equal names the one for the own bundle counts.
    let own = context(&found[0]).custom_validator_config.unwrap();
    assert_eq!(trusted(&own.typed_config.unwrap()), [("example.org".to_owned(), true)]);
    assert!(select(&["default"]).is_err() && select(&["ROOTCA"]).is_err());
}

fn context(resource: &Resource) -> CertificateValidationContext {
    match Secret::decode(resource.content.clone()).unwrap().r#type {
        Some(Type::ValidationContext(context)) => context,
        _ => panic!("no validation context"),
    }
}

/// The trust domains of the extension's settings, and whether each has the bundle of its name.
fn trusted(settings: &prost_types::Any) -> Vec<(String, bool)> {
    assert!(settings.type_url.ends_with("SPIFFECertValidatorConfig"), "{}", settings.type_url);
    let settings = SpiffeCertValidatorConfig::decode(settings.value.as_slice()).unwrap();
    let is_own = |name: &str, source: Option<proto::sds::core::DataSource>| {
        let pem = spiffe::x509::to_pem("CERTIFICATE", name.as_bytes());
        source.unwrap().specifier
            == Some(proto::sds::core::data_source::Specifier::InlineBytes(pem.into_bytes().into()))
    };
    let pairs = settings.trust_domains.into_iter().map(|one| {
        let is_own = is_own(&one.name, one.trust_bundle);
        (one.name, is_own)
    });
    pairs.collect()
}

#[test]
fn bundles_come_in_the_form_that_the_envoy_knows() {
    let update = update(world(), &["1", "2"]);
    let one = |name: &str, how| match select(&update, &config(), &names(&[name]), how) {
        Ok(Selected::Ready(found)) => Ok(context(&found[0])),
        Ok(Selected::Pending) => panic!("pending"),
        Err(refusal) => Err(Status::from(refusal)),
    };
    let extension = |name: &str| {
        let context = one(name, Validation::Spiffe).unwrap();
        assert_eq!(context.trusted_ca, None);
        let extension = context.custom_validator_config.unwrap();
        assert_eq!(extension.name, "envoy.tls.cert_validator.spiffe");
        trusted(&extension.typed_config.unwrap())
    };

    assert_eq!(extension("ROOTCA"), [("example.org".to_owned(), true)]);
    assert_eq!(extension("spiffe://other.test"), [("other.test".to_owned(), true)]);
    let all = ["a.test", "example.org", "other.test"].map(|name| (name.to_owned(), true));
    assert_eq!(extension("ALL"), all);
    let plain = one("spiffe://other.test", Validation::Plain).unwrap();
    assert!(plain.trusted_ca.is_some() && plain.custom_validator_config.is_none());
    let refused = one("ALL", Validation::Plain).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Internal);
    assert_eq!(refused.message(), "unable to use \"SPIFFE validator\" on Envoy below 1.17");
}

#[test]
fn contents_are_written_once() {
    let update = update(world(), &["1", "2"]);
    let pointers = |asked: &[&str]| match select(&update, &config(), &names(asked), Validation::Spiffe) {
        Ok(Selected::Ready(found)) => found.iter().map(|one| one.content.as_ptr()).collect::<Vec<_>>(),
        _ => panic!("nothing selected"),
    };

    let everything = pointers(&[]);

    assert_eq!(pointers(&["ROOTCA", "default"]), [everything[0], everything[3]]);
    assert_eq!(pointers(&["ALL"]), pointers(&["ALL"]));
}

fn node(metadata: Option<Kind>, version: Option<(u32, u32)>) -> Node {
    let value = metadata.map(|kind| prost_types::Value { kind: Some(kind) });
    let fields: BTreeMap<String, prost_types::Value> =
        value.into_iter().map(|value| ("disable_spiffe_cert_validation".to_owned(), value)).collect();
    let build = |(major_number, minor_number)| {
        UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
            version: Some(SemanticVersion { major_number, minor_number, patch: 9 }),
            metadata: None,
        })
    };
    Node {
        metadata: Some(prost_types::Struct { fields }),
        user_agent_version_type: version.map(build),
        ..Node::default()
    }
}

#[test]
fn the_extension_is_for_whom_it_is_not_switched_off_for() {
    let off = SdsConfig { disable_spiffe_validation: true, ..config() };
    let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
    let (yes, no) = (Some(Kind::BoolValue(true)), Some(Kind::BoolValue(false)));
    let check = |config: &SdsConfig, metadata: Option<Kind>, version, expected| {
        let node = node(metadata.clone(), version);
        assert_eq!(validation(config, Some(&node)), expected, "{metadata:?} {version:?}");
    };
    use Validation::{Plain, Spiffe};

    assert_eq!((validation(&config(), None), validation(&off, None)), (Spiffe, Plain));
    check(&config(), yes.clone(), None, Plain);
    check(&config(), text("T"), None, Plain);
    check(&config(), text("yes"), None, Spiffe);
    check(&config(), Some(Kind::NumberValue(1.0)), None, Spiffe);
    check(&off, no.clone(), None, Spiffe);
    check(&off, text("FALSE"), None, Spiffe);
    check(&off, text("no"), None, Plain);
    check(&config(), None, Some((1, 17)), Plain);
    check(&config(), None, Some((0, 99)), Plain);
    check(&config(), None, Some((1, 18)), Spiffe);
    check(&config(), None, Some((2, 0)), Spiffe);
    check(&config(), no, Some((1, 17)), Plain);
    check(&config(), yes, Some((1, 40)), Plain);
    let build = UserAgentVersionType::UserAgentBuildVersion(BuildVersion::default());
    let unversioned = Node { user_agent_version_type: Some(build), ..Node::default() };
    assert_eq!(validation(&config(), Some(&unversioned)), Spiffe);
}
