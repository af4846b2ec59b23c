//! Weight files: read by memory map (safetensors and PyTorch's own), written whole (safetensors), found in a component's folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::hex;
use memmap2::Mmap;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, TchError, Tensor};

use super::{Tensors, pytorch};
use crate::error::{Error, Result};

/// One memory-mapped weight file.
#[derive(Debug)]
pub struct TensorFile {
    pub(super) path: PathBuf,
    map: Arc<Mmap>,
    pub(super) entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) shape: Vec<i64>,
    /// Steps between elements, where they are not those of a dense tensor.
    pub(super) strides: Option<Vec<i64>>,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl TensorFile {
    /// Opens `path`, a safetensors file or one that PyTorch wrote, and checks its header; tensor bytes are read when they are
    /// asked for. Nothing in a PyTorch file is executed. Its nested dictionaries become names with dots.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::Format`] when it is neither, damaged, or asks for a Python object.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(Error::io(&path))?;
        let bad = |problem: String| Error::Format {
            path: path.clone(),
            problem,
            hint: "is the file truncated, a Git LFS pointer, or not a safetensors file? fetch it again".into(),
        };
        if file.metadata().map_err(Error::io(&path))?.len() < 8 {
            return Err(bad("too short for a file of weights".into()));
        }
        // SAFETY: the map is read-only and private to this process; a file that another program truncates while it is
        // mapped would fault, as with every memory-mapped loader.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?);
        if pytorch::is_pytorch(&map) {
            let entries = pytorch::entries(&map).map_err(|problem| Error::Format {
                path: path.clone(),
                problem: format!("a PyTorch file, but {problem}"),
                hint: "fetch it again, or save its state dictionary alone, best as safetensors".into(),
            })?;
            return Ok(Self { path, map, entries, metadata: BTreeMap::new() });
        }
        let (header, meta) = SafeTensors::read_metadata(&map).map_err(|e| bad(format!("bad safetensors header ({e})")))?;
        SafeTensors::deserialize(&map).map_err(|e| bad(format!("bad safetensors file ({e})")))?;
        let mut entries = BTreeMap::new();
        for (name, info) in meta.tensors() {
            let kind = kind_of(info.dtype).ok_or_else(|| bad(format!("tensor `{name}` has the unsupported type {:?}", info.dtype)))?;
            let (start, end) = info.data_offsets;
            entries.insert(
                name,
                Entry {
                    kind,
                    shape: info.shape.iter().map(|&n| n as i64).collect(),
                    strides: None,
                    start: 8 + header + start,
                    end: 8 + header + end,
                },
            );
        }
        let metadata = meta.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(Self { path, map, entries, metadata })
    }

    /// The same mapped file with other entries.
    pub(super) fn with_entries(&self, entries: BTreeMap<String, Entry>) -> Self {
        Self { path: self.path.clone(), map: self.map.clone(), entries, metadata: self.metadata.clone() }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The `__metadata__` strings.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names and shapes, ordered by name.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.entries.iter().map(|(name, e)| (name.as_str(), e.shape.as_slice()))
    }

    /// Whether the file holds `name`.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The shape of `name`.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|e| e.shape.as_slice())
    }

    /// The type of `name`.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.entries.get(name).map(|e| e.kind)
    }

    /// Keeps the tensors to which `rename` gives a name, under that name.
    pub fn retain(&mut self, rename: impl Fn(&str) -> Option<String>) {
        let entries = std::mem::take(&mut self.entries);
        self.entries = entries.into_iter().filter_map(|(key, e)| Some((rename(&key)?, e))).collect();
    }

    /// The tensor `name` on the CPU, in the file's own type; `None` when the file has no such name.
    ///
    /// # Errors
    /// [`Error::Torch`] when libtorch refuses the shape.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        self.kind(name).map_or(Ok(None), |kind| self.tensor_as(name, Device::Cpu, kind))
    }

    /// Rows of the tensor `name` along its first dimension, on the CPU, in the file's own type; nothing else of it is read.
    /// `None` when the file has no such name.
    ///
    /// # Shapes
    /// `[N, ..] -> [rows.len(), ..]`
    ///
    /// # Errors
    /// [`Error::Input`] for a row that it has not, [`Error::Torch`] when libtorch refuses the shape.
    pub fn rows(&self, name: &str, rows: &[u64]) -> Result<Option<Tensor>> {
        let Some(e) = self.entries.get(name) else { return Ok(None) };
        let all = e.shape.first().copied().unwrap_or(0) as usize;
        if let Some(beyond) = rows.iter().find(|row| **row as usize >= all) {
            return Err(Error::Input { name: name.into(), expected: format!("a row below {all}"), got: beyond.to_string() });
        }
        if e.strides.is_some() {
            let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
            return self.tensor(name)?.map(|t| Ok(t.f_index_select(0, &Tensor::from_slice(&index))?)).transpose();
        }
        let size = (e.end - e.start) / all.max(1);
        let mut bytes = Vec::with_capacity(rows.len() * size);
        for &row in rows {
            let start = e.start + row as usize * size;
            bytes.extend_from_slice(&self.map[start..start + size]);
            self.release(start..start + size);
        }
        let shape: Vec<i64> = std::iter::once(rows.len() as i64).chain(e.shape.iter().skip(1).copied()).collect();
        Ok(Some(Tensor::f_from_data_size(&bytes, &shape, e.kind)?))
    }

    /// The tensor `name` on a device and in a type, made from the mapped bytes themselves: a copy in the file's type beside each tensor
    /// would leave gaps in memory, a fifth of a large network in all.
    pub(super) fn tensor_as(&self, name: &str, device: Device, kind: Kind) -> Result<Option<Tensor>> {
        let Some(e) = self.entries.get(name) else { return Ok(None) };
        let bytes = &self.map[e.start..e.end];
        let mapped = {
            let size = e.kind.elt_size_in_bytes();
            let is_safetensors = self.map.get(8) == Some(&b'{');
            let dense = is_safetensors && bytes.len() == size * e.shape.iter().product::<i64>() as usize;
            dense && !bytes.is_empty() && (bytes.as_ptr() as usize).is_multiple_of(size)
        };
        if !mapped {
            let copied = match &e.strides {
                None => Tensor::f_from_data_size(bytes, &e.shape, e.kind)?,
                Some(strides) => {
                    let span = (bytes.len() / e.kind.elt_size_in_bytes()) as i64;
                    Tensor::f_from_data_size(bytes, &[span], e.kind)?.f_as_strided(&e.shape, strides, 0)?.f_contiguous()?
                }
            };
            self.release(e.start..e.end);
            return Ok(Some(copied.f_to_device(device)?.f_to_kind(kind)?));
        }
        let strides: Vec<i64> = (1..=e.shape.len()).map(|i| e.shape[i..].iter().product()).collect();
        // SAFETY: the bytes are those of a dense tensor of this shape and type, aligned for it; nothing writes to the view, and it is
        // gone before the map is: the result has memory of its own, on another device or as a copy.
        let view = unsafe { Tensor::f_from_blob(bytes.as_ptr(), &e.shape, &strides, e.kind, Device::Cpu) }?;
        let made = match device {
            Device::Cpu => view.f_to_dtype(kind, false, true)?,
            _ => view.f_to_device(device)?.f_to_kind(kind)?,
        };
        drop(view);
        self.release(e.start..e.end);
        Ok(Some(made))
    }

    /// Gives the pages of what was read back to the system, so that a file and its copy are never in memory at once.
    fn release(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the map is read-only and backed by a file, so a page that is dropped comes back from there unchanged.
            // Advice that the system refuses costs nothing but memory.
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }

    /// All tensors.
    ///
    /// # Errors
    /// As [`TensorFile::tensor`].
    pub fn tensors(&self) -> Result<Tensors> {
        let mut out = Tensors::new();
        for name in self.entries.keys() {
            if let Some(t) = self.tensor(name)? {
                out.insert(name.clone(), t);
            }
        }
        Ok(out)
    }

    /// SHA-256 of the whole file, in hexadecimal.
    pub fn sha256(&self) -> String {
        const CHUNK: usize = 32 << 20;
        let mut hasher = Sha256::new();
        for start in (0..self.map.len()).step_by(CHUNK) {
            let end = self.map.len().min(start + CHUNK);
            hasher.update(&self.map[start..end]);
            self.release(start..end);
        }
        hex(&hasher.finalize())
    }
}

