//! Base model packages: made from a size configuration, or imported from the layouts that MedImageInsight comes in.

use super::self_test;
use crate::CODE_VERSION;
use crate::config::packaging::{Packaging, TermsOfUse};
use crate::config::{build, parse_yaml, read_yaml};
use crate::data::Labels;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::imaging::{PixelContract, RgbImage, encode_jpeg};
use crate::infer::check_vocabulary;
use crate::model::config::ModelConfig;
use crate::model::tokenizer::Tokenizer;
use crate::model::{init, weights};
use crate::package::{
    MODEL_CONFIG_FILE, ModelCard, Package, PackageConfig, PackageSpec, PythonLoader, Task, package_files,
    verify_package,
};
use crate::registry::{AssetKind, Lineage, NewVersion, Version, list_versions, publish};
use crate::storage::{Created, Store, sha256_hex};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const TOKENIZER: &str = "language_model/clip_tokenizer_4.16.2";
const MAX_VOCABULARY: usize = 49_408;

/// What `medtune model init` is asked for.
#[derive(Debug, Clone)]
pub struct InitRequest {
    /// Name in the registry.
    pub name: String,
    /// YAML with the sizes, in the base model's format; `PIXELS` may hold the standardisation.
    pub config: PathBuf,
    /// Label texts that the tokenizer is trained on when there is no vocabulary.
    pub label_texts: Option<PathBuf>,
    /// Folder with `vocab.json` and `merges.txt`.
    pub vocabulary: Option<PathBuf>,
    /// Seed of the weights.
    pub seed: u64,
    /// What is said of the package.
    pub packaging: Packaging,
}

/// Makes a package with random weights and registers it; the same request again finds the version that it made.
/// The flag says whether something new was made. A new package has passed its self-test, by the loader in `python` too.
///
/// # Errors
/// [`ErrorKind::Config`] for impossible sizes, [`ErrorKind::NotFound`] for missing files, and those of publishing.
pub fn init_model(store: &Store, request: &InitRequest, python: Option<&PythonLoader>) -> Result<(Version, bool)> {
    request.packaging.terms.validate().map_err(|e| e.with_kind(ErrorKind::Usage))?;
    let yaml = read_yaml(&request.config)?;
    let origin = request.config.display().to_string();
    let as_config = |e: Error| e.with_kind(ErrorKind::Config);
    let mut config = ModelConfig::from_yaml(&yaml, &origin).map_err(as_config)?;
    let texts = request.label_texts.as_ref().map(Labels::read).transpose()?;
    let tokenizer = match (&request.vocabulary, &texts) {
        (Some(folder), _) => Tokenizer::load(folder)?,
        (None, Some(labels)) => Tokenizer::train(labels.texts(), MAX_VOCABULARY)?,
        (None, None) => {
            return Err(Error::usage(
                "model init: give --vocabulary DIR with vocab.json and merges.txt, or --label-texts FILE",
            ));
        }
    };
    if yaml.get("LANG_ENCODER").and_then(|l| l.get("VOCAB_SIZE")).is_none() {
        config.text.vocab_size = tokenizer.vocab_size();
    }
    check_vocabulary(&tokenizer, &config).map_err(as_config).context(|| &origin)?;
    let pixels = pixel_contract(&yaml, &config, &origin)?;

    let scratch = tempfile::tempdir().map_err(|e| Error::io("create", std::env::temp_dir(), e))?;
    let checkpoints = scratch.path().join("checkpoints");
    tokenizer.save(&make(&checkpoints.join(TOKENIZER))?, config.text.context_length)?;
    let vocabulary = fs::read(checkpoints.join(TOKENIZER).join("tokenizer.json"))
        .map_err(|e| Error::io("read", checkpoints.join(TOKENIZER), e))?;
    let identity = json!({
        "code": CODE_VERSION, "config": config.to_yaml(), "pixels": pixels, "seed": request.seed,
        "tokenizer": sha256_hex(&vocabulary), "model_card": request.packaging.terms,
        "stored_weights": request.packaging.stored_weights, "onnx": request.packaging.onnx,
    });
    let owner = format!("init/{}", sha256_hex(identity.to_string().as_bytes()));
    if let Some(existing) =
        list_versions(store, AssetKind::Model, &request.name)?.into_iter().find(|v| v.owner == owner)
    {
        return Ok((existing, false));
    }
    write_config(&checkpoints, &config.to_yaml())?;
    let weights_name = "vision_model/model.safetensors";
    make(&checkpoints.join("vision_model"))?;
    let params = init::random(&config, request.seed)?;
    let parameters = params.count();
    weights::write_stored(&checkpoints.join(weights_name), params.iter(), request.packaging.stored_weights)?;
    // the package's self-test reads them again
    drop(params);
    let provenance = json!({
        "code_version": CODE_VERSION, "made_by": "medtune model init", "seed": request.seed,
        "base_model_name": "MedImageInsight architecture, random weights", "model_card": request.packaging.terms,
        "stored_weights": request.packaging.stored_weights,
    });
    let package = embedding_config(weights_name, pixels, provenance, request.packaging.onnx);
    let card = ModelCard {
        title: request.name.clone(),
        base_model: "none: random weights, to be trained".to_owned(),
        terms: request.packaging.terms.clone(),
        created: Some(first_time(store, &owner)?),
        ..ModelCard::default()
    };
    let checked = checked_package(&scratch.path().join("package"), (&checkpoints, package, card), python)?;
    let version = publish_files(store, &request.name, checked, owner, "embedding model")?;
    tracing::info!(parameters, "model initialised");
    Ok((version, true))
}

