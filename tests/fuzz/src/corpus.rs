//! Inputs that are kept: small files, a folder per target.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The inputs of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    inputs: Vec<Vec<u8>>,
}

/// A longer input is not kept: it would make every case slow.
pub(crate) const INPUT_BYTES_MAX: usize = 64 << 10;

/// Where the corpora are.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

impl Corpus {
    /// Reads the inputs of a target, in the order of their names.
    ///
    /// # Errors
    /// If there are none, or one is too large.
    pub fn load(target: &str) -> Result<Self> {
        let folder = folder().join(target);
        let listed = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        // Sorted: the order of a directory is not the same everywhere.
        let mut inputs = BTreeMap::new();
        for entry in listed {
            let path = entry?.path();
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            ensure!(
                bytes.len() <= INPUT_BYTES_MAX,
                "{} is longer than {INPUT_BYTES_MAX} bytes",
                path.display()
            );
            inputs.insert(path, bytes);
        }
        ensure!(!inputs.is_empty(), "{} holds no inputs", folder.display());
        Ok(Self { inputs: inputs.into_values().collect() })
    }

    /// The inputs.
    #[must_use]
    pub fn inputs(&self) -> &[Vec<u8>] {
        &self.inputs
    }
}
