//! What was seen, in words: for `inspect` and for messages.

use super::Found;
use super::config::Zero;

impl Found<'_> {
    /// One line for each thing seen.
    pub(super) fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(place) = &self.config.place {
            let format = self.config.format.as_deref().unwrap_or("none");
            lines.push(format!("{place} is of compressed-tensors, format {format}"));
        }
        let packed = |m: &&String| self.headers.tensor(&format!("{m}.weight_packed")).is_some();
        let n_packed = self.modules.iter().filter(packed).count();
        if n_packed > 0 {
            lines.push(format!("{n_packed} modules with weight_packed"));
        }
        if self.modules.len() > n_packed {
            let n = self.modules.len() - n_packed;
            lines.push(format!(
                "{n} modules with an 8-bit weight beside weight_scale"
            ));
        }
        let n = self
            .modules
            .iter()
            .filter(|m| self.has_unannounced_zero_point(m))
            .count();
        if n > 0 {
            lines.push(format!(
                "{n} modules have zero points, which are subtracted, although the configuration says symmetric"
            ));
        }
        lines
    }

    /// Whether a module has zero points that its group does not announce.
    fn has_unannounced_zero_point(&self, module: &str) -> bool {
        let name = format!("{module}.weight_zero_point");
        self.headers.tensor(&name).is_some()
            && self.config.group(module).is_ok_and(|group| {
                let args = group.and_then(|g| g.weights.as_ref());
                args.is_some_and(|a| matches!(a.zero, Zero::Symmetric))
            })
    }
}
