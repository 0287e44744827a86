//! The loader that serving systems use, run on a package: MLflow, in the Python that the user names.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use serde::Deserialize;

use super::self_test::{Answers, Asked, Passed, SelfTest};
use super::{CHECKPOINTS, runtime};
use crate::config::Environment;
use crate::error::{Context, Error, ErrorKind, Result};

const SCRIPT: &str = include_str!("loader_check.py");
/// Imports what a package's loader does; `tokenizers` is wanted by those packages only that embed texts.
const PROBE: &str = "import importlib.util as u, sys
missing = [m for m in ('mlflow', 'torch', 'numpy', 'pandas', 'PIL', 'yaml') if not u.find_spec(m)]
if missing: sys.exit('it lacks ' + ', '.join(missing))
import mlflow.pyfunc, torch, numpy, pandas, PIL.Image, yaml";
/// Importing torch and MLflow for the first time from a slow disk takes minutes.
const PROBE_TIME: Duration = Duration::from_secs(600);
/// Of a whole run: the imports, reading the weights, some images.
const TIME: Duration = Duration::from_secs(1800);
const POLL: Duration = Duration::from_millis(20);
/// Lines of what the program said that an error repeats.
const REPEATED: usize = 8;
/// What of the environment the program gets: what Python needs, and no credentials.
const PASSED_ON: [&str; 7] = ["PATH", "HOME", "TMPDIR", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "VIRTUAL_ENV"];
const PASSED_ON_PREFIXES: [&str; 6] = ["LC_", "PYTHON", "CONDA_", "OMP_", "MKL_", "OPENBLAS_"];
/// It computes on the CPU, as the self-test was made, and leaves a GPU to whoever has it; tells nobody that it is used; unpickles nothing.
const ADDED: [(&str, &str); 4] = [
    ("CUDA_VISIBLE_DEVICES", ""),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("DO_NOT_TRACK", "true"),
    ("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false"),
];

/// Why neither the loader in a package nor its ONNX models are tried.
const NOT_OURS: &str = "neither MLflow nor ONNX Runtime was asked: the Python in the package is not what this version of medtune writes; use the version that wrote it";

/// A Python that has MLflow.
#[derive(Debug, Clone)]
pub struct PythonLoader {
    program: PathBuf,
    /// Where scratch folders are made.
    work_folder: PathBuf,
    environment: Environment,
}

/// What the script wrote.
#[derive(Deserialize)]
struct Report {
    programs: Vec<Answered>,
    not_asked: Option<String>,
}

/// What a program answered, and its versions.
#[derive(Deserialize)]
struct Answered {
    name: String,
    answers: Answers,
}

impl PythonLoader {
    /// The Python `program`, a path or a name on the `PATH` of `environment`, after it has imported what a package's loader imports. Its scratch
    /// folders are made in `work_folder`, or in the system's temporary folder.
    ///
    /// # Errors
    /// [`Usage`](crate::ErrorKind::Usage) naming the program, if it is not there or lacks modules; those of making a scratch folder.
    pub fn find(program: &Path, environment: &Environment, work_folder: Option<&Path>) -> Result<PythonLoader> {
        let shown = program.display();
        let program = if program.components().count() > 1 {
            // it is started in another folder
            std::path::absolute(program).map_err(|e| Error::io("find", program, e))?
        } else {
            program.to_owned()
        };
        let passed_on =
            |name: &str| PASSED_ON.contains(&name) || PASSED_ON_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let environment = environment.iter().filter(|(name, _)| passed_on(name));
        let environment = environment.map(|(name, value)| (name.clone(), value.clone())).collect();
        let work_folder = work_folder.map_or_else(std::env::temp_dir, Path::to_owned);
        let loader = PythonLoader { program, work_folder, environment };
        let (status, said) = loader.run(loader.scratch()?.path(), &["-c", PROBE], PROBE_TIME)?;
        if status.success() {
            return Ok(loader);
        }
        Err(Error::usage(format!(
            "Python '{shown}' cannot load packages, it ended with {status}: {}; install what it lacks with its pip install -r PACKAGE/requirements.txt, or leave --python and \
             MEDTUNE_PYTHON out",
            last(&said)
        )))
    }

    fn scratch(&self) -> Result<tempfile::TempDir> {
        fs::create_dir_all(&self.work_folder)
            .and_then(|()| tempfile::tempdir_in(&self.work_folder))
            .map_err(|e| Error::io("create", &self.work_folder, e))
    }

