//! From what a job file says of an input to a local path with a hash.

mod rows;

use super::finetune::read_training;
use super::prepare;
use crate::config::job::{InputSource, Job, Step};
use crate::config::kinds::{Kind, PortType};
use crate::config::parameters::Parameters;
use crate::data::rows::RowsAt;
use crate::data::tsv::{companions, index_path};
use crate::data::{Labels, TextConstants};
use crate::error::{Context, Error, Result};
use crate::package::read_package;
use crate::registry::{self, AssetKind, FileEntry, InputRecord, Reference, Version, folder_files};
use crate::storage::{Source, Store, is_remote, local_folder, sha256_file, sha256_hex};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An input as a step sees it.
#[derive(Debug, Clone)]
pub struct ResolvedInput {
    /// `data:NAME@7` or `model:NAME@7` when it is a version, else the path or URI.
    pub reference: String,
    /// The file or folder.
    pub path: PathBuf,
    /// SHA-256 over the content: a file's own (of a table with its name), or that of names and hashes of a folder, of a pattern's files, or
    /// of a list; see also [`ResolvedInput::identity`].
    pub digest: String,
    /// Bytes in all.
    pub size: u64,
    /// The version, when it is one.
    pub version: Option<Version>,
    /// Where the rows are, of an input of images; such an input has no `path`.
    pub rows: Vec<RowsAt>,
    /// The versions of a list, by what the job calls them.
    pub listed: BTreeMap<String, Version>,
}

impl ResolvedInput {
    /// What the content is known by: `sha256:` and the hash, or `etag:` and a hash of place, ETag and size, for what is somewhere
    /// else and was not read.
    #[must_use]
    pub fn identity(&self) -> String {
        let by = if self.is_known_by_etag() { "etag" } else { "sha256" };
        format!("{by}:{}", self.digest)
    }

    fn is_known_by_etag(&self) -> bool {
        self.version.is_none() && self.rows.iter().any(RowsAt::is_elsewhere)
    }

    /// What may be published of where the input came from: its version, or its name without the folders of this machine.
    #[must_use]
    pub fn origin(&self) -> String {
        let name = || self.reference.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
        self.version.as_ref().map_or_else(name, Version::reference)
    }

    /// The input as run records keep it.
    #[must_use]
    pub fn record(&self, store: &Store) -> InputRecord {
        InputRecord {
            reference: self.version.as_ref().map(Version::reference),
            uri: self.version.as_ref().map_or_else(|| self.reference.clone(), |v| v.uri(store)),
            sha256: if self.is_known_by_etag() { String::new() } else { self.digest.clone() },
            etag: self.is_known_by_etag().then(|| self.digest.clone()),
            size: self.size,
        }
    }
}

/// External versions by the text that names them: looked up once a run, so that `@latest` and aliases mean the same to every
/// step, and only exact versions are remembered.
pub(super) type Pins = BTreeMap<String, Version>;

/// Resolves the inputs of `step`: files and versions, and what finished steps have `made`.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] for a missing file, folder or version, naming the input; [`crate::ErrorKind::Config`] when
/// it is of another type than the input takes.
pub(super) fn resolve(
    store: &Store,
    job: &Job,
    step: &Step,
    (made, pins): (&BTreeMap<String, BTreeMap<String, Version>>, &mut Pins),
) -> Result<BTreeMap<String, ResolvedInput>> {
    let mut resolved = BTreeMap::new();
    for (name, source) in &step.inputs {
        let port = port_type(step.kind, name)?;
        let input = match source {
            InputSource::External(text) => external(store, job, (text, port), pins),
            InputSource::List(texts) => rows::several(store, job, texts, pins),
            InputSource::Step { step: from, output } => match made.get(from).and_then(|o| o.get(output)) {
                Some(version) => of_version(store, version.clone(), port),
                None => Err(Error::internal(format!("output '{output}' of step '{from}' is not there"))),
            },
        };
        resolved.insert(name.clone(), input.context(|| format!("input {name}"))?);
    }
    Ok(resolved)
}

/// What one process has resolved, for another that resolves the same by itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Given {
    /// The exact version, when it is one.
    version: Option<String>,
    /// Those of a list, by what the job calls them.
    listed: BTreeMap<String, String>,
    digest: String,
}

