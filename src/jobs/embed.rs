//! Embed: an image TSV to one unit vector an image.
//!
//! Several processes take the batches in turn; the first one writes what all have computed. The batches are the same however
//! many they are, and so are the vectors.

use super::{Artifact, Produced, StepContext};
use crate::CODE_VERSION;
use crate::config::parameters::EmbedParameters;
use crate::data::embeddings::{self, EmbeddingsManifest, EmbeddingsWriter};
use crate::data::{TsvReader, validate_images};
use crate::distributed::World;
use crate::distributed::rounds::{batches, gather_round};
use crate::error::{Context, Error, Result};
use crate::imaging::PixelContract;
use crate::infer::{Encoder, device};
use crate::registry::{AssetKind, folder_files};
use crate::storage::sha256_hex;
use crate::telemetry::Progress;
use rayon::prelude::*;
use serde_json::json;
use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Batches decoded ahead of the model.
const AHEAD: usize = 3;
/// Hexadecimal digits of a SHA-256.
const HASH: usize = 64;

/// One decoded batch: hashes of the image bytes, pixels.
struct Batch {
    hashes: Vec<String>,
    pixels: Vec<f32>,
}

pub(super) fn run(context: &StepContext<'_>, parameters: &EmbedParameters) -> Result<Produced> {
    let package = context.package("mlflow_model_path")?;
    let images = TsvReader::open(context.path("image_tsv")?)?;
    if images.is_empty() {
        return Err(Error::data(format!("'{}' has no rows", images.path().display())));
    }
    let keys = images.keys()?;
    validate_images(&images)?;
    let mut package = package;
    let pixels = &mut package.config.pixels;
    pixels.jpeg_quality = parameters.image_standardization_jpeg_compression_ratio.unwrap_or(pixels.jpeg_quality);
    pixels.standard_size = parameters.image_standardization_image_size.unwrap_or(pixels.standard_size);
    let encoder = Encoder::load(&package, device::select(context.compute)?)?;
    let model = context.input("mlflow_model_path")?;
    let manifest = EmbeddingsManifest {
        format_version: embeddings::FORMAT_VERSION,
        rows: images.len() as u64,
        dim: encoder.dim(),
        model_reference: model.origin(),
        model_digest: package.encoder_digest(),
        pixels: encoder.pixels().to_json()?,
        code_version: CODE_VERSION.to_owned(),
        image_tsv_sha256: context.input("image_tsv")?.digest.clone(),
    };
    let folder = context.folder("embeddings")?;
    let mut writer = context.world.is_first().then(|| EmbeddingsWriter::create(&folder, manifest)).transpose()?;
    // some may still be loading the model
    context.world.meet()?;
    let waited = encode_all((&images, &keys), &encoder, (parameters.batch_size, context.world), &mut writer)?;
    let Some(writer) = writer else { return Ok(Produced::default()) };
    let manifest = writer.finish()?;
    let metadata = serde_json::to_value(&manifest).unwrap_or_default();
    let mut produced =
        Produced { metrics: json!({ "rows": manifest.rows, "data_wait_share": waited }), ..Produced::default() };
    produced.outputs.insert(
        "embeddings".to_owned(),
        Artifact {
            kind: AssetKind::Data,
            files: folder_files(&folder)?,
            description: format!("embeddings by {}", model.origin()),
            metadata,
        },
    );
    Ok(produced)
}

/// Encodes every row; returns the share of the time that the model waited for pixels. Only the first process has a writer.
fn encode_all(
    (images, keys): (&TsvReader, &[&str]),
    encoder: &Encoder,
    (batch, world): (usize, &World),
    writer: &mut Option<EmbeddingsWriter>,
) -> Result<f64> {
    let bar = Progress::new("embed", images.len() as u64, "images");
    let started = Instant::now();
    let mut waited = Duration::ZERO;
    let pixels = encoder.pixels().clone();
    let batches = batches(images.len(), batch);
    let own = batches.iter().skip(world.rank()).step_by(world.size()).cloned();
    std::thread::scope(|scope| -> Result<()> {
        let (sender, receiver) = sync_channel::<Result<Batch>>(AHEAD);
        scope.spawn(move || {
            for rows in own {
                let loaded = load(images, rows, &pixels);
                let failed = loaded.is_err();
                // the receiver is gone when encoding failed: nothing is left to do
                if sender.send(loaded).is_err() || failed {
                    return;
                }
            }
        });
        for round in batches.chunks(world.size()) {
            let (mut features, mut hashes) = (Vec::new(), Vec::new());
            if world.rank() < round.len() {
                let asked = Instant::now();
                let loaded = receiver.recv().map_err(|_| Error::internal("the thread that reads images has ended"))?;
                waited += asked.elapsed();
                let loaded = loaded?;
                features = encoder.encode_pixels(&loaded.pixels, loaded.hashes.len())?;
                hashes = loaded.hashes.concat().into_bytes();
            }
            let features = gather_round(world, features, round, (batch, encoder.dim()))?;
            let hashes = gather_round(world, hashes, round, (batch, HASH))?;
            for (rows, (features, hashes)) in round.iter().zip(features.iter().zip(&hashes)) {
                if let Some(writer) = writer {
                    let values = hashes.chunks_exact(HASH).zip(features.chunks_exact(encoder.dim()));
                    for (key, (hash, features)) in keys[rows.clone()].iter().zip(values) {
                        writer.push(key, &String::from_utf8_lossy(hash), features)?;
                    }
                }
                bar.advance(rows.len() as u64, "");
            }
        }
        Ok(())
    })?;
    Ok(waited.as_secs_f64() / started.elapsed().as_secs_f64().max(1e-9))
}

fn load(images: &TsvReader, range: Range<usize>, contract: &PixelContract) -> Result<Batch> {
    let length = contract.tensor_len();
    let mut pixels = vec![0f32; range.len() * length];
    let hashes: Vec<Result<String>> = pixels
        .par_chunks_mut(length)
        .zip(range.into_par_iter())
        .map(|(out, index)| {
            let (key, bytes) = images.decode_image(index)?;
            contract.load(&bytes, out).map_err(|e| images.error(index, format!("key '{key}': {e}")))?;
            Ok(sha256_hex(&bytes))
        })
        .collect();
    Ok(Batch { hashes: hashes.into_iter().collect::<Result<_>>().context(|| "images")?, pixels })
}
