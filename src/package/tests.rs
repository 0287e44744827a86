use serde_json::{Value, json};

use super::*;
use crate::package::{Answers, ModelCard, PackageSpec, SelfTest, write_package};

fn config(kind: Option<&str>) -> PackageConfig {
    let classifier = kind.map_or(Value::Null, |kind| {
        json!({
            "kind": kind, "labels": "classifier/labels.json", "text_template": "{}.",
            "class_embeddings": (kind == "zero-shot").then_some("classifier/class_embeddings.safetensors"),
            "adapter": (kind == "adapter").then_some("adapter/adapter.safetensors"),
        })
    });
    let config = json!({
        "format_version": 1,
        "task": if kind.is_some() { "classification" } else { "embeddings" },
        "weights": "vision_model/tiny.safetensors",
        "tokenizer": "language_model/clip_tokenizer_4.16.2/tokenizer.json",
        "pixels": {
            "image_standardization_jpeg_compression_ratio": 75, "image_standardization_image_size": 512,
            "image_size": [480, 480], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic",
        },
        "classifier": classifier,
        "provenance": {"run": "r1"},
    });
    PackageConfig::parse(&config.to_string()).unwrap()
}

fn checkpoints() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("config.yaml", "UNICL_MODEL: {}\n"),
        ("medtune.json", "an older one, to be ignored"),
        ("vision_model/tiny.safetensors", "weights"),
        ("language_model/clip_tokenizer_4.16.2/tokenizer.json", "{}"),
        ("classifier/labels.json", r#"["polyp", "a <b> | c"]"#),
        ("classifier/class_embeddings.safetensors", "vectors"),
        ("adapter/adapter.safetensors", "adapter"),
        ("adapter/config.json", "{}"),
    ] {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn self_test() -> SelfTest {
    let answers = Answers { scores: vec![vec![0.25, 0.75]], ..Answers::default() };
    SelfTest::new(&[("ramp".to_owned(), vec![1])], Vec::new(), answers).unwrap()
}

fn written(kind: Option<&str>) -> tempfile::TempDir {
    let source = checkpoints();
    let out = tempfile::tempdir().unwrap();
    let spec = PackageSpec {
        checkpoints: source.path(),
        config: config(kind),
        metadata: [("is_finetuned_model".to_owned(), json!(true)), ("näme".to_owned(), json!({"a": "☃ 😀"}))].into(),
        card: ModelCard { title: "tiny".into(), created: Some(time::OffsetDateTime::UNIX_EPOCH), ..Default::default() },
        example_image: b"\xff\xd8\xff".to_vec(),
    };
    write_package(&spec, &self_test(), out.path()).unwrap();
    out
}

#[test]
fn mlmodel_is_yaml_with_json_signatures() {
    for (kind, inputs, outputs) in [(None, 2, 3), (Some("zero-shot"), 1, 1), (Some("adapter"), 1, 1)] {
        let dir = written(kind);
        let text = fs::read_to_string(dir.path().join("MLmodel")).unwrap();
        let yaml: Value = serde_yaml_ng::from_str(&text).unwrap();
        let flavor = &yaml["flavors"]["python_function"];
        assert_eq!((&flavor["code"], &flavor["data"]), (&json!("code"), &json!("artifacts/checkpoints")));
        // the keys that MLflow lets whoever loads the package choose
        assert_eq!(flavor["config"], json!({"device": "auto", "precision": "f32"}));
        let module = flavor["loader_module"].as_str().unwrap();
        assert!(dir.path().join("code").join(module).join("__init__.py").is_file());
        let part =
            |name: &str| -> Vec<Value> { serde_json::from_str(yaml["signature"][name].as_str().unwrap()).unwrap() };
        assert_eq!((part("inputs").len(), part("outputs").len()), (inputs, outputs));
        assert!(part("outputs").iter().all(|o| o["type"] == "string"), "Azure refuses other types");
        assert!(part("params").iter().all(|p| p["type"] != "integer" && !p["default"].is_null()));
        assert_eq!(yaml["utc_time_created"], "1970-01-01 00:00:00.000000");
        assert_eq!(yaml["metadata"]["näme"]["a"], "☃ 😀");
        assert_eq!(yaml["metadata"]["is_finetuned_model"], true);
        let example: Value =
            serde_json::from_slice(&fs::read(dir.path().join("serving_input_example.json")).unwrap()).unwrap();
        assert_eq!(example["dataframe_split"]["data"][0][0], "/9j/");
        assert_eq!(example["params"]["image_standardization_image_size"], 512);
        for file in ["conda.yaml", "python_env.yaml"] {
            let text = fs::read_to_string(dir.path().join(file)).unwrap();
            serde_yaml_ng::from_str::<Value>(&text).unwrap();
        }
        let requirements = fs::read_to_string(dir.path().join("requirements.txt")).unwrap();
        assert_eq!(requirements.contains("tokenizers"), kind.is_none());
        let inside = |path: &str| dir.path().join(CHECKPOINTS).join(path).exists();
        assert_eq!(inside("adapter/adapter.safetensors"), kind == Some("adapter"), "another classifier's files");
        assert_eq!(inside("classifier/class_embeddings.safetensors"), kind == Some("zero-shot"));
    }
}

#[test]
fn reads_back_and_repeats_to_the_byte() {
    let (one, two) = (written(Some("zero-shot")), written(Some("zero-shot")));
    let package = read_package(one.path()).unwrap();
    assert_eq!(package.config, config(Some("zero-shot")));
    assert_eq!(package.labels().unwrap(), ["polyp", "a <b> | c"]);
    assert_eq!(package.digest, read_package(two.path()).unwrap().digest);
    assert!(package.weights().is_file() && package.tokenizer().is_file() && package.model_config().is_file());
    let files = package_files(one.path()).unwrap();
    assert_eq!(files.last().unwrap().0, MANIFEST_FILE);
    assert!(files.iter().all(|(_, path)| path.is_file()) && files.iter().any(|(p, _)| p == "MLmodel"));
    let card = fs::read_to_string(one.path().join("README.md")).unwrap();
    assert!(card.contains("0. polyp") && card.contains("a &lt;b> | c") && card.contains("not a medical device"));
}

#[test]
fn verify_names_changed_missing_and_added_files() {
    let dir = written(Some("adapter"));
    verify_package(dir.path()).unwrap();
    fs::write(dir.path().join("registered_model_meta"), "model_name: x").unwrap();
    fs::create_dir(dir.path().join("code/__pycache__")).unwrap();
    fs::write(dir.path().join("code/__pycache__/x.pyc"), "").unwrap();
    verify_package(dir.path()).unwrap();

    let weights = dir.path().join(CHECKPOINTS).join("vision_model/tiny.safetensors");
    fs::write(&weights, "weighty").unwrap();
    fs::remove_file(dir.path().join("conda.yaml")).unwrap();
    fs::write(dir.path().join("code/evil.py"), "").unwrap();
    let error = verify_package(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Package);
    for part in [
        "changed 'artifacts/checkpoints/vision_model/tiny.safetensors'",
        "missing 'conda.yaml'",
        "added 'code/evil.py'",
    ] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // the same size, so reading alone does not see it; another size does
    read_package(dir.path()).unwrap();
    fs::write(&weights, "short").unwrap();
    assert!(read_package(dir.path()).unwrap_err().to_string().contains("5 bytes instead of 7"));
}

#[cfg(unix)]
#[test]
fn links_and_paths_that_climb_out_are_refused() {
    let dir = written(None);
    let tokenizer = dir.path().join(CHECKPOINTS).join("language_model/clip_tokenizer_4.16.2/tokenizer.json");
    fs::remove_file(&tokenizer).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &tokenizer).unwrap();
    assert!(read_package(dir.path()).unwrap_err().to_string().contains("is a link"));
    assert!(verify_package(dir.path()).unwrap_err().to_string().contains("is a link"));

    for path in ["../x", "/etc/passwd", "a/../../x", "a//b", "", "c:/x", "a\\..\\b"] {
        let manifest = json!({"format_version": 1, "files": [{"path": path, "size": 0, "sha256": ""}]});
        assert!(Manifest::parse(manifest.to_string().as_bytes()).is_err(), "{path}");
        let mut config = config(None);
        config.weights = path.into();
        assert!(config.validate().is_err(), "{path}");
    }
}

