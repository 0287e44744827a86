//! Flat PyTorch state dicts, as `torch.save(model.state_dict(), FILE)` writes them: a zip archive with a pickle and one
//! record a storage.
//!
//! Guarantees: nothing of the file is executed, imported or constructed. The pickle is read as a list of instructions of
//! which only those are known that describe dictionaries of tensors; a call of anything but the four functions that PyTorch
//! writes for those is refused by name. Offsets are checked against the file before anything is read at them, and memory
//! is bounded by the size of the pickle. (libtorch's own reader refuses foreign calls too, but cannot read what
//! `state_dict()` returns: an ordered dictionary with an attribute.)

use safetensors::Dtype;
use std::collections::HashMap;
use std::io::Cursor;
use std::rc::Rc;

/// Where a tensor lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<i64>,
    /// Steps between neighbours, in numbers; row-major unless the tensor is a view.
    pub(super) stride: Vec<i64>,
    /// Byte of the first number.
    pub(super) start: usize,
    /// Bytes from there to the last number's end.
    pub(super) length: usize,
}

/// What to do about a file that is no flat state dict.
const HINT: &str = "save a flat state dict, torch.save(model.state_dict(), FILE), or safetensors";

/// The tensors of the state dict in `file`, in its order; the message says why there are none.
pub(super) fn entries(file: &[u8]) -> Result<Vec<Entry>, String> {
    if !file.starts_with(b"PK") {
        return Err(format!("the file is in the format that PyTorch wrote before 1.6, or no state dict: {HINT}"));
    }
    let records = Records::read(file)?;
    let mut machine = Machine::new(records.pickle);
    let root = machine.run().map_err(|e| format!("{e}: {HINT}"))?;
    let Value::Dict(root) = root else { return Err(format!("the file holds something else than a dict: {HINT}")) };
    let mut out = Vec::new();
    for (key, value) in &machine.dicts[root] {
        let Value::Text(name) = key else { return Err(format!("a key of the dict is not a text: {HINT}")) };
        match value {
            Value::Tensor(index) => out.push(records.place(name, &machine.tensors[*index])?),
            Value::Dict(_) => return Err(format!("'{name}' is a dict itself: {HINT}")),
            _ => return Err(format!("'{name}' is not a tensor: {HINT}")),
        }
    }
    Ok(out)
}

/// The records of the archive: the pickle, and where each storage lies.
struct Records<'a> {
    pickle: &'a [u8],
    storages: HashMap<String, (usize, usize)>,
}

