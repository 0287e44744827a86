//! Images in ZIP archives: all of one archive, or those that a map file names, in one or several archives beside it.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::ops::Range;

use rayon::prelude::*;
use zip::ZipArchive;
use zip::result::ZipError;

use super::blob::{Ahead, Blob, BlobReader, Failure};
use super::{LONGEST, Line, RowSource, offsets, too_long};
use crate::data::folder::is_image;
use crate::error::{Error, Result};

/// What stands before an entry's bytes at most, besides its name: the header, and fields that an archive may add.
const HEADER: u64 = 30 + 4096;
/// The most that is read ahead at once.
const MOST_AHEAD: u64 = 128 << 20;
/// What comes between the name of an archive and that of an image in a map file.
const SEPARATOR: &str = "@/";

/// An archive, of which only the directory is in memory.
#[derive(Debug)]
struct Archive {
    zip: ZipArchive<BlobReader>,
    ahead: Ahead,
    failure: Failure,
    /// Bytes in all, where they come in requests: a few large ones are better than many small ones.
    remote: Option<u64>,
}

/// The bytes of an image, or why there are none.
type Found = std::result::Result<Vec<u8>, String>;

impl Archive {
    fn open(blob: Blob) -> Result<Archive> {
        let (place, size) = (blob.place(), blob.size());
        let remote = matches!(blob, Blob::Remote(_)).then_some(size);
        let failure = Failure::default();
        let reader = BlobReader::new(blob, &failure);
        let ahead = reader.ahead();
        let damage = |error: ZipError| {
            Error::data(format!("'{place}' is no ZIP archive, or damaged: make it again")).with_source(error)
        };
        let zip = failure.or(ZipArchive::new(reader), damage)?;
        Ok(Archive { zip, ahead, failure, remote })
    }

    /// Images by their names, in the order of the directory.
    fn images(&self) -> impl Iterator<Item = (usize, String)> {
        (0..self.zip.len()).filter_map(|entry| {
            let about = self.zip.by_index_data(entry).ok()?;
            let Ok(name) = about.name() else {
                tracing::warn!(entry, "a name in an archive cannot be read: it is left out");
                return None;
            };
            let last = name.rsplit('/').next().unwrap_or_default();
            let hidden = last.starts_with('.') || name.starts_with("__MACOSX/");
            (about.is_file() && !hidden && is_image((*name).as_ref())).then(|| (entry, name.into_owned()))
        })
    }

    /// Entries by their names.
    fn names(&self) -> HashMap<String, usize> {
        let name = |entry| Some((self.zip.by_index_data(entry).ok()?.name().ok()?.into_owned(), entry));
        (0..self.zip.len()).filter_map(name).collect()
    }

    /// Bytes of an image when it is unpacked.
    fn size(&self, entry: usize) -> u64 {
        self.zip.by_index_data(entry).map_or(0, |about| about.size())
    }

    /// Where an entry's bytes are in an archive of `size` bytes, and perhaps a little more.
    fn span(&self, entry: usize, size: u64) -> Option<Range<u64>> {
        let about = self.zip.by_index_data(entry).ok()?;
        let start = about.header_start().min(size);
        let header = HEADER + about.name_raw().len() as u64;
        Some(start..start.saturating_add(header).saturating_add(about.compressed_size()).min(size))
    }

    /// The bytes of these images.
    ///
    /// # Errors
    /// Those of reading the archive.
    fn read(&self, entries: &[usize]) -> Result<Vec<Found>> {
        self.read_ahead(entries)?;
        let read = |zip: &mut ZipArchive<BlobReader>, entry: &usize| one(zip, *entry);
        let found: Vec<Found> = entries.par_iter().map_init(|| self.zip.clone(), read).collect();
        self.ahead.clear();
        self.failure.or(Ok::<_, ZipError>(found), |_| Error::internal("nothing failed"))
    }

    /// Reads what all of them span in a few requests, unless much else lies between them.
    fn read_ahead(&self, entries: &[usize]) -> Result<()> {
        let Some(size) = self.remote else { return Ok(()) };
        let spans: Vec<Range<u64>> = entries.iter().filter_map(|&entry| self.span(entry, size)).collect();
        let (Some(start), Some(end)) = (spans.iter().map(|s| s.start).min(), spans.iter().map(|s| s.end).max()) else {
            return Ok(());
        };
        let wanted = spans.iter().fold(0u64, |sum, span| sum.saturating_add(span.end - span.start));
        if end - start > wanted.saturating_mul(2).min(MOST_AHEAD) {
            return Ok(());
        }
        self.ahead.read(start..end)
    }
}

/// Unpacks an entry. Bytes that cannot be had are noted by the reader, and no matter what is returned then.
fn one(zip: &mut ZipArchive<BlobReader>, entry: usize) -> Found {
    let unpacked = |error: ZipError| format!("it cannot be unpacked ({error})");
    let file = zip.by_index(entry).map_err(unpacked)?;
    let size = file.size();
    if size > LONGEST {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    // what is longer than it says is not read to its end
    file.take(size + 1).read_to_end(&mut bytes).map_err(|error| unpacked(error.into()))?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err("its size in the archive is wrong".to_owned()) }
}

/// An image of an archive: which, and which entry of it; or why there is none.
type Place = std::result::Result<(usize, usize), String>;

/// Images of archives.
#[derive(Debug)]
pub(super) struct ArchivedImages {
    place: String,
    archives: Vec<Archive>,
    rows: Vec<(String, Place)>,
    /// Where each one's bytes would begin if all were one file, and where the last one's would end.
    offsets: Vec<u64>,
}