/// What `medtune model import` is asked for.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// Name in the registry.
    pub name: String,
    /// The package's folder.
    pub folder: PathBuf,
    /// What is said of a new package; one of medtune's stays as it is.
    pub packaging: Packaging,
    /// Whether a package of medtune's is asked what its self-test asks.
    pub self_test: bool,
}

/// A registered model, and how its weights fitted.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The version.
    pub version: Version,
    /// Whether something new was made.
    pub new: bool,
    /// What was found in the weights file; `None` for a package of medtune's, which is taken as it is.
    pub report: Option<weights::Report>,
}

/// Registers a model package that somebody else made: a medtune package as it is, or the published MedImageInsight package,
/// or a folder with `config.yaml`, `vision_model/` and `language_model/`. Older parameter names are translated, and a flat
/// PyTorch state dict becomes safetensors. The version's metadata and the package's provenance keep the report. What is made passes its self-test,
/// by the loader in `python` too; a medtune package, which has one, only where the request says so.
///
/// # Errors
/// [`ErrorKind::NotFound`] for a folder that is not there; [`ErrorKind::Package`] naming what is missing or does not fit.
pub fn import_model(store: &Store, request: &ImportRequest, python: Option<&PythonLoader>) -> Result<Imported> {
    let ImportRequest { name, folder, .. } = request;
    request.packaging.terms.validate().map_err(|e| e.with_kind(ErrorKind::Usage))?;
    fs::read_dir(folder).map_err(|e| Error::io("open", folder, e))?;
    if folder.join(crate::package::MANIFEST_FILE).is_file() {
        verify_package(folder)?;
        let package = crate::package::read_package(folder)?;
        let owner = format!("import/{}", package.digest);
        if request.packaging != Packaging::default() {
            return Err(Error::usage(format!(
                "model import: '{}' is a package of medtune, which stays as it is; leave --license, --intended-use, --stored-weights and --onnx out",
                folder.display()
            )));
        }
        if !request.self_test {
            tracing::warn!("the package is taken without its self-test");
        } else if let Some(checked) = self_test::check(&package, python)? {
            self_test::log(&checked);
        } else {
            tracing::warn!("the package has no self-test: it is of an earlier medtune");
        }
        let existing = list_versions(store, AssetKind::Model, name)?.into_iter().find(|v| v.owner == owner);
        if let Some(version) = existing {
            return Ok(Imported { version, new: false, report: None });
        }
        let files = (package_files(folder)?, json!({ "task": package.config.task }));
        let version = publish_files(store, name, files, owner, "imported package")?;
        return Ok(Imported { version, new: true, report: None });
    }
    let source = ["artifacts/checkpoints", "checkpoints", ""]
        .iter()
        .map(|p| folder.join(p))
        .find(|p| p.join(MODEL_CONFIG_FILE).is_file());
    let source = source.ok_or_else(|| {
        Error::package(format!(
            "'{}' holds no {MODEL_CONFIG_FILE}, nor does its artifacts/checkpoints",
            folder.display()
        ))
    })?;
    let yaml = read_yaml(&source.join(MODEL_CONFIG_FILE)).map_err(|e| e.with_kind(ErrorKind::Package))?;
    let origin = source.join(MODEL_CONFIG_FILE).display().to_string();
    let weights_file = only_file(&source.join("vision_model"))?;
    let mut config = ModelConfig::from_yaml(&yaml, &origin)?;
    let tokenizer = Tokenizer::load(&tokenizer_folder(&source.join("language_model"))?)?;
    if let Some(rows) = weights::rows(&weights_file, "lang_encoder.token_embedding.weight")? {
        config.text.vocab_size = rows;
    }
    check_vocabulary(&tokenizer, &config)?;
    let (params, report) = weights::import(&weights_file, &config)?;

    let scratch = tempfile::tempdir().map_err(|e| Error::io("create", std::env::temp_dir(), e))?;
    let checkpoints = scratch.path().join("checkpoints");
    tokenizer.save(&make(&checkpoints.join(TOKENIZER))?, config.text.context_length)?;
    let mut kept = completed(&yaml, config.to_yaml());
    kept["LANG_ENCODER"]["VOCAB_SIZE"] = config.text.vocab_size.into();
    write_config(&checkpoints, &kept)?;
    make(&checkpoints.join("vision_model"))?;
    let weights_name = format!("vision_model/{}", weights_name(&weights_file, &report));
    weights::write_stored(&checkpoints.join(&weights_name), params.iter(), request.packaging.stored_weights)?;
    // the package's self-test reads them again
    drop(params);
    let digest = crate::storage::sha256_file(&checkpoints.join(&weights_name))?.sha256;
    let vocabulary = crate::storage::sha256_file(&checkpoints.join(TOKENIZER).join("tokenizer.json"))?.sha256;
    let settings = serde_yaml_ng::to_string(&yaml).map_err(|e| Error::internal("cannot write YAML").with_source(e))?;
    let identity = json!([digest, vocabulary, CODE_VERSION, settings, request.packaging.terms, request.packaging.onnx])
        .to_string();
    let owner = format!("import/{}", sha256_hex(identity.as_bytes()));
    let existing = list_versions(store, AssetKind::Model, name)?.into_iter().find(|v| v.owner == owner);
    if let Some(version) = existing {
        return Ok(Imported { version, new: false, report: Some(report) });
    }
    let pixels = pixel_contract(&yaml, &config, &origin)?;
    let package = embedding_config(
        &weights_name,
        pixels,
        json!({
            "code_version": CODE_VERSION, "made_by": "medtune model import", "base_model_name": "MedImageInsight",
            "weights_report": report, "model_card": request.packaging.terms, "stored_weights": request.packaging.stored_weights,
        }),
        request.packaging.onnx,
    );
    let card = ModelCard {
        title: name.to_owned(),
        base_model: "imported MedImageInsight weights".to_owned(),
        terms: request.packaging.terms.clone(),
        created: Some(first_time(store, &owner)?),
        ..ModelCard::default()
    };
    let checked = checked_package(&scratch.path().join("package"), (&checkpoints, package, card), python)?;
    let version = publish_files(store, name, checked, owner, "embedding model")?;
    Ok(Imported { version, new: true, report: Some(report) })
}

