//! What a hub signs: this site is to hold this model. A site acts on nothing else.
//!
//! The signature covers the text that is sent, not a reading of it, and the text names its own kind and the site, so
//! that a statement for one site or purpose is nothing for another.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

const KIND: &str = "kedge.dev/assigned-model/v1";

/// A model that a site is to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// For which site.
    pub site: String,
    /// The model's namespace, here and there.
    pub namespace: String,
    /// The model's name.
    pub name: String,
    /// The uid of the Model at the hub.
    pub uid: String,
    /// The digest of its manifest.
    pub digest: String,
    /// Bytes of its files.
    pub bytes: u64,
}

impl Assignment {
    /// Its key in the link.
    pub fn key(&self) -> String {
        format!("Model/{}/{}", self.namespace, self.name)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    kind: String,
    model: Assignment,
}

/// A statement with its signature, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    statement: String,
    signature: String,
}

impl Assignment {
    /// What a statement says, for whoever made it: the signature is not looked at.
    pub fn unverified(text: &str) -> Option<Self> {
        let signed: Signed = serde_json::from_str(text).ok()?;
        let statement: Statement = serde_json::from_str(&signed.statement).ok()?;
        Some(statement.model)
    }
}

/// Why a statement is not acted on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// The key cannot be used.
    #[error("the signing key cannot be used: {0}")]
    Key(String),
    /// It is no statement.
    #[error("what the hub sent is no signed statement: {0}")]
    Form(String),
    /// Somebody else signed it, or it was changed.
    #[error("the statement was not signed by the hub that this site joined, or it was changed on its way")]
    Signature,
    /// It is about another site or another model.
    #[error("the hub's statement is about {0} and not about {1}")]
    Other(String, String),
}

/// The hub's key.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// A new key as PKCS #8.
    ///
    /// # Panics
    /// When the operating system has no random numbers.
    pub fn generate() -> Vec<u8> {
        let random = ring::rand::SystemRandom::new();
        let key = Ed25519KeyPair::generate_pkcs8(&random).expect("the operating system always has random numbers");
        key.as_ref().to_vec()
    }

    /// Reads what [`SigningKey::generate`] made.
    pub fn read(pkcs8: &[u8]) -> Result<Self, StatementError> {
        Ed25519KeyPair::from_pkcs8(pkcs8).map(Self).map_err(|error| StatementError::Key(error.to_string()))
    }

    /// What sites check signatures with.
    pub fn public(&self) -> VerifyingKey {
        VerifyingKey(self.0.public_key().as_ref().to_vec())
    }

    /// Signs an assignment; the same one always gives the same text.
    pub fn sign(&self, model: &Assignment) -> String {
        let statement = Statement { kind: KIND.into(), model: model.clone() };
        let statement = serde_json::to_string(&statement).expect("plain data");
        let signature = STANDARD.encode(self.0.sign(statement.as_bytes()));
        serde_json::to_string(&Signed { statement, signature }).expect("plain data")
    }
}

/// What signatures of a hub are checked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey(pub Vec<u8>);

impl VerifyingKey {
    /// The assignment in `text`, if this key signed it for `site` under the link's key `key`.
    pub fn open(&self, text: &str, site: &str, key: &str) -> Result<Assignment, StatementError> {
        let form = |error: &dyn std::fmt::Display| StatementError::Form(error.to_string());
        let signed: Signed = serde_json::from_str(text).map_err(|e| form(&e))?;
        let signature = STANDARD.decode(&signed.signature).map_err(|e| form(&e))?;
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(signed.statement.as_bytes(), &signature)
            .map_err(|_| StatementError::Signature)?;
        let Statement { kind, model } = serde_json::from_str(&signed.statement).map_err(|e| form(&e))?;
        if kind != KIND {
            return Err(StatementError::Form(format!("a statement of the kind {kind:?}")));
        }
        if model.site != site {
            return Err(StatementError::Other(format!("site {}", model.site), site.to_owned()));
        }
        if model.key() != key {
            return Err(StatementError::Other(model.key(), key.to_owned()));
        }
        Ok(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_counts_only_whole_for_its_site_and_from_its_hub() {
        let key = SigningKey::read(&SigningKey::generate()).unwrap();
        let model = Assignment {
            site: "shop-1".into(),
            namespace: "default".into(),
            name: "m".into(),
            uid: "u".into(),
            digest: "sha256:00".into(),
            bytes: 5,
        };
        let text = key.sign(&model);
        assert_eq!(text, key.sign(&model));
        let open = |text: &str, site, name| key.public().open(text, site, name);
        assert_eq!(open(&text, "shop-1", "Model/default/m"), Ok(model.clone()));
        assert_eq!(Assignment::unverified(&text).as_ref(), Some(&model));
        assert!(matches!(open(&text, "shop-2", "Model/default/m"), Err(StatementError::Other(..))));
        assert!(matches!(open(&text, "shop-1", "Model/default/n"), Err(StatementError::Other(..))));
        assert_eq!(
            open(&text.replace("sha256:00", "sha256:01"), "shop-1", "Model/default/m"),
            Err(StatementError::Signature)
        );
        let other = SigningKey::read(&SigningKey::generate()).unwrap();
        assert_eq!(open(&other.sign(&model), "shop-1", "Model/default/m"), Err(StatementError::Signature));
        assert!(matches!(open("{}", "shop-1", "Model/default/m"), Err(StatementError::Form(_))));
    }
}