impl<'a> Records<'a> {
    fn read(file: &'a [u8]) -> Result<Records<'a>, String> {
        let damaged = |e: zip::result::ZipError| format!("the file is not a complete PyTorch archive ({e})");
        // PyTorch writes records of the 64-bit form behind the directory of small files too, which a search for the
        // archive's start takes for a shift: the archive starts where the file does
        let config = zip::read::Config { archive_offset: zip::read::ArchiveOffset::Known(0) };
        let mut archive = zip::ZipArchive::with_config(config, Cursor::new(file)).map_err(damaged)?;
        let mut found: HashMap<String, (usize, usize)> = HashMap::new();
        for index in 0..archive.len() {
            let record = archive.by_index(index).map_err(damaged)?;
            let name = record.name().map_err(damaged)?.into_owned();
            let start = record.data_start().and_then(|s| usize::try_from(s).ok()).unwrap_or(usize::MAX);
            let size = usize::try_from(record.size()).unwrap_or(usize::MAX);
            let plain = record.compression() == zip::CompressionMethod::Stored;
            if !plain || start.checked_add(size).is_none_or(|end| end > file.len()) {
                return Err(format!("record '{name}' of the archive is compressed or cut off"));
            }
            found.insert(name, (start, size));
        }
        let bytes = |&(start, size): &(usize, usize)| &file[start..start + size];
        let prefix = found.keys().filter_map(|n| n.strip_suffix("data.pkl")).min().map(str::to_owned);
        let Some(prefix) = prefix else { return Err(format!("the archive holds no data.pkl: {HINT}")) };
        if found.get(&format!("{prefix}byteorder")).is_some_and(|r| bytes(r) != b"little") {
            return Err("the numbers are not little-endian: save the file on another machine".to_owned());
        }
        let pickle = bytes(&found[&format!("{prefix}data.pkl")]);
        let folder = format!("{prefix}data/");
        let storages = found.into_iter().filter_map(|(n, r)| Some((n.strip_prefix(&folder)?.to_owned(), r))).collect();
        Ok(Records { pickle, storages })
    }

    /// Where `tensor` lies, checked to be inside its storage.
    fn place(&self, name: &str, tensor: &TensorInfo) -> Result<Entry, String> {
        let outside = || format!("tensor '{name}' reaches out of its storage");
        let Storage { dtype, key, .. } = &tensor.storage;
        let &(record, size) = self.storages.get(&**key).ok_or_else(|| format!("tensor '{name}' has no storage"))?;
        let width = dtype.bitsize() / 8;
        let mut last: i64 = 0;
        for (&n, &step) in tensor.shape.iter().zip(&tensor.stride) {
            last = (n - 1).max(0).checked_mul(step).and_then(|s| last.checked_add(s)).ok_or_else(outside)?;
        }
        let numbers = tensor.shape.iter().try_fold(1i64, |all, &n| all.checked_mul(n)).ok_or_else(outside)?;
        let count = if tensor.shape.contains(&0) { 0 } else { last.checked_add(1).ok_or_else(outside)? };
        // a tensor of few numbers can be of any size; no state dict holds one
        if numbers > count {
            return Err(format!("tensor '{name}' repeats its numbers: call .contiguous() on it before saving"));
        }
        let bytes = |n: i64| usize::try_from(n).ok().and_then(|n| n.checked_mul(width));
        let (offset, length) = (bytes(tensor.offset).ok_or_else(outside)?, bytes(count).ok_or_else(outside)?);
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(outside());
        }
        let (shape, stride) = (tensor.shape.clone(), tensor.stride.clone());
        Ok(Entry { name: name.to_owned(), dtype: *dtype, shape, stride, start: record + offset, length })
    }
}

#[derive(Debug, Clone)]
struct Storage {
    dtype: Dtype,
    key: Rc<str>,
}

#[derive(Debug, Clone)]
struct TensorInfo {
    storage: Storage,
    offset: i64,
    shape: Vec<i64>,
    stride: Vec<i64>,
}

/// The functions and types that a flat state dict names.
#[derive(Debug, Clone, Copy)]
enum Global {
    OrderedDict,
    Tensor,
    Parameter,
    Storage(Dtype),
}

/// A value of the pickle. What has parts is an index, so that no nesting is ever walked through.
#[derive(Debug, Clone)]
enum Value {
    Mark,
    Int(i64),
    Text(Rc<str>),
    Tuple(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
    /// Something that no tensor is made of: a truth value, a float, a list, nothing.
    Other,
}

struct Machine<'a> {
    code: &'a [u8],
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    tuples: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<TensorInfo>,
}

