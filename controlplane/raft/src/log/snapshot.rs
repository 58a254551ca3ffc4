//! Snapshots on the disk: the newest two are kept.

use super::identity::bad_document;
use super::record::{Reader, seal, unseal};
use crate::disk::{Disk, read_all, replace};
use crate::error::LogError;
use crate::message::Membership;
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"BSLTSNAP";
const PREFIX: &str = "snapshot-";
/// How many snapshots are kept.
const KEPT: usize = 2;

/// The state at an index of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last log index that it covers.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// Who takes part at that index.
    pub membership: Membership,
    /// The state, as its owner encoded it.
    pub data: Arc<Vec<u8>>,
}

impl Snapshot {
    fn file(&self) -> String {
        format!("{PREFIX}{:016x}-{:016x}", self.index, self.term)
    }

    fn emit(&self) -> Result<Vec<u8>, LogError> {
        let membership = serde_json::to_vec(&self.membership)
            .map_err(|source| LogError::Document { file: self.file(), source })?;
        let mut payload = Vec::with_capacity(20 + membership.len() + self.data.len());
        payload.extend_from_slice(&self.index.to_le_bytes());
        payload.extend_from_slice(&self.term.to_le_bytes());
        payload.extend_from_slice(&u32::try_from(membership.len()).unwrap_or(u32::MAX).to_le_bytes());
        payload.extend_from_slice(&membership);
        payload.extend_from_slice(&self.data);
        Ok(seal(MAGIC, &payload))
    }

    fn parse(file: &str, sealed: &[u8]) -> Result<Self, LogError> {
        let damaged =
            || LogError::Damaged { file: file.to_owned(), offset: 24, problem: "the snapshot is cut short" };
        let payload = unseal(MAGIC, sealed).map_err(|header| bad_document(file, header))?;
        let mut reader = Reader(payload);
        let index = reader.u64().ok_or_else(damaged)?;
        let term = reader.u64().ok_or_else(damaged)?;
        let length = reader.u32().and_then(|length| usize::try_from(length).ok()).ok_or_else(damaged)?;
        let membership = serde_json::from_slice(reader.take(length).ok_or_else(damaged)?)
            .map_err(|source| LogError::Document { file: file.to_owned(), source })?;
        Ok(Self { index, term, membership, data: Arc::new(reader.0.to_vec()) })
    }
}

/// The names of all snapshots, oldest first.
fn names<D: Disk>(disk: &D) -> Result<Vec<String>, LogError> {
    let is_snapshot = |name: &String| name.starts_with(PREFIX) && !name.ends_with(".tmp");
    Ok(disk.list()?.into_iter().filter(is_snapshot).collect())
}

/// The snapshots that verify, newest first; damaged ones are skipped and reported by `damaged`.
pub(crate) fn load<D: Disk>(
    disk: &mut D,
    mut damaged: impl FnMut(LogError),
) -> Result<Vec<Snapshot>, LogError> {
    let mut snapshots = Vec::new();
    for name in names(disk)?.into_iter().rev() {
        let sealed = read_all(disk, &name)?;
        match Snapshot::parse(&name, &sealed) {
            Ok(snapshot) => snapshots.push(snapshot),
            Err(error @ LogError::Version { .. }) => return Err(error),
            Err(error) => damaged(error),
        }
    }
    Ok(snapshots)
}

/// Writes a snapshot durably, then removes those that are not kept.
pub(crate) fn store<D: Disk>(disk: &mut D, snapshot: &Snapshot) -> Result<(), LogError> {
    replace(disk, &snapshot.file(), &snapshot.emit()?)?;
    let names = names(disk)?;
    for name in names.iter().rev().skip(KEPT) {
        disk.remove(name)?;
    }
    Ok(())
}
