//! Weights on disk: safetensors under the upstream names. The only place that knows other names.
//!
//! Guarantees: files are memory-mapped and weights are never in memory twice. A model is loaded whole or not at all: what is
//! missing, unexpected or of another shape is found from the file's header, before a number is read. Packages hold
//! safetensors; flat PyTorch state dicts are read by [`import`] and [`rows`] alone, and nothing is ever unpickled.

use super::archive::{Archive, Format};
use super::config::ModelConfig;
use super::init::expected;
use super::params::Params;
use super::state_dict::Entry;
use super::{TchResult, engine};
use crate::config::packaging::StoredWeights;
use crate::error::{Error, Result};
use safetensors::{Dtype, View};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use tch::{Kind, Tensor};

/// Older names and what they are called now, applied in this order.
const PREFIXES: [(&str, &str); 2] = [("visual.", "image_encoder."), ("text.", "lang_encoder.")];
const WHOLE: [(&str, &str); 2] = [("vision_projection", "image_projection"), ("text_projection", "lang_projection")];
const PARTS: [(&str, &str); 4] = [
    ("conv_embeds.", "convs."),
    ("main_blocks.", "blocks."),
    (".cpe.0.proj.", ".conv1.fn.dw."),
    (".cpe.1.proj.", ".conv2.fn.dw."),
];

/// The format that packages hold.
pub const SAFETENSORS: &str = "safetensors";

/// How a weights file fitted the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// [`SAFETENSORS`] or `PyTorch state dict`.
    pub format: &'static str,
    /// Tensors in the file.
    pub tensors: usize,
    /// Numbers in them.
    pub numbers: usize,
    /// Tensors with a name of older checkpoints, or with `module.` in front.
    pub renamed: usize,
    /// Parameters of the model that the file lacks: none when it was loaded.
    pub missing: Vec<String>,
    /// Tensors of the file that the model does not have: none when it was loaded.
    pub unexpected: Vec<String>,
    /// Parameters that were brought into another shape, with both shapes.
    pub reshaped: Vec<String>,
    /// Tensors that were f16 or bf16 and are f32 now.
    pub widened: usize,
}

impl Report {
    /// One line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = format!(
            "weights: {} tensors, {:.1} million numbers ({}); {} missing, {} unexpected, {} reshaped, {} renamed from older names, {} widened to f32",
            self.tensors,
            self.numbers as f64 / 1e6,
            self.format,
            self.missing.len(),
            self.unexpected.len(),
            self.reshaped.len(),
            self.renamed,
            self.widened
        );
        if !self.reshaped.is_empty() {
            text += &format!("; {}", few("reshaped", &self.reshaped));
        }
        text
    }
}

/// Reads every tensor of a safetensors file as f32 on the CPU, names as they are in the file.
///
/// # Errors
/// [`crate::ErrorKind::Package`] for a file that is no safetensors or holds other number types than f32, f16, bf16.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let archive = Archive::open(path, false)?;
    archive.entries.iter().map(|entry| Ok((entry.name.clone(), archive.load(entry)?))).collect()
}

/// That every number is one.
///
/// # Errors
/// [`crate::ErrorKind::Package`] naming the first parameter that is not finite, and the `file`.
pub fn check_finite<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>, file: &str) -> Result<()> {
    for (name, tensor) in tensors {
        let finite = tensor.f_isfinite().and_then(|t| t.f_all()).and_then(|t| t.f_int64_value(&[])).map_err(engine)?;
        if finite == 0 {
            return Err(Error::package(format!(
                "'{file}': '{name}' holds numbers that are not finite: the weights are damaged, train or import again"
            )));
        }
    }
    Ok(())
}

/// Copies tensors of a safetensors file into `targets` of the same names, one at a time; others in the file are left out.
///
/// # Errors
/// [`crate::ErrorKind::Package`] when one is missing or of another shape, or the file is damaged.
pub fn load_into(path: &Path, targets: Vec<(String, Tensor)>) -> Result<()> {
    let archive = Archive::open(path, false)?;
    let entries: HashMap<&str, &Entry> = archive.entries.iter().map(|e| (e.name.as_str(), e)).collect();
    for (name, mut target) in targets {
        let file = path.display();
        let entry = entries.get(name.as_str()).ok_or_else(|| Error::package(format!("'{file}' lacks '{name}'")))?;
        let need = target.size();
        if entry.shape != need {
            let have = &entry.shape;
            return Err(Error::package(format!("'{file}': '{name}' has shape {have:?} instead of {need:?}")));
        }
        let source = archive.load(entry)?;
        tch::no_grad(|| target.f_copy_(&source)).map_err(engine)?;
    }
    Ok(())
}

