//! The part of Python's pickle format that PyTorch's weight files are written in, read into plain data (file -> **values** -> tensors).
//!
//! A pickle is a program for a stack machine that may call any Python function. Here nothing is ever called: the handful of names
//! that plain tensors in containers need are known constants, and any other object (checkpoints of training programs hold callbacks,
//! settings and numbers of NumPy) becomes nothing. A name by which files attack their readers ends reading with an error that says it.
//! Values lie in one arena and refer to each other by number, so that deep nesting and cycles in a hostile file cost no stack; what
//! they take is charged against the length of the pickle, so that a small file cannot ask for much memory.
//!
//! The opcodes are those of Python's `pickletools`. candle has a reader of such files too; it does not know the form before PyTorch
//! 1.6, and would bring its own tensor library along.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use safetensors::Dtype;

/// Index of a value in the arena.
pub(super) type Id = usize;

/// The result of reading: a value, or what is wrong in one phrase.
pub(super) type Read<T> = Result<T, String>;

/// A file of tensors has a few values per tensor; more than this is a bomb.
const MOST_VALUES: usize = 4_000_000;
/// Values and list entries per byte of a pickle, and those that any may have. Every value takes one byte at least; only copies, which
/// are short in files of weights, take less.
const MOST_PER_BYTE: usize = 2;
const MOST_OF_ANY: usize = 1 << 16;
/// Dimensions of a tensor.
const MOST_DIMENSIONS: usize = 32;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// `None`, and whatever else says nothing about weights: bytes, devices, number types.
    Nothing,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Name(Name),
    Storage(Rc<Storage>),
    Tensor(Rc<StoredTensor>),
}

/// The Python names that may occur.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Name {
    OrderedDict,
    /// A dictionary that is made from something else than its entries.
    DefaultDict,
    RebuildTensor,
    /// As the former, with a type of its own over a storage of bytes.
    RebuildTypedTensor,
    RebuildParameter,
    RebuildSubclass,
    Size,
    Storage(Dtype),
    Dtype(Dtype),
    /// Anything else.
    Object,
}

/// A block of numbers of one type that lies elsewhere in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    pub key: String,
    pub dtype: Dtype,
    pub numel: usize,
}

/// A tensor as a view of a storage; offset and strides count elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredTensor {
    pub storage: Rc<Storage>,
    pub dtype: Dtype,
    pub offset: usize,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

/// The values of one or more pickles of a file.
#[derive(Debug, Default)]
pub(super) struct Arena {
    values: Vec<Value>,
    /// What may still be made.
    left: usize,
    objects: BTreeSet<String>,
}

impl Arena {
    /// The value at `id`.
    pub fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// The Python objects that became nothing.
    pub fn objects(&self) -> Vec<String> {
        self.objects.iter().cloned().collect()
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    fn push(&mut self, value: Value) -> Read<Id> {
        self.charge(1)?;
        self.values.push(value);
        Ok(self.values.len() - 1)
    }

    /// Counts `n` values or entries of a container.
    fn charge(&mut self, n: usize) -> Read<()> {
        self.left = self.left.checked_sub(n).ok_or("more entries than a file of weights of its length has")?;
        Ok(())
    }

    /// Reads the pickle that `bytes` begin with: its value and its length in bytes.
    pub fn read(&mut self, bytes: &[u8]) -> Read<(Id, usize)> {
        self.left = bytes.len().saturating_mul(MOST_PER_BYTE).saturating_add(MOST_OF_ANY).min(MOST_VALUES);
        let mut machine = Machine { arena: self, bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new() };
        let id = machine.run()?;
        Ok((id, machine.at))
    }
}

struct Machine<'a> {
    arena: &'a mut Arena,
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
}

