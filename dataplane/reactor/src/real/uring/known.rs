//! What the kernel was told of beforehand, and entries that use it.

use std::io;
use std::os::fd::RawFd;

use basalt_dma::{REGIONS_MAX, RegionChange};
use io_uring::{IoUring, Probe, Submitter, opcode, squeue, types};

use crate::real::engine::{Kind, Transfer};

/// What the kernel was told of beforehand, so that it need not look it up and hold it anew for every transfer. A container may
/// limit how much memory is locked, and an old kernel knows no such tables: then transfers go without.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By the place of a disk.
    files: Vec<bool>,
    /// By the number of a region.
    pub(super) regions: Vec<bool>,
}

/// Disks that are known at a time; others are named by their descriptors.
pub(super) const FILES_MAX: u32 = 64;

/// An opcode's entry for a file, known or by its descriptor.
macro_rules! for_file {
    ($known:expr, $transfer:expr, |$fd:ident| $entry:expr) => {
        if $known {
            let $fd = types::Fixed($transfer.disk);
            $entry
        } else {
            let $fd = types::Fd($transfer.fd);
            $entry
        }
    };
}

impl Known {
    /// Tables with room, as far as the kernel gives them.
    pub(super) fn of(ring: &IoUring, probe: &Probe) -> Self {
        let submitter = ring.submitter();
        let table = |made: io::Result<()>, size: usize| vec![false; if made.is_ok() { size } else { 0 }];
        let fixed =
            probe.is_supported(opcode::ReadFixed::CODE) && probe.is_supported(opcode::WriteFixed::CODE);
        let files = table(submitter.register_files_sparse(FILES_MAX), FILES_MAX as usize);
        let regions = if fixed { REGIONS_MAX.into() } else { 0 };
        let regions = table(submitter.register_buffers_sparse(REGIONS_MAX.into()), regions);
        Self { files, regions }
    }

    pub(super) fn file(&mut self, submitter: &Submitter<'_>, disk: u32, fd: RawFd) {
        let Some(known) = self.files.get_mut(disk as usize) else { return };
        *known = submitter.register_files_update(disk, &[fd]).is_ok();
    }

    pub(super) fn forget_file(&mut self, submitter: &Submitter<'_>, disk: u32) {
        let Some(known) = self.files.get_mut(disk as usize) else { return };
        if std::mem::take(known) {
            // It cannot fail for a place of the table. The kernel lets go of the file.
            drop(submitter.register_files_update(disk, &[-1]));
        }
    }

    pub(super) fn memory_changed(&mut self, submitter: &Submitter<'_>, changes: &[RegionChange]) {
        for change in changes {
            let (id, iov_base, iov_len) = match change {
                RegionChange::Added { id, start, len } => (*id, start.as_ptr().cast(), *len),
                RegionChange::Removed(id) => (*id, std::ptr::null_mut(), 0),
            };
            let Some(known) = self.regions.get_mut(usize::from(id.index())) else { continue };
            let region = [libc::iovec { iov_base, iov_len }];
            // SAFETY: the kernel holds the pages by itself. A transfer names a region only while a buffer of it lives, and a
            // region that went is forgotten here before its number comes again.
            let told = unsafe { submitter.register_buffers_update(id.index().into(), &region, None) };
            *known = told.is_ok() && iov_len > 0;
        }
    }

    pub(super) fn entry(&self, transfer: &Transfer) -> squeue::Entry {
        let known = self.files.get(transfer.disk as usize) == Some(&true);
        for_file!(known, transfer, |fd| match transfer.kind {
            Kind::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Kind::Allocate { mode } => {
                opcode::Fallocate::new(fd, transfer.length).offset(transfer.offset).mode(mode).build()
            }
            Kind::Read => match self.memory(transfer) {
                Memory::Region(base, len, region) => {
                    opcode::ReadFixed::new(fd, base, len, region).offset(transfer.offset).build()
                }
                Memory::Part(base, len) => opcode::Read::new(fd, base, len).offset(transfer.offset).build(),
                Memory::Parts(parts, count) => {
                    opcode::Readv::new(fd, parts, count).offset(transfer.offset).build()
                }
            },
            Kind::Write { durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                match self.memory(transfer) {
                    Memory::Region(base, len, region) => opcode::WriteFixed::new(fd, base, len, region)
                        .offset(transfer.offset)
                        .rw_flags(flags)
                        .build(),
                    Memory::Part(base, len) => {
                        opcode::Write::new(fd, base, len).offset(transfer.offset).rw_flags(flags).build()
                    }
                    Memory::Parts(parts, count) => {
                        opcode::Writev::new(fd, parts, count).offset(transfer.offset).rw_flags(flags).build()
                    }
                }
            }
        })
    }

    fn memory(&self, transfer: &Transfer) -> Memory {
        if transfer.parts_len != 1 {
            return Memory::Parts(transfer.parts, u32::try_from(transfer.parts_len).unwrap_or(0));
        }
        // SAFETY: the caller's list has `parts_len` entries.
        let part = unsafe { *transfer.parts };
        let (base, len) = (part.iov_base.cast::<u8>(), u32::try_from(part.iov_len).unwrap_or(u32::MAX));
        let region = transfer.region.map(|region| region.index());
        match region.filter(|region| self.regions.get(usize::from(*region)) == Some(&true)) {
            Some(region) => Memory::Region(base, len, region),
            None => Memory::Part(base, len),
        }
    }
}

/// Where a transfer's bytes are.
enum Memory {
    /// In one piece of a region that the kernel knows.
    Region(*mut u8, u32, u16),
    /// In one piece.
    Part(*mut u8, u32),
    Parts(*const libc::iovec, u32),
}
