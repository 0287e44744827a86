//! Images for work that goes through them once, whatever they lie in: TSVs, ZIP archives, Parquet and Arrow files, folders; one of these
//! or several in a row.
//!
//! Guarantees: memory holds the places of rows and the rows that are asked for; what is wrong with a single row concerns that row
//! alone, see [`Line::image`].

mod archive;
mod blob;
mod folder;
mod table;
mod tsv;

use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::embeddings::BadRow;
use super::index::decode_value;
use crate::error::Result;

use archive::ArchivedImages;
pub use archive::is_archive;
use blob::Blob;
use folder::ImageFolder;
use table::Table;
pub use table::is_table;
pub use tsv::RemoteRows;
use tsv::RowFile;

/// The longest row that is read; a longer one holds no image that could be decoded.
const LONGEST: u64 = 1 << 30;

/// An image row that can be used: its key and the encoded image.
pub type ImageRow = (String, Vec<u8>);

/// Where each one's bytes would begin if all were one file, and where the last one's would end.
fn offsets(sizes: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut offsets = vec![0u64];
    // what an archive says of sizes may be anything
    sizes.into_iter().for_each(|size| offsets.push(offsets[offsets.len() - 1].saturating_add(size)));
    offsets
}

/// What is wrong with a row of more than [`LONGEST`] bytes.
fn too_long() -> String {
    format!("it has more than {LONGEST} bytes")
}

/// Why a row cannot be used, and its key where it can be read.
pub type Fault = (Option<String>, String);

/// One row as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line(Content);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    /// A line of a TSV, without its end.
    Encoded(Vec<u8>),
    Image(ImageRow),
    Bad(Fault),
}

impl Line {
    fn encoded(line: Vec<u8>) -> Line {
        Line(Content::Encoded(line))
    }

    fn image_of(key: &str, image: Vec<u8>) -> Line {
        if key.contains(char::is_control) {
            return Line::bad(None, "its key has a tab, a line end or another control character".to_owned());
        }
        Line(Content::Image((key.to_owned(), image)))
    }

    fn bad(key: Option<&str>, reason: String) -> Line {
        Line(Content::Bad((key.map(str::to_owned), reason)))
    }

    /// How many bytes were read of it.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.0 {
            Content::Encoded(bytes) | Content::Image((_, bytes)) => bytes.len() as u64,
            Content::Bad(_) => 0,
        }
    }

    /// Whether nothing was read of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key and the encoded image of the row.
    ///
    /// # Errors
    /// What is wrong with the row: it could not be read, or there is no tab, no key, no UTF-8, no base64, nothing in it.
    pub fn image(self) -> std::result::Result<ImageRow, Fault> {
        let line = match self.0 {
            Content::Encoded(line) => line,
            Content::Image((key, image)) if image.is_empty() => {
                return Err((Some(key), "the image is empty".to_owned()));
            }
            Content::Image(row) => return Ok(row),
            Content::Bad(fault) => return Err(fault),
        };
        let tab = line.iter().position(|&b| b == b'\t').ok_or((None, "no tab between key and value".to_owned()))?;
        let key = std::str::from_utf8(&line[..tab]).map_err(|_| (None, "the key is not valid UTF-8".to_owned()))?;
        if key.is_empty() {
            return Err((None, "the key before the tab is empty".to_owned()));
        }
        let image = decode_value(&line[tab + 1..]).map_err(|reason| (Some(key.to_owned()), reason))?;
        Ok((key.to_owned(), image))
    }
}

/// What rows are read from.
trait RowSource: Debug + Send + Sync {
    /// Where it is, for messages.
    fn place(&self) -> String;

    /// How many rows there are.
    fn len(&self) -> usize;

    /// How many bytes these rows have.
    fn bytes(&self, rows: Range<usize>) -> u64;

    /// These rows.
    ///
    /// # Errors
    /// `Data` when it is not what it was when it was opened; `Storage` when it cannot be read.
    fn read(&self, rows: Range<usize>) -> Result<Vec<Line>>;

    /// Lets go of what is held for the next read: another source is read now.
    fn rest(&self) {}
}

/// The columns of tables by name; what is `None` is found out.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    /// Of encoded images.
    pub image: Option<String>,
    /// Of keys.
    pub key: Option<String>,
}

