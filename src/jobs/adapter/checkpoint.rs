//! Where the training of an adapter stands, in the store: its tensors, and then the state that names them. A run that was killed in between
//! goes on from the state before.

use super::training::{Best, Epoch};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::adapter::Adapter;
use crate::model::{TchResult, engine, weights};
use crate::storage::{FileDigest, Store};
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
    partial: Partial,
    /// CPU threads of libtorch, and the device; others may round sums in another way.
    threads: i32,
    device: String,
    /// The tensors' file.
    tensors: FileDigest,
}

/// Of an epoch that is not at its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Partial {
    /// Batches that are done.
    pub(super) batches: usize,
    /// The sum of their rows' losses, by weight.
    pub(super) loss: f64,
    /// The sum of the weights.
    pub(super) weight: f64,
}

/// What a training has come to so far.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// The epochs that are done.
    pub(super) curve: Vec<Epoch>,
    /// The best of them, with its weights.
    pub(super) best: Option<(Best, Tensors)>,
    /// Of the epoch after them.
    pub(super) partial: Partial,
    /// The lines of the series; only of a training that was read.
    pub(super) series: String,
}

/// The place of a training's checkpoint.
pub(super) struct Checkpoint {
    store: Store,
    folder: String,
    scratch: PathBuf,
}

impl Checkpoint {
    /// The place in `store` of the training that `key` names; `scratch` is a folder for files on their way.
    pub(super) fn new(store: &Store, key: &str, scratch: PathBuf) -> Checkpoint {
        Checkpoint { store: store.clone(), folder: folder(key), scratch }
    }

