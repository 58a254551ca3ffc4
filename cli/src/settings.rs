//! How to reach the control plane: flags, then environment, then a TOML file.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use basalt_client::{Client, ClientConfig};
use basalt_identity::{CertificateFiles, Credentials, Identity, Role, Security};
use basalt_model::ClusterId;
use serde::Deserialize;

/// Where the file is when nothing else is said, below the home directory.
const DEFAULT_FILE: &str = ".config/basalt/config.toml";

/// How to reach the control plane.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Settings {
    /// A TOML file with these settings [default: ~/.config/basalt/config.toml]
    #[arg(long, global = true, env = "BASALT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Members of the control plane
    #[arg(long, global = true, env = "BASALT_CONTROL", value_name = "HOST:PORT,...", value_delimiter = ',')]
    control: Vec<String>,
    /// The certificate of the cluster's authority, PEM
    #[arg(long, global = true, env = "BASALT_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Your certificate, PEM
    #[arg(long, global = true, env = "BASALT_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Your private key, PEM
    #[arg(long, global = true, env = "BASALT_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Speak without TLS; needs --cluster-name and members on loopback
    #[arg(long, global = true, env = "BASALT_INSECURE_PLAINTEXT")]
    insecure_plaintext: bool,
    /// The name of the cluster, for --insecure-plaintext
    #[arg(long, global = true, env = "BASALT_CLUSTER_NAME")]
    cluster_name: Option<String>,
    /// The only cluster to speak to, by its id [default: the one that answers]
    #[arg(long, global = true, env = "BASALT_CLUSTER_ID", value_name = "UUID")]
    cluster_id: Option<ClusterId>,
    /// How long to try before giving up, in seconds
    #[arg(long, global = true, env = "BASALT_DEADLINE_S", default_value_t = 15)]
    deadline_s: u64,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct SettingsFile {
    #[serde(default)]
    control: Vec<String>,
    tls_ca: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    #[serde(default)]
    insecure_plaintext: bool,
    cluster_name: Option<String>,
    cluster_id: Option<ClusterId>,
}

impl Settings {
    /// A client of the cluster.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let file = self.file()?;
        let control = if self.control.is_empty() { file.control } else { self.control.clone() };
        if control.is_empty() {
            bail!(
                "no control plane is known: give --control, set BASALT_CONTROL, or put `control = [\"host:port\"]` into \
                 ~/{DEFAULT_FILE} (`cargo xtask up` writes such a file and says where)"
            );
        }
        let ca = self.tls_ca.clone().or(file.tls_ca);
        let certificate = self.tls_cert.clone().or(file.tls_cert);
        let key = self.tls_key.clone().or(file.tls_key);
        let plaintext = self.insecure_plaintext || file.insecure_plaintext;
        let security = match (ca, certificate, key) {
            (Some(ca), Some(certificate), Some(key)) if !plaintext => {
                Security::Tls(Credentials::load(&CertificateFiles { ca, certificate, key })?)
            }
            (None, None, None) if plaintext => {
                let cluster = self.cluster_name.clone().or(file.cluster_name);
                let cluster = cluster.context("--insecure-plaintext needs --cluster-name")?;
                Security::Plaintext(Identity::new(cluster, Role::Cli, "cli")?)
            }
            _ => bail!("give --tls-ca, --tls-cert and --tls-key, or --insecure-plaintext without them"),
        };
        let mut config = ClientConfig::new(control, security);
        config.cluster = self.cluster_id.or(file.cluster_id);
        config.deadline = Duration::from_secs(self.deadline_s);
        Ok(Client::new(config)?)
    }

    fn file(&self) -> anyhow::Result<SettingsFile> {
        match &self.config {
            Some(path) => read(path).with_context(|| format!("cannot read {}", path.display())),
            None => {
                let Some(home) = env::var_os("HOME") else { return Ok(SettingsFile::default()) };
                let path = PathBuf::from(home).join(DEFAULT_FILE);
                match read(&path) {
                    Err(error) if is_missing(&error) => Ok(SettingsFile::default()),
                    other => other.with_context(|| format!("cannot read {}", path.display())),
                }
            }
        }
    }
}

fn read(path: &Path) -> anyhow::Result<SettingsFile> {
    Ok(toml::from_str(&fs::read_to_string(path)?)?)
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        fs::write(&path, text).unwrap();
        let settings = Settings { config: Some(path), ..Settings::default() };
        format!("{:#}", settings.client().unwrap_err())
    }

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        assert!(error_of("").contains("--control"));
        assert!(error_of("control = [\"127.0.0.1:1\"]").contains("--tls-ca"));
        assert!(
            error_of("control = [\"127.0.0.1:1\"]\ninsecure-plaintext = true").contains("--cluster-name")
        );
        assert!(error_of("control = [\"127.0.0.1:1\"]\ncluster-id = \"mine\"").contains("cluster-id"));
        assert!(error_of("controll = []").contains("controll"));
        assert!(
            error_of("control = [\"a:1\"]\ntls-ca = \"/no\"\ntls-cert = \"/no\"\ntls-key = \"/no\"")
                .contains("/no")
        );
    }
}
