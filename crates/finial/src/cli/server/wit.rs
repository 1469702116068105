//! `wit mint`: a token that is bound to a key made here. The command is there only where the environment
//! asks for it, as SPIRE has it.

use std::path::Path;

use proto::spire::server::svid::MintWitsvidRequest;
use proto::spire::server::svid::svid_client::SvidClient;
use proto::spire::types;
use spiffe::key::{KeyKind, PrivateKey};

use super::mint::{capped, is_capped, required_id, seconds, write_file};
use crate::cli::flags::{Flags, Kind, Output, flag, flag_or};
use crate::cli::rpc::{self, client, server_flags_with_output, with_server};
use crate::cli::{Command, Failure, FlagError, Printer, json};

/// Names the feature flags of commands, separated by spaces.
const FEATURE_FLAGS: &str = "SPIRE_SERVER_FFLAGS";
const FLAG: &str = "wit-svid";

/// The command, if it is asked for.
pub(super) fn commands() -> Vec<Command> {
    let flags = std::env::var(FEATURE_FLAGS).unwrap_or_default();
    if !flags.split(' ').any(|flag| flag == FLAG) {
        return Vec::new();
    }
    let own = [
        flag("spiffeID", Kind::Text, "SPIFFE ID of the WIT-SVID"),
        flag_or("keyType", Kind::Text, "ec-p256", "Type of the key to make"),
        flag_or("signingAlgorithm", Kind::Text, "ES256", "Algorithm that the key will sign with"),
        flag("ttl", Kind::Duration, "TTL of the WIT-SVID; the server's default if not set"),
        flag("write", Kind::Text, "Directory to write token and key to, instead of stdout"),
    ];
    vec![Command {
        name: "wit mint",
        about: "Mint a WIT-SVID",
        flags: server_flags_with_output(&own),
        on_flag_error: FlagError::Once,
        action: mint,
    }]
}

fn mint(flags: &Flags, printer: &mut Printer) -> Result<(), Failure> {
    let id = required_id(flags)?;
    let ttl = seconds(flags)?;
    let algorithm = flags.text("signingAlgorithm").to_owned();
    let kind = key_kind(flags.text("keyType"), &algorithm)?;
    let unable = |why| format!("could not generate public/private key pair: {why}");
    let key = PrivateKey::generate(kind).map_err(unable)?;
    let jwk = key.to_jwk().map_err(|why| format!("could not marshal private key: {why}"))?;
    with_server(flags, |dialed| async move {
        let request = MintWitsvidRequest {
            id: Some(types::Spiffeid::from(&id)),
            public_key: key.public().spki().to_vec().into(),
            ttl,
            signing_algorithm: algorithm,
        };
        let reply = client!(SvidClient<_>, dialed).mint_witsvid(request).await;
        let svid = reply.map_err(|status| dialed.error("unable to mint SVID: ", &status))?.into_inner().svid;
        let svid = svid.filter(|svid| !svid.token.is_empty()).ok_or("server response missing token")?;
        if is_capped(flags, svid.expires_at) {
            printer.err.push_str(&capped("WIT-SVID", svid.expires_at));
        }
        let dir = flags.text("write");
        if !dir.is_empty() {
            let files = [("WIT-SVID", "token", &*svid.token), ("Private key", "key", &**jwk)];
            for (shown, name, text) in files {
                let path = rpc::cleaned(&Path::new(dir).join(name));
                write_file(&path, text, 0o600).map_err(|why| format!("unable to write {name}: {why}"))?;
                printer.out.push_str(&format!("{shown} written to {}\n", path.display()));
            }
            return Ok(());
        }
        printer.out = match flags.output() {
            Output::Json => as_json(&jwk, &svid),
            Output::Pretty => format!("{}\n{}\n", svid.token, *jwk),
        };
        Ok(())
    })
}

/// The kind of key that signs by this algorithm.
fn key_kind(key_type: &str, algorithm: &str) -> Result<KeyKind, String> {
    match (algorithm, key_type) {
        ("RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512", "rsa-2048") => Ok(KeyKind::Rsa2048),
        ("RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512", "rsa-4096") => Ok(KeyKind::Rsa4096),
        ("ES256", "ec-p256") => Ok(KeyKind::EcP256),
        ("ES384", "ec-p384") => Ok(KeyKind::EcP384),
        ("RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512", _) => {
            Err(format!("unsupported key type '{key_type}' for signing algorithm '{algorithm}'"))
        }
        ("ES256" | "ES384", _) => {
            Err(format!("unsupported key type '{key_type}' for '{algorithm}' signing algorithm"))
        }
        _ => Err(format!("unsupported signing algorithm: {algorithm}")),
    }
}

/// The result with its members in SPIRE's order, which is not that of other commands.
fn as_json(jwk: &str, svid: &types::Witsvid) -> String {
    let id = svid.id.as_ref().map_or_else(String::new, |id| {
        let (trust_domain, path) = (json::quoted(&id.trust_domain), json::quoted(&id.path));
        format!(",\"id\":{{\"trust_domain\":{trust_domain},\"path\":{path}}}")
    });
    format!(
        "{{\"private_key\":{},\"svid\":{{\"token\":{}{id},\"expires_at\":{},\"issued_at\":{}}}}}\n",
        json::quoted(jwk),
        json::quoted(&svid.token),
        svid.expires_at,
        svid.issued_at
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fit_their_algorithms() {
        assert_eq!(key_kind("ec-p384", "ES384"), Ok(KeyKind::EcP384));
        assert_eq!(key_kind("rsa-4096", "PS512"), Ok(KeyKind::Rsa4096));
        let refused = |key_type, algorithm| key_kind(key_type, algorithm).unwrap_err();
        assert_eq!(refused("dsa", "ES256"), "unsupported key type 'dsa' for 'ES256' signing algorithm");
        assert_eq!(refused("dsa", "RS256"), "unsupported key type 'dsa' for signing algorithm 'RS256'");
        assert_eq!(refused("ec-p256", "none"), "unsupported signing algorithm: none");
    }
}
