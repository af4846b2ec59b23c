//! The stack machine: opcodes to values.

use std::collections::BTreeMap;

use super::names::{known, runs_programs};
use super::{Arena, Id, Name, Read, TEXT_PER_VALUE, Value};

/// Bytes of a Python name.
const LONGEST_NAME: usize = 512;

/// Where reading a pickle stands.
pub(super) struct Machine<'a> {
    pub(super) arena: &'a mut Arena,
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// At the beginning of a pickle.
    pub fn new(arena: &'a mut Arena, bytes: &'a [u8]) -> Self {
        Self { arena, bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new() }
    }

    /// Its value, and its length in bytes.
    pub fn run(mut self) -> Read<(Id, usize)> {
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
                b'.' => return Ok((self.pop()?, self.at)),
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
                    let (_, class) = (self.pop()?, self.pop()?);
                    // A dictionary with a class of its own is one all the same.
                    let dict = matches!(self.arena.get(class), Value::Name(Name::OrderedDict | Name::DefaultDict));
                    self.push(if dict { Value::Dict(Vec::new()) } else { Value::Nothing })?;
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
        let full = format!("{module}.{name}");
        if runs_programs(module, name) {
            return Err(format!(
                "it asks for the Python object `{full}`, which runs programs: it is refused, and better not opened with Python"
            ));
        }
        if full.len() > LONGEST_NAME {
            return Err("a name without end".into());
        }
        if self.arena.objects.insert(full) {
            self.arena.charge(LONGEST_NAME / TEXT_PER_VALUE)?;
        }
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
        let n = rest.iter().take(LONGEST_NAME).position(|b| *b == b'\n').ok_or("a name without end")?;
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
