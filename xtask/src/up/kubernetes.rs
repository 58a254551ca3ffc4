//! What `up` asks of the apiserver, through kubectl.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::workspace;

/// kubectl with a kubeconfig.
#[derive(Clone, Debug)]
pub(super) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

/// A StorageNode or Volume, as far as `up` reads it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Object {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) status: Status,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Metadata {
    pub(super) name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    pub(super) cluster_id: Option<String>,
    pub(super) phase: Option<String>,
    pub(super) nqn: Option<String>,
    #[serde(default)]
    pub(super) paths: Vec<VolumePath>,
    #[serde(default)]
    pub(super) conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct VolumePath {
    pub(super) address: String,
    pub(super) port: u16,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

impl Object {
    pub(super) fn is_online(&self) -> bool {
        self.status.phase.as_deref() == Some("Online")
    }

    /// Qualified name and address of a volume's first path, once it is online.
    pub(super) fn served(&self) -> Option<(&str, String)> {
        let path = self.status.paths.first()?;
        let nqn = self.status.nqn.as_deref().filter(|_| self.is_online())?;
        Some((nqn, format!("{}:{}", path.address, path.port)))
    }
}

impl Kubectl {
    pub(super) fn new(program: &Path, kubeconfig: &Path) -> Self {
        Self { program: program.to_owned(), kubeconfig: kubeconfig.to_owned() }
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Installs the custom resources and waits until the apiserver serves them.
    pub(super) fn install_resources(&self) -> Result<()> {
        let folder = workspace::root().join("crds/yaml").display().to_string();
        self.run(&["apply", "--server-side", "--force-conflicts", "--filename", &folder], None)?;
        self.run(&["wait", "--for=condition=Established", "--timeout=30s", "--filename", &folder], None)?;
        Ok(())
    }

    /// Applies a YAML stream.
    pub(super) fn apply(&self, manifest: &str) -> Result<()> {
        self.run(&["apply", "--filename", "-"], Some(manifest)).map(|_| ())
    }

    /// All objects of a kind; those of others in an existing cluster too.
    pub(super) fn objects(&self, kind: &str) -> Result<Vec<Object>> {
        let text = self.run(&["get", kind, "--output=json"], None)?;
        let list: List<Object> = serde_json::from_str(&text)
            .with_context(|| format!("kubectl's answer is not a list of {kind}"))?;
        Ok(list.items)
    }

    /// Whether the apiserver is ready.
    pub(super) fn is_ready(&self) -> bool {
        self.run(&["get", "--raw=/readyz", "--request-timeout=2s"], None).is_ok()
    }

    /// A table for people, or why there is none.
    pub(super) fn table(&self, args: &[&str]) -> String {
        self.run(args, None).unwrap_or_else(|error| format!("{error:#}\n"))
    }

    fn run(&self, args: &[&str], input: Option<&str>) -> Result<String> {
        let mut child = Command::new(&self.program)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(args)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(text.as_bytes()).context("kubectl does not read its input")?;
        }
        let output = child.wait_with_output().context("kubectl cannot be waited for")?;
        if !output.status.success() {
            bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).context("kubectl's answer is not text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_served_only_when_it_is_online() {
        let volume = |phase: &str| -> Object {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "data"},
                "status": {
                    "phase": phase,
                    "nqn": "nqn.2026-01.storage.basalt:data",
                    "paths": [{"node": "node-1", "address": "127.0.0.1", "port": 4420, "anaState": "optimized"}],
                },
            }))
            .unwrap()
        };
        assert_eq!(
            volume("Online").served(),
            Some(("nqn.2026-01.storage.basalt:data", "127.0.0.1:4420".to_owned()))
        );
        assert_eq!(volume("Unavailable").served(), None);
        let fresh: Object = serde_json::from_value(serde_json::json!({"metadata": {"name": "x"}})).unwrap();
        assert_eq!(fresh.served(), None);
    }
}