/// Reads one parameter by its present name.
///
/// # Errors
/// [`crate::ErrorKind::Package`] when the file is damaged or lacks it.
pub fn read_tensor(path: &Path, name: &str) -> Result<Tensor> {
    let archive = Archive::open(path, false)?;
    let entry = archive.entries.iter().find(|e| e.name == name);
    archive.load(entry.ok_or_else(|| Error::package(format!("'{}' lacks '{name}'", path.display())))?)
}

/// Reads a UniCL model's weights: older names translated, a positional embedding of another length resampled, and nothing
/// missing, unexpected or of another shape.
///
/// # Errors
/// [`crate::ErrorKind::Package`] listing what does not fit.
pub fn read(path: &Path, config: &ModelConfig) -> Result<Params> {
    load(&Archive::open(path, false)?, path, config).map(|(params, _)| params)
}

/// As [`read`], of files that others made: flat PyTorch state dicts too. Says how the file fitted.
///
/// # Errors
/// As [`read`]; also for a pickled file that is anything but a flat state dict.
pub fn import(path: &Path, config: &ModelConfig) -> Result<(Params, Report)> {
    load(&Archive::open(path, true)?, path, config)
}

fn load(archive: &Archive, path: &Path, config: &ModelConfig) -> Result<(Params, Report)> {
    let mut found: BTreeMap<String, &Entry> = BTreeMap::new();
    let (mut twice, mut renamed, mut numbers) = (Vec::new(), 0, 0);
    for entry in &archive.entries {
        let name = translate(&entry.name);
        renamed += usize::from(name != entry.name);
        numbers += entry.shape.iter().product::<i64>() as usize;
        if let Some(other) = found.insert(name, entry) {
            twice.push(format!("{} and {}", other.name, entry.name));
        }
    }
    let (mut missing, mut misshapen, mut reshaped) = (Vec::new(), Vec::new(), Vec::new());
    let mut planned = Vec::new();
    for (name, shape, _) in expected(config) {
        match found.remove(&name) {
            None => missing.push(name),
            Some(entry) if entry.shape == shape => planned.push((name, shape, entry)),
            Some(entry) if bends(&name, &entry.shape, &shape) => {
                reshaped.push(format!("{name} {:?} to {shape:?}", entry.shape));
                planned.push((name, shape, entry));
            }
            Some(entry) => misshapen.push(format!("{name} {:?} instead of {shape:?}", entry.shape)),
        }
    }
    let unexpected: Vec<String> = found.into_values().map(|e| e.name.clone()).collect();
    let parts = [
        ("missing", &missing),
        ("unexpected", &unexpected),
        ("of another shape", &misshapen),
        ("under two names", &twice),
    ];
    let faults: Vec<String> =
        parts.iter().filter(|(_, list)| !list.is_empty()).map(|(what, list)| few(what, list)).collect();
    if !faults.is_empty() {
        let file = path.display();
        return Err(Error::package(format!("'{file}' does not fit the package's config.yaml: {}", faults.join("; "))));
    }
    planned.sort_by_key(|(_, _, entry)| entry.start);
    let mut params = Params::default();
    for (name, shape, entry) in planned {
        let tensor = archive.load(entry)?;
        params.insert(name, if entry.shape == shape { tensor } else { bend(&tensor, &shape).map_err(engine)? });
    }
    let format = match archive.format {
        Format::Safetensors => SAFETENSORS,
        Format::StateDict => "PyTorch state dict",
    };
    let (tensors, widened) = (archive.entries.len(), archive.entries.iter().filter(|e| e.dtype != Dtype::F32).count());
    Ok((params, Report { format, tensors, numbers, renamed, missing, unexpected, reshaped, widened }))
}

/// How many rows a parameter has in a file, by its present name; `None` when it is not there. Reads the header only.
///
/// # Errors
/// [`crate::ErrorKind::Package`] for a file that holds no tensors.
pub fn rows(path: &Path, name: &str) -> Result<Option<i64>> {
    let archive = Archive::open(path, true)?;
    let found = archive.entries.iter().find(|e| translate(&e.name) == name);
    Ok(found.and_then(|entry| entry.shape.first().copied()))
}

