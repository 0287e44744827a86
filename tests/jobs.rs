//! The job files in jobs/ are valid, fit together, and say of their kind what the documentation says.

use medtune::config::job::{InputSource, Job, Step};
use medtune::config::kinds::Kind;
use medtune::config::schema::job_schema;
use medtune::config::{Environment, read_yaml, training};
use regex::Regex;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The YAML files directly in `folder`.
fn yaml_files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).expect("the folder is there");
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    files
}

fn load(path: &Path) -> Job {
    let names = ["IMAGES", "TEXT_CONSTANTS", "BASE_MODEL", "GASTROVISION_FOLDER"];
    let environment: Environment = names.map(|n| (n.to_owned(), n.to_lowercase())).into_iter().collect();
    Job::load(path, &[], &environment).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn output_names(job: &Job) -> BTreeSet<String> {
    let of = |(name, step): (String, &Step)| -> Vec<String> {
        step.kind.outputs().iter().map(|p| job.output_name(&name, step, p.name)).collect()
    };
    job.steps().into_iter().flat_map(of).collect()
}

#[test]
fn every_shipped_job_is_valid_and_every_kind_is_there() {
    let kinds: BTreeSet<Kind> = yaml_files("jobs").iter().map(|p| load(p).kind()).collect();
    assert_eq!(kinds, Kind::ALL.into_iter().collect());
}

#[test]
fn files_that_jobs_name_exist_and_versions_come_from_the_quickstart() {
    let mut made = output_names(&load(&root().join("jobs/quickstart.yaml")));
    made.insert("digits-base".to_owned());
    for path in yaml_files("jobs") {
        let job = load(&path);
        for (step_name, step) in job.steps() {
            for (input, source) in &step.inputs {
                let InputSource::External(text) = source else { continue };
                let place = format!("{}: {step_name}.{input}: {text}", path.display());
                let is_model = text.starts_with("model:");
                if is_model || text.starts_with("data:") {
                    let name = text.split_once(':').and_then(|(_, r)| r.strip_suffix("@latest")).expect("a reference");
                    let own = ["base_model", "medimageinsight"].contains(&name);
                    assert!(own || made.contains(name), "{place}: the quickstart makes no such version");
                } else if text.ends_with(".yaml") {
                    assert!(job.folder.join(text).is_file(), "{place}: there is no such file");
                }
            }
        }
    }
}

#[test]
fn single_jobs_do_not_take_the_names_of_the_quickstart() {
    let taken = output_names(&load(&root().join("jobs/quickstart.yaml")));
    for path in yaml_files("jobs").iter().filter(|p| !p.ends_with("quickstart.yaml")) {
        let clash: Vec<String> = output_names(&load(path)).intersection(&taken).cloned().collect();
        assert!(clash.is_empty(), "{}: {clash:?}", path.display());
    }
}

#[test]
fn shipped_training_configurations_are_accepted_without_a_warning() {
    for path in ["jobs/digits/train.yaml", "jobs/gastrovision/train.yaml"] {
        let parsed = training::parse(&read_yaml(&root().join(path)).expect("YAML"), path).expect("accepted");
        assert!(parsed.warnings.is_empty(), "{path}: {:?}", parsed.warnings);
        assert!(parsed.config.eval_zero_shot && parsed.config.eval_knn.is_some(), "{path}");
        for (key, _) in &parsed.config.weight_decay_patterns {
            assert!(Regex::new(key).is_ok(), "{path}: {key}");
        }
    }
}

/// The text of docs/jobs.md under the heading of a kind.
fn section(text: &str, kind: Kind) -> String {
    let start = text.find(&format!("\n### {kind}\n")).unwrap_or_else(|| panic!("docs/jobs.md has no '### {kind}'"));
    let rest = &text[start + 5..];
    rest[..rest.find("\n##").unwrap_or(rest.len())].to_owned()
}

/// The names in backticks in the first cells of the table whose heading begins with `heading`.
fn first_cells(section: &str, heading: &str) -> BTreeSet<String> {
    let rows = section.lines().skip_while(|l| !l.starts_with(&format!("| {heading} |"))).skip(2);
    let cells = rows.take_while(|l| l.starts_with('|')).filter_map(|l| l.split('|').nth(1));
    cells.flat_map(|c| c.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn the_tables_of_kinds_name_what_the_program_knows() {
    let text = fs::read_to_string(root().join("docs/jobs.md")).expect("docs/jobs.md is there");
    for kind in Kind::ALL.into_iter().filter(|k| *k != Kind::Pipeline) {
        let section = section(&text, kind);
        let inputs: BTreeSet<String> = kind.inputs().iter().map(|p| p.name.to_owned()).collect();
        assert_eq!(first_cells(&section, "input"), inputs, "inputs of {kind}");
        let outputs: BTreeSet<String> = kind.outputs().iter().map(|p| p.name.to_owned()).collect();
        assert_eq!(first_cells(&section, "output"), outputs, "outputs of {kind}");
        let schema = job_schema(Some(kind));
        let parameters = &schema["$defs"][format!("{kind}Parameters")]["properties"];
        let parameters: BTreeSet<String> = parameters.as_object().expect("parameters").keys().cloned().collect();
        assert_eq!(first_cells(&section, "parameter"), parameters, "parameters of {kind}");
    }
}

/// What docs/training.md says in its second column of a key with this rule.
fn rule_in_words(rule: &str) -> String {
    match rule {
        "Honoured" => return "honoured".to_owned(),
        "NoEffect" => return "no effect".to_owned(),
        "Model" => return "as in the package".to_owned(),
        "EMPTY" => return "only empty".to_owned(),
        _ => {}
    }
    let mut words: Vec<String> = Vec::new();
    for value in rule.split('"').skip(1).step_by(2) {
        let word = if ["", "null", "[]"].contains(&value) { "empty".to_owned() } else { format!("`{value}`") };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    format!("only {}", words.join(", "))
}

#[test]
fn the_table_of_training_keys_equals_the_rules() {
    let source = fs::read_to_string(root().join("src/config/training_rules.rs")).expect("the rules are there");
    let rules = source.split_once("RULES: &[").and_then(|(_, r)| r.split_once("\n];")).expect("the list of rules").0;
    let entry =
        Regex::new(r#"\(\s*"([^"]+)",\s*(Honoured|NoEffect|Model|EMPTY|Only\(&\[[^\]]*\]\)),"#).expect("a pattern");
    let actual: BTreeSet<(String, String)> =
        entry.captures_iter(rules).map(|c| (c[1].to_owned(), rule_in_words(&c[2]))).collect();
    // every entry begins with its key on the line of the parenthesis or the next, so none is left out
    let keys = Regex::new(r#"(?m)^    \(\s*""#).expect("a pattern").find_iter(rules).count();
    assert_eq!(actual.len(), keys, "entries of the rules that this test cannot read");
    let text = fs::read_to_string(root().join("docs/training.md")).expect("docs/training.md is there");
    let documented: BTreeSet<(String, String)> = text
        .lines()
        .filter(|l| l.starts_with("| `"))
        .filter_map(|l| {
            let mut cells = l.trim_matches('|').split('|').map(str::trim);
            Some((cells.next()?.trim_matches('`').to_owned(), cells.next()?.to_owned()))
        })
        .collect();
    let missing: Vec<_> = actual.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&actual).collect();
    assert!(missing.is_empty() && stale.is_empty(), "docs/training.md lacks {missing:?}, and has in excess {stale:?}");
}
