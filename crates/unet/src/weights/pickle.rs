//! The part of Python's pickle format that PyTorch's weight files are written in, read into plain data (file -> **values** -> tensors).
//!
//! A pickle is a program for a stack machine that may call any Python function. Here nothing is ever called: the handful of names
//! that plain tensors in containers need are known constants, and any other name ends reading with an error that says it. Values
//! lie in one arena and refer to each other by number, so that deep nesting and cycles in a hostile file cost no stack.
//!
//! The opcodes are those of Python's `pickletools`. candle has a reader of such files too; it keeps unknown names as objects
//! instead of refusing them, does not know the form before PyTorch 1.6, and would bring its own tensor library along.

use std::collections::BTreeMap;

use tch::Kind;

/// Index of a value in the arena.
pub(super) type Id = usize;

/// The result of reading: a value, or what is wrong in one phrase.
pub(super) type Read<T> = Result<T, String>;

/// A file of tensors has a few values per tensor; more than this is a bomb.
const MOST_VALUES: usize = 20_000_000;

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
    Storage(Storage),
    Tensor(StoredTensor),
}

/// The Python names that may occur.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Name {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Device,
    Storage(Kind),
    Dtype,
}

/// A block of numbers of one type that lies elsewhere in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    pub key: String,
    pub kind: Kind,
    pub numel: usize,
}

/// A tensor as a view of a storage; offset and strides count elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredTensor {
    pub storage: Storage,
    pub offset: usize,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

/// The values of one or more pickles of a file.
#[derive(Debug, Default)]
pub(super) struct Arena {
    values: Vec<Value>,
}

impl Arena {
    /// The value at `id`.
    pub fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    fn push(&mut self, value: Value) -> Read<Id> {
        if self.values.len() >= MOST_VALUES {
            return Err(format!("more than {MOST_VALUES} values"));
        }
        self.values.push(value);
        Ok(self.values.len() - 1)
    }

