//! Settings of `basaltd node`: flags, then environment, then a TOML file, in that precedence.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use basalt_identity::{CertificateFiles, IdentityError};
use basalt_lvol::ScrubSettings;
use basalt_telemetry::{LogFormat, LogsError};
use serde::Deserialize;

use crate::cores::{CoreList, CoreListError};

/// What can be set, from any of the three sources. Names in the file are those of the flags without the dashes in front.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Settings {
    /// The name of this node: the StorageNode object's, and the one in the certificate
    #[arg(long, env = "BASALT_NODE")]
    node: Option<String>,
    /// Members of the control plane, any of them: HOST:PORT,HOST:PORT,...
    #[arg(long, env = "BASALT_CONTROL", value_name = "HOST:PORT,...")]
    control: Option<String>,
    /// Where this daemon remembers who it is and what it should hold
    #[arg(long, env = "BASALT_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Where to serve /metrics, /healthz and /readyz
    #[arg(long, env = "BASALT_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    /// The certificate of the cluster's authority, PEM
    #[arg(long, env = "BASALT_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The certificate of this node, PEM
    #[arg(long, env = "BASALT_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of this node, PEM
    #[arg(long, env = "BASALT_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Speak without TLS; only on loopback, and only with --cluster-name
    #[arg(long, env = "BASALT_INSECURE_PLAINTEXT", num_args = 0..=1, default_missing_value = "true")]
    insecure_plaintext: Option<bool>,
    /// The name of the cluster, needed without TLS only: certificates name it
    #[arg(long, env = "BASALT_CLUSTER_NAME")]
    cluster_name: Option<String>,
    /// Cores that run reactors, such as 0 or 0,2-3; the control plane's setting is used when this is absent
    #[arg(long, env = "BASALT_CORES", value_name = "LIST")]
    cores: Option<String>,
    /// Do not pin reactors to their cores
    #[arg(long, env = "BASALT_NO_PIN", num_args = 0..=1, default_missing_value = "true")]
    no_pin: Option<bool>,
    /// How often the metadata of each pool is read and checked, in hours; 0: never, 24 when this is absent
    #[arg(long, env = "BASALT_SCRUB_INTERVAL_HOURS", value_name = "HOURS")]
    scrub_interval_hours: Option<u32>,
    /// How much metadata of a pool that reads in a second at most, in MiB; 4 when this is absent
    #[arg(long, env = "BASALT_SCRUB_MIB_PER_SECOND", value_name = "MIB")]
    scrub_mib_per_second: Option<NonZeroU32>,
    /// text or json
    #[arg(long, env = "BASALT_LOG_FORMAT")]
    log_format: Option<String>,
    /// Which log lines to write, for example info,basalt_agent=debug
    #[arg(long, env = "BASALT_LOG_FILTER")]
    log_filter: Option<String>,
}

/// How to speak to the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecurityConfig {
    /// Mutual TLS.
    Tls(CertificateFiles),
    /// Without, in the cluster of this name.
    Plaintext {
        /// The cluster's name.
        cluster: String,
    },
}

