//! Better codes for rows that are quantized already, under the scales that they have (quality notes 4.4): no byte but the codes changes.
//!
//! Whatever the scheme is, a weight is affine in the level of its code. What a reader makes of two codes says how, so that groups in any
//! order, blocks, and scales of scales need no thought here.

use safequant_kernels::{Backend, Candidate, Levels};
use safequant_schemes::{Arithmetic, Basis, Code, CodeTile, Dequantizer, RowsOut, Scheme};

use crate::feedback::round_columns;
use crate::inputs::OutputLoss;
use crate::prepared::Curvature;
use crate::quantizers::searched::append_codes;
use crate::refine::Refinement;
use crate::scaling::output_noise;
use crate::search::{Freedom, RowFormat, RowScales, Stored, levels};
use crate::{Effort, Error, Prepared};

/// What one row's outputs lost with the codes that it had, and what they lose with those it has now: never more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recoded {
    /// With the codes that it had.
    pub before: OutputLoss,
    /// With those that it has now.
    pub after: OutputLoss,
}

/// Chooses codes anew for rows of one scheme.
pub struct Recoder<'a> {
    scheme: &'a Scheme,
    reader: &'a Dequantizer,
    levels: Levels,
    /// The level of each code; NaN for what is none.
    level_of: Vec<f32>,
    /// Two codes whose levels lie far apart, the first near zero.
    probes: [u8; 2],
    backend: &'static Backend,
}

/// Scales that stay as they are, one for each column.
struct Kept(Levels);

impl RowFormat for Kept {
    fn levels(&self) -> Levels {
        self.0
    }

    fn group(&self) -> usize {
        1
    }

    fn freedom(&self) -> Freedom {
        Freedom::Fixed
    }

    /// What the row has stays.
    fn choose(
        &self,
        _: &[f32],
        _: &[f32],
        _: Effort,
        _: &'static Backend,
        _: &mut RowScales,
    ) -> Result<(), (usize, f32)> {
        Ok(())
    }

    fn near(&self, _: &RowScales, _: usize, _: Candidate) -> Option<(Stored, Candidate)> {
        None
    }
}

/// The codes of some rows that are best so far.
struct Best {
    codes: Vec<u8>,
    /// What each row loses with them; infinite for rows that are no numbers, which stay as they are.
    noise: Vec<f64>,
}

impl<'a> Recoder<'a> {
    /// For rows of this scheme, as `reader` reads them.
    ///
    /// # Errors
    /// [`Error::UnsupportedScheme`] for codes without a fixed set of levels, and for what is stored in another basis than the weight's.
    pub fn new(
        scheme: &'a Scheme,
        reader: &'a Dequantizer,
        backend: &'static Backend,
    ) -> Result<Self, Error> {
        let levels = can_recode(scheme)?;
        let level_of = level_of(scheme.code, levels);
        let magnitude = |code: &u8| level_of[usize::from(*code)].abs();
        let codes = || (0..=u8::MAX).filter(|code| magnitude(code).is_finite());
        let least = codes().min_by(|a, b| magnitude(a).total_cmp(&magnitude(b)));
        let most = codes().max_by(|a, b| magnitude(a).total_cmp(&magnitude(b)));
        Ok(Self {
            scheme,
            reader,
            levels,
            probes: [least.unwrap_or(0), most.unwrap_or(u8::MAX)],
            level_of,
            backend,
        })
    }

