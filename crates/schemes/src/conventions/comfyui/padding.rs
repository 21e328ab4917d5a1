//! The true shape of a matrix that is stored with padding (specs/conventions/comfyui.md, clauses C12 and C13).

use safequant_container::{Dtype, TensorInfo};

use super::markers::Layer;
use crate::binding::wrong_shape;
use crate::{Error, Headers};

/// The rows and columns of a padded matrix, and where they are known from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Logical {
    pub(super) shape: [u64; 2],
    /// Rows and columns as stored.
    pub(super) stored: [u64; 2],
    /// What was inferred from zeros, for the evidence.
    pub(super) inferred: bool,
}

impl Logical {
    /// What the same layer has in common in every block (`blocks.0.mlp.2`, `blocks.1.mlp.2`), where it is stored alike.
    pub(super) fn family(&self, module: &str) -> String {
        let is_number = |c: &str| !c.is_empty() && c.bytes().all(|b| b.is_ascii_digit());
        let mut name: Vec<&str> = module.split('.').collect();
        if let Some(at) = name.iter().position(|c| is_number(c)) {
            name[at] = "#";
        }
        format!("{} {:?}", name.join("."), self.stored)
    }
}

/// A weight that is stored in whole blocks of `unit` rows and columns.
pub(super) struct Padded<'a> {
    pub(super) headers: Headers<'a>,
    pub(super) module: &'a str,
    pub(super) weight: &'a TensorInfo,
    /// Rows and columns of one stored matrix, in codes.
    pub(super) stored: [u64; 2],
    pub(super) unit: u64,
    /// Columns in a byte.
    pub(super) per_byte: u64,
}

/// Rows of the last columns that are read at once.
const PIECE_ROWS: u64 = 1024;

