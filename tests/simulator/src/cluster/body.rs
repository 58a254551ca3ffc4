//! A node's end of its session, with the production agent behind it.

use crate::cluster::convert;
use crate::control::NodeBody;
use crate::run::Violation;
use basalt_agent as agent;
use basalt_clock::{Instant, Random, SeededRandom};
use basalt_core::{Hello, NODE_PROTOCOL, Report};
use basalt_model::{BootId, ClusterId, DesiredNode, InstanceId, NodeName, Revision, VolumeId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

/// What passes between a session and the agent's machine.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// The newest orders, until the agent's machine takes them.
    pub(crate) orders: RefCell<Option<agent::DesiredNode>>,
    /// What the agent reported last; `None` while it does not run.
    pub(crate) report: RefCell<Option<agent::NodeReport>>,
    /// The highest revision that the agent has kept.
    pub(crate) seen: Cell<u64>,
}

/// A daemon around an agent.
#[derive(Debug)]
pub(crate) struct AgentBody {
    name: NodeName,
    instance: InstanceId,
    boot: BootId,
    cluster: Option<ClusterId>,
    link: Rc<Link>,
    told: Option<Report>,
    deleted: BTreeSet<VolumeId>,
    random: SeededRandom,
}

impl AgentBody {
    /// A daemon of this name.
    pub(crate) fn new(name: NodeName, link: Rc<Link>, mut random: SeededRandom) -> Self {
        let mut bits = || u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
        Self {
            name,
            instance: InstanceId::from_random(bits()),
            boot: BootId::from_random(bits()),
            cluster: None,
            link,
            told: None,
            deleted: BTreeSet::new(),
            random,
        }
    }
}

impl NodeBody for AgentBody {
    fn hello(&self) -> Hello {
        Hello {
            cluster: self.cluster,
            node: self.name.clone(),
            instance: self.instance,
            boot: self.boot,
            version_min: NODE_PROTOCOL.0,
            version_max: NODE_PROTOCOL.1,
            features: BTreeSet::new(),
            revision: Revision(self.link.seen.get()),
        }
    }

    fn welcomed(&mut self, cluster: ClusterId) {
        self.cluster = Some(cluster);
        self.told = None;
    }

    fn desired(&mut self, _now: Instant, desired: &DesiredNode) -> Result<(), Violation> {
        if let Some(volume) = desired.volumes.iter().find(|volume| self.deleted.contains(&volume.id)) {
            return Err(Violation::Invariant {
                invariant: "a deleted volume stays deleted",
                detail: format!("node {}: {}", self.name, volume.id),
            });
        }
        *self.link.orders.borrow_mut() = Some(convert::desired(desired));
        Ok(())
    }

    fn report(&mut self, _now: Instant, full: bool) -> Option<Report> {
        let observed = self.link.report.borrow().clone()?;
        let report = convert::report(&self.name, self.boot, &observed);
        self.deleted.extend(report.deleted.keys().copied());
        if !full && self.told.as_ref() == Some(&report) {
            return None;
        }
        self.told = Some(report.clone());
        Some(report)
    }

    fn restart(&mut self) {
        self.boot = BootId::from_random(u128::from(self.random.next_u64()));
        self.told = None;
    }

    fn deleted(&self) -> Vec<VolumeId> {
        self.deleted.iter().copied().collect()
    }
}
