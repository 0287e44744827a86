//! The command line: verbs and job files; no hyper-parameter is a flag.

mod output;
mod place;
mod python;
mod register;
#[cfg(feature = "torch")]
mod run;
mod store;

use crate::config::Environment;
use crate::config::kinds::Kind;
use crate::error::{Error, Result};
use crate::telemetry::LogFormat;
use clap::{Parser, Subcommand, ValueEnum};
use place::Place;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// The command line's arguments.
#[derive(Debug, Parser)]
#[command(name = "medtune", version, about, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 done; 2 wrong command line; 10-19 the job or its data is at fault, 20-29 trying again may help; see docs/exit-codes.md"
)]
pub struct Cli {
    /// The store: a folder, or a URI (s3://, az://, abfss://, gs://, file://). Before the job's own `store:`.
    #[arg(long, global = true, env = "MEDTUNE_STORE", value_name = "URI")]
    store: Option<String>,
    /// How log lines on standard error look.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, env = "MEDTUNE_LOG_FORMAT")]
    log_format: Format,
    /// Which log lines are shown: error, warn, info, debug, or a filter.
    #[arg(long, global = true, default_value = "info", env = "MEDTUNE_LOG", value_name = "LEVEL")]
    log_level: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a job file.
    Run(RunArguments),
    /// Check a job file without running it or looking at its inputs.
    Validate {
        /// The job file: a path or URI.
        job: String,
        /// Replace a value, e.g. --set parameters.seed=7.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// Print the resolved job as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of job files.
    Schema {
        /// One kind; all when left out.
        kind: Option<String>,
    },
    /// Model packages.
    #[command(subcommand)]
    Model(store::ModelVerb),
    /// Datasets.
    #[command(subcommand)]
    Data(store::DataVerb),
    /// Run records.
    #[command(subcommand)]
    Runs(store::RunsVerb),
    /// Remove files that no version names and nothing works on.
    Gc(store::GcArguments),
    /// Ask a model package about images and texts.
    Predict(PredictArguments),
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// The job file: a path or URI.
    job: String,
    /// Replace a value, e.g. --set parameters.seed=7 or --set steps.embed.parameters.batch_size=8.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Check everything that can be checked and say what would be run.
    #[arg(long)]
    dry_run: bool,
    /// Run every step again, also those that have not changed.
    #[arg(long)]
    rerun: bool,
    /// Print the run record (or the plan) as JSON.
    #[arg(long)]
    json: bool,
    /// Where scratch files go.
    #[arg(long, env = "MEDTUNE_WORK_DIR", value_name = "DIR")]
    work_dir: Option<PathBuf>,
    #[command(flatten)]
    python: python::PythonArgument,
}

#[derive(Debug, clap::Args)]
struct PredictArguments {
    /// A package folder, or model:NAME@VERSION.
    model: String,
    /// Image files, or folders of them.
    images: Vec<PathBuf>,
    /// A text to embed (embedding models only).
    #[arg(long = "text")]
    texts: Vec<String>,
    /// Labels to print for each image; 0 prints all.
    #[arg(long, default_value_t = 3)]
    top: usize,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

/// Parses the process's arguments, starts logging, does what they say, and reports what went wrong: one line on standard
/// error, as JSON where log lines are JSON. The exit code is that of the error's kind.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = match cli.log_format {
        Format::Text => LogFormat::Text,
        Format::Json => LogFormat::Json,
    };
    let started = crate::telemetry::init(format, &cli.log_level);
    // a variable that is not text cannot be used in a job file, but is no fault of this program's user either
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let environment: Environment = std::env::vars_os().filter_map(text).collect();
    #[cfg(feature = "torch")]
    if cli.verb.computes() {
        run::let_idle_threads_sleep(&environment);
    }
    // after the line above, which starts the program anew: the mask would be inherited
    let started = started.and_then(|()| crate::telemetry::stop::keep_from_other_threads());
    let Err(error) = started.and_then(|()| cli.run(&environment)) else { return ExitCode::SUCCESS };
    let (kind, code) = (error.kind(), error.kind().exit_code());
    match format {
        LogFormat::Text => eprintln!("error: {error}"),
        // not through the log, whose level could hide it
        LogFormat::Json => {
            let fields = serde_json::json!({
                "timestamp": crate::registry::now(), "level": "ERROR", "message": error.to_string(),
                "kind": kind.name(), "exit_code": code, "retryable": kind.retryable(),
            });
            eprintln!("{fields}");
        }
    }
    ExitCode::from(code)
}

#[cfg(feature = "torch")]
impl Verb {
    /// Whether tensors are computed with.
    fn computes(&self) -> bool {
        match self {
            Verb::Run(arguments) => !arguments.dry_run,
            Verb::Predict(_) => true,
            Verb::Model(verb) => verb.computes(),
            _ => false,
        }
    }
}

impl Cli {
    fn run(self, environment: &Environment) -> Result<()> {
        let store = &Place::new(self.store, environment);
        match self.verb {
            Verb::Validate { job, set, json } => validate(&store.load_job(&job, &set, environment)?, json),
            Verb::Schema { kind } => schema(kind.as_deref()),
            Verb::Model(verb) => verb.run(store, environment),
            Verb::Data(verb) => verb.run(store),
            Verb::Runs(verb) => verb.run(store),
            Verb::Gc(arguments) => arguments.run(store),
            #[cfg(feature = "torch")]
            Verb::Run(arguments) => run::run(arguments, store, environment),
            #[cfg(feature = "torch")]
            Verb::Predict(arguments) => run::predict(arguments, store),
            #[cfg(not(feature = "torch"))]
            Verb::Run(_) | Verb::Predict(_) => Err(needs_torch()),
        }
    }
}

/// What a build without libtorch says of what it cannot do.
#[cfg(not(feature = "torch"))]
fn needs_torch() -> Error {
    Error::usage(
        "this medtune was built without libtorch and cannot compute; use the full build (cargo build --release)",
    )
}

fn validate(job: &crate::config::job::Job, json: bool) -> Result<()> {
    if json {
        return output::json(job);
    }
    let steps: Vec<String> = job.steps().into_iter().map(|(name, step)| format!("{name} ({})", step.kind)).collect();
    output::line(&format!("{} is a valid {} job: {}", job.name, job.kind(), steps.join(", ")))
}

fn schema(kind: Option<&str>) -> Result<()> {
    let kind = match kind {
        None => None,
        Some(name) => Some(Kind::ALL.into_iter().find(|k| k.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            let known: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
            Error::usage(format!("schema: unknown kind '{name}': {}", crate::config::did_you_mean(name, known)))
        })?),
    };
    output::json(&crate::config::schema::job_schema(kind))
}
