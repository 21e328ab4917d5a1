//! Publishing a finished job: documents, fsync, seal, rename, fsync of the directory (specs/journal.md, clauses 8-12).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use safequant_container::{Disk, Entry, ReadAt};

use crate::budget::SIDE_BUFFER_BYTES;
use crate::journal::{Earlier, hex};
use crate::place::{OutputKind, Place};
use crate::plan::{INDEX, manifest, manifest_name};
use crate::workspace::{Workspace, exists};
use crate::{Destination, Error, Event};

/// Writes what stands beside the weights, makes all durable, and gives the result its name.
pub(crate) fn commit(workspace: &mut Workspace<'_>) -> Result<(), Error> {
    let plan = workspace.plan;
    let (job, disk) = (&plan.job, workspace.disk);
    let out = &job.place.out;
    let mut folders = BTreeSet::new();
    for (name, _) in &job.sidecars {
        make_folders(disk, out, name, &mut folders)?;
    }
    for (name, bytes) in &job.documents {
        write_file(disk, &out.join(name), bytes)?;
    }
    if let Some(index) = &job.index {
        write_file(disk, &out.join(INDEX), index)?;
    }
    for (name, len_bytes) in &job.sidecars {
        let source = plan.checkpoint.sidecar(name)?;
        copy_file(disk, &out.join(name), source.as_ref(), *len_bytes)?;
    }
    let manifest = manifest(&job.steps, |step| workspace.outputs.record(step)).to_json();
    write_file(disk, &out.join(manifest_name(&job.place)), &manifest)?;
    for folder in folders.iter().rev() {
        sync_dir(disk, folder)?;
    }
    sync_dir(disk, out)?;
    plan.checkpoint.verify_unchanged()?;
    if let Some(reference) = &job.reference {
        reference.checkpoint().verify_unchanged()?;
    }
    if let Some(calibration) = &job.calibration {
        calibration.verify_unchanged()?;
    }
    workspace.journal.seal(&manifest)?;
    workspace.event(Event::Commit);
    publish(workspace)
}

/// Whether an earlier run got as far as the renaming, so that only the workspace is left to remove.
pub(crate) fn is_published(workspace: &Workspace<'_>, earlier: &Earlier) -> Result<bool, Error> {
    let Some(sealed) = &earlier.sealed else {
        return Ok(false);
    };
    let (place, disk) = (&workspace.plan.job.place, workspace.disk);
    let (manifest, left) = match place.kind {
        OutputKind::Directory => (
            place.destination.join(manifest_name(place)),
            place.out.clone(),
        ),
        OutputKind::File => (place.manifest_beside(), place.out.join(place.file_name())),
    };
    // A replaced directory lies where the result was.
    let is_moved = match (workspace.mode, place.kind) {
        (Destination::Replace, OutputKind::Directory) => true,
        (Destination::New | Destination::Replace | Destination::Resume, _) => !exists(disk, &left)?,
    };
    if !is_moved || !exists(disk, &manifest)? {
        return Ok(false);
    }
    Ok(digest_of(disk, &manifest)? == *sealed)
}

fn digest_of(disk: &dyn Disk, path: &Path) -> Result<String, Error> {
    let failed = |e| Error::io(path, "read the file", e);
    let file = disk.open_file(path, false).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    each_chunk(file.as_ref(), file.len_bytes(), |_, chunk| {
        hasher.update(chunk);
        Ok(())
    })
    .map_err(failed)?;
    Ok(hex(&hasher))
}

