//! `svdquant_w4a4`: 4-bit residuals, a factor per input feature, and a low-rank product; row by row, or in tiles.

use safequant_container::{Dtype, TensorInfo};
use safequant_kernels::{Packing, Tile};

use super::{Bound, Module};
use crate::binding::{check_dtype, part};
use crate::{
    Arithmetic, Axes, Axis, Basis, Code, ColumnFactor, Error, Granularity, IntegerEncoding, Role,
    Rotation, ScaleCoding, Scheme, Storage, ZeroPoint,
};

/// Input features per scale.
const GROUP: u64 = 64;
/// Output features per tile.
const TILE: u64 = 128;

impl<'a> Module<'a> {
    pub(super) fn svdquant(&self) -> Result<Bound, Error> {
        let info = self.need("weight")?;
        check_dtype(self.name, info, &[Dtype::I8, Dtype::U8])?;
        let scale = self.need("weight_scale")?;
        let float = self.float(scale)?;
        let down = self.need_one(&["proj_down", "weight_proj_down"])?;
        let up = self.need_one(&["proj_up", "weight_proj_up"])?;
        let smooth = self.need_one(&["smooth_factor", "weight_smooth_factor"])?;
        for info in [down, up, smooth] {
            self.float(info)?;
        }
        let rank = down.shape.last().copied().unwrap_or(0);
        let column = Storage::Tiled {
            tile: Tile::KitchenSvdqColumns,
        };
        let elements = |axes| Storage::Elements { axes };
        let (rows, columns, codes, scales, ups) = match *info.shape.as_slice() {
            [rows, bytes] => {
                let columns = bytes.saturating_mul(2);
                self.expect(scale, &[vec![columns / GROUP, rows]])?;
                self.expect(up, &[vec![rows, rank]])?;
                let nibbles = Storage::Packed {
                    axes: Axes::OutIn,
                    packing: Packing::LsbFirst { bits: 4 },
                    along: Axis::In,
                };
                let (scales, ups) = (elements(Axes::InOut), elements(Axes::OutIn));
                (rows, columns, nibbles, scales, ups)
            }
            [tiles, groups, 32, 128] => {
                self.expect(scale, &[vec![tiles, groups, TILE]])?;
                self.expect(up, &[vec![tiles, rank, TILE]])?;
                let tile = Storage::Tiled {
                    tile: Tile::KitchenSvdq,
                };
                let (rows, columns) = (tiles.saturating_mul(TILE), groups.saturating_mul(GROUP));
                (rows, columns, tile, column, column)
            }
            _ => {
                let expected = "[rows, bytes] or [tiles, groups, 32, 128]".to_owned();
                return Err(self.shape_error(info, expected));
            }
        };
        self.check_thin(info, [rows, columns], rank, (down, smooth))?;
        Ok(Bound {
            shape: vec![rows, columns],
            scheme: Scheme {
                zero_point: ZeroPoint::Fixed(8),
                arithmetic: Arithmetic::Probed(self.compute),
                basis: Basis {
                    rotation: Rotation::None,
                    columns: ColumnFactor::Divide,
                    rank,
                },
                ..Scheme::plain(
                    Code::Integer {
                        bits: 4,
                        encoding: IntegerEncoding::TwosComplement,
                    },
                    Granularity::Group { size: GROUP },
                    ScaleCoding::Float(float),
                )
            },
            reference: self.compute,
            parts: vec![
                Self::codes(info, codes, None),
                part(Role::Scale, scale, scales),
                part(Role::ColumnFactor, smooth, Storage::Vector),
                part(Role::LowRankUp, up, ups),
                part(Role::LowRankDown, down, elements(Axes::OutIn)),
            ],
        })
    }

    /// Columns in whole groups, and the factors that go with them.
    fn check_thin(
        &self,
        info: &'a TensorInfo,
        [rows, columns]: [u64; 2],
        rank: u64,
        (down, smooth): (&'a TensorInfo, &'a TensorInfo),
    ) -> Result<(), Error> {
        if columns == 0 || rows == 0 || !columns.is_multiple_of(GROUP) {
            return Err(self.shape_error(info, format!("groups of {GROUP} columns")));
        }
        if rank == 0 {
            return Err(self.shape_error(down, format!("[{columns}, a rank above 0]")));
        }
        self.expect(down, &[vec![columns, rank]])?;
        self.expect(smooth, &[vec![columns]])
    }
}
