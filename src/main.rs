//! The `medtune` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    match medtune::cli::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.kind().exit_code())
        }
    }
}
