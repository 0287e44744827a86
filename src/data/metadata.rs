//! A CSV with a row an image: which images a data set has, and what is known of each, such as patient, sex or diagnosis.
//!
//! Guarantee: messages name file, line, column and image; what else stands in a cell is somebody's, and never part of a message.
//! So that one cell does not swallow others, quotes are held to their rules, where most readers forgive one that is never closed, and
//! the columns that are used hold no line ends.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use csv::{ReaderBuilder, StringRecord, Trim};

use super::folder::ImageFile;
use super::tsv::read_text;
use crate::config::{did_you_mean, nearest};
use crate::error::{Error, ErrorKind, Result};

/// What cells may be divided by: the first of them that makes the file have the column asked for.
const DELIMITERS: [u8; 3] = [b',', b';', b'\t'];

/// How a row may name an image: by its key, `folder/file`, or less where that is the only image so named.
const SPELLINGS: [fn(&str) -> &str; 4] = [|key| key, stem, last, |key| stem(last(key))];

/// An open file: its rows in memory.
#[derive(Debug)]
pub struct ImageMetadata {
    path: PathBuf,
    header: StringRecord,
    /// The column that names the images.
    names: usize,
    /// Each with its line.
    rows: Vec<(StringRecord, usize)>,
}

impl ImageMetadata {
    /// Reads the CSV at `path`: UTF-8, a header in its first line, cells divided by commas, semicolons or tabs. The column `file_name`
    /// names the images. Spaces around a cell, and rows without any value, do not count.
    ///
    /// # Errors
    /// `NotFound` or `Storage` when it cannot be read; `Data`: not UTF-8, no such column, and, naming the line, quotes that do not
    /// enclose a cell, and rows of another length than the header.
    pub fn read(path: impl AsRef<Path>, file_name: &str) -> Result<ImageMetadata> {
        let path = path.as_ref();
        let wrong = |what: String| Error::data(format!("'{}'{what}", path.display()));
        let no_text = || wrong(" is not text in UTF-8: in a spreadsheet, save it as \"CSV UTF-8\"".to_owned());
        let text = read_text(path).map_err(|e| if e.kind() == ErrorKind::Data { no_text() } else { e })?;
        if text.contains('\0') {
            return Err(no_text());
        }
        let text = text.trim_start_matches('\u{feff}');
        let mut near = None;
        for delimiter in DELIMITERS {
            let mut reader = ReaderBuilder::new();
            let mut reader =
                reader.delimiter(delimiter).trim(Trim::Headers).flexible(true).from_reader(text.as_bytes());
            let unreadable = |e: csv::Error| wrong(" is not a CSV".to_owned()).with_source(e);
            let header = reader.headers().map_err(unreadable)?.clone();
            if !header.iter().any(|column| column == file_name) {
                // where there is no header, this is a patient's: only what looks very much like the name is repeated
                let alike = nearest(file_name, header.iter()).filter(|column| column.len() > 5);
                near = near.or(alike.map(str::to_owned));
                continue;
            }
            let lines = record_lines(text, delimiter).map_err(|(line, what)| wrong(format!(" line {line}: {what}")))?;
            let mut rows = Vec::new();
            for (row, &line) in reader.into_records().zip(lines.iter().skip(1)) {
                let row = row.map_err(unreadable)?;
                if row.iter().all(|cell| cell.trim().is_empty()) {
                    continue;
                }
                if row.len() != header.len() {
                    let advice = if row.len() > header.len() {
                        ": put quotes around a cell that holds the delimiter"
                    } else {
                        ": give it an empty cell where there is nothing to say"
                    };
                    return Err(wrong(format!(
                        " line {line}: {} instead of {} cells{advice}",
                        row.len(),
                        header.len()
                    )));
                }
                rows.push((row, line));
            }
            let mut metadata = ImageMetadata { path: path.to_owned(), header, names: 0, rows };
            metadata.names = metadata.column(file_name)?;
            return Ok(metadata);
        }
        let advice = match near {
            Some(near) => format!("did you mean '{near}'?"),
            None if text.trim().is_empty() => "it is empty".to_owned(),
            None => "its first line must name the columns, divided by commas, semicolons or tabs".to_owned(),
        };
        Err(wrong(format!(": no column '{file_name}': {advice}")))
    }

