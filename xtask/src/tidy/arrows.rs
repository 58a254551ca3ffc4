//! The direction of dependencies, from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Finding;
use crate::workspace;

/// Which of our crates each of our crates may use outside of its tests, without the prefix `basalt-`. A crate that is
/// missing here may use none.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &["clock"]),
    ("raft", &["clock", "model"]),
    ("core", &["clock", "model", "raft"]),
    ("server", &["client", "clock", "core", "identity", "model", "proto", "raft", "telemetry"]),
    ("client", &["identity", "model", "proto"]),
    ("plan", &["crds", "model"]),
    ("controller", &["client", "crds", "identity", "model", "plan", "proto", "telemetry"]),
    ("reactor", &["clock", "dma"]),
    ("bdev", &["clock", "dma", "reactor"]),
    ("device-mem", &["bdev", "clock", "dma", "reactor"]),
    ("device-uring", &["bdev", "clock", "dma", "reactor"]),
    ("lvol", &["bdev", "clock", "dma", "reactor"]),
    ("nvmf-transport", &["nvme-wire"]),
    ("nvmf-host", &["clock", "dma", "nvme-wire", "nvmf-transport"]),
    ("nvmf-target", &["bdev", "clock", "dma", "nvme-wire", "nvmf-transport", "reactor"]),
    (
        "nvmf-tcp",
        &["bdev", "clock", "dma", "nvme-wire", "nvmf-host", "nvmf-target", "nvmf-transport", "reactor"],
    ),
    (
        "agent",
        &[
            "bdev",
            "clock",
            "dma",
            "lvol",
            "nvme-wire",
            "nvmf-target",
            "nvmf-tcp",
            "nvmf-transport",
            "reactor",
        ],
    ),
    (
        "fuzz",
        &[
            "bdev",
            "clock",
            "device-mem",
            "dma",
            "nvme-wire",
            "nvmf-host",
            "nvmf-target",
            "nvmf-tcp",
            "nvmf-transport",
            "reactor",
        ],
    ),
    (
        "daemon",
        &[
            "agent",
            "bdev",
            "clock",
            "device-mem",
            "device-uring",
            "dma",
            "identity",
            "lvol",
            "nvme-wire",
            "nvmf-host",
            "nvmf-target",
            "nvmf-tcp",
            "nvmf-transport",
            "proto",
            "reactor",
            "telemetry",
        ],
    ),
    (
        "cli",
        &[
            "bdev",
            "client",
            "clock",
            "dma",
            "identity",
            "model",
            "nvme-wire",
            "nvmf-host",
            "nvmf-tcp",
            "nvmf-transport",
            "proto",
            "reactor",
            "telemetry",
        ],
    ),
    (
        "simulator",
        &[
            "agent",
            "bdev",
            "client",
            "clock",
            "core",
            "device-mem",
            "device-uring",
            "dma",
            "lvol",
            "model",
            "nvme-wire",
            "nvmf-host",
            "nvmf-target",
            "nvmf-tcp",
            "nvmf-transport",
            "plan",
            "raft",
            "reactor",
        ],
    ),
    (
        "bench",
        &[
            "bdev",
            "device-mem",
            "device-uring",
            "dma",
            "nvme-wire",
            "nvmf-host",
            "nvmf-target",
            "nvmf-tcp",
            "nvmf-transport",
            "reactor",
        ],
    ),
    ("e2e", &["client", "crds", "identity", "kube", "model"]),
    ("xtask", &["kube"]),
];

