//! The hidden directory in which a result grows: locked, journaled, resumable (specs/journal.md).

use std::io;
use std::path::{Path, PathBuf};

use safequant_container::Disk;

use crate::journal::{Earlier, Journal};
use crate::outputs::Outputs;
use crate::place::Place;
use crate::{Destination, Error, ErrorGroup, Event, Events, Plan, commit};

/// An open workspace: this process, and no other, works on the destination.
pub(crate) struct Workspace<'p> {
    pub(crate) plan: &'p Plan<'p>,
    pub(crate) disk: &'p dyn Disk,
    pub(crate) outputs: Outputs<'p>,
    pub(crate) journal: Journal,
    /// How the result will be published.
    pub(crate) mode: Destination,
    is_published: bool,
    is_fresh: bool,
}

impl<'p> Workspace<'p> {
    /// Takes the lock, and takes up or discards what an earlier run left. What is done with the records of a job that can be
    /// continued is the caller's matter: `go_on` gives how many bytes of output are there.
    pub(crate) fn open(
        plan: &'p Plan<'p>,
        disk: &'p dyn Disk,
        events: &'p dyn Events,
        go_on: impl FnOnce(&mut Self, &Earlier) -> Result<u64, Error>,
    ) -> Result<Self, Error> {
        let place = &plan.job.place;
        place.check(disk, plan.checkpoint, plan.job.mode)?;
        let had_work = exists(disk, &place.work)?;
        if plan.job.mode == Destination::Resume && !had_work {
            place.check_free(disk)?;
        }
        if !had_work {
            check_room(plan, disk, 0)?;
        }
        let journal = Journal::open(disk, place).inspect_err(|error| {
            // What was created a moment ago holds nothing; what another process created is not ours to remove.
            if !had_work && !matches!(error, Error::Busy { .. }) {
                let _ = disk.remove_dir_all(&place.work);
            }
        })?;
        let mut workspace = Self::locked(plan, disk, events, journal);
        match workspace.take_up(had_work, go_on) {
            Ok(()) => Ok(workspace),
            Err(error) => {
                if !had_work {
                    workspace.discard();
                }
                Err(error)
            }
        }
    }

    /// A workspace whose journal this process holds, and of which nothing is known yet.
    pub(crate) fn locked(
        plan: &'p Plan<'p>,
        disk: &'p dyn Disk,
        events: &'p dyn Events,
        journal: Journal,
    ) -> Self {
        Self {
            plan,
            disk,
            outputs: Outputs::new(plan, disk, events, 0..plan.job.shards.len()),
            journal,
            mode: plan.job.mode,
            is_published: false,
            is_fresh: true,
        }
    }

    fn take_up(
        &mut self,
        had_work: bool,
        go_on: impl FnOnce(&mut Self, &Earlier) -> Result<u64, Error>,
    ) -> Result<(), Error> {
        let name = self.plan.job.place.work.display();
        if self.mode != Destination::Resume {
            if had_work {
                self.shut_out_all()?;
                let text = format!("the partial work of an earlier run in {name} is discarded");
                self.event(Event::Note { text: &text });
            }
            return check_room(self.plan, self.disk, 0);
        }
        let job = &self.plan.job;
        let Some(earlier) = self.journal.earlier(&job.fingerprint, &job.steps)? else {
            self.shut_out_all()?;
            let text = "there is nothing to resume: the job starts anew";
            self.event(Event::Note { text });
            self.mode = Destination::New;
            self.plan.job.place.check_free(self.disk)?;
            return check_room(self.plan, self.disk, 0);
        };
        self.recognize(&earlier)?;
        if self.is_published {
            self.outputs.take_all(&earlier.records);
            return Ok(());
        }
        let present_bytes = go_on(self, &earlier)?;
        check_room(self.plan, self.disk, present_bytes)
    }

    /// Takes up a job that can be continued, or finds that it was published.
    pub(crate) fn recognize(&mut self, earlier: &Earlier) -> Result<(), Error> {
        self.is_fresh = false;
        self.mode = if earlier.is_replacing {
            Destination::Replace
        } else {
            Destination::New
        };
        self.is_published = commit::is_published(self, earlier)?;
        if self.is_published {
            return Ok(());
        }
        match self.mode {
            Destination::Replace => self.plan.job.place.check_kind(self.disk)?,
            Destination::New | Destination::Resume => self.plan.job.place.check_free(self.disk)?,
        }
        self.journal.continue_after(earlier)
    }

