//! Embed: an image TSV to one unit vector an image.

use super::{Artifact, Produced, StepContext};
use crate::CODE_VERSION;
use crate::config::parameters::EmbedParameters;
use crate::data::embeddings::{self, EmbeddingsManifest, EmbeddingsWriter};
use crate::data::{TsvReader, validate_images};
use crate::error::{Context, Error, Result};
use crate::imaging::PixelContract;
use crate::infer::{Encoder, device};
use crate::registry::{AssetKind, folder_files};
use crate::storage::sha256_hex;
use crate::telemetry::Progress;
use rayon::prelude::*;
use serde_json::json;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Batches decoded ahead of the model.
const AHEAD: usize = 3;

/// One decoded batch: keys, hashes of the image bytes, pixels.
struct Batch {
    rows: Vec<(String, String)>,
    pixels: Vec<f32>,
}

pub(super) fn run(context: &StepContext<'_>, parameters: &EmbedParameters) -> Result<Produced> {
    let package = context.package("mlflow_model_path")?;
    let images = TsvReader::open(context.path("image_tsv")?)?;
    if images.is_empty() {
        return Err(Error::data(format!("'{}' has no rows", images.path().display())));
    }
    images.keys().map(drop)?;
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
    let mut writer = EmbeddingsWriter::create(&folder, manifest)?;
    let waited = encode_all(&images, &encoder, parameters.batch_size, &mut writer)?;
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

/// Encodes every row; returns the share of the time that the model waited for pixels.
fn encode_all(images: &TsvReader, encoder: &Encoder, batch: usize, writer: &mut EmbeddingsWriter) -> Result<f64> {
    let bar = Progress::new("embed", images.len() as u64, "images");
    let started = Instant::now();
    let mut waited = Duration::ZERO;
    let pixels = encoder.pixels().clone();
    std::thread::scope(|scope| -> Result<()> {
        let (sender, receiver) = sync_channel::<Result<Batch>>(AHEAD);
        scope.spawn(move || {
            let mut start = 0;
            while start < images.len() {
                let end = (start + batch).min(images.len());
                let loaded = load(images, start..end, &pixels);
                let failed = loaded.is_err();
                // the receiver is gone when encoding failed: nothing is left to do
                if sender.send(loaded).is_err() || failed {
                    return;
                }
                start = end;
            }
        });
        loop {
            let asked = Instant::now();
            let Ok(loaded) = receiver.recv() else { return Ok(()) };
            waited += asked.elapsed();
            let loaded = loaded?;
            let features = encoder.encode_pixels(&loaded.pixels, loaded.rows.len())?;
            for ((key, hash), row) in loaded.rows.iter().zip(features.chunks_exact(encoder.dim())) {
                writer.push(key, hash, row)?;
            }
            bar.advance(loaded.rows.len() as u64, "");
        }
    })?;
    Ok(waited.as_secs_f64() / started.elapsed().as_secs_f64().max(1e-9))
}

fn load(images: &TsvReader, range: std::ops::Range<usize>, contract: &PixelContract) -> Result<Batch> {
    let length = contract.tensor_len();
    let mut pixels = vec![0f32; range.len() * length];
    let rows: Vec<Result<(String, String)>> = pixels
        .par_chunks_mut(length)
        .zip(range.into_par_iter())
        .map(|(out, index)| {
            let (key, bytes) = images.decode_image(index)?;
            contract.load(&bytes, out).map_err(|e| images.error(index, format!("key '{key}': {e}")))?;
            Ok((key, sha256_hex(&bytes)))
        })
        .collect();
    Ok(Batch { rows: rows.into_iter().collect::<Result<_>>().context(|| "images")?, pixels })
}
