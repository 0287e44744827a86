//! Verbs on what a store holds: models, datasets, runs. All but `model init` and `model import` work without libtorch.

mod data;
mod gc;
mod model;
mod runs;
mod versions;

use crate::error::{Error, Result};
use crate::storage::Store;

pub(super) use data::DataVerb;
pub(super) use gc::GcArguments;
pub(super) use model::ModelVerb;
pub(super) use runs::RunsVerb;
#[cfg(feature = "torch")]
pub(super) use runs::print;

/// Opens the store that the command line or the environment names.
fn open(store: Option<&str>) -> Result<Store> {
    Store::open(named(store)?)
}

/// The same for reading: a typing error must not make an empty store.
pub(super) fn open_existing(store: Option<&str>) -> Result<Store> {
    Store::open_existing(named(store)?)
}

fn named(store: Option<&str>) -> Result<&str> {
    store.ok_or_else(|| Error::usage("which store? give --store URI or set MEDTUNE_STORE"))
}