    /// The place of a column that is to be used.
    ///
    /// # Errors
    /// `Data` when there is none of that name, or more than one, or a cell of it has a line end.
    pub fn column(&self, name: &str) -> Result<usize> {
        let mut found = self.header.iter().enumerate().filter(|(_, column)| *column == name).map(|(place, _)| place);
        match (found.next(), found.next()) {
            (Some(place), None) => {
                let ends_lines = |&row: &usize| self.rows[row].0[place].contains(['\n', '\r']);
                let what =
                    format!("a line end in the column '{name}': remove it, or a quote that does not belong there");
                (0..self.rows.len()).find(ends_lines).map_or(Ok(place), |row| Err(self.error(&[row], what)))
            }
            (None, _) => {
                let known: Vec<&str> = self.header.iter().collect();
                Err(self.error(&[], format!("no column '{name}': {}", did_you_mean(name, known))))
            }
            (Some(_), Some(_)) => Err(self.error(&[], format!("more than one column '{name}': rename one"))),
        }
    }

    /// What a row has in a column, if it has something.
    #[must_use]
    pub fn value(&self, row: usize, column: usize) -> Option<&str> {
        self.rows[row].0.get(column).map(str::trim).filter(|cell| !cell.is_empty())
    }

    /// How messages name rows, in the order of the file: by the file, the line of the first, and how many others there are.
    #[must_use]
    pub fn place(&self, rows: &[usize]) -> String {
        let line = rows.first().map(|&row| format!(" line {}", self.rows[row].1)).unwrap_or_default();
        let others = match rows.len() {
            0 | 1 => String::new(),
            2 => " and one other row".to_owned(),
            n => format!(" and {} other rows", n - 1),
        };
        format!("'{}'{line}{others}", self.path.display())
    }

    /// What a row has in a column, where there must be something.
    ///
    /// # Errors
    /// `Data`, naming line and column.
    pub fn required(&self, row: usize, column: usize) -> Result<&str> {
        self.value(row, column).ok_or_else(|| {
            let name = &self.header[column];
            self.error(&[row], format!("nothing in the column '{name}': fill it in or remove the row"))
        })
    }

    /// The images that the file names, in the order of `images`, each with its row. A row names an image by its key, or by its key
    /// without the extension, its file name, or that without the extension, where no other image has the same.
    ///
    /// # Errors
    /// `Data`, naming the line: no name, no such image, several of that name, an image that has a row already.
    pub fn select(&self, images: Vec<ImageFile>) -> Result<Vec<(ImageFile, usize)>> {
        let mut row_of: Vec<Option<usize>> = vec![None; images.len()];
        let mut open: Vec<usize> = (0..self.rows.len()).collect();
        for spelling in SPELLINGS {
            if open.is_empty() {
                break;
            }
            let mut named: HashMap<&str, Vec<usize>> = HashMap::new();
            for (place, image) in images.iter().enumerate() {
                named.entry(spelling(&image.key)).or_default().push(place);
            }
            for row in std::mem::take(&mut open) {
                let name = self.name(row)?;
                match named.get(name.as_str()).map(Vec::as_slice) {
                    None => open.push(row),
                    Some([place]) => {
                        if let Some(first) = row_of[*place].replace(row) {
                            let (key, first) = (&images[*place].key, self.rows[first].1);
                            return Err(
                                self.error(&[row], format!("'{key}' has a row already, line {first}: remove one"))
                            );
                        }
                    }
                    Some(several) => {
                        let (one, other) = (&images[several[0]].key, &images[several[1]].key);
                        let what =
                            format!("'{name}' may be '{one}' or '{other}': give the path below the image folder");
                        return Err(self.error(&[row], what));
                    }
                }
            }
        }
        if !open.is_empty() {
            return Err(self.no_image(&open, &images)?);
        }
        Ok(images.into_iter().zip(row_of).filter_map(|(image, row)| Some((image, row?))).collect())
    }

    /// The image that a row names, as keys are written.
    fn name(&self, row: usize) -> Result<String> {
        let name = self.required(row, self.names)?.replace('\\', "/");
        Ok(name.strip_prefix("./").unwrap_or(&name).to_owned())
    }

