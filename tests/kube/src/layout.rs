//! The folder of one fixture: certificates, ports, kubeconfig, and the command lines that follow from them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::pki::{self, Pki};
use crate::{Binary, Error, ports};

/// One process of the fixture.
#[derive(Clone, Debug)]
pub struct Component {
    /// `etcd` or `kube-apiserver`; also the stem of the log file.
    pub name: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// A prepared folder. Nothing runs yet.
///
/// ```text
/// DIR/kubeconfig          the administrator's
/// DIR/ports               apiserver, etcd client, etcd peer; kept over re-runs while they are free
/// DIR/pki/ DIR/etcd/ DIR/logs/
/// ```
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
    binary: Binary,
    pki: Pki,
    ports: Ports,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    apiserver: u16,
    client: u16,
    peer: u16,
}

impl Layout {
    /// Makes `dir` ready, keeping what an earlier run left there: certificates, data and, where still free, ports.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Certificate`] or [`Error::NoPorts`].
    pub fn prepare(dir: &Path, binary: Binary) -> Result<Self, Error> {
        let logs = dir.join("logs");
        fs::create_dir_all(&logs).map_err(Error::file("creating", &logs))?;
        let dir = dir.canonicalize().map_err(Error::file("resolving", dir))?;
        let pki = Pki::ensure(&dir.join("pki"))?;
        let ports = match read_ports(&dir.join("ports")) {
            Some(ports) if ports.are_free() => ports,
            _ => {
                let chosen = ports::free_ports(3)?;
                Ports { apiserver: chosen[0], client: chosen[1], peer: chosen[2] }
            }
        };
        let layout = Self { dir, binary, pki, ports };
        let line = format!("{} {} {}\n", ports.apiserver, ports.client, ports.peer);
        pki::write(&layout.dir.join("ports"), &line)?;
        pki::write(&layout.kubeconfig(), &layout.pki.kubeconfig(ports.apiserver)?)?;
        Ok(layout)
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// kubectl, of the apiserver's version.
    #[must_use]
    pub fn kubectl(&self) -> PathBuf {
        self.binary.kubectl()
    }

    /// Where the apiserver listens.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.apiserver)
    }

    /// The log of a component.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// The folder of etcd's data; removing it while etcd is stopped empties the apiserver.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join("etcd")
    }

    /// etcd; it must be started first, but the apiserver waits for it.
    #[must_use]
    pub fn etcd(&self) -> Component {
        self.component(
            "etcd",
            vec![
                format!("--data-dir={}", self.data().display()),
                format!("--client=http://127.0.0.1:{}", self.ports.client),
                format!("--peer=http://127.0.0.1:{}", self.ports.peer),
            ],
        )
    }

    /// The apiserver: RBAC, no anonymous requests, the administrator by certificate.
    #[must_use]
    pub fn apiserver(&self) -> Component {
        let file = |flag: &str, path: PathBuf| format!("--{flag}={}", path.display());
        self.component(
            "kube-apiserver",
            vec![
                format!("--etcd-servers=http://127.0.0.1:{}", self.ports.client),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                format!("--secure-port={}", self.ports.apiserver),
                file("tls-cert-file", self.pki.serving_certificate()),
                file("tls-private-key-file", self.pki.serving_key()),
                file("client-ca-file", self.pki.ca()),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                file("service-account-signing-key-file", self.pki.account_key()),
                file("service-account-key-file", self.pki.account_public_key()),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                "--authorization-mode=RBAC".to_owned(),
                "--anonymous-auth=false".to_owned(),
                // Neither pods nor endpoints exist here.
                "--disable-admission-plugins=ServiceAccount".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
            ],
        )
    }

    fn component(&self, name: &'static str, args: Vec<String>) -> Component {
        Component {
            name,
            program: self.binary.program(),
            args: std::iter::once(name.to_owned()).chain(args).collect(),
        }
    }
}

impl Ports {
    fn are_free(self) -> bool {
        [self.apiserver, self.client, self.peer].into_iter().all(ports::is_free_port)
    }
}

/// What an earlier run wrote; a file that does not read as three ports is as good as none.
fn read_ports(path: &Path) -> Option<Ports> {
    let text = fs::read_to_string(path).ok()?;
    let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
    Some(Ports { apiserver: numbers.next()?, client: numbers.next()?, peer: numbers.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_back_and_nonsense_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ports");
        assert_eq!(read_ports(&path), None);
        fs::write(&path, "20001 20002 20003\n").unwrap();
        let ports = Ports { apiserver: 20_001, client: 20_002, peer: 20_003 };
        assert_eq!(read_ports(&path), Some(ports));
        for nonsense in ["", "1 2", "1 x 3", "70000 1 2"] {
            fs::write(&path, nonsense).unwrap();
            assert_eq!(read_ports(&path), None, "{nonsense:?}");
        }
    }
}