impl<'a> Machine<'a> {
    fn new(code: &'a [u8]) -> Machine<'a> {
        let (stack, memo, tuples) = (Vec::new(), HashMap::new(), Vec::new());
        Machine { code, stack, memo, tuples, dicts: Vec::new(), storages: Vec::new(), tensors: Vec::new() }
    }

    /// Runs to the end; opcodes as Python's `pickletools` names them.
    fn run(&mut self) -> Result<Value, String> {
        loop {
            match self.byte()? {
                0x80 => drop(self.byte()?),  // PROTO
                0x95 => drop(self.take(8)?), // FRAME
                b'.' => return self.pop(),   // STOP
                b'(' => self.stack.push(Value::Mark),
                b'N' | 0x88 | 0x89 => self.stack.push(Value::Other), // NONE, NEWTRUE, NEWFALSE
                b']' => self.stack.push(Value::Other),               // EMPTY_LIST
                b'G' => {
                    self.take(8)?; // BINFLOAT
                    self.stack.push(Value::Other);
                }
                b'K' => self.int(1)?,
                b'M' => self.int(2)?,
                b'J' => self.int(4)?,
                0x8a => {
                    let width = self.byte()?; // LONG1
                    self.int(usize::from(width))?;
                }
                b'X' => self.text(4)?,
                0x8c => self.text(1)?,
                b'}' => {
                    self.dicts.push(Vec::new());
                    self.stack.push(Value::Dict(self.dicts.len() - 1));
                }
                b')' => self.tuple(Vec::new()),
                0x85 => self.tuple_of(1)?,
                0x86 => self.tuple_of(2)?,
                0x87 => self.tuple_of(3)?,
                b't' => {
                    let items = self.take_mark()?;
                    self.tuple(items);
                }
                b'q' => self.put(1)?,
                b'r' => self.put(4)?,
                0x94 => {
                    let next = u32::try_from(self.memo.len()).unwrap_or(u32::MAX); // MEMOIZE
                    let top = self.top()?;
                    self.memo.insert(next, top);
                }
                b'h' => self.get(1)?,
                b'j' => self.get(4)?,
                b'a' => drop(self.pop()?),       // APPEND
                b'e' => drop(self.take_mark()?), // APPENDS
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.take_mark()?;
                    self.set(items)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?); // STACK_GLOBAL
                    match (module, name) {
                        (Value::Text(module), Value::Text(name)) => self.global(&module, &name)?,
                        _ => return Err("the pickle names no function".to_owned()),
                    }
                }
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                // attributes of a dictionary: versions of modules, of no use here
                b'b' => match (self.pop()?, self.top()?) {
                    (_, Value::Dict(_)) => {}
                    _ => return Err("the pickle sets the state of an object".to_owned()),
                },
                other => return Err(format!("the pickle holds instruction 0x{other:02x}, which no state dict has")),
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self.code.split_at_checked(count).ok_or("the pickle is cut off")?;
        self.code = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of up to eight bytes; two's complement where Python writes it so.
    fn number(&mut self, width: usize, signed: bool) -> Result<i64, String> {
        let bytes = self.take(width)?;
        if width > 8 {
            return Err("the pickle holds a number of more than 64 bits".to_owned());
        }
        let negative = signed && bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut all = if negative { [0xff; 8] } else { [0; 8] };
        all[..width].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(all))
    }

    fn int(&mut self, width: usize) -> Result<(), String> {
        let number = self.number(width, width > 2)?;
        self.stack.push(Value::Int(number));
        Ok(())
    }

    fn text(&mut self, width: usize) -> Result<(), String> {
        let length = usize::try_from(self.number(width, false)?).unwrap_or(usize::MAX);
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "the pickle holds a text that is not UTF-8")?;
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.code.iter().position(|&b| b == b'\n').ok_or("the pickle is cut off")?;
        let line = self.take(end + 1)?;
        Ok(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(|| "the pickle is damaged".to_owned())
    }

    fn top(&self) -> Result<Value, String> {
        self.stack.last().cloned().ok_or_else(|| "the pickle is damaged".to_owned())
    }

    fn take_mark(&mut self) -> Result<Vec<Value>, String> {
        let at = self.stack.iter().rposition(|v| matches!(v, Value::Mark)).ok_or("the pickle is damaged")?;
        let items = self.stack.split_off(at + 1);
        self.stack.pop();
        Ok(items)
    }

    fn tuple(&mut self, items: Vec<Value>) {
        self.tuples.push(items);
        self.stack.push(Value::Tuple(self.tuples.len() - 1));
    }

    fn tuple_of(&mut self, count: usize) -> Result<(), String> {
        let at = self.stack.len().checked_sub(count).ok_or("the pickle is damaged")?;
        let items = self.stack.split_off(at);
        self.tuple(items);
        Ok(())
    }

    fn put(&mut self, width: usize) -> Result<(), String> {
        let key = self.number(width, false)? as u32;
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn get(&mut self, width: usize) -> Result<(), String> {
        let key = self.number(width, false)? as u32;
        let value = self.memo.get(&key).cloned().ok_or("the pickle is damaged")?;
        self.stack.push(value);
        Ok(())
    }

    fn set(&mut self, items: Vec<Value>) -> Result<(), String> {
        let Value::Dict(dict) = self.top()? else { return Err("the pickle sets items of no dict".to_owned()) };
        for pair in items.chunks(2) {
            let [key, value] = pair else { return Err("the pickle is damaged".to_owned()) };
            self.dicts[dict].push((key.clone(), value.clone()));
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), String> {
        let global = match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::Tensor,
            ("torch._utils", "_rebuild_parameter") => Global::Parameter,
            ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Global::Storage(Dtype::BF16),
            ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
            ("torch", "LongStorage") => Global::Storage(Dtype::I64),
            _ => {
                let shown: String = format!("{module}.{name}").chars().filter(|c| !c.is_control()).take(80).collect();
                return Err(format!("the pickle asks for '{shown}', which is never called"));
            }
        };
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// `('storage', type, key, place, count)` to a storage.
    fn persistent(&mut self) -> Result<(), String> {
        let parts = match self.pop()? {
            Value::Tuple(index) => self.parts(index)?,
            _ => Vec::new(),
        };
        let [Value::Text(_), Value::Global(Global::Storage(dtype)), Value::Text(key), ..] = parts.as_slice() else {
            return Err("the pickle refers to something that is no storage".to_owned());
        };
        self.storages.push(Storage { dtype: *dtype, key: key.clone() });
        self.stack.push(Value::Storage(self.storages.len() - 1));
        Ok(())
    }

    /// The calls that make dictionaries, tensors and parameters.
    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments), Value::Global(function)) = (arguments, function) else {
            return Err("the pickle calls something that is no function".to_owned());
        };
        let arguments = self.parts(arguments)?;
        let made = match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => {
                self.dicts.push(Vec::new());
                Value::Dict(self.dicts.len() - 1)
            }
            (
                Global::Tensor,
                [Value::Storage(storage), Value::Int(offset), Value::Tuple(shape), Value::Tuple(stride), ..],
            ) => {
                let (shape, stride) = (self.sizes(*shape)?, self.sizes(*stride)?);
                if shape.len() != stride.len() {
                    return Err("the pickle holds a damaged tensor".to_owned());
                }
                let storage = self.storages[*storage].clone();
                self.tensors.push(TensorInfo { storage, offset: *offset, shape, stride });
                Value::Tensor(self.tensors.len() - 1)
            }
            (Global::Parameter, [Value::Tensor(tensor), ..]) => Value::Tensor(*tensor),
            _ => return Err("the pickle makes something else than tensors and dicts".to_owned()),
        };
        self.stack.push(made);
        Ok(())
    }

    /// A copy of a tuple's parts; a long one that is asked for again and again would take more memory than the file.
    fn parts(&self, tuple: usize) -> Result<Vec<Value>, String> {
        const MOST: usize = 16;
        let parts = &self.tuples[tuple];
        if parts.len() > MOST {
            return Err(format!(
                "the pickle uses a tuple of {} parts; no tensor is made of more than {MOST}",
                parts.len()
            ));
        }
        Ok(parts.clone())
    }

    fn sizes(&self, tuple: usize) -> Result<Vec<i64>, String> {
        let size = |v: &Value| if let Value::Int(n) = v { Some(*n).filter(|n| *n >= 0) } else { None };
        let sizes: Option<Vec<i64>> = self.parts(tuple)?.iter().map(size).collect();
        sizes.ok_or_else(|| "the pickle holds a tensor of impossible sizes".to_owned())
    }
}

#[cfg(test)]
#[path = "state_dict_tests.rs"]
mod tests;
