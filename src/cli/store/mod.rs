//! Verbs on what a store holds: models, datasets, runs. All but `model init` and `model import` work without libtorch.

mod compare;
mod data;
mod gc;
mod model;
mod runs;
mod versions;

pub(super) use data::DataVerb;
pub(super) use gc::GcArguments;
pub(super) use model::ModelVerb;
pub(super) use runs::RunsVerb;
#[cfg(feature = "torch")]
pub(super) use runs::print;
pub(super) use versions::find;
