//! Service account tokens: JWTs signed with ES256, bound to an account and perhaps to a pod, checked without I/O.
//! (`pkg/serviceaccount/{jwt,claims}.go`; KEP-1205.)

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Clocks of a cluster's parts may differ by this much.
const LEEWAY_SECONDS: i64 = 60;
/// Longer tokens are nobody's: ours are below 2 KiB.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who signed.
    pub iss: String,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub sub: String,
    /// For whom.
    pub aud: Vec<String>,
    /// When it ends, in seconds since 1970.
    pub exp: i64,
    /// When it was signed.
    pub iat: i64,
    /// When it begins.
    pub nbf: i64,
    /// Which token this is.
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
}

/// What a token is bound to: it ends with each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The account's namespace.
    pub namespace: String,
    /// The account.
    pub serviceaccount: Reference,
    /// The pod that was given the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The pod's node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// The secret that holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
}

/// An object, and which one of that name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(default)]
    pub uid: String,
}

/// Why a token is nobody's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The signing key cannot be used.
    #[error("the service account key cannot be used: {0}")]
    Key(String),
    /// Not a token of this form.
    #[error("not a service account token")]
    Form,
    /// Signed by somebody else.
    #[error("the token was not signed by this cluster")]
    Signature,
    /// Signed by this cluster under another name.
    #[error("the token's issuer is not this cluster")]
    Issuer,
    /// Too late, or too early.
    #[error("the token is not valid at this time")]
    Time,
}

/// Signs and checks tokens.
pub struct TokenSigner {
    key: EcdsaKeyPair,
    key_id: String,
    random: SystemRandom,
}

impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenSigner({})", self.key_id)
    }
}

impl TokenSigner {
    /// A signer with this PKCS #8 key on the curve P-256.
    pub fn new(pkcs8: &[u8]) -> Result<Self, TokenError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|e| TokenError::Key(e.to_string()))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Self { key_id: URL_SAFE_NO_PAD.encode(digest), key, random })
    }

    /// A token that says `claims`.
    pub fn sign(&self, claims: &Claims) -> String {
        let header = json!({ "alg": "ES256", "kid": self.key_id, "typ": "JWT" });
        let body = serde_json::to_vec(claims).expect("claims are plain data");
        let mut token = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(body));
        let signature = self.key.sign(&self.random, token.as_bytes()).expect("signing with a checked key succeeds");
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        token
    }

    /// What a token says, if this cluster signed it under one of `issuers` and `now` lies in its time. Whether what
    /// it is bound to still exists is for the caller to ask.
    pub fn verify(&self, token: &str, issuers: &[&str], now: Timestamp) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Form);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Form)?;
        let (header, body) = signed.split_once('.').ok_or(TokenError::Form)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Form);
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Form)?;
        if header["alg"] != "ES256" {
            return Err(TokenError::Form);
        }
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key());
        public.verify(signed.as_bytes(), &decode(signature)?).map_err(|_| TokenError::Signature)?;
        let claims: Claims = serde_json::from_slice(&decode(body)?).map_err(|_| TokenError::Form)?;
        if !issuers.contains(&&*claims.iss) {
            return Err(TokenError::Issuer);
        }
        let now = now.as_second();
        if now >= claims.exp + LEEWAY_SECONDS || now + LEEWAY_SECONDS < claims.nbf {
            return Err(TokenError::Time);
        }
        Ok(claims)
    }

    /// The public key as a JSON Web Key Set, for others who check tokens (`/openid/v1/jwks`).
    pub fn jwks(&self) -> Value {
        // An uncompressed point: a marker, then both coordinates.
        let point = self.key.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Identity, Purpose};

    fn signer() -> TokenSigner {
        let now = "2026-05-01T00:00:00Z".parse().unwrap();
        TokenSigner::new(&Identity::make("k", &Purpose::Authority, None, now, 1).unwrap().key_der()).unwrap()
    }

    fn claims() -> Claims {
        Claims {
            iss: "https://kubernetes.default.svc.cluster.local".into(),
            sub: "system:serviceaccount:default:web".into(),
            aud: vec!["api".into()],
            exp: 2000,
            iat: 1000,
            nbf: 1000,
            jti: "1".into(),
            bound: Bound {
                namespace: "default".into(),
                serviceaccount: Reference { name: "web".into(), uid: "u".into() },
                ..Bound::default()
            },
        }
    }

    #[test]
    fn tokens_are_checked_for_signer_issuer_and_time() {
        let signer = signer();
        let claims = claims();
        let issuers = [&*claims.iss];
        let token = signer.sign(&claims);
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(signer.verify(&token, &issuers, at(1500)).as_ref(), Ok(&claims));
        assert_eq!(signer.verify(&token, &issuers, at(2100)), Err(TokenError::Time));
        assert_eq!(signer.verify(&token, &issuers, at(900)), Err(TokenError::Time));
        assert_eq!(signer.verify(&token, &["other"], at(1500)), Err(TokenError::Issuer));
        assert_eq!(self::signer().verify(&token, &issuers, at(1500)), Err(TokenError::Signature));
        let mut bad = token.clone();
        bad.insert(token.find('.').unwrap() + 5, 'A');
        assert_eq!(signer.verify(&bad, &issuers, at(1500)), Err(TokenError::Signature));
        for text in ["", "a.b", "a.b.c", "....", &"x".repeat(20_000)] {
            assert_eq!(signer.verify(text, &issuers, at(1500)), Err(TokenError::Form));
        }
    }

    #[test]
    fn a_token_without_a_signature_is_no_token() {
        let signer = signer();
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims()).unwrap());
        let now = Timestamp::from_second(1500).unwrap();
        assert_eq!(signer.verify(&format!("{header}.{body}."), &[&claims().iss], now), Err(TokenError::Form));
    }
}
