//! Flags, then environment, then a TOML file, in that precedence.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use basalt_identity::{CertificateFiles, Credentials, Identity, IdentityError, Role, Security};
use basalt_telemetry::{LogFormat, LogsError};
use serde::Deserialize;
use thiserror::Error;

/// What can be set, from any of the three sources. Names in the file are those of the flags without the dashes in front.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// The apiserver and how to log in there; without it, the cluster that this process runs in, or ~/.kube/config
    #[arg(long, env = "BASALT_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Members of the control plane
    #[arg(long, env = "BASALT_CONTROL", value_name = "HOST:PORT,...", value_delimiter = ',')]
    control: Option<Vec<String>>,
    /// Where to serve /metrics, /healthz and /readyz
    #[arg(long, env = "BASALT_METRICS_LISTEN", value_name = "IP:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Who this process is among several; by default a new name each time
    #[arg(long, env = "BASALT_IDENTITY")]
    identity: Option<String>,
    /// Namespace of the lease by which one process leads
    #[arg(long, env = "BASALT_LEASE_NAMESPACE")]
    lease_namespace: Option<String>,
    /// Name of that lease
    #[arg(long, env = "BASALT_LEASE_NAME")]
    lease_name: Option<String>,
    /// Seconds after its last renewal at which a leader counts as gone, from 4 to 60
    #[arg(long, env = "BASALT_LEASE_SECONDS")]
    lease_seconds: Option<u64>,
    /// The certificate of the cluster's authority, PEM
    #[arg(long, env = "BASALT_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The certificate of this process, PEM
    #[arg(long, env = "BASALT_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of this process, PEM
    #[arg(long, env = "BASALT_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Speak to the control plane without TLS; only on loopback
    #[arg(long, env = "BASALT_INSECURE_PLAINTEXT", num_args = 0..=1, default_missing_value = "true")]
    insecure_plaintext: Option<bool>,
    /// The name of the cluster; needed with --insecure-plaintext, otherwise the certificate says it
    #[arg(long, env = "BASALT_CLUSTER_NAME")]
    cluster_name: Option<String>,
    /// text or json
    #[arg(long, env = "BASALT_LOG_FORMAT")]
    log_format: Option<String>,
    /// Which log lines to write, for example info,basalt_controller=debug
    #[arg(long, env = "BASALT_LOG_FILTER")]
    log_filter: Option<String>,
}

/// Everything that the operator is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The kubeconfig, if one was given.
    pub kubeconfig: Option<PathBuf>,
    /// Members of the control plane.
    pub control: Vec<String>,
    /// Where metrics and probes are served.
    pub metrics_listen: SocketAddr,
    /// Who this process is among several.
    pub identity: String,
    /// Namespace of the lease.
    pub lease_namespace: String,
    /// Name of the lease.
    pub lease_name: String,
    /// Duration of the lease.
    pub lease_duration: Duration,
    /// How to speak to the control plane.
    pub security: SecurityConfig,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines are written.
    pub log_filter: String,
}

/// How to speak to the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecurityConfig {
    /// Mutual TLS.
    Tls(CertificateFiles),
    /// Without, in the cluster of this name.
    Plaintext {
        /// The cluster's name.
        cluster: String,
    },
}

/// What is wrong with the settings.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// Something that has no default.
    #[error("--{flag} is missing (or the variable {variable}, or {flag} in the configuration file)")]
    Missing {
        /// The flag.
        flag: &'static str,
        /// The variable.
        variable: &'static str,
    },
    /// Neither TLS nor plaintext, or both.
    #[error(
        "give --tls-ca, --tls-cert and --tls-key, or --insecure-plaintext and --cluster-name without them"
    )]
    Security,
    /// A lease duration out of range.
    #[error("--lease-seconds must be from 4 to 60, not {0}")]
    Lease(u64),
    /// An unknown log format.
    #[error(transparent)]
    LogFormat(#[from] LogsError),
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
}

impl Settings {
    /// These settings, with what they leave open taken from a file.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn or_file(self, path: &Path) -> Result<Self, SettingsError> {
        let text = fs::read_to_string(path)
            .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
        let file: Self = toml::from_str(&text)
            .map_err(|source| SettingsError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        Ok(Self {
            kubeconfig: self.kubeconfig.or(file.kubeconfig),
            control: self.control.or(file.control),
            metrics_listen: self.metrics_listen.or(file.metrics_listen),
            identity: self.identity.or(file.identity),
            lease_namespace: self.lease_namespace.or(file.lease_namespace),
            lease_name: self.lease_name.or(file.lease_name),
            lease_seconds: self.lease_seconds.or(file.lease_seconds),
            tls_ca: self.tls_ca.or(file.tls_ca),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            insecure_plaintext: self.insecure_plaintext.or(file.insecure_plaintext),
            cluster_name: self.cluster_name.or(file.cluster_name),
            log_format: self.log_format.or(file.log_format),
            log_filter: self.log_filter.or(file.log_filter),
        })
    }

