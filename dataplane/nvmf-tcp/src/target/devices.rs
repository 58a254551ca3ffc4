//! One reactor's channels to the devices of namespaces, shared by its connections.

use std::sync::Arc;

use basalt_bdev::{Capabilities, Channel, Completion, Rejected, Request};
use basalt_nvmf_target::Namespace;
use basalt_reactor::Handle;

/// Place of a channel in [`Devices`], for as long as that channel is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceIndex {
    place: usize,
    opening: u64,
}

/// Why a channel did not take a request.
#[derive(Debug)]
pub(crate) enum NotSubmitted {
    /// Its queue is full.
    Full(Rejected),
    /// It was closed: its namespace left while the command waited for data.
    Closed,
}

struct Entry {
    /// Number of its opening: a place has another channel later.
    opening: u64,
    namespace: Arc<Namespace>,
    channel: Box<dyn Channel>,
    /// Reads bring views of the device's own memory.
    lends: bool,
    /// Connections that may submit.
    users: usize,
    /// Requests under way.
    running: usize,
}

/// Channels by namespace. A channel closes once no connection uses it and nothing runs on it.
pub(crate) struct Devices {
    handle: Handle,
    entries: Vec<Option<Entry>>,
    running: usize,
    openings: u64,
}

impl Devices {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle, entries: Vec::new(), running: 0, openings: 0 }
    }

    /// The channel to a namespace's device, opened if need be; `None` if it cannot be opened.
    pub(crate) fn acquire(&mut self, namespace: &Arc<Namespace>) -> Option<DeviceIndex> {
        let same = |entry: &Entry| Arc::ptr_eq(&entry.namespace, namespace);
        if let Some(index) = self.entries.iter().position(|entry| entry.as_ref().is_some_and(same)) {
            let entry = self.entries[index].as_mut()?;
            entry.users += 1;
            return Some(DeviceIndex { place: index, opening: entry.opening });
        }
        let channel = match namespace.device().open(&self.handle) {
            Ok(channel) => channel,
            Err(error) => {
                tracing::warn!(nsid = %namespace.nsid(), %error, "a namespace's device cannot be opened");
                return None;
            }
        };
        self.openings += 1;
        let opening = self.openings;
        let lends = namespace.device().info().capabilities().contains(Capabilities::LEND);
        let entry = Entry { opening, namespace: Arc::clone(namespace), channel, lends, users: 1, running: 0 };
        let index = self.entries.iter().position(Option::is_none).unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[index] = Some(entry);
        Some(DeviceIndex { place: index, opening })
    }

    /// Ends one connection's use.
    pub(crate) fn release(&mut self, index: DeviceIndex) {
        if let Some(entry) = &mut self.entries[index.place] {
            entry.users -= 1;
        }
        self.close_unused(index.place);
    }

    fn close_unused(&mut self, index: usize) {
        if self.entries[index].as_ref().is_some_and(|entry| entry.users == 0 && entry.running == 0) {
            self.entries[index] = None;
        }
    }

    pub(crate) fn submit(&mut self, index: DeviceIndex, request: Request) -> Result<(), NotSubmitted> {
        let open = self.entries[index.place].as_mut().filter(|entry| entry.opening == index.opening);
        let entry = open.ok_or(NotSubmitted::Closed)?;
        entry.channel.submit(request).map_err(NotSubmitted::Full)?;
        entry.running += 1;
        self.running += 1;
        Ok(())
    }

    /// Whether reads bring views of the device's own memory instead of the pool's.
    pub(crate) fn lends(&self, index: DeviceIndex) -> bool {
        self.entries[index.place].as_ref().is_some_and(|entry| entry.lends)
    }

    /// The namespace of a channel that is open.
    pub(crate) fn namespace(&self, index: DeviceIndex) -> Option<&Arc<Namespace>> {
        let entry = self.entries[index.place].as_ref();
        entry.filter(|entry| entry.opening == index.opening).map(|entry| &entry.namespace)
    }

    /// Asks a device to give a request back early.
    pub(crate) fn abort(&mut self, index: DeviceIndex, tag: u64) {
        let open = self.entries[index.place].as_mut().filter(|entry| entry.opening == index.opening);
        if let Some(entry) = open {
            entry.channel.abort(tag);
        }
    }

    /// Requests under way on all channels.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// Collects what is finished.
    pub(crate) fn poll(&mut self, completions: &mut Vec<Completion>) {
        if self.running == 0 {
            return;
        }
        for index in 0..self.entries.len() {
            let Some(entry) = &mut self.entries[index] else { continue };
            if entry.running == 0 {
                continue;
            }
            let done = entry.channel.poll(completions);
            entry.running -= done;
            self.running -= done;
            if done > 0 && entry.users == 0 {
                self.close_unused(index);
            }
        }
    }
}