/// The weights' file name in the new package: the same, unless the content changed its format.
fn weights_name(file: &Path, report: &weights::Report) -> String {
    let name = |part: Option<&std::ffi::OsStr>| part.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if report.format == weights::SAFETENSORS { name(file.file_name()) } else { name(file.file_stem()) + ".safetensors" }
}

/// The files of a new embedding model that has passed its self-test, and the facts that its version keeps.
fn checked_package(
    folder: &Path,
    (checkpoints, config, card): (&Path, PackageConfig, ModelCard),
    python: Option<&PythonLoader>,
) -> Result<(Vec<(String, PathBuf)>, Value)> {
    let metadata = metadata(&config.provenance, false);
    let mut facts = json!({ "task": Task::Embeddings });
    if let Some(report) = config.provenance.get("weights_report") {
        facts["weights_report"] = report.clone();
    }
    let spec = PackageSpec { checkpoints, config, metadata, card, example_image: example_image()? };
    self_test::write_checked(&spec, folder, python)?;
    Ok((package_files(folder)?, facts))
}

fn publish_files(
    store: &Store,
    name: &str,
    (files, metadata): (Vec<(String, PathBuf)>, Value),
    owner: String,
    description: &str,
) -> Result<Version> {
    let lineage = Lineage { code_version: CODE_VERSION.to_owned(), ..Lineage::default() };
    publish(
        store,
        NewVersion {
            kind: AssetKind::Model,
            name: name.to_owned(),
            description: description.to_owned(),
            tags: BTreeMap::new(),
            files,
            owner,
            lineage,
            metadata,
        },
    )
}

