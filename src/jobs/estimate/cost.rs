//! What one image and one text cost: floating-point operations, and bytes that are kept for the backward pass.
//!
//! Both follow from the sizes in `config.yaml` alone. Operations count a multiplication and an addition as two; what is not a
//! matrix product or a convolution is left out, which is under one percent. Kept bytes follow the operations that the model
//! is written in: each tensor that a backward pass reads is counted once.

use crate::model::config::{ImageEncoderConfig, ModelConfig, TextConfig};

/// Operations of one layer's forward pass, and the parameter that it multiplies with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layer {
    /// Name of the weight; `None` for products of two activations.
    pub(super) weight: Option<String>,
    pub(super) flop: f64,
    /// Whether it is computed again in the backward pass when activations are not kept.
    pub(super) in_block: bool,
}

/// Bytes of the kept activations of one item, by where they are.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Kept {
    /// Inputs of the blocks: kept in any case.
    pub(super) inputs: f64,
    /// Inside of all blocks together.
    pub(super) inside: f64,
    /// Inside of the largest block.
    pub(super) largest: f64,
    /// Outside of blocks.
    pub(super) outside: f64,
}

impl Kept {
    /// All of it, or what is kept at most when blocks are computed again.
    pub(super) fn bytes(&self, again: bool) -> f64 {
        self.outside + self.inputs + if again { self.largest } else { self.inside }
    }

    fn block(&mut self, input: f64, inside: f64) {
        self.inputs += input;
        self.inside += inside;
        self.largest = self.largest.max(inside);
    }
}

fn layer(weight: String, flop: f64, in_block: bool) -> Layer {
    Layer { weight: Some(weight), flop, in_block }
}

/// Tokens of a grid, and with its windows filled up.
fn tokens([h, w]: [i64; 2], window: i64) -> (f64, f64) {
    let up = |s: i64| (s + window - 1) / window * window;
    ((h * w) as f64, (up(h) * up(w)) as f64)
}

/// The layers of the image encoder and its projection, for one image.
pub(super) fn image_layers(config: &ModelConfig) -> Vec<Layer> {
    let image = &config.image;
    let mut layers = Vec::new();
    let mut before = 3.0;
    for (i, grid) in image.grids(image.image_size).into_iter().enumerate() {
        let (n, padded) = tokens(grid, image.window_size);
        let (c, kernel) = (image.dim_embed[i] as f64, image.patch_size[i] as f64);
        let name = format!("image_encoder.convs.{i}.proj.weight");
        layers.push(layer(name, 2.0 * n * c * before * kernel * kernel, false));
        for j in 0..image.depths[i] {
            let window = image.window_size as f64;
            let halves = [
                ("spatial_block", "window_attn", padded, 4.0 * padded * window * window * c),
                ("channel_block", "channel_attn", n, 4.0 * n * c * c / image.num_groups[i] as f64),
            ];
            for (block, attention, attended, products) in halves {
                let path = format!("image_encoder.blocks.{i}.{j}.{block}");
                let mut add = |name: &str, flop: f64| layers.push(layer(format!("{path}.{name}.weight"), flop, true));
                add("conv1.fn.dw", 18.0 * n * c);
                add(&format!("{attention}.fn.qkv"), 6.0 * attended * c * c);
                add(&format!("{attention}.fn.proj"), 2.0 * attended * c * c);
                add("conv2.fn.dw", 18.0 * n * c);
                add("ffn.fn.net.fc1", 8.0 * n * c * c);
                add("ffn.fn.net.fc2", 8.0 * n * c * c);
                layers.push(Layer { weight: None, flop: products, in_block: true });
            }
        }
        before = c;
    }
    layers.push(layer("image_projection".to_owned(), 2.0 * before * config.projection as f64, false));
    layers
}

/// The layers of the text encoder and its projection, for one text of `length` tokens.
pub(super) fn text_layers(config: &ModelConfig, length: i64) -> Vec<Layer> {
    let (text, l) = (&config.text, length as f64);
    let w = text.width as f64;
    let mut layers = Vec::new();
    for i in 0..text.layers {
        let path = format!("lang_encoder.resblocks.{i}");
        for (name, factor) in [
            ("attn.in_proj_weight", 6.0),
            ("attn.out_proj.weight", 2.0),
            ("mlp.c_fc.weight", 8.0),
            ("mlp.c_proj.weight", 8.0),
        ] {
            layers.push(layer(format!("{path}.{name}"), factor * l * w * w, false));
        }
        layers.push(Layer { weight: None, flop: 4.0 * l * l * w, in_block: false });
    }
    layers.push(layer("lang_projection".to_owned(), 2.0 * w * config.projection as f64, false));
    layers
}