    /// The settings with their defaults, checked.
    ///
    /// # Errors
    /// [`SettingsError`] names the flag.
    pub fn check(self) -> Result<Config, SettingsError> {
        let lease_seconds = self.lease_seconds.unwrap_or(8);
        if !(4..=60).contains(&lease_seconds) {
            return Err(SettingsError::Lease(lease_seconds));
        }
        let plaintext = self.insecure_plaintext.unwrap_or(false);
        let security = match (self.tls_ca, self.tls_cert, self.tls_key) {
            (Some(ca), Some(certificate), Some(key)) if !plaintext => {
                SecurityConfig::Tls(CertificateFiles { ca, certificate, key })
            }
            (None, None, None) if plaintext => {
                SecurityConfig::Plaintext { cluster: self.cluster_name.ok_or(SettingsError::Security)? }
            }
            _ => return Err(SettingsError::Security),
        };
        let control = self.control.filter(|control| !control.is_empty());
        Ok(Config {
            kubeconfig: self.kubeconfig,
            control: control.ok_or(SettingsError::Missing { flag: "control", variable: "BASALT_CONTROL" })?,
            metrics_listen: self.metrics_listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9_464))),
            identity: self.identity.unwrap_or_else(|| format!("basalt-operator-{}", uuid::Uuid::new_v4())),
            lease_namespace: self.lease_namespace.unwrap_or_else(|| "kube-system".to_owned()),
            lease_name: self.lease_name.unwrap_or_else(|| "basalt-operator".to_owned()),
            lease_duration: Duration::from_secs(lease_seconds),
            security,
            log_format: self.log_format.as_deref().unwrap_or("text").parse()?,
            log_filter: self.log_filter.unwrap_or_else(|| "info".to_owned()),
        })
    }
}

impl SecurityConfig {
    /// Loads the certificates, and keeps them fresh for as long as the runtime runs.
    ///
    /// # Errors
    /// When they cannot be loaded.
    pub fn load(&self) -> Result<Security, IdentityError> {
        match self {
            Self::Tls(files) => {
                let credentials = Credentials::load(files)?;
                tokio::spawn(credentials.clone().follow_files(Duration::from_secs(10)));
                Ok(Security::Tls(credentials))
            }
            Self::Plaintext { cluster } => {
                Ok(Security::Plaintext(Identity::new(cluster.clone(), Role::Operator, "operator")?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plaintext() -> Settings {
        Settings {
            control: Some(vec!["127.0.0.1:7000".to_owned()]),
            insecure_plaintext: Some(true),
            cluster_name: Some("dev".to_owned()),
            ..Settings::default()
        }
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operator.toml");
        fs::write(&path, "lease-name = \"file\"\nlease-namespace = \"file\"\ncontrol = [\"127.0.0.1:1\"]\n")
            .unwrap();
        let settings = Settings { lease_name: Some("flag".to_owned()), ..plaintext() };
        let config = settings.or_file(&path).unwrap().check().unwrap();
        assert_eq!(config.lease_name, "flag");
        assert_eq!(config.lease_namespace, "file");
        assert_eq!(config.control, ["127.0.0.1:7000"]);
        fs::write(&path, "leese-name = \"x\"\n").unwrap();
        assert!(matches!(plaintext().or_file(&path), Err(SettingsError::Parse { .. })));
    }

    #[test]
    fn half_a_security_is_none() {
        let files = |settings: Settings| Settings { tls_ca: Some("ca".into()), ..settings };
        assert!(matches!(files(plaintext()).check(), Err(SettingsError::Security)));
        let nothing = Settings { insecure_plaintext: None, ..plaintext() };
        assert!(matches!(nothing.check(), Err(SettingsError::Security)));
        let no_control = Settings { control: None, ..plaintext() };
        assert!(matches!(no_control.check(), Err(SettingsError::Missing { flag: "control", .. })));
        let hasty = Settings { lease_seconds: Some(1), ..plaintext() };
        assert!(matches!(hasty.check(), Err(SettingsError::Lease(1))));
    }
}
