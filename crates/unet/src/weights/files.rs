//! Weight files as they are read: by memory map, safetensors and PyTorch's own; file -> **tensors**, each when it is asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::hex;
use memmap2::Mmap;
use safetensors::Dtype;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::{Tensors, header, identify, pytorch, quantised};
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
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<i64>,
    /// Steps between elements, where they are not those of a dense tensor.
    pub(super) strides: Option<Vec<i64>>,
    pub(super) start: usize,
    pub(super) end: usize,
    /// What the numbers are to be multiplied with: one factor, or one per row.
    pub(super) scale: Option<Box<Entry>>,
}

impl Entry {
    fn numel(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }
}

impl TensorFile {
    /// Opens `path`, a safetensors file or one that PyTorch wrote, and checks its header; tensor bytes are read when they are
    /// asked for. Nothing in a PyTorch file is executed. Its nested dictionaries become names with dots.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::Format`] when it is neither (then it says what it is, where that can be told),
    /// or damaged, or asks for a Python object that runs programs.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(Error::io(&path))?;
        let bad = |problem: String, hint: &str| Error::Format { path: path.clone(), problem, hint: hint.into() };
        let about = file.metadata().map_err(Error::io(&path))?;
        if about.is_dir() {
            return Err(bad("a folder, where a file of weights was expected".into(), "name the file in it"));
        }
        if about.len() == 0 {
            return Err(bad("the file is empty".into(), "fetch it again"));
        }
        // SAFETY: the map is read-only and private to this process; a file that another program truncates while it is
        // mapped would fault, as with every memory-mapped loader.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?);
        if pytorch::is_pytorch(&map) {
            let read = pytorch::entries(&map).map_err(|problem| match problem.starts_with("a zip archive of") {
                true => bad(problem, "unpack it and name the file of weights in it"),
                false => {
                    bad(format!("a PyTorch file, but {problem}"), "fetch it again, or save its state dictionary alone, best as safetensors")
                }
            })?;
            if !read.objects.is_empty() {
                tracing::debug!("{}: Python objects that say nothing of weights: {}", path.display(), read.objects.join(", "));
            }
            return Ok(Self { path, map, entries: read.entries, metadata: BTreeMap::new() });
        }
        if let Some(known) = identify::bytes(&map) {
            return Err(bad(known.what.into(), known.next));
        }
        let (entries, metadata) = header::read(&map).map_err(|problem| bad(problem, "is the download complete? fetch it again"))?;
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