/// The `medtune.json` of an embedding model.
fn embedding_config(weights: &str, pixels: PixelContract, provenance: Value, onnx: bool) -> PackageConfig {
    PackageConfig {
        format_version: crate::package::config::FORMAT_VERSION,
        task: Task::Embeddings,
        weights: weights.to_owned(),
        tokenizer: format!("{TOKENIZER}/tokenizer.json"),
        pixels,
        classifier: None,
        onnx,
        provenance,
    }
}

/// The pixel path of a configuration: its image size and statistics, and the standardisation of `PIXELS` where given.
fn pixel_contract(yaml: &serde_yaml_ng::Value, config: &ModelConfig, origin: &str) -> Result<PixelContract> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Standardisation {
        image_standardization_jpeg_compression_ratio: u8,
        image_standardization_image_size: u32,
    }
    let mut pixels = PixelContract {
        image_size: config.image.image_size.map(|s| s as u32),
        mean: config.image.mean.map(|v| v as f32),
        std: config.image.std.map(|v| v as f32),
        ..PixelContract::default()
    };
    if let Some(section) = yaml.get("PIXELS") {
        let given: Standardisation = build(section.clone(), &format!("{origin}: PIXELS"))?;
        pixels.jpeg_quality = given.image_standardization_jpeg_compression_ratio;
        pixels.standard_size = given.image_standardization_image_size;
    }
    pixels.validate().context(|| origin.to_owned())?;
    Ok(pixels)
}

/// Keeps what the other's configuration says, so that the code it was written for reads it, and adds the sizes that it
/// leaves to defaults.
fn completed(theirs: &serde_yaml_ng::Value, ours: serde_yaml_ng::Value) -> serde_yaml_ng::Value {
    use serde_yaml_ng::Value::Mapping;
    match (theirs, ours) {
        (Mapping(theirs), Mapping(ours)) => {
            let mut both = theirs.clone();
            for (key, value) in ours {
                let value = theirs.get(&key).map_or(value.clone(), |found| completed(found, value));
                both.insert(key, value);
            }
            Mapping(both)
        }
        (theirs, _) => theirs.clone(),
    }
}

fn write_config(checkpoints: &Path, config: &serde_yaml_ng::Value) -> Result<()> {
    let text = serde_yaml_ng::to_string(config).map_err(|e| Error::internal("cannot write YAML").with_source(e))?;
    parse_yaml(&text, MODEL_CONFIG_FILE)?;
    let path = checkpoints.join(MODEL_CONFIG_FILE);
    fs::write(&path, text).map_err(|e| Error::io("write", &path, e))
}

