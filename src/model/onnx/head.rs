//! A classifier's scores of image features, as a graph.

use super::graph::{Graph, Value, Weights};
use super::proto::Attribute;
use crate::error::{Error, Result};
use crate::model::adapter;
use crate::package::ClassifierConfig;
use std::path::Path;

/// What goes before the names of a classifier's tensors, which are not the model's.
const HEAD: &str = "classifier.";

impl Weights {
    /// Adds the tensors of a classifier.
    pub(super) fn add_head(&mut self, checkpoints: &Path, classifier: &ClassifierConfig) -> Result<()> {
        let files = [&classifier.class_embeddings, &classifier.adapter];
        files.into_iter().flatten().try_for_each(|file| self.add(checkpoints, file, HEAD))
    }
}

/// Features [B, P] to probabilities [B, classes].
pub(super) fn scores(graph: &mut Graph<'_>, features: &Value, classifier: &ClassifierConfig) -> Result<Value> {
    graph.scope = "classifier".to_owned();
    let logits = match classifier.adapter {
        Some(_) => adapter_logits(graph, features)?,
        None => zero_shot(graph, features)?,
    };
    Ok(graph.softmax(&logits))
}

/// The similarity with each class, times the model's scale.
fn zero_shot(graph: &mut Graph<'_>, features: &Value) -> Result<Value> {
    let classes = graph.parameter(&format!("{HEAD}class_embeddings"))?.0;
    let similarity = graph.linear(features, &classes, None);
    let scale = graph.parameter("logit_scale")?.0;
    let scale = graph.node("Exp", [&scale], []);
    Ok(graph.mul(&similarity, &scale))
}

/// The adapter's logits: of its convolutions, over a sequence of one embedding, only the middle taps act.
fn adapter_logits(graph: &mut Graph<'_>, features: &Value) -> Result<Value> {
    let path = |layer: &str| format!("{HEAD}{layer}");
    let x = graph.linear_at(features, &path("vision_embd.0"))?;
    let x = graph.gelu(&x);
    let x = graph.linear_at(&x, &path("vision_embd.2"))?;
    let x = graph.layer_norm(&x, &path("vision_embd.3"), adapter::EPS)?;
    let x = middle(graph, &x, &path("retrieval_conv.0"))?;
    let x = graph.gelu(&x);
    let x = middle(graph, &x, &path("retrieval_conv.2"))?;
    graph.linear_at(&x, &path("prediction_head.0"))
}

fn middle(graph: &mut Graph<'_>, x: &Value, path: &str) -> Result<Value> {
    let name = format!("{path}.weight");
    let (weight, shape) = graph.parameter(&name)?;
    if shape.len() != 3 || shape[2] != 3 {
        return Err(Error::package(format!("parameter '{name}' has shape {shape:?}, not [out, in, 3]")));
    }
    let tap = graph.int(1);
    let weight = graph.node("Gather", [&weight, &tap], [Attribute::int("axis", 2)]);
    let bias = graph.parameter(&format!("{path}.bias"))?.0;
    Ok(graph.linear(x, &weight, Some(&bias)))
}