impl Machine<'_> {
    fn run(&mut self) -> Read<Id> {
        loop {
            let code = self.take(1)?[0];
            match code {
                // PROTO, FRAME: how it is written says nothing about what.
                0x80 => {
                    self.take(1)?;
                }
                0x95 => {
                    self.take(8)?;
                }
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    self.pop()?;
                }
                b'1' => {
                    self.pop_mark()?;
                }
                b'2' => {
                    let top = self.pop()?;
                    self.stack.extend([top, top]);
                }
                b'N' | 0x97 => self.push(Value::Nothing)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'I' | b'L' => {
                    let line = self.line()?;
                    let value = match line.trim_end_matches('L') {
                        "00" => Value::Bool(false),
                        "01" => Value::Bool(true),
                        number => number.parse().map_or(Value::Nothing, Value::Int),
                    };
                    self.push(value)?;
                }
                b'F' => {
                    let value = self.line()?.parse().map_or(Value::Nothing, Value::Float);
                    self.push(value)?;
                }
                b'V' | b'S' => {
                    let line = self.line()?;
                    self.push(Value::Text(line.trim_matches(['\'', '"']).into()))?;
                }
                b'J' => {
                    let n = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(n.into()))?;
                }
                b'K' => {
                    let n = self.take(1)?[0];
                    self.push(Value::Int(n.into()))?;
                }
                b'M' => {
                    let n = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(n.into()))?;
                }
                0x8a => {
                    let n = usize::from(self.take(1)?[0]);
                    let value = long(self.take(n)?);
                    self.push(value)?;
                }
                0x8b => {
                    let n = self.length(4)?;
                    let value = long(self.take(n)?);
                    self.push(value)?;
                }
                b'G' => {
                    let x = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(x))?;
                }
                0x8c => self.text(1)?,
                b'X' => self.text(4)?,
                0x8d => self.text(8)?,
                b'U' | b'C' => self.blob(1)?,
                b'T' | b'B' => self.blob(4)?,
                0x8e | 0x96 => self.blob(8)?,
                // What belongs to a buffer outside of the pickle stays as it is.
                0x98 => {}
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b']' | 0x8f => self.push(Value::List(Vec::new()))?,
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Value::Tuple(items))?;
                }
                0x85..=0x87 => {
                    let n = usize::from(code - 0x84);
                    let start = self.stack.len().checked_sub(n).filter(|s| *s >= self.floor()).ok_or_else(empty)?;
                    let items = self.stack.split_off(start);
                    self.push(Value::Tuple(items))?;
                }
                b'l' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.push(Value::List(items))?;
                }
                b'd' => {
                    let items = pairs(&self.pop_mark()?)?;
                    self.push(Value::Dict(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(&[item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.extend_list(&items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.extend_dict(&[(key, value)])?;
                }
                b'u' => {
                    let items = pairs(&self.pop_mark()?)?;
                    self.extend_dict(&items)?;
                }
                b'p' => {
                    let key = self.line()?.parse().map_err(|_| "a reference that is no number")?;
                    self.remember(key)?;
                }
                b'g' => {
                    let key = self.line()?.parse().map_err(|_| "a reference that is no number")?;
                    self.recall(key)?;
                }
                b'q' => {
                    let key = self.take(1)?[0];
                    self.remember(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?,
                b'h' => {
                    let key = self.take(1)?[0];
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(key)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let name = self.known(&module, &name)?;
                    self.push(Value::Name(name))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (self.arena.get(module), self.arena.get(name)) else {
                        return Err("a name that is no text".into());
                    };
                    let (module, name) = (module.clone(), name.clone());
                    let name = self.known(&module, &name)?;
                    self.push(Value::Name(name))?;
                }
                b'R' => {
                    let (args, callee) = (self.pop()?, self.pop()?);
                    let made = self.rebuild(callee, args)?;
                    self.push(made)?;
                }
                // INST, OBJ, NEWOBJ and NEWOBJ_EX make an object of a class, of which there is none here.
                b'i' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.known(&module, &name)?;
                    self.pop_mark()?;
                    self.push(Value::Nothing)?;
                }
                b'o' => {
                    self.pop_mark()?;
                    self.push(Value::Nothing)?;
                }
                0x81 => {
                    let (args, class) = (self.pop()?, self.pop()?);
                    // A dictionary with a class of its own is one all the same.
                    let dict = matches!(self.arena.get(class), Value::Name(Name::OrderedDict | Name::DefaultDict));
                    let made = if dict { Value::Dict(Vec::new()) } else { Value::Nothing };
                    let _ = args;
                    self.push(made)?;
                }
                0x92 => {
                    for _ in 0..3 {
                        self.pop()?;
                    }
                    self.push(Value::Nothing)?;
                }
                // BUILD gives an object attributes; state dictionaries carry `_metadata` that way, which says nothing about weights.
                b'b' => {
                    let (_, target) = (self.pop()?, self.pop()?);
                    self.stack.push(target);
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(storage)?;
                }
                other => return Err(format!("opcode 0x{other:02x} at byte {}, which no file of weights needs", self.at - 1)),
            }
        }
    }

    /// A Python name: known, or that of an object that becomes nothing.
    fn known(&mut self, module: &str, name: &str) -> Read<Name> {
        if let Some(known) = known(module, name) {
            return Ok(known);
        }
        let full = format!("{}.{}", module, name);
        if runs_programs(module, name) {
            return Err(format!(
                "it asks for the Python object `{full}`, which runs programs: it is refused, and better not opened with Python"
            ));
        }
        self.arena.objects.insert(full);
        Ok(Name::Object)
    }

    fn take(&mut self, n: usize) -> Read<&[u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len()).ok_or("it ends in the middle of its list of tensors")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were taken"))
    }

    fn length(&mut self, width: usize) -> Read<usize> {
        let mut wide = [0u8; 8];
        wide[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| "a length beyond memory".into())
    }

    fn text(&mut self, width: usize) -> Read<()> {
        let n = self.length(width)?;
        let text = String::from_utf8_lossy(self.take(n)?).into_owned();
        self.push(Value::Text(text))
    }

    // Python 2 wrote texts as bytes, so bytes that are text are taken for it.
    fn blob(&mut self, width: usize) -> Read<()> {
        let n = self.length(width)?;
        let value = std::str::from_utf8(self.take(n)?).map_or(Value::Nothing, |t| Value::Text(t.into()));
        self.push(value)
    }

    fn line(&mut self) -> Read<String> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().take(512).position(|b| *b == b'\n').ok_or("a name without end")?;
        let line = String::from_utf8_lossy(&rest[..n]).into_owned();
        self.at += n + 1;
        Ok(line)
    }

    fn push(&mut self, value: Value) -> Read<()> {
        let id = self.arena.push(value)?;
        self.stack.push(id);
        Ok(())
    }

    // Nothing may be taken from below the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Read<Id> {
        if self.stack.len() <= self.floor() {
            return Err(empty());
        }
        self.stack.pop().ok_or_else(empty)
    }

    fn top(&self) -> Read<Id> {
        self.stack.last().copied().ok_or_else(empty)
    }

    fn pop_mark(&mut self) -> Read<Vec<Id>> {
        let mark = self.marks.pop().ok_or("a mark that was never set")?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, key: u32) -> Read<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Read<()> {
        let id = *self.memo.get(&key).ok_or("a reference to nothing")?;
        self.stack.push(id);
        Ok(())
    }

    fn extend_list(&mut self, items: &[Id]) -> Read<()> {
        let top = self.top()?;
        match &mut self.arena.values[top] {
            Value::List(list) => list.extend_from_slice(items),
            // Whatever an object takes in goes the way of the object.
            Value::Nothing => {}
            _ => return Err("items for something that is no list".into()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[(Id, Id)]) -> Read<()> {
        let top = self.top()?;
        match &mut self.arena.values[top] {
            Value::Dict(dict) => dict.extend_from_slice(items),
            Value::Nothing => {}
            _ => return Err("entries for something that is no dictionary".into()),
        }
        Ok(())
    }

    fn tuple(&self, id: Id) -> Read<&[Id]> {
        match self.arena.get(id) {
            Value::Tuple(items) => Ok(items),
            other => Err(format!("a tuple was expected, got {}", other.what())),
        }
    }

    fn integers(&self, id: Id) -> Read<Vec<i64>> {
        let int = |id: &Id| match self.arena.get(*id) {
            Value::Int(n) if *n >= 0 => Ok(*n),
            other => Err(format!("a size was expected, got {}", other.what())),
        };
        let sizes = self.tuple(id)?;
        if sizes.len() > MOST_DIMENSIONS {
            return Err(format!("a tensor of {} dimensions", sizes.len()));
        }
        sizes.iter().map(int).collect()
    }

    /// What calling `callee` with `args` would give, for the few calls that weight files are made of; nothing for all others.
    fn rebuild(&mut self, callee: Id, args: Id) -> Read<Value> {
        let name = match self.arena.get(callee) {
            Value::Name(name) => *name,
            Value::Nothing => return Ok(Value::Nothing),
            _ => return Err("a call of something that is no function".into()),
        };
        if name == Name::Object {
            return Ok(Value::Nothing);
        }
        // What is copied is charged before.
        let length = self.tuple(args)?.len() + self.tuple(args)?.first().map_or(0, |id| self.arena.get(*id).len());
        self.arena.charge(length)?;
        let args = self.tuple(args)?;
        let arg = |n: usize| args.get(n).copied().ok_or_else(|| format!("{} arguments for {name:?}", args.len()));
        Ok(match name {
            Name::RebuildTensor | Name::RebuildTypedTensor => self.tensor(name, args)?,
            Name::RebuildParameter => match self.arena.get(arg(0)?) {
                tensor @ (Value::Tensor(_) | Value::Nothing) => tensor.clone(),
                other => return Err(format!("a parameter of {}", other.what())),
            },
            // `(rebuild, class, arguments, state)`: a tensor with attributes.
            Name::RebuildSubclass => match (self.arena.get(arg(0)?), self.arena.get(arg(2)?)) {
                (Value::Name(inner @ (Name::RebuildTensor | Name::RebuildTypedTensor)), Value::Tuple(inner_args)) => {
                    self.tensor(*inner, inner_args)?
                }
                (Value::Name(Name::RebuildParameter), Value::Tuple(inner_args)) => {
                    inner_args.first().map_or(Value::Nothing, |id| match self.arena.get(*id) {
                        tensor @ Value::Tensor(_) => tensor.clone(),
                        _ => Value::Nothing,
                    })
                }
                _ => Value::Nothing,
            },
            Name::Size => Value::Tuple(self.tuple(arg(0)?)?.to_vec()),
            Name::DefaultDict => Value::Dict(Vec::new()),
            // Either empty, or, from Python 2, with a list of pairs.
            Name::OrderedDict => match args.first().map(|id| self.arena.get(*id)) {
                None => Value::Dict(Vec::new()),
                Some(Value::List(items)) => {
                    let pair = |id: &Id| match self.arena.get(*id) {
                        Value::Tuple(p) | Value::List(p) if p.len() == 2 => Ok((p[0], p[1])),
                        other => Err(format!("a pair was expected, got {}", other.what())),
                    };
                    Value::Dict(items.iter().map(pair).collect::<Read<_>>()?)
                }
                Some(Value::Dict(items)) => Value::Dict(items.clone()),
                Some(other) => return Err(format!("a dictionary of {}", other.what())),
            },
            Name::Storage(_) | Name::Dtype(_) | Name::Object => Value::Nothing,
        })
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks)`, and for the typed form the type.
    fn tensor(&self, name: Name, args: &[Id]) -> Read<Value> {
        let arg = |n: usize| args.get(n).copied().ok_or_else(|| format!("{} arguments for {name:?}", args.len()));
        let storage = match self.arena.get(arg(0)?) {
            Value::Storage(storage) => storage.clone(),
            Value::Nothing => return Ok(Value::Nothing),
            _ => return Err("a tensor without storage".into()),
        };
        let Value::Int(offset) = *self.arena.get(arg(1)?) else { return Err("a tensor without offset".into()) };
        let (shape, strides) = (self.integers(arg(2)?)?, self.integers(arg(3)?)?);
        if shape.len() != strides.len() {
            return Err(format!("a tensor of shape {shape:?} with strides {strides:?}"));
        }
        let dtype = match name {
            Name::RebuildTypedTensor => match self.arena.get(arg(6)?) {
                Value::Name(Name::Dtype(dtype)) => *dtype,
                _ => return Ok(Value::Nothing),
            },
            _ => storage.dtype,
        };
        let offset = usize::try_from(offset).map_err(|_| "a negative offset")?;
        Ok(Value::Tensor(Rc::new(StoredTensor { storage, dtype, offset, shape, strides })))
    }

    /// `('storage', type, key, place, number of elements)`, and before PyTorch 1.6 a sixth entry for a view of a part.
    fn storage(&self, id: Id) -> Read<Value> {
        let items = self.tuple(id)?;
        let at = |n: usize| items.get(n).map(|id| self.arena.get(*id));
        if at(5).is_some_and(|view| *view != Value::Nothing) {
            return Err("a storage that is a part of another, as PyTorch before 0.4 wrote it".into());
        }
        match (at(0), at(1), at(2), at(4)) {
            (Some(Value::Text(tag)), Some(Value::Name(Name::Storage(dtype))), Some(Value::Text(key)), Some(Value::Int(numel)))
                if tag == "storage" && *numel >= 0 =>
            {
                Ok(Value::Storage(Rc::new(Storage { key: key.clone(), dtype: *dtype, numel: *numel as usize })))
            }
            // A type of numbers that nothing here computes with, or the class of a module.
            (Some(Value::Text(tag)), Some(Value::Name(Name::Object)), ..) if tag == "storage" || tag == "module" => Ok(Value::Nothing),
            _ => Err("a persistent reference that is no storage".into()),
        }
    }
}

fn empty() -> String {
    "a value from an empty stack".into()
}

fn pairs(items: &[Id]) -> Read<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return Err("a key without value".into());
    }
    Ok(items.chunks_exact(2).map(|p| (p[0], p[1])).collect())
}

/// A little-endian two's complement number of any length; one beyond 64 bits (the magic number of old files) is no size of anything.
fn long(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::Nothing;
    }
    let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut wide = [fill; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}

fn known(module: &str, name: &str) -> Option<Name> {
    Some(match (module, name) {
        ("collections", "OrderedDict") | ("builtins" | "__builtin__", "dict") => Name::OrderedDict,
        ("collections", "defaultdict") => Name::DefaultDict,
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Name::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => Name::RebuildTypedTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Name::RebuildParameter,
        ("torch._tensor", "_rebuild_from_type_v2") => Name::RebuildSubclass,
        ("torch", "Size") => Name::Size,
        ("torch", storage) if storage.ends_with("Storage") => {
            STORAGES.iter().find(|(name, _)| *name == storage).map(|(_, d)| Name::Storage(*d))?
        }
        ("torch.storage", "UntypedStorage") => Name::Storage(Dtype::U8),
        ("torch", dtype) => DTYPES.iter().find(|(name, _)| *name == dtype).map(|(_, d)| Name::Dtype(*d))?,
        _ => return None,
    })
}

const STORAGES: [(&str, Dtype); 12] = [
    ("FloatStorage", Dtype::F32),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::BF16),
    ("DoubleStorage", Dtype::F64),
    ("LongStorage", Dtype::I64),
    ("IntStorage", Dtype::I32),
    ("ShortStorage", Dtype::I16),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
    ("BoolStorage", Dtype::BOOL),
    ("UntypedStorage", Dtype::U8),
    ("ComplexFloatStorage", Dtype::C64),
];

const DTYPES: [(&str, Dtype); 18] = [
    ("float32", Dtype::F32),
    ("float16", Dtype::F16),
    ("bfloat16", Dtype::BF16),
    ("float64", Dtype::F64),
    ("float8_e4m3fn", Dtype::F8_E4M3),
    ("float8_e5m2", Dtype::F8_E5M2),
    ("float8_e4m3fnuz", Dtype::F8_E4M3FNUZ),
    ("float8_e5m2fnuz", Dtype::F8_E5M2FNUZ),
    ("int64", Dtype::I64),
    ("int32", Dtype::I32),
    ("int16", Dtype::I16),
    ("int8", Dtype::I8),
    ("uint8", Dtype::U8),
    ("uint16", Dtype::U16),
    ("uint32", Dtype::U32),
    ("uint64", Dtype::U64),
    ("bool", Dtype::BOOL),
    ("complex64", Dtype::C64),
];

/// Modules with which a pickle reaches the system of whoever runs it.
const DANGEROUS: [&str; 16] = [
    "os",
    "posix",
    "nt",
    "subprocess",
    "sys",
    "shutil",
    "socket",
    "importlib",
    "runpy",
    "ctypes",
    "pty",
    "webbrowser",
    "commands",
    "code",
    "requests",
    "pip",
];
const BUILTINS: [&str; 3] = ["builtins", "__builtin__", "__builtins__"];
/// Built-in functions that do the same.
const DANGEROUS_BUILTINS: [&str; 10] =
    ["eval", "exec", "execfile", "compile", "open", "getattr", "setattr", "__import__", "globals", "breakpoint"];

/// Whether a name can only be meant to run a program.
fn runs_programs(module: &str, name: &str) -> bool {
    let first = module.split('.').next().unwrap_or_default();
    DANGEROUS.contains(&first) || (BUILTINS.contains(&module) && DANGEROUS_BUILTINS.contains(&name))
}

impl Value {
    /// Entries that a copy of it has.
    fn len(&self) -> usize {
        match self {
            Value::Tuple(items) | Value::List(items) => items.len(),
            Value::Dict(items) => 2 * items.len(),
            _ => 1,
        }
    }

    /// What it is, for errors, however long it is.
    fn what(&self) -> &'static str {
        match self {
            Value::Nothing => "None or an object",
            Value::Bool(_) => "a truth value",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Text(_) => "a text",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dictionary",
            Value::Name(_) => "a name",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}
