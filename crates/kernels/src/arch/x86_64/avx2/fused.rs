//! Loops whose definition has fused multiply-adds, compiled once more with AVX2 and FMA allowed: every processor with AVX2 but a
//! few by VIA has both. Without FMA they are the portable ones.

use crate::blocks::Lattice;
use crate::{
    Beam, Candidate, EdgePoint, Feedback, FitSums, Levels, PointStep, Product, Sweep, portable,
};

fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

macro_rules! fused {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? = $portable:path;)*) => {
        $(
            pub(super) fn $name($($argument: $type),*) $(-> $result)? {
                if is_available() {
                    // SAFETY: the function needs AVX2 and FMA and nothing else; both were found in the line above.
                    unsafe { with_fma::$name($($argument),*) }
                } else {
                    $portable($($argument),*)
                }
            }
        )*

        mod with_fma {
            use super::{
                Beam, Candidate, EdgePoint, Feedback, FitSums, Lattice, Levels, PointStep, Sweep, portable,
            };

            $(
                #[target_feature(enable = "avx2,fma")]
                pub(super) fn $name($($argument: $type),*) $(-> $result)? {
                    $portable($($argument),*)
                }
            )*
        }
    };
}

fused! {
    fn feed_back(block: Feedback<'_>) = portable::feedback::feed_back;
    fn search_beam(block: Beam<'_>) = portable::beam::search_beam;
    fn sweep(row: Sweep<'_>) -> usize = portable::sweep::sweep;
    fn losses(levels: Levels, values: &[f32], weights: &[f32], candidates: &[Candidate], out: &mut [f32]) = portable::fit::losses;
    fn nearest(levels: Levels, values: &[f32], candidate: Candidate, out: &mut [f32]) = portable::fit::nearest;
    fn fit_sums(levels: Levels, values: &[f32], weights: &[f32], candidate: Candidate) -> FitSums = portable::fit::fit_sums;
    fn point_edge(lattice: &Lattice, values: &[f32], weights: &[f32], least: f32, found: &mut Vec<EdgePoint>) = portable::points::edge;
    fn improve_points(step: PointStep<'_>) -> bool = portable::points::improve;
}

/// Asks for lines of the cache.
#[derive(Clone, Copy)]
struct Prefetch;

impl portable::product::Ahead for Prefetch {
    #[inline(always)]
    fn fetch<T>(self, values: &[T], at: usize) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and never faults, whatever the address; SSE is part of every x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_add(at).cast()) }
    }
}

pub(super) fn add_product(product: Product<'_, f32>) {
    if is_available() {
        // SAFETY: the function needs AVX2 and FMA and nothing else; both were found in the line above.
        unsafe { product_with_fma(product) }
    } else {
        portable::product::add_product(product);
    }
}

pub(super) fn add_product_f64(product: Product<'_, f64>) {
    if is_available() {
        // SAFETY: as above.
        unsafe { product_f64_with_fma(product) }
    } else {
        portable::product::add_product_f64(product);
    }
}

#[target_feature(enable = "avx2,fma")]
fn product_with_fma(product: Product<'_, f32>) {
    portable::product::add_product_ahead(product, Prefetch);
}

#[target_feature(enable = "avx2,fma")]
fn product_f64_with_fma(product: Product<'_, f64>) {
    portable::product::add_product_f64_ahead(product, Prefetch);
}
