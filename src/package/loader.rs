//! The loader that serving systems use, run on a package: MLflow, in the Python that the user names.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::self_test::{Answers, Passed, SelfTest};
use super::{CHECKPOINTS, runtime};
use crate::config::Environment;
use crate::error::{Context, Error, Result};

const SCRIPT: &str = include_str!("loader_check.py");
/// Looks for the modules that a package's loader imports, and imports none of them: 0.1 s instead of many.
const PROBE: &str = "import importlib.util as u; print(*[m for m in \
    ('mlflow', 'torch', 'numpy', 'pandas', 'PIL', 'yaml', 'tokenizers') if not u.find_spec(m)], sep=', ')";
const PROBE_TIME: Duration = Duration::from_secs(60);
/// Of a whole run: importing torch and MLflow, reading the weights, some images.
const TIME: Duration = Duration::from_secs(1800);
const POLL: Duration = Duration::from_millis(20);
/// Lines of what the program said that an error repeats.
const REPEATED: usize = 8;
/// It tells nobody that it is used, and unpickles nothing.
const ADDED: [(&str, &str); 3] =
    [("MLFLOW_DISABLE_TELEMETRY", "true"), ("DO_NOT_TRACK", "true"), ("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")];
/// Variables that the loader does not get: it needs no store and no server.
const KEPT_BACK: [&str; 6] = ["AWS_", "AZURE_", "AZURITE_", "GOOGLE_", "MLFLOW_", "MEDTUNE_"];

/// A Python that has MLflow.
#[derive(Debug, Clone)]
pub struct PythonLoader {
    program: PathBuf,
    environment: Environment,
}

/// What the loader answered, and its versions.
#[derive(Deserialize)]
struct Answered {
    loader: String,
    answers: Answers,
}

impl PythonLoader {
    /// The Python `program`, a path or a name on the `PATH` of `environment`, after a look at whether it has what a package's loader imports.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) naming the program, if it cannot be started or lacks modules.
    pub fn find(program: &Path, environment: &Environment) -> Result<PythonLoader> {
        let shown = program.display();
        let program = if program.components().count() > 1 {
            // it is started in another folder
            std::path::absolute(program).map_err(|e| Error::io("find", program, e))?
        } else {
            program.to_owned()
        };
        let kept_back = |name: &str| KEPT_BACK.iter().any(|prefix| name.starts_with(prefix));
        let environment = environment.iter().filter(|(name, _)| !kept_back(name));
        let environment = environment.map(|(name, value)| (name.clone(), value.clone())).collect();
        let loader = PythonLoader { program, environment };
        let scratch = tempfile::tempdir().map_err(|e| Error::io("create", std::env::temp_dir(), e))?;
        let (status, said) =
            loader.run(scratch.path(), &["-c", PROBE], PROBE_TIME).map_err(|e| e.with_kind(crate::ErrorKind::Usage))?;
        let missing = said.trim();
        if status.success() && missing.is_empty() {
            return Ok(loader);
        }
        let why = if status.success() {
            format!("it lacks {missing}")
        } else {
            format!("it ended with {status}: {}", last(&said))
        };
        Err(Error::usage(format!(
            "Python '{shown}' cannot load packages: {why}; install them with its pip install -r PACKAGE/requirements.txt, or leave --python and \
             MEDTUNE_PYTHON out"
        )))
    }

    /// Loads the package in `folder` with MLflow and asks it what its self-test `test` asks. `None` when its Python is not that of this program: code
    /// that came from elsewhere is not run.
    ///
    /// # Errors
    /// [`Package`](crate::ErrorKind::Package) with the end of what Python said, if the package cannot be loaded or does not answer, and that of
    /// [`SelfTest::compare`].
    pub fn check(&self, folder: &Path, test: &SelfTest) -> Result<Option<Passed>> {
        if !has_own_runtime(folder)? {
            tracing::warn!(
                "self-test: MLflow was not asked, the Python in the package is not what this medtune writes, or has compiled files beside it"
            );
            return Ok(None);
        }
        let folder = std::path::absolute(folder).map_err(|e| Error::io("find", folder, e))?;
        let scratch = tempfile::tempdir().map_err(|e| Error::io("create", std::env::temp_dir(), e))?;
        let (script, answers) = (scratch.path().join("loader_check.py"), scratch.path().join("answers.json"));
        fs::write(&script, SCRIPT).map_err(|e| Error::io("write", &script, e))?;
        let arguments = [script.as_os_str(), folder.as_os_str(), answers.as_os_str()];
        let (status, said) = self.run(scratch.path(), &arguments, TIME)?;
        if !status.success() {
            return Err(Error::package(format!(
                "the package cannot be used by MLflow in '{}', which ended with {status}: {}",
                self.program.display(),
                last(&said)
            )));
        }
        let bytes = fs::read(&answers).map_err(|e| Error::io("read", &answers, e))?;
        let answered = serde_json::from_slice(&bytes).map_err(|e| Error::package("no answers").with_source(e));
        let Answered { loader, answers } = answered.context(|| format!("MLflow in '{}'", self.program.display()))?;
        let difference = test.compare(&answers).context(|| format!("self-test by {loader}"))?;
        Ok(Some(Passed { by: loader, difference }))
    }

