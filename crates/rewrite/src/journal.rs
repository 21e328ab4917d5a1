//! What is done so far, so that an interrupted job can be continued (specs/journal.md).

use std::path::{Path, PathBuf};

use safequant_container::{Checkpoint, Disk, DiskFile, FilePlan, ReadAt};
use safequant_quantize::{Loss, OutputLoss};
use serde_json::{Value, json};

use crate::place::Place;
use crate::steps::Step;
use crate::{Destination, Error};

/// The form of the journal; a change of what steps write changes it too.
const VERSION: u64 = 5;
/// Windows of a shard's data that are digested.
const SAMPLES: u64 = 64;
/// Bytes of such a window.
const SAMPLE_BYTES: u64 = 4 << 10;
/// Bytes of output after which the journal is made durable.
const SYNC_BYTES: u64 = 256 << 20;

/// What must be equal for an interrupted job to be continued: named fields, compared one by one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fingerprint {
    fields: Vec<(String, Value)>,
}

impl Fingerprint {
    /// The fingerprint of a job.
    ///
    /// A shard of the source is known by name, length, BLAKE3 of its header, BLAKE3 of [`SAMPLES`] windows of its data, and
    /// its stamp (modification time). The samples find a source that was replaced by other weights of the same shapes
    /// under an old time stamp, for the price of a few small reads.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        recipe: Value,
        max_shard_bytes: u64,
        shards: &[FilePlan],
    ) -> Result<Self, Error> {
        let mut fields = vec![
            ("journal version".to_owned(), json!(VERSION)),
            (
                "engine version".to_owned(),
                json!(env!("CARGO_PKG_VERSION")),
            ),
            ("recipe".to_owned(), recipe),
            ("max shard size".to_owned(), json!(max_shard_bytes)),
        ];
        for shard in checkpoint.shards() {
            let name = format!("source shard {}", shard.name);
            fields.push((name, shard_identity(shard)?));
        }
        let mut layout = blake3::Hasher::new();
        for file in shards {
            layout
                .update(file.name.as_bytes())
                .update(&file.len_bytes.to_le_bytes());
            layout.update(&file.prefix);
        }
        fields.push(("output layout".to_owned(), json!(hex(&layout))));
        Ok(Self { fields })
    }

    fn to_json(&self) -> Value {
        let pairs = self.fields.iter().map(|(k, v)| json!([k, v]));
        Value::Array(pairs.collect())
    }

    /// Refuses a journal of another job, naming the first field that differs.
    fn check(&self, then: &Value) -> Result<(), Error> {
        let pairs = then.as_array().map(Vec::as_slice).unwrap_or_default();
        let show = |v: Option<&Value>| v.map_or_else(|| "absent".to_owned(), Value::to_string);
        let differs = |field: &str, then: Option<&Value>, now: Option<&Value>| {
            Err(Error::ResumeDiffers {
                field: field.to_owned(),
                then: show(then),
                now: show(now),
            })
        };
        let then_of = |key: &str| pairs.iter().find(|p| p[0] == *key).map(|p| &p[1]);
        for (key, now) in &self.fields {
            if then_of(key) != Some(now) {
                return differs(key, then_of(key), Some(now));
            }
        }
        for pair in pairs {
            let key = pair[0].as_str().unwrap_or_default();
            if self.fields.iter().all(|(k, _)| k != key) {
                return differs(key, Some(&pair[1]), None);
            }
        }
        Ok(())
    }

    /// At most so many bytes the journal of these steps has.
    pub(crate) fn journal_bound(&self, steps: &[Step]) -> u64 {
        let mut bytes = self.to_json().to_string().len() + 512;
        for step in steps {
            // Names may need six bytes per byte when escaped; a digest and its punctuation take less than 100.
            let tensors = step.outputs.iter().map(|o| 6 * o.tensor.name.len() + 100);
            bytes += 6 * step.name.len() + 300 + tensors.sum::<usize>();
        }
        bytes as u64
    }
}

/// What a shard is known by ([`Fingerprint::new`]).
pub(crate) fn shard_identity(shard: &safequant_container::Shard) -> Result<Value, Error> {
    Ok(json!({
        "len_bytes": shard.source.len_bytes(),
        "header": header_digest(shard)?,
        "samples": sample_digest(shard)?,
        "stamp": shard.source.stamp(),
    }))
}

