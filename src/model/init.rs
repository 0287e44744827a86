//! The parameters that a configuration asks for, and random ones to start from.

use super::config::ModelConfig;
use super::params::Params;
use super::{TchResult, engine};
use crate::error::Result;
use tch::{Device, Kind, Tensor};

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Start {
    Zeros,
    Ones,
    Normal(f64),
    Value(f64),
}

/// Every parameter of the model: name, shape, start.
pub(crate) fn expected(config: &ModelConfig) -> Vec<(String, Vec<i64>, Start)> {
    let mut list = Expected(Vec::new());
    let image = &config.image;
    for i in 0..image.dim_embed.len() {
        let (c, k) = (image.dim_embed[i], image.patch_size[i]);
        let before = if i == 0 { 3 } else { image.dim_embed[i - 1] };
        let path = format!("image_encoder.convs.{i}");
        list.weight_bias(&format!("{path}.proj"), &[c, before, k, k]);
        list.norm(&format!("{path}.norm"), if image.patch_prenorm[i] { before } else { c });
        for j in 0..image.depths[i] {
            for (block, attention) in [("spatial_block", "window_attn"), ("channel_block", "channel_attn")] {
                let path = format!("image_encoder.blocks.{i}.{j}.{block}");
                list.weight_bias(&format!("{path}.conv1.fn.dw"), &[c, 1, 3, 3]);
                list.norm(&format!("{path}.{attention}.norm"), c);
                list.weight_bias(&format!("{path}.{attention}.fn.qkv"), &[3 * c, c]);
                list.weight_bias(&format!("{path}.{attention}.fn.proj"), &[c, c]);
                list.weight_bias(&format!("{path}.conv2.fn.dw"), &[c, 1, 3, 3]);
                list.norm(&format!("{path}.ffn.norm"), c);
                list.weight_bias(&format!("{path}.ffn.fn.net.fc1"), &[4 * c, c]);
                list.weight_bias(&format!("{path}.ffn.fn.net.fc2"), &[c, 4 * c]);
            }
        }
    }
    let last = image.dim_embed.last().copied().unwrap_or(1);
    list.norm("image_encoder.norms", last);
    let text = &config.text;
    let w = text.width;
    list.push("lang_encoder.token_embedding.weight", &[text.vocab_size, w], Start::Normal(0.02));
    list.push("lang_encoder.positional_embedding", &[text.context_length, w], Start::Normal(0.01));
    for i in 0..text.layers {
        let path = format!("lang_encoder.resblocks.{i}");
        list.norm(&format!("{path}.ln_1"), w);
        list.push(&format!("{path}.attn.in_proj_weight"), &[3 * w, w], Start::Normal(0.02));
        list.push(&format!("{path}.attn.in_proj_bias"), &[3 * w], Start::Zeros);
        list.weight_bias(&format!("{path}.attn.out_proj"), &[w, w]);
        list.norm(&format!("{path}.ln_2"), w);
        list.weight_bias(&format!("{path}.mlp.c_fc"), &[4 * w, w]);
        list.weight_bias(&format!("{path}.mlp.c_proj"), &[w, 4 * w]);
    }
    list.norm("lang_encoder.ln_final", w);
    list.push("image_projection", &[last, config.projection], Start::Normal((last as f64).powf(-0.5)));
    list.push("lang_projection", &[w, config.projection], Start::Normal((w as f64).powf(-0.5)));
    list.push("logit_scale", &[], Start::Value((1.0f64 / 0.07).ln()));
    list.0
}

struct Expected(Vec<(String, Vec<i64>, Start)>);

impl Expected {
    fn push(&mut self, name: &str, shape: &[i64], start: Start) {
        self.0.push((name.to_owned(), shape.to_vec(), start));
    }

    fn weight_bias(&mut self, path: &str, shape: &[i64]) {
        self.push(&format!("{path}.weight"), shape, Start::Normal(0.02));
        self.push(&format!("{path}.bias"), &shape[..1], Start::Zeros);
    }

    fn norm(&mut self, path: &str, width: i64) {
        self.push(&format!("{path}.weight"), &[width], Start::Ones);
        self.push(&format!("{path}.bias"), &[width], Start::Zeros);
    }
}

/// Random parameters, f32 on the CPU, the same for the same seed and sizes.
///
/// # Errors
/// [`crate::ErrorKind::Engine`] when memory does not suffice.
pub fn random(config: &ModelConfig, seed: u64) -> Result<Params> {
    tch::manual_seed(seed as i64);
    let mut params = Params::default();
    for (name, shape, start) in expected(config) {
        params.insert(name, tensor(&shape, start).map_err(engine)?);
    }
    Ok(params)
}

fn tensor(shape: &[i64], start: Start) -> TchResult<Tensor> {
    let options = (Kind::Float, Device::Cpu);
    match start {
        Start::Zeros => Tensor::f_zeros(shape, options),
        Start::Ones => Tensor::f_ones(shape, options),
        Start::Value(value) => Tensor::f_full(shape, value, options),
        Start::Normal(std) => Tensor::f_randn(shape, options)?.f_mul_scalar(std),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::tests::small;

    #[test]
    fn the_same_seed_gives_the_same_parameters() {
        let (a, b) = (random(&small(), 5).unwrap(), random(&small(), 5).unwrap());
        assert!(a.iter().zip(b.iter()).all(|((n, x), (m, y))| n == m && x.equal(y)));
    }
}
