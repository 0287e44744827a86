//! The Python that packages are tried with.

use crate::config::Environment;
use crate::error::Result;
use crate::package::PythonLoader;
use std::ffi::OsString;
use std::path::Path;

#[derive(Debug, clap::Args)]
pub(super) struct PythonArgument {
    /// A Python with MLflow: it must load each package and answer its self-test, too, before the package is published.
    #[arg(long, env = "MEDTUNE_PYTHON", value_name = "PROGRAM")]
    python: Option<OsString>,
}

impl PythonArgument {
    /// That Python, after a look at whether it can load packages; its scratch files go into `work_folder`.
    pub(super) fn find(&self, environment: &Environment, work_folder: Option<&Path>) -> Result<Option<PythonLoader>> {
        // an empty variable is as good as none
        let given = self.python.as_ref().filter(|program| !program.is_empty());
        given.map(|program| PythonLoader::find(Path::new(program), environment, work_folder)).transpose()
    }
}
