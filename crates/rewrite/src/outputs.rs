//! The output files that a process writes, and what of them is done: all of a job, or those of a part.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::Range;

use rayon::prelude::*;
use safequant_container::{Disk, FileWriter};

use crate::journal::{Record, hex};
use crate::steps::Step;
use crate::tile::digest_tensor;
use crate::{Error, Event, Events, Plan};

/// Output files, and for each step what is known once it is done.
pub(crate) struct Outputs<'p> {
    pub(crate) plan: &'p Plan<'p>,
    pub(crate) disk: &'p dyn Disk,
    events: &'p dyn Events,
    /// The files that this process writes.
    files: Range<usize>,
    /// Those of them that are complete and durable.
    complete: BTreeSet<usize>,
    records: Vec<Option<Record>>,
    n_resumed: usize,
}

impl<'p> Outputs<'p> {
    /// Files of which nothing is known yet.
    pub(crate) fn new(
        plan: &'p Plan<'p>,
        disk: &'p dyn Disk,
        events: &'p dyn Events,
        files: Range<usize>,
    ) -> Self {
        Self {
            plan,
            disk,
            events,
            files,
            complete: BTreeSet::new(),
            records: vec![None; plan.job.steps.len()],
            n_resumed: 0,
        }
    }

    /// The files that this process writes.
    pub(crate) fn files(&self) -> Range<usize> {
        self.files.clone()
    }

