//! What the few calls that weight files are made of would give.

use std::rc::Rc;

use super::machine::Machine;
use super::{Id, Name, Read, Storage, StoredTensor, Value};

/// Dimensions of a tensor.
const MOST_DIMENSIONS: usize = 32;

impl Machine<'_> {
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
    pub(super) fn rebuild(&mut self, callee: Id, args: Id) -> Read<Value> {
        let name = match self.arena.get(callee) {
            Value::Name(name) => *name,
            Value::Nothing => return Ok(Value::Nothing),
            _ => return Err("a call of something that is no function".into()),
        };
        if name == Name::Object {
            return Ok(Value::Nothing);
        }
        // What is copied is charged before.
        let length = self.tuple(args)?.iter().map(|id| 1 + self.arena.get(*id).len()).sum();
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
    pub(super) fn storage(&mut self, id: Id) -> Read<Value> {
        // Its name is copied.
        let length = self.tuple(id)?.iter().map(|id| self.arena.get(*id).len()).sum();
        self.arena.charge(length)?;
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
