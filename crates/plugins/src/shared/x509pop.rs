//! The proof of `x509pop`: both sides give a nonce, the agent signs the digest of both with the key of
//! its certificate. Messages are JSON as Go writes it.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spiffe::key::{PrivateKey, PublicKey, PublicKeyKind, SigAlg, Signature};

pub(crate) const NAME: &str = "x509pop";
const NONCE: usize = 32;

/// What the agent shows first: its certificate and those above it.
#[derive(Deserialize, Serialize)]
pub(crate) struct Payload {
    #[serde(default)]
    pub(crate) certificates: Vec<Bytes>,
}

/// What the server asks: one of the two.
#[derive(Deserialize, Serialize)]
pub(crate) struct Challenge {
    #[serde(default)]
    rsa_signature: Option<Nonce>,
    #[serde(default)]
    ecdsa_signature: Option<Nonce>,
}

#[derive(Deserialize, Serialize)]
struct Nonce {
    #[serde(default)]
    nonce: Bytes,
}

/// What the agent answers: the same of the two.
#[derive(Deserialize, Serialize)]
pub(crate) struct Response {
    #[serde(default)]
    rsa_signature: Option<RsaSignature>,
    #[serde(default)]
    ecdsa_signature: Option<EcdsaSignature>,
}

#[derive(Deserialize, Serialize)]
struct RsaSignature {
    #[serde(default)]
    nonce: Bytes,
    #[serde(default)]
    signature: Bytes,
}

#[derive(Deserialize, Serialize)]
struct EcdsaSignature {
    #[serde(default)]
    nonce: Bytes,
    #[serde(default)]
    r: Bytes,
    #[serde(default)]
    s: Bytes,
}

/// Bytes that stand as base64 in JSON.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        BASE64_STANDARD.decode(text).map(Self).map_err(|_| serde::de::Error::custom("illegal base64 data"))
    }
}

/// Why the proof does not hold, or cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProofError {
    #[error("unsupported public key type")]
    KeyKind,
    #[error("expecting RSA challenge")]
    NoRsaChallenge,
    #[error("expecting ECDSA challenge")]
    NoEcdsaChallenge,
    #[error("expecting RSA response")]
    NoRsaResponse,
    #[error("expecting ECDSA response")]
    NoEcdsaResponse,
    #[error("invalid challenge nonce")]
    ChallengeNonce,
    #[error("invalid response nonce")]
    ResponseNonce,
    #[error("RSA signature verify failed")]
    Rsa,
    #[error("ECDSA signature verify failed")]
    Ecdsa,
    #[error("signing failed")]
    Sign,
    #[error("no random numbers")]
    Random,
}

impl Challenge {
    /// A fresh challenge for the owner of `key`.
    pub(crate) fn new(key: &PublicKey) -> Result<Self, ProofError> {
        let nonce = || new_nonce().map(|nonce| Some(Nonce { nonce }));
        match key.kind() {
            PublicKeyKind::Rsa(_) => Ok(Self { rsa_signature: nonce()?, ecdsa_signature: None }),
            PublicKeyKind::EcP256 | PublicKeyKind::EcP384 | PublicKeyKind::EcP521 => {
                Ok(Self { rsa_signature: None, ecdsa_signature: nonce()? })
            }
            PublicKeyKind::Ed25519 | PublicKeyKind::Other => Err(ProofError::KeyKind),
        }
    }

