//! A graph in the making: operators over values, which are names.

use super::proto::{self, Attribute, Node, Tensor, ValueInfo, number};
use crate::error::{Error, Result};
use crate::model::archive::Archive;
use safetensors::Dtype;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The name of what an operator gives.
pub(super) type Value = String;

/// The tensors of safetensors files of a folder, which a graph refers to where they lie.
#[derive(Debug, Default)]
pub(super) struct Weights {
    tensors: HashMap<String, Tensor>,
}

impl Weights {
    /// Adds the tensors of `folder/file`; `prefix` goes before their names.
    pub(super) fn add(&mut self, folder: &Path, file: &str, prefix: &str) -> Result<()> {
        let archive = Archive::open(&folder.join(file), false)?;
        for entry in &archive.entries {
            let kind = match entry.dtype {
                Dtype::F32 => number::FLOAT,
                Dtype::F16 => number::FLOAT16,
                Dtype::BF16 => number::BFLOAT16,
                _ => return Err(archive.no_weights(entry)),
            };
            let name = format!("{prefix}{}", entry.name);
            let tensor = Tensor::external(&name, (kind, &entry.shape), file, [entry.start, entry.length]);
            self.tensors.insert(name, tensor);
        }
        Ok(())
    }
}

/// A graph over the tensors of [`Weights`]. Everything is computed in f32.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    weights: &'a Weights,
    nodes: Vec<Node>,
    initializers: BTreeMap<String, Tensor>,
    /// What the next operators belong to; their names begin with it.
    pub(super) scope: String,
}

impl<'a> Graph<'a> {
    pub(super) fn new(weights: &'a Weights) -> Graph<'a> {
        Graph { weights, nodes: Vec::new(), initializers: BTreeMap::new(), scope: String::new() }
    }

    /// An operator with one output.
    pub(super) fn node<const N: usize>(
        &mut self,
        op: &str,
        inputs: [&Value; N],
        attributes: impl Into<Vec<Attribute>>,
    ) -> Value {
        let [output] = self.nodes_of(op, inputs, attributes.into());
        output
    }

    fn nodes_of<const N: usize, const M: usize>(
        &mut self,
        op: &str,
        inputs: [&Value; N],
        attribute: Vec<Attribute>,
    ) -> [Value; M] {
        let name = format!("{}/{op}_{}", self.scope, self.nodes.len());
        let outputs: [Value; M] = std::array::from_fn(|i| if M == 1 { name.clone() } else { format!("{name}.{i}") });
        self.nodes.push(Node {
            input: inputs.map(Clone::clone).to_vec(),
            output: outputs.to_vec(),
            name,
            op_type: op.to_owned(),
            attribute,
        });
        outputs
    }

    /// The parameter of that name in f32, and its shape.
    pub(super) fn parameter(&mut self, name: &str) -> Result<(Value, Vec<i64>)> {
        let found = self.weights.tensors.get(name);
        let tensor = found.ok_or_else(|| Error::package(format!("the weights lack parameter '{name}'")))?;
        let shape = tensor.dims.clone();
        self.initializers.entry(name.to_owned()).or_insert_with(|| tensor.clone());
        let value = match tensor.data_type {
            number::FLOAT => name.to_owned(),
            _ => self.node("Cast", [&name.to_owned()], [Attribute::int("to", i64::from(number::FLOAT))]),
        };
        Ok((value, shape))
    }

    /// A constant of these numbers, each in its little-endian bytes.
    fn constant<const N: usize>(
        &mut self,
        name: String,
        (data_type, dims): (i32, Vec<i64>),
        numbers: impl IntoIterator<Item = [u8; N]>,
    ) -> Value {
        let raw_data = numbers.into_iter().flatten().collect();
        let tensor = Tensor { dims, data_type, name: name.clone(), raw_data, ..Tensor::default() };
        self.initializers.insert(name.clone(), tensor);
        name
    }

    /// A list of whole numbers, such as a shape.
    pub(super) fn ints(&mut self, values: &[i64]) -> Value {
        let bytes = values.iter().map(|v| v.to_le_bytes());
        self.constant(format!("ints{values:?}").replace(' ', ""), (number::INT64, vec![values.len() as i64]), bytes)
    }

    /// One whole number.
    pub(super) fn int(&mut self, value: i64) -> Value {
        self.constant(format!("int({value})"), (number::INT64, Vec::new()), [value.to_le_bytes()])
    }

    /// A list of numbers.
    pub(super) fn floats(&mut self, values: &[f32]) -> Value {
        let bytes = values.iter().map(|v| v.to_le_bytes());
        self.constant(format!("floats{values:?}").replace(' ', ""), (number::FLOAT, vec![values.len() as i64]), bytes)
    }

    /// One number.
    pub(super) fn float(&mut self, value: f32) -> Value {
        self.constant(format!("float({value})"), (number::FLOAT, Vec::new()), [value.to_le_bytes()])
    }

    /// `x` in another shape; -1 is what remains, 0 the dimension as it is.
    pub(super) fn reshape(&mut self, x: &Value, shape: &[i64]) -> Value {
        let shape = self.ints(shape);
        self.node("Reshape", [x, &shape], [])
    }

    pub(super) fn transpose(&mut self, x: &Value, order: &[i64]) -> Value {
        self.node("Transpose", [x], [Attribute::ints("perm", order)])
    }

    /// Three equal parts of the dimension `axis`.
    pub(super) fn thirds(&mut self, x: &Value, axis: i64, part: i64) -> [Value; 3] {
        let parts = self.ints(&[part; 3]);
        self.nodes_of("Split", [x, &parts], vec![Attribute::int("axis", axis)])
    }

    pub(super) fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Add", [a, b], [])
    }

