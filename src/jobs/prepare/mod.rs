//! Prepare: images of classes to standardised JPEGs in split image and text TSVs, and the label file.

mod images;

use super::{Artifact, Produced, StepContext};
use crate::config::preparation::PrepareParameters;
use crate::config::split::{Repeated, SplitMethod, SplitParameters};
use crate::data::tsv::{image_value, index_path};
use crate::data::{
    ClassRow, DescribedRow, ImageFile, Labels, TextConstants, TsvWriter, first_alike, grouped_split,
    keep_most_frequent, sklearn_split, stratified_split, unique_in_order, write_text_rows,
};
use crate::error::{Context, Error, Result};
use crate::imaging::standardise;
use crate::registry::AssetKind;
use crate::storage::sha256_file;
use crate::telemetry::Progress;
use images::{Images, Table};
use rayon::prelude::*;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Images standardised before their rows are written.
const CHUNK: usize = 256;
const SPLITS: [&str; 3] = ["train", "validation", "test"];

pub(super) fn run(context: &StepContext<'_>, parameters: &PrepareParameters) -> Result<Produced> {
    let (image_folder, constants) = (context.path("image_folder")?, context.path("text_constants")?);
    let table = context.optional_path("image_metadata").map(|about| Table::read(about, parameters)).transpose()?;
    let (found, texts) = read((image_folder, constants), table, parameters)?;
    found.warn();
    let mut kept = kept(&texts, parameters);
    let mut alike = first_alike(&contents(&found.files, &kept)?);
    let repeated = alike.iter().enumerate().filter(|(row, first)| row != *first).count();
    if parameters.split.repeated == Repeated::Drop {
        warn_of_contradictions(&found.files, &texts, (&kept, &alike));
        let mut rows = alike.iter().enumerate();
        kept.retain(|_| rows.next().is_some_and(|(row, first)| row == *first));
        alike = (0..kept.len()).collect();
    }
    // by folder or value, not by where an image of the class happens to come first
    let mut by_folder = kept.clone();
    by_folder.sort_by_key(|&image| &found.files[image].folder);
    let labels = Labels::new(unique_in_order(by_folder.iter().map(|&i| texts[i].as_str())))?;
    let class_ids: Vec<u32> = kept
        .iter()
        .map(|&i| labels.id(&texts[i]).ok_or_else(|| Error::internal("a text without a label")))
        .collect::<Result<_>>()?;
    for (id, label) in labels.texts().iter().enumerate() {
        let count = class_ids.iter().filter(|&&c| c as usize == id).count();
        if count < SPLITS.len() {
            return Err(Error::data(format!(
                "'{}': class '{label}' has {count} images, too few for train, validation and test: add images or leave the class out",
                image_folder.display()
            )));
        }
    }
    let keys: Vec<&str> = kept.iter().map(|&i| found.files[i].key.as_str()).collect();
    let groups = found.groups(&kept, &parameters.split)?;
    let parts = match &groups {
        Some(groups) => {
            let split = &parameters.split;
            warn_of_letter_case(groups);
            grouped_split(
                &class_ids,
                groups,
                &[split.train, split.validation, split.test],
                (labels.texts(), split.seed),
            )?
        }
        None => split(&parameters.split, &class_ids, &labels)?,
    };
    check_leaks(&parts, &alike, &keys, parameters.split.repeated)?;

    let label_file = context.scratch.join("unique_texts.txt");
    labels.write(&label_file)?;
    let mut produced = Produced::default();
    let bar = Progress::new("prepare", kept.len() as u64, "images");
    for (name, part) in SPLITS.iter().zip(&parts) {
        let image_tsv = context.scratch.join(format!("{name}_images.tsv"));
        let text_tsv = context.scratch.join(format!("{name}_text.tsv"));
        let images: Vec<(&str, &Path)> = part.iter().map(|&p| (keys[p], found.files[kept[p]].path.as_path())).collect();
        write_images(&image_tsv, &images, parameters, &bar)?;
        let row = |&p: &usize| {
            let class = ClassRow::new(class_ids[p], texts[kept[p]].clone(), parameters.source.clone());
            (keys[p], DescribedRow { class, fields: found.fields(kept[p]) })
        };
        write_text_rows(&text_tsv, part.iter().map(row))?;
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
        "repeated": repeated,
        "left_out": found.unnamed + found.files.len() - kept.len(),
        "classes": labels.len(),
        "train": parts[0].len(),
        "validation": parts[1].len(),
        "test": parts[2].len(),
    });
    if let (Some(groups), Some(metrics)) = (&groups, produced.metrics.as_object_mut()) {
        let count = |part: &Vec<usize>| part.iter().map(|&row| &groups[row]).collect::<HashSet<_>>().len();
        for (name, part) in SPLITS.iter().zip(&parts) {
            metrics.insert(format!("{name}_groups"), count(part).into());
        }
    }
    Ok(produced)
}

