//! Encoders and classifiers as ONNX models, for runtimes without Python.
//!
//! A model's file holds the graph; its numbers stay in the package's safetensors files, which it refers to by offset, so that a package
//! with ONNX models is hardly larger than one without. Models lie beside `config.yaml`, above all files they refer to. The images they take are
//! bytes, as the [pixel contract](crate::imaging::PixelContract) resizes them; normalisation is in the graph.

mod graph;
mod head;
mod image;
mod proto;
mod text;

use super::config::ModelConfig;
use super::weights::read_tensor;
use crate::error::{Error, Result};
use crate::package::PackageConfig;
use crate::package::config::{CLASSIFIER_ONNX, IMAGE_ENCODER_ONNX, TEXT_ENCODER_ONNX};
use graph::{Graph, Weights};
use prost::Message;
use proto::{Entry, Model, OperatorSet, Size, ValueInfo, number};
use serde_json::json;
use std::path::Path;

/// Writes the ONNX models of the package whose files are in `checkpoints` there. They compute in f32; weights that are stored in another
/// type are converted when a runtime loads them.
///
/// - [`IMAGE_ENCODER_ONNX`]: `images` [batch, height, width, 3] (bytes: red, green, blue) to `image_features` [batch, P], vectors of length 1.
/// - [`TEXT_ENCODER_ONNX`]: `input_ids` and `attention_mask` [batch, tokens] (int64) to `text_features` [batch, P].
/// - [`CLASSIFIER_ONNX`]: `images` to `scores` [batch, classes], in the order of the labels, and `image_features`.
///
/// # Errors
/// [`crate::ErrorKind::Package`] for weights that are no safetensors or do not fit the configuration; [`crate::ErrorKind::Storage`].
pub fn write(checkpoints: &Path, config: &PackageConfig, model: &ModelConfig) -> Result<()> {
    let pixels = ("pixels", config.pixels.to_json()?.to_string());
    let mut weights = Weights::default();
    weights.add(checkpoints, &config.weights, "")?;
    match &config.classifier {
        None => {
            let scaling_factor = read_tensor(&checkpoints.join(&config.weights), "logit_scale")?;
            let scaling_factor = scaling_factor.f_double_value(&[]).map_err(super::engine)? as f32;
            let scaling_factor = ("scaling_factor", scaling_factor.to_string());
            let image = image_encoder(&weights, config, model)?;
            save(&checkpoints.join(IMAGE_ENCODER_ONNX), image, [pixels, scaling_factor.clone()])?;
            let most = ("context_length", model.text.context_length.to_string());
            save(&checkpoints.join(TEXT_ENCODER_ONNX), text_encoder(&weights, model)?, [most, scaling_factor])
        }
        Some(classifier) => {
            weights.add_head(checkpoints, classifier)?;
            let labels = config.labels_in(checkpoints)?;
            let mut graph = Graph::new(&weights);
            let features = image_features(&mut graph, config, model)?;
            let scores = head::scores(&mut graph, &features, classifier)?;
            graph.output(&scores, "scores");
            let sizes = [batch(), Size::Fixed(labels.len() as i64)];
            let doc = "probabilities, in the order of the labels in the model's metadata";
            let scores = ValueInfo::new("scores", number::FLOAT, &sizes, doc);
            let graph =
                graph.finish("classifier", vec![images(config)], vec![scores, vectors("image_features", model)]);
            save(&checkpoints.join(CLASSIFIER_ONNX), graph, [pixels, ("labels", json!(labels).to_string())])
        }
    }
}

fn image_encoder(weights: &Weights, config: &PackageConfig, model: &ModelConfig) -> Result<proto::Graph> {
    let mut graph = Graph::new(weights);
    image_features(&mut graph, config, model)?;
    Ok(graph.finish("image_encoder", vec![images(config)], vec![vectors("image_features", model)]))
}

/// Adds the image encoder; its vectors are an output too.
fn image_features(graph: &mut Graph<'_>, config: &PackageConfig, model: &ModelConfig) -> Result<graph::Value> {
    let features = image::encoder(graph, &"images".to_owned(), &config.pixels, &model.image)?;
    let features = graph.project(&features, "image_projection")?;
    graph.output(&features, "image_features");
    Ok(features)
}

fn text_encoder(weights: &Weights, model: &ModelConfig) -> Result<proto::Graph> {
    let mut graph = Graph::new(weights);
    let [ids, mask] = ["input_ids", "attention_mask"].map(str::to_owned);
    let features = text::encoder(&mut graph, &ids, &mask, &model.text)?;
    let features = graph.project(&features, "lang_projection")?;
    graph.output(&features, "text_features");
    let tokens = [batch(), Size::Named("tokens".to_owned())];
    let most = model.text.context_length;
    let inputs = vec![
        ValueInfo::new(&ids, number::INT64, &tokens, &format!("token ids of each text, {most} at most")),
        ValueInfo::new(&mask, number::INT64, &tokens, "1 for a token, 0 for what a shorter text is filled up with"),
    ];
    Ok(graph.finish("text_encoder", inputs, vec![vectors("text_features", model)]))
}

fn batch() -> Size {
    Size::Named("batch".to_owned())
}

fn images(config: &PackageConfig) -> ValueInfo {
    let [height, width] = config.pixels.image_size.map(|side| Size::Fixed(i64::from(side)));
    let doc = "red, green and blue of images that were standardised and resized";
    ValueInfo::new("images", number::UINT8, &[batch(), height, width, Size::Fixed(3)], doc)
}

fn vectors(name: &str, model: &ModelConfig) -> ValueInfo {
    ValueInfo::new(name, number::FLOAT, &[batch(), Size::Fixed(model.projection)], "vectors of length 1")
}

fn save<const N: usize>(path: &Path, graph: proto::Graph, facts: [(&str, String); N]) -> Result<()> {
    let model = Model {
        ir_version: proto::IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(graph),
        opset_import: vec![OperatorSet { domain: String::new(), version: proto::OPSET }],
        metadata_props: facts.map(|(key, value)| Entry { key: key.to_owned(), value }).to_vec(),
    };
    std::fs::write(path, model.encode_to_vec()).map_err(|e| Error::io("write", path, e))
}
