//! Which store is meant, and how it is reached.

use crate::config::Environment;
use crate::config::job::Job;
use crate::data::tsv::companions;
use crate::error::{Error, Result};
use crate::storage::{Cache, Source, Store, StoreSettings, is_remote, local_folder};
use std::path::{Path, PathBuf};

/// The store that the command line or the environment names, and what stores are opened with.
#[derive(Debug)]
pub(super) struct Place {
    uri: Option<String>,
    settings: StoreSettings,
}

impl Place {
    pub(super) fn new(uri: Option<String>, environment: &Environment) -> Place {
        Place { uri, settings: StoreSettings::from_environment(environment) }
    }

    fn named(&self) -> Result<&str> {
        self.uri.as_deref().ok_or_else(|| Error::usage("which store? give --store URI or set MEDTUNE_STORE"))
    }

    /// Opens the store for writing; whether that can work is found out now.
    pub(super) fn open(&self) -> Result<Store> {
        checked(Store::open_with(self.named()?, &self.settings)?)
    }

    /// Opens the store for reading: a typing error must not make an empty store.
    pub(super) fn open_existing(&self) -> Result<Store> {
        Store::open_existing(self.named()?, &self.settings)
    }

    /// The store of the command line or environment, else that of the job file, whose relative path starts at its folder.
    #[cfg(feature = "torch")]
    pub(super) fn open_for(&self, job: &Job, dry_run: bool) -> Result<Store> {
        let open = |uri: &str, settings: &StoreSettings| {
            if dry_run { Store::open_existing(uri, settings) } else { checked(Store::open_with(uri, settings)?) }
        };
        if let Some(uri) = &self.uri {
            return open(uri, &self.settings);
        }
        let Some(section) = &job.store else {
            let text = "which store? give --store URI, set MEDTUNE_STORE, or write store: into the job file";
            return Err(Error::usage(text));
        };
        let settings = self.settings.clone().with_options(section.options.clone());
        match (section.uri.contains("://"), &job.base) {
            (true, _) => open(&section.uri, &settings),
            (false, None) => open(&job.folder.join(&section.uri).to_string_lossy(), &settings),
            (false, Some(base)) => Err(Error::config(format!(
                "store: '{}' is relative to a job file in '{base}'; write a URI, or give --store",
                section.uri
            ))),
        }
    }

    /// A file or folder of this machine: what is elsewhere is fetched into the cache.
    pub(super) fn local(&self, place: &str) -> Result<PathBuf> {
        if !is_remote(place) {
            return local_folder(place);
        }
        let source = Source::open(place, &self.settings)?;
        let cache = Cache::from_settings(&self.settings)?;
        if !source.is_file()? {
            return source.folder(&cache);
        }
        Ok(source.file(&cache, &companions(source.name()))?.0)
    }

    /// Reads a job file, from this machine or elsewhere.
    pub(super) fn load_job(&self, file: &str, set: &[String], environment: &Environment) -> Result<Job> {
        if !is_remote(file) {
            return Job::load(Path::new(file), set, environment);
        }
        let source = Source::open(file, &self.settings)?;
        Job::from_elsewhere(&source.read()?, source.uri(), set, environment)
    }
}

fn checked(store: Store) -> Result<Store> {
    store.preflight()?;
    Ok(store)
}
