//! What quantizing a weight lost.

/// Sums over a weight and its dequantized form; rows are added in order, so the figures do not depend on threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of squares of the weight.
    pub signal: f64,
    /// Sum of squares of the difference.
    pub noise: f64,
    /// Largest absolute difference.
    pub max_error: f64,
    /// Values compared.
    pub n_values: u64,
}

impl Loss {
    /// Signal-to-quantization-noise ratio in decibels; infinite for an exact result.
    pub fn sqnr_db(&self) -> f64 {
        10.0 * (self.signal / self.noise).log10()
    }

    /// Adds the sums of further rows.
    pub fn add(&mut self, other: &Loss) {
        self.signal += other.signal;
        self.noise += other.noise;
        self.max_error = self.max_error.max(other.max_error);
        self.n_values += other.n_values;
    }
}