    /// The type of `name`; `None` when the file has no such name, or libtorch no such type. That of a scaled tensor is f32, since its
    /// numbers are products.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.entries.get(name).and_then(|e| if e.scale.is_some() { Some(Kind::Float) } else { kind_of(e.dtype) })
    }

    /// The type and shape in which `name` is stored.
    pub(super) fn stored(&self, name: &str) -> Option<(Dtype, &[i64])> {
        self.entries.get(name).map(|e| (if e.scale.is_some() { Dtype::F32 } else { e.dtype }, e.shape.as_slice()))
    }

    /// The bytes of `name` as safetensors would store it as `dtype`, where the file holds just these.
    pub(super) fn dense(&self, name: &str, dtype: Dtype) -> Option<&[u8]> {
        let e = self.entries.get(name).filter(|e| e.dtype == dtype && e.strides.is_none() && e.scale.is_none())?;
        Some(&self.map[e.start..e.end])
    }

    /// Whether the numbers of `name` are to be multiplied before they are weights.
    pub(crate) fn is_scaled(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|e| e.scale.is_some())
    }

    /// Whether the numbers of `name` take 8 bits.
    pub(crate) fn is_eight_bit(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|e| e.dtype.bitsize() == 8)
    }

    /// Gives the pages of `name` back to the system.
    pub(super) fn release_tensor(&self, name: &str) {
        if let Some(e) = self.entries.get(name) {
            self.release(e.start..e.end);
        }
    }

    /// The same file with scaled 8-bit tensors ready to be multiplied out, without the tensors that say how.
    ///
    /// # Errors
    /// [`Error::Format`] for a quantisation that is not known.
    pub fn dequantised(mut self) -> Result<Self> {
        let read = |e: &Entry| self.map[e.start..e.end].to_vec();
        let entries = quantised::fold_scales(std::mem::take(&mut self.entries), read).map_err(|(problem, hint)| Error::Format {
            path: self.path.clone(),
            problem,
            hint,
        })?;
        self.entries = entries;
        Ok(self)
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
        match (self.kind(name), self.entries.get(name)) {
            (Some(kind), _) => self.tensor_as(name, Device::Cpu, kind),
            (None, None) => Ok(None),
            (None, Some(e)) => Err(self.no_kind(name, e)),
        }
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
        let Some(kind) = kind_of(e.dtype).filter(|_| e.strides.is_none() && e.scale.is_none()) else {
            let index: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
            return self.tensor(name)?.map(|t| Ok(t.f_index_select(0, &Tensor::from_slice(&index))?)).transpose();
        };
        let size = (e.end - e.start) / all.max(1);
        let mut bytes = Vec::with_capacity(rows.len() * size);
        for &row in rows {
            let start = e.start + row as usize * size;
            bytes.extend_from_slice(&self.map[start..start + size]);
            self.release(start..start + size);
        }
        let shape: Vec<i64> = std::iter::once(rows.len() as i64).chain(e.shape.iter().skip(1).copied()).collect();
        Ok(Some(Tensor::f_from_data_size(&bytes, &shape, kind)?))
    }

    /// The tensor `name` on a device and in a type, made from the mapped bytes themselves: a copy in the file's type beside each tensor
    /// would leave gaps in memory, a fifth of a large network in all.
    pub(super) fn tensor_as(&self, name: &str, device: Device, kind: Kind) -> Result<Option<Tensor>> {
        let Some(e) = self.entries.get(name) else { return Ok(None) };
        let stored = kind_of(e.dtype).ok_or_else(|| self.no_kind(name, e))?;
        let Some(scale) = &e.scale else { return Ok(Some(self.read(e, stored, device, kind)?)) };
        let factors = self.read(scale, kind_of(scale.dtype).ok_or_else(|| self.no_kind(name, scale))?, Device::Cpu, Kind::Float)?;
        let mut shape = vec![1; e.shape.len()];
        if let (Some(rows), true) = (shape.first_mut(), factors.numel() > 1) {
            *rows = factors.numel() as i64;
        }
        let product = self.read(e, stored, Device::Cpu, Kind::Float)?.f_mul(&factors.f_reshape(&shape)?)?;
        Ok(Some(product.f_to_device(device)?.f_to_kind(kind)?))
    }

    fn no_kind(&self, name: &str, e: &Entry) -> Error {
        Error::Format {
            path: self.path.clone(),
            problem: format!("tensor `{name}` has the unsupported type {}", e.dtype),
            hint: "convert the file to f16, bf16 or f32".into(),
        }
    }

    fn read(&self, e: &Entry, stored: Kind, device: Device, kind: Kind) -> Result<Tensor> {
        let bytes = &self.map[e.start..e.end];
        let size = stored.elt_size_in_bytes();
        let mapped = e.strides.is_none() && !bytes.is_empty() && (bytes.as_ptr() as usize).is_multiple_of(size);
        if !mapped {
            let copied = match &e.strides {
                None => Tensor::f_from_data_size(bytes, &e.shape, stored)?,
                Some(strides) => {
                    let span = (bytes.len() / size) as i64;
                    if e.numel() > LARGEST_EXPANDED.max(span as usize) {
                        return Err(Error::Format {
                            path: self.path.clone(),
                            problem: format!("a tensor of shape {:?} repeats {span} numbers", e.shape),
                            hint: "save it again with `.contiguous()`".into(),
                        });
                    }
                    Tensor::f_from_data_size(bytes, &[span], stored)?.f_as_strided(&e.shape, strides, 0)?.f_contiguous()?
                }
            };
            self.release(e.start..e.end);
            return Ok(copied.f_to_device(device)?.f_to_kind(kind)?);
        }
        let strides: Vec<i64> = (1..=e.shape.len()).map(|i| e.shape[i..].iter().product()).collect();
        // SAFETY: the bytes are those of a dense tensor of this shape and type, aligned for it; nothing writes to the view, and it is
        // gone before the map is: the result has memory of its own, on another device or as a copy.
        let view = unsafe { Tensor::f_from_blob(bytes.as_ptr(), &e.shape, &strides, stored, Device::Cpu) }?;
        let made = match device {
            Device::Cpu => view.f_to_dtype(kind, false, true)?,
            _ => view.f_to_device(device)?.f_to_kind(kind)?,
        };
        drop(view);
        self.release(e.start..e.end);
        Ok(made)
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

/// Numbers that a tensor may repeat beyond those that its file holds: a small file must not ask for endless memory.
const LARGEST_EXPANDED: usize = 1 << 24;

/// libtorch's type; `None` for those that it does not have or does not compute with.
pub(super) fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(d, _)| *d == dtype).map(|(_, kind)| *kind)
}

/// safetensors' type.
pub(super) fn dtype_of(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find(|(_, k)| *k == kind).map(|(dtype, _)| *dtype)
}

const KINDS: [(Dtype, Kind); 15] = [
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F32, Kind::Float),
    (Dtype::F64, Kind::Double),
    (Dtype::F8_E4M3, Kind::Float8e4m3fn),
    (Dtype::F8_E5M2, Kind::Float8e5m2),
    (Dtype::F8_E4M3FNUZ, Kind::Float8e4m3fnuz),
    (Dtype::F8_E5M2FNUZ, Kind::Float8e5m2fnuz),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I16, Kind::Int16),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
    (Dtype::C64, Kind::ComplexFloat),
];
