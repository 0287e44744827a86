//! Writes a package.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::card::ModelCard;
use super::config::{PackageConfig, Task};
use super::manifest::{Manifest, hex, list_files};
use super::mlmodel::{self, MlModel};
use super::self_test::SelfTest;
use super::{CHECKPOINTS, CONFIG_FILE, MANIFEST_FILE, SELF_TEST_FILE, runtime};
use crate::error::{Context, Error, Result};

/// What a package is made of.
#[derive(Debug, Clone)]
pub struct PackageSpec<'a> {
    /// A folder that holds `config.yaml`, `vision_model/`, `language_model/`, and for classifiers `classifier/` and
    /// `adapter/`. Left out: a `medtune.json`, and what the configuration does not name in `classifier/` and `adapter/`.
    /// The files are linked or copied, never changed.
    pub checkpoints: &'a Path,
    /// The content of `medtune.json`.
    pub config: PackageConfig,
    /// Metadata of `MLmodel`; base model and task are filled in where missing.
    pub metadata: BTreeMap<String, Value>,
    /// The model card.
    pub card: ModelCard,
    /// The bytes of a JPEG or PNG for the input examples. Never an image of a patient: it is published.
    pub example_image: Vec<u8>,
}

/// Writes a whole package into `out_dir`, which must be empty or not exist; the manifest comes last. Large files are
/// hard-linked where the file system can, else copied.
///
/// # Errors
/// [`Package`](crate::ErrorKind::Package) if the configuration is inconsistent, a file it names is missing, or the checkpoints
/// hold a link; [`Conflict`](crate::ErrorKind::Conflict) if `out_dir` is not empty; [`Storage`](crate::ErrorKind::Storage) or
/// [`NoSpace`](crate::ErrorKind::NoSpace) if something cannot be written.
pub fn write_package(spec: &PackageSpec<'_>, self_test: &SelfTest, out_dir: &Path) -> Result<()> {
    let config = &spec.config;
    config.validate().context(|| format!("'{CONFIG_FILE}' of the new package"))?;
    for file in config.files() {
        if !spec.checkpoints.join(&file).is_file() {
            return Err(Error::package(format!("'{file}' is missing in '{}'", spec.checkpoints.display())));
        }
    }
    let labels = config.labels_in(spec.checkpoints)?;
    fs::create_dir_all(out_dir).map_err(|e| Error::io("create", out_dir, e))?;
    if fs::read_dir(out_dir).map_err(|e| Error::io("list", out_dir, e))?.next().is_some() {
        return Err(Error::conflict(format!("'{}' is not empty: name a new folder", out_dir.display())));
    }

    let target = out_dir.join(CHECKPOINTS);
    let named = config.files();
    for (relative, source) in list_files(spec.checkpoints)? {
        // the checkpoints may be those of another classifier
        let other_head = ["classifier/", "adapter/"].iter().any(|folder| relative.starts_with(folder));
        if relative != CONFIG_FILE && (!other_head || named.contains(&relative)) {
            link_or_copy(&source, &target.join(relative))?;
        }
    }
    let json = serde_json::to_string_pretty(config)
        .map_err(|e| Error::internal("cannot write medtune.json").with_source(e))?;
    write(&target.join(CONFIG_FILE), &(json + "\n"))?;

    let module = runtime::module_name();
    for (name, text) in runtime::FILES {
        write(&out_dir.join("code").join(&module).join(name), text)?;
    }
    let image = BASE64_STANDARD.encode(&spec.example_image);
    write(&out_dir.join("input_example.json"), &mlmodel::input_example(config, &image))?;
    write(&out_dir.join("serving_input_example.json"), &mlmodel::serving_input_example(config, &image))?;
    write(&out_dir.join("requirements.txt"), &mlmodel::requirements(config.task))?;
    write(&out_dir.join("python_env.yaml"), &mlmodel::python_env())?;
    write(&out_dir.join("conda.yaml"), &mlmodel::conda(config.task))?;
    write(&out_dir.join(SELF_TEST_FILE), &self_test.to_json()?)?;
    write(&out_dir.join("README.md"), &spec.card.text(config, &labels))?;

    // everything but MLmodel is there: its hashes are what the model's identity is made of
    let mut manifest = Manifest::of_folder(out_dir)?;
    let counted = |path: &str| path.starts_with(CHECKPOINTS) || path.ends_with("input_example.json");
    let mlmodel = MlModel {
        config,
        metadata: &metadata(spec),
        loader_module: &module,
        uuid: &hex(&Sha256::digest(manifest.to_json()?))[..32],
        size_bytes: manifest.files.iter().filter(|f| counted(&f.path)).map(|f| f.size).sum(),
        created: spec.card.created.unwrap_or_else(OffsetDateTime::now_utc),
    };
    let text = mlmodel.text()?;
    write(&out_dir.join("MLmodel"), &text)?;
    manifest.files.push(super::FileEntry {
        path: "MLmodel".into(),
        size: text.len() as u64,
        sha256: hex(&Sha256::digest(&text)),
    });
    manifest.files.sort_by(|a, b| a.path.cmp(&b.path));
    write(&out_dir.join(MANIFEST_FILE), &manifest.to_json()?)
}

fn metadata(spec: &PackageSpec<'_>) -> BTreeMap<String, Value> {
    let mut metadata = spec.metadata.clone();
    let task = match spec.config.task {
        Task::Embeddings => "embeddings",
        Task::Classification => "image-classification",
    };
    metadata.entry("base_model_name".into()).or_insert_with(|| "MedImageInsight".into());
    metadata.entry("base_model_task".into()).or_insert_with(|| task.into());
    metadata
}

fn link_or_copy(source: &Path, target: &Path) -> Result<()> {
    make_parent(target)?;
    // another file system, or one without hard links: copy
    if fs::hard_link(source, target).is_err() {
        fs::copy(source, target).map_err(|e| Error::io("write", target, e))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    make_parent(path)?;
    fs::write(path, text).map_err(|e| Error::io("write", path, e))
}

fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e)),
        None => Ok(()),
    }
}