fn kind_of(dtype: safetensors::Dtype) -> Option<Kind> {
    use safetensors::Dtype;
    Some(match dtype {
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

fn dtype_name(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Half => "F16",
        Kind::BFloat16 => "BF16",
        Kind::Float => "F32",
        Kind::Double => "F64",
        Kind::Int64 => "I64",
        Kind::Int => "I32",
        Kind::Uint8 => "U8",
        Kind::Bool => "BOOL",
        _ => return None,
    })
}

/// Writes `tensors` and `metadata` as one safetensors file, whole or not at all.
///
/// Floating tensors are stored as `kind` when it is given, others as they are. The safetensors crate keeps metadata in an
/// unordered map; the header is written here so that the same content always gives the same bytes.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be written, [`Error::Torch`] when a tensor cannot be read.
pub fn save_tensors(path: impl AsRef<Path>, tensors: &Tensors, metadata: &BTreeMap<String, String>, kind: Option<Kind>) -> Result<()> {
    let path = path.as_ref();
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::to_value(metadata).expect("strings are JSON"));
    }
    let stored = |t: &Tensor| if t.is_floating_point() { kind.unwrap_or(t.kind()) } else { t.kind() };
    let mut offset = 0usize;
    for (name, t) in tensors {
        let kind = stored(t);
        let dtype = dtype_name(kind).ok_or_else(|| Error::Input {
            name: name.clone(),
            expected: "a type that safetensors can hold".into(),
            got: format!("{kind:?}"),
        })?;
        let size = t.numel() * kind.elt_size_in_bytes();
        header.insert(name.clone(), serde_json::json!({"dtype": dtype, "shape": t.size(), "data_offsets": [offset, offset + size]}));
        offset += size;
    }
    let mut head = serde_json::to_vec(&header).expect("a header of strings and numbers is JSON");
    head.resize(head.len().next_multiple_of(8), b' ');

    let written = artifact::write_whole(path, |file| {
        let mut out = BufWriter::new(file);
        out.write_all(&(head.len() as u64).to_le_bytes())?;
        out.write_all(&head)?;
        for t in tensors.values() {
            let t = t.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(stored(t))?.f_contiguous()?;
            let size = t.numel() * t.kind().elt_size_in_bytes();
            if size > 0 {
                // SAFETY: a contiguous tensor on the CPU has `size` bytes from its data pointer on, and is alive here.
                let bytes = unsafe { std::slice::from_raw_parts(t.data_ptr().cast::<u8>(), size) };
                out.write_all(bytes)?;
            }
        }
        Ok(out.flush()?)
    });
    written.map_err(|failure| match failure {
        Failure::Io(source) => Error::io(path)(source),
        Failure::Torch(error) => Error::Torch(error),
    })
}