    /// The agent's answer.
    pub(crate) fn answer(&self, key: &PrivateKey) -> Result<Response, ProofError> {
        let (challenge, alg) = match key.public().kind() {
            PublicKeyKind::Rsa(_) => {
                (self.rsa_signature.as_ref().ok_or(ProofError::NoRsaChallenge)?, SigAlg::RsaPssSha256)
            }
            PublicKeyKind::EcP256 => {
                (self.ecdsa_signature.as_ref().ok_or(ProofError::NoEcdsaChallenge)?, SigAlg::EcdsaP256Sha256)
            }
            PublicKeyKind::EcP384 => {
                (self.ecdsa_signature.as_ref().ok_or(ProofError::NoEcdsaChallenge)?, SigAlg::EcdsaP384Sha256)
            }
            PublicKeyKind::EcP521 => {
                (self.ecdsa_signature.as_ref().ok_or(ProofError::NoEcdsaChallenge)?, SigAlg::EcdsaP521Sha256)
            }
            PublicKeyKind::Ed25519 | PublicKeyKind::Other => return Err(ProofError::KeyKind),
        };
        let nonce = new_nonce()?;
        // What is signed is the digest of both nonces, as if they were the message.
        let message = combine(&challenge.nonce, &nonce)?;
        let signature = key.sign(alg, &message).map_err(|_| ProofError::Sign)?;
        if alg == SigAlg::RsaPssSha256 {
            let signature = Bytes(signature.as_bytes().to_vec());
            return Ok(Response {
                rsa_signature: Some(RsaSignature { nonce, signature }),
                ecdsa_signature: None,
            });
        }
        let (r, s) = signature.ecdsa_parts().ok_or(ProofError::Sign)?;
        let (r, s) = (Bytes(r.to_vec()), Bytes(s.to_vec()));
        Ok(Response { rsa_signature: None, ecdsa_signature: Some(EcdsaSignature { nonce, r, s }) })
    }

    /// The server's judgement.
    pub(crate) fn verify(&self, key: &PublicKey, response: &Response) -> Result<(), ProofError> {
        match key.kind() {
            PublicKeyKind::Rsa(_) => {
                let challenge = self.rsa_signature.as_ref().ok_or(ProofError::NoRsaChallenge)?;
                let response = response.rsa_signature.as_ref().ok_or(ProofError::NoRsaResponse)?;
                let message = combine(&challenge.nonce, &response.nonce)?;
                let signature = Signature::new(response.signature.0.clone());
                key.verify(SigAlg::RsaPssSha256, &message, &signature).map_err(|_| ProofError::Rsa)
            }
            kind @ (PublicKeyKind::EcP256 | PublicKeyKind::EcP384 | PublicKeyKind::EcP521) => {
                let challenge = self.ecdsa_signature.as_ref().ok_or(ProofError::NoEcdsaChallenge)?;
                let response = response.ecdsa_signature.as_ref().ok_or(ProofError::NoEcdsaResponse)?;
                let message = combine(&challenge.nonce, &response.nonce)?;
                // Numbers longer than those of any curve are no signature.
                if response.r.0.len() > 66 || response.s.0.len() > 66 {
                    return Err(ProofError::Ecdsa);
                }
                let signature = Signature::from_ecdsa_parts(&response.r.0, &response.s.0);
                let alg = match kind {
                    PublicKeyKind::EcP256 => SigAlg::EcdsaP256Sha256,
                    PublicKeyKind::EcP384 => SigAlg::EcdsaP384Sha256,
                    PublicKeyKind::EcP521
                    | PublicKeyKind::Rsa(_)
                    | PublicKeyKind::Ed25519
                    | PublicKeyKind::Other => SigAlg::EcdsaP521Sha256,
                };
                key.verify(alg, &message, &signature).map_err(|_| ProofError::Ecdsa)
            }
            PublicKeyKind::Ed25519 | PublicKeyKind::Other => Err(ProofError::KeyKind),
        }
    }
}

fn combine(challenge: &Bytes, response: &Bytes) -> Result<Vec<u8>, ProofError> {
    if challenge.0.len() != NONCE {
        return Err(ProofError::ChallengeNonce);
    }
    if response.0.len() != NONCE {
        return Err(ProofError::ResponseNonce);
    }
    Ok([challenge.0.as_slice(), response.0.as_slice()].concat())
}

