//! Carries out a repair: documents, the index and headers are written anew, weights stay as they are.
//!
//! A shard that does not change is linked, or copied as a whole; of one whose header changes the data is copied. What changes is
//! given as plain data ([`Edits`]): what a checkpoint *should* say is known elsewhere.

mod header;
mod text;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safequant_container::{
    Checkpoint, CheckpointKind, Disk, FileFormat, FileSource, Manifest, ReadAt, Shard,
};
use serde_json::Value;

use self::header::Rewritten;
use crate::place::{OutputKind, Place};
use crate::{Destination, Error};

pub use self::write::run;

/// What changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    /// Changes of documents, in this order.
    pub documents: Vec<Edit>,
    /// The index, if it changes.
    pub index: Option<NewIndex>,
    /// The whole new `__metadata__` of shards, by file name.
    pub metadata: BTreeMap<String, Vec<(String, String)>>,
    /// New names of tensors, by the old ones.
    pub renames: BTreeMap<String, String>,
    /// Tensors that are left out of a shard: (shard, tensor).
    pub dropped: BTreeSet<(String, String)>,
}

/// A change of a JSON document.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// The document's file name.
    pub document: String,
    /// Keys that lead to the member.
    pub path: Vec<String>,
    /// What becomes of it.
    pub action: EditAction,
}

/// What becomes of a member of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum EditAction {
    /// It gets this value; a new one comes last.
    Set(Value),
    /// It is new, and comes first.
    SetFirst(Value),
    /// It goes.
    Remove,
}

/// What an index says; its other members stay.
#[derive(Clone, Debug, PartialEq)]
pub struct NewIndex {
    /// Its file name.
    pub name: String,
    /// The shard of each tensor.
    pub weight_map: BTreeMap<String, String>,
    /// `total_size`; `None` if it stays as it is.
    pub total_size: Option<u64>,
}

/// How weights that stay come to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weights {
    /// Under a further name of the same file where the file system can do that; otherwise copied.
    Link,
    /// Copied, sharing blocks where the file system can do that.
    Copy,
}

/// Where the result goes, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct RepairOptions {
    /// What appears there.
    pub destination: PathBuf,
    /// What happens if something is there. There is nothing to resume.
    pub mode: Destination,
    /// How weights come there.
    pub weights: Weights,
}

/// A repair, planned.
pub struct RepairPlan<'a> {
    /// Documents that change, or are new.
    pub documents: Vec<ChangedDocument>,
    /// Things the user should know, one line each.
    pub notes: Vec<String>,
    checkpoint: &'a Checkpoint,
    place: Place,
    mode: Destination,
    weights: Weights,
    shards: Vec<NewShard<'a>>,
    /// Files that travel byte for byte.
    sidecars: Vec<(String, u64)>,
    /// Our manifest, if it stays as it is.
    manifest: Option<Vec<u8>>,
}

/// A document, before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedDocument {
    /// Its file name.
    pub name: String,
    /// Its text; `None` if it is new.
    pub old: Option<String>,
    /// Its new text.
    pub new: String,
}

/// A file of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairedFile {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Where its bytes come from.
    pub how: How,
}

/// Where the bytes of a file come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// It is the source's file, under a further name.
    Linked,
    /// It is a copy of the source's file.
    Copied,
    /// Its header is new, its data are the source's.
    NewHeader,
    /// It is written anew.
    Written,
}

impl How {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            How::Linked => "link",
            How::Copied => "copy",
            How::NewHeader => "new header",
            How::Written => "write",
        }
    }
}

/// A shard of the result.
struct NewShard<'a> {
    /// Its file name.
    name: String,
    shard: &'a Shard,
    /// `None` if it stays as it is.
    rewritten: Option<Rewritten>,
}

/// Plans a repair; reads headers and documents, no weights.
///
/// # Errors
/// The destination is taken or touches the source; a document cannot be edited; a header grows too large; documents must change
/// and the source is a single file.
pub fn plan<'a>(
    disk: &dyn Disk,
    checkpoint: &'a Checkpoint,
    edits: &Edits,
    options: &RepairOptions,
) -> Result<RepairPlan<'a>, Error> {
    let kind = checkpoint.kind();
    let place = Place::new(&options.destination, kind, FileFormat::Safetensors)?;
    place.check(disk, checkpoint, options.mode)?;
    let is_alone = kind == CheckpointKind::File;
    if is_alone && (!edits.documents.is_empty() || edits.index.is_some()) {
        return Err(Error::SingleFile {
            source_name: checkpoint.name().to_owned(),
        });
    }
    let mut notes = Vec::new();
    let (manifest, changed_manifest) = manifest(checkpoint, edits, &mut notes);
    let mut documents = text::documents(checkpoint, edits)?;
    documents.extend(changed_manifest);
    for name in checkpoint.unreferenced() {
        notes.push(format!("{name:?} is left out: the index does not name it"));
    }
    let is_changed = |name: &str| documents.iter().any(|document| document.name == name);
    let sidecars = checkpoint.sidecars().iter();
    let sidecars = sidecars.filter(|sidecar| !is_changed(&sidecar.name));
    let sidecars = sidecars.map(|sidecar| (sidecar.name.clone(), sidecar.len_bytes));
    Ok(RepairPlan {
        sidecars: sidecars.collect(),
        shards: shards(checkpoint, edits, &place)?,
        documents,
        notes,
        checkpoint,
        place,
        mode: options.mode,
        weights: options.weights,
        manifest,
    })
}

