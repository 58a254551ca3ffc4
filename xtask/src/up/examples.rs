//! The example objects of `crds/examples`, made to fit this state folder.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::state::{Ports, State};
use crate::workspace;

/// Size of a file that stands for a disk; it is sparse.
const DISK_BYTES: u64 = 1 << 30;
/// Stands for the state folder in the examples.
const STATE_VARIABLE: &str = "${BASALT_STATE}";
/// Where an example says on which port a node serves.
const BIND: &str = "bind: 127.0.0.1:";

/// The example objects as they will be applied.
#[derive(Debug)]
pub(super) struct Examples {
    /// Names of the StorageNodes, in order.
    pub(super) nodes: Vec<String>,
    /// Names of the Volumes, in order.
    pub(super) volumes: Vec<String>,
    /// All objects as one YAML stream.
    pub(super) manifest: String,
    disks: Vec<PathBuf>,
}

impl Examples {
    /// Reads the examples: the state folder takes the place of its variable, and a port that is taken is replaced.
    pub(super) fn load(state: &State, ports: &mut Ports) -> Result<Self> {
        let folder = workspace::root().join("crds/examples");
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
            .with_context(|| format!("cannot list {}", folder.display()))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        paths.sort();
        let mut examples = Self { nodes: vec![], volumes: vec![], manifest: String::new(), disks: vec![] };
        for path in paths {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            examples.add(&text, state, ports).with_context(|| format!("in {}", path.display()))?;
        }
        Ok(examples)
    }

    fn add(&mut self, text: &str, state: &State, ports: &mut Ports) -> Result<()> {
        let name = field(text, "  name: ").context("an example without metadata.name")?.to_owned();
        match field(text, "kind: ") {
            Some("StorageNode") => self.nodes.push(name.clone()),
            Some("Volume") => self.volumes.push(name.clone()),
            other => bail!("an example of unknown kind {other:?}"),
        }
        self.manifest.push_str("---\n");
        for line in text.lines() {
            let mut line = line.replace(STATE_VARIABLE, &state.disks().display().to_string());
            if let Some((before, port)) = line.split_once(BIND) {
                let preferred = port.trim().parse().ok();
                let port = ports.get(&format!("{name} nvme"), preferred)?;
                line = format!("{before}{BIND}{port}");
            } else if let Some(disk) = line.trim().strip_prefix("- /") {
                self.disks.push(PathBuf::from(format!("/{disk}")));
            }
            self.manifest.push_str(&line);
            self.manifest.push('\n');
        }
        Ok(())
    }

    /// Makes the files that stand for disks, where they do not exist.
    pub(super) fn make_disks(&self) -> Result<()> {
        for disk in &self.disks {
            if disk.exists() {
                continue;
            }
            let folder = disk.parent().context("a disk without a folder")?;
            fs::create_dir_all(folder)
                .and_then(|()| File::create(disk))
                .and_then(|file| file.set_len(DISK_BYTES))
                .with_context(|| format!("cannot make the disk {}", disk.display()))?;
        }
        Ok(())
    }
}

/// The value of the first line that begins so.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_fit_the_state_folder() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::create(Some(dir.path())).unwrap();
        let mut ports = Ports::load(&state).unwrap();
        let examples = Examples::load(&state, &mut ports).unwrap();
        assert_eq!(examples.nodes, ["node-1", "node-2", "node-3"]);
        assert_eq!(examples.volumes, ["data"]);
        assert!(!examples.manifest.contains("- ${"), "{}", examples.manifest);
        assert_eq!(examples.manifest.matches(BIND).count(), 3);
        examples.make_disks().unwrap();
        assert_eq!(examples.disks.len(), 3);
        for disk in &examples.disks {
            assert!(disk.starts_with(state.disks()));
            assert_eq!(fs::metadata(disk).unwrap().len(), DISK_BYTES);
        }
    }
}
