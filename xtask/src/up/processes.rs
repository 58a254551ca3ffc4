//! The cluster's processes and their command lines: the only place that knows the flags of the product's programs.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::state::{Ports, State};
use super::supervisor::Process;
use crate::workspace::Programs;

/// Name of the development cluster; it is in every certificate.
pub(super) const CLUSTER: &str = "basalt-dev";
/// The flag with which a member founds the cluster.
pub(super) const FOUNDS: &str = "--bootstrap";
/// Raft members. Three is the least that survives the loss of one.
const MEMBERS: u32 = 3;

/// One Prometheus target.
#[derive(Clone, Debug)]
pub(super) struct MetricsTarget {
    pub(super) process: String,
    pub(super) address: String,
}

/// The product's processes with their addresses.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    state: &'a State,
    programs: &'a Programs,
    members: Vec<Member>,
    nodes: Vec<Node>,
    operator_metrics: String,
}

#[derive(Debug)]
struct Member {
    id: u32,
    name: String,
    api: String,
    peer: String,
    metrics: String,
}

#[derive(Debug)]
struct Node {
    name: String,
    metrics: String,
}

impl<'a> Cluster<'a> {
    /// Gives every process its addresses; `nodes` are the names of the StorageNodes.
    pub(super) fn new(
        state: &'a State,
        programs: &'a Programs,
        nodes: &[String],
        ports: &mut Ports,
    ) -> Result<Self> {
        let mut address = |purpose: String, preferred: Option<u16>| -> Result<String> {
            Ok(format!("127.0.0.1:{}", ports.get(&purpose, preferred)?))
        };
        let mut members = Vec::new();
        for id in 1..=MEMBERS {
            members.push(Member {
                id,
                name: format!("control-{id}"),
                api: address(format!("control-{id} api"), None)?,
                peer: address(format!("control-{id} peer"), None)?,
                metrics: address(format!("control-{id} metrics"), None)?,
            });
        }
        let nodes = nodes
            .iter()
            .map(|name| {
                Ok(Node { name: name.clone(), metrics: address(format!("basaltd-{name} metrics"), None)? })
            })
            .collect::<Result<_>>()?;
        let operator_metrics = address("operator metrics".to_owned(), None)?;
        Ok(Self { state, programs, members, nodes, operator_metrics })
    }

    /// The certificates that the processes need, as `ROLE:NAME`.
    pub(super) fn identities(&self) -> Vec<String> {
        let members = self.members.iter().map(|member| format!("member:{}", member.id));
        let nodes = self.nodes.iter().map(|node| format!("node:{}", node.name));
        members.chain(nodes).chain(["operator:operator".to_owned(), "cli:admin".to_owned()]).collect()
    }

    /// The raft members.
    pub(super) fn control_plane(&self) -> Vec<Process> {
        let list = |address: fn(&Member) -> &String| {
            let pairs: Vec<String> =
                self.members.iter().map(|member| format!("{}={}", member.id, address(member))).collect();
            pairs.join(",")
        };
        let peers = list(|member| &member.peer);
        let api_peers = list(|member| &member.api);
        self.members
            .iter()
            .map(|member| {
                let mut args = flags(&[
                    ("member-id", &member.id.to_string()),
                    ("cluster-name", CLUSTER),
                    ("data-dir", &text(&self.state.data(&member.name))),
                    ("api-listen", &member.api),
                    ("peer-listen", &member.peer),
                    ("metrics-listen", &member.metrics),
                    ("peers", &peers),
                    ("api-peers", &api_peers),
                ]);
                args.extend(self.tls(&format!("member-{}", member.id)));
                // One member founds the cluster, once; a member with data is never told to.
                if member.id == 1 && !self.state.data(&member.name).exists() {
                    args.push(FOUNDS.to_owned());
                }
                self.process(&member.name, "basalt-control", args)
            })
            .collect()
    }

    /// The data-plane daemons. Their reactors are not pinned: they share this machine's cores.
    pub(super) fn data_plane(&self) -> Vec<Process> {
        self.nodes
            .iter()
            .map(|node| {
                let name = format!("basaltd-{}", node.name);
                let mut args = vec!["node".to_owned()];
                args.extend(flags(&[
                    ("node", &node.name),
                    ("control", &self.control()),
                    ("data-dir", &text(&self.state.data(&name))),
                    ("metrics-listen", &node.metrics),
                ]));
                args.extend(self.tls(&format!("node-{}", node.name)));
                args.push("--no-pin".to_owned());
                self.process(&name, "basaltd", args)
            })
            .collect()
    }

    /// The operator, against the apiserver of `kubeconfig`.
    pub(super) fn operator(&self, kubeconfig: &Path) -> Process {
        let mut args = flags(&[
            ("kubeconfig", &text(kubeconfig)),
            ("control", &self.control()),
            ("metrics-listen", &self.operator_metrics),
        ]);
        args.extend(self.tls("operator-operator"));
        self.process("operator", "basalt-operator", args)
    }

    /// What kubectl-basalt reads; the cluster's id once it is known.
    pub(super) fn client_config(&self, cluster_id: Option<&str>) -> String {
        let [ca, certificate, key] = self.tls_files("cli-admin").map(|path| text(&path));
        let control: Vec<String> = self.members.iter().map(|member| format!("{:?}", member.api)).collect();
        let id = cluster_id.map(|id| format!("cluster-id = {id:?}\n")).unwrap_or_default();
        format!(
            "control = [{}]\n{id}tls-ca = {ca:?}\ntls-cert = {certificate:?}\ntls-key = {key:?}\n",
            control.join(", ")
        )
    }

    /// Where each process shows its metrics.
    pub(super) fn metrics(&self) -> Vec<MetricsTarget> {
        let members = self.members.iter().map(|member| (member.name.clone(), &member.metrics));
        let nodes = self.nodes.iter().map(|node| (format!("basaltd-{}", node.name), &node.metrics));
        members
            .chain(nodes)
            .chain([("operator".to_owned(), &self.operator_metrics)])
            .map(|(process, address)| MetricsTarget { process, address: address.clone() })
            .collect()
    }

    fn control(&self) -> String {
        let addresses: Vec<&str> = self.members.iter().map(|member| member.api.as_str()).collect();
        addresses.join(",")
    }

    fn tls(&self, stem: &str) -> Vec<String> {
        let [ca, certificate, key] = self.tls_files(stem).map(|path| text(&path));
        flags(&[("tls-ca", &ca), ("tls-cert", &certificate), ("tls-key", &key)])
    }

    /// Authority, certificate and key of one identity, as `basalt-identity` names them.
    fn tls_files(&self, stem: &str) -> [PathBuf; 3] {
        let pki = self.state.pki();
        [pki.join("ca.crt"), pki.join(format!("{stem}.crt")), pki.join(format!("{stem}.key"))]
    }

    fn process(&self, name: &str, program: &str, args: Vec<String>) -> Process {
        Process { name: name.to_owned(), program: self.programs.path(program), args }
    }
}

fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

/// State folders are made by us under a path that the user gave; one that is not UTF-8 shows as such in the flags.
fn text(path: &Path) -> String {
    path.display().to_string()
}