/// Where rows are.
#[derive(Debug, Clone)]
pub enum RowsAt {
    /// A file of this machine: by its name a ZIP archive, a Parquet or Arrow file, or else a TSV.
    File(PathBuf),
    /// An object of a store, the same.
    Remote(Box<RemoteRows>),
    /// A map of images in ZIP archives, and the archives by the names that it has for them; files or objects all.
    Map(Box<RowsAt>, Vec<(String, RowsAt)>),
    /// A folder of this machine with images, and folders of images.
    Folder(PathBuf),
}

impl RowsAt {
    fn open(&self, columns: &Columns) -> Result<Box<dyn RowSource>> {
        Ok(match self {
            RowsAt::Folder(path) => Box::new(ImageFolder::open(path)?),
            RowsAt::Map(map, archives) => {
                let archive = |(name, at): &(String, RowsAt)| Ok((name.clone(), at.blob()?));
                let archives = archives.iter().map(archive).collect::<Result<_>>()?;
                Box::new(ArchivedImages::mapped(&map.blob()?, archives)?)
            }
            at if is_archive(&at.place()) => Box::new(ArchivedImages::of(at.blob()?)?),
            at if is_table(&at.place()) => Box::new(Table::open(at.blob()?, columns)?),
            RowsAt::File(path) => Box::new(RowFile::open(path)?),
            RowsAt::Remote(remote) => Box::new(RowFile::remote((**remote).clone())?),
        })
    }

    fn blob(&self) -> Result<Blob> {
        match self {
            RowsAt::File(path) | RowsAt::Folder(path) => Blob::open(path),
            RowsAt::Remote(remote) => Ok(Blob::Remote(remote.object.clone())),
            RowsAt::Map(map, _) => map.blob(),
        }
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            RowsAt::File(path) | RowsAt::Folder(path) => path.display().to_string(),
            RowsAt::Remote(remote) => remote.object.uri().to_owned(),
            RowsAt::Map(map, _) => map.place(),
        }
    }

    /// The archives that a map names, if it is one: they are in the same folder.
    ///
    /// # Errors
    /// `Data`, naming file and row, for a line that names no image of an archive; those of reading it.
    pub fn archives(&self) -> Result<Option<Vec<String>>> {
        if !self.place().ends_with(".txt") {
            return Ok(None);
        }
        let map = self.blob()?;
        if archive::is_map(&map)? { archive::names(&map).map(Some) } else { Ok(None) }
    }

    /// Whether any of its bytes are somewhere else, and stay there.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        match self {
            RowsAt::Remote(_) => true,
            RowsAt::File(_) | RowsAt::Folder(_) => false,
            RowsAt::Map(map, archives) => map.is_elsewhere() || archives.iter().any(|(_, at)| at.is_elsewhere()),
        }
    }
}

/// The rows of one or several sources, one after the other.
#[derive(Debug)]
pub struct ImageRows {
    /// Each with the number of its first row, from 0.
    parts: Vec<(usize, Box<dyn RowSource>)>,
    len: usize,
    /// The one that was read last.
    last: AtomicUsize,
}

impl ImageRows {
    /// Opens all of them.
    ///
    /// # Errors
    /// `NotFound` or `Storage` when one cannot be read; `Data` when a line index does not belong to its TSV, or a folder has names that
    /// cannot be keys.
    pub fn open(places: &[RowsAt], columns: &Columns) -> Result<ImageRows> {
        let files = |at: &RowsAt| if let RowsAt::Map(_, archives) = at { archives.len() + 1 } else { 1 };
        allow_open_files(places.iter().map(files).sum());
        let mut rows = ImageRows { parts: Vec::with_capacity(places.len()), len: 0, last: AtomicUsize::new(0) };
        for place in places {
            let part = place.open(columns)?;
            let first = rows.len;
            rows.len += part.len();
            rows.parts.push((first, part));
        }
        Ok(rows)
    }

    /// Where they are, for messages: `'a.tsv' and 2 more`.
    #[must_use]
    pub fn place(&self) -> String {
        let first = self.parts.first().map(|(_, part)| part.place()).unwrap_or_default();
        let more = if self.parts.len() > 1 { format!(" and {} more", self.parts.len() - 1) } else { String::new() };
        format!("'{first}'{more}")
    }

