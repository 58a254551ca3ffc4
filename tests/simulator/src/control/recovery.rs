//! The loss of a majority of disks, and the one command that goes on from what is left.

use crate::control::fuse::{Fuse, FusedDisk};
use crate::control::world::{Caller, Event, World};
use crate::event;
use basalt_clock::Random;
use basalt_model::MemberId;
use std::time::Duration;

impl World {
    /// Destroys all disks but one that holds everything that anybody was told, and recovers from it. Does nothing while the
    /// members change, or when no member is that far.
    pub(crate) fn majority_is_lost(&mut self) {
        if !self.admin.is_idle() || self.admin.voters.len() < 3 {
            return;
        }
        let told = self.oracle.told.0;
        let knows_all = |member: &MemberId| {
            let running = self.processes.get(member).and_then(|process| process.running.as_ref());
            running.is_some_and(|running| running.member.status().applied >= told)
        };
        let Some(survivor) = self.admin.voters.iter().copied().find(knows_all) else { return };
        self.majorities_to_lose -= 1;
        event!("all disks but that of member {survivor} are destroyed");
        self.tally.fault("lost majority", 1);
        let others: Vec<MemberId> = self.processes.keys().copied().filter(|id| *id != survivor).collect();
        for member in others {
            self.bury(member);
        }
        self.crash(survivor);
        self.oracle.majority_lost();
        self.recover(survivor);
        self.admin.voters.clear();
        self.admin.voters.insert(survivor);
        for _ in 0..2 {
            let mutation = self.add_member();
            self.admin.queue.push_back(mutation);
        }
        self.scheduler.after(Duration::from_millis(300), Event::Wake(Caller::Admin, 0));
        self.scheduler.after(Duration::from_millis(50), Event::Restart(survivor));
    }

    /// Runs the recovery, which may itself be interrupted and begun again.
    fn recover(&mut self, survivor: MemberId) {
        let interrupted_at = self.random.chance(1, 3).then(|| self.random.below(12));
        let (style, seed, world) = (self.random.next_u64(), self.random.next_u64(), self.scheduler.now());
        let Some(process) = self.processes.get(&survivor) else { return };
        if let Some(operations) = interrupted_at {
            let fuse = Fuse::default();
            fuse.set(operations);
            let disk = FusedDisk::new(process.disk.clone(), fuse.clone());
            let outcome = basalt_core::recover(&process.config, disk, process.now(world).wall, seed);
            event!("the recovery is interrupted: {}", outcome.is_err());
            process.disk.crash(basalt_raft::CrashStyle::Tear { seed: style });
            if outcome.is_ok() {
                return;
            }
        }
        let disk = FusedDisk::new(process.disk.clone(), Fuse::default());
        let recovered = basalt_core::recover(&process.config, disk, process.now(world).wall, seed)
            .expect("a disk that was in use can be recovered from");
        event!("recovered: {recovered:?}");
        assert!(
            recovered.revision >= self.oracle.told,
            "the recovery begins at {} though {} was told",
            recovered.revision,
            self.oracle.told
        );
    }
}