#[test]
fn incomplete_and_newer_packages_are_package_errors() {
    let dir = written(None);
    let json = dir.path().join(CHECKPOINTS).join(CONFIG_FILE);
    fs::write(&json, r#"{"format_version": 2, "anything": 1}"#).unwrap();
    let error = read_package(dir.path()).unwrap_err();
    assert!(error.kind() == ErrorKind::Package && error.to_string().contains("newer"), "{error}");
    fs::write(&json, r#"{"format_version": 1, "task": "dance"}"#).unwrap();
    assert!(read_package(dir.path()).unwrap_err().to_string().contains("key 'task'"));
    fs::remove_file(&json).unwrap();
    assert_eq!(read_package(dir.path()).unwrap_err().kind(), ErrorKind::Package);
    fs::remove_file(dir.path().join(MANIFEST_FILE)).unwrap();
    let error = read_package(dir.path()).unwrap_err();
    assert!(error.kind() == ErrorKind::Package && error.to_string().contains("not a complete medtune package"));
}

#[test]
fn does_not_write_over_anything_or_without_its_files() {
    let (source, full) = (checkpoints(), written(None));
    let mut spec = PackageSpec {
        checkpoints: source.path(),
        config: config(Some("zero-shot")),
        metadata: Default::default(),
        card: ModelCard::default(),
        example_image: Vec::new(),
    };
    assert_eq!(write_package(&spec, &self_test(), full.path()).unwrap_err().kind(), ErrorKind::Conflict);
    spec.config.weights = "vision_model/other.safetensors".into();
    let out = tempfile::tempdir().unwrap();
    assert!(write_package(&spec, &self_test(), out.path()).unwrap_err().to_string().contains("other.safetensors"));
    spec.config.classifier = None;
    assert!(spec.config.validate().unwrap_err().to_string().contains("'classifier'"));
}
