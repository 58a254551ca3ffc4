//! Commands that end before their time: what Abort names, all of a preempted host, and all of a queue whose controller is reset or shut
//! down, before the command that wants it is answered.

use std::sync::Arc;
use std::time::Duration;

use basalt_clock::Instant;
use basalt_nvme_wire::Status;
use basalt_nvme_wire::pdu::{FatalStatus, Violation};
use basalt_nvmf_target::{AbortOrder, Reply, aborted_with};
use basalt_nvmf_transport::CommandId;
use smallvec::SmallVec;

use super::connection::{Connection, Context, Phase};
use super::devices::{DeviceIndex, Devices};
use super::slot::{State, Work};
use crate::wire::Wire;

/// How long an aborted command waits for the data that was asked for, so that hosts that do send it have sent it when the command ends.
const DATA_GRACE: Duration = Duration::from_secs(1);

/// An order to end one command, settled when that has ended.
#[derive(Debug)]
pub(crate) struct AskedAbort {
    slot: usize,
    order: AbortOrder,
    /// The command's data is not waited for any longer than that.
    until: Option<Instant>,
}

impl<W: Wire> Connection<W> {
    /// Does what orders say that came with the last look at the queue.
    pub(super) fn obey_abort_orders(&mut self, context: &mut Context<'_>) {
        for order in self.queue.take_abort_orders() {
            if order.asks_for_host() {
                if self.wire.has_peer_ended() {
                    self.queue.host_has_left(&order);
                    self.phase = Phase::Over;
                }
                continue;
            }
            if let Some(command) = order.command() {
                self.abort_one(command, order, context);
                continue;
            }
            self.abort_all(&order, context.devices);
            self.abort_orders.push(order);
        }
        self.settle_abort_orders(context.devices);
    }

    /// Ends one command if nothing of it is done; asks the device that has it.
    fn abort_one(&mut self, command: CommandId, mut order: AbortOrder, context: &mut Context<'_>) {
        let Some(slot) = self.slots.find(command.0) else { return };
        let device = match self.slots[slot].work {
            Work::Block(_, device) | Work::Unmap { device, .. } => Some(device),
            Work::Interpret => None,
            // A pair is one: neither half ends without the other.
            Work::FusedFirst { .. } | Work::FusedSecond { .. } => return,
        };
        match (self.slots[slot].state, device) {
            (State::Submitted, Some(device)) => {
                self.asked_aborts.push(AskedAbort { slot, order, until: None });
                context.devices.abort(device, self.tag_base | slot as u64);
            }
            (State::NeedsBuffer | State::Receiving { .. } | State::Ready, _) => {
                order.note_aborted();
                let until = Some(context.now + DATA_GRACE);
                self.asked_aborts.push(AskedAbort { slot, order, until });
                self.abandon(slot, Status::ABORT_REQUESTED);
            }
            (
                State::Submitted
                | State::Failed { .. }
                | State::Draining { .. }
                | State::Free
                | State::Held
                | State::Waiting,
                _,
            ) => {}
        }
    }

    /// Ends aborted commands whose data does not come; what comes of it later is dropped.
    pub(super) fn give_up_data(&mut self, context: &mut Context<'_>) {
        if self.asked_aborts.is_empty() || self.phase != Phase::Running {
            return;
        }
        let late = |asked: &&AskedAbort| asked.until.is_some_and(|until| until <= context.now);
        let late: SmallVec<[usize; 4]> =
            self.asked_aborts.iter().filter(late).map(|asked| asked.slot).collect();
        for slot in late {
            let State::Failed { received, status } = self.slots[slot].state else { continue };
            if !self.slots.try_drain(slot, received) {
                // Nobody who serves its commands gets here: it has given as many up as it may have, and still owes the data of all.
                self.terminate(context, Violation::plain(FatalStatus::LimitExceeded), &[]);
                return;
            }
            self.receiving -= 1;
            self.push_completion(slot, &Reply::status(status));
            self.asked_aborts.retain(|asked| asked.slot != slot);
        }
    }

    /// The device gave a command back early.
    pub(super) fn note_aborted(&mut self, slot: usize) {
        for asked in self.asked_aborts.iter_mut().filter(|asked| asked.slot == slot) {
            asked.order.note_aborted();
        }
    }

    /// Ends a command: its place is free, and who asked for its end is answered.
    pub(super) fn release(&mut self, slot: usize) {
        self.slots.release(slot);
        if !self.asked_aborts.is_empty() {
            self.asked_aborts.retain(|asked| asked.slot != slot);
        }
    }

    /// Ends what is not with a device at once; what is comes back soon, or when it is done.
    fn abort_all(&mut self, order: &AbortOrder, devices: &mut Devices) {
        let concerned = |device: DeviceIndex| order.concerns(devices.namespace(device).map(Arc::as_ref));
        let mut submitted = Vec::new();
        for slot in 0..self.slots.len() {
            let device = match self.slots[slot].work {
                Work::Block(_, device) | Work::FusedSecond { device, .. } | Work::Unmap { device, .. } => {
                    device
                }
                // Ends with its second half.
                Work::Interpret | Work::FusedFirst { .. } => continue,
            };
            if !concerned(device) {
                continue;
            }
            match self.slots[slot].state {
                State::Submitted => {
                    self.slots[slot].aborted = Some(order.status());
                    submitted.push((device, self.tag_base | slot as u64));
                }
                State::Failed { .. } | State::Draining { .. } | State::Free | State::Held => {}
                State::NeedsBuffer | State::Receiving { .. } | State::Waiting | State::Ready => {
                    if let Work::FusedSecond { first, .. } = self.slots[slot].work {
                        self.abandon(first, aborted_with(order.status()));
                    }
                    self.abandon(slot, order.status());
                }
            }
        }
        for (device, tag) in submitted {
            devices.abort(device, tag);
        }
    }

    /// Fulfils the orders whose commands have all come back from devices.
    pub(super) fn settle_abort_orders(&mut self, devices: &Devices) {
        let (slots, orders) = (&self.slots, &mut self.abort_orders);
        orders.retain(|order| {
            slots.iter().any(|slot| {
                let device = match slot.work {
                    Work::Block(_, device)
                    | Work::FusedSecond { device, .. }
                    | Work::Unmap { device, .. } => device,
                    Work::Interpret | Work::FusedFirst { .. } => return false,
                };
                let with_device = slot.aborted.is_some() && slot.state == State::Submitted;
                with_device && order.concerns(devices.namespace(device).map(Arc::as_ref))
            })
        });
    }

    /// Whether a command may still run whose data has come, or that had to wait; ends it otherwise.
    pub(super) fn may_run(&mut self, slot: usize, context: &Context<'_>) -> bool {
        let (operation, device) = match self.slots[slot].work {
            Work::Block(block, device) | Work::FusedSecond { block, device, .. } => (block.operation, device),
            Work::Unmap { device, .. } => (basalt_bdev::Operation::Unmap, device),
            Work::Interpret | Work::FusedFirst { .. } => return true,
        };
        // The device says so if the namespace is gone.
        let Some(namespace) = context.devices.namespace(device) else { return true };
        match self.queue.may_run(namespace, operation) {
            Ok(()) => true,
            Err(status) => {
                self.fail(slot, status);
                false
            }
        }
    }
}
