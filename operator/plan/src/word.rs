//! Reasons with their sentences, as conditions have them.

use basalt_crds::FINALIZER;
use basalt_model::{ClusterId, Node, PoolName};

use crate::intent::Rejection;

/// One reason with its sentence.
#[derive(Debug, Clone)]
pub(crate) struct Word {
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Word {
    pub(crate) fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// The control plane has refused.
pub(crate) fn refused(rejection: &Rejection) -> Word {
    Word::new(rejection.kind.reason(), rejection.message.clone())
}

/// Another cluster answers than the one that an object belongs to.
pub(crate) fn elsewhere(recorded: &str, answering: ClusterId) -> Word {
    Word::new(
        "OtherCluster",
        format!(
            "this object belongs to cluster {recorded}, but the control plane that answers is cluster {answering}: point \
             the operator at the right one; if the other cluster is gone for good, remove the finalizer {FINALIZER} by hand"
        ),
    )
}

/// Why a node has not deleted what it was told to yet, to be appended to a sentence that says that it is waited for.
pub(crate) fn hindrance(node: Option<&Node>, pool: &PoolName) -> String {
    let Some((node, why)) = node.and_then(|node| Some((node, node.hindrance(pool)?))) else {
        return String::new();
    };
    let name = &node.name;
    let remedy = match node.liveness.is_live() {
        true => format!("abandon-pool {name} {pool}"),
        false => format!("abandon-node {name}"),
    };
    format!(": {why}. If its disks are gone for good: kubectl basalt {remedy} --disks-are-lost")
}

/// A word that comes from a daemon, if it can be a condition's reason: one CamelCase word.
pub(crate) fn one_word(reason: &str) -> Option<&str> {
    (!reason.is_empty() && reason.chars().all(|c| c.is_ascii_alphanumeric())).then_some(reason)
}