fn header_digest(shard: &safequant_container::Shard) -> Result<String, Error> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    let end = shard.header.data_start().min(shard.source.len_bytes());
    let mut at = 0;
    while at < end {
        let n = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = shard.source.read_exact_at(at, &mut buffer[..n]);
        read.map_err(|e| Error::io(Path::new(&shard.name), "read the header", e))?;
        hasher.update(&buffer[..n]);
        at += n as u64;
    }
    Ok(hex(&hasher))
}

/// BLAKE3 of windows spread evenly over a shard's data, the first and the last bytes among them.
fn sample_digest(shard: &safequant_container::Shard) -> Result<String, Error> {
    let digest = samples(shard.source.as_ref(), shard.header.data_start());
    digest.map_err(|e| Error::io(Path::new(&shard.name), "read samples of the data", e))
}

/// BLAKE3 of [`SAMPLES`] windows spread evenly over what comes from `start` on, the first and the last bytes among them.
pub(crate) fn samples(source: &dyn ReadAt, start: u64) -> std::io::Result<String> {
    let len_bytes = source.len_bytes().saturating_sub(start);
    let window = SAMPLE_BYTES.min(len_bytes);
    let last = len_bytes - window;
    let mut buffer = vec![0; usize::try_from(window).unwrap_or_default()];
    let mut hasher = blake3::Hasher::new();
    for i in 0..SAMPLES {
        let at = u128::from(last) * u128::from(i) / u128::from(SAMPLES - 1);
        let at = start + u64::try_from(at).unwrap_or(last);
        source.read_exact_at(at, &mut buffer)?;
        hasher.update(&buffer);
    }
    Ok(hex(&hasher))
}

/// A digest in hexadecimal.
pub(crate) fn hex(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex().to_string()
}

/// A finished step, as the journal holds it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// The step's name.
    pub(crate) name: String,
    /// BLAKE3 of each output, in the step's order.
    pub(crate) digests: Vec<String>,
    pub(crate) loss: Option<Loss>,
    /// What its outputs lost on the calibration inputs, where that is known.
    pub(crate) output_loss: Option<OutputLoss>,
    /// What they lost before, where codes were chosen anew.
    pub(crate) start_loss: Option<OutputLoss>,
    /// Seconds of work, where somebody has a clock.
    pub(crate) seconds: Option<f64>,
}

impl Record {
    fn to_json(&self) -> Value {
        // Bits, because a decimal form of an infinity does not exist in JSON.
        let loss = self.loss.as_ref().map(|l| {
            json!([
                l.signal.to_bits(),
                l.noise.to_bits(),
                l.max_error.to_bits(),
                l.n_values
            ])
        });
        let output_loss = |loss: &Option<OutputLoss>| {
            (loss.as_ref()).map(|l| json!([l.signal.to_bits(), l.noise.to_bits()]))
        };
        json!({
            "module": self.name,
            "blake3": self.digests,
            "loss": loss,
            "output_loss": output_loss(&self.output_loss),
            "start_loss": output_loss(&self.start_loss),
            "seconds": self.seconds,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let digests = value["blake3"].as_array()?.iter();
        let loss = &value["loss"];
        let loss = if loss.is_null() {
            None
        } else {
            Some(Loss {
                signal: f64::from_bits(loss[0].as_u64()?),
                noise: f64::from_bits(loss[1].as_u64()?),
                max_error: f64::from_bits(loss[2].as_u64()?),
                n_values: loss[3].as_u64()?,
            })
        };
        Some(Self {
            name: value["module"].as_str()?.to_owned(),
            digests: digests
                .map(|d| d.as_str().map(str::to_owned))
                .collect::<Option<_>>()?,
            loss,
            output_loss: output_loss(&value["output_loss"])?,
            start_loss: output_loss(&value["start_loss"])?,
            seconds: value["seconds"].as_f64(),
        })
    }
}

/// What outputs lose, as a record holds it; `None` if it is no such thing.
#[expect(
    clippy::option_option,
    reason = "nothing known, and nothing understood"
)]
fn output_loss(value: &Value) -> Option<Option<OutputLoss>> {
    if value.is_null() {
        return Some(None);
    }
    Some(Some(OutputLoss {
        signal: f64::from_bits(value[0].as_u64()?),
        noise: f64::from_bits(value[1].as_u64()?),
    }))
}

