//! Flags, then environment, then a TOML file, in that precedence.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use basalt_identity::CertificateFiles;
use basalt_model::MemberId;
use basalt_telemetry::{LogFormat, LogsError};
use serde::Deserialize;

/// What can be set, from any of the three sources. Names in the file are those of the flags without the dashes in front.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Settings {
    /// The id of this member: greater than 0, bound to its data directory, never used again
    #[arg(long, global = true, env = "BASALT_MEMBER_ID")]
    member_id: Option<u64>,
    /// The name of the cluster, as in the certificates
    #[arg(long, global = true, env = "BASALT_CLUSTER_NAME")]
    cluster_name: Option<String>,
    /// Where the log and the snapshots are
    #[arg(long, global = true, env = "BASALT_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Where to listen for clients and daemons
    #[arg(long, global = true, env = "BASALT_API_LISTEN")]
    api_listen: Option<SocketAddr>,
    /// Where clients and daemons reach this member, if not where it listens
    #[arg(long, global = true, env = "BASALT_API_ADVERTISE", value_name = "HOST:PORT")]
    api_advertise: Option<String>,
    /// Where to listen for other members
    #[arg(long, global = true, env = "BASALT_PEER_LISTEN")]
    peer_listen: Option<SocketAddr>,
    /// Where other members reach this member, if not where it listens
    #[arg(long, global = true, env = "BASALT_PEER_ADVERTISE", value_name = "HOST:PORT")]
    peer_advertise: Option<String>,
    /// Where to serve /metrics, /healthz and /readyz
    #[arg(long, global = true, env = "BASALT_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    /// The members to begin with: 1=HOST:PORT,2=HOST:PORT,...
    #[arg(long, global = true, env = "BASALT_PEERS", value_name = "ID=HOST:PORT,...")]
    peers: Option<String>,
    /// The same members where clients reach them
    #[arg(long, global = true, env = "BASALT_API_PEERS", value_name = "ID=HOST:PORT,...")]
    api_peers: Option<String>,
    /// The certificate of the cluster's authority, PEM
    #[arg(long, global = true, env = "BASALT_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The certificate of this member, PEM
    #[arg(long, global = true, env = "BASALT_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of this member, PEM
    #[arg(long, global = true, env = "BASALT_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Speak without TLS and believe what callers say they are; only on loopback
    #[arg(long, global = true, env = "BASALT_INSECURE_PLAINTEXT", num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    insecure_plaintext: Option<bool>,
    /// Create the cluster if this member's directory is empty. Give it to one member, once
    #[arg(long, global = true, env = "BASALT_BOOTSTRAP", num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    bootstrap: Option<bool>,
    /// text or json
    #[arg(long, global = true, env = "BASALT_LOG_FORMAT")]
    log_format: Option<String>,
    /// Which log lines to write, for example info,basalt_core=debug
    #[arg(long, global = true, env = "BASALT_LOG_FILTER")]
    log_filter: Option<String>,
}

/// Where a member is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// By other members.
    pub(crate) peer: String,
    /// By clients and daemons; empty when it is not known yet.
    pub(crate) api: String,
}

/// How to speak to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecurityConfig {
    Tls(CertificateFiles),
    Plaintext,
}

