//! Join tokens: `K10<SHA-256 of the hub's authority>::<id>.<secret>`, the form that k3s gives its tokens.
//!
//! The hash lets a site know its hub before it says anything to it; the id names the token in lists and errors; the
//! secret is kept by the hub as a hash only.

use kedge_world::Random;
use sha2::{Digest, Sha256};

const ID_LETTERS: usize = 6;
const SECRET_BYTES: usize = 20;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the certificate of the hub's authority.
    pub authority: [u8; 32],
    /// Which token; not secret.
    pub id: String,
    /// What proves the invitation.
    pub secret: String,
}

/// A text that is no join token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the join token is {0}; copy the whole line that `kedge site token create` printed at the hub (K10...::....)")]
pub struct TokenError(&'static str);

impl JoinToken {
    /// A new token of the hub with this authority.
    pub fn make(authority: [u8; 32], random: &dyn Random) -> Self {
        let mut secret = [0; SECRET_BYTES];
        random.fill(&mut secret);
        Self { authority, id: random.suffix(ID_LETTERS), secret: hex::encode(secret) }
    }

    /// Reads a token as it was printed.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError("empty"));
        }
        let rest = text.strip_prefix("K10").ok_or(TokenError("not one of a hub (it does not begin with K10)"))?;
        let (hash, rest) = rest.split_once("::").ok_or(TokenError("cut short"))?;
        let mut authority = [0; 32];
        hex::decode_to_slice(hash, &mut authority).map_err(|_| TokenError("damaged in its first part"))?;
        let (id, secret) = rest.split_once('.').ok_or(TokenError("cut short"))?;
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if id.len() != ID_LETTERS || secret.len() != SECRET_BYTES * 2 || !plain(id) || !plain(secret) {
            return Err(TokenError("cut short or damaged in its last part"));
        }
        Ok(Self { authority, id: id.to_owned(), secret: secret.to_owned() })
    }

    /// What the hub keeps of the secret.
    pub fn secret_hash(&self) -> String {
        hex::encode(Sha256::digest(self.secret.as_bytes()))
    }
}

impl std::fmt::Display for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "K10{}::{}.{}", hex::encode(self.authority), self.id, self.secret)
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_world::sim::SimRandom;

    #[test]
    fn a_token_is_read_as_it_was_printed_and_damage_is_named() {
        let token = JoinToken::make([7; 32], &SimRandom::seeded(1));
        let text = token.to_string();
        assert_eq!(JoinToken::parse(&format!(" {text}\n")), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));
        for bad in ["", "K10", "hello", &text[..40], &text[..text.len() - 1], &text.replace("0707", "07zz"), &text[1..]]
        {
            let error = JoinToken::parse(bad).unwrap_err().to_string();
            assert!(error.contains("kedge site token create"), "{bad}: {error}");
        }
    }
}