impl From<&ResolvedInput> for Given {
    fn from(input: &ResolvedInput) -> Given {
        Given {
            version: input.version.as_ref().map(Version::reference),
            listed: input.listed.iter().map(|(text, version)| (text.clone(), version.reference())).collect(),
            digest: input.digest.clone(),
        }
    }
}

/// Resolves what another process has resolved.
///
/// # Errors
/// As [`resolve`], and [`crate::ErrorKind::Data`] when something else is found here.
pub(super) fn resolve_given(
    store: &Store,
    job: &Job,
    step: &Step,
    given: &BTreeMap<String, Given>,
) -> Result<BTreeMap<String, ResolvedInput>> {
    let exact = |text: &String| registry::get(store, &Reference::parse(text, None)?);
    let one = |name: &str, given: &Given| {
        let port = port_type(step.kind, name)?;
        let input = match (&given.version, step.inputs.get(name)) {
            (Some(version), _) => of_version(store, exact(version)?, port),
            (None, Some(InputSource::External(text))) => external(store, job, (text, port), &mut Pins::new()),
            (None, Some(InputSource::List(texts))) => {
                let listed = given.listed.iter().map(|(text, reference)| Ok((text.clone(), exact(reference)?)));
                rows::several(store, job, texts, &mut listed.collect::<Result<Pins>>()?)
            }
            _ => Err(Error::internal("it is no input of the step")),
        }?;
        if input.digest != given.digest {
            let (found, expected) = (&input.digest, &given.digest);
            return Err(Error::data(format!(
                "'{}' is not what rank 0 has: its digest is {found}, not {expected}; give all processes the same",
                input.reference
            )));
        }
        Ok(input)
    };
    given.iter().map(|(name, g)| Ok((name.clone(), one(name, g).context(|| format!("input {name}"))?))).collect()
}

/// Checks that the inputs of `step` that do not come from other steps are there, reads those that are small, and matches what Prepare is
/// given where it is on this machine: so a typing error in the last step's configuration is found before the first step runs.
///
/// # Errors
/// As [`resolve`], and those of reading configurations, labels and the settings of packages.
pub(super) fn check(store: &Store, job: &Job, step: &Step, pins: &mut Pins) -> Result<()> {
    let mut paths: BTreeMap<&str, PathBuf> = BTreeMap::new();
    for (name, source) in &step.inputs {
        let port = port_type(step.kind, name)?;
        let texts = source.external();
        if port == PortType::Rows {
            rows::check(store, job, texts, pins).context(|| format!("input {name}"))?;
            continue;
        }
        let [text] = texts else { continue };
        let path = locate(store, job, (text, port), pins).and_then(|found| match found {
            Located::Path(path) => Ok(Some(path)),
            // what nobody looks into now is fetched when its step begins
            Located::Version(version) if store.is_remote() && !is_read(step, name, port) => {
                of_kind(&version, port).map(|()| None)
            }
            Located::Version(version) => of_version(store, *version, port).map(|i| Some(i.path)),
            Located::Source(source) if is_read(step, name, port) => fetch(store, &source, port).map(Some),
            Located::Source(source) => exists(&source, port).map(|()| None),
        });
        let Some(path) = path.context(|| format!("input {name}"))? else { continue };
        check_content(step, name, &path).context(|| format!("input {name}"))?;
        paths.insert(name, path);
    }
    match &step.parameters {
        // where what it is given does not come from another step
        Parameters::Prepare(parameters) if step.inputs.values().all(|source| !source.external().is_empty()) => {
            prepare::check(|name| paths.get(name).map(PathBuf::as_path), parameters)
        }
        _ => Ok(()),
    }
}

/// Whether [`check_content`] or [`prepare::check`] reads an input.
fn is_read(step: &Step, name: &str, port: PortType) -> bool {
    let training = name == "conf_files" && matches!(step.parameters, Parameters::Finetune(_));
    training || matches!(name, "label_file" | "text_constants" | "image_metadata") || port == PortType::Model
}

