//! The model's sizes, in the shape of the original's `config.yaml`.

use crate::error::{Error, Result};
use serde_yaml_ng::{Mapping, Value};

/// DaViT's sizes (`IMAGE_ENCODER`). Every list has one entry a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageEncoderConfig {
    /// Height and width of the input, pixels.
    pub image_size: [i64; 2],
    /// Channel means in [0, 1].
    pub mean: [f64; 3],
    /// Channel standard deviations in [0, 1].
    pub std: [f64; 3],
    /// Kernel of the patch-embedding convolutions.
    pub patch_size: Vec<i64>,
    /// Their strides.
    pub patch_stride: Vec<i64>,
    /// Their paddings.
    pub patch_padding: Vec<i64>,
    /// Whether the norm comes before the convolution.
    pub patch_prenorm: Vec<bool>,
    /// Channels.
    pub dim_embed: Vec<i64>,
    /// Heads of window attention.
    pub num_heads: Vec<i64>,
    /// Groups of channel attention.
    pub num_groups: Vec<i64>,
    /// Blocks; each is a spatial and a channel block.
    pub depths: Vec<i64>,
    /// Side of an attention window, tokens.
    pub window_size: i64,
    /// Largest drop-path rate.
    pub drop_path_rate: f64,
    /// Whether training keeps only the input of each block and runs it again in the backward pass. A matter of memory, not of
    /// the model: a package's `config.yaml` does not decide it, whoever trains sets it.
    pub activation_checkpoint: bool,
}

impl ImageEncoderConfig {
    /// Height and width in tokens of each stage's grid, of an image of `size` (height and width, pixels); 0 where a patch does not fit.
    #[must_use]
    pub fn grids(&self, size: [i64; 2]) -> Vec<[i64; 2]> {
        let mut grid = size;
        let next = |stage: usize| {
            let (kernel, stride) = (self.patch_size[stage], self.patch_stride[stage]);
            grid = grid.map(|side| (side + 2 * self.patch_padding[stage] - kernel + stride).max(0) / stride);
            grid
        };
        (0..self.dim_embed.len()).map(next).collect()
    }

    /// That every stage has tokens, of an image of `size` (height and width, pixels).
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] naming the stage whose patch is larger than what it is to cover.
    pub fn check_patches(&self, size: [i64; 2]) -> Result<()> {
        let grids = self.grids(size);
        let Some(stage) = grids.iter().position(|grid| grid.contains(&0)) else { return Ok(()) };
        let [height, width] = if stage == 0 { size } else { grids[stage - 1] };
        Err(Error::package(format!(
            "'IMAGE_ENCODER.SPEC.PATCH_SIZE' of stage {stage} is {}, larger than its grid of {height} x {width} with PATCH_PADDING {}: take a \
             smaller one, or a larger IMAGE_SIZE",
            self.patch_size[stage], self.patch_padding[stage]
        )))
    }
}

/// The text transformer's sizes (`LANG_ENCODER`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextConfig {
    /// Tokens a text at most.
    pub context_length: i64,
    /// Channels.
    pub width: i64,
    /// Attention heads.
    pub heads: i64,
    /// Blocks.
    pub layers: i64,
    /// Tokens of the vocabulary.
    pub vocab_size: i64,
    /// Whether a token sees only those before it.
    pub causal: bool,
}

/// A UniCL model's sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The image encoder.
    pub image: ImageEncoderConfig,
    /// The text encoder.
    pub text: TextConfig,
    /// Length of an embedding (`UNICL_MODEL.DIM_PROJECTION`).
    pub projection: i64,
}

struct Reader<'a> {
    root: &'a Value,
    origin: &'a str,
}

impl Reader<'_> {
    fn get(&self, path: &str) -> Result<&Value> {
        path.split('.')
            .try_fold(self.root, |at, key| at.get(key))
            .ok_or_else(|| Error::package(format!("{}: '{path}' is missing", self.origin)))
    }

    fn bad(&self, path: &str, what: &str) -> Error {
        Error::package(format!("{}: '{path}' must be {what}", self.origin))
    }

    fn whole(&self, path: &str) -> Result<i64> {
        let value = self.get(path)?.as_i64().filter(|v| (1..=1 << 20).contains(v));
        value.ok_or_else(|| self.bad(path, "a whole number of at least 1"))
    }

    fn list<T>(&self, path: &str, what: &str, convert: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
        let items = self.get(path)?.as_sequence().and_then(|s| s.iter().map(convert).collect::<Option<Vec<T>>>());
        items.filter(|v| !v.is_empty()).ok_or_else(|| self.bad(path, what))
    }

    fn wholes(&self, path: &str, low: i64) -> Result<Vec<i64>> {
        self.list(path, "a list of whole numbers", |v| v.as_i64().filter(|n| *n >= low && *n <= 1 << 20))
    }

    fn array<T: Copy, const N: usize>(&self, path: &str, items: Vec<T>) -> Result<[T; N]> {
        <[T; N]>::try_from(items).map_err(|_| self.bad(path, &format!("a list of {N} numbers")))
    }
}

