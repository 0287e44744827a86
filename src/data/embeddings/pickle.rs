//! A pickled pandas DataFrame, written opcode by opcode.
//!
//! It unpickles as plain calls of public functions, nothing of pandas' or NumPy's internal layout is in it:
//! `pandas.DataFrame({"Name": [...], "image": [None, ...], "text": [None, ...], "features": [array, ...]})` with
//! `numpy.frombuffer(bytearray(...), "<f4")` for each array. So it loads under NumPy 1 and 2 and pandas 2 and 3 alike, and the
//! arrays are writable (a `bytearray` is, `bytes` are not).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};

// opcodes of protocol 4, as Python's `pickletools` names them
const PROTO_4: &[u8] = &[0x80, 4];
const STOP: u8 = b'.';
const MARK: u8 = b'(';
const NONE: u8 = b'N';
const EMPTY_DICT: u8 = b'}';
const EMPTY_LIST: u8 = b']';
const SETITEMS: u8 = b'u';
const APPENDS: u8 = b'e';
const BINUNICODE: u8 = b'X';
const BINBYTES: u8 = b'B';
const STACK_GLOBAL: u8 = 0x93;
const MEMOIZE: u8 = 0x94;
const BINGET: u8 = b'h';
const TUPLE1: u8 = 0x85;
const TUPLE2: u8 = 0x86;
const REDUCE: u8 = b'R';

// the order in which the shared objects are memoized
const FROMBUFFER: u8 = 0;
const BYTEARRAY: u8 = 1;
const DTYPE: u8 = 2;

/// Items a list takes at once; Python's own pickler uses the same number.
const BATCH: usize = 1000;

/// Writes the frame of `names` and as many of `features` (little-endian f32 rows).
pub(super) fn write(path: &Path, names: &[String], features: impl Iterator<Item = Result<Vec<u8>>>) -> Result<()> {
    let file = File::create(path).map_err(|e| Error::io("create", path, e))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let io = |e| Error::io("write", path, e);
    let mut start = || -> io::Result<()> {
        out.write_all(PROTO_4)?;
        global(&mut out, "pandas", "DataFrame")?;
        out.write_all(&[EMPTY_DICT, MARK])?;
        text(&mut out, "Name")?;
        list(&mut out, names, |out, name| text(out, name))?;
        for column in ["image", "text"] {
            text(&mut out, column)?;
            list(&mut out, names, |out, _| out.write_all(&[NONE]))?;
        }
        text(&mut out, "features")?;
        out.write_all(&[EMPTY_LIST])
    };
    start().map_err(io)?;
    for (index, row) in features.take(names.len()).enumerate() {
        let row = row?;
        let mut item = || -> io::Result<()> {
            if index == 0 {
                out.write_all(&[MARK])?;
                shared(&mut out)?;
            } else {
                if index % BATCH == 0 {
                    out.write_all(&[APPENDS, MARK])?;
                }
                out.write_all(&[BINGET, FROMBUFFER, BINGET, BYTEARRAY])?;
            }
            out.write_all(&[BINBYTES])?;
            out.write_all(&length(row.len())?)?;
            out.write_all(&row)?;
            out.write_all(&[TUPLE1, REDUCE])?;
            if index == 0 {
                text(&mut out, "<f4")?;
                out.write_all(&[MEMOIZE])?;
            } else {
                out.write_all(&[BINGET, DTYPE])?;
            }
            out.write_all(&[TUPLE2, REDUCE])
        };
        item().map_err(io)?;
    }
    let mut end = || -> io::Result<()> {
        if !names.is_empty() {
            out.write_all(&[APPENDS])?;
        }
        out.write_all(&[SETITEMS, TUPLE1, REDUCE, STOP])?;
        out.flush()
    };
    end().map_err(io)
}

/// `numpy.frombuffer` and `bytearray`, kept for all rows.
fn shared(out: &mut impl Write) -> io::Result<()> {
    global(out, "numpy", "frombuffer")?;
    out.write_all(&[MEMOIZE])?;
    global(out, "builtins", "bytearray")?;
    out.write_all(&[MEMOIZE])
}

fn global(out: &mut impl Write, module: &str, name: &str) -> io::Result<()> {
    text(out, module)?;
    text(out, name)?;
    out.write_all(&[STACK_GLOBAL])
}

fn text(out: &mut impl Write, text: &str) -> io::Result<()> {
    out.write_all(&[BINUNICODE])?;
    out.write_all(&length(text.len())?)?;
    out.write_all(text.as_bytes())
}

fn list<W: Write, T>(out: &mut W, items: &[T], mut item: impl FnMut(&mut W, &T) -> io::Result<()>) -> io::Result<()> {
    out.write_all(&[EMPTY_LIST])?;
    for batch in items.chunks(BATCH) {
        out.write_all(&[MARK])?;
        batch.iter().try_for_each(|i| item(out, i))?;
        out.write_all(&[APPENDS])?;
    }
    Ok(())
}

fn length(bytes: usize) -> io::Result<[u8; 4]> {
    u32::try_from(bytes).map(u32::to_le_bytes).map_err(|_| io::Error::other("a value of more than 4 GiB"))
}