    /// Keeps the training as it stands.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`], [`ErrorKind::NoSpace`].
    pub(super) fn write(&self, (adapter, optimizer): (&Adapter, &AdamW), done: &Done, series: &[u8]) -> Result<()> {
        let path = self.scratch.join(TENSORS);
        let Done { curve, best, partial, .. } = done;
        let mut all = state_of(adapter, optimizer);
        let of_best = best.iter().flat_map(|(_, tensors)| tensors);
        all.extend(of_best.map(|(name, tensor)| (format!("{BEST}{name}"), tensor.shallow_clone())));
        weights::write_tensors(&path, all.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
        let key = self.tensors_key(curve.len(), *partial);
        let state = State {
            format_version: FORMAT_VERSION,
            curve: curve.clone(),
            best: best.as_ref().map(|(best, _)| *best),
            series: String::from_utf8_lossy(series).into_owned(),
            partial: *partial,
            threads: tch::get_num_threads(),
            device: device_of(adapter),
            tensors: self.store.put_file(&key, &path)?,
        };
        let text =
            serde_json::to_vec(&state).map_err(|e| Error::internal("cannot write a checkpoint").with_source(e))?;
        let state_key = format!("{}/{STATE}", self.folder);
        self.store.put(&state_key, text)?;
        // the checkpoint is there: what is left of the one before is no reason to say otherwise
        if let Err(error) = self.remove_all_but(&[&key, &state_key]) {
            tracing::warn!(%error, "an older checkpoint could not be removed");
        }
        Ok(())
    }

    fn remove_all_but(&self, kept: &[&str]) -> Result<()> {
        let objects = self.store.list(&self.folder)?;
        objects.iter().filter(|o| !kept.contains(&o.key.as_str())).try_for_each(|o| self.store.delete(&o.key))
    }

    fn tensors_key(&self, epochs: usize, partial: Partial) -> String {
        format!("{}/epoch-{epochs:06}-{:08}.safetensors", self.folder, partial.batches)
    }

    /// Puts the training where its checkpoint stands; `(epochs, batches)` are how many it has at most, batches in an epoch. `None` when there is
    /// none, or none that can be used, and then nothing is changed.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`]; damage is no error, but a warning.
    pub(super) fn read(&self, trained: (&Adapter, &AdamW), most: (usize, usize)) -> Result<Option<Done>> {
        let key = format!("{}/{STATE}", self.folder);
        let Some(state) = self.store.get(&key)? else { return Ok(None) };
        match self.restore(&state, trained, most) {
            Err(error) if matches!(error.kind(), ErrorKind::Data | ErrorKind::NotFound | ErrorKind::Package) => {
                tracing::warn!(checkpoint = %self.store.uri_of(&self.folder), %error, "a checkpoint is damaged; training begins anew");
                Ok(None)
            }
            restored => restored.map(Some),
        }
    }

    fn restore(
        &self,
        state: &[u8],
        (adapter, optimizer): (&Adapter, &AdamW),
        (epochs, batches): (usize, usize),
    ) -> Result<Done> {
        let state: State =
            serde_json::from_slice(state).map_err(|e| Error::data("its state cannot be read").with_source(e))?;
        let numbered = state.curve.iter().map(|e| e.epoch).eq(1..=state.curve.len());
        let best = state.best.map_or(state.curve.is_empty(), |best| (1..=state.curve.len()).contains(&best.epoch));
        let fits = state.curve.len() <= epochs && state.partial.batches <= batches;
        if state.format_version != FORMAT_VERSION || !(numbered && best && fits) {
            return Err(Error::data("its state is not that of this training"));
        }
        let path = self.scratch.join(TENSORS);
        self.store.download(&self.tensors_key(state.curve.len(), state.partial), &path, &state.tensors)?;
        let (mut kept, mut targets) = (Vec::new(), state_of(adapter, optimizer));
        if state.best.is_some() {
            kept = copies(&adapter.parameters())?;
            targets.extend(kept.iter().map(|(name, tensor)| (format!("{BEST}{name}"), tensor.shallow_clone())));
        }
        weights::load_into(&path, targets).context(|| "its tensors")?;
        let (threads, device) = (tch::get_num_threads(), device_of(adapter));
        if (state.threads, state.device.as_str()) != (threads, device.as_str()) {
            tracing::warn!(
                "the checkpoint was written with {} threads on {}, this run has {threads} on {device}: the result may differ in the last digits",
                state.threads,
                state.device
            );
        }
        let best = state.best.map(|best| (best, kept));
        Ok(Done { curve: state.curve, best, partial: state.partial, series: state.series })
    }
}

fn device_of(adapter: &Adapter) -> String {
    format!("{:?}", adapter.parameters()[0].1.device())
}

/// Weights and moments by name, sharing memory with the training.
fn state_of(adapter: &Adapter, optimizer: &AdamW) -> Tensors {
    let weights = adapter.parameters().into_iter().map(|(name, tensor)| (format!("weights.{name}"), tensor));
    weights.chain(optimizer.state()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::adapter::AdapterConfig;
    use crate::train::optimizer::{Rules, Settings};
    use tch::Device;

    fn training(seed: u64) -> (Adapter, AdamW) {
        let config = AdapterConfig { input_channels: 3, hidden_dimensions: 2, classes: 2 };
        let adapter = Adapter::init(config, seed, Device::Cpu).unwrap();
        let optimizer = AdamW::new(&adapter.parameters(), Settings::default(), &Rules::default()).unwrap();
        (adapter, optimizer)
    }

    fn step((adapter, optimizer): &mut (Adapter, AdamW)) {
        optimizer.zero_grad().unwrap();
        let loss = adapter.forward(&Tensor::from_slice(&[0.5f32, -1.0, 2.0]).view([1, 3])).unwrap();
        loss.square().sum(tch::Kind::Float).backward();
        optimizer.step(|lr| lr).unwrap();
    }

    fn same(a: &(Adapter, AdamW), b: &(Adapter, AdamW)) -> bool {
        let (a, b) = (state_of(&a.0, &a.1), state_of(&b.0, &b.1));
        a.iter().zip(&b).all(|((n, a), (m, b))| n == m && a.equal(b))
    }

    fn done(training: &(Adapter, AdamW), epochs: usize) -> Done {
        let epoch = |n| serde_json::json!({ "epoch": n, "loss": 0.1 + 0.2, "acc": 1.0 / 3.0, "auc": null });
        let curve = serde_json::from_value((1..=epochs).map(epoch).collect()).unwrap();
        let best = (epochs > 0).then(|| (Best { epoch: 1, value: 0.5 }, copies(&training.0.parameters()).unwrap()));
        Done { curve, best, partial: Partial { batches: 2, loss: 0.7, weight: 16.0 }, series: String::new() }
    }

    #[test]
    fn a_training_goes_on_as_if_nothing_had_been() {
        let (store, scratch) = (Store::in_memory(), tempfile::tempdir().unwrap());
        let place = Checkpoint::new(&store, "k", scratch.path().to_owned());
        let mut first = training(1);
        assert!(place.read((&first.0, &first.1), (9, 9)).unwrap().is_none());
        step(&mut first);
        let written = done(&first, 1);
        step(&mut first);
        place.write((&first.0, &first.1), &written, b"lines").unwrap();
        let mut second = training(2);
        let read = place.read((&second.0, &second.1), (9, 9)).unwrap().unwrap();
        assert!(same(&first, &second));
        assert_eq!((&read.curve, read.partial, read.series.as_str()), (&written.curve, written.partial, "lines"));
        let ((best, kept), (_, expected)) = (read.best.unwrap(), written.best.unwrap());
        assert_eq!(best, Best { epoch: 1, value: 0.5 });
        assert!(kept.iter().zip(&expected).all(|((n, a), (m, b))| n == m && a.equal(b)));
        // moments, step counts and gradients too: the next step is the same
        step(&mut first);
        step(&mut second);
        assert!(same(&first, &second));
    }

    #[test]
    fn a_run_that_was_killed_while_it_wrote_has_the_one_before() {
        let (store, scratch) = (Store::in_memory(), tempfile::tempdir().unwrap());
        let place = Checkpoint::new(&store, "k", scratch.path().to_owned());
        let mut first = training(1);
        place.write((&first.0, &first.1), &done(&first, 1), b"").unwrap();
        let state = store.get("checkpoints/k/state.json").unwrap().unwrap();
        let old = store.list("checkpoints/k").unwrap();
        let old = old.iter().map(|o| o.key.clone()).find(|key| key.ends_with(".safetensors")).unwrap();
        let tensors = store.get(&old).unwrap().unwrap();
        step(&mut first);
        place.write((&first.0, &first.1), &done(&first, 2), b"").unwrap();
        assert_eq!(store.list("checkpoints/k").unwrap().len(), 2);
        store.put("checkpoints/k/state.json", state).unwrap();
        store.put(&old, tensors).unwrap();
        let second = training(2);
        assert_eq!(place.read((&second.0, &second.1), (9, 9)).unwrap().unwrap().curve.len(), 1);
        assert!(same(&training(1), &second));
    }

    #[test]
    fn what_cannot_be_of_this_training_is_passed_over() {
        let (store, scratch) = (Store::in_memory(), tempfile::tempdir().unwrap());
        let place = Checkpoint::new(&store, "k", scratch.path().to_owned());
        let first = training(1);
        place.write((&first.0, &first.1), &done(&first, 3), b"").unwrap();
        let second = training(2);
        for most in [(2, 9), (9, 1)] {
            assert!(place.read((&second.0, &second.1), most).unwrap().is_none(), "{most:?}");
        }
        let state = String::from_utf8(store.get("checkpoints/k/state.json").unwrap().unwrap()).unwrap();
        let best = r#""best":{"epoch":1,"#;
        assert!(state.contains(best));
        for changed in
            [state.replace(best, r#""best":{"epoch":8,"#), state.replace(best, r#""best":null,"other":{"epoch":1,"#)]
        {
            store.put("checkpoints/k/state.json", changed.into_bytes()).unwrap();
            assert!(place.read((&second.0, &second.1), (9, 9)).unwrap().is_none());
        }
        assert!(same(&training(2), &second));
    }
}