    /// Why rows, at least one, name none of the images.
    fn no_image(&self, rows: &[usize], images: &[ImageFile]) -> Result<Error> {
        let (name, column) = (self.name(rows[0])?, &self.header[self.names]);
        let lower = name.to_lowercase();
        let alike = images.iter().find(|image| SPELLINGS.iter().any(|of| of(&image.key).to_lowercase() == lower));
        let advice = match (alike, images.first()) {
            (Some(image), _) => format!("did you mean '{}'?", image.key),
            (None, Some(image)) => {
                format!("give in '{column}' a path below it, such as '{}', or remove the row", image.key)
            }
            (None, None) => "it has no image".to_owned(),
        };
        // if no row at all names an image, the column may be another one
        let told = rows.len() < self.rows.len() || alike.is_some();
        let image = if told { format!("image '{name}'") } else { "image of that name".to_owned() };
        Ok(self.error(rows, format!("no {image} in the image folder: {advice}")))
    }

    fn error(&self, rows: &[usize], what: String) -> Error {
        Error::data(format!("{}: {what}", self.place(rows)))
    }
}

/// A key without the extension of its file.
fn stem(key: &str) -> &str {
    key.rsplit_once('.')
        .filter(|(stem, extension)| !stem.is_empty() && !extension.contains('/'))
        .map_or(key, |(stem, _)| stem)
}

/// The file name of a key.
fn last(key: &str) -> &str {
    key.rsplit_once('/').map_or(key, |(_, name)| name)
}

