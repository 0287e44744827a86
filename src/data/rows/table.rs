//! Tables with a column of encoded images: Parquet and Arrow files.
//!
//! A column of images holds bytes, or structures with bytes and perhaps a path, as the datasets of Hugging Face do.

mod arrow_file;
mod parquet_file;

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use arrow::util::display::array_value_to_string;

use super::blob::Blob;
use super::{Columns, LONGEST, Line, RowSource, too_long};
use crate::error::{Error, Result};
use crate::panics::caught;

use arrow_file::ArrowFile;
use parquet_file::ParquetFile;

/// Names of a column of keys, the first that is there is taken.
const KEYS: [&str; 2] = ["key", "__key__"];
/// The same, where the images have no path beside their bytes.
const WEAK_KEYS: [&str; 7] = ["Name", "name", "id", "image_id", "file_name", "filename", "path"];
/// What a row is taken to have at least, so that a read has not too many rows whatever a file says of them.
const SMALLEST: u64 = 16 << 10;
/// Names of a column of images where several could be one, the first that is there is taken.
const IMAGES: [&str; 4] = ["image", "img", "jpg", "bytes"];

/// Rows that are stored together: a row group or a batch.
#[derive(Debug, Clone)]
struct Block {
    /// Its place in the file.
    number: usize,
    /// The number of its first row, from 0.
    first: usize,
    rows: usize,
    /// Bytes of all rows before it.
    start: u64,
    bytes: u64,
}

/// Where rows of a table are read from.
trait Blocks: std::fmt::Debug + Send + Sync {
    /// Some rows of a block: columns of images and, if there is one, of keys, in this order.
    ///
    /// # Errors
    /// `Data` if the file is damaged, `Storage` if it cannot be read.
    fn read(&self, block: usize, rows: Range<usize>) -> Result<Vec<RecordBatch>>;

    /// Lets go of what is held for the next read.
    fn rest(&self);
}

/// What the columns are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chosen {
    image: usize,
    key: Option<usize>,
}

impl Chosen {
    /// The columns to read, in the order of the table, as both libraries want them.
    fn projection(&self) -> Vec<usize> {
        let mut columns: Vec<usize> = std::iter::once(self.image).chain(self.key).collect();
        columns.sort_unstable();
        columns
    }

    /// Image and keys of what was read with the projection.
    fn of<'b>(&self, batch: &'b RecordBatch) -> Option<(&'b ArrayRef, Option<&'b ArrayRef>)> {
        let read = self.projection();
        let column = |at| batch.columns().get(read.iter().position(|&c| c == at)?);
        let key = match self.key {
            Some(key) => Some(column(key)?),
            None => None,
        };
        Some((column(self.image)?, key))
    }
}

/// A table of images.
#[derive(Debug)]
pub(super) struct Table {
    place: String,
    chosen: Chosen,
    index: Vec<Block>,
    blocks: Box<dyn Blocks>,
}

/// Whether a file is a table, by its name.
#[must_use]
pub fn is_table(name: &str) -> bool {
    [".parquet", ".arrow", ".feather"].iter().any(|end| name.ends_with(end))
}

impl Table {
    /// # Errors
    /// `Data` if it is damaged, or has no column of images; `Config` if it has not the columns that the job names.
    pub(super) fn open(blob: Blob, columns: &Columns) -> Result<Table> {
        let place = blob.place();
        let size = blob.size();
        let open = || {
            let choose = |schema: &Schema| choose(schema, columns, &place);
            let parquet = place.ends_with(".parquet");
            if parquet { ParquetFile::open(blob, choose) } else { ArrowFile::open(blob, choose) }
        };
        let (chosen, sizes, blocks) = guarded(&place, open)?;
        let (mut first, mut start) = (0usize, 0u64);
        let mut index = Vec::with_capacity(sizes.len());
        for (number, (rows, bytes)) in sizes.into_iter().enumerate().filter(|(_, (rows, _))| *rows > 0) {
            let bytes = bytes.max(SMALLEST.saturating_mul(rows as u64));
            index.push(Block { number, first, rows, start, bytes });
            first = first.saturating_add(rows);
            start = start.saturating_add(bytes);
        }
        // an image has more bytes than that
        if first as u64 > size {
            return Err(damaged(&place, "it has more rows than bytes"));
        }
        Ok(Table { place, chosen, index, blocks })
    }

    /// Bytes before a row, as if all rows of a block had the same.
    fn before(&self, row: usize) -> u64 {
        let at = self.index.partition_point(|block| block.first + block.rows <= row);
        match self.index.get(at) {
            Some(block) => {
                let part = block.bytes as f64 * (row - block.first) as f64 / block.rows as f64;
                block.start + part as u64
            }
            None => self.index.last().map_or(0, |block| block.start + block.bytes),
        }
    }

    fn line(&self, number: usize, row: usize, (images, keys): (&ArrayRef, Option<&ArrayRef>)) -> Line {
        let fallback = || format!("{}/{number}", self.place.rsplit('/').next().unwrap_or_default());
        let key = match keys {
            Some(keys) if keys.is_null(row) => return Line::bad(None, "it has no key".to_owned()),
            Some(keys) => match array_value_to_string(keys, row) {
                Ok(key) if key.is_empty() => return Line::bad(None, "its key is empty".to_owned()),
                Ok(key) => key,
                Err(error) => return Line::bad(None, format!("its key cannot be read ({error})")),
            },
            None => path_of(images, row).unwrap_or_else(fallback),
        };
        match bytes_of(images, row) {
            Some(image) if image.len() as u64 > LONGEST => Line::bad(Some(&key), too_long()),
            Some(image) => Line::image_of(&key, image.to_vec()),
            None => Line::bad(Some(&key), "the image is null".to_owned()),
        }
    }
}

