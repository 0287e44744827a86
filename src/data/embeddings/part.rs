//! One Parquet file of embeddings: row, Name, sha256, features; where they come from in the metadata of the schema.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float32Type, Int64Type, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::error::{Error, Result};

use super::Space;

/// Key of the JSON of [`Space`] in the schema's metadata; the first format had it in the footer.
const SPACE_KEY: &str = "medtune.embeddings";

/// Rows of a group; at 1024 dimensions a group is 16 MiB of memory.
const GROUP_ROWS: usize = 4096;

/// The rows of one Parquet file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    /// The place of each row in its dataset, from 1, rising.
    pub rows: Vec<u64>,
    /// The key of each row.
    pub names: Vec<String>,
    /// SHA-256 (hex) of the encoded image of each row.
    pub hashes: Vec<String>,
    /// Feature vectors, row-major `[rows, dim]`.
    pub features: Vec<f32>,
}

impl Part {
    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Adds a row: its place, key, SHA-256, and a vector of finite numbers.
    ///
    /// # Errors
    /// [`Data`](crate::ErrorKind::Data) if the vector is not finite.
    pub fn push(&mut self, row: u64, (name, sha256): (&str, &str), features: &[f32]) -> Result<()> {
        if features.iter().any(|v| !v.is_finite()) {
            return Err(Error::data(format!(
                "embedding of row {row} ('{name}') is not finite: the model's weights or precision are at fault"
            )));
        }
        self.rows.push(row);
        self.names.push(name.to_owned());
        self.hashes.push(sha256.to_owned());
        self.features.extend_from_slice(features);
        Ok(())
    }

    /// Keeps the rows for which `keep` says so, by their index.
    pub fn retain(&mut self, keep: &[bool], dim: usize) {
        let kept = |index: usize| keep.get(index).copied().unwrap_or(false);
        let mut index = 0..;
        self.rows.retain(|_| index.next().is_some_and(kept));
        index = 0..;
        self.names.retain(|_| index.next().is_some_and(kept));
        index = 0..;
        self.hashes.retain(|_| index.next().is_some_and(kept));
        index = 0..;
        self.features.retain(|_| index.next().is_some_and(|value| kept(value / dim)));
    }

    /// Writes the file at `path`, replacing one that exists.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for an impossible dimension, [`Internal`](crate::ErrorKind::Internal) if the columns
    /// differ in length, [`Storage`](crate::ErrorKind::Storage) or [`NoSpace`](crate::ErrorKind::NoSpace).
    pub fn write(&self, path: &Path, space: &Space) -> Result<()> {
        let dim = i32::try_from(space.dim).ok().filter(|dim| *dim > 0);
        let dim = dim.ok_or_else(|| Error::config(format!("embeddings cannot have {} dimensions", space.dim)))?;
        let json = serde_json::to_string(space).map_err(|e| Error::internal("cannot write JSON").with_source(e))?;
        let file = BufWriter::new(File::create(path).map_err(|e| Error::io("create", path, e))?);
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            // names, hashes and features hardly repeat
            .set_dictionary_enabled(false)
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .build();
        let batch = self.batch(schema(dim, json), dim)?;
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).map_err(|e| failed(path, e))?;
        writer.write(&batch).map_err(|e| failed(path, e))?;
        let into = writer.into_inner().map_err(|e| failed(path, e))?;
        into.into_inner().map(drop).map_err(|e| Error::io("write", path, e.into_error()))
    }

    fn batch(&self, schema: Schema, dim: i32) -> Result<RecordBatch> {
        let rows = self.rows.iter().map(|&row| i64::try_from(row).unwrap_or(i64::MAX));
        let values: ArrayRef = Arc::new(Float32Array::from(self.features.clone()));
        let lists = FixedSizeListArray::try_new(item(), dim, values, None)
            .map_err(|e| Error::internal("embeddings do not fill their rows").with_source(e))?;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows)),
            Arc::new(StringArray::from_iter_values(&self.names)),
            Arc::new(StringArray::from_iter_values(&self.hashes)),
            Arc::new(lists),
        ];
        RecordBatch::try_new(Arc::new(schema), columns)
            .map_err(|e| Error::internal("embedding columns differ in length").with_source(e))
    }
}

fn item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Float32, false))
}

