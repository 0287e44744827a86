use super::*;

fn job(yaml: &str) -> Result<Job> {
    let document = serde_yaml_ng::from_str(yaml).expect("the test's YAML parses");
    Job::build(document, &[], &Environment::new(), ("file".to_owned(), PathBuf::from("/jobs")))
}

fn message(yaml: &str) -> String {
    let error = job(yaml).expect_err("the job must be refused");
    assert_eq!(error.kind(), crate::ErrorKind::Config);
    error.to_string()
}

const EMBED: &str = "version: 1\nkind: Embed\ninputs: {image_tsv: a.tsv, mlflow_model_path: 'model:m@2'}\n";

#[test]
fn a_step_gets_defaults_and_names() {
    let job = job(EMBED).unwrap();
    assert_eq!((job.name.as_str(), job.kind()), ("file", Kind::Embed));
    let steps = job.steps();
    assert_eq!(steps[0].0, "embed");
    assert_eq!(job.output_name("embed", steps[0].1, "embeddings"), "file-embeddings");
    assert_eq!(steps[0].1.inputs["image_tsv"], InputSource::External("a.tsv".to_owned()));
}

#[test]
fn mistakes_are_named_with_the_nearest_right_name() {
    assert!(message("version: 1\nkind: Embd").contains("did you mean 'Embed'?"));
    assert!(message("version: 2\nkind: Pipeline\nsteps: {}").contains("version: 2"));
    assert!(message(&format!("{EMBED}paramters: {{}}")).contains("did you mean 'parameters'?"));
    assert!(message(&format!("{EMBED}parameters: {{bach_size: 3}}")).contains("did you mean 'batch_size'?"));
    assert!(message(&format!("{EMBED}parameters: {{batch_size: 0}}")).contains("parameters.batch_size"));
    assert!(message("version: 1\nkind: Embed\ninputs: {image_tvs: a}").contains("did you mean 'image_tsv'?"));
    assert!(message("version: 1\nkind: Embed\ninputs: {image_tsv: a}").contains("inputs.mlflow_model_path: missing"));
    let split =
        "version: 1\nkind: Prepare\ninputs: {image_folder: a, text_constants: b}\nparameters: {split: {train: 0.9}}";
    assert!(message(split).contains("parameters.split"));
}

const PIPE: &str = "version: 1\nkind: Pipeline\nsteps:\n  b:\n    kind: Embed\n    inputs: {image_tsv: '${{ steps.a.outputs.OUT }}', mlflow_model_path: m}\n  a:\n    kind: Prepare\n    inputs: {image_folder: i, text_constants: t}\n";

#[test]
fn pipelines_are_wired_and_ordered() {
    let pipeline = job(&PIPE.replace("OUT", "train_image_tsv")).unwrap();
    let Work::Pipeline { steps, .. } = &pipeline.work else { panic!("a pipeline") };
    assert_eq!(order(steps).unwrap(), vec![1, 0]);
    assert_eq!(pipeline.output_name("a", &steps[1].1, "label_file"), "file-a-label_file");
    assert!(message(&PIPE.replace("OUT", "trainimage_tsv")).contains("did you mean 'train_image_tsv'?"));
    assert!(message(&PIPE.replace("steps.a.", "steps.c.")).contains("no step 'c'"));
    let own = PIPE
        .replace("image_folder: i", "image_folder: '${{ steps.b.outputs.embeddings }}'")
        .replace("OUT", "train_image_tsv");
    assert!(message(&own).contains("wait for one another: b, a"));
    assert!(
        message(
            &PIPE
                .replace("mlflow_model_path: m", "mlflow_model_path: '${{ steps.a.outputs.label_file }}'")
                .replace("OUT", "train_image_tsv")
        )
        .contains("not what this input takes")
    );
}

const MODELS: &str = "version: 1
kind: Pipeline
MLFLOW
steps:
  tune:
    kind: Finetune
    inputs: {mlflow_model_path: 'model:m@2', image_tsv: a, text_tsv: b, eval_image_tsv: c, eval_text_tsv: d, label_file: e, conf_files: f}
  plain:
    kind: Assemble
    inputs: {mlflow_model_path: '${{ steps.tune.outputs.mlflow_model_folder }}', label_file: e}
  judge:
    kind: Evaluate
    inputs: {zero_shot_mlflow_model: '${{ steps.plain.outputs.classification_mlflow_model }}', test_embeddings: g, test_text_tsv: d, label_file: e}
";

#[test]
fn final_models_are_those_that_no_model_is_made_from() {
    let with = |mlflow: &str| MODELS.replace("MLFLOW", mlflow);
    let models = |yaml: &str| super::super::mlflow::final_models(&job(yaml).unwrap());
    // what is only evaluated counts
    let last = ("plain".to_owned(), "classification_mlflow_model".to_owned());
    assert_eq!(models(&with("")), std::slice::from_ref(&last));
    let two = with("").replace("'${{ steps.tune.outputs.mlflow_model_folder }}'", "'model:m@2'");
    assert_eq!(models(&two), [("tune".to_owned(), "mlflow_model_folder".to_owned()), last]);
    assert!(models(EMBED).is_empty());
    // what is released in the place of what was evaluated
    let release = format!(
        "{}  release:\n    kind: Assemble\n    inputs: {{mlflow_model_path: '${{{{ steps.tune.outputs.mlflow_model_folder }}}}', \
         label_file: e, report: '${{{{ steps.judge.outputs.report }}}}'}}\n",
        with("")
    );
    assert_eq!(models(&release), [("release".to_owned(), "classification_mlflow_model".to_owned())]);

    let section = "mlflow: {tracking_uri: 'http://h', registered_model: one, alias: best}";
    assert_eq!(job(&with(section)).unwrap().mlflow.unwrap().alias.as_deref(), Some("best"));
    let text = message(&two.replace("steps:\n", &format!("{section}\nsteps:\n")));
    assert!(text.contains("tune.mlflow_model_folder, plain.classification_mlflow_model"), "{text}");
    assert!(message(&format!("{EMBED}{section}")).contains("mlflow.registered_model: this job makes no model"));
}

#[test]
fn the_mlflow_section_is_checked_with_the_job() {
    let with = |section: &str| format!("{EMBED}mlflow: {section}");
    assert!(message(&with("{tracking_url: 'http://h'}")).contains("did you mean 'tracking_uri'?"));
    assert!(message(&with("{tracking_uri: 'http://h', source: copy}")).contains("mlflow.source"));
    assert!(message(&with("{tracking_uri: 'http://a:b@h'}")).contains("MLFLOW_TRACKING_TOKEN"));
    assert!(message(&with("{}")).contains("tracking_uri"));
    assert!(job(&with("{tracking_uri: 'http://h', tags: {team: x}}")).is_ok());
}
