//! The hidden directory in which a result grows: locked, journaled, resumable (specs/journal.md).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use rayon::prelude::*;
use safequant_container::{Disk, FileWriter};

use crate::journal::{Earlier, Journal, Record, hex};
use crate::steps::Step;
use crate::tile::digest_tensor;
use crate::{Destination, Error, ErrorGroup, Event, Events, Plan, commit};

/// An open workspace: this process, and no other, works on the destination.
pub(crate) struct Workspace<'p> {
    pub(crate) plan: &'p Plan<'p>,
    pub(crate) disk: &'p dyn Disk,
    events: &'p dyn Events,
    pub(crate) journal: Journal,
    /// How the result will be published.
    pub(crate) mode: Destination,
    /// For each step what is known once it is done.
    records: Vec<Option<Record>>,
    n_resumed: usize,
    is_published: bool,
    is_fresh: bool,
}

impl<'p> Workspace<'p> {
    /// Takes the lock, and takes up or discards what an earlier run left.
    pub(crate) fn open(
        plan: &'p Plan<'p>,
        disk: &'p dyn Disk,
        events: &'p dyn Events,
        pool: &rayon::ThreadPool,
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
        let mut workspace = Self {
            plan,
            disk,
            events,
            journal,
            mode: plan.job.mode,
            records: vec![None; plan.job.steps.len()],
            n_resumed: 0,
            is_published: false,
            is_fresh: true,
        };
        match workspace.take_up(had_work, pool) {
            Ok(()) => Ok(workspace),
            Err(error) => {
                if !had_work {
                    workspace.discard();
                }
                Err(error)
            }
        }
    }

    fn take_up(&mut self, had_work: bool, pool: &rayon::ThreadPool) -> Result<(), Error> {
        let name = self.plan.job.place.work.display();
        if self.mode != Destination::Resume {
            if had_work {
                let text = format!("the partial work of an earlier run in {name} is discarded");
                self.event(Event::Note { text: &text });
            }
            return check_room(self.plan, self.disk, 0);
        }
        let job = &self.plan.job;
        let Some(earlier) = self.journal.earlier(&job.fingerprint, &job.steps)? else {
            let text = "there is nothing to resume: the job starts anew";
            self.event(Event::Note { text });
            self.mode = Destination::New;
            self.plan.job.place.check_free(self.disk)?;
            return check_room(self.plan, self.disk, 0);
        };
        self.is_fresh = false;
        self.mode = if earlier.is_replacing {
            Destination::Replace
        } else {
            Destination::New
        };
        self.is_published = commit::is_published(self, &earlier)?;
        if self.is_published {
            self.n_resumed = self.plan.job.steps.len();
            self.take_all(&earlier);
            return Ok(());
        }
        match self.mode {
            Destination::Replace => self.plan.job.place.check_kind(self.disk)?,
            Destination::New | Destination::Resume => self.plan.job.place.check_free(self.disk)?,
        }
        self.journal.continue_after(&earlier)?;
        self.verify(&earlier, pool);
        let done = |(step, record): (&Step, &Option<Record>)| {
            record.as_ref().map_or(0, |_| step.output_bytes())
        };
        let present = self
            .plan
            .job
            .steps
            .iter()
            .zip(&self.records)
            .map(done)
            .sum();
        check_room(self.plan, self.disk, present)
    }

