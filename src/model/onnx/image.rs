//! The image encoder, from bytes of pixels on, as a graph.

use super::graph::{Graph, Value};
use super::proto::{Attribute, number};
use crate::error::Result;
use crate::imaging::PixelContract;
use crate::model::config::ImageEncoderConfig;
use crate::model::davit::{self, Attention};

/// A grid of tokens.
struct Grid {
    /// [B * height * width, channels]
    tokens: Value,
    height: i64,
    width: i64,
    channels: i64,
}

impl Grid {
    /// The shape [B, height, width, channels].
    fn shape(&self) -> [i64; 4] {
        [-1, self.height, self.width, self.channels]
    }
}

/// Bytes `pixels` [B, height, width, 3] to features [B, channels of the last stage].
pub(super) fn encoder(
    graph: &mut Graph<'_>,
    pixels: &Value,
    contract: &PixelContract,
    config: &ImageEncoderConfig,
) -> Result<Value> {
    graph.scope = "pixels".to_owned();
    let mut x = graph.node("Cast", [pixels], [Attribute::int("to", i64::from(number::FLOAT))]);
    let whole = graph.float(255.0);
    let (mean, std) = (graph.floats(&contract.mean), graph.floats(&contract.std));
    for (op, by) in [("Div", whole), ("Sub", mean), ("Div", std)] {
        x = graph.node(op, [&x, &by], []);
    }
    let size = contract.image_size.map(i64::from);
    let tokens = graph.reshape(&x, &[-1, 3]);
    let mut grid = Grid { tokens, height: size[0], width: size[1], channels: 3 };
    config.check_patches(size)?;
    for (stage, after) in config.grids(size).into_iter().enumerate() {
        grid = embed(graph, &grid, (config, stage), after)?;
        for (path, attention) in davit::blocks_of(config, stage) {
            graph.scope.clone_from(&path);
            grid.tokens = block(graph, &grid, &path, attention)?;
        }
    }
    graph.scope = "image_encoder.norms".to_owned();
    let rows = graph.reshape(&grid.tokens, &[-1, grid.height * grid.width, grid.channels]);
    let mean = graph.node("ReduceMean", [&rows], [Attribute::ints("axes", &[1]), Attribute::int("keepdims", 0)]);
    graph.layer_norm(&mean, "image_encoder.norms", davit::EPS)
}

/// The strided convolution that begins a stage, to a grid of this height and width.
fn embed(
    graph: &mut Graph<'_>,
    grid: &Grid,
    (config, stage): (&ImageEncoderConfig, usize),
    [height, width]: [i64; 2],
) -> Result<Grid> {
    let path = format!("image_encoder.convs.{stage}");
    graph.scope.clone_from(&path);
    let (kernel, stride) = (config.patch_size[stage], config.patch_stride[stage]);
    let (padding, channels) = (config.patch_padding[stage], config.dim_embed[stage]);
    let norm = format!("{path}.norm");
    let prenorm = config.patch_prenorm[stage];
    let tokens = if prenorm { graph.layer_norm(&grid.tokens, &norm, davit::EPS)? } else { grid.tokens.clone() };
    let before = Grid { tokens, ..*grid };
    let tokens = convolution(graph, &before, &format!("{path}.proj"), [kernel, stride, padding, 1])?;
    let tokens = graph.reshape(&tokens, &[-1, channels]);
    let tokens = if prenorm { tokens } else { graph.layer_norm(&tokens, &norm, davit::EPS)? };
    Ok(Grid { tokens, height, width, channels })
}

/// A convolution of the grid, [B, height', width', channels'].
fn convolution(graph: &mut Graph<'_>, grid: &Grid, path: &str, sizes: [i64; 4]) -> Result<Value> {
    let [kernel, stride, padding, groups] = sizes;
    let weight = graph.parameter(&format!("{path}.weight"))?.0;
    let bias = graph.parameter(&format!("{path}.bias"))?.0;
    let x = graph.reshape(&grid.tokens, &grid.shape());
    let x = graph.transpose(&x, &[0, 3, 1, 2]);
    let attributes = [
        Attribute::ints("kernel_shape", &[kernel; 2]),
        Attribute::ints("strides", &[stride; 2]),
        Attribute::ints("pads", &[padding; 4]),
        Attribute::int("group", groups),
    ];
    let x = graph.node("Conv", [&x, &weight, &bias], attributes);
    Ok(graph.transpose(&x, &[0, 2, 3, 1]))
}

