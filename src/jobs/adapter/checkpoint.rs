//! Where the training of an adapter stands, in the store: its tensors, and then the state that names them. A run that was killed in between
//! goes on from the state before.

use super::super::StepContext;
use super::training::{Best, Epoch};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::adapter::Adapter;
use crate::model::{TchResult, engine, weights};
use crate::storage::{Store, sha256_hex};
use crate::train::checkpoint::folder;
use crate::train::optimizer::AdamW;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tch::Tensor;

const FORMAT_VERSION: u32 = 1;
const STATE: &str = "state.json";
const TENSORS: &str = "tensors.safetensors";
/// Before the names of the best epoch's weights.
const BEST: &str = "best.";

/// Tensors by name that share memory with nobody.
pub(super) type Tensors = Vec<(String, Tensor)>;

/// What is not a tensor.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    format_version: u32,
    curve: Vec<Epoch>,
    best: Option<Best>,
    /// The lines of the series.
    series: String,
    /// Of the tensors' file.
    sha256: String,
}

/// What a training has come to so far.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// The epochs that are done.
    pub(super) curve: Vec<Epoch>,
    /// The best of them, with its weights.
    pub(super) best: Option<(Best, Tensors)>,
    /// The lines of the series; only at the time of a checkpoint.
    pub(super) series: String,
}

/// The place of a training's checkpoint.
pub(super) struct Checkpoint {
    store: Store,
    folder: String,
    scratch: PathBuf,
}

impl Checkpoint {
    pub(super) fn new(context: &StepContext<'_>) -> Result<Checkpoint> {
        let scratch = context.folder("checkpoint")?;
        Ok(Checkpoint { store: context.store.clone(), folder: folder(context.continuation), scratch })
    }

    /// What training changes, as it is now.
    pub(super) fn begin(&self, (adapter, optimizer): (&Adapter, &AdamW)) -> Result<Tensors> {
        copies(&state_of(adapter, optimizer))
    }

    /// Keeps `tensors` of [`Checkpoint::begin`] and the epochs that led to them.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`], [`ErrorKind::NoSpace`].
    pub(super) fn write(&self, tensors: Tensors, done: &Done, series: &[u8]) -> Result<()> {
        let path = self.scratch.join(TENSORS);
        let Done { curve, best, .. } = done;
        let of_best = best.iter().flat_map(|(_, tensors)| tensors).map(|(name, t)| (format!("{BEST}{name}"), t));
        let all: Vec<(String, &Tensor)> = tensors.iter().map(|(name, t)| (name.clone(), t)).chain(of_best).collect();
        weights::write_tensors(&path, all.iter().map(|(name, tensor)| (name.as_str(), *tensor)))?;
        let key = self.tensors_key(curve.len());
        let written = self.store.put_file(&key, &path)?;
        let state = State {
            format_version: FORMAT_VERSION,
            curve: curve.clone(),
            best: best.as_ref().map(|(best, _)| *best),
            series: String::from_utf8_lossy(series).into_owned(),
            sha256: written.sha256,
        };
        let text =
            serde_json::to_vec(&state).map_err(|e| Error::internal("cannot write a checkpoint").with_source(e))?;
        let state_key = format!("{}/{STATE}", self.folder);
        self.store.put(&state_key, text)?;
        for object in self.store.list(&self.folder)? {
            if object.key != key && object.key != state_key {
                self.store.delete(&object.key)?;
            }
        }
        Ok(())
    }

    fn tensors_key(&self, epochs: usize) -> String {
        format!("{}/epoch-{epochs:06}.safetensors", self.folder)
    }

    /// Puts the training where its checkpoint stands. `None`, and nothing is changed, when there is none, or none that can be used.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`]; damage is no error, but a warning.
    pub(super) fn read(&self, trained: (&Adapter, &AdamW), max_epochs: usize) -> Result<Option<Done>> {
        let key = format!("{}/{STATE}", self.folder);
        let Some(state) = self.store.get(&key)? else { return Ok(None) };
        match self.restore(&state, trained, max_epochs) {
            Err(error) if matches!(error.kind(), ErrorKind::Data | ErrorKind::NotFound | ErrorKind::Package) => {
                tracing::warn!(checkpoint = %self.store.uri_of(&self.folder), %error, "a checkpoint is damaged; training begins anew");
                Ok(None)
            }
            restored => restored.map(Some),
        }
    }

    fn restore(&self, state: &[u8], (adapter, optimizer): (&Adapter, &AdamW), max_epochs: usize) -> Result<Done> {
        let state: State =
            serde_json::from_slice(state).map_err(|e| Error::data("its state cannot be read").with_source(e))?;
        let numbered = state.curve.iter().map(|e| e.epoch).eq(1..=state.curve.len());
        if state.format_version != FORMAT_VERSION || !numbered || state.curve.len() > max_epochs {
            return Err(Error::data("its state is not that of this training"));
        }
        let key = self.tensors_key(state.curve.len());
        let bytes = self.store.get(&key)?.ok_or_else(|| Error::not_found(format!("'{key}' is missing")))?;
        if sha256_hex(&bytes) != state.sha256 {
            return Err(Error::data(format!("'{key}' is not what its state names")));
        }
        let path = self.scratch.join(TENSORS);
        std::fs::write(&path, bytes).map_err(|e| Error::io("write", &path, e))?;
        let best = match state.best {
            None => None,
            Some(best) => {
                let mut weights = copies(&adapter.parameters())?;
                for (name, _) in &mut weights {
                    name.insert_str(0, BEST);
                }
                weights::load_into(&path, shared(&weights))?;
                for (name, _) in &mut weights {
                    name.drain(..BEST.len());
                }
                Some((best, weights))
            }
        };
        // last, since this changes the training; the file was read to its end already
        weights::load_into(&path, state_of(adapter, optimizer)).context(|| "its tensors")?;
        Ok(Done { curve: state.curve, best, series: state.series })
    }
}

/// Weights and moments by name, sharing memory with the training.
fn state_of(adapter: &Adapter, optimizer: &AdamW) -> Tensors {
    let weights = adapter.parameters().into_iter().map(|(name, tensor)| (format!("weights.{name}"), tensor));
    weights.chain(optimizer.state()).collect()
}

fn shared(tensors: &Tensors) -> Tensors {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

/// Copies that later steps do not change.
pub(super) fn copies(tensors: &Tensors) -> Result<Tensors> {
    let copy = |tensor: &Tensor| -> TchResult<Tensor> {
        let source = tensor.f_detach()?;
        let mut copy = source.f_empty_like()?;
        copy.f_copy_(&source)?;
        Ok(copy)
    };
    tensors.iter().map(|(name, tensor)| Ok((name.clone(), copy(tensor).map_err(engine)?))).collect()
}