/// Everything that a member is told.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) member: MemberId,
    pub(crate) cluster: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) api_listen: SocketAddr,
    pub(crate) peer_listen: SocketAddr,
    pub(crate) metrics_listen: SocketAddr,
    /// Of this member.
    pub(crate) advertise: Addresses,
    /// Of the others.
    pub(crate) peers: BTreeMap<MemberId, Addresses>,
    pub(crate) security: SecurityConfig,
    pub(crate) bootstrap: bool,
    pub(crate) log_format: LogFormat,
    pub(crate) log_filter: String,
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("--{flag} is missing (or the variable {variable}, or {flag} in the configuration file)")]
    Missing { flag: &'static str, variable: String },
    #[error("--member-id must be greater than 0")]
    MemberId,
    #[error("--{flag}: {entry:?} is not ID=HOST:PORT with an ID greater than 0")]
    Peer { flag: &'static str, entry: String },
    #[error("give --tls-ca, --tls-cert and --tls-key, or --insecure-plaintext without them")]
    Security,
    #[error(transparent)]
    LogFormat(#[from] LogsError),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
}

impl Settings {
    /// These settings, with what they leave open taken from a file.
    pub(crate) fn or_file(self, path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let file = toml::from_str::<Settings>(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        Ok(Self {
            member_id: self.member_id.or(file.member_id),
            cluster_name: self.cluster_name.or(file.cluster_name),
            data_dir: self.data_dir.or(file.data_dir),
            api_listen: self.api_listen.or(file.api_listen),
            api_advertise: self.api_advertise.or(file.api_advertise),
            peer_listen: self.peer_listen.or(file.peer_listen),
            peer_advertise: self.peer_advertise.or(file.peer_advertise),
            metrics_listen: self.metrics_listen.or(file.metrics_listen),
            peers: self.peers.or(file.peers),
            api_peers: self.api_peers.or(file.api_peers),
            tls_ca: self.tls_ca.or(file.tls_ca),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            insecure_plaintext: self.insecure_plaintext.or(file.insecure_plaintext),
            bootstrap: self.bootstrap.or(file.bootstrap),
            log_format: self.log_format.or(file.log_format),
            log_filter: self.log_filter.or(file.log_filter),
        })
    }

    /// Checks that everything is there.
    pub(crate) fn resolve(self) -> Result<Config, ConfigError> {
        let member = MemberId::new(required("member-id", self.member_id)?).ok_or(ConfigError::MemberId)?;
        let api_listen = required("api-listen", self.api_listen)?;
        let peer_listen = required("peer-listen", self.peer_listen)?;
        let api_peers = peers("api-peers", self.api_peers.as_deref().unwrap_or_default())?;
        let mut others = BTreeMap::new();
        for (id, peer) in peers("peers", self.peers.as_deref().unwrap_or_default())? {
            if id != member {
                let api = api_peers.get(&id).cloned().unwrap_or_default();
                others.insert(id, Addresses { peer, api });
            }
        }
        Ok(Config {
            member,
            cluster: required("cluster-name", self.cluster_name)?,
            data_dir: required("data-dir", self.data_dir)?,
            api_listen,
            peer_listen,
            metrics_listen: required("metrics-listen", self.metrics_listen)?,
            advertise: Addresses {
                peer: self.peer_advertise.unwrap_or_else(|| peer_listen.to_string()),
                api: self.api_advertise.unwrap_or_else(|| api_listen.to_string()),
            },
            peers: others,
            security: match (self.tls_ca, self.tls_cert, self.tls_key, self.insecure_plaintext) {
                (Some(ca), Some(certificate), Some(key), None | Some(false)) => {
                    SecurityConfig::Tls(CertificateFiles { ca, certificate, key })
                }
                (None, None, None, Some(true)) => SecurityConfig::Plaintext,
                _ => return Err(ConfigError::Security),
            },
            bootstrap: self.bootstrap.unwrap_or(false),
            log_format: self.log_format.as_deref().map(str::parse).transpose()?.unwrap_or_default(),
            log_filter: self.log_filter.unwrap_or_else(|| "info".to_owned()),
        })
    }
}

fn required<T>(flag: &'static str, value: Option<T>) -> Result<T, ConfigError> {
    let variable = || format!("BASALT_{}", flag.replace('-', "_").to_ascii_uppercase());
    value.ok_or_else(|| ConfigError::Missing { flag, variable: variable() })
}

fn peers(flag: &'static str, text: &str) -> Result<BTreeMap<MemberId, String>, ConfigError> {
    let parse = |entry: &str| {
        let (id, address) = entry.split_once('=')?;
        let (host, port) = address.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        let id = id.trim().parse().ok().and_then(MemberId::new)?;
        (!host.is_empty()).then(|| (id, address.to_owned()))
    };
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| parse(entry).ok_or_else(|| ConfigError::Peer { flag, entry: entry.to_owned() }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            member_id: Some(1),
            cluster_name: Some("c1".into()),
            data_dir: Some("/d".into()),
            api_listen: Some("127.0.0.1:1".parse().unwrap()),
            peer_listen: Some("127.0.0.1:2".parse().unwrap()),
            metrics_listen: Some("127.0.0.1:3".parse().unwrap()),
            peers: Some("1=a:1, 2=b:2".into()),
            api_peers: Some("2=c:3".into()),
            insecure_plaintext: Some(true),
            ..Settings::default()
        }
    }

    #[test]
    fn the_others_are_known_without_oneself() {
        let config = settings().resolve().unwrap();
        let two = MemberId::new(2).unwrap();
        let addresses = Addresses { peer: "b:2".into(), api: "c:3".into() };
        assert_eq!(config.peers, BTreeMap::from([(two, addresses)]));
        assert_eq!(config.advertise.api, "127.0.0.1:1");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let error = |change: fn(&mut Settings)| {
            let mut settings = settings();
            change(&mut settings);
            settings.resolve().unwrap_err().to_string()
        };
        assert!(error(|s| s.data_dir = None).contains("BASALT_DATA_DIR"));
        assert!(error(|s| s.member_id = Some(0)).contains("greater than 0"));
        assert!(error(|s| s.peers = Some("2=b".into())).contains("2=b"));
        assert!(error(|s| s.peers = Some("0=b:1".into())).contains("0=b:1"));
        assert!(error(|s| s.insecure_plaintext = None).contains("--tls-ca"));
        assert!(error(|s| s.tls_ca = Some("/ca".into())).contains("without them"));
    }

    #[test]
    fn flags_come_before_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.toml");
        fs::write(&path, "cluster-name = \"file\"\nlog-filter = \"debug\"\n").unwrap();
        let config = settings().or_file(&path).unwrap().resolve().unwrap();
        assert_eq!((config.cluster.as_str(), config.log_filter.as_str()), ("c1", "debug"));
        fs::write(&path, "no-such = 1\n").unwrap();
        assert!(settings().or_file(&path).unwrap_err().to_string().contains("no-such"));
    }
}