fn check_content(step: &Step, name: &str, path: &Path) -> Result<()> {
    match (name, &step.parameters) {
        ("conf_files", Parameters::Finetune(parameters)) => read_training(path, parameters).map(drop),
        ("label_file", Parameters::Evaluate(parameters)) => parameters.check_labels(Labels::read(path)?.texts()),
        ("label_file", _) => Labels::read(path).map(drop),
        ("text_constants", _) => TextConstants::read(path).map(drop),
        _ if port_type(step.kind, name)? == PortType::Model => read_package(path).map(drop),
        _ => Ok(()),
    }
}

fn port_type(kind: Kind, name: &str) -> Result<PortType> {
    let port = kind.inputs().iter().find(|p| p.name == name);
    port.map(|p| p.port_type).ok_or_else(|| Error::internal(format!("{kind} has no input '{name}'")))
}

enum Located {
    Path(PathBuf),
    Version(Box<Version>),
    Source(Source),
}

/// Finds an external input: a version reference, a path that exists, or a place elsewhere.
fn locate(store: &Store, job: &Job, (text, port): (&str, PortType), pins: &mut Pins) -> Result<Located> {
    let asset = if port == PortType::Model { AssetKind::Model } else { AssetKind::Data };
    if text.starts_with("data:") || text.starts_with("model:") {
        let reference = Reference::parse(text, Some(asset))?;
        if reference.kind != asset {
            return Err(Error::config(format!("'{text}' is a {}; this input takes a {}", reference.kind, asset)));
        }
        if let Some(version) = pins.get(text) {
            return Ok(Located::Version(Box::new(version.clone())));
        }
        let version = registry::get(store, &reference)?;
        pins.insert(text.to_owned(), version.clone());
        return Ok(Located::Version(Box::new(version)));
    }
    if is_remote(text) {
        return Ok(Located::Source(store.source(text)?));
    }
    let local = match (text.contains("://"), &job.base) {
        (true, _) => local_folder(text)?,
        // a job file from elsewhere has its neighbours there
        (false, Some(base)) if Path::new(text).is_relative() => {
            return Ok(Located::Source(store.source(&format!("{base}/{text}"))?));
        }
        (false, _) => job.folder.join(text),
    };
    if port == PortType::Rows {
        return Ok(Located::Path(local));
    }
    let metadata = std::fs::metadata(&local).map_err(|e| Error::io("open", &local, e))?;
    match (port, metadata.is_dir()) {
        (PortType::File, true) => {
            Err(Error::config(format!("'{}' is a folder; this input takes a file", local.display())))
        }
        (PortType::Folder | PortType::Model, false) => {
            Err(Error::config(format!("'{}' is a file; this input takes a folder", local.display())))
        }
        _ => Ok(Located::Path(local)),
    }
}

fn external(store: &Store, job: &Job, named: (&str, PortType), pins: &mut Pins) -> Result<ResolvedInput> {
    let port = named.1;
    if port == PortType::Rows {
        return rows::one(store, rows::find(store, job, named.0, pins)?);
    }
    match locate(store, job, named, pins)? {
        Located::Version(version) => of_version(store, *version, port),
        Located::Path(path) => of_path(path, port),
        Located::Source(source) => {
            let fetched = of_path(fetch(store, &source, port)?, port)?;
            Ok(ResolvedInput { reference: source.uri().to_owned(), ..fetched })
        }
    }
}

/// Brings an input from elsewhere to this machine, through the cache; the index of a TSV comes along.
fn fetch(store: &Store, source: &Source, port: PortType) -> Result<PathBuf> {
    let cache = store.cache()?;
    if port == PortType::File {
        exists(source, port)?;
        return Ok(source.file(&cache, &companions(source.name()))?.0);
    }
    source.folder(&cache)
}

/// Checks that something is there, and of the kind that the input takes.
fn exists(source: &Source, port: PortType) -> Result<()> {
    let uri = source.uri();
    match (port, source.is_file()?) {
        (PortType::Rows, _) => Ok(()),
        (PortType::File, true) => Ok(()),
        (PortType::File, false) if source.is_folder()? => {
            Err(Error::config(format!("'{uri}' is a folder; this input takes a file")))
        }
        (PortType::File, false) => Err(Error::not_found(format!("there is no '{uri}'"))),
        (PortType::Folder | PortType::Model, is_file) => match (source.is_folder()?, is_file) {
            (true, _) => Ok(()),
            (false, true) => Err(Error::config(format!("'{uri}' is a file; this input takes a folder"))),
            (false, false) => Err(Error::not_found(format!("there is nothing below '{uri}/'"))),
        },
    }
}

