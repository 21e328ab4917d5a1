//! Transposing matrices of bytes, halves and words: layouts whose stored rows are columns.

/// `[rows, columns]` elements of `size` bytes to `[columns, rows]`.
pub(crate) fn transpose(bytes: &[u8], rows: usize, columns: usize, size: usize) -> Vec<u8> {
    if rows == 1 || columns == 1 {
        return bytes.to_vec();
    }
    match size {
        1 => transpose_bytes(bytes, rows, columns),
        2 => transpose_of::<2>(bytes, rows, columns),
        4 => transpose_of::<4>(bytes, rows, columns),
        _ => transpose_of::<8>(bytes, rows, columns),
    }
}

/// Squares of 8 x 8 bytes in eight words, the rest one by one.
fn transpose_bytes(bytes: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    const SIDE: usize = 8;
    let mut out = vec![0; bytes.len()];
    let (whole_rows, whole_columns) = (rows / SIDE * SIDE, columns / SIDE * SIDE);
    // Columns of squares, eight at a time: a line of the output's cache is filled while it is there.
    for r0 in (0..whole_rows).step_by(8 * SIDE) {
        for c in (0..whole_columns).step_by(SIDE) {
            for r in (r0..whole_rows.min(r0 + 8 * SIDE)).step_by(SIDE) {
                let mut square = [0; SIDE];
                for (i, word) in square.iter_mut().enumerate() {
                    let at = (r + i) * columns + c;
                    *word = u64::from_le_bytes(*bytes[at..].first_chunk().expect("in the row"));
                }
                for (i, word) in transpose_square(square).into_iter().enumerate() {
                    let at = (c + i) * rows + r;
                    out[at..at + SIDE].copy_from_slice(&word.to_le_bytes());
                }
            }
        }
    }
    for r in 0..rows {
        let first = if r < whole_rows { whole_columns } else { 0 };
        for c in first..columns {
            out[c * rows + r] = bytes[r * columns + c];
        }
    }
    out
}

/// Byte `j` of word `i` becomes byte `i` of word `j`: halves, quarters and bytes of word pairs change places.
fn transpose_square(mut words: [u64; 8]) -> [u64; 8] {
    let swaps = [
        (4, 32, 0x0000_0000_ffff_ffff_u64),
        (2, 16, 0x0000_ffff_0000_ffff),
        (1, 8, 0x00ff_00ff_00ff_00ff),
    ];
    for (distance, shift, low) in swaps {
        for i in (0..8).filter(|i| i & distance == 0) {
            let (a, b) = (words[i], words[i + distance]);
            words[i] = a & low | (b & low) << shift;
            words[i + distance] = a >> shift & low | b & !low;
        }
    }
    words
}

/// In squares, so that both sides stay in the cache.
fn transpose_of<const SIZE: usize>(bytes: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    const SIDE: usize = 32;
    let mut out = vec![0; bytes.len()];
    let (from, _) = bytes.as_chunks::<SIZE>();
    let (to, _) = out.as_chunks_mut::<SIZE>();
    for r0 in (0..rows).step_by(SIDE) {
        for c0 in (0..columns).step_by(SIDE) {
            for r in r0..rows.min(r0 + SIDE) {
                for c in c0..columns.min(c0 + SIDE) {
                    to[c * rows + r] = from[r * columns + c];
                }
            }
        }
    }
    out
}
