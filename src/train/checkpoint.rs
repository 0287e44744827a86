//! Checkpoints of a running training in the store: all that a later process needs to go on to the bit.
//!
//! Guarantees:
//! - **A checkpoint counts when its `complete.json` is there**, which is written last, after every other file was read back
//!   and found to be what was written. It names each file with size and SHA-256.
//! - **What is restored is verified**: a checkpoint of which any byte differs is passed over, with a warning, for the one before.
//! - Nothing here is shared or published: the folder `checkpoints/KEY/` belongs to one step of one job, and is removed
//!   when that step has succeeded. One run at a time works on a step ([`crate::registry::step_lock`]); one that has lost its
//!   lock may spoil a checkpoint of the other, which is then passed over.
//! - Writing does not hold up the training: files are written aside first, and go to the store from a thread.
//!
//! The best weights so far lie beside the checkpoints that name them (`best-STEP.safetensors`), once each.

use super::evaluation::Accuracies;
use super::precision::{LossScale, Mode};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::storage::{FileDigest, Store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

const FORMAT_VERSION: u32 = 1;
const COMPLETE: &str = "complete.json";
const STATE: &str = "state.json";
/// File of the weights in training; not after the last step where their average takes their place.
pub const WEIGHTS: &str = "weights.safetensors";
/// File of their moving average.
pub const AVERAGE: &str = "average.safetensors";
/// File of AdamW's moments and step counts; not after the last step.
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// File of the series of the run so far.
pub const SERIES: &str = "metrics.jsonl";
/// The best weights, in a draft or a restored checkpoint; in the store its name carries the step.
pub const BEST: &str = "best.safetensors";

/// The best evaluation so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After which step.
    pub step: u64,
    /// The tracked value there.
    pub value: f64,
}

/// Where a training stands: everything but the tensors. Order of rows, augmentation and drop path are keyed by seed, epoch and
/// row, so the step is the position of the sampler and the state of every random stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Steps of the whole training.
    pub total: u64,
    /// Rows of a step, of all processes together.
    pub rows: usize,
    /// Seed of all random streams.
    pub seed: u64,
    /// Number type of the computation.
    pub mode: Mode,
    /// CPU threads of libtorch; another number may round sums in another way.
    pub threads: i32,
    /// Whether an evaluation that is due at this step has been done.
    pub evaluated: bool,
    /// The best evaluation.
    pub best: Option<Best>,
    /// Accuracies before the first step.
    pub start: Option<Accuracies>,
    /// Accuracies of the last evaluation.
    pub last: Option<Accuracies>,
    /// Losses since the last log line.
    pub recent: Vec<f64>,
    /// Mean loss of the last log line.
    pub last_loss: Option<f64>,
    /// Loss scale of float16.
    pub loss_scale: Option<LossScale>,
    /// Steps left out since a number was not finite.
    pub skipped: u64,
}

