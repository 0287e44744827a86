//! Verbs on datasets.

use super::versions::{VersionsVerb, find, registered};
use crate::cli::output;
use crate::cli::place::Place;
use crate::data::tsv::companions;
use crate::error::{Error, Result};
use crate::registry::{
    AssetKind, Lineage, NewVersion, Version, check_name, folder_files, now, publish, verify_version,
};
use crate::storage::{Store, sha256_file, sha256_hex};
use clap::Subcommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum DataVerb {
    /// Register a file or folder as a new version of a dataset.
    Register {
        /// Name in the registry.
        #[arg(long)]
        name: String,
        /// The file or folder, or a URI of one; a TSV takes its .lineidx along.
        path: String,
        /// What a reader should know.
        #[arg(long, default_value = "")]
        description: String,
        /// A tag; may be given several times.
        #[arg(long = "tag", value_name = "KEY=VALUE")]
        tags: Vec<String>,
        /// Print the version as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Hash every file of a version again.
    Verify {
        /// NAME, NAME@VERSION, NAME@ALIAS or NAME@latest.
        reference: String,
    },
    #[command(flatten)]
    Versions(VersionsVerb),
}

impl DataVerb {
    pub(in crate::cli) fn run(self, store: &Place) -> Result<()> {
        match self {
            DataVerb::Versions(verb) => verb.run(AssetKind::Data, store),
            DataVerb::Verify { reference } => {
                let store = store.open_existing()?;
                let version = find(&store, AssetKind::Data, &reference)?;
                verify_version(&store, &version)?;
                output::line(&format!("{}: every file is as it was registered", version.reference()))
            }
            DataVerb::Register { name, path, description, tags, json } => {
                let path = store.local(&path)?;
                let store = store.open()?;
                let tags = tags.iter().map(|t| tag(t)).collect::<Result<BTreeMap<_, _>>>()?;
                // both times are of this machine's clock where the version is new
                let started = now();
                let version = register(&store, NewData { name, path: &path, description, tags })?;
                let new = version.created >= started;
                registered(&store, (version, new), json)
            }
        }
    }
}

struct NewData<'a> {
    name: String,
    path: &'a Path,
    description: String,
    tags: BTreeMap<String, String>,
}

/// The same content, description and tags again are the version that exists.
fn register(store: &Store, data: NewData<'_>) -> Result<Version> {
    check_name(&data.name)?;
    let path = data.path;
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    let files = if metadata.is_dir() {
        folder_files(path)?
    } else {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let beside = companions(&name).into_iter().map(|name| (name.clone(), path.with_file_name(name)));
        let beside: Vec<_> = beside.filter(|(_, path)| path.is_file()).collect();
        std::iter::once((name, path.to_owned())).chain(beside).collect()
    };
    // two that publish different content at once must never take up one another's number
    let content: Vec<(String, String)> =
        files.iter().map(|(name, path)| Ok((name.clone(), sha256_file(path)?.sha256))).collect::<Result<_>>()?;
    let identity = json!([data.description, data.tags, content]).to_string();
    publish(
        store,
        NewVersion {
            kind: AssetKind::Data,
            name: data.name,
            description: data.description,
            tags: data.tags,
            files,
            owner: format!("register/{}", sha256_hex(identity.as_bytes())),
            lineage: Lineage { code_version: crate::CODE_VERSION.to_owned(), ..Lineage::default() },
            metadata: Value::Null,
        },
    )
}

fn tag(text: &str) -> Result<(String, String)> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(k, v)| (k.to_owned(), v.to_owned()))
        .ok_or_else(|| Error::usage(format!("--tag '{text}': write key=value")))
}
