//! The text encoder as a graph.

use super::graph::{Graph, Value};
use super::proto::{Attribute, number};
use crate::error::Result;
use crate::model::config::TextConfig;
use crate::model::text::EPS;

/// Token ids and their mask, both [B, L], to features [B, width], taken at the first maximum of the ids.
pub(super) fn encoder(graph: &mut Graph<'_>, ids: &Value, mask: &Value, config: &TextConfig) -> Result<Value> {
    let (width, head) = (config.width, config.width / config.heads);
    graph.scope = "lang_encoder".to_owned();
    let sizes = graph.node("Shape", [ids], []);
    let (one, zero) = (graph.int(1), graph.int(0));
    let length = graph.node("Gather", [&sizes, &one], []);
    let embedding = graph.parameter("lang_encoder.token_embedding.weight")?.0;
    let positions = graph.parameter("lang_encoder.positional_embedding")?.0;
    let (from, axes) = (graph.ints(&[0]), graph.ints(&[0]));
    let end = graph.reshape(&length, &[1]);
    let positions = graph.node("Slice", [&positions, &from, &end, &axes], []);
    let tokens = graph.node("Gather", [&embedding, ids], []);
    let tokens = graph.add(&tokens, &positions);
    let mut x = graph.reshape(&tokens, &[-1, width]);

    // true where a token must not be seen: [B, 1, 1, L], and [L, L] for those that come later
    let padding = graph.node("Equal", [mask, &zero], []);
    let between = graph.ints(&[1, 2]);
    let mut hidden = graph.node("Unsqueeze", [&padding, &between], []);
    if config.causal {
        let row = graph.node("Range", [&zero, &length, &one], []);
        let column = graph.reshape(&row, &[-1, 1]);
        let future = graph.node("Greater", [&row, &column], []);
        hidden = graph.node("Or", [&hidden, &future], []);
    }
    let (never, nothing) = (graph.float(f32::NEG_INFINITY), graph.float(0.0));
    let bias = graph.node("Where", [&hidden, &never, &nothing], []);

    let heads = graph.ints(&[config.heads, head]);
    let by_head = graph.node("Concat", [&sizes, &heads], [Attribute::int("axis", 0)]);
    for layer in 0..config.layers {
        let path = format!("lang_encoder.resblocks.{layer}");
        graph.scope.clone_from(&path);
        let normed = graph.layer_norm(&x, &format!("{path}.ln_1"), EPS)?;
        let (weight, offset) = (format!("{path}.attn.in_proj_weight"), format!("{path}.attn.in_proj_bias"));
        let qkv = graph.linear_of(&normed, [&weight, &offset])?;
        let [q, k, v] = graph.thirds(&qkv, 1, width).map(|part| graph.node("Reshape", [&part, &by_head], []));
        let q = graph.scale(&q, (head as f64).powf(-0.5));
        let (q, k) = (graph.transpose(&q, &[0, 2, 1, 3]), graph.transpose(&k, &[0, 2, 3, 1]));
        let v = graph.transpose(&v, &[0, 2, 1, 3]);
        let logits = graph.matmul(&q, &k);
        let logits = graph.add(&logits, &bias);
        let attention = graph.softmax(&logits);
        let mixed = graph.matmul(&attention, &v);
        let mixed = graph.transpose(&mixed, &[0, 2, 1, 3]);
        let mixed = graph.reshape(&mixed, &[-1, width]);
        let attended = graph.linear_at(&mixed, &format!("{path}.attn.out_proj"))?;
        x = graph.add(&x, &attended);
        let normed = graph.layer_norm(&x, &format!("{path}.ln_2"), EPS)?;
        let fed = graph.linear_at(&normed, &format!("{path}.mlp.c_fc"))?;
        let scaled = graph.scale(&fed, 1.702);
        let gate = graph.node("Sigmoid", [&scaled], []);
        let gated = graph.mul(&fed, &gate);
        let fed = graph.linear_at(&gated, &format!("{path}.mlp.c_proj"))?;
        x = graph.add(&x, &fed);
    }
    graph.scope = "lang_encoder.ln_final".to_owned();
    let x = graph.layer_norm(&x, "lang_encoder.ln_final", EPS)?;
    let channels = graph.ints(&[width]);
    let by_text = graph.node("Concat", [&sizes, &channels], [Attribute::int("axis", 0)]);
    let x = graph.node("Reshape", [&x, &by_text], []);
    // not of int64, for which some runtimes have no ArgMax
    let short = graph.node("Cast", [ids], [Attribute::int("to", i64::from(number::INT32))]);
    let end = graph.node("ArgMax", [&short], [Attribute::int("axis", 1), Attribute::int("keepdims", 1)]);
    Ok(graph.node("GatherND", [&x, &end], [Attribute::int("batch_dims", 1)]))
}