/// A block of DaViT; gives tokens.
fn block(graph: &mut Graph<'_>, grid: &Grid, path: &str, attention: Attention) -> Result<Value> {
    let tokens = residual_depthwise(graph, grid, &format!("{path}.conv1.fn.dw"))?;
    let attention_path = format!("{path}.{}", attention.name());
    let normed = graph.layer_norm(&tokens, &format!("{attention_path}.norm"), davit::EPS)?;
    let normed = Grid { tokens: normed, ..*grid };
    let attended = match attention {
        Attention::Window { heads, size } => window_attention(graph, &normed, &attention_path, [heads, size])?,
        Attention::Channel { groups } => channel_attention(graph, &normed, &attention_path, groups)?,
    };
    let attended = graph.linear_at(&attended, &format!("{attention_path}.fn.proj"))?;
    let tokens = Grid { tokens: graph.add(&tokens, &attended), ..*grid };
    let tokens = residual_depthwise(graph, &tokens, &format!("{path}.conv2.fn.dw"))?;
    let normed = graph.layer_norm(&tokens, &format!("{path}.ffn.norm"), davit::EPS)?;
    let hidden = graph.linear_at(&normed, &format!("{path}.ffn.fn.net.fc1"))?;
    let hidden = graph.gelu(&hidden);
    let hidden = graph.linear_at(&hidden, &format!("{path}.ffn.fn.net.fc2"))?;
    Ok(graph.add(&tokens, &hidden))
}

/// The tokens and their 3 x 3 depthwise convolution.
fn residual_depthwise(graph: &mut Graph<'_>, grid: &Grid, path: &str) -> Result<Value> {
    let convolved = convolution(graph, grid, path, [3, 1, 1, grid.channels])?;
    let convolved = graph.reshape(&convolved, &[-1, grid.channels]);
    Ok(graph.add(&grid.tokens, &convolved))
}

/// Attention inside windows, before its projection. Windows are filled up with tokens whose query, key and value are the bias.
fn window_attention(graph: &mut Graph<'_>, grid: &Grid, path: &str, [heads, size]: [i64; 2]) -> Result<Value> {
    let (c, tokens, head) = (grid.channels, size * size, grid.channels / heads);
    let (pad_h, pad_w) = ((size - grid.height % size) % size, (size - grid.width % size) % size);
    let (rows, columns) = ((grid.height + pad_h) / size, (grid.width + pad_w) / size);
    let weight = graph.parameter(&format!("{path}.fn.qkv.weight"))?.0;
    let bias = graph.parameter(&format!("{path}.fn.qkv.bias"))?.0;
    // padded before the bias is added, which is what the padding is then
    let mut qkv = graph.linear(&grid.tokens, &weight, None);
    if pad_h + pad_w > 0 {
        qkv = graph.reshape(&qkv, &[-1, grid.height, grid.width, 3 * c]);
        let pads = graph.ints(&[0, 0, 0, 0, 0, pad_h, pad_w, 0]);
        qkv = graph.node("Pad", [&qkv, &pads], []);
    }
    let qkv = graph.add(&qkv, &bias);
    let qkv = graph.reshape(&qkv, &[-1, rows, size, columns, size, 3 * c]);
    let qkv = graph.transpose(&qkv, &[0, 1, 3, 2, 4, 5]);
    let qkv = graph.reshape(&qkv, &[-1, tokens, 3 * c]);
    let [q, k, v] = graph.thirds(&qkv, 2, c).map(|part| graph.reshape(&part, &[-1, tokens, heads, head]));
    let q = graph.scale(&q, (head as f64).powf(-0.5));
    let (q, k) = (graph.transpose(&q, &[0, 2, 1, 3]), graph.transpose(&k, &[0, 2, 3, 1]));
    let v = graph.transpose(&v, &[0, 2, 1, 3]);
    let attention = graph.matmul(&q, &k);
    let attention = graph.softmax(&attention);
    let mixed = graph.matmul(&attention, &v);
    let mixed = graph.transpose(&mixed, &[0, 2, 1, 3]);
    let mixed = graph.reshape(&mixed, &[-1, rows, columns, size, size, c]);
    let mixed = graph.transpose(&mixed, &[0, 1, 3, 2, 4, 5]);
    let mut mixed = graph.reshape(&mixed, &[-1, rows * size, columns * size, c]);
    if pad_h + pad_w > 0 {
        let (from, to) = (graph.ints(&[0, 0]), graph.ints(&[grid.height, grid.width]));
        let axes = graph.ints(&[1, 2]);
        mixed = graph.node("Slice", [&mixed, &from, &to, &axes], []);
    }
    Ok(graph.reshape(&mixed, &[-1, c]))
}

/// Attention over the channels of each group, before its projection.
fn channel_attention(graph: &mut Graph<'_>, grid: &Grid, path: &str, groups: i64) -> Result<Value> {
    let (c, tokens) = (grid.channels, grid.height * grid.width);
    let qkv = graph.linear_at(&grid.tokens, &format!("{path}.fn.qkv"))?;
    let parts = graph.thirds(&qkv, 1, c);
    let [q, k, v] = parts.map(|part| graph.reshape(&part, &[-1, tokens, groups, c / groups]));
    let (q, k) = (graph.transpose(&q, &[0, 2, 3, 1]), graph.transpose(&k, &[0, 2, 1, 3]));
    let v = graph.transpose(&v, &[0, 2, 3, 1]);
    let q = graph.scale(&q, (tokens as f64).powf(-0.5));
    let attention = graph.matmul(&q, &k);
    let attention = graph.softmax(&attention);
    // [B, groups, channels of a group, tokens]
    let mixed = graph.matmul(&attention, &v);
    let mixed = graph.transpose(&mixed, &[0, 3, 1, 2]);
    Ok(graph.reshape(&mixed, &[-1, c]))
}