/// What can be said of the inputs that are at a `path` without reading an image: that they belong together.
///
/// # Errors
/// Those of [`run`] that come before any image is read.
pub(super) fn check<'a>(path: impl Fn(&str) -> Option<&'a Path>, parameters: &PrepareParameters) -> Result<()> {
    let table = path("image_metadata").map(|about| Table::read(about, parameters)).transpose();
    let table = table.context(|| "input image_metadata")?;
    let (Some(image_folder), Some(constants)) = (path("image_folder"), path("text_constants")) else { return Ok(()) };
    let (found, texts) = read((image_folder, constants), table, parameters)?;
    match parameters.split.repeated {
        // which images are left is not known before they are read
        Repeated::Drop => Ok(()),
        _ => found.groups(&kept(&texts, parameters), &parameters.split).map(drop),
    }
}

/// The images of the classes that are kept.
fn kept(texts: &[String], parameters: &PrepareParameters) -> Vec<usize> {
    match parameters.keep_most_frequent {
        0 => (0..texts.len()).collect(),
        n => keep_most_frequent(texts, n),
    }
}

/// The images, and the text of each.
fn read(
    (image_folder, constants_file): (&Path, &Path),
    table: Option<Table>,
    parameters: &PrepareParameters,
) -> Result<(Images, Vec<String>)> {
    let constants = TextConstants::read(constants_file)?;
    let found = Images::find(image_folder, table)?;
    let text = |image: &ImageFile| constants.text(&image.folder, &parameters.text_template);
    let texts = found.check_labels(&constants).and_then(|()| found.files.iter().map(text).collect());
    Ok((found, texts.context(|| format!("'{}'", constants_file.display()))?))
}

/// What tells each kept file from those with another content: its size, which most files have for themselves, and where others
/// have the same its SHA-256. So hardly any file is read twice, here and for its pixels.
fn contents(images: &[ImageFile], kept: &[usize]) -> Result<Vec<(u64, Option<String>)>> {
    let size = |&i: &usize| {
        let path = &images[i].path;
        std::fs::metadata(path).map(|about| about.len()).map_err(|e| Error::io("read the size of", path, e))
    };
    let sizes: Vec<u64> = kept.par_iter().map(size).collect::<Result<_>>()?;
    let mut files: HashMap<u64, usize> = HashMap::new();
    sizes.iter().for_each(|&size| *files.entry(size).or_default() += 1);
    let shared = |size: &u64| files[size] > 1;
    let bar = Progress::new("compare", sizes.iter().filter(|size| shared(size)).count() as u64, "images");
    let content = |(&i, &size): (&usize, &u64)| {
        if !shared(&size) {
            return Ok((size, None));
        }
        let digest = sha256_file(&images[i].path)?;
        bar.advance(1, "");
        Ok((size, Some(digest.sha256)))
    };
    kept.par_iter().zip(&sizes).map(content).collect()
}

/// Of two files with the same content and different texts the first one is kept: its text may be the wrong one.
fn warn_of_contradictions(images: &[ImageFile], texts: &[String], (kept, alike): (&[usize], &[usize])) {
    for (row, &first) in alike.iter().enumerate() {
        let (dropped, kept) = (kept[row], kept[first]);
        if texts[dropped] != texts[kept] {
            tracing::warn!(
                "'{}' is the same image as '{}', which has another label, and is left out",
                images[dropped].key,
                images[kept].key
            );
        }
    }
}

/// Two names of one patient would be divided.
fn warn_of_letter_case(groups: &[String]) {
    let names: HashSet<&String> = groups.iter().collect();
    let alike = names.len() - names.iter().map(|name| name.to_lowercase()).collect::<HashSet<_>>().len();
    if alike > 0 {
        tracing::warn!(
            count = alike,
            "groups differ from another one in letter case only, and are groups of their own"
        );
    }
}

