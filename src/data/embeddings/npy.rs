//! NumPy's `.npy` format 1.0: f32, little endian, C order, rows appended while their number is still unknown.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The header is padded to this fixed size, so that the row count can be put in at the end.
const HEADER_BYTES: usize = 128;

#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    dim: usize,
    file: BufWriter<File>,
}

impl Writer {
    pub(super) fn create(path: &Path, dim: usize) -> Result<Self> {
        // read access too: some network file systems refuse to rewrite a write-only file's start
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = BufWriter::new(file.map_err(|e| Error::io("create", path, e))?);
        let mut writer = Writer { path: path.to_owned(), dim, file };
        writer.write(&[0; HEADER_BYTES])?;
        Ok(writer)
    }

    pub(super) fn push(&mut self, features: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = features.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.write(&bytes)
    }

    pub(super) fn finish(mut self, rows: usize) -> Result<()> {
        let header = header(rows, self.dim);
        self.file.seek(SeekFrom::Start(0)).map_err(|e| Error::io("write", &self.path, e))?;
        self.write(&header)?;
        self.file.flush().map_err(|e| Error::io("write", &self.path, e))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))
    }
}

fn header(rows: usize, dim: usize) -> Vec<u8> {
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(((HEADER_BYTES - 10) as u16).to_le_bytes());
    header.extend(format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}").bytes());
    // two 20-digit numbers still leave room
    header.resize(HEADER_BYTES - 1, b' ');
    header.push(b'\n');
    header
}

/// The rows of a file written by [`Writer`], each as `dim` little-endian f32 values.
pub(super) fn rows(path: &Path, dim: usize) -> Result<impl Iterator<Item = Result<Vec<u8>>> + use<>> {
    let mut file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    file.seek(SeekFrom::Start(HEADER_BYTES as u64)).map_err(|e| Error::io("read", path, e))?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let path = path.to_owned();
    Ok(std::iter::repeat_with(move || {
        let mut row = vec![0; dim * 4];
        file.read_exact(&mut row).map_err(|e| Error::io("read", &path, e))?;
        Ok(row)
    }))
}
