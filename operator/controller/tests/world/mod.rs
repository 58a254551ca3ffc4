//! A world around one operator: an apiserver in memory, the real model as control plane, and a fault at a chosen call.

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

mod apiserver;
mod control;
mod faults;

pub(crate) use apiserver::Apiserver;
pub(crate) use control::Control;
pub(crate) use faults::{Fault, Faults, When};

use std::sync::Arc;

use basalt_controller::backoff::Backoff;
use basalt_controller::fence::Fence;
use basalt_controller::managed::Managed;
use basalt_controller::reconcile::{Context, reconcile};
use basalt_controller::store::Store;
use basalt_crds::{Snapshot, StorageNode, Volume};

/// More rounds than anything needs to come to rest.
const ROUNDS_MAX: usize = 40;

/// The world.
pub(crate) struct World {
    pub(crate) apiserver: Apiserver,
    pub(crate) control: Arc<Control>,
    pub(crate) faults: Arc<Faults>,
    /// How often the operator was started.
    pub(crate) starts: usize,
}

impl World {
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        let faults = Arc::new(Faults::new(fault));
        let apiserver = Apiserver::new(Arc::clone(&faults));
        let control = Arc::new(Control::new(Arc::clone(&faults), Some(apiserver.clone())));
        Self { apiserver, control, faults, starts: 0 }
    }

    /// Runs operators, each until it dies, until one finds nothing more to do.
    pub(crate) async fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.starts += 1;
            self.faults.start_process();
            if self.run_one_operator().await {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    /// One process. True: it came to rest. False: it died.
    async fn run_one_operator(&self) -> bool {
        let fence = Fence::new();
        fence.extend(tokio::time::Instant::now() + std::time::Duration::from_secs(3600));
        let context = Arc::new(Context {
            control: Arc::clone(&self.control),
            store: Store::new(self.apiserver.client(), "test".to_owned()),
            fence,
            backoff: Arc::new(Backoff::default()),
        });
        for _ in 0..ROUNDS_MAX {
            let before = (self.apiserver.version(), self.control.revision());
            self.reconcile_all::<StorageNode>(&context).await;
            self.reconcile_all::<Volume>(&context).await;
            self.reconcile_all::<Snapshot>(&context).await;
            if self.faults.is_dead() {
                return false;
            }
            if (self.apiserver.version(), self.control.revision()) == before {
                return true;
            }
        }
        panic!("one operator does not come to rest");
    }

    async fn reconcile_all<K: Managed>(&self, context: &Arc<Context<Control>>) {
        for object in self.apiserver.list::<K>() {
            // An error is what a crash and a conflict look like from here; the next round goes on.
            let result = reconcile(Arc::new(object), Arc::clone(context)).await;
            if self.faults.is_dead() {
                return;
            }
            assert!(result.is_ok(), "{result:?}");
        }
    }
}