    /// Gives rows the codes with which they lose least: those that they have, those after sweeps from there, and but for the fastest effort
    /// those after error feedback and sweeps.
    ///
    /// `values`: the weights that the rows of `tile` stand for, `[n_rows, in_features]`.
    ///
    /// # Errors
    /// [`Error::Inputs`] if nothing was prepared from a whole second moment of so many input features; [`Error::Unreadable`].
    ///
    /// # Panics
    /// If the tile has not as many codes as there are values.
    pub fn recode(
        &self,
        values: &[f32],
        tile: &mut CodeTile,
        prepared: &Prepared,
    ) -> Result<Vec<Recoded>, Error> {
        assert_eq!(values.len(), tile.codes.len(), "a code for each value");
        let curvature = prepared.curvature.as_ref();
        let curvature = curvature.filter(|c| values.len().is_multiple_of(c.inputs.in_features));
        let curvature = curvature.ok_or_else(|| Error::Inputs {
            reason: "codes are chosen anew with the whole second moment only".to_owned(),
        })?;
        if values.is_empty() {
            return Ok(Vec::new());
        }
        let signal = output_noise(values, &curvature.inputs, self.backend);
        let mut best = Best {
            codes: tile.codes.clone(),
            noise: self.noise(values, tile, curvature)?,
        };
        let before = best.noise.clone();
        let start: Vec<f32> = (tile.codes.iter())
            .map(|code| self.level_of[usize::from(*code)])
            .collect();
        let scales = self.scales(tile, &best.noise, curvature.inputs.in_features)?;
        let effort = prepared.settings.effort;
        self.sweep(
            values,
            (start.clone(), &scales),
            curvature,
            effort,
            |chosen| self.keep_better(values, (&start, chosen), curvature, tile, &mut best),
        )?;
        if effort > Effort::Fast {
            let of_columns = (scales.as_slice(), 1);
            let (chosen, _) = round_columns(
                effort,
                self.levels,
                values,
                of_columns,
                &curvature.factor,
                self.backend,
            );
            self.sweep(values, (chosen, &scales), curvature, effort, |chosen| {
                self.keep_better(values, (&start, chosen), curvature, tile, &mut best)
            })?;
        }
        tile.codes = best.codes;
        let rows = signal.into_iter().zip(before).zip(best.noise);
        let loss = |signal, noise| OutputLoss { signal, noise };
        Ok(rows
            .map(|((signal, before), after)| Recoded {
                before: loss(signal, before),
                after: loss(signal, after),
            })
            .collect())
    }