fn each_chunk<R: ReadAt + ?Sized>(
    source: &R,
    len_bytes: u64,
    mut take: impl FnMut(u64, &[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let cap = usize::try_from(SIDE_BUFFER_BYTES.min(len_bytes)).unwrap_or(1 << 16);
    let mut buffer = vec![0; cap];
    let mut at = 0;
    while at < len_bytes {
        let n = usize::try_from(len_bytes - at)
            .unwrap_or(usize::MAX)
            .min(cap);
        source.read_exact_at(at, &mut buffer[..n])?;
        take(at, &buffer[..n])?;
        at += n as u64;
    }
    Ok(())
}

/// Creates the folders that a name inside the result needs.
pub(crate) fn make_folders(
    disk: &dyn Disk,
    out: &Path,
    name: &str,
    made: &mut BTreeSet<PathBuf>,
) -> Result<(), Error> {
    let is_plain = |c: &str| !matches!(c, "" | "." | "..") && !c.contains(['\\', '\0']);
    if !name.split('/').all(is_plain) {
        return Err(Error::SidecarName {
            name: name.to_owned(),
        });
    }
    let mut folder = out.to_owned();
    let mut components: Vec<&str> = name.split('/').collect();
    components.pop();
    for component in components {
        folder.push(component);
        if made.insert(folder.clone()) && !exists(disk, &folder)? {
            let created = disk.create_dir(&folder);
            created.map_err(|e| Error::io(&folder, "create the directory", e))?;
        }
    }
    Ok(())
}

pub(crate) fn write_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |e| Error::io(path, "write the file", e);
    let file = disk.open_file(path, true).map_err(failed)?;
    file.set_len(bytes.len() as u64).map_err(failed)?;
    file.write_all_at(0, bytes).map_err(failed)?;
    file.sync().map_err(failed)
}

pub(crate) fn copy_file(
    disk: &dyn Disk,
    path: &Path,
    source: &dyn ReadAt,
    len_bytes: u64,
) -> Result<(), Error> {
    let failed = |e| Error::io(path, "copy the file", e);
    let file = disk.open_file(path, true).map_err(failed)?;
    file.set_len(len_bytes).map_err(failed)?;
    each_chunk(source, len_bytes, |at, chunk| file.write_all_at(at, chunk)).map_err(failed)?;
    file.sync().map_err(failed)
}

pub(crate) fn sync_dir(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    disk.sync_dir(path)
        .map_err(|e| Error::io(path, "sync the directory", e))
}

/// Gives the result its name. If the name cannot be made durable it is taken back: no result without a durable name.
fn publish(workspace: &Workspace<'_>) -> Result<(), Error> {
    let (place, disk) = (&workspace.plan.job.place, workspace.disk);
    match workspace.mode {
        Destination::Replace => place.check_kind(disk)?,
        Destination::New | Destination::Resume => place.check_free(disk)?,
    }
    match place.kind {
        OutputKind::Directory => publish_directory(place, disk),
        OutputKind::File => publish_file(place, disk),
    }
}

pub(crate) fn publish_directory(place: &Place, disk: &dyn Disk) -> Result<(), Error> {
    let (out, destination) = (&place.out, &place.destination);
    let is_taken = !place.is_free(disk)?;
    let moved = if is_taken {
        disk.exchange(out, destination)
    } else {
        disk.rename(out, destination)
    };
    moved.map_err(|e| {
        if is_taken && e.kind() == std::io::ErrorKind::Unsupported {
            return Error::NoExchange {
                path: destination.display().to_string(),
            };
        }
        Error::io(destination, "move the result to its name", e)
    })?;
    sync_dir(disk, &place.parent).inspect_err(|_| {
        let _ = if is_taken {
            disk.exchange(destination, out)
        } else {
            disk.rename(destination, out)
        };
    })
}

fn publish_file(place: &Place, disk: &dyn Disk) -> Result<(), Error> {
    let name = manifest_name(place);
    let (new, beside) = (place.out.join(&name), place.manifest_beside());
    let (out, destination) = (place.out.join(place.file_name()), &place.destination);
    let rename = |from: &Path, to: &Path| {
        disk.rename(from, to)
            .map_err(|e| Error::io(to, "move the result to its name", e))
    };
    let is_replacing = matches!(disk.entry(destination), Ok(Some(Entry::File(_))));
    rename(&new, &beside)?;
    rename(&out, destination).inspect_err(|_| {
        let _ = disk.rename(&beside, &new);
    })?;
    sync_dir(disk, &place.parent).inspect_err(|_| {
        // A replaced file is gone; its successor is complete, so it stays.
        if !is_replacing {
            let _ = disk.rename(destination, &out);
            let _ = disk.rename(&beside, &new);
        }
    })
}
