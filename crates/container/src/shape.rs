//! Shapes of tensors, most of which have few dimensions.

use std::fmt;
use std::ops::Deref;

/// Dimensions that need no allocation: matrices and stacks of them, which are nearly all tensors of a model.
const INLINE_DIMS: usize = 3;

/// The dimensions of a tensor, outermost first; empty for a scalar. It reads as a `[u64]`.
#[derive(Clone)]
pub struct Shape(Dims);

#[derive(Clone)]
enum Dims {
    Inline { len: u8, dims: [u64; INLINE_DIMS] },
    Heap(Box<[u64]>),
}

impl Shape {
    /// The dimensions as a slice.
    pub fn as_slice(&self) -> &[u64] {
        match &self.0 {
            Dims::Inline { len, dims } => &dims[..usize::from(*len)],
            Dims::Heap(dims) => dims,
        }
    }

    /// The shape of so few dimensions that it needs no memory of its own; `None` if there are more.
    pub(crate) fn inline(dims: &[u64]) -> Option<Self> {
        let mut inline = [0; INLINE_DIMS];
        inline.get_mut(..dims.len())?.copy_from_slice(dims);
        let len = u8::try_from(dims.len()).ok()?;
        Some(Self(Dims::Inline { len, dims: inline }))
    }

    /// The shape with one more dimension inside, if that needs no memory either.
    #[inline]
    pub(crate) fn with(self, dim: u64) -> Option<Self> {
        match self.0 {
            Dims::Inline { len, mut dims } => {
                *dims.get_mut(usize::from(len))? = dim;
                Some(Self(Dims::Inline { len: len + 1, dims }))
            }
            Dims::Heap(_) => None,
        }
    }
}

impl From<Vec<u64>> for Shape {
    fn from(dims: Vec<u64>) -> Self {
        Self::inline(&dims).unwrap_or_else(|| Self(Dims::Heap(dims.into_boxed_slice())))
    }
}

impl From<&[u64]> for Shape {
    fn from(dims: &[u64]) -> Self {
        Self::inline(dims).unwrap_or_else(|| Self(Dims::Heap(dims.into())))
    }
}

impl<const N: usize> From<[u64; N]> for Shape {
    fn from(dims: [u64; N]) -> Self {
        Self::from(dims.as_slice())
    }
}

impl Deref for Shape {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        self.as_slice()
    }
}

impl AsRef<[u64]> for Shape {
    fn as_ref(&self) -> &[u64] {
        self
    }
}

impl<'a> IntoIterator for &'a Shape {
    type Item = &'a u64;
    type IntoIter = std::slice::Iter<'a, u64>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for Shape {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Shape {}

impl<const N: usize> PartialEq<[u64; N]> for Shape {
    fn eq(&self, other: &[u64; N]) -> bool {
        self.as_slice() == other
    }
}

impl PartialEq<[u64]> for Shape {
    fn eq(&self, other: &[u64]) -> bool {
        self.as_slice() == other
    }
}

impl PartialEq<&[u64]> for Shape {
    fn eq(&self, other: &&[u64]) -> bool {
        self.as_slice() == *other
    }
}

impl PartialEq<Vec<u64>> for Shape {
    fn eq(&self, other: &Vec<u64>) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_slice(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_its_dimensions_however_many_there_are() {
        for len in 0..7_u64 {
            let dims: Vec<u64> = (1..=len).collect();
            let shape = Shape::from(dims.clone());
            assert_eq!(shape, dims);
            assert_eq!(shape, Shape::from(dims.as_slice()));
            assert_eq!(format!("{shape:?}"), format!("{dims:?}"));
            assert_eq!(shape.iter().sum::<u64>(), dims.iter().sum::<u64>());
            assert_eq!(Shape::inline(&dims).is_some(), dims.len() <= INLINE_DIMS);
        }
        assert_ne!(Shape::from([1, 0]), Shape::from([1]));
    }
}
