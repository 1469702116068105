//! The contract of key managers, over all of them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use plugin::catalog::{load_agent, load_server};
use plugin::{Host, KeyId, KeyManager};
use plugins::tables;
use spiffe::key::{KeyKind, SigAlg};

use crate::{block, trust_domain};

async fn server(name: &str, data: &str) -> Result<Arc<dyn KeyManager>, String> {
    let blocks = [block("KeyManager", name, data)];
    let loaded = load_server(&blocks, tables::SERVER, &trust_domain(), &Host::bare()).await;
    loaded.map(|plugins| plugins.key_manager).map_err(|error| error.to_string())
}

async fn agent(name: &str, data: &str) -> Result<Arc<dyn KeyManager>, String> {
    let blocks = [
        block("KeyManager", name, data),
        block("NodeAttestor", "join_token", ""),
        block("WorkloadAttestor", "unix", ""),
    ];
    let loaded = load_agent(&blocks, tables::AGENT, &trust_domain(), &Host::bare()).await;
    loaded.map(|plugins| plugins.key_manager).map_err(|error| error.to_string())
}

fn keys_path(directory: &Path) -> String {
    format!("{{\"keys_path\": {:?}}}", directory.join("keys.json"))
}

fn directory(directory: &Path) -> String {
    format!("{{\"directory\": {directory:?}}}")
}

async fn check_contract(keys: &dyn KeyManager) {
    let (a, b) = (KeyId::new("b-key"), KeyId::new("a-key"));
    assert!(keys.keys().await.unwrap().is_empty());
    assert!(keys.key(&a).await.unwrap().is_none());

    let first = keys.generate(&a, KeyKind::EcP256).await.unwrap();
    keys.generate(&b, KeyKind::Rsa2048).await.unwrap();
    let ids: Vec<_> = keys.keys().await.unwrap().iter().map(|key| key.id().clone()).collect();
    assert_eq!(ids, [b.clone(), a.clone()]);
    assert_eq!(keys.key(&a).await.unwrap().unwrap().public(), first.public());

    for (id, alg) in [(&a, SigAlg::EcdsaP256Sha256), (&b, SigAlg::RsaPkcs1Sha256)] {
        let key = keys.key(id).await.unwrap().unwrap();
        let signature = key.sign(alg, b"message").await.unwrap();
        key.public().verify(alg, b"message", &signature).unwrap();
    }

    // A key is replaced; who holds the old one can still use it.
    let second = keys.generate(&a, KeyKind::EcP384).await.unwrap();
    assert_ne!(first.public(), second.public());
    assert_eq!(keys.key(&a).await.unwrap().unwrap().public(), second.public());
    first.sign(SigAlg::EcdsaP256Sha256, b"message").await.unwrap();

    let name = keys.info().name();
    let error = second.sign(SigAlg::RsaPkcs1Sha256, b"message").await.unwrap_err();
    assert!(error.message.starts_with(&format!("keymanager({name}): failed to sign data: ")));
    let error = keys.generate(&KeyId::new(""), KeyKind::EcP256).await.err().unwrap();
    assert_eq!(error.message, format!("keymanager({name}): failed to generate key: key id is required"));
}

#[tokio::test]
async fn every_key_manager_keeps_the_contract() {
    let temporary = tempfile::tempdir().unwrap();
    let below = temporary.path().join("made").join("deep");

    check_contract(&*server("memory", "").await.unwrap()).await;
    check_contract(&*agent("memory", "").await.unwrap()).await;
    check_contract(&*server("disk", &keys_path(temporary.path())).await.unwrap()).await;
    check_contract(&*agent("disk", &directory(&below)).await.unwrap()).await;

    assert_eq!(std::fs::metadata(&below).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn k01_k02_keys_on_disk_survive_and_are_private() {
    let temporary = tempfile::tempdir().unwrap();
    let data = keys_path(temporary.path());
    let made = server("disk", &data).await.unwrap();
    let key = made.generate(&KeyId::new("x509-CA-A"), KeyKind::EcP256).await.unwrap();

    let again = server("disk", &data).await.unwrap();
    let loaded = again.key(&KeyId::new("x509-CA-A")).await.unwrap().unwrap();

    assert_eq!(loaded.public(), key.public());
    let file = std::fs::metadata(temporary.path().join("keys.json")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn concurrent_keys_are_all_on_disk() {
    let temporary = tempfile::tempdir().unwrap();
    let data = keys_path(temporary.path());
    let keys = server("disk", &data).await.unwrap();

    let ids: Vec<_> = (0..8).map(|number| KeyId::new(&format!("key-{number}"))).collect();
    let (a, b, c, d) = tokio::join!(
        keys.generate(&ids[0], KeyKind::EcP256),
        keys.generate(&ids[1], KeyKind::EcP256),
        keys.generate(&ids[2], KeyKind::EcP256),
        keys.generate(&ids[3], KeyKind::EcP256),
    );
    for key in [a, b, c, d] {
        key.unwrap();
    }

    assert_eq!(server("disk", &data).await.unwrap().keys().await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_key_that_cannot_be_stored_is_not_made() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("gone");
    std::fs::create_dir(&path).unwrap();
    let keys = server("disk", &keys_path(&path)).await.unwrap();
    std::fs::remove_dir(&path).unwrap();

    let error = keys.generate(&KeyId::new("x509-CA-A"), KeyKind::EcP256).await.err().unwrap();

    assert!(error.message.starts_with("keymanager(disk): failed to generate key: unable to write entries"));
    assert!(keys.keys().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_damaged_file_stops_the_start() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("keys.json");
    std::fs::write(&path, "{").unwrap();

    let refusal = server("disk", &keys_path(temporary.path())).await.err().unwrap();

    assert!(refusal.contains("unable to decode keys JSON"), "{refusal}");
    assert!(refusal.contains(path.to_str().unwrap()), "{refusal}");
}
