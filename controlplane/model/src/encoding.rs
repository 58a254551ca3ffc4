//! The stored form of commands and states: one byte that names the encoding, then the document.
//!
//! `docs/control-plane-format.md` is the description; golden files in `tests/golden` keep it stable.

use crate::command::Command;
use crate::state::State;

/// Encoding 1: a JSON document. Self-describing, so that a field can be added with a default.
const JSON: u8 = 1;

/// Why stored bytes are not a command or state.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There is nothing.
    #[error("the document is empty")]
    Empty,
    /// Written by a later program.
    #[error("the document has encoding {found}, this program knows {JSON}; run a newer version")]
    UnknownEncoding {
        /// The encoding.
        found: u8,
    },
    /// Written by a later program.
    #[error("the command has version {found}, this program knows {known}; run a newer version")]
    UnknownVersion {
        /// The version.
        found: u16,
        /// The newest known one.
        known: u16,
    },
    /// Not what it should be.
    #[error("the document is malformed")]
    Malformed(#[from] serde_json::Error),
}

/// Why a command or state could not be written down.
#[derive(Debug, thiserror::Error)]
#[error("the document cannot be encoded")]
pub struct EncodeError(#[from] serde_json::Error);

impl Command {
    /// The bytes that go into the log.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        encode(self)
    }

    /// Reads what [`Command::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        #[derive(serde::Deserialize)]
        struct Envelope {
            version: u16,
        }
        let document = document(bytes)?;
        let found = serde_json::from_slice::<Envelope>(document)?.version;
        if found != Self::VERSION {
            return Err(DecodeError::UnknownVersion { found, known: Self::VERSION });
        }
        Ok(serde_json::from_slice(document)?)
    }
}

impl State {
    /// The bytes that go into a snapshot.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        if basalt_clock::planted!("request-ids-lost-in-snapshot") {
            let mut forgetful = self.clone();
            forgetful.requests.clear();
            return encode(&forgetful);
        }
        encode(self)
    }

    /// Reads what [`State::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut state: State = serde_json::from_slice(document(bytes)?)?;
        state.reindex();
        Ok(state)
    }
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = vec![JSON];
    serde_json::to_writer(&mut bytes, value)?;
    Ok(bytes)
}

fn document(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    match bytes.split_first() {
        None => Err(DecodeError::Empty),
        Some((&JSON, document)) => Ok(document),
        Some((&found, _)) => Err(DecodeError::UnknownEncoding { found }),
    }
}