fn schema(dim: i32, space: String) -> Schema {
    let columns = vec![
        Field::new("row", DataType::Int64, false),
        Field::new("Name", DataType::Utf8, false),
        Field::new("sha256", DataType::Utf8, false),
        Field::new("features", DataType::FixedSizeList(item(), dim), false),
    ];
    Schema::new(columns).with_metadata([(SPACE_KEY.to_owned(), space)])
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

fn damaged(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::data(format!("'{}' is not a readable Parquet file: embed the dataset again", path.display()))
        .with_source(source)
}

type Builder = ParquetRecordBatchReaderBuilder<File>;

fn open(path: &Path) -> Result<Builder> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    Builder::try_new(file).map_err(|e| damaged(path, e))
}

fn wrong(path: &Path, column: &str, dim: usize) -> Error {
    Error::data(format!(
        "'{}' has no usable column '{column}' (features need {dim} non-null f32 values a row)",
        path.display()
    ))
}

/// The JSON of the file's [`Space`], and its columns `[dim]`; files of the first format have no column `row`: theirs are numbered
/// from 1.
pub(super) fn read(path: &Path, dim: usize) -> Result<(Option<String>, Part)> {
    let builder = open(path)?;
    let space = builder.schema().metadata().get(SPACE_KEY).cloned();
    let mut part = Part::default();
    for batch in builder.build().map_err(|e| damaged(path, e))? {
        let batch = batch.map_err(|e| damaged(path, e))?;
        take_texts(&batch, "Name", &mut part.names).ok_or_else(|| wrong(path, "Name", dim))?;
        take_texts(&batch, "sha256", &mut part.hashes).ok_or_else(|| wrong(path, "sha256", dim))?;
        match batch.column_by_name("row") {
            Some(_) => take_rows(&batch, &mut part.rows).ok_or_else(|| wrong(path, "row", dim))?,
            None => part.rows.extend(part.rows.len() as u64 + 1..=part.names.len() as u64),
        }
        let lists = batch.column_by_name("features").and_then(|c| c.as_fixed_size_list_opt());
        let lists = lists.filter(|l| l.null_count() == 0 && l.value_length() as usize == dim);
        let values = lists.and_then(|l| l.values().as_primitive_opt::<Float32Type>());
        let values = values.filter(|v| v.null_count() == 0).ok_or_else(|| wrong(path, "features", dim))?;
        if values.values().iter().any(|v| !v.is_finite()) {
            return Err(Error::data(format!("'{}' holds features that are not finite", path.display())));
        }
        part.features.extend_from_slice(values.values());
    }
    if part.features.len() != part.names.len() * dim {
        return Err(Error::data(format!("'{}' has rows without features", path.display())));
    }
    Ok((space, part))
}

/// What the vectors of a file share, and the place and key of each row, without the vectors.
pub(super) fn read_keys(path: &Path) -> Result<(Option<Space>, Vec<u64>, Vec<String>)> {
    let space = open(path)?.schema().metadata().get(SPACE_KEY).and_then(|json| serde_json::from_str(json).ok());
    let (mut rows, mut names) = (Vec::new(), Vec::new());
    read_columns(path, &["row", "Name"], |batch| {
        take_rows(batch, &mut rows)?;
        take_texts(batch, "Name", &mut names)
    })?;
    Ok((space, rows, names))
}

/// The SHA-256 of each row's image.
pub(super) fn read_hashes(path: &Path) -> Result<Vec<String>> {
    let mut hashes = Vec::new();
    read_columns(path, &["sha256"], |batch| take_texts(batch, "sha256", &mut hashes))?;
    Ok(hashes)
}

/// Gives batches of some columns to `take`, which says when one is not what it should be.
fn read_columns(path: &Path, columns: &[&str], mut take: impl FnMut(&RecordBatch) -> Option<()>) -> Result<()> {
    let builder = open(path)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    for batch in builder.with_projection(mask).build().map_err(|e| damaged(path, e))? {
        let wrong = || Error::data(format!("'{}' has no usable columns {}", path.display(), columns.join(", ")));
        take(&batch.map_err(|e| damaged(path, e))?).ok_or_else(wrong)?;
    }
    Ok(())
}

fn take_rows(batch: &RecordBatch, into: &mut Vec<u64>) -> Option<()> {
    let rows = batch.column_by_name("row")?.as_primitive_opt::<Int64Type>()?;
    if rows.null_count() > 0 || rows.values().iter().any(|row| *row < 1) {
        return None;
    }
    into.extend(rows.values().iter().map(|row| row.unsigned_abs()));
    Some(())
}

fn take_texts(batch: &RecordBatch, column: &str, into: &mut Vec<String>) -> Option<()> {
    let texts = batch.column_by_name(column).and_then(|c| c.as_string_opt::<i32>())?;
    if texts.null_count() > 0 {
        return None;
    }
    into.extend(texts.iter().flatten().map(str::to_owned));
    Some(())
}