/// Kept activations of one image; `half` when matrix products are in 16-bit floats.
///
/// A block of N tokens and C channels keeps, in units of N x C: the inputs of its two convolutions and of its two norms, the
/// outputs of the norms, queries, keys and values, the mixed values, and twice 4 of the feed-forward network. Softmax keeps
/// its output in f32, and it is kept once more in 16 bits.
pub(super) fn image_kept(image: &ImageEncoderConfig, half: bool) -> Kept {
    let size = if half { 2.0 } else { 4.0 };
    let softmax = if half { 6.0 } else { 4.0 };
    let mut kept = Kept::default();
    let mut before = (image.image_size[0] * image.image_size[1] * 3) as f64 * 4.0;
    for (i, grid) in image.grids(image.image_size).into_iter().enumerate() {
        let (n, padded) = tokens(grid, image.window_size);
        let c = image.dim_embed[i] as f64;
        // the convolution's input, and the norm's before or after it
        kept.outside += 2.0 * before + if image.patch_prenorm[i] { 0.0 } else { n * c * 4.0 };
        for _ in 0..image.depths[i] {
            let window = (image.window_size * image.window_size * image.num_heads[i]) as f64;
            let group = c * c / image.num_groups[i] as f64;
            for (attended, weights) in [(padded, padded * window), (n, group)] {
                let inside = n * c * 12.0 * size + attended * c * 5.0 * size;
                kept.block(n * c * size, inside + weights * softmax);
            }
        }
        before = n * c * size;
    }
    kept
}

/// Kept activations of one text of `length` tokens. The text encoder's blocks are always kept.
pub(super) fn text_kept(text: &TextConfig, length: i64, half: bool) -> f64 {
    let size = if half { 2.0 } else { 4.0 };
    let softmax = if half { 6.0 } else { 4.0 };
    let (l, w) = (length as f64, text.width as f64);
    let layer = l * w * 20.0 * size + text.heads as f64 * l * l * softmax;
    layer * text.layers as f64 + l * w * 4.0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::init::expected;

    /// The published sizes of MedImageInsight.
    pub(in super::super) fn published() -> ModelConfig {
        let sizes = include_str!("../../../benches/medimageinsight.yaml");
        ModelConfig::from_yaml(&crate::config::parse_yaml(sizes, "sizes").unwrap(), "sizes").unwrap()
    }

    fn giga(layers: &[Layer]) -> f64 {
        layers.iter().map(|l| l.flop).sum::<f64>() / 1e9
    }

    #[test]
    fn the_published_model_costs_what_was_counted_elsewhere() {
        let config = published();
        let image = giga(&image_layers(&config));
        assert!((image - 625.4).abs() < 0.1, "{image}");
        let text = giga(&text_layers(&config, 77));
        assert!((text - 31.4).abs() < 0.1, "{text}");
        let numbers: i64 = expected(&config).iter().map(|(_, shape, _)| shape.iter().product::<i64>()).sum();
        assert!((numbers as f64 / 1e6 - 616.0).abs() < 0.1, "{numbers}");
    }

    #[test]
    fn every_layer_names_a_parameter_of_the_model() {
        let config = published();
        let names: Vec<String> = expected(&config).into_iter().map(|(name, ..)| name).collect();
        let layers = [image_layers(&config), text_layers(&config, 9)].concat();
        let named: Vec<&String> = layers.iter().filter_map(|l| l.weight.as_ref()).collect();
        for name in &named {
            assert!(names.contains(name), "{name}");
        }
        // and every matrix but the embeddings, which are looked up, has its layer
        let tables = ["token_embedding.weight", "positional_embedding"];
        let matrices = expected(&config)
            .into_iter()
            .filter(|(n, shape, _)| shape.len() > 1 && !tables.iter().any(|t| n.ends_with(t)));
        for (name, ..) in matrices {
            assert!(named.contains(&&name), "{name}");
        }
    }

    #[test]
    fn computing_again_keeps_less_and_16_bits_keep_less() {
        let image = published().image;
        let (full, half) = (image_kept(&image, false), image_kept(&image, true));
        assert!(full.bytes(true) < 0.35 * full.bytes(false) && half.bytes(false) < 0.75 * full.bytes(false));
        assert!(text_kept(&published().text, 20, true) < text_kept(&published().text, 20, false));
    }
}
