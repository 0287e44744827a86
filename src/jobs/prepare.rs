//! Prepare: class folders to standardised JPEGs in split image and text TSVs, and the label file.

use super::{Artifact, Produced, StepContext};
use crate::config::parameters::PrepareParameters;
use crate::data::tsv::index_path;
use crate::data::{
    ClassRow, Labels, TextConstants, TsvWriter, keep_most_frequent, scan, stratified_split, unique_in_order,
    write_class_rows,
};
use crate::error::{Context, Error, Result};
use crate::imaging::standardise;
use crate::registry::AssetKind;
use crate::telemetry::Progress;
use rayon::prelude::*;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Images standardised before their rows are written.
const CHUNK: usize = 256;
const SPLITS: [&str; 3] = ["train", "validation", "test"];

pub(super) fn run(context: &StepContext<'_>, parameters: &PrepareParameters) -> Result<Produced> {
    let (image_folder, constants_file) = (context.path("image_folder")?, context.path("text_constants")?);
    let constants = TextConstants::read(constants_file)?;
    let found = scan(image_folder)?;
    if found.ignored > 0 {
        tracing::warn!(count = found.ignored, "entries of the image folder are no images of a class and are left out");
    }
    let texts: Vec<String> = found
        .images
        .iter()
        .map(|image| constants.text(&image.folder, &parameters.text_template))
        .collect::<Result<_>>()
        .context(|| format!("'{}'", constants_file.display()))?;
    let kept = match parameters.keep_most_frequent {
        0 => (0..texts.len()).collect(),
        n => keep_most_frequent(&texts, n),
    };
    let labels = Labels::new(unique_in_order(kept.iter().map(|&i| texts[i].as_str())))?;
    let class_ids: Vec<u32> = kept
        .iter()
        .map(|&i| labels.id(&texts[i]).ok_or_else(|| Error::internal("a text without a label")))
        .collect::<Result<_>>()?;
    for (id, label) in labels.texts().iter().enumerate() {
        let count = class_ids.iter().filter(|&&c| c as usize == id).count();
        if count < SPLITS.len() {
            return Err(Error::data(format!(
                "'{}': class '{label}' has {count} images, too few for train, validation and test: add images or remove its folder",
                image_folder.display()
            )));
        }
    }
    let split = &parameters.split;
    let parts = stratified_split(&class_ids, &[split.train, split.validation, split.test], split.seed)?;

    let label_file = context.scratch.join("unique_texts.txt");
    labels.write(&label_file)?;
    let mut produced = Produced::default();
    let bar = Progress::new("prepare", kept.len() as u64, "images");
    for (name, part) in SPLITS.iter().zip(&parts) {
        let image_tsv = context.scratch.join(format!("{name}_images.tsv"));
        let text_tsv = context.scratch.join(format!("{name}_text.tsv"));
        let images: Vec<(&str, &Path)> =
            part.iter().map(|&p| (found.images[kept[p]].key.as_str(), found.images[kept[p]].path.as_path())).collect();
        write_images(&image_tsv, &images, parameters, &bar)?;
        let rows: Vec<ClassRow> = part
            .iter()
            .map(|&p| ClassRow::new(class_ids[p], texts[kept[p]].clone(), parameters.source.clone()))
            .collect();
        write_class_rows(&text_tsv, images.iter().map(|(key, _)| *key).zip(&rows))?;
        let facts =
            json!({ "rows": part.len(), "image_size": parameters.image_size, "jpeg_quality": parameters.jpeg_quality });
        produced
            .outputs
            .insert(format!("{name}_image_tsv"), tsv(image_tsv, &format!("images of the {name} split"), &facts));
        produced
            .outputs
            .insert(format!("{name}_text_tsv"), tsv(text_tsv, &format!("texts of the {name} split"), &facts));
    }
    let facts = json!({ "classes": labels.len() });
    produced.outputs.insert("label_file".to_owned(), tsv(label_file, "label texts, one a line", &facts));
    produced.metrics = json!({
        "images": kept.len(),
        "left_out": found.images.len() - kept.len(),
        "classes": labels.len(),
        "train": parts[0].len(),
        "validation": parts[1].len(),
        "test": parts[2].len(),
    });
    Ok(produced)
}

fn write_images(path: &Path, images: &[(&str, &Path)], parameters: &PrepareParameters, bar: &Progress) -> Result<()> {
    let mut writer = TsvWriter::create(path)?;
    for chunk in images.chunks(CHUNK) {
        let encoded: Vec<Result<Vec<u8>>> = chunk
            .par_iter()
            .map(|(_, file)| {
                let bytes = std::fs::read(file).map_err(|e| Error::io("read", file, e))?;
                standardise(&bytes, parameters.image_size as usize, parameters.jpeg_quality)
                    .context(|| format!("'{}'", file.display()))
            })
            .collect();
        for ((key, _), jpeg) in chunk.iter().zip(encoded) {
            writer.write_image(key, &jpeg?)?;
        }
        bar.advance(chunk.len() as u64, "");
    }
    writer.finish().map(drop)
}

/// A TSV and its row index, or any other single file, as a dataset.
fn tsv(path: PathBuf, description: &str, metadata: &serde_json::Value) -> Artifact {
    let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let index = index_path(&path);
    let mut files = vec![(name(&path), path)];
    if index != files[0].1 && index.exists() {
        files.push((name(&index), index));
    }
    Artifact { kind: AssetKind::Data, files, description: description.to_owned(), metadata: metadata.clone() }
}
