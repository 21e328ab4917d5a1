//! NVFP4 and MXFP8: padded matrices, scales in swizzled tiles.

use safequant_container::Dtype;
use safequant_kernels::{Minifloat, Packing, Tile};

use super::padding::Logical;
use super::{Bound, Module, shape_of};
use crate::binding::{check_dtype, part};
use crate::{
    Arithmetic, Axes, Axis, Basis, Code, ColumnFactor, E8M0Rule, Error, Granularity, Role,
    ScaleCoding, Scheme, Storage, SuperScale,
};

/// The tile of both formats' scales.
const SWIZZLED: Storage = Storage::Tiled {
    tile: Tile::Swizzled,
};

impl Module<'_> {
    pub(super) fn nvfp4(&self, logical: &Logical) -> Result<Bound, Error> {
        const GROUP: u64 = 16;
        let info = self.need("weight")?;
        check_dtype(self.name, info, &[Dtype::U8])?;
        let (stack, rows, bytes) = self.matrix(info)?;
        let [n_rows, n_columns] = logical.shape;
        let stored = [rows, bytes.saturating_mul(2)];
        let scale = self.need("weight_scale")?;
        check_dtype(self.name, scale, &[Dtype::F8E4M3, Dtype::U8])?;
        self.check_grid(scale, stack, [stored[0], stored[1].div_ceil(GROUP)])?;
        let second = self.need("weight_scale_2")?;
        check_dtype(self.name, second, &[Dtype::F32])?;
        let packed = Storage::Packed {
            axes: Axes::OutIn,
            packing: Packing::NibblesHighFirst,
            along: Axis::In,
        };
        let mut parts = vec![
            Self::codes(info, packed, padding(stored, logical)),
            part(Role::Scale, scale, SWIZZLED),
            self.per_matrix(Role::SuperScale, second, stack)?,
        ];
        let mut basis = Basis::WEIGHT;
        if let Some(factor) = self.get("pre_quant_scale") {
            self.float(factor)?;
            if factor.shape != [n_columns] {
                return Err(self.shape_error(factor, format!("[{n_columns}]")));
            }
            basis.columns = ColumnFactor::Inputs;
            parts.push(part(Role::ColumnFactor, factor, Storage::Vector));
        }
        Ok(Bound {
            shape: shape_of(stack, n_rows, n_columns),
            scheme: Scheme {
                super_scale: SuperScale::Multiply,
                arithmetic: Arithmetic::EachStep(self.compute),
                basis,
                ..Scheme::plain(
                    Code::Minifloat(Minifloat::E2M1),
                    Granularity::Group { size: GROUP },
                    ScaleCoding::Minifloat(Minifloat::E4M3),
                )
            },
            reference: self.compute,
            parts,
        })
    }

    pub(super) fn mxfp8(&self, logical: &Logical) -> Result<Bound, Error> {
        const GROUP: u64 = 32;
        let info = self.need("weight")?;
        check_dtype(self.name, info, &[Dtype::F8E4M3])?;
        let (stack, rows, columns) = self.matrix(info)?;
        let [n_rows, n_columns] = logical.shape;
        let scale = self.need("weight_scale")?;
        check_dtype(self.name, scale, &[Dtype::U8, Dtype::F8E8M0])?;
        self.check_grid(scale, stack, [rows, columns.div_ceil(GROUP)])?;
        let elements = Storage::Elements { axes: Axes::OutIn };
        Ok(Bound {
            shape: shape_of(stack, n_rows, n_columns),
            scheme: Scheme::plain(
                Code::Minifloat(Minifloat::E4M3),
                Granularity::Group { size: GROUP },
                ScaleCoding::E8M0(E8M0Rule::ExponentField),
            ),
            reference: self.compute,
            parts: vec![
                Self::codes(info, elements, padding([rows, columns], logical)),
                part(Role::Scale, scale, SWIZZLED),
            ],
        })
    }

    /// A tiled grid has exactly the padded shape: a grid that lies row by row must not pass for one.
    fn check_grid(
        &self,
        scale: &safequant_container::TensorInfo,
        stack: &[u64],
        [rows, columns]: [u64; 2],
    ) -> Result<(), Error> {
        let sides = [
            rows.checked_next_multiple_of(128),
            columns.checked_next_multiple_of(4),
        ];
        let grid = sides.map(|side| side.unwrap_or(u64::MAX));
        if scale.shape == shape_of(stack, grid[0], grid[1]) {
            return Ok(());
        }
        Err(self.shape_error(
            scale,
            format!("the tiled grid {:?}", shape_of(stack, grid[0], grid[1])),
        ))
    }
}

/// The stored grid, where it is larger than the matrix.
fn padding(stored: [u64; 2], logical: &Logical) -> Option<[u64; 2]> {
    (stored != logical.shape).then_some(stored)
}