    /// Nobody may begin a part any more; refused, with all as it was, if somebody is at one.
    ///
    /// Whoever works on a part first locks the journals of its files and then reads the journal of the job. Hence, once that
    /// says that parts are over, it is enough to have had each lock for a moment. Gives what
    /// [`Journal::reopen_to_parts`] takes.
    pub(crate) fn shut_out(&mut self, journals: &[PathBuf]) -> Result<u64, Error> {
        let before = self.journal.close_to_parts()?;
        for path in journals {
            if Journal::take(self.disk, path)?.is_none() {
                self.journal.reopen_to_parts(before)?;
                return Err(Error::Busy {
                    path: self.plan.job.place.work.display().to_string(),
                });
            }
        }
        Ok(before)
    }

    /// [`Workspace::shut_out`] for what may have been another job in parts, whose files are not known.
    pub(crate) fn shut_out_all(&mut self) -> Result<(), Error> {
        let parts = parts_dir(&self.plan.job.place);
        if !exists(self.disk, &parts)? {
            return Ok(());
        }
        let names = self.disk.list(&parts);
        let names = names.map_err(|e| Error::io(&parts, "list", e))?;
        let journals: Vec<_> = names.into_iter().map(|name| parts.join(name)).collect();
        self.shut_out(&journals).map(drop)
    }

    /// Makes the directory for the output ready.
    pub(crate) fn prepare(&mut self) -> Result<(), Error> {
        let place = &self.plan.job.place;
        if self.is_fresh {
            for old in [&place.out, &parts_dir(place)] {
                if exists(self.disk, old)? {
                    let removed = self.disk.remove_dir_all(old);
                    removed.map_err(|e| Error::io(old, "remove the directory", e))?;
                }
            }
            self.journal
                .restart(&self.plan.job.fingerprint, self.mode)?;
        }
        if !exists(self.disk, &place.out)? {
            let created = self.disk.create_dir(&place.out);
            created.map_err(|e| Error::io(&place.out, "create the directory", e))?;
        }
        Ok(())
    }

    /// Publishes the finished result.
    pub(crate) fn commit(&mut self) -> Result<(), Error> {
        commit::commit(self)?;
        self.is_published = true;
        Ok(())
    }

    /// Removes the workspace of a published job. The result is complete without it, so a failure is a note.
    pub(crate) fn clean_up(&self) {
        let work = &self.plan.job.place.work;
        if let Err(error) = self.disk.remove_dir_all(work) {
            let text = format!(
                "the result is complete, but {} is left: {error}",
                work.display()
            );
            self.event(Event::Note { text: &text });
        }
    }

    /// Decides what a failure leaves behind: a resumable state if going on can help, otherwise nothing.
    pub(crate) fn abandon(&mut self, error: Error) -> Error {
        let partial = self.plan.job.place.work.display().to_string();
        if error.is_disk_full() {
            let free = self
                .disk
                .free_bytes(&self.plan.job.place.parent)
                .unwrap_or(0);
            self.discard();
            return Error::DiskFull {
                path: self.plan.job.place.parent.display().to_string(),
                needed_bytes: self.plan.scratch_bytes,
                free_bytes: free,
            };
        }
        if matches!(error, Error::Canceled) {
            return error;
        }
        match error.group() {
            ErrorGroup::Io => Error::Kept {
                source: Box::new(error),
                partial,
            },
            ErrorGroup::Malformed
            | ErrorGroup::Unsupported
            | ErrorGroup::Limit
            | ErrorGroup::Refused => {
                self.discard();
                error
            }
        }
    }

    /// Removes the workspace after a failure; the failure is what counts, so nothing is said if that fails too.
    pub(crate) fn discard(&self) {
        let _ = self.disk.remove_dir_all(&self.plan.job.place.work);
    }

    pub(crate) fn event(&self, event: Event<'_>) {
        self.outputs.event(event);
    }

    pub(crate) fn is_published(&self) -> bool {
        self.is_published
    }
}

/// Where the journals of a job in parts lie.
pub(crate) fn parts_dir(place: &Place) -> PathBuf {
    place.work.join("parts")
}

/// Whether something has this name.
pub(crate) fn exists(disk: &dyn Disk, path: &Path) -> Result<bool, Error> {
    match disk.entry(path) {
        Ok(entry) => Ok(entry.is_some()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(path, "examine", e)),
    }
}

/// Refuses a job that the disk cannot hold.
fn check_room(plan: &Plan<'_>, disk: &dyn Disk, present_bytes: u64) -> Result<(), Error> {
    let parent = &plan.job.place.parent;
    let free_bytes = disk.free_bytes(parent);
    let free_bytes = free_bytes.map_err(|e| Error::io(parent, "ask for free space", e))?;
    let needed_bytes = plan.scratch_bytes.saturating_sub(present_bytes);
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(Error::DiskFull {
        path: parent.display().to_string(),
        needed_bytes,
        free_bytes,
    })
}