    /// Loads the package in `folder` with MLflow and asks it what its self-test `test` asks; then its ONNX models, where this Python has ONNX Runtime.
    /// Nothing is asked when the package's Python is not that of this program: what came from elsewhere is not run, and what runs is not the
    /// package's file but what this program would have written there.
    ///
    /// # Errors
    /// [`Package`](crate::ErrorKind::Package) with the end of what Python said, if the package cannot be loaded or does not answer, and that of
    /// [`SelfTest::compare`]; [`Engine`](crate::ErrorKind::Engine) if Python was killed or took too long.
    pub fn check(&self, folder: &Path, test: &SelfTest) -> Result<Asked> {
        if !has_own_runtime(folder)? {
            return Ok(Asked { not_asked: Some(NOT_OURS.to_owned()), ..Asked::default() });
        }
        let folder = std::path::absolute(folder).map_err(|e| Error::io("find", folder, e))?;
        let scratch = self.scratch()?;
        let write = |name: &str, text: &str| {
            let path = scratch.path().join(name);
            fs::write(&path, text).map_err(|e| Error::io("write", &path, e))
        };
        // imported from here, so that nothing depends on what is in the package by then
        let module = runtime::module_name();
        let path = scratch.path().join(&module);
        fs::create_dir(&path).map_err(|e| Error::io("create", &path, e))?;
        for (name, text) in runtime::FILES {
            write(&format!("{module}/{name}"), text)?;
        }
        write("loader_check.py", SCRIPT)?;
        let (script, answers) = (scratch.path().join("loader_check.py"), scratch.path().join("answers.json"));
        let arguments = [script.as_os_str(), module.as_ref(), folder.as_os_str(), answers.as_os_str()];
        let (status, said) = self.run(scratch.path(), &arguments, TIME)?;
        if !status.success() {
            return Err(Error::package(format!(
                "the package cannot be used in Python '{}', which ended with {status}: {}",
                self.program.display(),
                last(&said)
            )));
        }
        let bytes = fs::read(&answers).map_err(|e| Error::io("read", &answers, e))?;
        let answered = serde_json::from_slice(&bytes).map_err(|e| Error::package("no answers").with_source(e));
        let Report { programs, not_asked } = answered.context(|| format!("Python '{}'", self.program.display()))?;
        let compare = |Answered { name, answers }: Answered| {
            let difference = test.compare(&answers).context(|| format!("self-test by {name}"))?;
            Ok(Passed { name, difference })
        };
        Ok(Asked { passed: programs.into_iter().map(compare).collect::<Result<_>>()?, not_asked })
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
        // SAFETY: both are system calls that a child may make before it becomes another program.
        unsafe { command.pre_exec(on_its_own) };
        let child = command.spawn().map_err(|e| {
            let missing = matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied);
            let kind = if missing { ErrorKind::Usage } else { ErrorKind::Engine };
            Error::new(kind, format!("cannot start Python '{}'", self.program.display())).with_source(e)
        })?;
        let status = wait(child, time).context(|| format!("Python '{}'", self.program.display()))?;
        if let Some(signal) = status.signal() {
            return Err(Error::engine(format!(
                "Python '{}' was killed by signal {signal}, perhaps for want of memory",
                self.program.display()
            )));
        }
        let said = fs::read(&log).map_err(|e| Error::io("read", &log, e))?;
        Ok((status, String::from_utf8_lossy(&said).into_owned()))
    }
}

/// In a child: it can be stopped, although this program's threads take no signals, and does not outlive this program.
fn on_its_own() -> std::io::Result<()> {
    SigSet::all().thread_unblock()?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    Ok(())
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
            return Err(Error::engine(format!("no answer within {} s", time.as_secs())));
        }
        std::thread::sleep(POLL);
    }
}

/// The last lines of a text, as one.
fn last(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(REPEATED)..].join(" | ")
}

/// Whether MLflow would run, of what is in `folder`, the Python that this program writes and nothing else. Compiled modules do not count: they are
/// not what is imported.
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
        code: Option<String>,
        data: Option<String>,
        loader_module: String,
    }
    let module = runtime::module_name();
    let path = folder.join("MLmodel");
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let parsed = serde_yaml_ng::from_str(&text).map_err(|e| Error::package("no MLmodel").with_source(e));
    let MlModel { flavors: Flavors { python_function: flavor } } =
        parsed.context(|| format!("'{}'", path.display()))?;
    let places = (flavor.code.as_deref(), flavor.data.as_deref());
    if places != (Some("code"), Some(CHECKPOINTS)) || flavor.loader_module != module {
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

/// What is in a folder, sorted, without what Python compiled there; nothing if there is no folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let list =
        fs::read_dir(folder).and_then(|list| list.map(|e| Ok(e?.file_name())).collect::<std::io::Result<Vec<_>>>());
    let mut names: Vec<String> = list
        .map_err(|e| Error::io("list", folder, e))?
        .into_iter()
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name != "__pycache__")
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
            let error = PythonLoader::find(Path::new(program), &environment, None).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Usage);
            assert!(error.to_string().contains(program), "{error}");
        }
    }
}
