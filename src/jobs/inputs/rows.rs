//! An input of images: a file with rows (a TSV, a table, an archive, a map of archives), a folder of such files or of images, all files
//! that a pattern matches, a version with any of these; or several of them, one after the other.
//!
//! Files with rows stay where they are, also in a bucket. A folder of images in a bucket is copied to this machine, through the cache.

use super::{Located, Pins, ResolvedInput, fetch, folder_digest, locate, main_files};
use crate::config::job::Job;
use crate::config::kinds::PortType;
use crate::data::folder::is_image;
use crate::data::rows::{RemoteRows, RowsAt, is_archive, is_table};
use crate::data::tsv::{companions, index_path};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::registry::{self, FileEntry, Version};
use crate::storage::{Source, Store, sha256_file, sha256_hex};
use glob::{MatchOptions, Pattern};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where one of the sources is, with nothing read yet.
pub(super) enum Place {
    Version(Box<Version>),
    /// Of this machine: what it was named, and the files.
    Files(PathBuf, Vec<PathBuf>),
    /// A folder of images of this machine.
    Folder(PathBuf),
    /// What it was named, and the files.
    Objects(String, Vec<Source>),
    /// A folder of images.
    Below(Source),
}

/// Checks that all sources are there.
///
/// # Errors
/// As [`find`].
pub(super) fn check(store: &Store, job: &Job, texts: &[String], pins: &mut Pins) -> Result<()> {
    texts.iter().try_for_each(|text| match find(store, job, text, pins)? {
        Place::Version(version) => in_version(&version).map(drop),
        _ => Ok(()),
    })
}

/// Several sources as one input.
///
/// # Errors
/// Those of each.
pub(super) fn several(store: &Store, job: &Job, texts: &[String], pins: &mut Pins) -> Result<ResolvedInput> {
    let inputs: Vec<ResolvedInput> =
        texts.iter().map(|text| one(store, find(store, job, text, pins)?)).collect::<Result<_>>()?;
    let version = |(text, input): (&String, &ResolvedInput)| Some((text.clone(), input.version.clone()?));
    let listed = texts.iter().zip(&inputs).filter_map(version).collect();
    let lines: String = inputs.iter().map(|input| format!("{} {}\n", input.identity(), input.size)).collect();
    Ok(ResolvedInput {
        reference: inputs.iter().map(|input| input.reference.as_str()).collect::<Vec<_>>().join(", "),
        path: PathBuf::new(),
        digest: sha256_hex(lines.as_bytes()),
        size: inputs.iter().map(|input| input.size).sum(),
        version: None,
        rows: inputs.into_iter().flat_map(|input| input.rows).collect(),
        listed,
    })
}

/// Finds a source.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none, or nothing that a pattern matches; [`ErrorKind::Config`] for a malformed pattern.
pub(super) fn find(store: &Store, job: &Job, text: &str, pins: &mut Pins) -> Result<Place> {
    match locate(store, job, (text, PortType::Rows), pins)? {
        Located::Version(version) => Ok(Place::Version(version)),
        Located::Path(path) => find_here(path),
        Located::Source(source) => find_there(source),
    }
}

fn find_here(path: PathBuf) -> Result<Place> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let found = std::fs::metadata(&path);
    if found.is_err() && is_pattern(&name) {
        let pattern = pattern(&name, path.display())?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let files = files_of(folder, |name| matches(&pattern, name))?;
        if files.is_empty() {
            return Err(Error::not_found(format!("no file matches '{}'", path.display())));
        }
        return Ok(Place::Files(path, files));
    }
    if !found.map_err(|e| Error::io("open", &path, e))?.is_dir() {
        return Ok(Place::Files(path.clone(), vec![path]));
    }
    let files = files_of(&path, has_rows)?;
    Ok(if files.is_empty() { Place::Folder(path) } else { Place::Files(path, files) })
}