    /// The steps whose outputs lie in the files, with their indices; steps that write nothing belong to whoever has all files.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (usize, &'p Step)> {
        let all = self.files.len() == self.plan.job.shards.len();
        let files = self.files.clone();
        let steps = self.plan.job.steps.iter().enumerate();
        steps.filter(move |(_, step)| file_of(step).map_or(all, |file| files.contains(&file)))
    }

    /// Whether a step writes something that is not there yet.
    pub(crate) fn is_to_do(&self, i: usize, step: &Step) -> bool {
        let is_here = file_of(step).is_some_and(|file| self.files.contains(&file));
        is_here && self.record(i).is_none()
    }

    /// Whether a file needs nothing any more, not even to be made durable.
    pub(crate) fn is_complete(&self, file: usize) -> bool {
        self.complete.contains(&file)
    }

    pub(crate) fn record(&self, step: usize) -> Option<&Record> {
        self.records.get(step).and_then(Option::as_ref)
    }

    /// Notes a finished step.
    pub(crate) fn add_record(&mut self, step: usize, record: Record) {
        if let Some(known) = self.records.get_mut(step) {
            *known = Some(record);
        }
    }

    /// Steps that an earlier run did.
    pub(crate) fn n_resumed(&self) -> usize {
        self.n_resumed
    }

    /// Bytes that finished steps wrote.
    pub(crate) fn done_bytes(&self) -> u64 {
        let done = self.steps().filter(|(i, _)| self.record(*i).is_some());
        done.map(|(_, step)| step.output_bytes()).sum()
    }

    /// Which step a record is about: the name of its first tensor is unique.
    fn steps_by_name(&self) -> HashMap<&'p str, usize> {
        let named = |(i, step): (usize, &'p Step)| {
            let first = step.outputs.first();
            first.map(|output| (output.tensor.name.as_str(), i))
        };
        self.steps().filter_map(named).collect()
    }

    /// Records of the steps here, by step. A step that was done twice is listed twice; the last one is about what the file
    /// holds now.
    pub(crate) fn listed<'r>(
        &self,
        records: impl IntoIterator<Item = &'r Record>,
    ) -> BTreeMap<usize, &'r Record> {
        let by_name = self.steps_by_name();
        let known = |record: &'r Record| by_name.get(record.name.as_str()).map(|&i| (i, record));
        records.into_iter().filter_map(known).collect()
    }

    /// Believes what records say of a job that was published: all of it is done.
    pub(crate) fn take_all(&mut self, records: &[Record]) {
        self.n_resumed = self.steps().count();
        for (i, record) in self.listed(records) {
            self.add_record(i, record.clone());
        }
    }

    /// Believes records ([`Outputs::listed`]) if they list every step of a file, and if the file is there with the length and
    /// the header of the plan; `false` if that is not so. The data are not read.
    pub(crate) fn take_complete(
        &mut self,
        file: usize,
        listed: &BTreeMap<usize, &Record>,
    ) -> Result<bool, Error> {
        let of_file = |(_, step): &(usize, &Step)| file_of(step) == Some(file);
        let steps: Vec<_> = self.steps().filter(of_file).collect();
        let known = |(i, step): &(usize, &Step)| {
            let record = listed.get(i);
            record.is_some_and(|r| r.digests.len() == step.outputs.len())
        };
        if !steps.iter().all(known) || !self.is_begun(file)? {
            return Ok(false);
        }
        for (i, _) in steps {
            if let Some(record) = listed.get(&i) {
                self.add_record(i, (*record).clone());
            }
        }
        self.complete.insert(file);
        Ok(true)
    }

    /// Whether an output file is there with the length and the header of the plan.
    fn is_begun(&self, file: usize) -> Result<bool, Error> {
        match self.resume_shard(file) {
            Ok(_) => Ok(true),
            Err(Error::Container(safequant_container::Error::NotTheBegunFile { .. })) => Ok(false),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes over the steps whose outputs, read back, still have the digests that records list.
    pub(crate) fn verify<'r>(
        &mut self,
        records: impl IntoIterator<Item = &'r Record>,
        pool: &rayon::ThreadPool,
    ) {
        let mut by_file: BTreeMap<usize, Vec<(usize, &Record)>> = BTreeMap::new();
        for (i, record) in self.listed(records) {
            let file = self.plan.job.steps[i].outputs[0].at.0;
            by_file.entry(file).or_default().push((i, record));
        }
        let (mut n_listed, mut n_intact) = (0, 0);
        for (file, listed) in by_file {
            n_listed += listed.len();
            let Ok(writer) = self.resume_shard(file) else {
                continue;
            };
            let steps = &self.plan.job.steps;
            let holds = |(i, record): &(usize, &Record)| is_intact(&writer, &steps[*i], record);
            let intact: Vec<bool> = pool.install(|| listed.par_iter().map(holds).collect());
            for ((i, record), _) in listed.into_iter().zip(intact).filter(|(_, ok)| *ok) {
                self.add_record(i, record.clone());
                n_intact += 1;
            }
        }
        self.n_resumed += n_intact;
        let text = format!("{n_intact} of {n_listed} finished tensors and modules are taken over");
        self.event(Event::Note { text: &text });
    }

    /// Says that the work begins, and how much of it an earlier run did.
    pub(crate) fn announce(&self) {
        self.event(Event::Start {
            source_bytes: self.steps().map(|(_, step)| step.source_bytes).sum(),
            modules: self.steps().count(),
        });
        let taken = self.steps().filter(|(i, _)| self.record(*i).is_some());
        let source_bytes = taken.map(|(_, step)| step.source_bytes).sum();
        if source_bytes > 0 {
            self.event(Event::Advance { source_bytes });
        }
    }

    /// Opens an output file: one that holds finished steps is taken up, any other begun anew.
    pub(crate) fn open_shard(&self, file: usize) -> Result<FileWriter, Error> {
        let in_file =
            |(i, step): (usize, &Step)| file_of(step) == Some(file) && self.record(i).is_some();
        if self.steps().any(in_file) {
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

    /// Who listens.
    pub(crate) fn listener(&self) -> &'p dyn Events {
        self.events
    }

    pub(crate) fn event(&self, event: Event<'_>) {
        self.events.event(event);
    }
}

/// The file that a step writes to; its outputs lie in one.
pub(crate) fn file_of(step: &Step) -> Option<usize> {
    step.outputs.first().map(|output| output.at.0)
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
