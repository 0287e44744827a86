//! The `medtune` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    medtune::cli::main()
}
