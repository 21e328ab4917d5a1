//! The program `safequant`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(safequant_cli::main(std::env::args_os()).code())
}
