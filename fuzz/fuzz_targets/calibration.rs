#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| safequant_fuzz::harness::calibration(data));