fn make(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    Ok(folder.to_owned())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).map_err(|e| Error::io("list", folder, e).with_kind(ErrorKind::Package))?;
    let mut paths: Vec<PathBuf> = list.flatten().map(|e| e.path()).collect();
    paths.sort();
    Ok(paths)
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let files: Vec<PathBuf> = entries(folder)?.into_iter().filter(|p| p.is_file()).collect();
    match files.as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(Error::package(format!(
            "'{}' must hold exactly one weights file, it holds {}",
            folder.display(),
            files.len()
        ))),
    }
}

fn tokenizer_folder(folder: &Path) -> Result<PathBuf> {
    let has = |p: &PathBuf| p.join("vocab.json").is_file() && p.join("merges.txt").is_file();
    let found = std::iter::once(folder.to_owned()).chain(entries(folder)?).find(has);
    found
        .ok_or_else(|| Error::package(format!("'{}' holds no folder with vocab.json and merges.txt", folder.display())))
}

/// Links the checkpoints of a package into `target`, without what belongs to a classifier, and without ONNX models.
pub(super) fn link_checkpoints(base: &Package, target: &Path) -> Result<()> {
    let source = base.checkpoints();
    let mut open = vec![source.clone()];
    while let Some(folder) = open.pop() {
        for path in entries(&folder)? {
            let relative =
                path.strip_prefix(&source).map_err(|_| Error::internal("a path left its folder"))?.to_owned();
            if path.is_dir() {
                if !matches!(relative.to_str(), Some("classifier" | "adapter")) {
                    open.push(path);
                }
                continue;
            }
            // they are of other weights or another task; where they are wanted they are written anew
            if relative.extension().is_some_and(|extension| extension == "onnx") {
                continue;
            }
            let to = target.join(&relative);
            make(to.parent().unwrap_or(target))?;
            if fs::hard_link(&path, &to).is_err() {
                fs::copy(&path, &to).map_err(|e| Error::io("write", &to, e))?;
            }
        }
    }
    Ok(())
}

/// The name of the base model that a package's provenance goes back to.
pub(super) fn base_model_name(provenance: &Value) -> String {
    provenance["base_model_name"].as_str().unwrap_or("MedImageInsight").to_owned()
}

/// What `MLmodel` says beside the task, from the package's own provenance.
pub(super) fn metadata(provenance: &Value, finetuned: bool) -> BTreeMap<String, Value> {
    let mut metadata = BTreeMap::from([
        ("base_model_name".to_owned(), json!(base_model_name(provenance))),
        ("is_finetuned_model".to_owned(), json!(finetuned)),
        ("code_version".to_owned(), json!(CODE_VERSION)),
    ]);
    if let Some(license) = terms_of(provenance).license {
        metadata.insert("license".to_owned(), json!(license));
    }
    metadata
}

/// How the model with that provenance may be used.
pub(super) fn terms_of(provenance: &Value) -> TermsOfUse {
    // key by key: a later version may have written more of them
    let text = |key: &str| provenance["model_card"][key].as_str().map(str::to_owned);
    TermsOfUse { license: text("license"), intended_use: text("intended_use") }
}

/// A grey ramp for the input examples: published with every package, so never anybody's image.
pub(super) fn example_image() -> Result<Vec<u8>> {
    let side = 64;
    let pixels = (0..side * side).flat_map(|i| [((i % side) * 4) as u8; 3]).collect();
    encode_jpeg(&RgbImage::new(side, side, pixels)?, 90)
}

/// The time at which the work of that identity was first begun, so that repeating it writes the same bytes.
pub(super) fn first_time(store: &Store, identity: &str) -> Result<OffsetDateTime> {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let text = now.format(&Rfc3339).map_err(|e| Error::internal("cannot format a time").with_source(e))?;
    let key = format!("cache/begun/{}.txt", sha256_hex(identity.as_bytes()));
    match store.create_exact(&key, text.into_bytes())? {
        Created::Won => Ok(now),
        Created::Lost(bytes) => OffsetDateTime::parse(&String::from_utf8_lossy(&bytes), &Rfc3339).map_err(|e| {
            Error::data(format!("'{}' in the store is no time; delete it", store.uri_of(&key))).with_source(e)
        }),
    }
}