/// Whether a tensor of shape `have` can take the place of one of shape `want`: dimensions of 1 more or less, or positions
/// of another number.
fn bends(name: &str, have: &[i64], want: &[i64]) -> bool {
    let full = |shape: &[i64]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
    let positions = name == "lang_encoder.positional_embedding";
    full(have) == full(want) || (positions && have.len() == 2 && have[0] > 0 && have[1] == want[1])
}

/// The tensor in a shape that [`bends`] allows.
fn bend(tensor: &Tensor, want: &[i64]) -> TchResult<Tensor> {
    if tensor.numel() as i64 == want.iter().product::<i64>() {
        return tensor.f_reshape(want);
    }
    resample(tensor, want[0])
}

fn few(what: &str, list: &[String]) -> String {
    let shown: Vec<&str> = list.iter().take(10).map(String::as_str).collect();
    let more = if list.len() > shown.len() { ", ..." } else { "" };
    format!("{} {what}: {}{more}", list.len(), shown.join(", "))
}

/// The present name of a parameter of an older checkpoint; present names stay as they are.
fn translate(name: &str) -> String {
    let mut name = name.strip_prefix("module.").unwrap_or(name).to_owned();
    for (old, new) in PREFIXES {
        if let Some(rest) = name.strip_prefix(old) {
            name = format!("{new}{rest}");
        }
    }
    for (old, new) in WHOLE {
        if name == old {
            name = new.to_owned();
        }
    }
    if !name.starts_with("image_encoder.") {
        return name;
    }
    for (old, new) in PARTS {
        name = name.replace(old, new);
    }
    for (index, block, attention) in [("0", "spatial_block", "window_attn"), ("1", "channel_block", "channel_attn")] {
        for (old, new) in [
            ("conv1.fn.dw".to_owned(), "conv1.fn.dw".to_owned()),
            ("conv2.fn.dw".to_owned(), "conv2.fn.dw".to_owned()),
            ("attn".to_owned(), format!("{attention}.fn")),
            ("mlp".to_owned(), "ffn.fn.net".to_owned()),
            ("norm1".to_owned(), format!("{attention}.norm")),
            ("norm2".to_owned(), "ffn.norm".to_owned()),
        ] {
            name = name.replace(&format!(".{index}.{old}."), &format!(".{block}.{new}."));
        }
    }
    name
}

/// Linear interpolation over positions, both ends kept; [L, C] to [length, C].
fn resample(positions: &Tensor, length: i64) -> TchResult<Tensor> {
    positions
        .f_transpose(0, 1)?
        .f_unsqueeze(0)?
        .f_upsample_linear1d([length], true, None)?
        .f_squeeze_dim(0)?
        .f_transpose(0, 1)?
        .f_contiguous()
}

/// Writes tensors as f32 safetensors, streamed one at a time.
///
/// # Errors
/// [`crate::ErrorKind::Storage`] or [`crate::ErrorKind::NoSpace`].
pub fn write_tensors<'a>(path: &Path, tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    write_stored(path, tensors, StoredWeights::F32)
}

/// As [`write_tensors`], in another number type.
///
/// # Errors
/// As [`write_tensors`].
pub fn write_stored<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    stored: StoredWeights,
) -> Result<()> {
    let data: Vec<(String, Stored)> =
        tensors.map(|(n, t)| Ok((n.to_owned(), Stored::new(t, stored)?))).collect::<Result<_>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(data, Some(metadata), path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(io) => Error::io("write", path, io),
        other => Error::internal(format!("cannot write '{}'", path.display())).with_source(other),
    })
}

/// Writes a model's parameters under their names.
///
/// # Errors
/// As [`write_tensors`].
pub fn write(path: &Path, params: &Params) -> Result<()> {
    write_tensors(path, params.iter())
}

