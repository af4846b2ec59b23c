//! PyTorch's own weight files (`.pt`, `.pth`, `.bin`, `.ckpt`): where each tensor lies in the mapped file (file -> **entries** -> tensors).
//!
//! Since 1.6 `torch.save` writes a zip archive of one pickle and one uncompressed member per storage; before, a row of pickles and
//! then the storages. Both are only looked through here; see `pickle` for what is never done.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::Dtype;

use super::files::Entry;
use super::pickle::{Arena, Id, Read, Storage, StoredTensor, Value};

/// Containers inside containers that a state dictionary may have.
const DEEPEST: usize = 16;
/// Entries of all containers together; shared containers count each time they are met.
const MOST_ENTRIES: usize = 1_000_000;
/// Bytes of the names of all entries together.
const MOST_NAME_BYTES: usize = 64 << 20;
/// The first pickle of the old form is a magic number: ten bytes behind the protocol's number (and, from protocol 4 on, a length), or as
/// text in the oldest protocols.
const MAGIC: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
const MAGIC_TEXT: &[u8] = b"L119547037146038801333356L\n.";
/// Objects that an error names.
const NAMED: usize = 4;

/// Whether `bytes` begin like one of the two forms.
pub(super) fn is_pytorch(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || is_legacy(bytes)
}

fn is_legacy(bytes: &[u8]) -> bool {
    let behind = |at: usize| bytes.get(at..).is_some_and(|rest| rest.starts_with(MAGIC));
    (bytes.first() == Some(&0x80) && (behind(2) || behind(11))) || bytes.starts_with(MAGIC_TEXT)
}

/// What a file holds.
pub(super) struct Contents {
    /// Every tensor by its name: the keys on the way to it, joined by dots.
    pub entries: BTreeMap<String, Entry>,
    /// Python objects that say nothing of weights.
    pub objects: Vec<String>,
}

/// Looks through the file.
pub(super) fn entries(bytes: &[u8]) -> Read<Contents> {
    let mut arena = Arena::default();
    let (root, places) = if is_legacy(bytes) { legacy(bytes, &mut arena)? } else { archive(bytes, &mut arena)? };
    let mut found = Found { arena: &arena, places: &places, entries: BTreeMap::new(), visited: 0, name_bytes: 0 };
    found.walk(root, String::new(), 0)?;
    let (entries, objects) = (found.entries, arena.objects());
    if !entries.is_empty() {
        return Ok(Contents { entries, objects });
    }
    match objects.is_empty() {
        true => Err("it holds no tensor".into()),
        false => {
            let shown = objects[..objects.len().min(NAMED)].join("`, `");
            let more = if objects.len() > NAMED { ", .." } else { "" };
            Err(format!("it holds no tensor outside of Python objects: `{shown}`{more}"))
        }
    }
}

type Places = BTreeMap<String, Range<usize>>;

fn archive(bytes: &[u8], arena: &mut Arena) -> Read<(Id, Places)> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(bytes)).map_err(|e| format!("a damaged zip archive ({e})"))?;
    let (mut pickle, mut places) = (None, Places::new());
    for index in 0..zip.len() {
        let member = zip.by_index_raw(index).map_err(|e| format!("a damaged zip archive ({e})"))?;
        let Some((_, name)) = member.name().split_once('/') else { continue };
        if name.starts_with("code/") || name == "constants.pkl" {
            return Err("a TorchScript archive, which is a program and no file of weights".into());
        }
        if member.compression() != zip::CompressionMethod::Stored {
            return Err(format!("member `{name}` is compressed, which torch.save never does"));
        }
        let start = usize::try_from(member.data_start()).map_err(|_| "a length beyond memory")?;
        let end = usize::try_from(member.size()).ok().and_then(|n| start.checked_add(n)).filter(|end| *end <= bytes.len());
        let place = start..end.ok_or("it is truncated")?;
        match name {
            "data.pkl" => pickle = Some(place),
            "byteorder" if &bytes[place.clone()] != b"little" => return Err("its numbers are big-endian".into()),
            _ => {
                if let Some(key) = name.strip_prefix("data/") {
                    places.insert(key.into(), place);
                }
            }
        }
    }
    let pickle = pickle.ok_or_else(|| {
        let members: Vec<&str> = zip.file_names().take(3).collect();
        format!("a zip archive of something else ({})", members.join(", "))
    })?;
    let (root, _) = arena.read(&bytes[pickle])?;
    Ok((root, places))
}