/// Crates that the simulator runs, and those that only compute: neither these nor anything below them may bring a
/// runtime, a clock or a network of its own.
const PURE: &[&str] = &[
    "agent",
    "bdev",
    "clock",
    "core",
    "device-mem",
    "device-uring",
    "dma",
    "lvol",
    "model",
    "nvme-wire",
    "nvmf-host",
    "nvmf-target",
    "nvmf-tcp",
    "nvmf-transport",
    "plan",
    "raft",
    "reactor",
];
const KEPT_OUT_OF_PURE: &[&str] = &["async-std", "hyper", "tokio", "tonic"];
/// `plan` takes the types of the custom resources as they are, and these come with the Kubernetes client.
const USES_CRD_TYPES: &[&str] = &["plan"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
    workspace_members: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    manifest_path: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

pub(super) fn check() -> Result<Vec<Finding>> {
    let output = workspace::cargo(&["metadata", "--format-version=1", "--locked"])?
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cargo metadata is not as expected")?;
    Ok(judge(&metadata))
}

fn judge(metadata: &Metadata) -> Vec<Finding> {
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let edges: BTreeMap<&str, Vec<&str>> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), normal_dependencies(node))).collect();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();

    let mut findings = Vec::new();
    for member in &metadata.workspace_members {
        let Some(package) = packages.get(member.as_str()) else { continue };
        let name = short(&package.name);
        let mut report = |message: String| {
            let path = Path::new(&package.manifest_path);
            let path = path.strip_prefix(workspace::root()).unwrap_or(path).to_owned();
            findings.push(Finding { path, line: None, message });
        };
        let own = allowed.get(name).copied().unwrap_or_default();
        for dependency in edges.get(member.as_str()).into_iter().flatten() {
            let Some(used) = packages.get(dependency) else { continue };
            if metadata.workspace_members.contains(*dependency) && !own.contains(&short(&used.name)) {
                report(format!(
                    "{name} must not depend on {}; the arrows are in tidy/arrows.rs",
                    short(&used.name)
                ));
            }
        }
        if PURE.contains(&name) && !USES_CRD_TYPES.contains(&name) {
            for banned in reachable(member, &edges).iter().filter_map(|id| packages.get(id)) {
                if KEPT_OUT_OF_PURE.contains(&banned.name.as_str()) {
                    report(format!("{name} is pure, and {} comes with one of its dependencies", banned.name));
                }
            }
        }
    }
    findings
}

fn short(name: &str) -> &str {
    name.strip_prefix("basalt-").unwrap_or(name)
}

fn normal_dependencies(node: &Node) -> Vec<&str> {
    node.deps
        .iter()
        .filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()))
        .map(|dependency| dependency.pkg.as_str())
        .collect()
}

fn reachable<'a>(from: &'a str, edges: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(id) = open.pop() {
        for next in edges.get(id).into_iter().flatten() {
            if seen.insert(*next) {
                open.push(next);
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(edges: &[(&str, &str, Option<&str>)], members: &[&str]) -> Metadata {
        let mut names: BTreeSet<&str> = members.iter().copied().collect();
        names.extend(edges.iter().flat_map(|(from, to, _)| [*from, *to]));
        Metadata {
            packages: names
                .iter()
                .map(|name| Package {
                    id: (*name).to_owned(),
                    name: (*name).to_owned(),
                    manifest_path: format!("{name}/Cargo.toml"),
                })
                .collect(),
            resolve: Resolve {
                nodes: names
                    .iter()
                    .map(|name| Node {
                        id: (*name).to_owned(),
                        deps: edges
                            .iter()
                            .filter(|(from, ..)| from == name)
                            .map(|(_, to, kind)| Dependency {
                                pkg: (*to).to_owned(),
                                dep_kinds: vec![DependencyKind { kind: kind.map(str::to_owned) }],
                            })
                            .collect(),
                    })
                    .collect(),
            },
            workspace_members: members.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn an_arrow_against_the_direction_is_found() {
        let members = ["basalt-model", "basalt-raft"];
        assert_eq!(judge(&metadata(&[("basalt-raft", "basalt-model", None)], &members)), []);
        let findings = judge(&metadata(&[("basalt-model", "basalt-raft", None)], &members));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].message.starts_with("model must not depend on raft"), "{}", findings[0]);
    }

    #[test]
    fn tests_may_look_anywhere() {
        let edges = [("basalt-model", "basalt-raft", Some("dev"))];
        assert_eq!(judge(&metadata(&edges, &["basalt-model", "basalt-raft"])), []);
    }

    #[test]
    fn a_runtime_deep_below_a_pure_crate_is_found() {
        let edges = [("basalt-core", "anything", None), ("anything", "tokio", None)];
        let findings = judge(&metadata(&edges, &["basalt-core"]));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].message.contains("tokio"), "{}", findings[0]);
    }

    #[test]
    fn every_arrow_names_crates_that_differ() {
        for (from, targets) in ARROWS {
            assert!(!targets.contains(from), "{from}");
            let unique: BTreeSet<_> = targets.iter().collect();
            assert_eq!(unique.len(), targets.len(), "{from}");
        }
    }
}
