//! What a guest boots from: kernel, initial RAM disk and root file system, built once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::{Error, packages};

/// What is built, in the order in which it is hashed.
const SOURCES: [&str; 4] = ["agent", "build-image.sh", "host-call", "init"];

/// A built image.
#[derive(Clone, Debug)]
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// The cached image, built first (as root, a minute or two) when its sources changed or it was never built. `say` gets a
    /// line per slow step.
    ///
    /// # Errors
    /// [`Error::Missing`] and [`Error::Failed`] when it cannot be built, [`Error::File`] when there is no place for it.
    pub fn ensure(say: &mut dyn FnMut(&str)) -> Result<Self, Error> {
        packages::ensure(packages::GUEST, say)?;
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
        let image = Self { dir: basalt_kube::cache_root()?.join("guest").join(fingerprint(&sources)?) };
        if image.is_complete() {
            return Ok(image);
        }
        fs::create_dir_all(&image.dir).map_err(Error::file("creating", &image.dir))?;
        let lock_path = image.dir.join("lock");
        let lock = File::create(&lock_path).map_err(Error::file("creating", &lock_path))?;
        lock.lock().map_err(Error::file("locking", &lock_path))?;
        if !image.is_complete() {
            say("building the guest image: a Debian root and a kernel (once; minutes)");
            image.build(&sources)?;
        }
        Ok(image)
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }

    fn mark(&self) -> PathBuf {
        self.dir.join("complete")
    }

    fn is_complete(&self) -> bool {
        self.mark().is_file()
    }

    fn build(&self, sources: &Path) -> Result<(), Error> {
        let log_path = self.dir.join("build.log");
        let log = File::create(&log_path).map_err(Error::file("creating", &log_path))?;
        let errors = log.try_clone().map_err(Error::file("opening", &log_path))?;
        let script = sources.join("build-image.sh");
        let status = Command::new("bash")
            .arg(&script)
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .status()
            .map_err(Error::run("bash"))?;
        if !status.success() {
            let message = format!("{status}; what it said is in {}", log_path.display());
            return Err(Error::Failed { program: script.display().to_string(), message });
        }
        File::create(self.mark()).map(|_| ()).map_err(Error::file("creating", &self.mark()))
    }
}

fn fingerprint(sources: &Path) -> Result<String, Error> {
    let mut hash = Sha256::new();
    for name in SOURCES {
        let path = sources.join(name);
        let text = fs::read(&path).map_err(Error::file("reading", &path))?;
        hash.update(name);
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    }
    Ok(hex::encode(&hash.finalize()[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_hashed() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
        let mut names: Vec<String> = fs::read_dir(sources)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, SOURCES);
    }
}
