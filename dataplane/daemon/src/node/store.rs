//! What a daemon remembers over its restarts: who it is, and the newest desired state that it accepted.
//!
//! Two files in the data directory, each replaced as a whole (written aside, synced, renamed, directory synced):
//!
//! ```text
//! identity   JSON {instance_id, cluster_id}
//! desired    8 magic "BSLTDES1" | 4 length | 4 CRC32C of all other bytes | JSON of the agent's DesiredNode
//! ```
//!
//! Integers are little endian. A `lock` file keeps a second daemon out of the same directory.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use basalt_agent::DesiredNode;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::claims;
use crate::cores::WantedCores;

const DESIRED_MAGIC: &[u8; 8] = b"BSLTDES1";
const DESIRED_HEADER_BYTES: usize = 16;
/// A longer file is not one of ours: a node has at most some thousands of volumes of some hundred bytes each.
const DESIRED_BYTES_MAX: u64 = 64 << 20;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another daemon runs with this directory.
    #[error(
        "{} is in use by another basaltd; stop it, or give this one a --data-dir of its own",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file's content is not what was written.
    #[error(
        "{} is damaged ({what}); the data on the pools is not affected. To let the control plane send the \
         desired state again, move the file away and restart",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Who this daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    instance_id: Uuid,
    cluster_id: Option<String>,
    /// The cores that the control plane wants reactors on, since its last word.
    #[serde(default)]
    cores: Option<WantedCores>,
}

/// Who this daemon is, and the exclusive hold of its data directory.
#[derive(Debug)]
pub(crate) struct IdentityFile {
    directory: PathBuf,
    identity: Identity,
    _lock: File,
}

impl IdentityFile {
    /// Opens the directory, or makes it with a new instance id.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was changed if a file is damaged or the directory is in use.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
        let lock_path = directory.join("lock");
        let lock = File::create(&lock_path).map_err(failed("open", &lock_path))?;
        match claims::lock(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { path: directory.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &lock_path)(source)),
        }
        let path = directory.join("identity");
        let identity = match read(&path)? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|_| StoreError::Damaged { path, what: "it is not JSON of ours" })?,
            None => {
                let identity = Identity { instance_id: Uuid::new_v4(), cluster_id: None, cores: None };
                write_identity(directory, &identity)?;
                identity
            }
        };
        Ok(Self { directory: directory.to_owned(), identity, _lock: lock })
    }

    /// The identity of this daemon's data directory; a node name is bound to the first one that registers.
    pub(crate) fn instance_id(&self) -> Uuid {
        self.identity.instance_id
    }

    /// The cluster that welcomed this daemon first.
    pub(crate) fn cluster_id(&self) -> Option<&str> {
        self.identity.cluster_id.as_deref()
    }

    /// The cores that the control plane wants reactors on, as it last said.
    pub(crate) fn cores(&self) -> Option<&WantedCores> {
        self.identity.cores.as_ref()
    }

    /// Remembers the cores for the next start.
    ///
    /// # Errors
    /// [`StoreError`]; the previous ones are remembered then.
    pub(crate) fn set_cores(&mut self, cores: WantedCores) -> Result<(), StoreError> {
        let identity = Identity { cores: Some(cores), ..self.identity.clone() };
        write_identity(&self.directory, &identity)?;
        self.identity = identity;
        Ok(())
    }

    /// Binds the daemon to its cluster, for good.
    ///
    /// # Errors
    /// [`StoreError`]; the daemon is not bound then.
    pub(crate) fn bind_cluster(&mut self, cluster_id: &str) -> Result<(), StoreError> {
        assert!(self.identity.cluster_id.is_none(), "a daemon is bound to one cluster only");
        let identity = Identity { cluster_id: Some(cluster_id.to_owned()), ..self.identity.clone() };
        write_identity(&self.directory, &identity)?;
        self.identity = identity;
        Ok(())
    }
}

/// The newest desired state, kept for the agent.
#[derive(Debug, Clone)]
pub(crate) struct DesiredFile {
    directory: PathBuf,
}

