//! A file of tensors, mapped: safetensors, or a flat PyTorch state dict.
//!
//! Guarantee: a tensor's numbers are in memory once. The file's pages are given back as soon as they are copied, so that
//! loading takes the tensors' own size and that of the largest on top.

use super::engine;
use super::state_dict::{self, Entry};
use crate::error::{Error, Result};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors};
use std::fs::File;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// How the tensors are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Safetensors,
    StateDict,
}

/// A mapped file and where its tensors lie.
#[derive(Debug)]
pub(super) struct Archive {
    map: Mmap,
    path: PathBuf,
    pub(super) format: Format,
    pub(super) entries: Vec<Entry>,
}

impl Archive {
    /// Opens a safetensors file; a state dict too where `foreign` files are expected.
    pub(super) fn open(path: &Path, foreign: bool) -> Result<Archive> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        // SAFETY: the map is read-only and private to this object; packages are immutable once published.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("read", path, e))?;
        // a safetensors file begins with the length of its header, which is far from filling eight bytes
        let pickled = map.starts_with(b"PK\x03\x04") || (map.starts_with(&[0x80]) && map.get(7) != Some(&0));
        let refused = |text: String| Error::package(format!("'{}': {text}", path.display()));
        let (format, mut entries) = match (pickled, foreign) {
            (true, true) => (Format::StateDict, state_dict::entries(&map).map_err(refused)?),
            (true, false) => {
                return Err(refused(
                    "is no safetensors file but a pickled one: `medtune model import` reads it".into(),
                ));
            }
            (false, _) => (Format::Safetensors, safetensors(&map, path)?),
        };
        entries.sort_by_key(|e| e.start);
        Ok(Archive { map, path: path.to_owned(), format, entries })
    }

    /// The error for an entry of another type than weights have.
    pub(super) fn no_weights(&self, entry: &Entry) -> Error {
        let (file, name, dtype) = (self.path.display(), &entry.name, entry.dtype);
        Error::package(format!("'{file}': tensor '{name}' has type {dtype:?}; weights must be f32, f16 or bf16"))
    }

    /// The entry's numbers as f32 on the CPU.
    pub(super) fn load(&self, entry: &Entry) -> Result<Tensor> {
        let kind = match entry.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            _ => return Err(self.no_weights(entry)),
        };
        let bytes = &self.map[entry.start..entry.start + entry.length];
        let count = (entry.length * 8 / entry.dtype.bitsize()) as i64;
        let tensor = (|| {
            let flat = Tensor::f_from_data_size(bytes, &[count], kind)?.f_to_kind(Kind::Float)?;
            if entry.stride == row_major(&entry.shape) {
                flat.f_view(entry.shape.as_slice())
            } else {
                flat.f_as_strided(&entry.shape, &entry.stride, None)?.f_contiguous()
            }
        })();
        // SAFETY: the pages are those of a file, which are read again should anybody look.
        let freed = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, entry.start, entry.length) };
        if let Err(error) = freed {
            tracing::debug!(%error, "the system keeps the pages of a weights file");
        }
        tensor.map_err(engine)
    }
}

fn safetensors(map: &[u8], path: &Path) -> Result<Vec<Entry>> {
    let (header, metadata) = SafeTensors::read_metadata(map).map_err(|e| {
        Error::package(format!("'{}' is not a complete safetensors file", path.display())).with_source(e)
    })?;
    // the numbers begin after the header and its length
    let data = size_of::<u64>() + header;
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        let (start, end) = info.data_offsets;
        let stride = row_major(&shape);
        Entry { name, dtype: info.dtype, shape, stride, start: data + start, length: end - start }
    };
    Ok(metadata.tensors().into_iter().map(entry).collect())
}

/// The steps of a tensor whose last dimension is contiguous.
fn row_major(shape: &[i64]) -> Vec<i64> {
    let mut stride = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        stride[i - 1] = stride[i] * shape[i];
    }
    stride
}
