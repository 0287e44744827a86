//! Inputs that lie elsewhere: objects and folders of any store, and files of web servers. They are read, never written.
//!
//! What is fetched goes through the [`Cache`]: content that is known by its ETag, and still there, is not fetched again.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStoreExt};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, ErrorKind, Result};

use super::backend::{self, Backend};
use super::fault_kind::storage_error;
use super::object::Object;
use super::settings::StoreSettings;
use super::uri::Location;
use super::{Cache, FileDigest, run, sha256_hex, transfer};

/// How many files of a folder are fetched at once.
const AT_ONCE: usize = 8;

/// Whether `text` is a URI of something that is not on this machine.
#[must_use]
pub fn is_remote(text: &str) -> bool {
    text.contains("://") && !matches!(Location::parse(text), Ok(Location::Folder(_)))
}

/// A place that inputs are read from.
#[derive(Debug)]
pub struct Source {
    backend: Backend,
    uri: String,
    /// Whether it is a web server, which lists nothing.
    web: bool,
}

/// What a place held when it was fetched.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    format_version: u32,
    uri: String,
    tag: String,
    size: u64,
    sha256: String,
}

impl Source {
    /// A place that is not on this machine: `s3://`, `az://`, `abfss://`, `gs://` or `http(s)://`. Nothing is asked yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for another or malformed URI, and for missing credentials.
    pub fn open(uri: &str, settings: &StoreSettings) -> Result<Source> {
        let location = Location::parse(uri)?;
        let shown = location.canonical();
        if matches!(location, Location::Folder(_) | Location::Memory) {
            return Err(Error::config(format!("'{shown}' is not elsewhere")));
        }
        let web = matches!(location, Location::Http(_));
        Ok(Source { backend: backend::connect(location, settings)?, uri: shown, web })
    }

    /// What has this name in this folder, reached by the same client. Not of web servers, whose names have no order.
    #[must_use]
    pub fn child(&self, name: &str) -> Source {
        self.at(joined(&self.backend.path, name))
    }

    /// The folder that this lies in, reached by the same client; as [`child`](Self::child).
    #[must_use]
    pub fn parent(&self) -> Source {
        self.at(self.backend.path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned())
    }

    fn at(&self, path: String) -> Source {
        let uri = joined(&self.backend.root_uri, &path);
        Source { backend: Backend { path, ..self.backend.clone() }, uri, web: self.web }
    }