impl ModelConfig {
    /// Reads the sizes out of an MI2 configuration; keys of training in the same file are left alone.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] naming the missing or impossible key.
    pub fn from_yaml(root: &Value, origin: &str) -> Result<ModelConfig> {
        let r = Reader { root, origin };
        let spec = |key: &str| format!("IMAGE_ENCODER.SPEC.{key}");
        let number = |v: &Value| v.as_f64();
        let mean = r.list("IMAGE_ENCODER.IMAGE_MEAN", "a list of numbers", number)?;
        let std = r.list("IMAGE_ENCODER.IMAGE_STD", "a list of numbers", number)?;
        let image = ImageEncoderConfig {
            image_size: r.array("IMAGE_ENCODER.IMAGE_SIZE", r.wholes("IMAGE_ENCODER.IMAGE_SIZE", 1)?)?,
            mean: r.array("IMAGE_ENCODER.IMAGE_MEAN", mean)?,
            std: r.array("IMAGE_ENCODER.IMAGE_STD", std)?,
            patch_size: r.wholes(&spec("PATCH_SIZE"), 1)?,
            patch_stride: r.wholes(&spec("PATCH_STRIDE"), 1)?,
            patch_padding: r.wholes(&spec("PATCH_PADDING"), 0)?,
            patch_prenorm: r.list(&spec("PATCH_PRENORM"), "a list of true or false", Value::as_bool)?,
            dim_embed: r.wholes(&spec("DIM_EMBED"), 1)?,
            num_heads: r.wholes(&spec("NUM_HEADS"), 1)?,
            num_groups: r.wholes(&spec("NUM_GROUPS"), 1)?,
            depths: r.wholes(&spec("DEPTHS"), 1)?,
            window_size: r.whole(&spec("WINDOW_SIZE"))?,
            drop_path_rate: r.get(&spec("DROP_PATH_RATE")).ok().and_then(Value::as_f64).unwrap_or(0.0),
            activation_checkpoint: false,
        };
        let vocab = r.get("LANG_ENCODER.VOCAB_SIZE").ok().and_then(Value::as_i64).unwrap_or(49408);
        let text = TextConfig {
            context_length: r.whole("LANG_ENCODER.CONTEXT_LENGTH")?,
            width: r.whole("LANG_ENCODER.WIDTH")?,
            heads: r.whole("LANG_ENCODER.HEADS")?,
            layers: r.whole("LANG_ENCODER.LAYERS")?,
            vocab_size: vocab,
            causal: r.get("LANG_ENCODER.AUTOGRESSIVE").ok().and_then(Value::as_bool).unwrap_or(true),
        };
        let config = ModelConfig { image, text, projection: r.whole("UNICL_MODEL.DIM_PROJECTION")? };
        config.check(&r)?;
        Ok(config)
    }

    fn check(&self, r: &Reader<'_>) -> Result<()> {
        let image = &self.image;
        let stages = image.dim_embed.len();
        let lengths = [
            ("PATCH_SIZE", image.patch_size.len()),
            ("PATCH_STRIDE", image.patch_stride.len()),
            ("PATCH_PADDING", image.patch_padding.len()),
            ("PATCH_PRENORM", image.patch_prenorm.len()),
            ("NUM_HEADS", image.num_heads.len()),
            ("NUM_GROUPS", image.num_groups.len()),
            ("DEPTHS", image.depths.len()),
        ];
        for (key, length) in lengths {
            if length != stages {
                let what = format!("a list of {stages} entries, as many as DIM_EMBED has, not {length}");
                return Err(r.bad(&format!("IMAGE_ENCODER.SPEC.{key}"), &what));
            }
        }
        for i in 0..stages {
            let dim = image.dim_embed[i];
            if dim % image.num_heads[i] != 0 || dim % image.num_groups[i] != 0 {
                let what = format!("a multiple of NUM_HEADS and NUM_GROUPS in stage {i}");
                return Err(r.bad("IMAGE_ENCODER.SPEC.DIM_EMBED", &what));
            }
        }
        image.check_patches(image.image_size).map_err(|e| e.context(r.origin))?;
        if self.text.width % self.text.heads != 0 {
            return Err(r.bad("LANG_ENCODER.WIDTH", "a multiple of HEADS"));
        }
        if image.std.iter().any(|s| *s <= 0.0) {
            return Err(r.bad("IMAGE_ENCODER.IMAGE_STD", "a list of numbers over 0"));
        }
        if self.text.context_length < 3 || !(1..=1 << 24).contains(&self.text.vocab_size) {
            return Err(r.bad("LANG_ENCODER.CONTEXT_LENGTH", "at least 3, and VOCAB_SIZE at least 1"));
        }
        if !(0.0..1.0).contains(&image.drop_path_rate) {
            return Err(r.bad("IMAGE_ENCODER.SPEC.DROP_PATH_RATE", "from 0 to under 1"));
        }
        Ok(())
    }