    /// A bad row for messages: where there are several sources, also which one has it, and its number there.
    #[must_use]
    pub fn describe(&self, bad: &BadRow) -> String {
        let row = (bad.row as usize).saturating_sub(1);
        let (first, part) = match self.parts.get(self.part_of(row)) {
            Some(found) if self.parts.len() > 1 => found,
            _ => return bad.describe(),
        };
        format!("{} (row {} of '{}')", bad.describe(), row - first + 1, part.place())
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The largest range of rows from `start` on that ends at or before `end`, is of one source, and has no more than `bytes` bytes, or
    /// one row.
    #[must_use]
    pub fn within(&self, start: usize, end: usize, bytes: u64) -> Range<usize> {
        let (first, part) = &self.parts[self.part_of(start)];
        let from = start - first;
        let (mut fits, mut over) = (from + 1, part.len().min(end - first) + 1);
        while over - fits > 1 {
            let middle = fits + (over - fits) / 2;
            if part.bytes(from..middle) <= bytes { fits = middle } else { over = middle }
        }
        start..first + fits
    }

    /// These rows, which must be of one source, as those of [`within`](Self::within) are.
    ///
    /// # Errors
    /// `Data` when a source is not what it was when it was opened; `Storage` when it cannot be read.
    pub fn read(&self, rows: Range<usize>) -> Result<Vec<Line>> {
        let number = self.part_of(rows.start);
        let last = self.last.swap(number, Ordering::Relaxed);
        if last != number {
            self.parts[last].1.rest();
        }
        let (first, part) = &self.parts[number];
        part.read(rows.start - first..rows.end - first)
    }

    fn part_of(&self, row: usize) -> usize {
        // empty parts begin where the next one does
        self.parts.partition_point(|(first, _)| *first <= row).saturating_sub(1)
    }
}

/// All sources are open at once, and a process may have fewer files open than the machine allows it to.
fn allow_open_files(count: usize) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if count >= 256
        && let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        // where it cannot be raised, opening says so
        setrlimit(Resource::RLIMIT_NOFILE, most, most).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TsvWriter;

    #[test]
    fn sources_follow_each_other_and_ranges_end_with_them() {
        let root = tempfile::tempdir().unwrap();
        let tsv = |name: &str, rows: Range<u8>| {
            let path = root.path().join(name);
            let mut writer = TsvWriter::create(&path).unwrap();
            rows.for_each(|i| writer.write_image(&format!("k{i}"), &[i; 30]).unwrap());
            writer.finish().unwrap();
            RowsAt::File(path)
        };
        let folder = root.path().join("images/deep");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("x.png"), [9; 5]).unwrap();
        std::fs::write(root.path().join("images/empty.jpg"), []).unwrap();
        let places =
            [tsv("a.tsv", 0..3), tsv("none.tsv", 0..0), RowsAt::Folder(root.path().join("images")), tsv("b.tsv", 3..7)];
        let rows = ImageRows::open(&places, &Columns::default()).unwrap();
        assert_eq!(rows.len(), 9);
        let (mut at, mut found) = (0, Vec::new());
        while at < rows.len() {
            let range = rows.within(at, rows.len(), 90);
            assert_eq!(range.start, at);
            at = range.end;
            found.push((range.len(), rows.read(range).unwrap().into_iter().map(|l| l.image()).collect::<Vec<_>>()));
        }
        // a row of a TSV has 44 bytes
        assert_eq!(found.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [2, 1, 2, 2, 2]);
        let keys: Vec<_> =
            found.iter().flat_map(|(_, rows)| rows).map(|row| row.as_ref().map(|(key, _)| key.as_str())).collect();
        assert_eq!(keys[..3], [Ok("k0"), Ok("k1"), Ok("k2")]);
        assert_eq!(keys[3], Ok("deep/x.png"));
        assert_eq!(keys[4], Err(&(Some("empty.jpg".to_owned()), "the image is empty".to_owned())));
        assert_eq!(keys[5..], [Ok("k3"), Ok("k4"), Ok("k5"), Ok("k6")]);
        let bad = BadRow { row: 7, key: None, reason: "torn".to_owned() };
        let said = rows.describe(&bad);
        assert!(said.starts_with("row 7: torn (row 2 of '") && said.ends_with("b.tsv')"), "{said}");
        assert!(rows.place().ends_with("a.tsv' and 3 more"));
        assert_eq!(rows.within(5, 6, u64::MAX), 5..6);
    }
}
