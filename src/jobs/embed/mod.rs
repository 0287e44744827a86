//! Embed: images to one unit vector each, in shards of rows.
//!
//! Guarantees:
//! - **A shard that was finished is not done again.** It lies in the store, whole, and a later run of the same step takes it up; what
//!   comes out is the same to the byte, however often the work was interrupted and by how many processes it was done.
//! - **A bad row concerns itself alone:** it is in the ledger, with the reason, and all others are in their places. More bad rows than
//!   the job allows end it, with nothing published.
//! - Memory holds the rows in work and, of all others, what docs/data.md says: their offsets, and hashes of their keys.
//!
//! Several processes take the shards in turn; the first one puts the output together.

mod compute;
mod earlier;
mod load;
mod shards;

use super::{Artifact, Produced, StepContext};
use crate::CODE_VERSION;
use crate::config::embedding::{EmbedForm, EmbedParameters};
use crate::data::Labels;
use crate::data::embeddings::{
    BadRow, EmbeddingsManifest, EmbeddingsWriter, FORMAT_VERSION, LEDGER, Part, Reused, Space, TEXTS, Texts,
};
use crate::data::rows::{Columns, ImageRows};
use crate::error::{Error, ErrorKind, Result};
use crate::imaging::PIXELS_VERSION;
use crate::infer::{Encoder, device, model_config};
use crate::registry::{AssetKind, folder_files};
use crate::storage::sha256_hex;
use crate::telemetry::stop::StopSignal;
use compute::{Computation, Speed};
use earlier::Earlier;
use serde_json::json;
use shards::{Done, Work};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use tch::Device;

pub(super) fn run(context: &StepContext<'_>, parameters: &EmbedParameters) -> Result<Produced> {
    let mut package = context.package("mlflow_model_path")?;
    let images = ImageRows::open(
        &context.input("image_tsv")?.rows,
        &Columns { image: parameters.image_column.clone(), key: parameters.key_column.clone() },
    )?;
    if images.is_empty() {
        let wanted = "give TSVs, Parquet or Arrow files, ZIP archives, or images such as .jpg and .png";
        return Err(Error::data(format!("{} has no rows: {wanted}", images.place())));
    }
    let pixels = &mut package.config.pixels;
    pixels.jpeg_quality = parameters.image_standardization_jpeg_compression_ratio.unwrap_or(pixels.jpeg_quality);
    pixels.standard_size = parameters.image_standardization_image_size.unwrap_or(pixels.standard_size);
    let device = device::select(context.compute)?;
    let space = Space {
        dim: model_config(&package)?.projection as usize,
        model_reference: context.input("mlflow_model_path")?.origin(),
        model_digest: package.encoder_digest(),
        pixels: package.config.pixels.to_json()?,
        // what is really computed in
        precision: parameters.precision.on(device).name().to_owned(),
        pixels_version: PIXELS_VERSION,
        code_version: CODE_VERSION.to_owned(),
    };
    // noted between batches from here on, so that what is finished is kept
    let signal = StopSignal::listen()?;
    let job = Job { context, parameters, images: &images, space: &space };
    let folder = context.folder("embeddings")?;
    let (work, mut done, todo) = job.begin(&folder, device, &signal)?;
    job.check_limit(&done)?;
    let own: Vec<usize> = todo.iter().copied().skip(context.world.rank()).step_by(context.world.size()).collect();
    let labels = context.optional_path("label_file").filter(|_| context.world.is_first());
    let labels = labels.map(Labels::read).transpose()?;
    let (mut speed, mut texts) = (Speed::default(), None);
    if !own.is_empty() || labels.is_some() {
        let encoder = Encoder::load_with(&package, device, parameters.precision)?;
        texts = labels.map(|labels| job.texts(&work, &encoder, &labels)).transpose()?;
        speed = job.compute(&work, (&own, &mut done), (&encoder, &signal))?;
    }
    // from here on all of this process's work is in the store, and a signal may end it at once
    stopped(&signal)?;
    drop(signal);
    // what the others do may take long
    context.world.meet()?;
    if !context.world.is_first() {
        return Ok(Produced::default());
    }
    job.finish(&work, (done, texts), &speed)
}