    /// Which step a record is about: the name of its first tensor is unique.
    fn steps_by_name(&self) -> HashMap<&'p str, usize> {
        let steps = self.plan.job.steps.iter().enumerate();
        let named =
            steps.filter_map(|(i, s)| s.outputs.first().map(|o| (o.tensor.name.as_str(), i)));
        named.collect()
    }

    fn take_all(&mut self, earlier: &Earlier) {
        let by_name = self.steps_by_name();
        for record in &earlier.records {
            if let Some(&i) = by_name.get(record.name.as_str()) {
                self.records[i] = Some(record.clone());
            }
        }
    }

    /// Takes over the steps whose outputs still have the digests that the journal lists.
    fn verify(&mut self, earlier: &Earlier, pool: &rayon::ThreadPool) {
        let by_name = self.steps_by_name();
        // A step that was done twice is listed twice; the last line is about what the file holds now.
        let mut listed: BTreeMap<usize, &Record> = BTreeMap::new();
        for record in &earlier.records {
            if let Some(&i) = by_name.get(record.name.as_str()) {
                listed.insert(i, record);
            }
        }
        let mut by_file: BTreeMap<usize, Vec<(usize, &Record)>> = BTreeMap::new();
        for (i, record) in listed {
            let file = self.plan.job.steps[i].outputs[0].at.0;
            by_file.entry(file).or_default().push((i, record));
        }
        let mut n_listed = 0;
        for (file, listed) in by_file {
            n_listed += listed.len();
            let Ok(writer) = self.resume_shard(file) else {
                continue;
            };
            let steps = &self.plan.job.steps;
            let holds = |(i, record): &(usize, &Record)| is_intact(&writer, &steps[*i], record);
            let intact: Vec<bool> = pool.install(|| listed.par_iter().map(holds).collect());
            for ((i, record), _) in listed.into_iter().zip(intact).filter(|(_, ok)| *ok) {
                self.records[i] = Some(record.clone());
                self.n_resumed += 1;
            }
        }
        let text = format!(
            "{} of {n_listed} finished tensors and modules are taken over",
            self.n_resumed
        );
        self.event(Event::Note { text: &text });
    }

    /// Makes the directory for the output ready, and says that the job begins.
    pub(crate) fn prepare(&mut self) -> Result<(), Error> {
        let place = &self.plan.job.place;
        if self.is_fresh {
            if exists(self.disk, &place.out)? {
                let removed = self.disk.remove_dir_all(&place.out);
                removed.map_err(|e| Error::io(&place.out, "remove the directory", e))?;
            }
            self.journal
                .restart(&self.plan.job.fingerprint, self.mode)?;
        }
        if !exists(self.disk, &place.out)? {
            let created = self.disk.create_dir(&place.out);
            created.map_err(|e| Error::io(&place.out, "create the directory", e))?;
        }
        let steps = &self.plan.job.steps;
        self.event(Event::Start {
            source_bytes: steps.iter().map(|s| s.source_bytes).sum(),
            modules: steps.len(),
        });
        let taken = steps
            .iter()
            .zip(&self.records)
            .filter(|(_, record)| record.is_some());
        let source_bytes = taken.map(|(step, _)| step.source_bytes).sum();
        if source_bytes > 0 {
            self.event(Event::Advance { source_bytes });
        }
        Ok(())
    }

    /// Opens an output file: one that holds finished steps is taken up, any other begun anew.
    pub(crate) fn open_shard(&self, file: usize) -> Result<FileWriter, Error> {
        let steps = self.plan.job.steps.iter().zip(&self.records);
        let in_file = |step: &Step| step.outputs.first().is_some_and(|o| o.at.0 == file);
        let has_finished = steps
            .into_iter()
            .any(|(s, record)| record.is_some() && in_file(s));
        if has_finished {
            return self.resume_shard(file);
        }
        let plan = self.plan.job.shards[file].clone();
        let path = self.plan.job.place.out.join(&plan.name);
        let opened = self.disk.open_file(&path, true);
        let opened = opened.map_err(|e| Error::io(&path, "create the file", e))?;
        Ok(FileWriter::create(plan, opened)?)
    }

    fn resume_shard(&self, file: usize) -> Result<FileWriter, Error> {
        let plan = self.plan.job.shards[file].clone();
        let path = self.plan.job.place.out.join(&plan.name);
        let opened = self.disk.open_file(&path, false);
        let opened = opened.map_err(|e| Error::io(&path, "open the file", e))?;
        Ok(FileWriter::resume(plan, opened)?)
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
    fn discard(&self) {
        let _ = self.disk.remove_dir_all(&self.plan.job.place.work);
    }

    pub(crate) fn event(&self, event: Event<'_>) {
        self.events.event(event);
    }

    pub(crate) fn record(&self, step: usize) -> Option<&Record> {
        self.records.get(step).and_then(Option::as_ref)
    }

    /// Notes a finished step, in memory and in the journal.
    pub(crate) fn add_record(
        &mut self,
        step: usize,
        record: Record,
        output_bytes: u64,
    ) -> Result<(), Error> {
        self.journal.record(&record, output_bytes)?;
        self.records[step] = Some(record);
        Ok(())
    }

    pub(crate) fn n_resumed(&self) -> usize {
        self.n_resumed
    }

    pub(crate) fn is_published(&self) -> bool {
        self.is_published
    }
}

/// Whether every output of a step has the digest that the journal lists; an output that cannot be read has not.
fn is_intact(writer: &FileWriter, step: &Step, record: &Record) -> bool {
    let mut buffer = vec![0; 64 << 10];
    let is_equal = |(output, expected): (&crate::steps::Output, &String)| {
        let mut hasher = blake3::Hasher::new();
        digest_tensor(writer, output, &mut buffer, &mut hasher).is_ok() && hex(&hasher) == *expected
    };
    record.digests.len() == step.outputs.len()
        && step.outputs.iter().zip(&record.digests).all(is_equal)
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