impl RowSource for Table {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn len(&self) -> usize {
        self.index.last().map_or(0, |block| block.first + block.rows)
    }

    fn bytes(&self, rows: Range<usize>) -> u64 {
        self.before(rows.end) - self.before(rows.start)
    }

    fn read(&self, rows: Range<usize>) -> Result<Vec<Line>> {
        let mut lines = Vec::with_capacity(rows.len());
        let first = self.index.partition_point(|block| block.first + block.rows <= rows.start);
        for block in self.index.iter().skip(first).take_while(|block| block.first < rows.end) {
            let (start, end) = (rows.start.max(block.first), rows.end.min(block.first + block.rows));
            let within = start - block.first..end - block.first;
            for batch in guarded(&self.place, || self.blocks.read(block.number, within))? {
                let columns = self.chosen.of(&batch).ok_or_else(|| damaged(&self.place, "a column is missing"))?;
                let first = rows.start + lines.len() + 1;
                lines.extend((0..batch.num_rows()).map(|row| self.line(first + row, row, columns)));
            }
        }
        if lines.len() == rows.len() { Ok(lines) } else { Err(damaged(&self.place, "it has fewer rows than it says")) }
    }

    fn rest(&self) {
        self.blocks.rest();
    }
}

/// A library that gives up on a damaged file must not take the program with it.
fn guarded<T>(place: &str, read: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(read).unwrap_or_else(|| Err(damaged(place, "its reader gave up")))
}

fn damaged(place: &str, why: impl std::fmt::Display) -> Error {
    // some of the readers' texts have many lines
    let why = why.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    Error::data(format!("'{place}' cannot be read as a table ({why}): make it again, as Parquet or as an Arrow file"))
}

fn is_binary(of: &DataType) -> bool {
    matches!(of, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// Whether a column could hold images.
fn holds_images(of: &DataType) -> bool {
    match of {
        DataType::Struct(fields) => fields.iter().any(|f| f.name() == "bytes" && is_binary(f.data_type())),
        other => is_binary(other),
    }
}

fn holds_keys(of: &DataType) -> bool {
    match of {
        DataType::Dictionary(_, of) => holds_keys(of),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        other => other.is_integer(),
    }
}

/// The columns that the job names, or else those that can only be meant.
fn choose(schema: &Schema, columns: &Columns, place: &str) -> Result<Chosen> {
    let fields = schema.fields();
    let all = || fields.iter().map(|f| format!("'{}'", f.name())).collect::<Vec<_>>().join(", ");
    let named = |name: &String, parameter: &str, fits: fn(&DataType) -> bool, what: &str| {
        let found = fields.iter().position(|f| f.name() == name);
        let found = found.filter(|&at| fits(fields[at].data_type()));
        found.ok_or_else(|| {
            Error::config(format!(
                "parameters.{parameter}: '{place}' has no column '{name}' of {what}; it has {}",
                all()
            ))
        })
    };
    let image = match &columns.image {
        Some(name) => named(name, "image_column", holds_images, "encoded images")?,
        None => {
            let fitting: Vec<usize> = (0..fields.len()).filter(|&at| holds_images(fields[at].data_type())).collect();
            let usual = IMAGES.iter().find_map(|name| fitting.iter().find(|&&at| fields[at].name() == name));
            match (fitting.as_slice(), usual) {
                ([only], _) => *only,
                (_, Some(usual)) => *usual,
                (several, None) => {
                    let found = if several.is_empty() { "no column of bytes" } else { "several columns of bytes" };
                    return Err(Error::data(format!(
                        "'{place}' has {found}: parameters.image_column names the one of encoded images; it has {}",
                        all()
                    )));
                }
            }
        }
    };
    let key = match &columns.key {
        Some(name) => Some(named(name, "key_column", holds_keys, "texts or whole numbers")?),
        None => {
            let has_path = matches!(fields[image].data_type(), DataType::Struct(inner) if inner.find("path").is_some());
            let weak: &[&str] = if has_path { &[] } else { &WEAK_KEYS };
            KEYS.iter().chain(weak).find_map(|name| {
                fields.iter().position(|f| f.name() == name).filter(|&at| holds_keys(fields[at].data_type()))
            })
        }
    };
    Ok(Chosen { image, key })
}

/// The bytes of an image; `None` if they are null.
fn bytes_of(images: &ArrayRef, row: usize) -> Option<&[u8]> {
    if images.is_null(row) {
        return None;
    }
    match images.data_type() {
        DataType::Struct(_) => bytes_of(images.as_struct().column_by_name("bytes")?, row),
        DataType::Binary => Some(images.as_binary::<i32>().value(row)),
        DataType::LargeBinary => Some(images.as_binary::<i64>().value(row)),
        DataType::BinaryView => Some(images.as_binary_view().value(row)),
        _ => None,
    }
}

/// The path that a structure has beside its bytes.
fn path_of(images: &ArrayRef, row: usize) -> Option<String> {
    let paths = images.as_struct_opt()?.column_by_name("path").filter(|paths| holds_keys(paths.data_type()))?;
    let path = (!paths.is_null(row)).then(|| array_value_to_string(paths, row).ok()).flatten()?;
    (!path.is_empty()).then_some(path)
}
