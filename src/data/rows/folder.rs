//! A folder of images, in folders as deep as they may be.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{LONGEST, Line, RowSource, offsets, too_long};
use crate::data::folder::{Tree, tree};
use crate::error::{Error, Result};

/// The images below a folder. Their keys are their paths below it, in whose order they are.
#[derive(Debug)]
pub(super) struct ImageFolder {
    root: PathBuf,
    keys: Vec<String>,
    /// Where each one's bytes would begin if all were one file, and where the last one's would end.
    offsets: Vec<u64>,
}

impl ImageFolder {
    /// # Errors
    /// As [`tree`].
    pub(super) fn open(root: &Path) -> Result<ImageFolder> {
        let Tree { images, ignored } = tree(root)?;
        if ignored > 0 {
            tracing::warn!(count = ignored, folder = %root.display(), "entries of the folder are no images and are left out");
        }
        let size = |key: &String| {
            let path = root.join(key);
            std::fs::metadata(&path).map(|about| about.len()).map_err(|e| Error::io("read the size of", &path, e))
        };
        let sizes = images.par_iter().map(size).collect::<Result<Vec<u64>>>()?;
        Ok(ImageFolder { root: root.to_owned(), keys: images, offsets: offsets(sizes) })
    }
}

impl RowSource for ImageFolder {
    fn place(&self) -> String {
        self.root.display().to_string()
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    fn bytes(&self, rows: Range<usize>) -> u64 {
        self.offsets[rows.end] - self.offsets[rows.start]
    }

    fn read(&self, rows: Range<usize>) -> Result<Vec<Line>> {
        let read = |row: usize| {
            let key = &self.keys[row];
            if self.bytes(row..row + 1) > LONGEST {
                return Ok(Line::bad(Some(key), too_long()));
            }
            let path = self.root.join(key);
            match std::fs::read(&path) {
                Ok(image) => Ok(Line::image_of(key, image)),
                // all of them were there a moment ago
                Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::data(format!(
                    "'{}' is not there any more: the folder was changed while it was read, run the job again",
                    path.display()
                ))),
                Err(e) => Err(Error::io("read", &path, e)),
            }
        };
        rows.into_par_iter().map(read).collect()
    }
}
