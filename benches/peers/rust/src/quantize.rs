//! BF16 rows to packed codes: the quantizer `rtn`, tile by tile.

use safequant_kernels::{Backend, CodeForm, Float, Floats, Minifloat, Packing, Stores};
use safequant_quantize::{
    Division, NonFinite, Output, Quantizer, RoundToNearest, Rows, ScaleRule, Target,
};
use safequant_schemes::{Code, CodeTile, Granularity, IntegerEncoding, ScaleCoding, Scheme, ZeroPoint};

use crate::{Matrix, Refusal, timed};

/// Rows of a tile: all of a block, and few enough to stay in the cache.
const TILE_ROWS: usize = 128;

/// Quantizes `matrix.codes` (BF16); `out` gets the packed codes.
pub(crate) fn run(what: &str, matrix: Matrix<'_>, out: &mut [u8]) -> Result<f64, Refusal> {
    let (code, granularity, rule) = match what {
        "fp8_channel" => (
            Code::Minifloat(Minifloat::E4M3),
            Granularity::Channel,
            ScaleRule::CompressedTensors,
        ),
        "fp8_block" => (
            Code::Minifloat(Minifloat::E4M3),
            Granularity::Block {
                rows: 128,
                columns: 128,
            },
            ScaleRule::FineGrainedFp8,
        ),
        "int4_g128" => (
            Code::Integer {
                bits: 4,
                encoding: IntegerEncoding::Unsigned,
            },
            Granularity::Group { size: 128 },
            ScaleRule::CompressedTensors,
        ),
        _ => return Err("no such scheme".into()),
    };
    let is_integer = matches!(code, Code::Integer { .. });
    let packing = if is_integer {
        Packing::LsbFirst { bits: 4 }
    } else {
        Packing::Bytes
    };
    let zero = ZeroPoint::Fixed(if is_integer { 8 } else { 0 });
    let target = Target {
        scheme: Scheme {
            zero_point: zero,
            ..Scheme::plain(code, granularity, ScaleCoding::Float(Float::F32))
        },
        rule,
        division: Division::SourceDtype,
        nonfinite: NonFinite::Refuse,
    };
    let tile = TILE_ROWS * matrix.columns;
    let backend = Backend::detect();
    let mut result = Ok(());
    let stores = Stores::for_len(out.len());
    let form = CodeForm { packing, flip: 0 };
    let mut scales = CodeTile::default();
    let seconds = timed(|| {
        let tiles = matrix.codes.chunks_exact(2 * tile);
        for (at, (from, to)) in tiles
            .zip(out.chunks_mut(tile * packing.bits() as usize / 8))
            .enumerate()
        {
            let rows = Rows {
                values: Floats::Bytes(Float::Bf16, from),
                in_features: matrix.columns,
                first_row: (at * TILE_ROWS) as u64,
                out_features: matrix.rows as u64,
                source: Float::Bf16,
            };
            let output = Output {
                codes: to,
                form,
                stores,
                tile: &mut scales,
            };
            let done = RoundToNearest.quantize_into(&target, rows, None, output, backend);
            if let Err(error) = done {
                result = Err(error.to_string());
            }
        }
    });
    result?;
    Ok(seconds)
}