struct Job<'a> {
    context: &'a StepContext<'a>,
    parameters: &'a EmbedParameters,
    images: &'a ImageRows,
    space: &'a Space,
}

/// What became of the shards that are done.
type AllDone = BTreeMap<usize, Done>;

impl Job<'_> {
    /// The shards, what is done of them, and what is to be done: the first process finds out, the others are told.
    fn begin(&self, folder: &Path, device: Device, signal: &StopSignal) -> Result<(Work, AllDone, Vec<usize>)> {
        let default = if device.is_cuda() { 8192 } else { 512 };
        let rows = self.parameters.shard_rows.unwrap_or(default);
        let device = if device.is_cuda() { "cuda" } else { "cpu" };
        let mut done = AllDone::new();
        let told = self.context.world.from_first(|| {
            let work = Work::begin(self.context, folder, (self.images.len(), rows), (self.space, device))?;
            let mut todo = Vec::new();
            for shard in 0..work.shards() {
                stopped(signal)?;
                match work.fetch(shard)? {
                    Some(found) => drop(done.insert(shard, found)),
                    None => todo.push(shard),
                }
            }
            if !done.is_empty() {
                tracing::info!(done = done.len(), of = work.shards(), "shards of an earlier run are taken up");
            }
            serde_json::to_vec(&(&work.plan, todo)).map_err(|e| Error::internal("cannot write JSON").with_source(e))
        })?;
        let (plan, todo) =
            serde_json::from_slice(&told).map_err(|e| Error::internal("cannot read a plan").with_source(e))?;
        let work = Work::new(self.context, folder, self.images.len(), plan)?;
        if !work.plan.is_of(self.space, device) {
            let (precision, theirs) = (&self.space.precision, work.plan.how());
            return Err(Error::config(format!(
                "this process computes in {precision} on {device}, rank 0 {theirs}: give all processes machines that are alike"
            )));
        }
        Ok((work, done, todo))
    }

    fn compute(
        &self,
        work: &Work,
        (own, done): (&[usize], &mut AllDone),
        (encoder, signal): (&Encoder, &StopSignal),
    ) -> Result<Speed> {
        if own.is_empty() {
            return Ok(Speed::default());
        }
        let earlier =
            work.plan.earlier.as_deref().map(|reference| Earlier::open(self.context.store, reference, self.space));
        let earlier = earlier.transpose()?.flatten();
        let computation = Computation {
            images: self.images,
            encoder,
            space: self.space,
            batch: self.parameters.batch_size,
            earlier: earlier.as_ref(),
            signal,
        };
        computation.run(work, own, |shard, found| {
            done.insert(shard, found);
            self.check_limit(done)
        })
    }

    /// Ends the job when too many rows are bad.
    fn check_limit(&self, done: &AllDone) -> Result<()> {
        self.check_bad(done.values().flat_map(|done| &done.bad))
    }

    fn check_bad<'b>(&self, bad: impl Iterator<Item = &'b BadRow>) -> Result<()> {
        let mut bad: Vec<&BadRow> = bad.collect();
        bad.sort_by_key(|bad| bad.row);
        let Some(limit) = self.parameters.too_many(bad.len() as u64, self.images.len() as u64) else { return Ok(()) };
        let Some(first) = bad.first() else { return Ok(()) };
        let (run, step) = self.context.run;
        let key = format!("runs/{run}/{step}/{LEDGER}");
        let lines: Vec<String> = bad.iter().filter_map(|bad| serde_json::to_string(bad).ok()).collect();
        let kept = self.context.store.put(&key, (lines.join("\n") + "\n").into_bytes());
        let all =
            if kept.is_ok() { format!("; all are in '{}'", self.context.store.uri_of(&key)) } else { String::new() };
        Err(Error::data(format!(
            "{} {}; {} of {} images cannot be used so far, and parameters.{limit}: mend them, or raise the limit{all}",
            self.images.place(),
            self.images.describe(first),
            bad.len(),
            self.images.len()
        )))
    }

    /// The vectors of label texts.
    fn texts(&self, work: &Work, encoder: &Encoder, labels: &Labels) -> Result<Texts> {
        let template = &self.parameters.text_template;
        let vectors = encoder.class_embeddings(labels, template)?;
        let mut part = Part::default();
        for (row, (label, vector)) in (1..).zip(labels.texts().iter().zip(vectors.chunks_exact(self.space.dim))) {
            let text = template.replace("{}", label);
            part.push(row, (label, &sha256_hex(text.as_bytes())), vector)?;
        }
        part.write(&work.dir.join(TEXTS), self.space)?;
        let label_file = self.context.input("label_file")?.identity();
        Ok(Texts { rows: part.len() as u64, template: template.clone(), label_file })
    }

    /// Puts the output together.
    fn finish(&self, work: &Work, (mut done, texts): (AllDone, Option<Texts>), speed: &Speed) -> Result<Produced> {
        for shard in 0..work.shards() {
            if let Entry::Vacant(place) = done.entry(shard) {
                let lost = || Error::storage(format!("shard {shard} is not in the store any more: run the job again"));
                place.insert(work.fetch(shard)?.ok_or_else(lost)?);
            }
        }
        let reused = done.values().map(|done| done.reused).sum();
        let manifest = EmbeddingsManifest {
            format_version: FORMAT_VERSION,
            rows: 0,
            space: self.space.clone(),
            image_tsv: self.context.input("image_tsv")?.identity(),
            image_tsv_rows: self.images.len() as u64,
            bad_rows: 0,
            reused: work.plan.earlier.clone().filter(|_| reused > 0).map(|from| Reused { from, rows: reused }),
            texts,
            parts: Vec::new(),
        };
        let forms = |form| self.parameters.formats.contains(&form);
        let mut writer =
            EmbeddingsWriter::create(&work.dir, manifest, (forms(EmbedForm::Npy), forms(EmbedForm::Pickle)))?;
        for (_, done) in done {
            writer.add(done.bad)?;
        }
        self.check_bad(writer.bad().iter())?;
        let manifest = writer.finish()?;
        if manifest.rows + manifest.bad_rows != manifest.image_tsv_rows {
            return Err(Error::internal(format!(
                "{} rows and {} bad ones of {}: some were lost",
                manifest.rows, manifest.bad_rows, manifest.image_tsv_rows
            )));
        }
        if manifest.rows == 0 {
            return Err(Error::data(format!("{} has no image that can be used", self.images.place())));
        }
        if manifest.bad_rows > 0 {
            tracing::warn!(
                bad = manifest.bad_rows,
                rows = manifest.rows,
                "some images cannot be used: bad_images.jsonl in the output says which and why"
            );
        }
        let mut metrics = speed.to_json();
        metrics["rows"] = json!(manifest.rows);
        metrics["bad_rows"] = json!(manifest.bad_rows);
        metrics["reused_rows"] = json!(reused);
        let metadata = serde_json::to_value(&manifest).unwrap_or_default();
        let mut produced = Produced { metrics, used_up: Some(work.folder.clone()), ..Produced::default() };
        produced.outputs.insert(
            "embeddings".to_owned(),
            Artifact {
                kind: AssetKind::Data,
                files: folder_files(&work.dir)?,
                description: format!("embeddings by {}", manifest.space.model_reference),
                metadata,
            },
        );
        Ok(produced)
    }
}

/// Being asked to stop between batches.
fn stopped(signal: &StopSignal) -> Result<()> {
    match signal.requested() {
        Some(name) => Err(Error::new(
            ErrorKind::Preempted,
            format!("stopped by {name}; the shards that are done are kept, the same command goes on from there"),
        )),
        None => Ok(()),
    }
}
