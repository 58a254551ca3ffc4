//! File systems that are small or read-only, for what a disk may do to a process. They need root.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, cluster, packages};

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

/// A block device that stops to write when it is told to: a loop device on a file of an ext4 of its own, which is frozen then. Its
/// requests wait in the kernel, whatever becomes of the process that made them.
#[derive(Debug)]
pub struct StallingDisk {
    // In this order: the inner device holds a file of the mount, and the mount the outer device.
    inner: Loop,
    mount: Mount,
    _outer: Loop,
}

impl StallingDisk {
    /// A disk of `mebibytes`, with its files in `folder`. Installs what it needs.
    ///
    /// # Errors
    /// [`Error::Failed`] with the words of losetup(8), mkfs.ext4(8) or mount(8).
    pub fn make(folder: &Path, mebibytes: u32) -> Result<Self, Error> {
        packages::ensure(packages::ODD_DISKS, &mut |text| eprintln!("{text}"))?;
        let image = folder.join("outer.img");
        written(&image, 2 * mebibytes + 32)?;
        let outer = Loop::attach(&image)?;
        run("mkfs.ext4", &["-q", "-F"], &outer.device)?;
        let target = folder.join("mounted");
        fs::create_dir_all(&target).map_err(Error::file("making", &target))?;
        run("mount", &[&outer.device.display().to_string()], &target)?;
        let mount = Mount { target };
        let image = mount.path().join("inner.img");
        written(&image, mebibytes)?;
        Ok(Self { inner: Loop::attach(&image)?, mount, _outer: outer })
    }

    /// The block device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.device
    }

    /// Lets every write wait from now on.
    ///
    /// # Errors
    /// [`Error::Failed`] with the words of fsfreeze(8).
    pub fn stall(&self) -> Result<(), Error> {
        run("fsfreeze", &["--freeze"], self.mount.path())
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`Error::Failed`] with the words of fsfreeze(8), also when it was not stalled.
    pub fn go_on(&self) -> Result<(), Error> {
        run("fsfreeze", &["--unfreeze"], self.mount.path())
    }
}

impl Drop for StallingDisk {
    fn drop(&mut self) {
        // An error if it is not stalled, as after every test that went well.
        if self.go_on().is_ok() {
            eprintln!("{}: was stalled to the end", self.path().display());
        }
    }
}

/// A block device that takes no writes.
#[derive(Debug)]
pub struct ReadOnlyDisk(Loop);

impl ReadOnlyDisk {
    /// One of `mebibytes`, with its file in `folder`.
    ///
    /// # Errors
    /// [`Error::Failed`] with the words of losetup(8).
    pub fn make(folder: &Path, mebibytes: u32) -> Result<Self, Error> {
        packages::ensure(packages::ODD_DISKS, &mut |text| eprintln!("{text}"))?;
        let image = folder.join("read-only.img");
        written(&image, mebibytes)?;
        Loop::attach_with(&image, &["--read-only"]).map(Self)
    }

    /// The block device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.device
    }
}

/// A loop device; it is detached with this value.
#[derive(Debug)]
struct Loop {
    device: PathBuf,
}

impl Loop {
    fn attach(image: &Path) -> Result<Self, Error> {
        Self::attach_with(image, &[])
    }

    fn attach_with(image: &Path, options: &[&str]) -> Result<Self, Error> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]).args(options).arg(image);
        let output = cluster::run(command, "")?;
        let device = cluster::succeeded("losetup", &output)?;
        Ok(Self { device: PathBuf::from(device.trim()) })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = run("losetup", &["--detach"], &self.device) {
            eprintln!("{}: {error}", self.device.display());
        }
    }
}

/// Makes a file of zeroes that has all its blocks.
fn written(path: &Path, mebibytes: u32) -> Result<(), Error> {
    let mut file = File::create(path).map_err(Error::file("making", path))?;
    let block = vec![0; 1 << 20];
    for _ in 0..mebibytes {
        file.write_all(&block).map_err(Error::file("writing", path))?;
    }
    Ok(())
}

fn run(program: &str, args: &[&str], target: &Path) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.args(args).arg(target);
    let output = cluster::run(command, "")?;
    cluster::succeeded(&format!("{program} {}", args.join(" ")), &output).map(|_| ())
}