impl ArchivedImages {
    /// All images of an archive, in its order. Their keys are their names in it.
    ///
    /// # Errors
    /// `Data` if it is none, `Storage` when it cannot be read.
    pub(super) fn of(blob: Blob) -> Result<ArchivedImages> {
        let place = blob.place();
        let archive = Archive::open(blob)?;
        let rows = archive.images().map(|(entry, name)| (name, Ok((0, entry)))).collect();
        Ok(ArchivedImages::over(place, vec![archive], rows))
    }

    /// The images that a map names, in its order. Their keys are what stands in it. `archives` are those of [`names`].
    ///
    /// # Errors
    /// `Data`, naming row and file, for a line that names no image of an archive; those of opening the archives.
    pub(super) fn mapped(map: &Blob, archives: Vec<(String, Blob)>) -> Result<ArchivedImages> {
        let place = map.place();
        let text = text(map)?;
        let mut numbers = BTreeMap::new();
        let mut opened = Vec::with_capacity(archives.len());
        for (name, blob) in archives {
            let archive = Archive::open(blob)?;
            numbers.insert(name, (opened.len(), archive.names()));
            opened.push(archive);
        }
        let row = |(number, line): (usize, &str)| {
            let (archive, image) = parts(line).ok_or_else(|| no_map(&place, number))?;
            let (number, names) = numbers.get(archive).ok_or_else(|| Error::internal("an archive was not opened"))?;
            let found =
                names.get(image).map(|&entry| (*number, entry)).ok_or_else(|| format!("'{archive}' has no '{image}'"));
            Ok((format!("{archive}{SEPARATOR}{image}"), found))
        };
        let rows = text.lines().enumerate().map(row).collect::<Result<_>>()?;
        Ok(ArchivedImages::over(place, opened, rows))
    }

    fn over(place: String, archives: Vec<Archive>, rows: Vec<(String, Place)>) -> ArchivedImages {
        let size = |(_, place): &(String, Place)| {
            place.as_ref().map_or(0, |&(archive, entry): &(usize, usize)| archives[archive].size(entry))
        };
        let offsets = offsets(rows.iter().map(size));
        ArchivedImages { place, archives, rows, offsets }
    }
}

impl RowSource for ArchivedImages {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn bytes(&self, rows: Range<usize>) -> u64 {
        self.offsets[rows.end] - self.offsets[rows.start]
    }

    fn read(&self, rows: Range<usize>) -> Result<Vec<Line>> {
        let rows = &self.rows[rows];
        // by archive, since each is read ahead by itself
        let mut wanted: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (archive, entry) in rows.iter().filter_map(|(_, place)| place.as_ref().ok()) {
            wanted.entry(*archive).or_default().push(*entry);
        }
        let mut found: BTreeMap<usize, std::vec::IntoIter<Found>> = BTreeMap::new();
        for (archive, entries) in wanted {
            found.insert(archive, self.archives[archive].read(&entries)?.into_iter());
        }
        let line = |(key, place): &(String, Place)| {
            let image = match place {
                Ok((archive, _)) => found.get_mut(archive).and_then(Iterator::next),
                Err(reason) => Some(Err(reason.clone())),
            };
            match image {
                Some(Ok(image)) => Ok(Line::image_of(key, image)),
                Some(Err(reason)) => Ok(Line::bad(Some(key), reason)),
                None => Err(Error::internal("an image was not read")),
            }
        };
        rows.iter().map(line).collect()
    }
}

/// Whether a file is an archive, by its name.
#[must_use]
pub fn is_archive(name: &str) -> bool {
    name.ends_with(".zip")
}

/// Whether a file is a map by its beginning.
///
/// # Errors
/// Those of reading it.
pub(super) fn is_map(blob: &Blob) -> Result<bool> {
    let start = blob.read(0..blob.size().min(4096))?;
    let line = start.split(|&b| b == b'\n').next().unwrap_or_default();
    Ok(std::str::from_utf8(line).is_ok_and(|line| parts(line).is_some()))
}

/// The archives that a map names, each once.
///
/// # Errors
/// `Data`, naming row and file, for a line that names no image of an archive; those of reading it.
pub(super) fn names(map: &Blob) -> Result<Vec<String>> {
    let text = text(map)?;
    let name =
        |(number, line)| parts(line).map(|(archive, _)| archive.to_owned()).ok_or_else(|| no_map(&map.place(), number));
    let names = text.lines().enumerate().map(name).collect::<Result<std::collections::BTreeSet<String>>>()?;
    Ok(names.into_iter().collect())
}

fn text(map: &Blob) -> Result<String> {
    let bytes = map.read(0..map.size())?;
    String::from_utf8(bytes).map_err(|_| Error::data(format!("'{}' is not valid UTF-8", map.place())))
}

/// Archive and image of a line. What follows a tab, the class in the original's sets, is not looked at. An archive lies beside its map.
fn parts(line: &str) -> Option<(&str, &str)> {
    let (archive, image) = line.split('\t').next()?.split_once(SEPARATOR)?;
    let plain = is_archive(archive) && !archive.contains(['/', '\\']);
    (plain && !image.is_empty()).then_some((archive, image))
}

fn no_map(place: &str, number: usize) -> Error {
    let expected = "a line of a map begins with ARCHIVE.zip@/IMAGE, the archive being beside the map";
    Error::data(format!("'{place}' row {}: {expected}", number + 1))
}