/// The rows of each part, where every one stands for itself.
fn split(split: &SplitParameters, class_ids: &[u32], labels: &Labels) -> Result<Vec<Vec<usize>>> {
    let fractions = [split.train, split.validation, split.test];
    match split.method {
        SplitMethod::PerClass => stratified_split(class_ids, &fractions, split.seed),
        SplitMethod::ScikitLearn => {
            // it takes classes in the order of their texts
            let mut order: Vec<usize> = (0..labels.len()).collect();
            order.sort_by_key(|&id| &labels.texts()[id]);
            let mut rank = vec![0; labels.len()];
            order.iter().enumerate().for_each(|(place, &id)| rank[id] = place as u32);
            let ranks: Vec<u32> = class_ids.iter().map(|&id| rank[id as usize]).collect();
            let texts: Vec<&str> = order.iter().map(|&id| labels.texts()[id].as_str()).collect();
            let parts = sklearn_split(&ranks, fractions, (&texts, split.seed))?;
            for (name, part) in SPLITS.iter().zip(&parts) {
                if let Some(missing) =
                    (0..labels.len()).find(|&id| !part.iter().any(|&row| class_ids[row] as usize == id))
                {
                    return Err(Error::data(format!(
                        "class '{}' has no image in the {name} split: add images, leave the class out, or use the method per_class",
                        labels.texts()[missing]
                    )));
                }
            }
            Ok(parts)
        }
    }
}

/// No image may be in two parts under two names: what is measured on one would have been learned from the other.
fn check_leaks(parts: &[Vec<usize>], alike: &[usize], keys: &[&str], repeated: Repeated) -> Result<()> {
    let mut part_of = vec![0; keys.len()];
    for (part, rows) in parts.iter().enumerate() {
        rows.iter().for_each(|&row| part_of[row] = part);
    }
    let leaks: Vec<(usize, usize)> =
        alike.iter().copied().enumerate().filter(|&(row, first)| part_of[row] != part_of[first]).collect();
    let Some(&(row, first)) = leaks.first() else { return Ok(()) };
    let text = format!(
        "{} images are in two splits under two names, the first of them '{}' ({}) and '{}' ({})",
        leaks.len(),
        keys[first],
        SPLITS[part_of[first]],
        keys[row],
        SPLITS[part_of[row]]
    );
    if repeated == Repeated::Allow {
        tracing::warn!("{text}: results on them say little");
        return Ok(());
    }
    Err(Error::data(format!("{text}: remove them, or set parameters.split.repeated to drop or allow")))
}

/// Standardises a chunk of images while the rows of the one before are written.
fn write_images(path: &Path, images: &[(&str, &Path)], parameters: &PrepareParameters, bar: &Progress) -> Result<()> {
    let row = |(_, file): &(&str, &Path)| {
        let bytes = std::fs::read(file).map_err(|e| Error::io("read", file, e))?;
        let jpeg = standardise(&bytes, parameters.image_size as usize, parameters.jpeg_quality)
            .context(|| format!("'{}'", file.display()))?;
        bar.advance(1, "");
        Ok(image_value(&jpeg))
    };
    let mut writer = TsvWriter::create(path)?;
    let mut write = |images: &[(&str, &Path)], rows: Vec<Result<String>>| {
        images.iter().zip(rows).try_for_each(|((key, _), value)| writer.write(key, &value?))
    };
    let mut done: (&[(&str, &Path)], Vec<Result<String>>) = (&[], Vec::new());
    for chunk in images.chunks(CHUNK) {
        let (before, values) = std::mem::take(&mut done);
        let (rows, written) = rayon::join(|| chunk.par_iter().map(row).collect(), || write(before, values));
        written?;
        done = (chunk, rows);
    }
    let (last, values) = done;
    write(last, values)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_alike_by_their_content_and_read_only_where_sizes_are_the_same() {
        let root = tempfile::tempdir().unwrap();
        let files = [("a", "12"), ("b", "345"), ("c", "21"), ("d", "12"), ("e", "6789"), ("f", "345"), ("g", "21345")];
        let images: Vec<ImageFile> = files
            .iter()
            .map(|(name, content)| {
                let path = root.path().join(name);
                std::fs::write(&path, content).unwrap();
                ImageFile { folder: String::new(), path, key: (*name).to_owned() }
            })
            .collect();
        let found = contents(&images, &[0, 1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(first_alike(&found), [0, 1, 2, 0, 4, 1, 6]);
        let read: Vec<usize> = (0..files.len()).filter(|&row| found[row].1.is_some()).collect();
        assert_eq!(read, [0, 1, 2, 3, 5]);
        // without those of the same size
        assert_eq!(contents(&images, &[1, 2, 4]).unwrap(), [(3, None), (2, None), (4, None)]);
        std::fs::remove_file(&images[4].path).unwrap();
        let error = contents(&images, &[1, 4]).unwrap_err();
        assert!(error.kind() == crate::ErrorKind::NotFound && error.to_string().contains("/e'"), "{error}");
    }
}