/// What can fail while a tensor is written.
enum Failure {
    Io(io::Error),
    Torch(TchError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<TchError> for Failure {
    fn from(error: TchError) -> Self {
        Self::Torch(error)
    }
}

/// Finds the weight files of a component's folder: `<stem>.safetensors`, its `fp16` variant, or the shards of its index; where
/// there is none of them, the same of PyTorch's `.bin` form.
///
/// # Errors
/// [`Error::Format`] when none is there.
pub fn component_files(dir: &Path, stem: &str) -> Result<Vec<PathBuf>> {
    // transformers names its files `model.safetensors` and `pytorch_model.bin`.
    let old = if stem == "model" { "pytorch_model" } else { stem };
    let whole = [format!("{stem}.safetensors"), format!("{stem}.fp16.safetensors")];
    let whole_old = [format!("{old}.bin"), format!("{old}.fp16.bin")];
    for (whole, index) in [(whole, format!("{stem}.safetensors.index.json")), (whole_old, format!("{old}.bin.index.json"))] {
        if let Some(file) = whole.iter().map(|name| dir.join(name)).find(|file| file.is_file()) {
            return Ok(vec![file]);
        }
        let index = dir.join(index);
        if index.is_file() {
            return shards(dir, &index);
        }
    }
    Err(Error::Format {
        path: dir.into(),
        problem: format!("no `{stem}.safetensors`, `{stem}.fp16.safetensors` or `{stem}.safetensors.index.json`, nor `{old}.bin`"),
        hint: "name a diffusers model directory, or the component's folder in it".into(),
    })
}

fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(Error::io(index))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| Error::Format {
        path: index.into(),
        problem: format!("bad index ({e})"),
        hint: "fetch it again".into(),
    })?;
    let files: std::collections::BTreeSet<_> = parsed.weight_map.values().cloned().collect();
    Ok(files.into_iter().map(|f| dir.join(f)).collect())
}