impl State {
    /// The start of a training of `total` steps with `rows` rows each.
    pub(super) fn fresh(total: u64, rows: usize, seed: u64, mode: Mode) -> State {
        State {
            step: 0,
            total,
            rows,
            seed,
            mode,
            threads: tch::get_num_threads(),
            evaluated: true,
            best: None,
            start: None,
            last: None,
            recent: Vec::new(),
            last_loss: None,
            loss_scale: mode.loss_scale(None),
            skipped: 0,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Complete {
    format_version: u32,
    step: u64,
    files: Vec<Listed>,
}

/// A file by its name in a restored checkpoint, and its key under the training's folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Listed {
    name: String,
    key: String,
    size: u64,
    sha256: String,
}

impl Listed {
    fn digest(&self) -> FileDigest {
        FileDigest { size: self.size, sha256: self.sha256.clone() }
    }
}

/// The best weights that are in the store: after which step, and the file.
type SentBest = Option<(u64, Listed)>;

/// The checkpoints of one training.
#[derive(Debug)]
pub struct Checkpoints {
    store: Store,
    prefix: String,
    keep: usize,
    scratch: PathBuf,
    sending: Option<JoinHandle<Result<SentBest>>>,
    best: SentBest,
}

/// A restored checkpoint: its state, and a folder with its files.
#[derive(Debug)]
pub struct Restored {
    /// The state.
    pub state: State,
    /// Where the files are.
    pub folder: PathBuf,
}

/// The folder of a training's checkpoints in a store.
#[must_use]
pub fn folder(key: &str) -> String {
    format!("checkpoints/{key}")
}

/// Whether there is a checkpoint after `step` of the training `key`.
///
/// # Errors
/// [`ErrorKind::Storage`]; [`ErrorKind::Data`] when its list of files cannot be read.
pub fn exists(store: &Store, key: &str, step: u64) -> Result<bool> {
    read_complete(store, &format!("{}/{}", folder(key), step_folder(step))).map(|found| found.is_some())
}

impl Checkpoints {
    /// The checkpoints in [`folder`] of `key` in `store`, of which the newest `keep` are kept. `scratch` is for files on their
    /// way.
    #[must_use]
    pub fn new(store: &Store, key: &str, keep: usize, scratch: PathBuf) -> Checkpoints {
        let (store, prefix) = (store.clone(), folder(key));
        Checkpoints { store, prefix, keep: keep.max(1), scratch, sending: None, best: None }
    }

    /// An empty folder for the files of a checkpoint; waits until the one before is in the store.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] or [`ErrorKind::NoSpace`] of making the folder. What became of the checkpoint before is logged.
    pub fn draft(&mut self) -> Result<PathBuf> {
        if let Err(error) = self.wait() {
            tracing::warn!(%error, "a checkpoint could not be kept; training goes on");
        }
        let folder = self.scratch.join("draft");
        recreate(&folder)?;
        Ok(folder)
    }

    /// Takes the files that were written into the folder of [`Checkpoints::draft`], and `state`, to the store: in the
    /// background, see [`Checkpoints::wait`].
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] or [`ErrorKind::NoSpace`] of writing the state.
    pub fn publish(&mut self, draft: PathBuf, state: &State) -> Result<()> {
        let path = draft.join(STATE);
        let text = serde_json::to_vec_pretty(state)
            .map_err(|e| Error::internal("cannot write the state of a training").with_source(e))?;
        fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
        let sender = Sender {
            store: self.store.clone(),
            prefix: self.prefix.clone(),
            keep: self.keep,
            step: state.step,
            best_step: state.best.map(|b| b.step),
            sent: self.best.clone(),
        };
        let spawned = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(move || sender.send(&draft));
        let handle = spawned.map_err(|e| Error::internal("cannot start a thread for a checkpoint").with_source(e))?;
        self.sending = Some(handle);
        Ok(())
    }

    /// Waits until the last published checkpoint is complete.
    ///
    /// # Errors
    /// Why it could not be kept: [`ErrorKind::NoSpace`] or [`ErrorKind::Storage`], also when the store holds other bytes than were
    /// written.
    pub fn wait(&mut self) -> Result<()> {
        let Some(handle) = self.sending.take() else { return Ok(()) };
        self.best = handle.join().map_err(|_| Error::internal("the thread of a checkpoint panicked"))??;
        Ok(())
    }

    /// The newest checkpoint that is complete and undamaged, its files fetched; `None` when there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`] or [`ErrorKind::NoSpace`]; damage is no error, see the module's guarantees.
    pub fn newest(&self) -> Result<Option<Restored>> {
        for step in steps(&self.store, &self.prefix)?.into_iter().rev() {
            let key = format!("{}/{}", self.prefix, step_folder(step));
            match self.restore(&key) {
                Ok(None) => {}
                Ok(Some(restored)) => return Ok(Some(restored)),
                Err(error) if matches!(error.kind(), ErrorKind::Data | ErrorKind::NotFound) => {
                    let checkpoint = self.store.uri_of(&key);
                    tracing::warn!(%checkpoint, %error, "a checkpoint is damaged; the one before is looked at");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn restore(&self, key: &str) -> Result<Option<Restored>> {
        let Some(complete) = read_complete(&self.store, key)? else { return Ok(None) };
        let folder = self.scratch.join("restored");
        recreate(&folder)?;
        for file in &complete.files {
            if Path::new(&file.name).components().count() != 1 || file.name.contains("..") {
                return Err(Error::data(format!("'{key}/{COMPLETE}' names a file outside its folder")));
            }
            let source = format!("{}/{}", self.prefix, file.key);
            self.store.download(&source, &folder.join(&file.name), &file.digest())?;
        }
        let path = folder.join(STATE);
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let state = serde_json::from_slice(&bytes)
            .map_err(|e| Error::data(format!("'{key}/{STATE}' cannot be read")).with_source(e))?;
        Ok(Some(Restored { state, folder }))
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        // a training that failed leaves its last checkpoint whole
        if let Err(error) = self.wait() {
            tracing::warn!(%error, "a checkpoint could not be kept");
        }
    }
}

/// Takes one checkpoint to the store.
struct Sender {
    store: Store,
    prefix: String,
    keep: usize,
    step: u64,
    best_step: Option<u64>,
    sent: SentBest,
}

impl Sender {
    fn send(self, draft: &Path) -> Result<SentBest> {
        let place = step_folder(self.step);
        let complete_key = format!("{}/{place}/{COMPLETE}", self.prefix);
        // one that was passed over as damaged must not look complete while it is written anew
        self.store.delete(&complete_key)?;
        let mut files = Vec::new();
        let mut best = None;
        for name in names(draft)? {
            if name != BEST {
                files.push(self.put(draft, &name, format!("{place}/{name}"))?);
                continue;
            }
            let step = self.best_step.unwrap_or_default();
            let sent = self.sent.clone().filter(|(sent, _)| *sent == step).map(|(_, listed)| listed);
            let listed = match sent {
                Some(listed) => listed,
                None => self.put(draft, BEST, format!("best-{step:08}.safetensors"))?,
            };
            best = Some((step, listed.clone()));
            files.push(listed);
        }
        let complete = Complete { format_version: FORMAT_VERSION, step: self.step, files };
        let text = serde_json::to_vec_pretty(&complete)
            .map_err(|e| Error::internal("cannot write a checkpoint's list of files").with_source(e))?;
        self.store.put(&complete_key, text)?;
        tracing::info!(step = self.step, checkpoint = %self.store.uri_of(&self.prefix), "checkpoint complete");
        self.retain()?;
        remove(draft);
        Ok(best)
    }

    /// Writes a file and reads it back.
    fn put(&self, draft: &Path, name: &str, key: String) -> Result<Listed> {
        let full = format!("{}/{key}", self.prefix);
        let written = self.store.put_file(&full, &draft.join(name))?;
        if self.store.digest(&full)?.as_ref() != Some(&written) {
            let uri = self.store.uri_of(&full);
            return Err(Error::storage(format!("'{uri}' is not what was written to it; check the store's disk")));
        }
        Ok(Listed { name: name.to_owned(), key, size: written.size, sha256: written.sha256 })
    }

    /// Removes older checkpoints, unfinished ones too, and best weights that none of the kept ones names.
    fn retain(&self) -> Result<()> {
        let (mut kept, mut used) = (0, BTreeSet::new());
        for step in steps(&self.store, &self.prefix)?.into_iter().rev() {
            let key = format!("{}/{}", self.prefix, step_folder(step));
            let complete = match read_complete(&self.store, &key) {
                Err(error) if error.kind() == ErrorKind::Data => None,
                other => other?,
            };
            match complete.filter(|_| kept < self.keep && step <= self.step) {
                Some(complete) => {
                    kept += 1;
                    used.extend(complete.files.into_iter().map(|f| f.key));
                }
                // what is ahead was passed over as damaged
                None => {
                    self.store.delete(&format!("{key}/{COMPLETE}"))?;
                    self.store.delete_folder(&key)?;
                }
            }
        }
        for object in self.store.list(&self.prefix)? {
            let relative = object.key.strip_prefix(&format!("{}/", self.prefix)).unwrap_or(&object.key);
            if relative.starts_with("best-") && !used.contains(relative) {
                self.store.delete(&object.key)?;
            }
        }
        Ok(())
    }
}

fn step_folder(step: u64) -> String {
    format!("step-{step:08}")
}

/// The steps of which there is anything, rising.
fn steps(store: &Store, prefix: &str) -> Result<BTreeSet<u64>> {
    let start = format!("{prefix}/step-");
    let objects = store.list(prefix)?;
    Ok(objects.iter().filter_map(|o| o.key.strip_prefix(&start)?.split('/').next()?.parse().ok()).collect())
}

fn read_complete(store: &Store, key: &str) -> Result<Option<Complete>> {
    let path = format!("{key}/{COMPLETE}");
    let Some(bytes) = store.get(&path)? else { return Ok(None) };
    let complete: Complete = serde_json::from_slice(&bytes)
        .map_err(|e| Error::data(format!("'{}' cannot be read", store.uri_of(&path))).with_source(e))?;
    if complete.format_version != FORMAT_VERSION {
        let version = complete.format_version;
        return Err(Error::data(format!("'{}' has format version {version}, not 1", store.uri_of(&path))));
    }
    Ok(Some(complete))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let list = fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    let mut names: Vec<String> = list.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn remove(folder: &Path) {
    // scratch: what is left of it goes with the run's folder
    drop(fs::remove_dir_all(folder));
}

fn recreate(folder: &Path) -> Result<()> {
    remove(folder);
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e)).context(|| "a checkpoint's scratch folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64, best: u64) -> State {
        State {
            step,
            total: 9,
            rows: 12,
            seed: 1,
            mode: Mode::F32,
            threads: 2,
            evaluated: true,
            best: Some(Best { step: best, value: 0.1 + 0.2 }),
            start: None,
            last: Some(Accuracies { zero_shot: Some(1.0 / 3.0), knn: None }),
            recent: vec![0.1, 1e-17],
            last_loss: None,
            loss_scale: Some(LossScale::default()),
            skipped: 0,
        }
    }

    fn save(checkpoints: &mut Checkpoints, step: u64, best: u64) {
        let draft = checkpoints.draft().unwrap();
        fs::write(draft.join(WEIGHTS), format!("weights {step}")).unwrap();
        fs::write(draft.join(BEST), format!("best {best}")).unwrap();
        checkpoints.publish(draft, &state(step, best)).unwrap();
        checkpoints.wait().unwrap();
    }

    fn keys(store: &Store) -> Vec<String> {
        store.list("checkpoints/k").unwrap().into_iter().map(|o| o.key["checkpoints/k/".len()..].to_owned()).collect()
    }

    #[test]
    fn the_newest_whole_one_is_restored_and_old_ones_go() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::in_memory();
        let open = || Checkpoints::new(&store, "k", 2, scratch.path().to_owned());
        assert!(open().newest().unwrap().is_none());
        let mut checkpoints = open();
        for (step, best) in [(2, 2), (4, 4), (6, 4)] {
            save(&mut checkpoints, step, best);
        }
        let folder = |step: u64| [COMPLETE, STATE, WEIGHTS].map(|f| format!("step-{step:08}/{f}")).to_vec();
        assert_eq!(keys(&store), [vec!["best-00000004.safetensors".to_owned()], folder(4), folder(6)].concat());
        let restored = open().newest().unwrap().unwrap();
        assert_eq!(restored.state, state(6, 4));
        assert_eq!(fs::read_to_string(restored.folder.join(WEIGHTS)).unwrap(), "weights 6");
        assert_eq!(fs::read_to_string(restored.folder.join(BEST)).unwrap(), "best 4");

        // without its last file it is not there; damaged it is passed over, and the next save clears it away
        store.put("checkpoints/k/step-00000008/weights.safetensors", b"half".to_vec()).unwrap();
        store.put("checkpoints/k/step-00000006/weights.safetensors", b"weights 7".to_vec()).unwrap();
        let mut again = open();
        assert_eq!(again.newest().unwrap().unwrap().state.step, 4);
        save(&mut again, 5, 4);
        assert_eq!(again.newest().unwrap().unwrap().state.step, 5);
        assert!(keys(&store).iter().all(|k| !k.contains("00000006") && !k.contains("00000008")));
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::in_memory();
        let mut checkpoints = Checkpoints::new(&store, "k", 1, scratch.path().join("s"));
        save(&mut checkpoints, 1, 1);
        let key = "checkpoints/k/step-00000001/complete.json";
        let text = String::from_utf8(store.get(key).unwrap().unwrap()).unwrap();
        store.put(key, text.replace("\"name\": \"weights", "\"name\": \"../weights").into_bytes()).unwrap();
        assert!(checkpoints.newest().unwrap().is_none());
        assert!(!scratch.path().join("s/weights.safetensors").exists());
    }
}
