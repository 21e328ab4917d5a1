//! The pieces of a `SentencePiece` model (`tokenizer.model`): a protobuf message `ModelProto`, of which only field 1 is read,
//! `repeated SentencePiece { string piece = 1; float score = 2; Type type = 3; }` (`sentencepiece_model.proto`).

use crate::Error;

/// A piece.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    /// Its text.
    pub text: Vec<u8>,
    /// Its score.
    pub score: f32,
    /// Its type.
    pub kind: PieceKind,
}

/// The type of a piece. The numbers are those of the file and of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// The name of the document.
pub(super) const DOCUMENT: &str = "tokenizer.model";

/// The pieces of a model, in the order of their ids.
pub(super) fn pieces(bytes: &[u8]) -> Result<Vec<Piece>, Error> {
    let mut pieces = Vec::new();
    let mut message = Message { bytes };
    while let Some(field) = message.next_field()? {
        if let (1, Wire::Bytes(piece)) = field {
            pieces.push(read_piece(piece)?);
        }
    }
    if pieces.is_empty() {
        return Err(malformed("it has no pieces"));
    }
    Ok(pieces)
}

fn read_piece(bytes: &[u8]) -> Result<Piece, Error> {
    let mut piece = Piece {
        text: Vec::new(),
        score: 0.0,
        kind: PieceKind::Normal,
    };
    let mut message = Message { bytes };
    while let Some(field) = message.next_field()? {
        match field {
            (1, Wire::Bytes(text)) => piece.text = text.to_vec(),
            (2, Wire::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Wire::Varint(kind)) => piece.kind = kind_of(kind)?,
            (1..=3, _) => return Err(malformed("a piece is of other types")),
            (_, _) => {}
        }
    }
    Ok(piece)
}

fn kind_of(number: u64) -> Result<PieceKind, Error> {
    let kinds = [
        PieceKind::Normal,
        PieceKind::Unknown,
        PieceKind::Control,
        PieceKind::UserDefined,
        PieceKind::Unused,
        PieceKind::Byte,
    ];
    let found = kinds.into_iter().find(|kind| *kind as u64 == number);
    found.ok_or_else(|| malformed("a piece has a type that is not known"))
}

fn malformed(problem: &str) -> Error {
    Error::Document {
        document: DOCUMENT.to_owned(),
        problem: format!("no SentencePiece model: {problem}"),
    }
}

/// A field's value as it is written.
enum Wire<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// What is left of a message.
struct Message<'a> {
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// The next field's number and value.
    fn next_field(&mut self) -> Result<Option<(u64, Wire<'a>)>, Error> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Fixed64
            }
            2 => {
                let len = self.varint()?;
                Wire::Bytes(self.take(len)?)
            }
            5 => {
                let bytes = self.take(4)?.first_chunk().copied();
                Wire::Fixed32(u32::from_le_bytes(bytes.unwrap_or_default()))
            }
            _ => return Err(malformed("a field is of a type that is not known")),
        };
        match tag >> 3 {
            0 => Err(malformed("a field has the number 0")),
            number => Ok(Some((number, value))),
        }
    }

    /// Seven bits a byte, the lowest first; the highest bit says that there are more.
    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = u64::from(self.take(1)?[0]);
            value |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(malformed("a number has more than ten bytes"))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Error> {
        let len = usize::try_from(len).ok();
        let split = len.and_then(|len| self.bytes.split_at_checked(len));
        let (taken, rest) = split.ok_or_else(|| malformed("it ends within a field"))?;
        self.bytes = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pieces and a field of another number: `▁a`, 1.5, byte; empty, all by default.
    const MODEL: &[u8] =
        b"\x0a\x0d\x0a\x04\xe2\x96\x81a\x15\0\0\xc0\x3f\x18\x06\x0a\0\x12\x02\x08\x01";

    #[test]
    fn pieces_are_read_with_their_defaults() {
        let found = pieces(MODEL).unwrap();
        let expected = [
            Piece {
                text: "▁a".into(),
                score: 1.5,
                kind: PieceKind::Byte,
            },
            Piece {
                text: Vec::new(),
                score: 0.0,
                kind: PieceKind::Normal,
            },
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_model_that_ends_early_or_was_changed_is_an_error_or_another_model() {
        let mut n_errors = 0;
        for end in 0..MODEL.len() {
            n_errors += usize::from(pieces(&MODEL[..end]).is_err());
        }
        assert!(n_errors > MODEL.len() / 2, "{n_errors}");
        for at in 0..MODEL.len() {
            for value in 0..=255 {
                let mut changed = MODEL.to_vec();
                changed[at] = value;
                let _ = pieces(&changed);
            }
        }
        for hostile in [
            &b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"[..],
            &[0xff; 32],
            b"IQ== 0\n",
        ] {
            assert!(pieces(hostile).is_err(), "{hostile:?}");
        }
    }
}