    /// The sizes as the original's configuration has them, for `config.yaml` of a new package.
    #[must_use]
    pub fn to_yaml(&self) -> Value {
        let i = &self.image;
        let spec = map([
            ("DROP_PATH_RATE", i.drop_path_rate.into()),
            ("PATCH_SIZE", list(&i.patch_size)),
            ("PATCH_STRIDE", list(&i.patch_stride)),
            ("PATCH_PADDING", list(&i.patch_padding)),
            ("PATCH_PRENORM", list(&i.patch_prenorm)),
            ("DIM_EMBED", list(&i.dim_embed)),
            ("NUM_HEADS", list(&i.num_heads)),
            ("NUM_GROUPS", list(&i.num_groups)),
            ("DEPTHS", list(&i.depths)),
            ("WINDOW_SIZE", i.window_size.into()),
            ("ENABLE_CHECKPOINT", false.into()),
        ]);
        let image = map([
            ("NAME", "davit_v1".into()),
            ("NUM_CLASSES", 0.into()),
            ("IMAGE_SIZE", list(&i.image_size)),
            ("IMAGE_MEAN", list(&i.mean)),
            ("IMAGE_STD", list(&i.std)),
            ("SPEC", spec),
        ]);
        let text = map([
            ("NAME", "transformer".into()),
            ("TOKENIZER", "clip".into()),
            ("CONTEXT_LENGTH", self.text.context_length.into()),
            ("WIDTH", self.text.width.into()),
            ("HEADS", self.text.heads.into()),
            ("LAYERS", self.text.layers.into()),
            ("VOCAB_SIZE", self.text.vocab_size.into()),
            ("AUTOGRESSIVE", self.text.causal.into()),
        ]);
        let unicl = map([("DIM_PROJECTION", self.projection.into()), ("GATHER_TENSORS", true.into())]);
        map([("IMAGE_ENCODER", image), ("LANG_ENCODER", text), ("UNICL_MODEL", unicl)])
    }
}

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Mapping(pairs.into_iter().map(|(k, v)| (Value::String(k.to_owned()), v)).collect::<Mapping>())
}

fn list<T: Copy + Into<Value>>(items: &[T]) -> Value {
    Value::Sequence(items.iter().map(|v| (*v).into()).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two stages on 24 x 20 pixels, windows that do not divide the grid: small, with every edge of the real model.
    pub(crate) fn small() -> ModelConfig {
        ModelConfig {
            image: ImageEncoderConfig {
                image_size: [24, 20],
                mean: [0.5; 3],
                std: [0.25; 3],
                patch_size: vec![7, 3],
                patch_stride: vec![4, 2],
                patch_padding: vec![3, 1],
                patch_prenorm: vec![false, true],
                dim_embed: vec![8, 16],
                num_heads: vec![2, 4],
                num_groups: vec![2, 4],
                depths: vec![1, 2],
                window_size: 4,
                drop_path_rate: 0.2,
                activation_checkpoint: false,
            },
            text: TextConfig { context_length: 12, width: 16, heads: 2, layers: 2, vocab_size: 60, causal: false },
            projection: 8,
        }
    }

    #[test]
    fn yaml_round_trip_and_refusals() {
        let config = small();
        assert_eq!(ModelConfig::from_yaml(&config.to_yaml(), "t").unwrap(), config);
        let mut broken = config.clone();
        broken.image.depths.pop();
        let error = ModelConfig::from_yaml(&broken.to_yaml(), "c.yaml").unwrap_err().to_string();
        assert!(error.contains("DEPTHS") && error.contains("c.yaml"), "{error}");
        broken = config;
        broken.image.num_heads[0] = 3;
        assert!(ModelConfig::from_yaml(&broken.to_yaml(), "t").is_err());
    }
}