/// What an earlier run left.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Earlier {
    pub(crate) records: Vec<Record>,
    /// Digest of the manifest, if everything was complete and only the publication was left.
    pub(crate) sealed: Option<String>,
    /// Whether that run was to replace its destination.
    pub(crate) is_replacing: bool,
    /// Whether the job may be carried on in parts, by others (the last line about that counts).
    pub(crate) in_parts: bool,
    /// Whether the one file that the journal is about is complete and durable (journals of parts only).
    pub(crate) is_complete: bool,
    /// Length of the part that is understood.
    len_bytes: u64,
}

/// Who keeps what is done: the journal of a job, or those of the files of a part.
pub(crate) trait Book {
    /// Keeps a finished step whose outputs lie in this file.
    fn record(&mut self, file: usize, record: &Record, output_bytes: u64) -> Result<(), Error>;
    /// Keeps that a file is complete and durable.
    fn complete(&mut self, file: usize) -> Result<(), Error>;
}

/// An open journal: a lock (the one of a job is that on the partial work), and the list of what is done.
pub(crate) struct Journal {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    len_bytes: u64,
    unsynced_bytes: u64,
}

impl Book for Journal {
    fn record(&mut self, _: usize, record: &Record, output_bytes: u64) -> Result<(), Error> {
        self.add(record, output_bytes)
    }

    /// Not kept: whoever goes on with a whole job reads back what the journal lists.
    fn complete(&mut self, _: usize) -> Result<(), Error> {
        Ok(())
    }
}

impl Journal {
    /// Opens and locks the journal of a job, creating directory and file where they do not exist.
    ///
    /// # Errors
    /// [`Error::Busy`] if another process holds it.
    pub(crate) fn open(disk: &dyn Disk, place: &Place) -> Result<Self, Error> {
        make_dir(disk, &place.work)?;
        Self::take(disk, &place.journal)?.ok_or_else(|| Error::Busy {
            path: place.work.display().to_string(),
        })
    }

    /// Opens and locks a journal, creating the file where it does not exist; `None` if another process holds it.
    pub(crate) fn take(disk: &dyn Disk, path: &Path) -> Result<Option<Self>, Error> {
        let open = |create| {
            disk.open_file(path, create)
                .map_err(|e| Error::io(path, "open the journal", e))
        };
        let lock = |file: &dyn DiskFile| {
            file.try_lock()
                .map_err(|e| Error::io(path, "lock the journal", e))
        };
        let file = open(true)?;
        if !lock(file.as_ref())? {
            return Ok(None);
        }
        // If a job that just finished removed the file that we opened, its name is gone or stands for another file: a
        // second handle on the name is refused the lock only if it is the file that we hold.
        if lock(open(false)?.as_ref())? {
            return Ok(None);
        }
        Ok(Some(Self {
            len_bytes: file.len_bytes(),
            path: path.to_owned(),
            file,
            unsynced_bytes: 0,
        }))
    }