fn shards<'a>(
    checkpoint: &'a Checkpoint,
    edits: &Edits,
    place: &Place,
) -> Result<Vec<NewShard<'a>>, Error> {
    let new = |shard: &'a Shard| {
        Ok(NewShard {
            name: match place.kind {
                OutputKind::Directory => shard.name.clone(),
                OutputKind::File => place.file_name(),
            },
            shard,
            rewritten: Rewritten::of(shard, edits)?,
        })
    };
    checkpoint.shards().iter().map(new).collect()
}

/// Our manifest: as it is, or with the new names. One that is wrong does not travel.
fn manifest(
    checkpoint: &Checkpoint,
    edits: &Edits,
    notes: &mut Vec<String>,
) -> (Option<Vec<u8>>, Option<ChangedDocument>) {
    let name = Manifest::FILE_NAME;
    let Some(bytes) = beside(checkpoint, name, checkpoint.limits().max_document_bytes) else {
        return (None, None);
    };
    if edits.renames.is_empty() {
        return (Some(bytes), None);
    }
    let Ok(mut manifest) = Manifest::from_json(&bytes) else {
        notes.push(format!(
            "{name} is left out: it is not one that can be corrected"
        ));
        return (None, None);
    };
    for entry in &mut manifest.tensors {
        if let Some(new) = edits.renames.get(&entry.name) {
            entry.name.clone_from(new);
        }
    }
    manifest.tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
    let changed = text(manifest.to_json()).map(|new| ChangedDocument {
        name: name.to_owned(),
        old: text(bytes),
        new,
    });
    (None, changed)
}

/// A file in the source's directory that is none of its documents: the index, our manifest.
fn beside(checkpoint: &Checkpoint, name: &str, max_bytes: u64) -> Option<Vec<u8>> {
    if let Some(bytes) = checkpoint.document(name) {
        return Some(bytes.to_vec());
    }
    let given = Path::new(checkpoint.name());
    let directory = match checkpoint.kind() {
        CheckpointKind::File => return None,
        CheckpointKind::Directory => given,
        CheckpointKind::Index => given.parent()?,
    };
    let file = FileSource::open(&directory.join(name)).ok()?;
    let len_bytes = file.len_bytes();
    let len = usize::try_from(len_bytes)
        .ok()
        .filter(|_| len_bytes <= max_bytes)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(0, &mut bytes).ok()?;
    Some(bytes)
}

impl RepairPlan<'_> {
    /// What will be at the destination, file by file. Whether a file can be linked shows only when it is.
    pub fn files(&self) -> Vec<RepairedFile> {
        let whole = match self.weights {
            Weights::Link => How::Linked,
            Weights::Copy => How::Copied,
        };
        let shards = self.shards.iter().map(|new| RepairedFile {
            name: new.name.clone(),
            len_bytes: new.len_bytes(),
            how: new.rewritten.as_ref().map_or(whole, |_| How::NewHeader),
        });
        let documents = self.documents.iter().map(|document| RepairedFile {
            name: document.name.clone(),
            len_bytes: document.new.len() as u64,
            how: How::Written,
        });
        let manifest = self
            .manifest
            .iter()
            .map(|bytes| (Manifest::FILE_NAME.to_owned(), bytes.len() as u64));
        let copied = manifest.chain(self.sidecars.iter().cloned());
        let copied = copied.map(|(name, len_bytes)| RepairedFile {
            name,
            len_bytes,
            how: How::Copied,
        });
        shards.chain(documents).chain(copied).collect()
    }

    /// The result as a checkpoint, before anything is written: to look at it once more.
    ///
    /// # Errors
    /// As [`Checkpoint::survey_sources`].
    pub fn preview(&self) -> Result<(Checkpoint, Vec<safequant_container::Error>), Error> {
        let shards = self.shards.iter().map(|new| {
            let source: Arc<dyn ReadAt> = match &new.rewritten {
                None => Arc::clone(&new.shard.source),
                Some(rewritten) => Arc::new(rewritten.source(&new.shard.source)),
            };
            (new.shard.name.clone(), source)
        });
        let mut documents = BTreeMap::new();
        let named = self.sidecars.iter().map(|(name, _)| name.as_str());
        // A single file has only those documents that say how it is quantized, and lists none of them.
        for name in named.chain(DOCUMENTS) {
            let document = self.checkpoint.document(name);
            documents.extend(document.map(|bytes| (name.to_owned(), bytes.to_vec())));
        }
        if let Some(index) = self.checkpoint.index() {
            let limit = self.checkpoint.limits().max_index_bytes;
            let bytes = beside(self.checkpoint, &index.name, limit);
            documents.extend(bytes.map(|bytes| (index.name.clone(), bytes)));
        }
        for document in &self.documents {
            documents.insert(document.name.clone(), document.new.clone().into_bytes());
        }
        let (name, limits) = (self.checkpoint.name(), self.checkpoint.limits());
        Ok(Checkpoint::survey_sources(
            name,
            shards.collect(),
            documents,
            limits,
        )?)
    }
}

/// Documents of a single file.
const DOCUMENTS: [&str; 5] = [
    "config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "generation_config.json",
];

impl NewShard<'_> {
    fn len_bytes(&self) -> u64 {
        let unchanged = self.shard.source.len_bytes();
        self.rewritten
            .as_ref()
            .map_or(unchanged, |new| new.len_bytes)
    }
}