fn new_nonce() -> Result<Bytes, ProofError> {
    let mut nonce = vec![0; NONCE];
    SystemRandom::new().fill(&mut nonce).map_err(|_| ProofError::Random)?;
    Ok(Bytes(nonce))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use spiffe::key::KeyKind;
    use spiffe::x509::{Certificate, pem_blocks};

    const EC: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../conformance/wire-exchanges/attest-x509pop-ec.json"
    ));
    const RSA: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../conformance/wire-exchanges/attest-x509pop-rsa.json"
    ));

    fn bytes(message: &Value) -> Vec<u8> {
        BASE64_STANDARD.decode(message.as_str().unwrap()).unwrap()
    }

    #[test]
    fn recorded_proofs_hold_and_are_written_the_same() {
        for recorded in [EC, RSA] {
            let recorded: Value = serde_json::from_str(recorded).unwrap();
            let messages = &recorded["calls"][0]["messages"];
            let payload = bytes(&messages[0]["decoded"]["params"]["data"]["payload"]);
            let challenge = bytes(&messages[1]["decoded"]["challenge"]);
            let response = bytes(&messages[2]["decoded"]["challenge_response"]);

            let parsed: Payload = serde_json::from_slice(&payload).unwrap();
            assert_eq!(serde_json::to_vec(&parsed).unwrap(), payload);
            let pem = recorded["certificate"].as_str().unwrap();
            assert_eq!(parsed.certificates[0].0, pem_blocks(pem.as_bytes(), "CERTIFICATE")[0]);
            let key = Certificate::parse(&parsed.certificates[0].0).unwrap().public_key().clone();

            let asked: Challenge = serde_json::from_slice(&challenge).unwrap();
            let answered: Response = serde_json::from_slice(&response).unwrap();
            assert_eq!(asked.verify(&key, &answered), Ok(()));
            assert_eq!(serde_json::to_vec(&asked).unwrap(), challenge);
            assert_eq!(serde_json::to_vec(&answered).unwrap(), response);

            // The same answer to another question.
            let other = Challenge::new(&key).unwrap();
            assert!(matches!(other.verify(&key, &answered), Err(ProofError::Rsa | ProofError::Ecdsa)));
        }
    }

    fn generated(kind: KeyKind) -> PrivateKey {
        PrivateKey::generate(kind).unwrap()
    }

    fn p521() -> PrivateKey {
        use aws_lc_rs::signature::{ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair};

        let pair = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_ASN1_SIGNING).unwrap();
        PrivateKey::from_der(pair.to_pkcs8v1().unwrap().as_ref()).unwrap()
    }

    #[test]
    fn keys_of_every_kind_prove_themselves() {
        let kinds = [KeyKind::EcP256, KeyKind::EcP384, KeyKind::Rsa2048];
        for (key, stranger) in
            kinds.map(|kind| (generated(kind), generated(kind))).into_iter().chain([(p521(), p521())])
        {
            let challenge = Challenge::new(key.public()).unwrap();

            let response = challenge.answer(&key).unwrap();

            assert_eq!(challenge.verify(key.public(), &response), Ok(()));
            assert!(challenge.verify(stranger.public(), &response).is_err());
        }
    }

    #[test]
    fn proofs_of_another_form_are_refused() {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let challenge = Challenge::new(key.public()).unwrap();
        let verify = |response: &str| {
            challenge.verify(key.public(), &serde_json::from_str::<Response>(response).unwrap())
        };

        assert_eq!(verify("{}"), Err(ProofError::NoEcdsaResponse));
        assert_eq!(
            verify("{\"ecdsa_signature\":{\"nonce\":\"AAAA\",\"r\":null}}"),
            Err(ProofError::ResponseNonce)
        );
        let rsa: Challenge = serde_json::from_str("{\"rsa_signature\":{\"nonce\":\"\"}}").unwrap();
        assert_eq!(rsa.answer(&key).err(), Some(ProofError::NoEcdsaChallenge));
    }
}