impl Padded<'_> {
    /// The true shape: stated by the description or a tensor, else rows by the bias, else what is not zero.
    pub(super) fn logical(&self, layer: &Layer) -> Result<Logical, Error> {
        if let Some(shape) = layer.shape()? {
            return self.stated(&shape);
        }
        if let Some(shape) = original_shape(self.headers, self.module)? {
            return self.stated(&shape);
        }
        let [rows, columns] = self.stored;
        let stated = self.bias()?;
        let from_zeros = match stated {
            Some(_) => 0,
            None => self.zero_rows()?,
        };
        let n_rows = stated.unwrap_or(rows - from_zeros);
        // Matrices that fill their rows are taken to fill their columns.
        let zeros = match self.factors()? {
            Some(n) => columns - n,
            None if n_rows < rows => self.zero_columns(n_rows)?,
            None => 0,
        };
        Ok(Logical {
            shape: [n_rows, columns - zeros],
            stored: self.stored,
            inferred: from_zeros > 0 || (zeros > 0 && self.factors()?.is_none()),
        })
    }

    fn stated(&self, shape: &[u64]) -> Result<Logical, Error> {
        let shape = match *shape {
            [.., rows, columns] => [rows, columns],
            _ => [0, 0],
        };
        let padded = shape.map(|n| n.checked_next_multiple_of(self.unit));
        if padded != self.stored.map(Some) {
            let expected = format!("{shape:?} in whole blocks of {}", self.unit);
            return Err(wrong_shape(self.module, self.weight, expected));
        }
        Ok(Logical {
            shape,
            stored: self.stored,
            inferred: false,
        })
    }

    /// Rows by the length of the bias.
    fn bias(&self) -> Result<Option<u64>, Error> {
        let Some(bias) = self.headers.tensor(&format!("{}.bias", self.module)) else {
            return Ok(None);
        };
        let Some(&n) = bias.shape.last() else {
            return Ok(None);
        };
        if n.checked_next_multiple_of(self.unit) != Some(self.stored[0]) {
            let expected = format!("as many as the weight has rows, up to {}", self.stored[0]);
            return Err(wrong_shape(self.module, bias, expected));
        }
        Ok(Some(n))
    }

    /// Columns by the length of the inputs' factors.
    fn factors(&self) -> Result<Option<u64>, Error> {
        let name = format!("{}.pre_quant_scale", self.module);
        let Some(factors) = self.headers.tensor(&name) else {
            return Ok(None);
        };
        match factors.shape.as_slice() {
            [n] if n.checked_next_multiple_of(self.unit) == Some(self.stored[1]) => Ok(Some(*n)),
            _ => {
                let expected = format!(
                    "as many as the weight has columns, up to {}",
                    self.stored[1]
                );
                Err(wrong_shape(self.module, factors, expected))
            }
        }
    }

    fn row_len(&self) -> u64 {
        self.stored[1] / self.per_byte
    }

    fn n_matrices(&self) -> u64 {
        let stack = self.weight.shape.len().saturating_sub(2);
        self.weight.shape[..stack].iter().product()
    }

    /// Rows at the end of every matrix that are zero; fewer than a block, or 0.
    fn zero_rows(&self) -> Result<u64, Error> {
        let (rows, len) = (self.stored[0], self.row_len());
        let limit = self.headers.descriptor_limit();
        if len.saturating_mul(self.n_matrices()) > limit {
            return Ok(0);
        }
        for back in 1..=self.unit.min(rows) {
            for matrix in 0..self.n_matrices() {
                let row = matrix * rows + rows - back;
                let bytes = self
                    .headers
                    .rectangle(&self.weight.name, len, row..row + 1, 0..len)?;
                if bytes.iter().any(|&b| b != 0) {
                    return Ok(back - 1);
                }
            }
        }
        Ok(0)
    }

    /// Columns at the end of the first `n_rows` rows of every matrix that are zero; fewer than a block, or 0.
    fn zero_columns(&self, n_rows: u64) -> Result<u64, Error> {
        let (rows, len) = (self.stored[0], self.row_len());
        let block = self.unit / self.per_byte;
        let mut used = 0;
        for matrix in 0..self.n_matrices() {
            let mut at = 0;
            while at < n_rows {
                let end = n_rows.min(at + PIECE_ROWS);
                let wanted = matrix * rows + at..matrix * rows + end;
                let bytes =
                    self.headers
                        .rectangle(&self.weight.name, len, wanted, len - block..len)?;
                let width = usize::try_from(block).unwrap_or(1).max(1);
                for row in bytes.chunks_exact(width) {
                    used = used.max(self.used_columns(row));
                }
                if used == self.unit {
                    return Ok(0);
                }
                at = end;
            }
        }
        Ok(if used == 0 { 0 } else { self.unit - used })
    }

    /// Columns of a block up to the last one that is not zero. Of two in a byte the even one is the high nibble.
    fn used_columns(&self, block: &[u8]) -> u64 {
        let mut used = 0;
        for (&byte, at) in block.iter().zip(1_u64..) {
            let odd_is_zero = self.per_byte == 2 && byte.trailing_zeros() >= 4;
            if byte != 0 {
                used = at * self.per_byte - u64::from(odd_is_zero);
            }
        }
        used
    }
}

/// The content of `<module>.weight_orig_shape`.
pub(super) fn original_shape(
    headers: Headers<'_>,
    module: &str,
) -> Result<Option<Vec<u64>>, Error> {
    let name = format!("{module}.weight_orig_shape");
    let Some(info) = headers.tensor(&name) else {
        return Ok(None);
    };
    let bytes = headers.descriptor(&name)?;
    let entries: Vec<i64> = if info.dtype == Dtype::I64 {
        let words = bytes.as_chunks().0.iter();
        words.map(|&b| i64::from_le_bytes(b)).collect()
    } else if info.dtype == Dtype::I32 {
        let words = bytes.as_chunks().0.iter();
        words.map(|&b| i64::from(i32::from_le_bytes(b))).collect()
    } else {
        return Err(crate::binding::wrong_dtype(module, info, "I64 or I32"));
    };
    let sides: Option<Vec<u64>> = entries.iter().map(|&e| u64::try_from(e).ok()).collect();
    match sides {
        Some(sides) if sides.len() >= 2 => Ok(Some(sides)),
        _ => Err(wrong_shape(module, info, "two sides above 0".to_owned())),
    }
}
