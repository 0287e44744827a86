//! ONNX models of a package that has none, in a folder of their own.

use crate::error::{Error, Result};
use crate::infer::model_config;
use crate::model::onnx;
use crate::package::{Package, onnx_models};
use crate::registry::occupied;
use crate::storage::PartialPath;
use std::fs;
use std::path::{Path, PathBuf};

/// What a package's README.md is called beside models of it.
const MODEL_CARD: &str = "MODEL_CARD.md";

/// Writes the ONNX models of `package` into `folder`, with copies of the files that they refer to, and the tokenizer of those that take texts.
/// The model card goes with them. The folder, at which there must be nothing or an empty folder, appears when it is complete. Gives the models' paths.
///
/// # Errors
/// [`crate::ErrorKind::Conflict`] if there is something at `folder`; [`crate::ErrorKind::Usage`] if it is in the package; [`crate::ErrorKind::Package`] for a package that cannot be read;
/// [`crate::ErrorKind::Storage`] and [`crate::ErrorKind::NoSpace`].
pub fn export_onnx(package: &Package, folder: &Path) -> Result<Vec<PathBuf>> {
    let (config, model) = (&package.config, model_config(package)?);
    if occupied(folder)? {
        return Err(Error::conflict(format!("'{}' exists and is not empty: name a new folder", folder.display())));
    }
    let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Error::io("find", path, e));
    let folder = absolute(folder)?;
    if folder.starts_with(absolute(&package.dir)?) {
        return Err(Error::usage(format!("'{}' is in the package itself: name another folder", folder.display())));
    }
    let staged = PartialPath::beside(&folder)?;
    let mut files = vec![config.weights.clone()];
    match &config.classifier {
        None => files.push(config.tokenizer.clone()),
        Some(classifier) => {
            files.push(classifier.labels.clone());
            files.extend([&classifier.class_embeddings, &classifier.adapter].into_iter().flatten().cloned());
        }
    }
    for file in files {
        let to = staged.path().join(&file);
        to.parent().map_or(Ok(()), fs::create_dir_all).map_err(|e| Error::io("create", &to, e))?;
        copy(&package.file(&file), &to)?;
    }
    copy(&package.dir.join("README.md"), &staged.path().join(MODEL_CARD))?;
    onnx::write(staged.path(), config, &model)?;
    staged.rename_to(&folder)?;
    Ok(onnx_models(config.task).iter().map(|name| folder.join(name)).collect())
}

/// A copy of the content alone: the folder is the user's, who may write into it, while files of a store may be links or read-only.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = fs::File::open(from).map_err(|e| Error::io("read", from, e))?;
    let mut target = fs::File::create(to).map_err(|e| Error::io("create", to, e))?;
    std::io::copy(&mut source, &mut target).map_err(|e| Error::io("write", to, e))?;
    Ok(())
}