impl DesiredFile {
    /// The file in a data directory that [`IdentityFile`] holds.
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// What was saved last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn load(&self) -> Result<Option<DesiredNode>, StoreError> {
        let path = self.directory.join("desired");
        match read(&path)? {
            Some(bytes) => decode(&bytes).map(Some).map_err(|what| StoreError::Damaged { path, what }),
            None => Ok(None),
        }
    }

    /// Makes a desired state durable; the previous one stays in force on an error.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn save(&self, desired: &DesiredNode) -> Result<(), StoreError> {
        let bytes = encode(desired).map_err(failed("encode", &self.directory.join("desired")))?;
        replace(&self.directory, "desired", &bytes)
    }
}

fn write_identity(directory: &Path, identity: &Identity) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(identity)
        .map_err(|source| failed("encode", &directory.join("identity"))(source.into()))?;
    replace(directory, "identity", &bytes)
}

fn encode(desired: &DesiredNode) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(desired)?;
    let length = u32::try_from(body.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut bytes = Vec::with_capacity(DESIRED_HEADER_BYTES + body.len());
    bytes.extend_from_slice(DESIRED_MAGIC);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(&bytes, &body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<DesiredNode, &'static str> {
    let Some((header, body)) = bytes.split_at_checked(DESIRED_HEADER_BYTES) else {
        return Err("it is shorter than its header");
    };
    let (fields, stored) = header.split_at(DESIRED_HEADER_BYTES - 4);
    if &fields[..8] != DESIRED_MAGIC {
        return Err("it has no magic number");
    }
    if checksum(fields, body).to_le_bytes() != stored {
        return Err("its checksum does not fit");
    }
    serde_json::from_slice(body).map_err(|_| "it is not a desired state")
}

fn checksum(fields: &[u8], body: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(fields);
    digest.update(body);
    // The algorithm has 32 bits.
    u32::try_from(digest.finalize()).unwrap_or(u32::MAX)
}

/// A file's bytes, or nothing if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > DESIRED_BYTES_MAX => {
            Err(StoreError::Damaged { path: path.to_owned(), what: "far too long" })
        }
        Ok(_) => Ok(Some(fs::read(path).map_err(failed("read", path))?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let path = directory.join(name);
    let aside = directory.join(format!("{name}.new"));
    let mut file = File::create(&aside).map_err(failed("create", &aside))?;
    file.write_all(bytes).map_err(failed("write", &aside))?;
    file.sync_all().map_err(failed("sync", &aside))?;
    fs::rename(&aside, &path).map_err(failed("replace", &path))?;
    let parent = File::open(directory).map_err(failed("open", directory))?;
    parent.sync_all().map_err(failed("sync", directory))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use basalt_lvol::id::{ClusterId, Revision};

    pub(crate) fn desired(index: u64) -> DesiredNode {
        DesiredNode {
            cluster: ClusterId(Uuid::from_u128(5)),
            revision: Revision { incarnation: 1, index },
            listeners: Vec::new(),
            pools: Vec::new(),
            volumes: Vec::new(),
            tombstones: Vec::new(),
        }
    }

    #[test]
    fn everything_survives_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let mut identity = IdentityFile::open(directory.path()).unwrap();
        let file = DesiredFile::new(directory.path());
        let instance = identity.instance_id();
        assert_eq!((identity.cluster_id(), file.load().unwrap()), (None, None));
        identity.bind_cluster("c").unwrap();
        identity.set_cores(WantedCores::Count(2)).unwrap();
        file.save(&desired(7)).unwrap();
        file.save(&desired(9)).unwrap();
        drop(identity);
        let identity = IdentityFile::open(directory.path()).unwrap();
        assert_eq!(identity.instance_id(), instance);
        assert_eq!(identity.cluster_id(), Some("c"));
        assert_eq!(identity.cores(), Some(&WantedCores::Count(2)));
        assert_eq!(file.load().unwrap(), Some(desired(9)));
    }

    #[test]
    fn a_second_daemon_is_kept_out() {
        let directory = tempfile::tempdir().unwrap();
        let _first = IdentityFile::open(directory.path()).unwrap();
        assert!(matches!(IdentityFile::open(directory.path()), Err(StoreError::InUse { .. })));
    }

    #[test]
    fn every_flipped_bit_and_every_short_file_is_found() {
        let good = encode(&desired(7)).unwrap();
        assert_eq!(decode(&good), Ok(desired(7)));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            assert!(decode(&good[..length]).is_err(), "length {length}");
        }
    }
}
