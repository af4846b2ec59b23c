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

mod machine;
mod names;
mod rebuild;

use std::collections::BTreeSet;
use std::rc::Rc;

use safetensors::Dtype;

use machine::Machine;

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
/// Bytes of a text that count as one value.
const TEXT_PER_VALUE: usize = 16;

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
        Machine::new(self, bytes).run()
    }
}

impl Value {
    /// Entries that a copy of it has.
    fn len(&self) -> usize {
        match self {
            Value::Tuple(items) | Value::List(items) => items.len(),
            Value::Dict(items) => 2 * items.len(),
            Value::Text(text) => 1 + text.len() / TEXT_PER_VALUE,
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