    pub(super) fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Mul", [a, b], [])
    }

    /// `x` times a number.
    pub(super) fn scale(&mut self, x: &Value, factor: f64) -> Value {
        let factor = self.float(factor as f32);
        self.mul(x, &factor)
    }

    pub(super) fn matmul(&mut self, a: &Value, b: &Value) -> Value {
        self.node("MatMul", [a, b], [])
    }

    /// Over the last dimension.
    pub(super) fn softmax(&mut self, x: &Value) -> Value {
        self.node("Softmax", [x], [Attribute::int("axis", -1)])
    }

    /// `x w^t + b` on [N, in]; the weight `[out, in]` stays as it is.
    pub(super) fn linear(&mut self, x: &Value, weight: &Value, bias: Option<&Value>) -> Value {
        let transposed = [Attribute::int("transB", 1)];
        match bias {
            Some(bias) => self.node("Gemm", [x, weight, bias], transposed),
            None => self.node("Gemm", [x, weight], transposed),
        }
    }

    /// The linear layer of these parameters on [N, in].
    pub(super) fn linear_of(&mut self, x: &Value, [weight, bias]: [&str; 2]) -> Result<Value> {
        let (weight, bias) = (self.parameter(weight)?.0, self.parameter(bias)?.0);
        Ok(self.linear(x, &weight, Some(&bias)))
    }

    /// The linear layer `path` on [N, in].
    pub(super) fn linear_at(&mut self, x: &Value, path: &str) -> Result<Value> {
        self.linear_of(x, [&format!("{path}.weight"), &format!("{path}.bias")])
    }

    /// The layer norm `path` over the last dimension.
    pub(super) fn layer_norm(&mut self, x: &Value, path: &str, epsilon: f64) -> Result<Value> {
        let weight = self.parameter(&format!("{path}.weight"))?.0;
        let bias = self.parameter(&format!("{path}.bias"))?.0;
        let attributes = [Attribute::int("axis", -1), Attribute::float("epsilon", epsilon as f32)];
        Ok(self.node("LayerNormalization", [x, &weight, &bias], attributes))
    }

    /// GELU by the error function.
    pub(super) fn gelu(&mut self, x: &Value) -> Value {
        // divided and not multiplied: this is the form that runtimes know as GELU
        let root = self.float(std::f32::consts::SQRT_2);
        let scaled = self.node("Div", [x, &root], []);
        let error = self.node("Erf", [&scaled], []);
        let one = self.float(1.0);
        let gate = self.add(&error, &one);
        let gated = self.mul(x, &gate);
        self.scale(&gated, 0.5)
    }

    /// Features [B, C] times the parameter `projection` [C, P], each row of length 1.
    pub(super) fn project(&mut self, features: &Value, projection: &str) -> Result<Value> {
        projection.clone_into(&mut self.scope);
        let projection = self.parameter(projection)?.0;
        let x = self.matmul(features, &projection);
        let norm = self.node("ReduceL2", [&x], [Attribute::ints("axes", &[-1]), Attribute::int("keepdims", 1)]);
        let least = self.float(1e-12);
        let norm = self.node("Clip", [&norm, &least], []);
        Ok(self.node("Div", [&x, &norm], []))
    }

    /// Gives `value` the name of an output.
    pub(super) fn output(&mut self, value: &Value, name: &str) {
        self.nodes.push(Node {
            input: vec![value.clone()],
            output: vec![name.to_owned()],
            name: name.to_owned(),
            op_type: "Identity".to_owned(),
            attribute: Vec::new(),
        });
    }

    /// The finished graph.
    pub(super) fn finish(self, name: &str, input: Vec<ValueInfo>, output: Vec<ValueInfo>) -> proto::Graph {
        let initializer = self.initializers.into_values().collect();
        proto::Graph { node: self.nodes, name: name.to_owned(), initializer, input, output }
    }
}