/// The files of a folder with such names, sorted.
fn files_of(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let read = |e| Error::io("list", folder, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let path = entry.path();
        if !wanted(&entry.file_name().to_string_lossy()) {
            continue;
        }
        // a link that leads nowhere would be rows that nobody misses
        if std::fs::metadata(&path).map_err(|e| Error::io("open", &path, e))?.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn find_there(source: Source) -> Result<Place> {
    let uri = source.uri().to_owned();
    if source.is_file()? {
        return Ok(Place::Objects(uri, vec![source]));
    }
    if is_pattern(source.name()) && !source.is_web() {
        let pattern = pattern(source.name(), &uri)?;
        let folder = source.parent();
        let matching = folder.names()?.into_iter().filter(|name| matches(&pattern, name));
        let objects: Vec<Source> = matching.map(|name| folder.child(&name)).collect();
        if objects.is_empty() {
            return Err(Error::not_found(format!("no object matches '{uri}'")));
        }
        return Ok(Place::Objects(uri, objects));
    }
    if !source.is_folder()? {
        return Err(Error::not_found(format!("there is no '{uri}'")));
    }
    let names = source.names()?.into_iter().filter(|name| has_rows(name));
    let objects: Vec<Source> = names.map(|name| source.child(&name)).collect();
    Ok(if objects.is_empty() { Place::Below(source) } else { Place::Objects(uri, objects) })
}

/// A source, known by its content.
///
/// # Errors
/// Those of reading it, and [`ErrorKind::Config`] for a version that has nothing to read images from.
pub(super) fn one(store: &Store, place: Place) -> Result<ResolvedInput> {
    let of = |reference: String, rows: Vec<RowsAt>, (digest, size): (String, u64)| ResolvedInput {
        reference,
        path: PathBuf::new(),
        digest,
        size,
        version: None,
        rows,
        listed: BTreeMap::new(),
    };
    match place {
        Place::Version(version) => of_version(store, *version),
        Place::Files(named, files) => {
            let beside = |file: &PathBuf, name: &str| here(file.with_file_name(name));
            let (rows, known) = with_archives(&files, |path| here(path.clone()), beside)?;
            Ok(of(named.display().to_string(), rows, together(known)))
        }
        Place::Folder(folder) => {
            let known = folder_digest(&folder)?;
            Ok(of(folder.display().to_string(), vec![RowsAt::Folder(folder)], known))
        }
        Place::Below(source) => {
            let folder = fetch(store, &source, PortType::Folder)?;
            let known = folder_digest(&folder)?;
            Ok(of(source.uri().to_owned(), vec![RowsAt::Folder(folder)], known))
        }
        Place::Objects(named, sources) => {
            let there = |source: &Source| match streamed(source)? {
                Some((remote, digest)) => {
                    let known = (format!("etag:{digest}"), remote.object.size());
                    Ok((RowsAt::Remote(Box::new(remote)), known))
                }
                None => here(fetch(store, source, PortType::File)?),
            };
            let beside = |source: &Source, name: &str| {
                if !source.is_web() {
                    return there(&source.parent().child(name));
                }
                let folder = source.uri().strip_suffix(source.name()).unwrap_or_default();
                there(&store.source(&format!("{folder}{name}"))?)
            };
            let (rows, known) = with_archives(&sources, there, beside)?;
            Ok(of(named, rows, together(known)))
        }
    }
}

/// Rows, and what they are known by: identity and bytes.
type Known = (RowsAt, Identity);

/// What a file or object is known by, and its size in bytes.
type Identity = (String, u64);

fn here(path: PathBuf) -> Result<Known> {
    let digest = sha256_file(&path)?;
    let mut sha256 = digest.sha256;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if is_table(&name) {
        // which may be in the keys of its rows
        sha256 = sha256_hex(format!("{sha256} {name}").as_bytes());
    }
    Ok((RowsAt::File(path), (format!("sha256:{sha256}"), digest.size)))
}

/// Opens files or objects, and with a map the archives that it names.
fn with_archives<T>(
    places: &[T],
    open: impl Fn(&T) -> Result<Known>,
    beside: impl Fn(&T, &str) -> Result<Known>,
) -> Result<(Vec<RowsAt>, Vec<Identity>)> {
    let (mut rows, mut known) = (Vec::new(), Vec::new());
    for place in places {
        let (at, identity) = open(place)?;
        known.push(identity);
        let Some(names) = at.archives()? else {
            rows.push(at);
            continue;
        };
        let mut archives = Vec::with_capacity(names.len());
        for name in names {
            let (archive, identity) = beside(place, &name).context(|| format!("an archive of '{}'", at.place()))?;
            known.push(identity);
            archives.push((name, archive));
        }
        rows.push(RowsAt::Map(Box::new(at), archives));
    }
    Ok((rows, known))
}

/// What one or several contents are known by, and their bytes: of one its own hash (with its name, of a table), of several a hash over
/// theirs.
fn together(known: Vec<Identity>) -> Identity {
    let size = known.iter().map(|(_, size)| size).sum();
    let digest = match known.as_slice() {
        [(identity, _)] => identity.rsplit(':').next().unwrap_or_default().to_owned(),
        several => sha256_hex(several.iter().map(|(id, size)| format!("{id} {size}\n")).collect::<String>().as_bytes()),
    };
    (digest, size)
}

/// An object that stays where it is, if its content can be told from another without reading it.
fn streamed(source: &Source) -> Result<Option<(RemoteRows, String)>> {
    let object = source.remote_file(None)?;
    let Some(digest) = object.fingerprint() else { return Ok(None) };
    let mut index = None;
    for name in companions(source.name()).iter().filter(|_| !source.is_web()) {
        index = if_there(source.remote_file(Some(name)))?;
    }
    Ok(Some((RemoteRows { object, index }, digest)))
}

fn if_there<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// The files of a version that rows are read from, or none where it is a folder of images.
///
/// # Errors
/// [`ErrorKind::Config`] if it has neither.
fn in_version(version: &Version) -> Result<Vec<&FileEntry>> {
    let files: Vec<&FileEntry> = main_files(version).collect();
    if files.len() == 1 && !is_image(Path::new(&files[0].path)) {
        return Ok(files);
    }
    let top = |file: &&FileEntry| !file.path.contains('/') && has_rows(&file.path);
    let with_rows: Vec<&FileEntry> = files.iter().copied().filter(top).collect();
    if with_rows.is_empty() && !files.iter().any(|file| is_image(Path::new(&file.path))) {
        let text = format!("{} has no files with rows and no images; this input takes them", version.reference());
        return Err(Error::config(text));
    }
    Ok(with_rows)
}

/// What may be a map of the version's archives: its only file besides them.
fn map_in(version: &Version) -> Option<&FileEntry> {
    let (archives, others): (Vec<&FileEntry>, Vec<&FileEntry>) = main_files(version).partition(|f| is_archive(&f.path));
    match others[..] {
        [map] if !archives.is_empty() && map.path.ends_with(".txt") => Some(map),
        _ => None,
    }
}

fn of_version(store: &Store, version: Version) -> Result<ResolvedInput> {
    let files = in_version(&version)?;
    let rows = if store.is_remote() && !files.is_empty() {
        let index = |file: &FileEntry| index_path(Path::new(&file.path)).to_string_lossy().into_owned();
        let remote = |file: &FileEntry| {
            let index = version.files.iter().find(|f| f.path == index(file));
            let index = index.map(|file| published(store, &version, file)).transpose()?;
            Ok(RowsAt::Remote(Box::new(RemoteRows { object: published(store, &version, file)?, index })))
        };
        of_files(&version, &files, remote)?
    } else {
        let folder = registry::open_local(store, &version)?;
        match files.as_slice() {
            [] => vec![RowsAt::Folder(folder)],
            files => of_files(&version, files, |file| Ok(RowsAt::File(folder.join(&file.path))))?,
        }
    };
    Ok(ResolvedInput {
        reference: version.reference(),
        path: PathBuf::new(),
        digest: version.digest.clone(),
        size: version.total_size(),
        rows,
        listed: BTreeMap::new(),
        version: Some(version),
    })
}

/// Files of a version, or the map that it has with the archives that the map names.
fn of_files(
    version: &Version,
    files: &[&FileEntry],
    open: impl Fn(&FileEntry) -> Result<RowsAt>,
) -> Result<Vec<RowsAt>> {
    // what they are known by is known of the version
    let open = |file: &FileEntry| Ok((open(file)?, (String::new(), 0)));
    let beside = |file: &&FileEntry, name: &str| {
        let path = file.path.rsplit_once('/').map_or_else(|| name.to_owned(), |(folder, _)| format!("{folder}/{name}"));
        let there = version.files.iter().find(|file| file.path == path);
        open(there.ok_or_else(|| Error::not_found(format!("{} has no '{path}'", version.reference())))?)
    };
    if let Some(map) = map_in(version) {
        let (rows, _) = with_archives(&[map], |file| open(file), beside)?;
        if matches!(rows[..], [RowsAt::Map(..)]) {
            return Ok(rows);
        }
    }
    Ok(with_archives(files, |file| open(file), beside)?.0)
}

/// A file of a version that stays in the store.
fn published(store: &Store, version: &Version, file: &FileEntry) -> Result<crate::storage::RemoteFile> {
    let object = store.remote_file(&version.key(&file.path))?;
    if object.size() == file.size {
        return Ok(object);
    }
    let (uri, size) = (object.uri(), object.size());
    let expected = format!("{} was published with {}", version.reference(), file.size);
    Err(Error::data(format!("'{uri}' has {size} bytes; {expected}")))
}

/// Whether a file of a folder is read row by row, by its name: hidden ones are not.
fn has_rows(name: &str) -> bool {
    if name.starts_with('.') {
        return false;
    }
    is_archive(name) || is_table(name) || Path::new(name).extension().is_some_and(|extension| extension == "tsv")
}

fn is_index(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "lineidx")
}

/// Whether a pattern means a file: not a hidden one unless it says so, nor the line index of a TSV.
fn matches(pattern: &Pattern, name: &str) -> bool {
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    pattern.matches_with(name, options) && !is_index(name)
}

fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

fn pattern(name: &str, of: impl std::fmt::Display) -> Result<Pattern> {
    let parsed = Pattern::new(name).map_err(|e| Error::config("it is no pattern of file names").with_source(e));
    parsed.context(|| format!("'{of}'"))
}
