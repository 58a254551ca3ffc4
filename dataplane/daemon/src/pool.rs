//! `basaltd pool`: looks at, mends and wipes the disks of a pool that is not in service.

use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use basalt_device_uring::UringOptions;
use basalt_lvol::id::VolumeId;
use basalt_lvol::{
    DiskContent, DiskFault, Finding, InspectedVolume, Inspection, PoolDisk, difference, examine, inspect,
    repair, wipe,
};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{DiskOptions, Handle, Reactor, ReactorOptions};
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use crate::claims;
use crate::device::named_uuid;

/// Memory for reading metadata in bytes.
const BUFFER_BYTES: usize = 32 << 20;

/// Said at the end of each help.
pub(crate) const EXIT_CODES: &str = "Exit code:
  0  it is done; of `check`: nothing is wrong, or nothing any more
  1  of `check`: something is wrong, and was said
  2  it could not be done: a disk that is named is not there, in use or not of the pool, the pool is damaged beyond reading, or what was asked for makes no
     sense. With `--json` standard output is {\"error\": \"...\"} then";

const WRONG: u8 = 1;
const NOT_DONE: u8 = 2;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what the disks of a pool say: disks, volumes, snapshots, what is used, what is wrong; writes nothing
    #[command(after_help = EXIT_CODES)]
    Inspect(Disks),
    /// Check all metadata of a pool and explain each finding; exits with 1 if there is one. Writes nothing without `--repair`
    #[command(after_help = EXIT_CODES)]
    Check {
        #[command(flatten)]
        disks: Disks,
        /// Write damaged copies anew from intact ones, and go on without what a damaged journal has lost
        #[arg(long)]
        repair: bool,
    },
    /// List where the data of two snapshots, or of a volume and a snapshot of it, lies apart: what a backup has to copy. Writes nothing
    #[command(after_help = EXIT_CODES)]
    Changes {
        /// The earlier one: its UUID, or its name if no other volume or snapshot of the pool has that
        #[arg(long, value_name = "SNAPSHOT")]
        from: String,
        /// The later one
        #[arg(long, value_name = "SNAPSHOT")]
        to: String,
        #[command(flatten)]
        disks: Disks,
    },
    /// Make a disk blank, so that a pool can be made of it. What it held is lost
    #[command(after_help = EXIT_CODES)]
    Wipe {
        /// The device or file
        disk: PathBuf,
        /// The same once more: required where the disk holds data that is not a pool's
        #[arg(long, value_name = "DISK")]
        force: Option<PathBuf>,
        /// The UUID of the pool that the disk is of: required where it is of one
        #[arg(long, value_name = "UUID")]
        destroy_pool: Option<Uuid>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Disks {
    /// The disks of the pool, the lead among them: devices or files
    #[arg(required = true, value_name = "DISK")]
    paths: Vec<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs a command. The disks are locked meanwhile: a pool that is in service is refused.
pub(crate) fn run(command: &Command) -> ExitCode {
    let error = match attempt(command) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => return ExitCode::from(WRONG),
        Err(error) => basalt_telemetry::sentence(&*error),
    };
    let json = match command {
        Command::Inspect(disks) | Command::Check { disks, .. } | Command::Changes { disks, .. } => disks.json,
        Command::Wipe { .. } => false,
    };
    tell(&error);
    if json && let Err(error) = print(&json!({ "error": error }), true, "") {
        tell(&basalt_telemetry::sentence(&*error));
    }
    ExitCode::from(NOT_DONE)
}

/// Says what went wrong. If nobody can hear it, the exit code says that something did.
fn tell(error: &str) {
    drop(writeln!(std::io::stderr(), "basaltd: {error}"));
}

/// False: what was to be checked is not in order, and that was said.
fn attempt(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Inspect(disks) => {
            let found =
                on_disks(&disks.paths, true, |handle, disks| async move { inspect(&handle, disks).await })?;
            print(&found, disks.json, &describe(&found))?;
            Ok(true)
        }
        Command::Check { disks, repair: false } => {
            let found =
                on_disks(&disks.paths, true, |handle, disks| async move { inspect(&handle, disks).await })?;
            print(&found.findings, disks.json, &explain(&found.findings))?;
            Ok(found.findings.is_empty())
        }
        Command::Check { disks, repair: true } => {
            let left = on_disks(&disks.paths, false, |handle, disks| async move {
                let before = inspect(&handle, disks.clone()).await?;
                let after = repair(&handle, disks).await?;
                Ok::<_, basalt_lvol::ImportError>((before.findings, after.findings))
            })?;
            let (before, after) = left;
            let mended: Vec<&Finding> = before.iter().filter(|finding| !after.contains(finding)).collect();
            let mut text = String::new();
            for finding in mended {
                writeln!(text, "mended: {}: {}", finding.subject, finding.explanation)?;
            }
            text.push_str(&explain(&after));
            print(&after, disks.json, &text)?;
            Ok(after.is_empty())
        }
        Command::Changes { from, to, disks } => {
            let found =
                on_disks(&disks.paths, true, |handle, disks| async move { inspect(&handle, disks).await })?;
            let (from, to) = (named(&found, from)?, named(&found, to)?);
            let changes = on_disks(&disks.paths, true, move |handle, disks| async move {
                difference(&handle, disks, from, to).await
            })?;
            let mut text = String::new();
            for range in &changes.ranges {
                writeln!(text, "{} bytes at {}", range.end - range.start, range.start)?;
            }
            let bytes: u64 = changes.ranges.iter().map(|range| range.end - range.start).sum();
            writeln!(
                text,
                "{bytes} bytes in {} ranges, in units of {}",
                changes.ranges.len(),
                found.extent_bytes
            )?;
            print(&changes, disks.json, &text)?;
            Ok(true)
        }
        Command::Wipe { disk, force, destroy_pool } => {
            let (named, destroyed) = (force.as_ref() == Some(disk), *destroy_pool);
            let refused = on_disks(std::slice::from_ref(disk), false, move |handle, disks| async move {
                let disk = &disks[0];
                let refused = may_wipe(disk, &examine(&handle, disk).await?, named, destroyed).err();
                if refused.is_none() {
                    wipe(&handle, disk).await?;
                }
                Ok::<_, DiskFault>(refused)
            })?;
            if let Some(refused) = refused {
                anyhow::bail!(refused);
            }
            print(&(), false, &format!("{} is blank\n", disk.display()))?;
            Ok(true)
        }
    }
}

/// The volume or snapshot that somebody named.
fn named(found: &Inspection, text: &str) -> anyhow::Result<VolumeId> {
    let pool = &found.name;
    let is = |volume: &&InspectedVolume| {
        let id = text.parse().is_ok_and(|uuid| volume.id == VolumeId(uuid));
        id || volume.detail.as_ref().is_some_and(|detail| detail.name == text)
    };
    let mut named = found.volumes.iter().filter(is);
    match (named.next(), named.next()) {
        (Some(volume), None) => Ok(volume.id),
        (None, _) => anyhow::bail!(
            "the pool {pool} has no volume or snapshot {text:?}: `basaltd pool inspect` lists those that it has"
        ),
        (Some(one), Some(other)) => anyhow::bail!(
            "{text:?} is the name of {} and of {} in the pool {pool}: give the UUID of the one that is meant",
            one.id,
            other.id
        ),
    }
}

/// Whether somebody has named what would be lost; else what to do.
fn may_wipe(
    disk: &PoolDisk,
    content: &DiskContent,
    named: bool,
    destroyed: Option<Uuid>,
) -> Result<(), String> {
    let name = &disk.name;
    let force = |content: &dyn Display, remedy: &str| match named {
        true => Ok(()),
        false => Err(format!("{name} holds {content}{remedy}")),
    };
    match content {
        DiskContent::Blank => Ok(()),
        DiskContent::Foreign(content) => force(content, &content.remedy(name)),
        DiskContent::Unusable(error) => {
            let remedy =
                format!("; if all of the pool may be lost, wipe it: basaltd pool wipe {name} --force {name}");
            force(&format_args!("a disk of a pool that cannot be used ({error})"), &remedy)
        }
        DiskContent::Pool(found) if destroyed == Some(found.pool.0) => Ok(()),
        DiskContent::Pool(found) => Err(format!(
            "{name} is a disk of the pool {0} of cluster {1}; if all of that may be lost: basaltd pool wipe {name} --destroy-pool {0}",
            found.pool, found.cluster
        )),
    }
}

fn print(value: &impl serde::Serialize, json: bool, text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match json {
        true => {
            serde_json::to_writer_pretty(&mut out, value).context("cannot write to standard output")?;
            writeln!(out)
        }
        false => out.write_all(text.as_bytes()),
    }
    .context("cannot write to standard output")
}

/// Opens the disks on a reactor of this thread and runs something with them.
fn on_disks<T: 'static, E, F>(
    paths: &[PathBuf],
    read_only: bool,
    work: impl FnOnce(Handle, Vec<PoolDisk>) -> F,
) -> anyhow::Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
    F: Future<Output = Result<T, E>> + 'static,
{
    let options = ReactorOptions { buffer_bytes: BUFFER_BYTES, ..ReactorOptions::default() };
    let mut reactor = Reactor::new(Box::new(RealDriver::new()?), &options);
    let handle = reactor.handle();
    let mut disks = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        if paths[..index].contains(path) {
            anyhow::bail!("{} is named twice: name each disk of the pool once", path.display());
        }
        disks.push(open(&handle, path, read_only)?);
    }
    let future = work(handle.clone(), disks);
    let mut task = handle.clone().spawn(async move {
        let output = future.await;
        handle.stop();
        output
    });
    reactor.run();
    let output = task.take_output().context("the work was not ended")?;
    Ok(output?)
}