    /// Runs Python in `folder`; what it said on both outputs, together.
    fn run<A: AsRef<std::ffi::OsStr>>(
        &self,
        folder: &Path,
        arguments: &[A],
        time: Duration,
    ) -> Result<(ExitStatus, String)> {
        let log = folder.join("output.txt");
        let open = || File::create(&log).and_then(|file| Ok((file.try_clone()?, file)));
        let (out, err) = open().map_err(|e| Error::io("write", &log, e))?;
        let mut command = Command::new(&self.program);
        // -B: nothing is written beside the modules, which may lie in the package
        command.arg("-B").args(arguments).current_dir(folder).env_clear().envs(&self.environment).envs(ADDED);
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let start = || Error::package(format!("cannot start Python '{}'", self.program.display()));
        let child = command.spawn().map_err(|e| start().with_source(e))?;
        let status = wait(child, time).context(|| format!("Python '{}'", self.program.display()))?;
        let said = fs::read(&log).map_err(|e| Error::io("read", &log, e))?;
        Ok((status, String::from_utf8_lossy(&said).into_owned()))
    }
}

/// Waits for a process; one that takes longer than `time` is ended.
fn wait(mut child: Child, time: Duration) -> Result<ExitStatus> {
    let begun = Instant::now();
    loop {
        let ended = child.try_wait().map_err(|e| Error::internal("cannot wait for a process").with_source(e))?;
        if let Some(status) = ended {
            return Ok(status);
        }
        if begun.elapsed() > time {
            // it may have ended in the meantime, which is as good
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::package(format!("no answer within {} s", time.as_secs())));
        }
        std::thread::sleep(POLL);
    }
}

/// The last lines of a text, as one.
fn last(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(REPEATED)..].join(" | ")
}

/// Whether MLflow would run, of what is in `folder`, the Python that this program writes and nothing else. Compiled modules count as something else:
/// Python prefers them to the text.
fn has_own_runtime(folder: &Path) -> Result<bool> {
    #[derive(Deserialize)]
    struct MlModel {
        flavors: Flavors,
    }
    #[derive(Deserialize)]
    struct Flavors {
        python_function: Flavor,
    }
    #[derive(Deserialize)]
    struct Flavor {
        code: String,
        data: String,
        loader_module: String,
    }
    let module = runtime::module_name();
    let path = folder.join("MLmodel");
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let parsed = serde_yaml_ng::from_str(&text).map_err(|e| Error::package("no MLmodel").with_source(e));
    let MlModel { flavors: Flavors { python_function: flavor } } =
        parsed.context(|| format!("'{}'", path.display()))?;
    if (flavor.code.as_str(), flavor.data.as_str()) != ("code", CHECKPOINTS) || flavor.loader_module != module {
        return Ok(false);
    }
    let code = folder.join("code");
    if names(&code)? != [module.as_str()] || names(&code.join(&module))? != runtime::FILES.map(|(name, _)| name) {
        return Ok(false);
    }
    for (name, text) in runtime::FILES {
        let path = code.join(&module).join(name);
        if fs::read(&path).map_err(|e| Error::io("read", &path, e))? != text.as_bytes() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let list =
        fs::read_dir(folder).and_then(|list| list.map(|e| Ok(e?.file_name())).collect::<std::io::Result<Vec<_>>>());
    let mut names: Vec<String> = list
        .map_err(|e| Error::io("list", folder, e))?
        .into_iter()
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_ended() {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let error = wait(child, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("no answer within"), "{error}");
    }

    #[test]
    fn a_program_that_is_no_python_is_named() {
        let environment: Environment = [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into();
        for program in ["/nonexistent/python", "false"] {
            let error = PythonLoader::find(Path::new(program), &environment).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Usage);
            assert!(error.to_string().contains(program), "{error}");
        }
    }
}
