//! Commands that end before their time: what Abort names, all of a preempted host, and all of a queue whose controller is reset or shut
//! down, before the command that wants it is answered.

use std::sync::Arc;

use basalt_nvme_wire::Status;
use basalt_nvmf_target::{AbortOrder, aborted_with};
use basalt_nvmf_transport::CommandId;

use super::connection::{Connection, Context};
use super::devices::{DeviceIndex, Devices};
use super::slot::{State, Work};
use crate::wire::Wire;

impl<W: Wire> Connection<W> {
    /// Does what orders say that came with the last look at the queue.
    pub(super) fn obey_abort_orders(&mut self, devices: &mut Devices) {
        for order in self.queue.take_abort_orders() {
            if let Some(command) = order.command() {
                self.abort_one(command, order, devices);
                continue;
            }
            self.abort_all(&order, devices);
            self.abort_orders.push(order);
        }
        self.settle_abort_orders(devices);
    }

    /// Ends one command if nothing of it is done; asks the device that has it.
    fn abort_one(&mut self, command: CommandId, mut order: AbortOrder, devices: &mut Devices) {
        let Some(slot) = self.slots.find(command.0) else { return };
        let device = match self.slots[slot].work {
            Work::Block(_, device) | Work::Unmap { device, .. } => Some(device),
            Work::Interpret => None,
            // A pair is one: neither half ends without the other.
            Work::FusedFirst { .. } | Work::FusedSecond { .. } => return,
        };
        match (self.slots[slot].state, device) {
            (State::Submitted, Some(device)) => {
                self.asked_aborts.push((slot, order));
                devices.abort(device, self.tag_base | slot as u64);
            }
            (State::NeedsBuffer | State::Receiving { .. } | State::Ready, _) => {
                order.note_aborted();
                self.asked_aborts.push((slot, order));
                self.abandon(slot, Status::ABORT_REQUESTED);
            }
            (State::Submitted | State::Failed { .. } | State::Free | State::Held | State::Waiting, _) => {}
        }
    }

    /// The device gave a command back early.
    pub(super) fn note_aborted(&mut self, slot: usize) {
        for (_, order) in self.asked_aborts.iter_mut().filter(|(asked, _)| *asked == slot) {
            order.note_aborted();
        }
    }

    /// Ends a command: its place is free, and who asked for its end is answered.
    pub(super) fn release(&mut self, slot: usize) {
        self.slots.release(slot);
        if !self.asked_aborts.is_empty() {
            self.asked_aborts.retain(|(asked, _)| *asked != slot);
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
                State::Failed { .. } | State::Free | State::Held => {}
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
