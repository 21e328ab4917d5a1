//! From what an audit says should change to what is written: the two crates know nothing of each other.

use safequant_audit::repair::{DocumentAction, DocumentEdit, Repair};
use safequant_rewrite::repair::{Edit, EditAction, Edits, NewIndex};

/// The changes of a repair in the words of the crate that writes them.
pub fn edits(repair: Repair) -> Edits {
    Edits {
        documents: repair.documents.into_iter().map(document).collect(),
        index: repair.index.map(|index| NewIndex {
            name: index.name,
            weight_map: index.weight_map,
            total_size: index.total_size,
        }),
        metadata: repair.metadata,
        renames: repair.renames,
        dropped: repair.dropped,
    }
}

fn document(edit: DocumentEdit) -> Edit {
    Edit {
        document: edit.document,
        path: edit.path,
        action: match edit.action {
            DocumentAction::Set(value) => EditAction::Set(value),
            DocumentAction::SetFirst(value) => EditAction::SetFirst(value),
            DocumentAction::Remove => EditAction::Remove,
        },
    }
}
