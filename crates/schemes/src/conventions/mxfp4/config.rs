//! `quantization_config` of gpt-oss (specs/conventions/mxfp4.md, clauses X1 and X2).

use crate::{Error, Headers, Pattern, Settings, pattern};

/// What the configuration says.
#[derive(Debug)]
pub(super) struct Config {
    /// Where it stands.
    pub(super) place: String,
    exclude: Vec<Pattern>,
}

impl Config {
    /// Finds and parses the settings.
    pub(super) fn find(headers: Headers<'_>) -> Result<Option<Self>, Error> {
        let all = headers.settings()?;
        let ours = all
            .iter()
            .find(|s| matches!(s.method().as_deref(), Some("mxfp4" | "gpt_oss_mxfp4")));
        ours.map(Self::parse).transpose()
    }

    fn parse(settings: &Settings) -> Result<Self, Error> {
        let patterns = settings.texts("modules_to_not_convert")?;
        pattern::check_count(patterns.len())?;
        Ok(Self {
            place: settings.place.clone(),
            exclude: patterns
                .iter()
                .map(|p| Pattern::glob(p))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Refuses a configuration that asks for too much matching.
    pub(super) fn check_work(&self, n_modules: usize) -> Result<(), Error> {
        // Every name is tried with the modules around it; names with more of them than this are none of a model.
        pattern::check_work(self.exclude.len(), n_modules.saturating_mul(16))
    }

    /// The entry that excludes a module or one around it, if there is one.
    pub(super) fn excludes(&self, module: &str) -> Result<Option<&str>, Error> {
        let mut name = module;
        loop {
            for pattern in &self.exclude {
                if pattern.is_match(name)? {
                    return Ok(Some(pattern.text()));
                }
            }
            match name.rsplit_once('.') {
                Some((around, _)) => name = around,
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pattern_excludes_a_module_and_all_inside() {
        let serde_json::Value::Object(map) = json!({"modules_to_not_convert":
            ["model.layers.*.self_attn", "lm_head"]})
        else {
            panic!("no object")
        };
        let place = "config.json".to_owned();
        let config = Config::parse(&Settings { place, map }).unwrap();
        let excludes = |name| config.excludes(name).unwrap().is_some();
        assert!(excludes("model.layers.0.self_attn.q_proj"));
        assert!(excludes("lm_head"));
        assert!(!excludes("model.layers.0.mlp.experts.down_proj"));
    }
}
