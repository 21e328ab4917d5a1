//! Matrices in memory, for [`crate::Backend::add_product`].

/// A matrix: element `(i, j)` is `values[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    /// Holds every element.
    pub values: &'a [T],
    /// Rows and columns.
    pub shape: (usize, usize),
    /// Elements from a row to the next one.
    pub row_stride: usize,
    /// Elements from a column to the next one.
    pub column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A matrix whose rows are contiguous, `row_stride` elements apart.
    #[must_use]
    pub fn of_rows(values: &'a [T], shape: (usize, usize), row_stride: usize) -> Self {
        Self {
            values,
            shape,
            row_stride,
            column_stride: 1,
        }
    }

    /// The same elements with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            values: self.values,
            shape: (self.shape.1, self.shape.0),
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// The elements that it needs `values` to have.
    fn reach(&self) -> usize {
        match self.shape {
            (0, _) | (_, 0) => 0,
            (rows, columns) => {
                (rows - 1) * self.row_stride + (columns - 1) * self.column_stride + 1
            }
        }
    }
}

/// A matrix that is written, its rows contiguous.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    /// Holds every element.
    pub values: &'a mut [T],
    /// Rows and columns.
    pub shape: (usize, usize),
    /// Elements from a row to the next one; at least the columns.
    pub row_stride: usize,
}

/// What is done with a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It is added.
    Plus,
    /// It is subtracted.
    Minus,
}

/// A product of two matrices and where it goes: `c += a b` or `c -= a b`.
#[derive(Debug)]
pub struct Product<'a, T> {
    /// `[m, n]`.
    pub c: MatrixMut<'a, T>,
    /// `[m, k]`.
    pub a: Matrix<'a, T>,
    /// `[k, n]`.
    pub b: Matrix<'a, T>,
    /// What is done with it.
    pub sign: Sign,
    /// Memory for the factors as they are read, kept by the caller from product to product.
    pub packed: &'a mut Vec<T>,
}

impl<T> Product<'_, T> {
    /// `m`, `n` and `k`.
    ///
    /// # Panics
    /// If the shapes do not go together or are larger than the memory.
    pub(crate) fn shape(&self) -> (usize, usize, usize) {
        let ((m, n), (a_rows, k), (b_rows, b_columns)) = (self.c.shape, self.a.shape, self.b.shape);
        assert_eq!(
            (m, n, k),
            (a_rows, b_columns, b_rows),
            "shapes of a product"
        );
        assert!(
            self.a.reach() <= self.a.values.len(),
            "the left factor's memory"
        );
        assert!(
            self.b.reach() <= self.b.values.len(),
            "the right factor's memory"
        );
        let reach = if m == 0 || n == 0 {
            0
        } else {
            (m - 1) * self.c.row_stride + n
        };
        assert!(n <= self.c.row_stride || m <= 1, "rows that overlap");
        assert!(reach <= self.c.values.len(), "the product's memory");
        (m, n, k)
    }
}
