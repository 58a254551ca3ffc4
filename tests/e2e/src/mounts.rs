//! File systems that are small or read-only, for what a disk may do to a process. They need root.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, cluster};

/// What fills a file system up.
const FILLER: &str = "filler";

/// A mounted file system; it is unmounted with this value.
#[derive(Debug)]
pub struct Mount {
    target: PathBuf,
}

impl Mount {
    /// A file system in memory of `mebibytes`, on a folder that it makes.
    ///
    /// # Errors
    /// [`Error::Failed`] with the words of mount(8).
    pub fn in_memory(target: &Path, mebibytes: u32) -> Result<Self, Error> {
        fs::create_dir_all(target).map_err(Error::file("making", target))?;
        let size = format!("size={mebibytes}m,mode=0700");
        run("mount", &["-t", "tmpfs", "-o", &size, "basalt-test"], target)?;
        Ok(Self { target: target.to_owned() })
    }

    /// Makes it read-only for everything that is opened from now on.
    ///
    /// # Errors
    /// [`Error::Failed`] with the words of mount(8), also while a file is open for writing.
    pub fn make_read_only(&self) -> Result<(), Error> {
        run("mount", &["-o", "remount,ro"], &self.target)
    }

    /// Leaves no free block.
    ///
    /// # Errors
    /// [`Error::File`] when the file that does it cannot be made.
    pub fn fill(&self) -> Result<(), Error> {
        let path = self.target.join(FILLER);
        let mut file = File::create(&path).map_err(Error::file("making", &path))?;
        let block = [0xaa; 4096];
        // Until there is no room.
        while file.write_all(&block).is_ok() {}
        Ok(())
    }

    /// Gives the space back.
    ///
    /// # Errors
    /// [`Error::File`] when it was not filled.
    pub fn free(&self) -> Result<(), Error> {
        let path = self.target.join(FILLER);
        fs::remove_file(&path).map_err(Error::file("removing", &path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.target
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &["--lazy"], &self.target) {
            eprintln!("{}: {error}", self.target.display());
        }
    }
}

fn run(program: &str, args: &[&str], target: &Path) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.args(args).arg(target);
    let output = cluster::run(command, "")?;
    cluster::succeeded(&format!("{program} {}", args.join(" ")), &output).map(|_| ())
}
