//! The messages of ONNX that a model of ours consists of, with the field numbers of the standard's `onnx.proto`.

/// Version of the file format; 8 is of 2021, and read by every runtime that has opset 17.
pub(super) const IR_VERSION: i64 = 8;
/// Version of the operators: the first with LayerNormalization.
pub(super) const OPSET: i64 = 17;

/// Types of numbers.
pub(super) mod number {
    pub(in super::super) const FLOAT: i32 = 1;
    pub(in super::super) const UINT8: i32 = 2;
    pub(in super::super) const INT32: i32 = 6;
    pub(in super::super) const INT64: i32 = 7;
    pub(in super::super) const FLOAT16: i32 = 10;
    pub(in super::super) const BFLOAT16: i32 = 16;
}

/// `data_location` of a tensor whose numbers are in another file.
const EXTERNAL: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Model {
    #[prost(int64, tag = "1")]
    pub(super) ir_version: i64,
    #[prost(string, tag = "2")]
    pub(super) producer_name: String,
    #[prost(string, tag = "3")]
    pub(super) producer_version: String,
    #[prost(message, optional, tag = "7")]
    pub(super) graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub(super) opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "14")]
    pub(super) metadata_props: Vec<Entry>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OperatorSet {
    /// Empty: ONNX's own operators.
    #[prost(string, tag = "1")]
    pub(super) domain: String,
    #[prost(int64, tag = "2")]
    pub(super) version: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Entry {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub(super) node: Vec<Node>,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    pub(super) input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    pub(super) output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Node {
    #[prost(string, repeated, tag = "1")]
    pub(super) input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(super) output: Vec<String>,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(string, tag = "4")]
    pub(super) op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Attribute {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(float, tag = "2")]
    pub(super) f: f32,
    #[prost(int64, tag = "3")]
    pub(super) i: i64,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub(super) ints: Vec<i64>,
    /// Which of the fields above holds the value.
    #[prost(int32, tag = "20")]
    pub(super) kind: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Tensor {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub(super) dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub(super) data_type: i32,
    #[prost(string, tag = "8")]
    pub(super) name: String,
    /// The numbers, little-endian, unless they are in another file.
    #[prost(bytes = "vec", tag = "9")]
    pub(super) raw_data: Vec<u8>,
    #[prost(message, repeated, tag = "13")]
    pub(super) external_data: Vec<Entry>,
    #[prost(int32, tag = "14")]
    pub(super) data_location: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ValueInfo {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) kind: Option<Type>,
    #[prost(string, tag = "3")]
    pub(super) doc_string: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Type {
    #[prost(message, optional, tag = "1")]
    pub(super) tensor_type: Option<TensorType>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TensorType {
    #[prost(int32, tag = "1")]
    pub(super) elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) shape: Option<Shape>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub(super) dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Dimension {
    #[prost(oneof = "Size", tags = "1, 2")]
    pub(super) size: Option<Size>,
}

/// A dimension's size: a number, or a name for one that each request decides.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Size {
    #[prost(int64, tag = "1")]
    Fixed(i64),
    #[prost(string, tag = "2")]
    Named(String),
}

impl Attribute {
    pub(super) fn float(name: &str, value: f32) -> Attribute {
        Attribute { name: name.to_owned(), f: value, kind: 1, ..Attribute::default() }
    }

    pub(super) fn int(name: &str, value: i64) -> Attribute {
        Attribute { name: name.to_owned(), i: value, kind: 2, ..Attribute::default() }
    }

    pub(super) fn ints(name: &str, values: &[i64]) -> Attribute {
        Attribute { name: name.to_owned(), ints: values.to_vec(), kind: 7, ..Attribute::default() }
    }
}

impl Tensor {
    /// A tensor whose numbers are `length` bytes of the file `location` from `offset` on; the path is relative to the model's folder.
    pub(super) fn external(name: &str, (data_type, dims): (i32, &[i64]), location: &str, bytes: [usize; 2]) -> Tensor {
        let [offset, length] = bytes;
        let entries =
            [("location", location.to_owned()), ("offset", offset.to_string()), ("length", length.to_string())];
        Tensor {
            dims: dims.to_vec(),
            data_type,
            name: name.to_owned(),
            external_data: entries.map(|(key, value)| Entry { key: key.to_owned(), value }).to_vec(),
            data_location: EXTERNAL,
            ..Tensor::default()
        }
    }
}

impl ValueInfo {
    pub(super) fn new(name: &str, elem_type: i32, shape: &[Size], doc: &str) -> ValueInfo {
        let dim = shape.iter().map(|size| Dimension { size: Some(size.clone()) }).collect();
        let tensor = TensorType { elem_type, shape: Some(Shape { dim }) };
        let kind = Some(Type { tensor_type: Some(tensor) });
        ValueInfo { name: name.to_owned(), kind, doc_string: doc.to_owned() }
    }
}
