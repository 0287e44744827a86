//! Verbs that models and datasets share.

use crate::cli::output;
use crate::cli::place::Place;
use crate::error::{Error, Result};
use crate::registry::{
    AssetKind, FieldDiff, Reference, Removal, Version, VersionDiff, aliases, diff, get, list_names, list_removed,
    list_versions, pull, remove_alias, remove_version, set_alias,
};
use crate::storage::Store;
use clap::Subcommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum VersionsVerb {
    /// List names and their versions, with aliases.
    List {
        /// Also those that were removed, with the reasons.
        #[arg(long)]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one version.
    Show {
        /// NAME, NAME@VERSION, NAME@ALIAS or NAME@latest.
        reference: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say how two versions differ.
    Diff {
        /// The first: NAME@VERSION, NAME@ALIAS or NAME@latest.
        from: String,
        /// The second.
        to: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Copy a version into a folder, whole and verified or not at all.
    Pull {
        /// NAME, NAME@VERSION, NAME@ALIAS or NAME@latest.
        reference: String,
        /// The new folder.
        folder: PathBuf,
    },
    /// Let an alias name a version, such as NAME@7 champion; it moves if it names another.
    Alias {
        /// NAME@VERSION, NAME@ALIAS or NAME@latest.
        reference: String,
        /// Letters, digits, _ and -.
        alias: String,
    },
    /// Take an alias away; the version stays.
    Unalias {
        /// The name.
        name: String,
        /// Its alias.
        alias: String,
    },
    /// Remove a version for good; its number is never given again, its files go with `medtune gc`.
    Remove {
        /// NAME@VERSION.
        reference: String,
        /// Why, in one line: whoever asks for the version is told.
        #[arg(long)]
        reason: String,
    },
}

impl VersionsVerb {
    pub(super) fn run(self, kind: AssetKind, store: &Place) -> Result<()> {
        let store = store.open_existing()?;
        match self {
            VersionsVerb::List { all, json } => list(&store, kind, all, json),
            VersionsVerb::Show { reference, json } => show(&store, kind, &reference, json),
            VersionsVerb::Diff { from, to, json } => {
                let (from, to) = (find(&store, kind, &from)?, find(&store, kind, &to)?);
                let found = diff(&from, &to);
                if json { output::json(&found) } else { output::line(&differences(&found, &from, &to)) }
            }
            VersionsVerb::Pull { reference, folder } => {
                let version = find(&store, kind, &reference)?;
                pull(&store, &version, &folder)?;
                output::line(&format!("pulled {} to {}", version.reference(), folder.display()))
            }
            VersionsVerb::Alias { reference, alias } => {
                let (version, before) = set_alias(&store, &named(kind, &reference)?, &alias)?;
                let now = version.reference();
                output::line(&match before {
                    Some(number) if number == version.version => format!("'{alias}' is {now} already"),
                    Some(number) => format!("'{alias}' is {now} now; it was {number}"),
                    None => format!("'{alias}' is {now} now"),
                })
            }
            VersionsVerb::Unalias { name, alias } => {
                let number = remove_alias(&store, kind, &name, &alias)?;
                output::line(&format!("{kind}:{name} has no '{alias}' any more; it was {number}"))
            }
            VersionsVerb::Remove { reference, reason } => {
                let version = remove_version(&store, &named(kind, &reference)?, &reason)?;
                let (reference, size) = (version.reference(), output::bytes(version.total_size()));
                output::line(&format!("removed {reference}; its files ({size}) go with medtune gc"))
            }
        }
    }
}

fn named(kind: AssetKind, text: &str) -> Result<Reference> {
    let reference = Reference::parse(text, Some(kind))?;
    if reference.kind != kind {
        return Err(Error::usage(format!("'{text}' is a {}, not a {kind}", reference.kind)));
    }
    Ok(reference)
}

pub(in crate::cli) fn find(store: &Store, kind: AssetKind, text: &str) -> Result<Version> {
    get(store, &named(kind, text)?)
}

/// The aliases that name a version.
fn aliases_of(version: &Version, aliases: &BTreeMap<String, u64>) -> Vec<String> {
    aliases.iter().filter(|(_, n)| **n == version.version).map(|(alias, _)| alias.clone()).collect()
}

/// A version for programs: its manifest, and what the registry knows beside it.
fn described(store: &Store, version: &Version, aliases: &[String]) -> Value {
    let mut value = serde_json::to_value(version).unwrap_or_default();
    value["reference"] = json!(version.reference());
    value["uri"] = json!(version.uri(store));
    value["aliases"] = json!(aliases);
    value
}

pub(super) fn registered(store: &Store, (version, new): (Version, bool), json: bool) -> Result<()> {
    if json {
        let aliases = aliases(store, version.kind, &version.name)?;
        return output::json(&described(store, &version, &aliases_of(&version, &aliases)));
    }
    let what = if new { "registered" } else { "unchanged" };
    output::line(&format!("{what} {} at {}", version.reference(), version.uri(store)))
}

/// A line of the list.
struct Listed {
    version: Version,
    aliases: Vec<String>,
    removal: Option<Removal>,
}

fn list(store: &Store, kind: AssetKind, all: bool, json: bool) -> Result<()> {
    let mut listed = Vec::new();
    for name in list_names(store, kind)? {
        let named = aliases(store, kind, &name)?;
        let versions = list_versions(store, kind, &name)?.into_iter();
        listed.extend(versions.map(|version| {
            let aliases = aliases_of(&version, &named);
            Listed { version, aliases, removal: None }
        }));
    }
    if all {
        let removed = list_removed(store, kind)?.into_iter();
        listed.extend(removed.map(|(version, removal)| Listed {
            version,
            aliases: Vec::new(),
            removal: Some(removal),
        }));
        listed.sort_by(|a, b| (&a.version.name, a.version.version).cmp(&(&b.version.name, b.version.version)));
    }
    if json {
        let values = listed.iter().map(|l| {
            let mut value = described(store, &l.version, &l.aliases);
            if let Some(removal) = &l.removal {
                value["removed"] = json!({"created": removal.created, "reason": removal.reason});
            }
            value
        });
        return output::json(&values.collect::<Vec<_>>());
    }
    let rows = listed.into_iter().map(|Listed { version: v, aliases, removal }| {
        let text = removal.map_or(v.description.clone(), |r| format!("removed on {}: {}", r.created, r.reason));
        vec![v.reference(), aliases.join(", "), output::bytes(v.total_size()), v.created, text]
    });
    let headings = ["VERSION", "ALIASES", "SIZE", "CREATED", "DESCRIPTION"];
    output::line(&output::table(&headings, &rows.collect::<Vec<_>>()))
}

fn show(store: &Store, kind: AssetKind, text: &str, json: bool) -> Result<()> {
    let version = find(store, kind, text)?;
    let aliases = aliases_of(&version, &aliases(store, kind, &version.name)?);
    if json {
        return output::json(&described(store, &version, &aliases));
    }
    let mut lines = vec![
        format!("{}  {}", version.reference(), version.description),
        format!("  at       {}", version.uri(store)),
        format!("  created  {}", version.created),
        format!("  digest   {}", version.digest),
    ];
    lines.extend(aliases.iter().map(|alias| format!("  alias    {alias}")));
    if !version.lineage.run_id.is_empty() {
        lines.push(format!(
            "  run      {} {}",
            version.lineage.run_id,
            version.lineage.step.clone().unwrap_or_default()
        ));
    }
    lines.extend(version.tags.iter().map(|(k, v)| format!("  tag      {k}={v}")));
    lines.extend(version.lineage.inputs.iter().map(|(name, from)| format!("  from     {name}: {from}")));
    lines.extend(version.files.iter().map(|f| format!("  file     {} ({})", f.path, output::bytes(f.size))));
    output::line(&lines.join("\n"))
}

/// The longest value that the text of a comparison quotes whole, in characters.
const QUOTED: usize = 80;

/// A comparison for people.
fn differences(found: &VersionDiff, from: &Version, to: &Version) -> String {
    let title = |v: &Version| {
        let files = if v.files.len() == 1 { "1 file".to_owned() } else { format!("{} files", v.files.len()) };
        format!("{}  {files}, {}, {}", v.reference(), output::bytes(v.total_size()), v.created)
    };
    let files = &found.files;
    let counts = [(files.added.len(), "added"), (files.removed.len(), "removed"), (files.changed.len(), "changed")];
    let mut said: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    said.push(format!("{} unchanged", files.unchanged));
    let mut lines =
        vec![format!("--- {}", title(from)), format!("+++ {}", title(to)), format!("files: {}", said.join(", "))];
    lines.extend(files.added.iter().map(|f| format!("  + {} ({})", f.path, output::bytes(f.size))));
    lines.extend(files.removed.iter().map(|f| format!("  - {} ({})", f.path, output::bytes(f.size))));
    lines.extend(files.changed.iter().map(|f| {
        let (before, now) = (f.from.size, f.to.size);
        let size = if before == now {
            format!("{}, other content", output::bytes(now))
        } else {
            // so that few bytes in a large file are not rounded away
            format!("{} -> {}, {:+} B", output::bytes(before), output::bytes(now), i128::from(now) - i128::from(before))
        };
        format!("  ~ {} ({size})", f.path)
    }));
    if found.fields.is_empty() {
        lines.push("description, tags, lineage and metadata are the same".to_owned());
    } else {
        lines.push("description, tags, lineage and metadata:".to_owned());
        lines.extend(found.fields.iter().map(field));
    }
    lines.join("\n")
}

fn field(FieldDiff { field, from, to }: &FieldDiff) -> String {
    match (from, to) {
        (Some(from), Some(to)) => format!("  ~ {field}: {} -> {}", quoted(from), quoted(to)),
        (None, Some(to)) => format!("  + {field}: {}", quoted(to)),
        (from, None) => format!("  - {field}: {}", from.as_ref().map(quoted).unwrap_or_default()),
    }
}

fn quoted(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= QUOTED {
        return text;
    }
    text.chars().take(QUOTED).chain("...".chars()).collect()
}