    /// Reads the pickle that `bytes` begin with: its value and its length in bytes.
    pub fn read(&mut self, bytes: &[u8]) -> Read<(Id, usize)> {
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
                b'N' => self.push(Value::Nothing)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
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
                b'G' => {
                    let x = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(x))?;
                }
                0x8c => self.text(1)?,
                b'X' => self.text(4)?,
                0x8d => self.text(8)?,
                b'U' | b'C' => self.blob(1)?,
                b'T' | b'B' => self.blob(4)?,
                0x8e => self.blob(8)?,
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b']' => self.push(Value::List(Vec::new()))?,
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
                b'l' => {
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
                b'e' => {
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
                    self.push(Value::Name(known(&module, &name)?))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (self.arena.get(module), self.arena.get(name)) else {
                        return Err("a name that is no text".into());
                    };
                    let name = known(module, name)?;
                    self.push(Value::Name(name))?;
                }
                b'R' => {
                    let (args, callee) = (self.pop()?, self.pop()?);
                    let made = self.rebuild(callee, args)?;
                    self.push(made)?;
                }
                // BUILD gives an object attributes; state dictionaries carry `_metadata` that way, which says nothing about weights.
                b'b' => {
                    let (_, target) = (self.pop()?, self.pop()?);
                    if !matches!(self.arena.get(target), Value::Dict(_)) {
                        return Err("attributes for something that is no dictionary".into());
                    }
                    self.stack.push(target);
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(Value::Storage(storage))?;
                }
                other => return Err(format!("opcode 0x{other:02x} at byte {}, which no file of weights needs", self.at - 1)),
            }
        }
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
        let text = std::str::from_utf8(self.take(n)?).map_err(|_| "a text that is not UTF-8")?.to_string();
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
            _ => return Err("items for something that is no list".into()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[(Id, Id)]) -> Read<()> {
        let top = self.top()?;
        match &mut self.arena.values[top] {
            Value::Dict(dict) => dict.extend_from_slice(items),
            _ => return Err("entries for something that is no dictionary".into()),
        }
        Ok(())
    }

    fn tuple(&self, id: Id) -> Read<&[Id]> {
        match self.arena.get(id) {
            Value::Tuple(items) => Ok(items),
            other => Err(format!("a tuple was expected, got {other:?}")),
        }
    }

    fn integers(&self, id: Id) -> Read<Vec<i64>> {
        let int = |id: &Id| match self.arena.get(*id) {
            Value::Int(n) if *n >= 0 => Ok(*n),
            other => Err(format!("a size was expected, got {other:?}")),
        };
        self.tuple(id)?.iter().map(int).collect()
    }

    /// What calling `callee` with `args` would give, for the few calls that weight files are made of.
    fn rebuild(&self, callee: Id, args: Id) -> Read<Value> {
        let Value::Name(name) = self.arena.get(callee) else { return Err("a call of something that is no function".into()) };
        let args = self.tuple(args)?;
        let arg = |n: usize| args.get(n).copied().ok_or_else(|| format!("{} arguments for {name:?}", args.len()));
        Ok(match name {
            Name::RebuildTensor => {
                let Value::Storage(storage) = self.arena.get(arg(0)?) else { return Err("a tensor without storage".into()) };
                let Value::Int(offset) = *self.arena.get(arg(1)?) else { return Err("a tensor without offset".into()) };
                let (shape, strides) = (self.integers(arg(2)?)?, self.integers(arg(3)?)?);
                if shape.len() != strides.len() {
                    return Err(format!("a tensor of shape {shape:?} with strides {strides:?}"));
                }
                let offset = usize::try_from(offset).map_err(|_| "a negative offset")?;
                Value::Tensor(StoredTensor { storage: storage.clone(), offset, shape, strides })
            }
            Name::RebuildParameter => match self.arena.get(arg(0)?) {
                tensor @ Value::Tensor(_) => tensor.clone(),
                other => return Err(format!("a parameter of {other:?}")),
            },
            Name::Size => Value::Tuple(self.tuple(arg(0)?)?.to_vec()),
            Name::Device => Value::Nothing,
            // Either empty, or, from Python 2, with a list of pairs.
            Name::OrderedDict => match args.first().map(|id| self.arena.get(*id)) {
                None => Value::Dict(Vec::new()),
                Some(Value::List(items)) => {
                    let pair = |id: &Id| match self.arena.get(*id) {
                        Value::Tuple(p) | Value::List(p) if p.len() == 2 => Ok((p[0], p[1])),
                        other => Err(format!("a pair was expected, got {other:?}")),
                    };
                    Value::Dict(items.iter().map(pair).collect::<Read<_>>()?)
                }
                Some(other) => return Err(format!("a dictionary of {other:?}")),
            },
            Name::Storage(_) | Name::Dtype => return Err(format!("a call of {name:?}")),
        })
    }

    /// `('storage', type, key, place, number of elements)`, and before PyTorch 1.6 a sixth entry for a view of a part.
    fn storage(&self, id: Id) -> Read<Storage> {
        let items = self.tuple(id)?;
        let at = |n: usize| items.get(n).map(|id| self.arena.get(*id));
        if at(5).is_some_and(|view| *view != Value::Nothing) {
            return Err("a storage that is a part of another, as PyTorch before 0.4 wrote it".into());
        }
        match (at(0), at(1), at(2), at(4)) {
            (Some(Value::Text(tag)), Some(Value::Name(Name::Storage(kind))), Some(Value::Text(key)), Some(Value::Int(numel)))
                if tag == "storage" && *numel >= 0 =>
            {
                Ok(Storage { key: key.clone(), kind: *kind, numel: *numel as usize })
            }
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

fn known(module: &str, name: &str) -> Read<Name> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Name::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Name::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Name::RebuildParameter,
        ("torch", "Size") => Name::Size,
        ("torch", "device") => Name::Device,
        ("torch", "FloatStorage") => Name::Storage(Kind::Float),
        ("torch", "HalfStorage") => Name::Storage(Kind::Half),
        ("torch", "BFloat16Storage") => Name::Storage(Kind::BFloat16),
        ("torch", "DoubleStorage") => Name::Storage(Kind::Double),
        ("torch", "LongStorage") => Name::Storage(Kind::Int64),
        ("torch", "IntStorage") => Name::Storage(Kind::Int),
        ("torch", "ShortStorage") => Name::Storage(Kind::Int16),
        ("torch", "CharStorage") => Name::Storage(Kind::Int8),
        ("torch", "ByteStorage") => Name::Storage(Kind::Uint8),
        ("torch", "BoolStorage") => Name::Storage(Kind::Bool),
        ("torch", "float32" | "float16" | "bfloat16" | "float64" | "int64") => Name::Dtype,
        _ => {
            return Err(format!(
                "it asks for the Python object `{module}.{name}`, which is refused: only tensors in dictionaries and lists are read"
            ));
        }
    })
}