/// A tensor as safetensors stores it: contiguous on the CPU, f32 or bf16; no copy when it is that already.
struct Stored {
    flat: Tensor,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl Stored {
    fn new(tensor: &Tensor, stored: StoredWeights) -> Result<Stored> {
        // a scale, a bias or a norm takes next to no room, and is less forgiving
        let (kind, dtype) = match stored {
            StoredWeights::Bf16 if tensor.dim() > 1 => (Kind::BFloat16, Dtype::BF16),
            StoredWeights::Bf16 | StoredWeights::F32 => (Kind::Float, Dtype::F32),
        };
        let flat = tch::no_grad(|| tensor.detach().f_to_device(tch::Device::Cpu)?.f_to_kind(kind)?.f_contiguous());
        let flat = flat.map_err(engine)?;
        let shape = flat.size().iter().map(|&n| n as usize).collect();
        Ok(Stored { flat, shape, dtype })
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        // SAFETY: a contiguous CPU tensor of numel elements of that type, alive as long as self.
        Cow::Borrowed(unsafe { std::slice::from_raw_parts(self.flat.data_ptr() as *const u8, self.data_len()) })
    }
    fn data_len(&self) -> usize {
        self.flat.numel() * self.dtype.bitsize() / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::tests::small;
    use crate::model::init::random;

    #[test]
    fn bfloat16_halves_the_matrices_and_leaves_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let (half, whole) = (folder.path().join("half"), folder.path().join("whole"));
        let params = random(&small(), 1).unwrap();
        write(&whole, &params).unwrap();
        write_stored(&half, params.iter(), StoredWeights::Bf16).unwrap();
        let matrices: usize = params.iter().filter(|(_, t)| t.dim() > 1).map(|(_, t)| t.numel()).sum();
        let saved = whole.metadata().unwrap().len() - half.metadata().unwrap().len();
        // but for the header
        assert!(saved.abs_diff(2 * matrices as u64) < 4096, "{saved} bytes for {matrices} numbers");
        let back = read(&half, &small()).unwrap();
        for (name, tensor) in params.iter() {
            let kind = if tensor.dim() > 1 { Kind::BFloat16 } else { Kind::Float };
            assert!(back.get(name).unwrap().equal(&tensor.to_kind(kind).to_kind(Kind::Float)), "{name}");
        }
    }

    #[test]
    fn round_trip_is_exact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let params = random(&small(), 1).unwrap();
        write(&path, &params).unwrap();
        let back = read(&path, &small()).unwrap();
        assert_eq!(back.count(), params.count());
        assert!(params.iter().zip(back.iter()).all(|((n, a), (m, b))| n == m && a.equal(b)));
    }

    #[test]
    fn older_names_are_translated() {
        for (old, new) in [
            ("visual.conv_embeds.0.proj.weight", "image_encoder.convs.0.proj.weight"),
            ("visual.main_blocks.2.1.0.cpe.0.proj.bias", "image_encoder.blocks.2.1.spatial_block.conv1.fn.dw.bias"),
            (
                "visual.main_blocks.0.0.0.attn.qkv.weight",
                "image_encoder.blocks.0.0.spatial_block.window_attn.fn.qkv.weight",
            ),
            (
                "visual.main_blocks.0.0.1.norm1.weight",
                "image_encoder.blocks.0.0.channel_block.channel_attn.norm.weight",
            ),
            ("visual.main_blocks.0.0.1.mlp.fc1.bias", "image_encoder.blocks.0.0.channel_block.ffn.fn.net.fc1.bias"),
            ("text.resblocks.0.ln_1.weight", "lang_encoder.resblocks.0.ln_1.weight"),
            ("vision_projection", "image_projection"),
            ("text_projection", "lang_projection"),
            (
                "image_encoder.blocks.1.0.spatial_block.ffn.norm.bias",
                "image_encoder.blocks.1.0.spatial_block.ffn.norm.bias",
            ),
        ] {
            assert_eq!(translate(old), new);
        }
    }

    #[test]
    fn what_does_not_fit_is_listed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let params = random(&small(), 1).unwrap();
        let mut other = small();
        other.projection = 4;
        other.text.layers = 3;
        write(&path, &params).unwrap();
        let error = read(&path, &other).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Package);
        let text = error.to_string();
        assert!(text.contains("missing: lang_encoder.resblocks.2") && text.contains("image_projection"), "{text}");
        std::fs::write(&path, b"PK\x03\x04 and so on").unwrap();
        assert!(read(&path, &other).unwrap_err().to_string().contains("safetensors"));
        write_tensors(&path, params.iter().chain(params.iter().take(1).map(|(_, t)| ("module.image_projection", t))))
            .unwrap();
        assert!(read(&path, &small()).unwrap_err().to_string().contains("1 under two names: image_projection and"));
    }

    #[test]
    fn a_positional_embedding_is_resampled_linearly() {
        let positions = Tensor::from_slice(&[0f32, 2.0, 4.0]).view([3, 1]);
        let longer = Vec::<f32>::try_from(bend(&positions, &[5, 1]).unwrap().view(-1)).unwrap();
        assert_eq!(longer, [0.0, 1.0, 2.0, 3.0, 4.0]);
    }
}