    /// What a journal says that another process may hold; `None` if there is none, or an empty one.
    ///
    /// # Errors
    /// [`Error::ResumeDiffers`] if it is of another job.
    pub(crate) fn peek(
        disk: &dyn Disk,
        path: &Path,
        now: &Fingerprint,
        steps: &[Step],
    ) -> Result<Option<Earlier>, Error> {
        match disk.open_file(path, false) {
            Ok(file) => read(path, file.as_ref(), file.len_bytes(), now, steps),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(path, "open the journal", e)),
        }
    }

    /// What an earlier run of the same job left; `None` if the journal is empty.
    ///
    /// # Errors
    /// [`Error::ResumeDiffers`] if it was another job.
    pub(crate) fn earlier(
        &self,
        now: &Fingerprint,
        steps: &[Step],
    ) -> Result<Option<Earlier>, Error> {
        read(&self.path, self.file.as_ref(), self.len_bytes, now, steps)
    }

    /// Begins anew: the fingerprint is the first line.
    pub(crate) fn restart(&mut self, now: &Fingerprint, mode: Destination) -> Result<(), Error> {
        self.truncate(0)?;
        let is_replacing = mode == Destination::Replace;
        self.append(&json!({"fingerprint": now.to_json(), "replacing": is_replacing}))
    }

    /// Goes on after what is understood.
    pub(crate) fn continue_after(&mut self, earlier: &Earlier) -> Result<(), Error> {
        self.truncate(earlier.len_bytes)
    }

    fn truncate(&mut self, len_bytes: u64) -> Result<(), Error> {
        let cut = self.file.set_len(len_bytes);
        cut.map_err(|e| Error::io(&self.path, "cut the journal", e))?;
        self.len_bytes = len_bytes;
        Ok(())
    }

    fn append(&mut self, value: &Value) -> Result<(), Error> {
        let line = format!("{value}\n");
        let written = self.file.write_all_at(self.len_bytes, line.as_bytes());
        written.map_err(|e| Error::io(&self.path, "write the journal", e))?;
        self.len_bytes += line.len() as u64;
        Ok(())
    }

    /// Adds a finished step. The journal is made durable now and then only: a resumed job verifies what it lists.
    pub(crate) fn add(&mut self, record: &Record, output_bytes: u64) -> Result<(), Error> {
        self.append(&record.to_json())?;
        self.unsynced_bytes = self.unsynced_bytes.saturating_add(output_bytes);
        if self.unsynced_bytes >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// The file that this journal is about is complete and durable, and now the journal is, too.
    pub(crate) fn add_complete(&mut self) -> Result<(), Error> {
        self.append(&json!({"complete": true}))?;
        self.sync()
    }

    /// From now on others may carry on the job in parts.
    pub(crate) fn open_to_parts(&mut self) -> Result<(), Error> {
        self.append(&json!({"in_parts": true}))?;
        self.sync()
    }

    /// From now on nobody may begin a part. Gives what [`Journal::reopen_to_parts`] takes.
    pub(crate) fn close_to_parts(&mut self) -> Result<u64, Error> {
        let before = self.len_bytes;
        self.append(&json!({"in_parts": false}))?;
        self.sync()?;
        Ok(before)
    }

    /// Takes [`Journal::close_to_parts`] back.
    pub(crate) fn reopen_to_parts(&mut self, before: u64) -> Result<(), Error> {
        self.truncate(before)?;
        self.sync()
    }

    /// Everything is written and durable; what is left is the publication.
    pub(crate) fn seal(&mut self, manifest: &[u8]) -> Result<(), Error> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(manifest);
        self.append(&json!({"sealed": hex(&hasher)}))?;
        self.sync()
    }

    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        self.unsynced_bytes = 0;
        self.file
            .sync()
            .map_err(|e| Error::io(&self.path, "sync the journal", e))
    }
}

/// Reads a journal as far as it is understood.
fn read(
    path: &Path,
    file: &dyn DiskFile,
    len_bytes: u64,
    now: &Fingerprint,
    steps: &[Step],
) -> Result<Option<Earlier>, Error> {
    // Steps may be listed twice, if they had to be done twice; what goes beyond that is not read, and done again.
    let bound = now.journal_bound(steps).saturating_mul(2);
    let len = usize::try_from(len_bytes.min(bound)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len];
    let read = file.read_exact_at(0, &mut bytes);
    read.map_err(|e| Error::io(path, "read the journal", e))?;
    let mut earlier = Earlier::default();
    // Every whole line ends in a line feed; a torn last one, and all after it, never happened.
    for (i, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        let whole = line.ends_with(b"\n");
        let Some(value) = whole
            .then(|| serde_json::from_slice::<Value>(line).ok())
            .flatten()
        else {
            break;
        };
        if i == 0 {
            now.check(&value["fingerprint"])?;
            earlier.is_replacing = value["replacing"] == true;
        } else if !earlier.take(&value) {
            break;
        }
        earlier.len_bytes += line.len() as u64;
    }
    Ok((earlier.len_bytes > 0).then_some(earlier))
}

impl Earlier {
    /// Takes a line after the first one; `false` if it is not understood.
    fn take(&mut self, value: &Value) -> bool {
        if let Some(digest) = value["sealed"].as_str() {
            self.sealed = Some(digest.to_owned());
        } else if let Some(in_parts) = value["in_parts"].as_bool() {
            self.in_parts = in_parts;
        } else if value["complete"] == true {
            self.is_complete = true;
        } else if let Some(record) = Record::from_json(value) {
            self.records.push(record);
        } else {
            return false;
        }
        true
    }
}

/// Creates a directory that may exist.
pub(crate) fn make_dir(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    match disk.create_dir(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Error::io(path, "create the directory", e)),
    }
}
