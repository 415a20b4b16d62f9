//! The bearer token that proves to the control plane who the workload is.

use std::fmt;
use std::io;
use std::path::PathBuf;

use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};

/// Longest token we read or accept, in bytes. Kubernetes' are about 1 KiB.
pub(crate) const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// A bearer token. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token, without white space around it.
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The secret itself, for the `authorization` header.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token { <hidden> }")
    }
}

/// Where the token comes from; asked again for every call, because tokens are renewed underneath.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// A file, as Kubernetes and Istio project it (`./var/run/secrets/tokens/istio-token`).
    File(PathBuf),
    /// A token that somebody else in this process keeps fresh.
    Watch(watch::Receiver<Option<Token>>),
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenSourceError {
    /// The file cannot be read.
    #[error("cannot read the token file {}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing in it, or something that cannot be a token.
    #[error("{origin} holds no usable token: expected 1 to {MAX_TOKEN_BYTES} visible ASCII characters")]
    Unusable {
        /// The file, or `the token channel`.
        origin: String,
    },
}

impl TokenSource {
    /// The token as it is now.
    ///
    /// # Errors
    /// When there is none.
    pub async fn current(&self) -> Result<Token, TokenSourceError> {
        let (token, origin) = match self {
            Self::File(path) => {
                let token = read_bounded(path).await.map_err(|source| TokenSourceError::File { path: path.clone(), source })?;
                (Some(token), path.display().to_string())
            }
            Self::Watch(receiver) => (receiver.borrow().clone(), "the token channel".to_owned()),
        };
        token.filter(is_usable).ok_or(TokenSourceError::Unusable { origin })
    }
}

async fn read_bounded(path: &PathBuf) -> io::Result<Token> {
    let mut text = String::new();
    // One byte more than allowed, so that a longer file is refused rather than cut.
    tokio::fs::File::open(path).await?.take(MAX_TOKEN_BYTES as u64 + 1).read_to_string(&mut text).await?;
    Ok(Token::new(&text))
}

fn is_usable(token: &Token) -> bool {
    (1..=MAX_TOKEN_BYTES).contains(&token.0.len()) && token.0.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A call to the control plane with what says who we are.
pub(crate) fn authenticated<T>(message: T, token: Option<&Token>, cluster_id: &str) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    if let Some(mut bearer) = token.and_then(|token| format!("Bearer {}", token.expose()).parse::<MetadataValue<Ascii>>().ok()) {
        bearer.set_sensitive(true);
        metadata.insert("authorization", bearer);
    }
    if let Ok(cluster_id) = cluster_id.parse() {
        metadata.insert("clusterid", cluster_id);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_again_for_every_call() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("istio-token");
        let source = TokenSource::File(path.clone());
        assert!(matches!(source.current().await, Err(TokenSourceError::File { .. })));
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(source.current().await.unwrap().expose(), "first");
        std::fs::write(&path, "second").unwrap();
        assert_eq!(source.current().await.unwrap().expose(), "second");
        for bad in ["", " \n", "two words", "line\nbreak", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(source.current().await, Err(TokenSourceError::Unusable { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_token_never_shows_in_debug_output() {
        assert_eq!(format!("{:?}", Token::new("secret")), "Token { <hidden> }");
    }
}