/// The line of each record, from 1, by stricter rules than those of most readers: a quote at the start of a cell encloses all of it.
///
/// # Errors
/// The line, and what is wrong there.
fn record_lines(text: &str, delimiter: u8) -> std::result::Result<Vec<usize>, (usize, &'static str)> {
    enum In {
        NewRecord,
        NewCell,
        Blanks,
        Plain,
        /// From this line on.
        Quotes(usize),
        /// After a quote within quotes.
        Quote,
    }
    let (mut at, mut line, mut records) = (In::NewRecord, 1, Vec::new());
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        let ends = matches!(byte, b'\n' | b'\r');
        if matches!(at, In::NewRecord) && !ends {
            records.push(line);
            at = In::NewCell;
        }
        at = match (at, byte) {
            (In::Quotes(_), b'"') => In::Quote,
            (In::Quotes(from), _) => In::Quotes(from),
            (In::Quote, b'"') => In::Quotes(line),
            (_, b'\n' | b'\r') => In::NewRecord,
            (_, _) if byte == delimiter => In::NewCell,
            (In::Quote, _) => {
                return Err((line, "something follows the quote that ends a cell: within a cell a quote is doubled"));
            }
            (In::NewCell, b'"') => In::Quotes(line),
            (In::Blanks, b'"') => return Err((line, "a space stands before the quote that begins a cell: remove it")),
            (In::NewCell | In::Blanks, b' ' | b'\t') => In::Blanks,
            _ => In::Plain,
        };
        line += usize::from(byte == b'\n' || (byte == b'\r' && bytes.peek() != Some(&b'\n')));
    }
    match at {
        In::Quotes(from) => Err((from, "a quote is opened and never closed")),
        _ => Ok(records),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<ImageMetadata> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("about.csv");
        std::fs::write(&path, bytes).unwrap();
        ImageMetadata::read(path, "file_name")
    }

    fn images(keys: &[&str]) -> Vec<ImageFile> {
        let image = |key: &&str| ImageFile { folder: String::new(), path: PathBuf::from(key), key: (*key).to_owned() };
        keys.iter().map(image).collect()
    }

    /// Key and row of the images that are named.
    fn named(csv: &str, keys: &[&str]) -> Result<Vec<(String, usize)>> {
        Ok(read(csv.as_bytes())?.select(images(keys))?.into_iter().map(|(image, row)| (image.key, row)).collect())
    }

    #[test]
    fn any_spreadsheet_writes_it() {
        for text in [
            "file_name,sex,note\na/1.png,F,\"one, two\"\n\na/2.png, ,\"a \"\"b\"\" c\"\n,,\n",
            "\u{feff}file_name;sex;note\r\na/1.png;F;one, two\r\na/2.png;;\"a \"\"b\"\" c\"\r\n;;\r\n",
            "sex\tfile_name\tnote\nF\ta/1.png\tone, two\n\ta/2.png\t\"a \"\"b\"\" c\"",
        ] {
            let found = read(text.as_bytes()).unwrap();
            let (sex, note) = (found.column("sex").unwrap(), found.column("note").unwrap());
            assert_eq!(found.rows.len(), 2, "{text:?}");
            assert_eq!((found.value(0, sex), found.value(0, note)), (Some("F"), Some("one, two")), "{text:?}");
            assert_eq!((found.value(1, sex), found.value(1, note)), (None, Some("a \"b\" c")), "{text:?}");
        }
    }

    #[test]
    fn images_are_named_by_as_much_as_is_needed() {
        let keys = ["a/1.png", "a/2.png", "b/1.png", "b/x.y.jpg"];
        let all =
            |csv| named(csv, &keys).unwrap().into_iter().map(|(key, row)| format!("{key} {row}")).collect::<Vec<_>>();
        assert_eq!(all("file_name\nb/1.png\na/1.png\n"), ["a/1.png 1", "b/1.png 0"]);
        assert_eq!(
            all("file_name\nb/1\nx.y\n.\\a\\1.png\n2.png\n"),
            ["a/1.png 2", "a/2.png 3", "b/1.png 0", "b/x.y.jpg 1"]
        );
        assert!(all("file_name\n").is_empty());
        for (csv, parts) in [
            ("file_name\na/2.png\n1.png\n", ["line 3", "may be 'a/1.png' or 'b/1.png'"]),
            ("file_name\na/2.png\n\n2\n", ["line 4", "'a/2.png' has a row already, line 2"]),
            (
                "file_name\na/2.png\nc/1.png\nd\n",
                ["line 3", "line 3 and one other row: no image 'c/1.png' in the image folder: give in 'file_name'"],
            ),
            (
                "file_name\nJane Roe\nJohn Doe\n",
                ["line 2 and one other row", "no image of that name in the image folder"],
            ),
            ("file_name\na\\2.PNG\n", ["line 2", "did you mean 'a/2.png'"]),
            ("file_name,x\na/2.png,1\n,2\n", ["line 3", "nothing in the column 'file_name'"]),
        ] {
            let error = named(csv, &keys).unwrap_err().to_string();
            assert!(error.contains("about.csv'") && parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn lines_are_those_that_an_editor_shows() {
        for (csv, line) in [
            ("file_name\na\n\n\nb\n", 5),
            ("file_name\r\na\r\n\r\n\r\nb\r\n", 5),
            ("file_name\r\na\r\nb", 3),
            ("file_name\ra\rb\r", 3),
            ("\n\nfile_name,x\na,\"\n\n\"\nb,\n", 7),
        ] {
            let error = named(csv, &["a"]).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line}: no image 'b'")), "{csv:?}: {error}");
        }
        let error = read(b"file_name,x\r\na,1\r\n\r\nb\r\n").unwrap_err().to_string();
        assert!(error.contains("line 4: 1 instead of 2 cells"), "{error}");
    }

    #[test]
    fn what_is_no_table_is_refused_without_a_word_of_its_cells() {
        for (bytes, part) in [
            (&b"filename,sex\na,F\n"[..], "did you mean 'filename'"),
            (b"Jane Roe,F\nJohn Doe,M\n", "first line must name the columns"),
            (b"\n", "no column 'file_name': it is empty"),
            (b"file_name,sex\na,F,Roe\n", "line 2: 3 instead of 2 cells"),
            (b"file_name,sex,file_name\na,F,Roe\n", "more than one column 'file_name'"),
            (b"file_name,sex\na,\xff\n", "save it as \"CSV UTF-8\""),
            (b"f\0i\0l\0e\0_\0n\0a\0m\0e\0,\0", "save it as \"CSV UTF-8\""),
            (b"name,file_name\nJane Roe,a\n\n\"John Roe,b\nJim Roe,c\n", "line 4: a quote is opened and never closed"),
            (b"file_name,note\na,\"5 mm\nb,\"3 mm, Roe\"\n", "line 3: something follows the quote"),
            (b"file_name,name\na,\"\nb,\"\nc,Roe\n", "line 2: a line end in the column 'name'"),
            (b"file_name,name\na,\"5\nb,Roe\"\n", "line 2: a line end in the column 'name'"),
            (b"file_name,note\na, \"Roe\"\n", "line 2: a space stands before the quote"),
            (b"file_name,note\na,\"Roe\" \n", "line 2: something follows the quote"),
        ] {
            let error = read(bytes).and_then(|about| about.column("name")).unwrap_err();
            let text = error.to_string();
            assert!(error.kind() == crate::ErrorKind::Data && text.contains(part) && !text.contains("Roe"), "{text}");
        }
        let found = read(b"file_name,sex,site,site\na,F,x,y\n").unwrap();
        assert!(found.column("sexe").unwrap_err().to_string().contains("did you mean 'sex'"));
        assert!(found.column("site").unwrap_err().to_string().contains("more than one"));
        assert!(found.required(0, 1).is_ok());
    }
}
