//! A part at work: the locks on its files, and their journals.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use safequant_container::Disk;

use super::{differs, not_begun};
use crate::commit::sync_dir;
use crate::journal::{Book, Earlier, Journal, Record};
use crate::outputs::{Outputs, file_of};
use crate::stream::drive;
use crate::workspace::{exists, parts_dir};
use crate::{CancelToken, Error, ErrorGroup, Events, Plan};

/// The journal of an output file, which is the lock on it too. Named like the file, so that it is found whatever the division.
pub(super) fn journal_path(plan: &Plan<'_>, file: usize) -> PathBuf {
    let name = plan.job.shards.get(file).map_or("", |f| f.name.as_str());
    parts_dir(&plan.job.place).join(format!("{name}.jsonl"))
}

/// The journals of a part's files.
pub(super) struct FileJournals(BTreeMap<usize, Journal>);

impl FileJournals {
    fn of(&mut self, file: usize) -> &mut Journal {
        let journal = self.0.get_mut(&file);
        journal.expect("a part writes to files only whose locks it took when it was opened")
    }
}

impl Book for FileJournals {
    fn record(&mut self, file: usize, record: &Record, output_bytes: u64) -> Result<(), Error> {
        self.of(file).add(record, output_bytes)
    }

    fn complete(&mut self, file: usize) -> Result<(), Error> {
        self.of(file).add_complete()
    }
}

/// A part whose files this process, and no other, writes.
pub(super) struct PartWork<'p> {
    plan: &'p Plan<'p>,
    pub(super) outputs: Outputs<'p>,
    journals: FileJournals,
}

impl<'p> PartWork<'p> {
    /// Takes the locks, and takes up what earlier attempts left.
    pub(super) fn open(
        plan: &'p Plan<'p>,
        files: Range<usize>,
        disk: &'p dyn Disk,
        events: &'p dyn Events,
        pool: &rayon::ThreadPool,
    ) -> Result<Self, Error> {
        // Once before anything is touched, and once with the locks held: see `Workspace::shut_out`.
        check_begun(plan, disk)?;
        let mut journals = BTreeMap::new();
        for file in files.clone() {
            let journal = Journal::take(disk, &journal_path(plan, file))?;
            journals.insert(file, journal.ok_or_else(|| busy(plan))?);
        }
        let of_job = check_begun(plan, disk)?;
        let mut work = Self {
            plan,
            outputs: Outputs::new(plan, disk, events, files),
            journals: FileJournals(journals),
        };
        let taken = work.take_up(of_job, pool);
        taken.map_err(|e| work.kept(e))?;
        Ok(work)
    }

    /// Believes files that are complete; of the others, what reads back as the journals say.
    fn take_up(&mut self, of_job: Earlier, pool: &rayon::ThreadPool) -> Result<(), Error> {
        let job = &self.plan.job;
        let mut claimed = Vec::new();
        let mut records = of_job.records;
        for (&file, journal) in &self.journals.0 {
            let known = journal.earlier(&job.fingerprint, &job.steps);
            let known = known.map_err(differs)?.unwrap_or_default();
            records.extend(known.records);
            if known.is_complete {
                claimed.push(file);
            }
        }
        let listed = self.outputs.listed(&records);
        for file in claimed {
            self.outputs.take_complete(file, &listed)?;
        }
        let is_open = |i: &usize| {
            let file = job.steps.get(*i).and_then(file_of);
            file.is_none_or(|file| !self.outputs.is_complete(file))
        };
        let open: Vec<&Record> = (listed.into_iter())
            .filter_map(|(i, record)| is_open(&i).then_some(record))
            .collect();
        if !open.is_empty() {
            self.outputs.verify(open, pool);
        }
        for file in self.outputs.files() {
            if !self.outputs.is_complete(file) {
                self.restart(file)?;
            }
        }
        Ok(())
    }

    /// Begins the journal of a file anew, with what was found intact: from now on it says nothing that is not so.
    fn restart(&mut self, file: usize) -> Result<(), Error> {
        let journal = self.journals.of(file);
        journal.restart(&self.plan.job.fingerprint, self.plan.job.mode)?;
        for (i, step) in self.outputs.steps() {
            if file_of(step) == Some(file)
                && let Some(record) = self.outputs.record(i)
            {
                journal.add(record, 0)?;
            }
        }
        journal.sync()
    }

    /// Steps that earlier attempts did, if nothing was done since.
    pub(super) fn n_resumed(&self) -> usize {
        let steps = self.outputs.steps();
        steps
            .filter(|(i, _)| self.outputs.record(*i).is_some())
            .count()
    }

    /// Writes what is not there yet, and makes it durable; gives the peak of the buffers.
    pub(super) fn run(
        &mut self,
        pool: &rayon::ThreadPool,
        cancel: &CancelToken,
    ) -> Result<u64, Error> {
        self.outputs.announce();
        let place = &self.plan.job.place;
        let disk = self.outputs.disk;
        let written = drive(&mut self.outputs, &mut self.journals, pool, cancel);
        let durable = written.and_then(|peak| {
            sync_dir(disk, &place.out)?;
            sync_dir(disk, &parts_dir(place))?;
            Ok(peak)
        });
        durable.map_err(|e| self.kept(e))
    }

    /// What a failure is to the caller. Others are at work, so that nothing is removed here.
    fn kept(&self, error: Error) -> Error {
        let place = &self.plan.job.place;
        if error.is_disk_full() {
            let free = self.outputs.disk.free_bytes(&place.parent);
            return Error::DiskFull {
                path: place.parent.display().to_string(),
                needed_bytes: self.plan.scratch_bytes,
                free_bytes: free.unwrap_or(0),
            };
        }
        match error.group() {
            ErrorGroup::Io => Error::Kept {
                source: Box::new(error),
                partial: place.work.display().to_string(),
            },
            ErrorGroup::Malformed
            | ErrorGroup::Unsupported
            | ErrorGroup::Limit
            | ErrorGroup::Refused => error,
        }
    }
}

/// What the journal of the job says, if it is this job and parts may be run.
fn check_begun(plan: &Plan<'_>, disk: &dyn Disk) -> Result<Earlier, Error> {
    let place = &plan.job.place;
    if !exists(disk, &parts_dir(place))? {
        return Err(not_begun(plan));
    }
    let job = &plan.job;
    let earlier = Journal::peek(disk, &place.journal, &job.fingerprint, &job.steps);
    let earlier = earlier.map_err(differs)?.ok_or_else(|| not_begun(plan))?;
    if earlier.in_parts {
        Ok(earlier)
    } else {
        Err(busy(plan))
    }
}

fn busy(plan: &Plan<'_>) -> Error {
    Error::Busy {
        path: plan.job.place.work.display().to_string(),
    }
}
