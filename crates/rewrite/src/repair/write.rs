//! Writing a repaired checkpoint: beside its place, and then moved there in one step.

use std::collections::BTreeSet;
use std::path::Path;

use safequant_container::{Disk, DiskFile, Manifest, ReadAt};

use super::{How, NewShard, RepairPlan, RepairedFile, Weights};
use crate::commit::{copy_file, make_folders, publish_directory, sync_dir, write_file};
use crate::journal::Journal;
use crate::place::{OutputKind, Place};
use crate::workspace::exists;
use crate::{Destination, Error};

/// Bytes that are copied at a time.
const CHUNK: u64 = 1 << 20;

/// Carries out a plan, and says what became of each file.
///
/// # Errors
/// Any; the destination is then untouched, and nothing is left beside it.
pub fn run(plan: &RepairPlan<'_>, disk: &dyn Disk) -> Result<Vec<RepairedFile>, Error> {
    let place = &plan.place;
    place.check(disk, plan.checkpoint, plan.mode)?;
    let lock = Journal::open(disk, place)?;
    let written = write(plan, disk);
    // The result is complete without it, and a failure counts more than what is left of it.
    let _ = disk.remove_dir_all(&place.work);
    drop(lock);
    written.map_err(|error| disk_full(error, plan, disk))
}

/// A full disk, with the numbers that help.
fn disk_full(error: Error, plan: &RepairPlan<'_>, disk: &dyn Disk) -> Error {
    if !error.is_disk_full() {
        return error;
    }
    let parent = &plan.place.parent;
    let lengths = plan.files().into_iter().map(|file| file.len_bytes);
    Error::DiskFull {
        path: parent.display().to_string(),
        needed_bytes: lengths.fold(0, u64::saturating_add),
        free_bytes: disk.free_bytes(parent).unwrap_or(0),
    }
}

fn write(plan: &RepairPlan<'_>, disk: &dyn Disk) -> Result<Vec<RepairedFile>, Error> {
    let out = &plan.place.out;
    if exists(disk, out)? {
        let removed = disk.remove_dir_all(out);
        removed.map_err(|e| Error::io(out, "remove the directory", e))?;
    }
    let created = disk.create_dir(out);
    created.map_err(|e| Error::io(out, "create the directory", e))?;
    let mut files = plan.files();
    for (new, file) in plan.shards.iter().zip(&mut files) {
        file.how = write_shard(plan, new, disk)?;
    }
    for document in &plan.documents {
        write_file(disk, &out.join(&document.name), document.new.as_bytes())?;
    }
    if let Some(manifest) = &plan.manifest {
        write_file(disk, &out.join(Manifest::FILE_NAME), manifest)?;
    }
    let mut folders = BTreeSet::new();
    for (name, len_bytes) in &plan.sidecars {
        make_folders(disk, out, name, &mut folders)?;
        let source = plan.checkpoint.sidecar(name)?;
        copy_file(disk, &out.join(name), source.as_ref(), *len_bytes)?;
    }
    for folder in folders.iter().rev() {
        sync_dir(disk, folder)?;
    }
    sync_dir(disk, out)?;
    plan.checkpoint.verify_unchanged()?;
    publish(plan, disk)?;
    Ok(files)
}

fn write_shard(plan: &RepairPlan<'_>, new: &NewShard<'_>, disk: &dyn Disk) -> Result<How, Error> {
    let path = plan.place.out.join(&new.name);
    let source = new.shard.source.as_ref();
    let failed = |e| Error::io(&path, "write the file", e);
    if new.rewritten.is_none() && plan.weights == Weights::Link {
        let linked = disk.link(source, &path);
        if linked.map_err(|e| Error::io(&path, "link the file", e))? {
            return Ok(How::Linked);
        }
    }
    let file = disk.open_file(&path, true).map_err(failed)?;
    file.set_len(new.len_bytes()).map_err(failed)?;
    let how = match &new.rewritten {
        None => {
            copy(file.as_ref(), 0, source, 0, source.len_bytes()).map_err(failed)?;
            How::Copied
        }
        Some(rewritten) => {
            file.write_all_at(0, &rewritten.prefix).map_err(failed)?;
            for piece in &rewritten.pieces {
                let (to, from) = (piece.to, piece.from);
                copy(file.as_ref(), to, source, from, piece.len_bytes).map_err(failed)?;
            }
            How::NewHeader
        }
    };
    file.sync().map_err(failed)?;
    Ok(how)
}

/// Copies bytes: by the system as far as it can, and the rest through memory.
fn copy(
    file: &dyn DiskFile,
    to: u64,
    source: &dyn ReadAt,
    from: u64,
    len_bytes: u64,
) -> std::io::Result<()> {
    let mut done = file.copy_from(to, source, from, len_bytes)?;
    let mut buffer = vec![0; usize::try_from(CHUNK.min(len_bytes)).unwrap_or_default()];
    while done < len_bytes {
        let n = usize::try_from(len_bytes - done).unwrap_or(usize::MAX);
        let n = n.min(buffer.len());
        source.read_exact_at(from + done, &mut buffer[..n])?;
        file.write_all_at(to + done, &buffer[..n])?;
        done += n as u64;
    }
    Ok(())
}

fn publish(plan: &RepairPlan<'_>, disk: &dyn Disk) -> Result<(), Error> {
    let place = &plan.place;
    match plan.mode {
        Destination::Replace => place.check_kind(disk)?,
        Destination::New | Destination::Resume => place.check_free(disk)?,
    }
    match place.kind {
        OutputKind::Directory => publish_directory(place, disk),
        OutputKind::File => publish_file(place, disk),
    }
}

fn publish_file(place: &Place, disk: &dyn Disk) -> Result<(), Error> {
    let (out, destination): (_, &Path) = (place.out.join(place.file_name()), &place.destination);
    let renamed = disk.rename(&out, destination);
    renamed.map_err(|e| Error::io(destination, "move the result to its name", e))?;
    sync_dir(disk, &place.parent)
}