    /// Sweeps over codes from where they are.
    fn sweep(
        &self,
        values: &[f32],
        (mut chosen, scales): (Vec<f32>, &[RowScales]),
        curvature: &Curvature,
        effort: Effort,
        then: impl FnOnce(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut scales = scales.to_vec();
        let format = Kept(self.levels);
        let rows = (chosen.as_mut_slice(), scales.as_mut_slice());
        let mut refinement = Refinement::new(&format, curvature, values, rows, self.backend);
        refinement.run(rounds(effort));
        drop(refinement);
        then(&chosen)
    }

    /// Takes over the rows that lose less with other levels. Where a level stays its code does, so that of several codes with one value
    /// none is exchanged for another.
    fn keep_better(
        &self,
        values: &[f32],
        (start, chosen): (&[f32], &[f32]),
        curvature: &Curvature,
        tile: &mut CodeTile,
        best: &mut Best,
    ) -> Result<(), Error> {
        let mut codes = Vec::with_capacity(chosen.len());
        append_codes(self.scheme, self.levels, chosen, self.backend, &mut codes);
        let original = tile.codes.clone();
        for ((code, had), (was, is)) in codes
            .iter_mut()
            .zip(&original)
            .zip(start.iter().zip(chosen))
        {
            #[expect(clippy::float_cmp, reason = "levels are told apart, not measured")]
            let is_same = was == is;
            if is_same {
                *code = *had;
            }
        }
        tile.codes = codes;
        let noise = self.noise(values, tile, curvature);
        let codes = std::mem::replace(&mut tile.codes, original);
        let n = curvature.inputs.in_features;
        let rows = best.codes.chunks_exact_mut(n).zip(&mut best.noise);
        for ((had, least), (codes, noise)) in rows.zip(codes.chunks_exact(n).zip(noise?)) {
            // Not for a row that is no number.
            if least.is_finite() && noise < *least {
                had.copy_from_slice(codes);
                *least = noise;
            }
        }
        Ok(())
    }

    /// What each row loses, as readers read it; infinite where that is no number.
    fn noise(
        &self,
        values: &[f32],
        tile: &CodeTile,
        curvature: &Curvature,
    ) -> Result<Vec<f64>, Error> {
        let mut errors = self.read(tile)?;
        let n = curvature.inputs.in_features;
        let finite: Vec<bool> = errors
            .chunks_exact(n)
            .map(|row| row.iter().all(|value| value.is_finite()))
            .collect();
        for (error, value) in errors.iter_mut().zip(values) {
            *error -= value;
        }
        let noise = output_noise(&errors, &curvature.inputs, self.backend);
        let rows = noise.into_iter().zip(finite);
        Ok(rows
            .map(|(noise, is_finite)| {
                if is_finite && noise.is_finite() {
                    noise
                } else {
                    f64::INFINITY
                }
            })
            .collect())
    }

    /// The values of a tile.
    fn read(&self, tile: &CodeTile) -> Result<Vec<f32>, Error> {
        let mut values = vec![0.0; tile.codes.len()];
        let read = self.reader.tile(tile, RowsOut::F32(&mut values));
        read.map_err(|error| Error::Unreadable {
            reason: error.to_string(),
        })?;
        Ok(values)
    }

    /// What the level of each value is multiplied by and what is added; nothing for rows that stay as they are.
    fn scales(
        &self,
        tile: &mut CodeTile,
        noise: &[f64],
        in_features: usize,
    ) -> Result<Vec<RowScales>, Error> {
        let codes = tile.codes.clone();
        let [near, far] = self.probes.map(|code| {
            tile.codes.fill(code);
            self.read(tile)
        });
        tile.codes = codes;
        let (near, far) = (near?, far?);
        let [low, high] = self.probes.map(|code| self.level_of[usize::from(code)]);
        let candidate = |(near, far): (&f32, &f32)| {
            let scale = (far - near) / (high - low);
            Candidate {
                scale,
                offset: near - scale * low,
            }
        };
        let rows = near
            .chunks_exact(in_features)
            .zip(far.chunks_exact(in_features));
        let of_row = |((near, far), noise): ((&[f32], &[f32]), &f64)| {
            let effective: Vec<Candidate> = near.iter().zip(far).map(candidate).collect();
            let is_usable = |c: &Candidate| c.scale.is_finite() && c.offset.is_finite();
            let usable = noise.is_finite() && effective.iter().all(is_usable);
            RowScales {
                effective: if usable {
                    effective
                } else {
                    vec![Candidate::default(); in_features]
                },
                ..RowScales::default()
            }
        };
        Ok(rows.zip(noise).map(of_row).collect())
    }
}

/// The levels of a scheme whose codes can be chosen anew.
///
/// # Errors
/// [`Error::UnsupportedScheme`] says what stands against it.
pub fn can_recode(scheme: &Scheme) -> Result<Levels, Error> {
    let refused = |reason| Err(Error::UnsupportedScheme { reason });
    if scheme.basis != Basis::WEIGHT {
        return refused("it is stored in another basis (rotated, rescaled or in parts)");
    }
    if let Code::Codebook(book) = scheme.code
        && book.lattice().is_some()
    {
        return refused("its codes are points of a lattice, which are not exchanged one by one");
    }
    if let Arithmetic::Int8Grid(_) = scheme.arithmetic {
        return refused("its codes have two levels that cannot be taken apart");
    }
    levels(scheme)
}

/// The level of each of 256 codes.
fn level_of(code: Code, levels: Levels) -> Vec<f32> {
    let (low, high) = levels.ends();
    let mut table = vec![f32::NAN; 256];
    match code {
        Code::Minifloat(format) => table.copy_from_slice(format.table().as_slice()),
        Code::Codebook(book) => table[..16].copy_from_slice(book.values().as_slice()),
        Code::Integer { .. } | Code::StoredCodebook | Code::Dense(_) => {
            let mut level = low;
            for entry in &mut table {
                if level > high {
                    break;
                }
                *entry = level;
                level += 1.0;
            }
        }
    }
    table
}

/// Sweeps over codes alone, at most: from codes that were rounded to nearest many change.
const fn rounds(effort: Effort) -> usize {
    match effort {
        Effort::Fast => 2,
        Effort::Default => 8,
        Effort::High => 16,
        Effort::Max => 32,
    }
}

#[cfg(test)]
mod tests;
