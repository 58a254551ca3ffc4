//! Debian packages that tests need.

use std::process::{Command, Stdio};

use crate::Error;

/// A program and the package that holds it.
#[derive(Clone, Copy, Debug)]
pub struct Requirement {
    /// Looked for on PATH.
    pub program: &'static str,
    /// Installed when it is not there.
    pub package: &'static str,
}

/// What building and booting a guest needs.
pub const GUEST: &[Requirement] = &[
    Requirement { program: "qemu-system-x86_64", package: "qemu-system-x86" },
    Requirement { program: "mmdebstrap", package: "mmdebstrap" },
    Requirement { program: "mke2fs", package: "e2fsprogs" },
    Requirement { program: "cpio", package: "cpio" },
    Requirement { program: "zstd", package: "zstd" },
    Requirement { program: "xz", package: "xz-utils" },
];

/// What disks that stall or take no writes are made with.
pub const ODD_DISKS: &[Requirement] = &[
    Requirement { program: "losetup", package: "mount" },
    Requirement { program: "mkfs.ext4", package: "e2fsprogs" },
    Requirement { program: "fsfreeze", package: "util-linux" },
];

/// What checking queries and alert rules needs; the package holds both programs.
pub const PROMETHEUS: &[Requirement] = &[
    Requirement { program: "prometheus", package: "prometheus" },
    Requirement { program: "promtool", package: "prometheus" },
];

/// Installs what is missing, with apt-get; `say` gets a line when something is.
///
/// # Errors
/// [`Error::Missing`] without apt-get or root, [`Error::Failed`] when apt-get fails.
pub fn ensure(requirements: &[Requirement], say: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let missing: Vec<&Requirement> =
        requirements.iter().filter(|requirement| !is_on_path(requirement.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let join = |field: fn(&Requirement) -> &'static str| {
        let mut words: Vec<&str> = missing.iter().map(|requirement| field(requirement)).collect();
        words.dedup();
        words.join(" ")
    };
    let packages = join(|requirement| requirement.package);
    if !is_on_path("apt-get") {
        return Err(Error::Missing { missing: join(|requirement| requirement.program), packages });
    }
    say(&format!("installing Debian packages: {packages}"));
    apt_get(&["update"])?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(packages.split(' '));
    apt_get(&install)
}

fn apt_get(args: &[&str]) -> Result<(), Error> {
    let output = Command::new("apt-get")
        .arg("--quiet=2")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Packages that bring a service must not start it.
        .env("RUNLEVEL", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(Error::run("apt-get"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Failed {
        program: format!("apt-get {}", args.join(" ")),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps administrators' programs out of users' paths.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_installed_when_nothing_is_missing() {
        let mut said = Vec::new();
        let shell = [Requirement { program: "sh", package: "dash" }];
        ensure(&shell, &mut |text| said.push(text.to_owned())).unwrap();
        assert_eq!(said, Vec::<String>::new());
    }

    #[test]
    fn a_program_is_found_on_the_path_only() {
        assert!(is_on_path("sh"));
        assert!(!is_on_path("no-such-program-anywhere"));
    }
}
