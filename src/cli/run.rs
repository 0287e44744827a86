//! The verbs that compute.

use super::place::Place;
use super::{PredictArguments, RunArguments, output, store};
use crate::config::Environment;
use crate::config::compute::Compute;
use crate::config::kinds::Kind;
use crate::config::mlflow::Credentials;
use crate::distributed::{self, Ended, Membership, World};
use crate::error::{Error, Result};
use crate::infer::device;
use crate::jobs::predict::{self, Prediction};
use crate::jobs::{self, RunOptions};
use crate::package::read_package;
use crate::registry::{AssetKind, Reference, get, open_local, series_folders};
use crate::telemetry;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The variables that decide how idle threads of libtorch's OpenMP wait; its libraries read them when they are loaded.
const WAIT_POLICY: [&str; 2] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];

/// Starts this program once more with idle threads that sleep instead of spinning, unless the user has chosen. Spinning
/// threads slow a job several times as soon as anything else runs on its cores: the image loader, another job, a container's
/// CPU limit. The process stays the same one: its id, its arguments, its files.
pub(super) fn let_idle_threads_sleep(environment: &Environment) {
    use std::os::unix::process::CommandExt;
    if WAIT_POLICY.iter().any(|name| environment.contains_key(*name)) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let arguments = std::env::args_os();
    let error = std::process::Command::new(program).args(arguments.skip(1)).env(WAIT_POLICY[0], "passive").exec();
    tracing::warn!(%error, "cannot start again with sleeping idle threads; going on without");
}

pub(super) fn run(arguments: RunArguments, place: &Place, environment: &Environment) -> Result<()> {
    let mut job = place.load_job(&arguments.job, &arguments.set, environment)?;
    let store = place.open_for(&job, arguments.dry_run)?;
    // asked early, where packages are made
    let packages = job.steps().iter().any(|(_, step)| matches!(step.kind, Kind::Finetune | Kind::Assemble));
    let python = || match packages {
        true => arguments.python.find(environment, arguments.work_dir.as_deref()),
        false => Ok(None),
    };
    if arguments.dry_run {
        python()?;
        let plans = jobs::plan(&store, &job)?;
        if arguments.json {
            return output::json(&plans);
        }
        let several = plans.len() > 1;
        let estimates: Vec<String> = plans
            .iter()
            .filter_map(|p| p.estimate.as_ref().map(|e| (p, e.lines())))
            .flat_map(|(p, lines)| {
                let heading = if several { vec![String::new(), format!("{}:", p.step)] } else { vec![String::new()] };
                heading.into_iter().chain(lines)
            })
            .collect();
        let rows: Vec<Vec<String>> = plans
            .into_iter()
            .map(|p| vec![p.step, p.kind, p.action, p.outputs.into_values().collect::<Vec<_>>().join(", ")])
            .collect();
        output::line(&output::table(&["STEP", "KIND", "ACTION", "OUTPUTS"], &rows))?;
        return if estimates.is_empty() { Ok(()) } else { output::line(&estimates.join("\n")) };
    }
    // half-set credentials matter to those jobs only that show them to a server
    let credentials = job.mlflow.as_ref().map(|_| Credentials::from_environment(environment)).transpose()?;
    let credentials = credentials.unwrap_or_default();
    let timeout = Duration::from_secs(job.compute.peer_timeout_seconds);
    let mut membership = Membership::from_environment(environment, &job.compute)?;
    let here = device::processes(&job.compute);
    if here > 1 && membership.as_ref().is_none_or(|m| m.pod) {
        return launch(here, membership.as_ref(), timeout);
    }
    distributed::follow_parent(membership.as_ref(), environment.get(distributed::PARENT).map(String::as_str));
    let mut rank_log = environment.get(distributed::LOG).map(PathBuf::from);
    let mut own_log = None;
    if let Some(membership) = &mut membership {
        device::share(&mut job.compute, membership)?;
        if membership.rank > 0 && rank_log.is_none() {
            // nobody else keeps what this process says for the run record
            let log = tempfile::NamedTempFile::new();
            let log = log.map_err(|e| Error::storage("cannot make a file for the log").with_source(e))?;
            telemetry::copy_to(log.path())?;
            rank_log = Some(log.path().to_owned());
            own_log = Some(log);
        }
    }
    let python = if membership.as_ref().is_none_or(|membership| membership.rank == 0) { python()? } else { None };
    let options =
        RunOptions { rerun: arguments.rerun, work_folder: arguments.work_dir.clone(), credentials, rank_log, python };
    let world = membership.as_ref().map_or_else(|| Ok(World::alone()), World::join)?;
    if !world.is_first() {
        let followed = jobs::follow(&store, &job, &options, &world);
        drop(own_log);
        return followed;
    }
    let (record, outcome) = jobs::run(&store, &job, &options, &world);
    // a store that is away must not hide how the run ended
    let series = series_folders(&store, &record.run_id).unwrap_or_default();
    store::print(&record, series, arguments.json)?;
    outcome
}

/// Runs the job as several processes of this program on this machine, alone or in a pod's place.
fn launch(processes: usize, pod: Option<&Membership>, timeout: Duration) -> Result<()> {
    match distributed::supervise(processes, pod, timeout)? {
        Ended::Well => Ok(()),
        // the user was told already
        Ended::Said(code) => std::process::exit(code.into()),
    }
}

pub(super) fn predict(arguments: PredictArguments, place: &Place) -> Result<()> {
    let folder = package_folder(&arguments.model, place)?;
    let package = read_package(&folder)?;
    let compute = Compute { device: arguments.device, ..Compute::default() };
    let answers = predict::predict(&package, &arguments.images, &arguments.texts, &compute)?;
    if arguments.json {
        return output::json(&answers);
    }
    let top = if arguments.top == 0 { usize::MAX } else { arguments.top };
    let mut rows = Vec::new();
    for prediction in answers.predictions {
        rows.push(match prediction {
            Prediction::Classes { image, labels } => {
                let shown: Vec<String> =
                    labels.iter().take(top).map(|l| format!("{} {:.4}", l.label, l.score)).collect();
                vec![image, shown.join(", ")]
            }
            Prediction::Image { image, image_features } => vec![image, vector(&image_features)],
            Prediction::Text { text, text_features } => vec![format!("\"{text}\""), vector(&text_features)],
        });
    }
    output::line(&output::table(&["INPUT", "ANSWER"], &rows))
}

fn vector(values: &[f32]) -> String {
    let shown: Vec<String> = values.iter().take(4).map(|v| format!("{v:.4}")).collect();
    format!("[{}, ...] ({} values; --json prints all)", shown.join(", "), values.len())
}

/// A folder as it is, or the folder of a version in the store.
fn package_folder(text: &str, place: &Place) -> Result<PathBuf> {
    if Path::new(text).is_dir() {
        return Ok(PathBuf::from(text));
    }
    if !text.starts_with("model:") && !text.contains('@') {
        return Err(Error::not_found(format!(
            "'{text}' is no package folder; write model:NAME@VERSION for one in the store"
        )));
    }
    let store = place.open_existing()?;
    let version = get(&store, &Reference::parse(text, Some(AssetKind::Model))?)?;
    open_local(&store, &version)
}
