//! What a controller's admin queue has to do with reservations: notifications, and features 82h and 83h.

use std::sync::Arc;

use basalt_nvme_wire::feature::FeatureId;
use basalt_nvme_wire::log::AsyncEvent;
use basalt_nvme_wire::reservation::NOTICE_MASK_ALL;
use basalt_nvme_wire::{NSID_ALL, Sqe, Status};
use basalt_nvmf_transport::CommandId;

use super::Controller;
use crate::namespace::Namespace;
use crate::reply::{Reply, Step};
use crate::reservation::{Command, Outcome, Ticket};

/// A Set Features that ends once every namespace has its new setting.
#[derive(Debug)]
pub(super) struct PendingFeature {
    command: CommandId,
    tickets: Vec<Arc<Ticket>>,
}

impl Controller {
    /// Takes the notices that came, and raises their event.
    pub(super) fn look_at_notices(&mut self) {
        let inbox = self.link.take_notices();
        let mut any = false;
        for (nsid, notice) in inbox.notices {
            any |= self.notices.add(nsid, notice);
        }
        self.notices.skip(inbox.lost);
        if any {
            self.events.raise(AsyncEvent::ReservationLogAvailable);
        }
    }

    /// The host read a notification page: the next one has an event of its own.
    pub(super) fn note_notice_read(&mut self) {
        if self.notices.next() {
            self.events.clear(AsyncEvent::ReservationLogAvailable);
            self.events.raise(AsyncEvent::ReservationLogAvailable);
        }
    }

    /// The namespaces that a feature of namespaces is about.
    fn meant(&self, nsid: u32) -> Result<Vec<Arc<Namespace>>, Status> {
        let namespaces = self.subsystem.namespaces();
        if nsid == NSID_ALL {
            return Ok(namespaces.to_vec());
        }
        let found = namespaces.iter().find(|namespace| namespace.nsid().0 == nsid);
        found.map(|namespace| vec![Arc::clone(namespace)]).ok_or(Status::INVALID_NAMESPACE.dnr())
    }

    pub(super) fn set_notice_mask(&mut self, sqe: &Sqe) -> Result<Step, Status> {
        let mask = sqe.cdw11.get();
        if mask & !NOTICE_MASK_ALL != 0 {
            return Err(Status::INVALID_FIELD.dnr());
        }
        for namespace in self.meant(sqe.nsid.get())? {
            self.notices.set_mask(namespace.nsid(), mask);
        }
        Ok(Step::DONE)
    }

    pub(super) fn set_persistence(&mut self, sqe: &Sqe) -> Result<Step, Status> {
        let persistent = match sqe.cdw11.get() {
            0 => false,
            1 => true,
            _ => return Err(Status::INVALID_FIELD.dnr()),
        };
        let host = self.link.association.host.id;
        let mut tickets = Vec::new();
        for namespace in self.meant(sqe.nsid.get())? {
            match namespace.reservations().submit(host, Command::Persist(persistent)) {
                Outcome::Now(status) if status.is_success() => {}
                Outcome::Now(status) => return Err(status),
                Outcome::Later(ticket) => tickets.push(ticket),
            }
        }
        if tickets.is_empty() {
            return Ok(Step::DONE);
        }
        self.pending.push(PendingFeature { command: CommandId(sqe.command_id.get()), tickets });
        Ok(Step::Hold)
    }

    /// The value of feature 82h or 83h of one namespace.
    pub(super) fn reservation_feature(&self, feature: FeatureId, nsid: u32) -> Result<u32, Status> {
        if nsid == NSID_ALL {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let namespaces = self.meant(nsid)?;
        let Some(namespace) = namespaces.first() else { return Err(Status::INVALID_NAMESPACE.dnr()) };
        Ok(match feature {
            FeatureId::ReservationNotificationMask => self.notices.mask(namespace.nsid()),
            _ => u32::from(namespace.reservations().state().is_persistent()),
        })
    }

    /// A Set Features that has ended.
    pub(super) fn next_feature(&mut self) -> Option<(CommandId, Reply)> {
        let ended = |(place, pending): (usize, &PendingFeature)| {
            let statuses: Option<Vec<Status>> = pending.tickets.iter().map(Ticket::outcome).collect();
            statuses.map(|statuses| (place, statuses))
        };
        let (place, statuses) = self.pending.iter().enumerate().find_map(ended)?;
        let PendingFeature { command, .. } = self.pending.remove(place);
        let failed = statuses.into_iter().find(|status| !status.is_success());
        Some((command, Reply::status(failed.unwrap_or(Status::SUCCESS))))
    }
}