/// Whether a version can be what the input takes.
fn of_kind(version: &Version, port: PortType) -> Result<()> {
    if port == PortType::File { main_file(version).map(drop) } else { Ok(()) }
}

fn of_version(store: &Store, version: Version, port: PortType) -> Result<ResolvedInput> {
    if port == PortType::Rows {
        return rows::one(store, rows::Place::Version(Box::new(version)));
    }
    let folder = registry::open_local(store, &version)?;
    let path = if port == PortType::File { folder.join(&main_file(&version)?.path) } else { folder };
    Ok(ResolvedInput {
        reference: version.reference(),
        path,
        digest: version.digest.clone(),
        size: version.total_size(),
        version: Some(version),
        rows: Vec::new(),
        listed: BTreeMap::new(),
    })
}

/// The files of a version but for the indexes of its TSVs.
fn main_files(version: &Version) -> impl Iterator<Item = &FileEntry> {
    let is_index = |f: &&FileEntry| version.files.iter().any(|g| index_path(Path::new(&g.path)) == Path::new(&f.path));
    version.files.iter().filter(move |f| !is_index(f))
}

/// The one file of a version; a TSV's index does not count.
fn main_file(version: &Version) -> Result<&FileEntry> {
    let mut files = main_files(version);
    match (files.next(), files.next()) {
        (Some(file), None) => Ok(file),
        _ => Err(Error::config(format!("{} has several files; this input takes one file", version.reference()))),
    }
}

fn of_path(path: PathBuf, port: PortType) -> Result<ResolvedInput> {
    let (digest, size) = if port == PortType::File {
        let digest = sha256_file(&path)?;
        (digest.sha256, digest.size)
    } else {
        folder_digest(&path)?
    };
    Ok(ResolvedInput {
        reference: path.display().to_string(),
        path,
        digest,
        size,
        version: None,
        rows: Vec::new(),
        listed: BTreeMap::new(),
    })
}

/// SHA-256 over the sorted names and hashes of a folder's files and the names of its folders, and the bytes in all.
fn folder_digest(folder: &Path) -> Result<(String, u64)> {
    let Listing { files, folders } = list(folder)?;
    let mut lines: Vec<(String, u64)> = files
        .into_par_iter()
        .map(|(name, path)| {
            let digest = sha256_file(&path)?;
            Ok((format!("{} {} {name}\n", digest.sha256, digest.size), digest.size))
        })
        .collect::<Result<_>>()?;
    lines.extend(folders.into_iter().map(|name| (format!("folder {name}\n"), 0)));
    lines.sort();
    let text: String = lines.iter().map(|(line, _)| line.as_str()).collect();
    Ok((sha256_hex(text.as_bytes()), lines.iter().map(|(_, size)| size).sum()))
}

struct Listing {
    files: Vec<(String, PathBuf)>,
    folders: Vec<String>,
}

/// Files, and folders by name; a link to a folder is named with its target and not followed. A folder of images may hold
/// names that no store takes; packages may not.
fn list(folder: &Path) -> Result<Listing> {
    if folder.join("MLmodel").is_file() {
        return Ok(Listing { files: folder_files(folder)?, folders: Vec::new() });
    }
    let mut found = Listing { files: Vec::new(), folders: Vec::new() };
    let mut open = vec![folder.to_path_buf()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).map_err(|e| Error::io("list", &at, e))? {
            let path = entry.map_err(|e| Error::io("list", &at, e))?.path();
            let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            if path.is_dir() && path.is_symlink() {
                let target = std::fs::read_link(&path).map_err(|e| Error::io("read the link", &path, e))?;
                found.folders.push(format!("{name} -> {}", target.display()));
            } else if path.is_dir() {
                found.folders.push(name);
                open.push(path);
            } else if path.is_file() {
                found.files.push((name, path));
            }
        }
    }
    Ok(found)
}
