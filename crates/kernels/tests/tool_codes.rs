//! Scales and codes that real tools chose (`specs/vectors/scales_and_codes.json`), each counted.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use safequant_kernels::{
    Backend, CodeForm, CodeRule, Codebook, Dynamic8BitRule, E2M1Rule, Float, Floats, GroupRules,
    Minifloat, MxScaleRule, Stores,
};
use serde_json::Value;

#[expect(
    clippy::disallowed_methods,
    reason = "the kernels do no I/O, their tests read vectors"
)]
fn vectors() -> Value {
    let name = "specs/vectors/scales_and_codes.json";
    let path = format!("{}/../../{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap()
}

fn float(value: &Value) -> f32 {
    f32::from_bits(u32::from_str_radix(value.as_str().unwrap(), 16).unwrap())
}

fn code(value: &Value) -> u8 {
    u8::try_from(value.as_u64().unwrap()).unwrap()
}

/// The code of one value.
fn encode(backend: &Backend, value: f32, rule: CodeRule) -> u8 {
    let (mut out, values) = ([0xff], [value]);
    let (source, rules) = (Floats::F32(&values), GroupRules::Each(&[rule]));
    (backend.encode)(
        source,
        1,
        rules,
        CodeForm::BYTES,
        &mut out,
        Stores::Ordinary,
    );
    out[0]
}

fn rule(tool: &str) -> MxScaleRule {
    match tool {
        "compressed-tensors f32" => MxScaleRule::SevenFourths { amax: Float::F32 },
        "compressed-tensors bf16" => MxScaleRule::SevenFourths { amax: Float::Bf16 },
        "compressed-tensors f16" => MxScaleRule::SevenFourths { amax: Float::F16 },
        "torchao floor" => MxScaleRule::Floor,
        "torchao even" => MxScaleRule::Even,
        "torchao ceil" => MxScaleRule::Ceil,
        "torchao rceil" | "modelopt" | "comfy-kitchen" => MxScaleRule::CeilQuotient,
        other => panic!("unknown tool {other}"),
    }
}

#[test]
fn mx_scales_are_those_of_the_tools() {
    let mut checked = 0;
    for case in vectors()["mx_scales"].as_array().unwrap() {
        let element = match case["element"].as_str().unwrap() {
            "E2M1" => Minifloat::E2M1,
            "E4M3" => Minifloat::E4M3,
            other => panic!("unknown element {other}"),
        };
        let amax = float(&case["amax"]);
        for (tool, scale) in case["scales"].as_object().unwrap() {
            let found = rule(tool).encode(element, amax);
            assert_eq!(found, code(scale), "{tool} {element:?} {amax:e}");
            checked += 1;
        }
    }
    assert_eq!(checked, 2598);
}

#[test]
fn e2m1_codes_are_those_of_the_tools() {
    let rules = [
        ("compressed-tensors", E2M1Rule::EvenPlusZero),
        ("modelopt mxfp4", E2M1Rule::TowardZeroMinusZero),
        ("comfy-kitchen", E2M1Rule::EvenSigned),
    ];
    let mut checked = 0;
    for case in vectors()["e2m1"].as_array().unwrap() {
        let value = float(&case["value"]);
        for (tool, rule) in rules {
            for backend in Backend::available() {
                let rule = CodeRule::E2M1 {
                    rule,
                    arith: Float::F32,
                    divisor: 1.0,
                };
                assert_eq!(
                    encode(backend, value, rule),
                    code(&case[tool]),
                    "{tool} {value:e} {}",
                    backend.name
                );
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 3 * 68);
}

#[test]
fn dynamic_codes_are_those_of_bitsandbytes() {
    let mut checked = 0;
    for case in vectors()["dynamic_8bit"].as_array().unwrap() {
        let value = float(&case["value"]);
        let native = Dynamic8BitRule::Grid.encode(value);
        assert_eq!(native, code(&case["native"]), "{value:e}");
        let default = Dynamic8BitRule::Nearest.encode(value);
        assert_eq!(default, code(&case["default"]), "{value:e}");
        checked += 1;
    }
    assert_eq!(checked, 183);
}

#[test]
fn codebook_codes_are_those_of_the_tools() {
    let books = [
        ("nf4", Codebook::Nf4),
        ("fp4", Codebook::BnbFp4),
        ("w4a8", Codebook::W4A8),
    ];
    let mut checked = 0;
    for (name, book) in books {
        for case in vectors()["codebooks"][name].as_array().unwrap() {
            let value = float(&case[0]);
            for backend in Backend::available() {
                let rule = CodeRule::Nearest { book, factor: 1.0 };
                let found = encode(backend, value, rule);
                assert_eq!(found, code(&case[1]), "{name} {value:e} {}", backend.name);
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 72 + 72 + 84);
}
