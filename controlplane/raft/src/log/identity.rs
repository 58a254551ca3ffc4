//! Who a disk belongs to.

use super::record::{Header, seal, unseal};
use crate::disk::{Disk, read_all, replace};
use crate::error::LogError;
use basalt_model::{ClusterId, DiskId, MemberId};
use serde::{Deserialize, Serialize};

const FILE: &str = "identity";
const MAGIC: [u8; 8] = *b"BSLTIDEN";

/// Who a disk belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The member that the disk is bound to.
    pub member: MemberId,
    /// The disk.
    pub disk: DiskId,
    /// The cluster that it is bound to; `None` until it has joined one.
    pub cluster: Option<ClusterId>,
}

/// Reads the identity of a disk; `None` for an empty one.
pub(crate) fn load<D: Disk>(disk: &mut D) -> Result<Option<Identity>, LogError> {
    if !disk.list()?.iter().any(|name| name == FILE) {
        return Ok(None);
    }
    let sealed = read_all(disk, FILE)?;
    let payload = unseal(MAGIC, &sealed).map_err(|header| bad_document(FILE, header))?;
    let identity = serde_json::from_slice(payload)
        .map_err(|source| LogError::Document { file: FILE.to_owned(), source })?;
    Ok(Some(identity))
}

/// Writes the identity of a disk.
pub(crate) fn store<D: Disk>(disk: &mut D, identity: &Identity) -> Result<(), LogError> {
    let payload = serde_json::to_vec(identity)
        .map_err(|source| LogError::Document { file: FILE.to_owned(), source })?;
    Ok(replace(disk, FILE, &seal(MAGIC, &payload))?)
}

/// The error for a document whose header does not verify.
pub(crate) fn bad_document(file: &str, header: Header) -> LogError {
    match header {
        Header::Version(found) => {
            LogError::Version { file: file.to_owned(), found, known: super::record::VERSION }
        }
        Header::Damaged | Header::Valid => {
            LogError::Damaged { file: file.to_owned(), offset: 0, problem: "the checksum is wrong" }
        }
    }
}
