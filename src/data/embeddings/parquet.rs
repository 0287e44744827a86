//! The Parquet table: Name, sha256, features; the manifest as a footer entry.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float32Type, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use crate::error::{Error, Result};

/// Footer key of the manifest's JSON.
const MANIFEST_KEY: &str = "medtune.embeddings";

/// Rows of a group; at 1024 dimensions a group is 16 MiB of memory.
const GROUP_ROWS: usize = 4096;

pub(super) struct Writer {
    path: PathBuf,
    dim: usize,
    schema: SchemaRef,
    writer: ArrowWriter<BufWriter<File>>,
    names: Vec<String>,
    hashes: Vec<String>,
    features: Vec<f32>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("path", &self.path).field("dim", &self.dim).finish_non_exhaustive()
    }
}

fn item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Float32, false))
}

fn schema(dim: i32) -> Schema {
    Schema::new(vec![
        Field::new("Name", DataType::Utf8, false),
        Field::new("sha256", DataType::Utf8, false),
        Field::new("features", DataType::FixedSizeList(item(), dim), false),
    ])
}

impl Writer {
    /// `dim` fits an `i32`: the caller checks.
    pub(super) fn create(path: &Path, dim: usize) -> Result<Self> {
        let file = BufWriter::new(File::create(path).map_err(|e| Error::io("create", path, e))?);
        let schema = Arc::new(schema(dim as i32));
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            // names, hashes and features hardly repeat
            .set_dictionary_enabled(false)
            .build();
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(|e| failed(path, e))?;
        let (names, hashes, features) = Default::default();
        Ok(Writer { path: path.to_owned(), dim, schema, writer, names, hashes, features })
    }

    pub(super) fn push(&mut self, name: &str, sha256: &str, features: &[f32]) -> Result<()> {
        self.names.push(name.to_owned());
        self.hashes.push(sha256.to_owned());
        self.features.extend_from_slice(features);
        if self.names.len() == GROUP_ROWS { self.flush() } else { Ok(()) }
    }

    pub(super) fn finish(mut self, manifest: &str) -> Result<()> {
        if !self.names.is_empty() {
            self.flush()?;
        }
        self.writer.append_key_value_metadata(KeyValue::new(MANIFEST_KEY.to_owned(), manifest.to_owned()));
        let into = self.writer.into_inner().map_err(|e| failed(&self.path, e))?;
        into.into_inner().map(drop).map_err(|e| Error::io("write", &self.path, e.into_error()))
    }

    fn flush(&mut self) -> Result<()> {
        let values: ArrayRef = Arc::new(Float32Array::from(std::mem::take(&mut self.features)));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(std::mem::take(&mut self.names))),
            Arc::new(StringArray::from(std::mem::take(&mut self.hashes))),
            Arc::new(
                FixedSizeListArray::try_new(item(), self.dim as i32, values, None)
                    .map_err(|e| Error::internal("embeddings do not fill their rows").with_source(e))?,
            ),
        ];
        let batch = RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|e| Error::internal("embedding columns differ in length").with_source(e))?;
        self.writer.write(&batch).and_then(|()| self.writer.flush()).map_err(|e| failed(&self.path, e))
    }
}

fn failed(path: &Path, error: ParquetError) -> Error {
    // a full disk must keep its own exit code
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(io) => Error::io("write", path, *io),
            Err(other) => Error::storage(format!("cannot write '{}'", path.display())).with_source(other),
        },
        other => Error::storage(format!("cannot write '{}'", path.display())).with_source(other),
    }
}

pub(super) struct Table {
    pub(super) names: Vec<String>,
    pub(super) hashes: Vec<String>,
    pub(super) features: Vec<f32>,
    pub(super) manifest: Option<String>,
}

pub(super) fn read(path: &Path, dim: usize) -> Result<Table> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let damaged = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::data(format!("'{}' is not a readable Parquet file: embed the dataset again", path.display()))
            .with_source(e)
    };
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(e.into()))?;
    let footer = builder.metadata().file_metadata().key_value_metadata();
    let manifest = footer.and_then(|all| all.iter().find(|kv| kv.key == MANIFEST_KEY)).and_then(|kv| kv.value.clone());
    let mut table = Table { names: Vec::new(), hashes: Vec::new(), features: Vec::new(), manifest };
    for batch in builder.build().map_err(|e| damaged(e.into()))? {
        let batch = batch.map_err(|e| damaged(e.into()))?;
        let wrong = |column: &str| {
            Error::data(format!(
                "'{}' has no usable column '{column}' (features need {dim} non-null f32 values a row)",
                path.display()
            ))
        };
        for (column, into) in [("Name", &mut table.names), ("sha256", &mut table.hashes)] {
            let texts = batch.column_by_name(column).and_then(|c| c.as_string_opt::<i32>());
            let texts = texts.filter(|t| t.null_count() == 0).ok_or_else(|| wrong(column))?;
            into.extend(texts.iter().flatten().map(str::to_owned));
        }
        let lists = batch.column_by_name("features").and_then(|c| c.as_fixed_size_list_opt());
        let lists = lists.filter(|l| l.null_count() == 0 && l.value_length() as usize == dim);
        let values = lists.and_then(|l| l.values().as_primitive_opt::<Float32Type>());
        let values = values.filter(|v| v.null_count() == 0).ok_or_else(|| wrong("features"))?;
        if values.values().iter().any(|v| !v.is_finite()) {
            return Err(Error::data(format!("'{}' holds features that are not finite", path.display())));
        }
        table.features.extend_from_slice(values.values());
    }
    if table.features.len() != table.names.len() * dim {
        return Err(Error::data(format!("'{}' has rows without features", path.display())));
    }
    Ok(table)
}
