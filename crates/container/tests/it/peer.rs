//! The official parser as a judge: one verdict, but for the closed list of reliability.md 4.1.

use std::sync::Arc;

use safequant_container::{BytesSource, Error, Header, Limits};
use safetensors::SafeTensors;

/// The ways in which we may be stricter than the official parser; anything else is a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    BothAccept,
    BothRefuse,
    /// Item 1: a key occurs twice in one object.
    DuplicateKey,
    /// Item 2: an entry that is no object.
    EntryNotObject,
    /// Item 2: a dtype that is no string.
    DtypeNotString,
}

pub(crate) fn read(file: &[u8]) -> Result<Header, Error> {
    Header::read(&BytesSource(Arc::from(file)), "file", &Limits::default())
}

/// Both verdicts on a whole file; on acceptance both must see the same tensors and metadata.
///
/// # Panics
/// If they differ in a way that the closed list does not have.
pub(crate) fn judge(file: &[u8]) -> Verdict {
    let ours = read(file);
    let theirs = SafeTensors::deserialize(file);
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert_same(&ours, &theirs, file);
            Verdict::BothAccept
        }
        (Err(_), Err(_)) => Verdict::BothRefuse,
        (Err(Error::DuplicateKey { .. }), Ok(_)) => Verdict::DuplicateKey,
        (Err(Error::Field { field: "entry", .. }), Ok(_)) => Verdict::EntryNotObject,
        (Err(Error::Field { field: "dtype", .. }), Ok(_)) => Verdict::DtypeNotString,
        (ours, theirs) => panic!(
            "ours: {:?}, theirs: {:?}, file: {:?}",
            ours.map(drop),
            theirs.map(drop),
            String::from_utf8_lossy(file)
        ),
    }
}

fn assert_same(ours: &Header, theirs: &SafeTensors<'_>, file: &[u8]) {
    assert_eq!(ours.tensors.len(), theirs.len());
    for tensor in &ours.tensors {
        let view = theirs.tensor(&tensor.name).expect("both know the name");
        assert_eq!(format!("{:?}", tensor.shape), format!("{:?}", view.shape()));
        assert_eq!(tensor.dtype.name(), view.dtype().to_string());
        let range = usize::try_from(tensor.range.start).unwrap()
            ..usize::try_from(tensor.range.end).unwrap();
        assert_eq!(file[range].as_ptr_range(), view.data().as_ptr_range());
    }
    let (_, metadata) = SafeTensors::read_metadata(file).expect("it was accepted");
    let mut ours: Vec<_> = ours.metadata.iter().flatten().cloned().collect();
    let mut theirs: Vec<_> = metadata
        .metadata()
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
}

/// A file: length word, header, and that many bytes of data.
pub(crate) fn file(json: impl AsRef<[u8]>, n_data: usize) -> Vec<u8> {
    let json = json.as_ref();
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    file.resize(file.len() + n_data, 0);
    file
}