fn open(handle: &Handle, path: &Path, read_only: bool) -> anyhow::Result<PoolDisk> {
    let name = path.display().to_string();
    let options = UringOptions {
        name: name.clone(),
        uuid: named_uuid(&name),
        block_size: None,
        disk: DiskOptions { read_only, ..DiskOptions::default() },
    };
    let device = claims::open(handle, path, &options)?;
    Ok(PoolDisk { name, device: Arc::new(device) })
}

fn explain(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is wrong\n".to_owned();
    }
    let mut text = String::new();
    for finding in findings {
        let remedy = match finding.remedy {
            basalt_lvol::Remedy::Rewrite => "`--repair` writes it anew; nothing is lost",
            basalt_lvol::Remedy::AcceptLoss => "`--repair` goes on without what is lost",
            basalt_lvol::Remedy::ByHand => "nothing that `--repair` could do",
        };
        text.push_str(&format!("{}: {} ({remedy})\n", finding.subject, finding.explanation));
    }
    text
}

fn describe(found: &Inspection) -> String {
    let mut text = String::new();
    write_pool(&mut text, found).expect("writing to a string cannot fail");
    text.push_str(&explain(&found.findings));
    text
}

fn write_pool(text: &mut String, found: &Inspection) -> std::fmt::Result {
    let mib = |extents: u64| extents * found.extent_bytes / (1 << 20);
    writeln!(text, "pool {} ({}), format version {}", found.name, found.pool, found.version)?;
    writeln!(text, "cluster {}, revision {}", found.cluster, found.revision)?;
    let exported = if found.exported { ", exported" } else { "" };
    writeln!(
        text,
        "checkpoint {}{exported}, {} changes in the journal, next group {}",
        found.checkpoint, found.journal_records, found.journal_next
    )?;
    writeln!(
        text,
        "{}, extents of {} KiB: {} of {} in use ({} of {} MiB); metadata pages: {} of {}",
        found.layout,
        found.extent_bytes >> 10,
        found.extents_used,
        found.extents,
        mib(found.extents_used),
        mib(found.extents),
        found.metadata_pages_used,
        found.metadata_pages
    )?;
    for (index, disk) in found.disks.iter().enumerate() {
        let name = disk.name.as_deref().unwrap_or("missing");
        let (mib, id) = (disk.device_bytes >> 20, disk.id);
        write!(text, "disk {index} {id}: {name}, {mib} MiB, {} extents", disk.extents)?;
        match disk.opening {
            0 => writeln!(text)?,
            opening => writeln!(text, ", last in use at opening {opening} of {}", found.openings)?,
        }
    }
    for volume in &found.volumes {
        write!(text, "volume {} generation {}", volume.id, volume.generation)?;
        if let Some(detail) = &volume.detail {
            let mark = |on: bool, word| if on { word } else { "" };
            write!(
                text,
                ": {} {:?}, {} bytes in blocks of {}, {} extents mapped, epoch {}, set version {}{}{}{}, created by checkpoint {}, {}",
                detail.kind,
                detail.name,
                detail.size,
                detail.block_bytes,
                detail.extents_mapped,
                detail.epoch,
                detail.set_version,
                mark(detail.in_sync, ", in sync"),
                mark(detail.read_only, ", read-only"),
                mark(detail.hidden, ", hidden"),
                detail.created,
                detail.nqn
            )?;
            if let Some(origin) = detail.origin {
                write!(text, ", of {origin}")?;
            }
        }
        if let Some(reason) = &volume.isolated {
            write!(text, ": isolated: {reason}")?;
        }
        writeln!(text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use basalt_lvol::layout::VolumeIdentity;

    use super::*;

    /// A pool in a file, made with the library.
    fn pool_in(path: &Path) {
        use basalt_lvol::id::{ClusterId, Epoch, Generation, Revision, VolumeId};
        use basalt_lvol::layout::{DiskLayout, EXTENT_BYTES};
        use basalt_lvol::{NewPool, NewPoolDisk, NewVolume, Pool};
        std::fs::write(path, vec![0; 16 << 20]).unwrap();
        let made = on_disks(&[path.to_owned()], false, |handle, disks| async move {
            let disks = disks.into_iter().map(|disk| NewPoolDisk { disk, overwrite_foreign_data: false });
            let new = NewPool {
                cluster: ClusterId(uuid::Uuid::from_u128(1)),
                name: "tank".into(),
                revision: Revision::default(),
                extent_bytes: EXTENT_BYTES,
                layout: DiskLayout::Striped,
                disks: disks.collect(),
            };
            let pool = Pool::create(&handle, new).await.unwrap();
            let identity = VolumeIdentity {
                nqn: "nqn.2026-01.storage.basalt:volume:1".into(),
                nsid: 1,
                uuid: [1; 16],
                nguid: [1; 16],
                serial: [b' '; 20],
            };
            let volume = NewVolume {
                id: VolumeId(uuid::Uuid::from_u128(7)),
                generation: Generation(3),
                epoch: Epoch { incarnation: 1, counter: 4 },
                name: "db".into(),
                identity,
                size: 1 << 30,
                thin: true,
                hidden: false,
            };
            pool.create_volume(volume).await.unwrap();
            Ok::<_, DiskFault>(())
        });
        made.unwrap();
    }

    #[test]
    fn what_changed_between_a_snapshot_and_its_volume_is_listed() {
        use basalt_bdev::{AsyncChannel, BlockCount, BlockDevice as _, Lba};
        use basalt_dma::Buffer;
        use basalt_lvol::id::{Epoch, Generation};
        use basalt_lvol::{NewSnapshot, Pool, VolumeStatus};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        pool_in(&path);
        let paths = [path.clone()];
        let written = on_disks(&paths, false, |handle, disks| async move {
            let cluster = basalt_lvol::id::ClusterId(Uuid::from_u128(1));
            let pool = Pool::import(&handle, cluster, disks).await.unwrap();
            let id = VolumeId(Uuid::from_u128(7));
            let Some(VolumeStatus::Ready(record, device)) = pool.volume(id) else { panic!("no volume") };
            let channel = AsyncChannel::new(&handle, device.open(&handle).unwrap());
            let blocks = |mib: u64| Lba((mib << 20) / 512);
            drop(channel.write(blocks(1), BlockCount(8), Buffer::zeroed(4096), false).await.unwrap());
            let new = NewSnapshot {
                id: VolumeId(Uuid::from_u128(8)),
                generation: Generation(1),
                epoch: Epoch::default(),
                name: "monday".into(),
                identity: VolumeIdentity {
                    nqn: "nqn.2026-01.storage.basalt:volume:8".into(),
                    ..record.identity.clone()
                },
            };
            pool.snapshot(id, new).await.unwrap();
            for mib in [1, 2, 900] {
                drop(channel.write(blocks(mib), BlockCount(8), Buffer::zeroed(4096), false).await.unwrap());
            }
            drop(channel);
            pool.export().await.unwrap();
            Ok::<_, DiskFault>(())
        });
        written.unwrap();
        let changes = |from: &str, to: &str| {
            let disks = Disks { paths: paths.to_vec(), json: false };
            attempt(&Command::Changes { from: from.into(), to: to.into(), disks })
        };
        assert!(changes("monday", "db").unwrap());
        let look = |handle: Handle, disks| async move { inspect(&handle, disks).await };
        let found = on_disks(&paths, true, look).unwrap();
        let (from, to) =
            (named(&found, "monday").unwrap(), named(&found, &Uuid::from_u128(7).to_string()).unwrap());
        let listed =
            on_disks(
                &paths,
                true,
                move |handle, disks| async move { difference(&handle, disks, from, to).await },
            );
        const MIB: u64 = 1 << 20;
        assert_eq!(listed.unwrap().ranges, [MIB..3 * MIB, 900 * MIB..901 * MIB]);
        for wrong in ["tuesday", "", "00000000-0000-0000-0000-000000000009"] {
            let words = changes(wrong, "db").unwrap_err().to_string();
            assert!(words.contains("pool inspect"), "{words}");
        }
    }

    #[test]
    fn a_disk_is_wiped_only_when_what_is_lost_was_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let wipe = |force: Option<&Path>, destroy_pool| {
            let force = force.map(Path::to_owned);
            attempt(&Command::Wipe { disk: path.clone(), force, destroy_pool })
        };
        pool_in(&path);
        let look = || {
            let paths = [path.clone()];
            on_disks(&paths, true, |handle, disks| async move { inspect(&handle, disks).await })
        };
        let pool = look().unwrap().pool;
        for refused in [wipe(None, None), wipe(Some(&path), None), wipe(None, Some(Uuid::from_u128(1)))] {
            let words = refused.unwrap_err().to_string();
            assert!(words.ends_with(&format!("--destroy-pool {pool}")), "{words}");
        }
        assert_eq!(look().unwrap().pool, pool, "nothing was written");
        assert!(wipe(None, Some(pool.0)).unwrap());
        assert!(look().is_err());
        assert!(wipe(None, None).unwrap(), "a blank disk stays blank");
        // Somebody else's.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[..4].copy_from_slice(b"XFSB");
        std::fs::write(&path, &bytes).unwrap();
        let words = wipe(Some(directory.path()), None).unwrap_err().to_string();
        assert!(words.contains("an XFS file system") && words.contains("--force"), "{words}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert!(wipe(Some(&path), None).unwrap());
        assert_eq!(&std::fs::read(&path).unwrap()[..4], &[0; 4]);
    }

    #[test]
    fn a_pool_is_shown_checked_and_repaired() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        pool_in(&path);
        let look = || {
            let paths = [path.clone()];
            on_disks(&paths, true, |handle, disks| async move { inspect(&handle, disks).await }).unwrap()
        };
        let found = look();
        let text = describe(&found);
        for part in [
            "pool tank (",
            "thin \"db\", 1073741824 bytes",
            "epoch 1.4",
            "striped, extents of",
            "nothing is wrong",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["volumes"][0]["detail"]["epoch"]["counter"], 4);
        assert_eq!(json["layout"], "Striped");
        // A superblock slot rots.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let disks = Disks { paths: vec![path.clone()], json: false };
        assert!(!attempt(&Command::Check { disks, repair: false }).unwrap());
        let text = explain(&look().findings);
        assert!(text.contains("superblock slot 0 is unusable") && text.contains("writes it anew"), "{text}");
        let disks = Disks { paths: vec![path.clone()], json: true };
        assert!(attempt(&Command::Check { disks, repair: true }).unwrap());
        assert!(look().findings.is_empty());
        let missing = Disks { paths: vec![directory.path().join("nothing")], json: false };
        assert!(attempt(&Command::Inspect(missing)).is_err());
        let twice = Disks { paths: vec![path.clone(), path.clone()], json: false };
        assert!(attempt(&Command::Inspect(twice)).unwrap_err().to_string().contains("is named twice"));
    }
}