/// Everything that `basaltd node` is told.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The node's name.
    pub(crate) node: String,
    /// Members of the control plane.
    pub(crate) control: Vec<String>,
    /// The data directory.
    pub(crate) data_dir: PathBuf,
    /// Where metrics are served.
    pub(crate) metrics_listen: SocketAddr,
    /// How to speak.
    pub(crate) security: SecurityConfig,
    /// Cores, if they are set here.
    pub(crate) cores: Option<CoreList>,
    /// Whether reactors are pinned.
    pub(crate) pin: bool,
    /// How pools are looked over.
    pub(crate) scrub: ScrubSettings,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
    /// Which log lines are written.
    pub(crate) log_filter: String,
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// Something that is needed is not set.
    #[error("--{flag} is missing (or the variable {variable}, or {flag} in the configuration file)")]
    Missing {
        /// The flag.
        flag: &'static str,
        /// The environment variable.
        variable: String,
    },
    /// No member of the control plane.
    #[error("--control names no address; write HOST:PORT, several with commas")]
    Control,
    /// Neither TLS nor plaintext, or both.
    #[error("give --tls-ca, --tls-cert and --tls-key, or --insecure-plaintext with --cluster-name")]
    Security,
    /// Plaintext to another machine.
    #[error("--control: {0}")]
    Plaintext(#[from] IdentityError),
    /// A list of cores that makes no sense.
    #[error("--cores: {0}")]
    Cores(#[from] CoreListError),
    /// A log format that does not exist.
    #[error(transparent)]
    LogFormat(#[from] LogsError),
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<toml::de::Error>,
    },
}

impl Settings {
    /// These settings, with what they leave open taken from a file.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else.
    pub(crate) fn or_file(self, path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let file = toml::from_str::<Self>(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        Ok(Self {
            node: self.node.or(file.node),
            control: self.control.or(file.control),
            data_dir: self.data_dir.or(file.data_dir),
            metrics_listen: self.metrics_listen.or(file.metrics_listen),
            tls_ca: self.tls_ca.or(file.tls_ca),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            insecure_plaintext: self.insecure_plaintext.or(file.insecure_plaintext),
            cluster_name: self.cluster_name.or(file.cluster_name),
            cores: self.cores.or(file.cores),
            no_pin: self.no_pin.or(file.no_pin),
            scrub_interval_hours: self.scrub_interval_hours.or(file.scrub_interval_hours),
            scrub_mib_per_second: self.scrub_mib_per_second.or(file.scrub_mib_per_second),
            log_format: self.log_format.or(file.log_format),
            log_filter: self.log_filter.or(file.log_filter),
        })
    }

    /// Checks that everything is there.
    ///
    /// # Errors
    /// [`ConfigError`] names what is missing or wrong.
    pub(crate) fn into_config(self) -> Result<Config, ConfigError> {
        let (security, scrub) = (self.security()?, self.scrub());
        let control: Vec<String> = need("control", self.control)?
            .split(',')
            .map(|address| address.trim().to_owned())
            .filter(|address| !address.is_empty())
            .collect();
        if control.is_empty() {
            return Err(ConfigError::Control);
        }
        if matches!(security, SecurityConfig::Plaintext { .. }) {
            // A name is looked up when it is dialled, and refused then.
            let addresses = control.iter().filter_map(|endpoint| endpoint.parse::<SocketAddr>().ok());
            if let Some(address) = addresses.into_iter().find(|address| !address.ip().is_loopback()) {
                return Err(IdentityError::PlaintextOffLoopback { address }.into());
            }
        }
        Ok(Config {
            node: need("node", self.node)?,
            control,
            data_dir: need("data-dir", self.data_dir)?,
            metrics_listen: need("metrics-listen", self.metrics_listen)?,
            security,
            cores: self.cores.map(|cores| cores.parse()).transpose()?,
            pin: !self.no_pin.unwrap_or(false),
            scrub,
            log_format: self.log_format.map_or(Ok(LogFormat::default()), |format| format.parse())?,
            log_filter: self.log_filter.unwrap_or_else(|| "info".to_owned()),
        })
    }

    fn scrub(&self) -> ScrubSettings {
        let default = ScrubSettings::default();
        let hours = |hours: u32| Duration::from_secs(u64::from(hours) * 3600);
        let bytes = |mib: NonZeroU32| u64::from(mib.get()) << 20;
        ScrubSettings {
            interval: self.scrub_interval_hours.map_or(default.interval, hours),
            bytes_per_second: self.scrub_mib_per_second.map_or(default.bytes_per_second, bytes),
        }
    }

    fn security(&self) -> Result<SecurityConfig, ConfigError> {
        let files = (&self.tls_ca, &self.tls_cert, &self.tls_key);
        match (self.insecure_plaintext.unwrap_or(false), files, &self.cluster_name) {
            (false, (Some(ca), Some(certificate), Some(key)), _) => {
                Ok(SecurityConfig::Tls(CertificateFiles {
                    ca: ca.clone(),
                    certificate: certificate.clone(),
                    key: key.clone(),
                }))
            }
            (true, (None, None, None), Some(cluster)) => {
                Ok(SecurityConfig::Plaintext { cluster: cluster.clone() })
            }
            _ => Err(ConfigError::Security),
        }
    }
}

fn need<T>(flag: &'static str, value: Option<T>) -> Result<T, ConfigError> {
    let variable = || format!("BASALT_{}", flag.to_ascii_uppercase().replace('-', "_"));
    value.ok_or_else(|| ConfigError::Missing { flag, variable: variable() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            node: Some("node-1".into()),
            control: Some("127.0.0.1:1, 127.0.0.1:2".into()),
            data_dir: Some("/d".into()),
            metrics_listen: Some(([127, 0, 0, 1], 3).into()),
            insecure_plaintext: Some(true),
            cluster_name: Some("c".into()),
            ..Settings::default()
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "node = \"other\"\ncores = \"1\"\nno-pin = true\nscrub-interval-hours = 0\n";
        fs::write(file.path(), text).unwrap();
        let config = settings().or_file(file.path()).unwrap().into_config().unwrap();
        assert_eq!(config.node, "node-1");
        assert_eq!(config.control, ["127.0.0.1:1", "127.0.0.1:2"]);
        assert_eq!(config.cores.unwrap().cores(), [1]);
        assert!(!config.pin);
        assert_eq!((config.scrub.interval, config.scrub.bytes_per_second), (Duration::ZERO, 4 << 20));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let missing = Settings { node: None, ..settings() }.into_config().unwrap_err();
        assert!(missing.to_string().contains("--node") && missing.to_string().contains("BASALT_NODE"));
        let both = Settings { tls_ca: Some("x".into()), ..settings() }.into_config();
        assert!(matches!(both, Err(ConfigError::Security)));
        let neither = Settings { insecure_plaintext: None, ..settings() }.into_config();
        assert!(matches!(neither, Err(ConfigError::Security)));
        let empty = Settings { control: Some(",".into()), ..settings() }.into_config();
        assert!(matches!(empty, Err(ConfigError::Control)));
        let far = Settings { control: Some("127.0.0.1:1,192.0.2.2:4999".into()), ..settings() };
        let far = far.into_config().unwrap_err().to_string();
        assert!(far.contains("plaintext is possible only on loopback and 192.0.2.2:4999 is not"), "{far}");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "nodes = \"x\"\n").unwrap();
        assert!(matches!(settings().or_file(file.path()), Err(ConfigError::Parse { .. })));
    }
}
