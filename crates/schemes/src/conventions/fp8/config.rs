//! The configurations of FP8 checkpoints (specs/conventions/fp8.md, clauses F1 to F6).

use crate::{Error, Headers, ScaleDirection, Settings};

/// What the configuration says.
#[derive(Debug, Default)]
pub(super) struct Config {
    /// Where it stands; `None` without one.
    pub(super) place: Option<String>,
    pub(super) method: String,
    /// `weight_block_size`.
    pub(super) block: Option<(u64, u64)>,
    pub(super) direction: Option<ScaleDirection>,
    /// GPTQModel's `weight_scale_method`.
    pub(super) granularity: Option<String>,
}

impl Config {
    /// Finds and parses the settings; several documents must agree. `Ok(None)`: they belong to someone else.
    pub(super) fn find(headers: Headers<'_>) -> Result<Option<Self>, Error> {
        let all = headers.settings()?;
        if all.is_empty() {
            return Ok(Some(Self::default()));
        }
        let ours: Vec<&Settings> = all.iter().filter(|s| is_ours(s)).collect();
        let Some((first, others)) = ours.split_first() else {
            return Ok(None);
        };
        let config = Self::parse(first)?;
        for other in others {
            let also = Self::parse(other)?;
            agree(
                first,
                other,
                "weight_block_size",
                config.block.as_ref(),
                also.block.as_ref(),
            )?;
            agree(
                first,
                other,
                "weight_scale_semantics",
                config.direction.as_ref(),
                also.direction.as_ref(),
            )?;
            agree(
                first,
                other,
                "quant_method",
                Some(&config.method),
                Some(&also.method),
            )?;
            agree(
                first,
                other,
                "weight_scale_method",
                config.granularity.as_ref(),
                also.granularity.as_ref(),
            )?;
        }
        Ok(Some(config))
    }

    fn parse(settings: &Settings) -> Result<Self, Error> {
        let direction = match settings.text("weight_scale_semantics")? {
            Some("inverse") => Some(ScaleDirection::Divide),
            Some("direct" | "multiply" | "scale") => Some(ScaleDirection::Multiply),
            Some(other) => {
                return Err(settings.wrong("weight_scale_semantics", "\"inverse\"", &other.into()));
            }
            // GPTQModel's own format name: its scales are reciprocals in every version that writes it.
            None => match settings.text("format")? {
                Some(format) if format.starts_with("float8_") => Some(ScaleDirection::Divide),
                _ => None,
            },
        };
        Ok(Self {
            place: Some(settings.place.clone()),
            method: settings.method().unwrap_or_default(),
            block: settings.block("weight_block_size")?,
            direction,
            granularity: settings.text("weight_scale_method")?.map(str::to_owned),
        })
    }
}

fn is_ours(settings: &Settings) -> bool {
    matches!(
        settings.method().as_deref(),
        Some("fp8" | "fbgemm_fp8" | "mxfp8")
    )
}

/// What two documents state must be the same; silence contradicts nothing.
fn agree<T: PartialEq + std::fmt::Debug>(
    first: &Settings,
    second: &Settings,
    key: &str,
    a: Option<&T>,
    b: Option<&T>,
) -> Result<(), Error> {
    match (a, b) {
        (Some(x), Some(y)) if x != y => Err(Error::ConfigsDisagree {
            key: key.to_owned(),
            first: first.place.clone(),
            first_value: format!("{x:?}"),
            second: second.place.clone(),
            second_value: format!("{y:?}"),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(value: Value) -> Result<Config, Error> {
        let Value::Object(map) = value else {
            panic!("no object")
        };
        Config::parse(&Settings {
            place: "config.json".into(),
            map,
        })
    }

    #[test]
    fn block_sizes_are_checked() {
        let ok = parse(json!({"quant_method": "fp8", "weight_block_size": [128, 128]})).unwrap();
        assert_eq!(ok.block, Some((128, 128)));
        assert_eq!(
            parse(json!({"weight_block_size": null})).unwrap().block,
            None
        );
        for bad in [
            json!([0, 128]),
            json!([128]),
            json!([128, -1]),
            json!([128.5, 128]),
            json!("x"),
            json!([1_u64 << 31, 128]),
            json!([u64::MAX, 1]),
            json!([i64::MIN, 1]),
            json!({}),
            json!(128),
        ] {
            assert!(
                parse(json!({"weight_block_size": bad.clone()})).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn gptqmodel_says_that_its_scales_divide() {
        let direction = |v| parse(v).unwrap().direction;
        assert_eq!(
            direction(json!({"weight_scale_semantics": "inverse"})),
            Some(ScaleDirection::Divide)
        );
        assert_eq!(
            direction(json!({"format": "float8_e4m3fn"})),
            Some(ScaleDirection::Divide)
        );
        assert_eq!(
            direction(json!({"quant_method": "fp8", "fmt": "e4m3"})),
            None
        );
        assert!(parse(json!({"weight_scale_semantics": "sideways"})).is_err());
    }
}