/// Magic number, protocol, system, the object, the keys of its storages: five pickles. Then each storage with its length before it.
fn legacy(bytes: &[u8], arena: &mut Arena) -> Read<(Id, Places)> {
    let (mut at, mut last) = (0, Vec::new());
    for _ in 0..5 {
        let (id, length) = arena.read(&bytes[at..])?;
        at += length;
        last.push(id);
    }
    let sizes = storage_sizes(arena, last[3])?;
    let Value::List(keys) = arena.get(last[4]) else { return Err("no list of storages".into()) };
    let mut places = Places::new();
    for key in keys {
        let Value::Text(key) = arena.get(*key) else { return Err("a storage without name".into()) };
        let size = *sizes.get(key).ok_or("a storage that no tensor uses")?;
        let head: [u8; 8] = bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).ok_or("it is truncated")?;
        let numel = usize::try_from(u64::from_le_bytes(head)).map_err(|_| "a length beyond memory")?;
        let start = at + 8;
        let end = numel.checked_mul(size).and_then(|n| start.checked_add(n)).filter(|end| *end <= bytes.len()).ok_or("it is truncated")?;
        places.insert(key.clone(), start..end);
        at = end;
    }
    Ok((last[3], places))
}

/// Bytes per element of every storage below `root`, by key.
fn storage_sizes(arena: &Arena, root: Id) -> Read<BTreeMap<String, usize>> {
    let (mut sizes, mut open, mut seen) = (BTreeMap::new(), vec![root], vec![false; arena.len()]);
    while let Some(id) = open.pop() {
        if std::mem::replace(&mut seen[id], true) {
            continue;
        }
        match arena.get(id) {
            Value::Dict(items) => open.extend(items.iter().map(|(_, value)| *value)),
            Value::List(items) | Value::Tuple(items) => open.extend(items),
            Value::Tensor(t) => {
                sizes.insert(t.storage.key.clone(), size_of(t.storage.dtype));
            }
            Value::Storage(storage) => {
                sizes.insert(storage.key.clone(), size_of(storage.dtype));
            }
            _ => {}
        }
    }
    Ok(sizes)
}

fn size_of(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

struct Found<'a> {
    arena: &'a Arena,
    places: &'a Places,
    entries: BTreeMap<String, Entry>,
    visited: usize,
    name_bytes: usize,
}

impl Found<'_> {
    fn walk(&mut self, id: Id, name: String, depth: usize) -> Read<()> {
        self.visited += 1;
        self.name_bytes += name.len();
        if depth > DEEPEST || self.visited > MOST_ENTRIES || self.name_bytes > MOST_NAME_BYTES {
            return Err(format!("containers nested deeper than {DEEPEST}, more than {MOST_ENTRIES} entries, or endless names"));
        }
        let below = |key: &str| if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
        let arena = self.arena;
        match arena.get(id) {
            Value::Dict(items) => {
                for (key, value) in items {
                    let key = match arena.get(*key) {
                        Value::Text(key) => key.clone(),
                        Value::Int(n) => n.to_string(),
                        _ => continue,
                    };
                    self.walk(*value, below(&key), depth + 1)?;
                }
            }
            Value::List(items) | Value::Tuple(items) => {
                for (n, value) in items.iter().enumerate() {
                    self.walk(*value, below(&n.to_string()), depth + 1)?;
                }
            }
            Value::Tensor(tensor) => {
                let entry = self.entry(tensor).map_err(|problem| format!("tensor `{name}`: {problem}"))?;
                self.entries.insert(name, entry);
            }
            _ => {}
        }
        Ok(())
    }

    fn entry(&self, t: &StoredTensor) -> Read<Entry> {
        let Storage { key, dtype, numel } = t.storage.as_ref();
        let place = self.places.get(key).ok_or_else(|| format!("its storage `{key}` is not in the file"))?;
        if place.len() / size_of(*dtype) < *numel {
            return Err(format!("its storage `{key}` has {} bytes of {}", place.len(), numel.saturating_mul(size_of(*dtype))));
        }
        let size = size_of(t.dtype);
        let numel = numel * size_of(*dtype) / size;
        // Elements from the first to the last one that is used.
        let mut span = 1usize;
        for (side, stride) in t.shape.iter().zip(&t.strides) {
            let reach = (*side as usize).saturating_sub(1).checked_mul(*stride as usize);
            span = reach.and_then(|n| span.checked_add(n)).ok_or("a shape beyond memory")?;
        }
        if t.shape.contains(&0) {
            span = 0;
        }
        let end = t.offset.checked_add(span).filter(|end| *end <= numel);
        let end = end.ok_or_else(|| format!("shape {:?} with strides {:?} leads out of its storage", t.shape, t.strides))?;
        let dense = t
            .shape
            .iter()
            .rev()
            .zip(t.strides.iter().rev())
            .try_fold(1i64, |expected, (side, stride)| (*side <= 1 || *stride == expected).then(|| expected.saturating_mul(*side)));
        t.shape.iter().try_fold(1i64, |n, side| n.checked_mul(*side)).ok_or("a shape beyond memory")?;
        Ok(Entry {
            dtype: t.dtype,
            scale: None,
            shape: t.shape.clone(),
            strides: dense.is_none().then(|| t.strides.clone()),
            start: place.start + t.offset * size,
            end: place.start + end * size,
        })
    }
}