    /// The URI in one spelling, without secrets.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The last part of the URI.
    #[must_use]
    pub fn name(&self) -> &str {
        self.uri.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it is a web server, where nothing can be listed.
    #[must_use]
    pub fn is_web(&self) -> bool {
        self.web
    }

    /// The file, on this machine, with what it is; files of the names `beside` it are taken along where there are any.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Config`] if it is a folder, those of reaching the store, and
    /// those of the cache.
    pub fn file(&self, cache: &Cache, beside: &[String]) -> Result<(PathBuf, FileDigest)> {
        let digest = self.fetch(cache, &self.backend.path, None)?;
        let mut files = vec![(checked(self.name())?, self.backend.path.clone(), digest.clone())];
        for other in beside.iter().filter(|_| !self.web) {
            let path = self.beside(other);
            match self.fetch(cache, &path, None) {
                Ok(digest) => files.push((checked(other)?, path, digest)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok((self.folder_of(cache, &files)?.join(self.name()), digest))
    }

    /// Whether there is an object of exactly this name.
    ///
    /// # Errors
    /// Those of reaching the store, also that its bucket does not exist.
    pub fn is_file(&self) -> Result<bool> {
        if self.backend.path.is_empty() && !self.web {
            return Ok(false);
        }
        let object = self.object(&self.backend.path)?;
        match run(self.backend.client.head(&object.path))? {
            Ok(_) => Ok(true),
            Err(error) => match storage_error("read", &self.uri, error) {
                error if error.kind() == ErrorKind::NotFound && !error.to_string().contains("bucket or container") => {
                    Ok(false)
                }
                error => Err(error),
            },
        }
    }

    /// Whether there are objects below this place: it is a folder.
    ///
    /// # Errors
    /// Those of reaching the store.
    pub fn is_folder(&self) -> Result<bool> {
        if self.web {
            return Ok(false);
        }
        let prefix = object_path(&self.backend.path, &self.uri)?;
        let mut listing = self.backend.client.list(Some(&prefix));
        loop {
            match run(listing.try_next())?.map_err(|e| storage_error("list", &self.uri, e))? {
                Some(meta) if meta.location != prefix => return Ok(true),
                Some(_) => {}
                None => return Ok(false),
            }
        }
    }

    /// The names of the objects directly in this folder, sorted.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] for names that are no paths, those of reaching the store.
    pub fn names(&self) -> Result<Vec<String>> {
        let prefix = object_path(&self.backend.path, &self.uri)?;
        let listing = run(self.backend.client.list_with_delimiter(Some(&prefix)))?;
        let found = listing.map_err(|e| storage_error("list", &self.uri, e))?.objects;
        let start = if self.backend.path.is_empty() { String::new() } else { format!("{}/", self.backend.path) };
        let names =
            found.iter().filter_map(|meta| meta.location.as_ref().strip_prefix(&start)).filter(|name| !name.is_empty());
        let mut names = names.map(checked).collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    /// The folder, on this machine.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there are no objects below it, [`ErrorKind::Data`] for names that are no paths,
    /// [`ErrorKind::Config`] for web servers, those of reaching the store, and those of the cache.
    pub fn folder(&self, cache: &Cache) -> Result<PathBuf> {
        if self.web {
            let text = format!("'{}': a web server lists no folder; use a file, or another store", self.uri);
            return Err(Error::config(text));
        }
        let prefix = object_path(&self.backend.path, &self.uri)?;
        let listing = self.backend.client.list(Some(&prefix)).try_collect::<Vec<ObjectMeta>>();
        let found = run(listing)?.map_err(|e| storage_error("list", &self.uri, e))?;
        let start = if self.backend.path.is_empty() { String::new() } else { format!("{}/", self.backend.path) };
        let below = found.into_iter().filter(|m| m.location.as_ref().starts_with(&start) && m.location != prefix);
        let below: Vec<ObjectMeta> = below.collect();
        if below.is_empty() {
            return Err(Error::not_found(format!("there is nothing below '{}/'", self.uri)));
        }
        let next = AtomicUsize::new(0);
        let files = Mutex::new(Vec::with_capacity(below.len()));
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(below.len()) {
                scope.spawn(|| {
                    while let Some(meta) = below.get(next.fetch_add(1, Ordering::SeqCst)) {
                        let path = meta.location.to_string();
                        let kept = checked(&path[start.len()..])
                            .and_then(|name| Ok((name, path.clone(), self.fetch(cache, &path, Some(meta))?)));
                        match kept {
                            Ok(file) => files.lock().unwrap_or_else(PoisonError::into_inner).push(file),
                            Err(error) => {
                                next.store(below.len(), Ordering::SeqCst);
                                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            }
                        }
                    }
                });
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut files = files.into_inner().unwrap_or_else(PoisonError::into_inner);
        files.sort_by(|a, b| a.0.cmp(&b.0));
        self.folder_of(cache, &files)
    }

    /// A folder of the cache with these files: name, path in the store, content.
    fn folder_of(&self, cache: &Cache, files: &[(String, String, FileDigest)]) -> Result<PathBuf> {
        let lines: String = files.iter().map(|(name, _, d)| format!("{} {} {name}\n", d.sha256, d.size)).collect();
        let wanted: Vec<(String, FileDigest)> = files.iter().map(|(name, _, d)| (name.clone(), d.clone())).collect();
        cache.folder(&sha256_hex(lines.as_bytes()), &wanted, |name, to, digest| {
            // it was there a moment ago; another process may have needed its space
            let Some((_, path, _)) = files.iter().find(|(n, _, _)| n == name) else {
                return Err(Error::internal(format!("nobody asked for '{name}'")));
            };
            run(transfer::fetch(&self.object(path)?, to, digest))?
        })
    }

    /// Makes sure that the cache has the object, and says what it is.
    fn fetch(&self, cache: &Cache, path: &str, meta: Option<&ObjectMeta>) -> Result<FileDigest> {
        let object = self.object(path)?;
        let name = sha256_hex(object.uri.as_bytes());
        let meta = match meta {
            Some(meta) => meta.clone(),
            None => run(object.head())??,
        };
        let tag = meta.e_tag.unwrap_or_default();
        let seen = cache.seen(&name).and_then(|bytes| serde_json::from_slice::<Seen>(&bytes).ok());
        if let Some(seen) =
            seen.filter(|s| s.uri == object.uri && !tag.is_empty() && s.tag == tag && s.size == meta.size)
        {
            let digest = FileDigest { size: seen.size, sha256: seen.sha256 };
            if cache.has(&digest) {
                return Ok(digest);
            }
        }
        let digest = cache.keep(&name, |to| run(transfer::fetch_unknown(&object, to))?)?;
        let seen = Seen { format_version: 1, uri: object.uri, tag, size: digest.size, sha256: digest.sha256.clone() };
        let bytes = serde_json::to_vec(&seen).map_err(|e| Error::internal("cannot write JSON").with_source(e))?;
        cache.remember(&name, &bytes).map(|()| digest)
    }

    /// The path of another name in the same folder.
    fn beside(&self, name: &str) -> String {
        joined(self.backend.path.rsplit_once('/').map_or("", |(folder, _)| folder), name)
    }

    /// The object itself, or that of another name in the same folder.
    pub(super) fn neighbour(&self, name: Option<&str>) -> Result<Object> {
        let path = name.map_or_else(|| self.backend.path.clone(), |name| self.beside(name));
        self.object(&path)
    }

    fn object(&self, path: &str) -> Result<Object> {
        let uri = joined(&self.backend.root_uri, path);
        let path = object_path(path, &uri)?;
        Ok(Object { client: self.backend.client.clone(), path, uri, local: false })
    }

    /// The content of a small file, such as a job file.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, and those of reaching the store.
    pub fn read(&self) -> Result<Vec<u8>> {
        let object = self.object(&self.backend.path)?;
        let read = async { self.backend.client.get(&object.path).await?.bytes().await };
        Ok(run(read)?.map_err(|e| storage_error("read", &self.uri, e))?.into())
    }
}

/// A folder and what is in it; either may be empty.
fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() || name.is_empty() { format!("{folder}{name}") } else { format!("{folder}/{name}") }
}

/// The raw key as a path: nothing is encoded or decoded, since other tools have written it.
fn object_path(path: &str, uri: &str) -> Result<ObjectPath> {
    let parsed = ObjectPath::parse(path);
    parsed.map_err(|e| Error::config("it is no name of an object").with_source(e)).context(|| format!("'{uri}'"))
}

/// A name that is safe as a path on this machine.
fn checked(name: &str) -> Result<String> {
    let plain = |segment: &str| !segment.is_empty() && segment != "." && segment != ".." && segment.len() <= 255;
    if name.split('/').all(plain) && !name.contains('\0') && !Path::new(name).is_absolute() {
        return Ok(name.to_owned());
    }
    Err(Error::data(format!(
        "the object '{}' has a name that is no path on this machine, rename it",
        name.escape_debug()
    )))
}
