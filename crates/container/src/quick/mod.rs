//! The quick way through headers and indexes: plain JSON, as every producer in use writes it.
//!
//! [`header`] and [`index`] read what has no escapes and no members but the known ones, in one pass over bytes that are
//! fetched in pieces. They **only ever accept**: at anything else (an escape, an unknown field, a fault of any kind, a name
//! that occurs twice) they give up, and the text is read again by [`crate::json::Reader`], which knows the whole grammar and
//! writes every message. So whatever the verdict, it is the reader's; `tests.rs` holds both together.
//!
//! **Time** is linear in the text, but for names that do not ascend: those are sorted ([`crate::order`]), which also tells
//! whether one occurs twice, and nothing is hashed, so that no collisions can be prepared. **Memory** is a window of at most
//! 256 KiB beside the result, and at most 40 bytes for each name of a header whose names do not ascend.

mod cursor;
mod header;
mod index;
#[cfg(test)]
mod tests;
mod usual;
mod window;

pub(crate) use header::{PlainHeader, Ranges, header};
pub(crate) use index::index;
pub(crate) use window::WINDOW_BYTES;
