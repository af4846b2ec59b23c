//! Weights in and out: the only module that opens weight files. First arrow of the flow (weights -> U-Net), and the last (pruned model -> files).
//!
//! A network is built by walking a [`Cursor`] along the checkpoint's own key names and asking for each tensor with its shape.
//! Nothing fails while the network is built; [`Weights::finish`] then says everything that did not fit at once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use memmap2::Mmap;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Named tensors in the order of their names.
pub type Tensors = BTreeMap<String, Tensor>;

/// How a parameter starts when a network is made from nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in plus or minus this bound.
    Uniform(f64),
}

/// What loading found: every key that was used, and every one that did not fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Keys that were loaded.
    pub loaded: Vec<String>,
    /// Keys that the architecture needs and the files lack, each with the nearest key of the files, if one is near.
    pub missing: Vec<(String, Option<String>)>,
    /// Keys of the files that the architecture does not know.
    pub unexpected: Vec<String>,
    /// Keys whose shape differs: (key, expected, got).
    pub mismatched: Vec<(String, Vec<i64>, Vec<i64>)>,
}

impl LoadReport {
    /// True when every key fitted.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        write!(
            f,
            "{} loaded, {} missing, {} unexpected, {} of another shape",
            self.loaded.len(),
            self.missing.len(),
            self.unexpected.len(),
            self.mismatched.len()
        )?;
        for (key, hint) in self.missing.iter().take(SHOWN) {
            write!(f, "; missing `{key}`")?;
            if let Some(hint) = hint {
                write!(f, " (the file has `{hint}`)")?;
            }
        }
        for key in self.unexpected.iter().take(SHOWN) {
            write!(f, "; unexpected `{key}`")?;
        }
        for (key, expected, got) in self.mismatched.iter().take(SHOWN) {
            write!(f, "; `{key}`: expected shape {expected:?}, got {got:?}")?;
        }
        Ok(())
    }
}

/// One memory-mapped safetensors file.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct Entry {
    kind: Kind,
    shape: Vec<i64>,
    start: usize,
    end: usize,
}

impl TensorFile {
    /// Opens and checks the header of `path`; tensor bytes are read when they are asked for.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened, [`Error::Format`] when it is no intact safetensors file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(Error::io(&path))?;
        let bad = |problem: String| Error::Format {
            path: path.clone(),
            problem,
            hint: "is the file truncated, a Git LFS pointer, or not a safetensors file? fetch it again".into(),
        };
        if file.metadata().map_err(Error::io(&path))?.len() < 8 {
            return Err(bad("too short for a safetensors file".into()));
        }
        // SAFETY: the map is read-only and private to this process; a file that another program truncates while it is
        // mapped would fault, as with every memory-mapped loader.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
        let (header, meta) = SafeTensors::read_metadata(&map).map_err(|e| bad(format!("bad safetensors header ({e})")))?;
        SafeTensors::deserialize(&map).map_err(|e| bad(format!("bad safetensors file ({e})")))?;
        let mut entries = BTreeMap::new();
        for (name, info) in meta.tensors() {
            let kind = kind_of(info.dtype).ok_or_else(|| bad(format!("tensor `{name}` has the unsupported type {:?}", info.dtype)))?;
            let (start, end) = info.data_offsets;
            entries.insert(
                name,
                Entry { kind, shape: info.shape.iter().map(|&n| n as i64).collect(), start: 8 + header + start, end: 8 + header + end },
            );
        }
        let metadata = meta.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(Self { path, map, entries, metadata })
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

    /// The tensor `name` on the CPU, in the file's own type; `None` when the file has no such name.
    ///
    /// # Errors
    /// [`Error::Torch`] when libtorch refuses the shape.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(e) = self.entries.get(name) else { return Ok(None) };
        Ok(Some(Tensor::f_from_data_size(&self.map[e.start..e.end], &e.shape, e.kind)?))
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
        hex(&Sha256::digest(&self.map))
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
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

    let dir = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(Error::io(path))?;
    {
        let mut out = std::io::BufWriter::new(file.as_file_mut());
        out.write_all(&(head.len() as u64).to_le_bytes()).map_err(Error::io(path))?;
        out.write_all(&head).map_err(Error::io(path))?;
        for t in tensors.values() {
            let t = t.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(stored(t))?.f_contiguous()?;
            let mut bytes = vec![0u8; t.numel() * t.kind().elt_size_in_bytes()];
            t.f_copy_data_u8(&mut bytes, t.numel())?;
            out.write_all(&bytes).map_err(Error::io(path))?;
        }
        out.flush().map_err(Error::io(path))?;
    }
    file.as_file().sync_all().map_err(Error::io(path))?;
    set_public_mode(file.path()).map_err(Error::io(path))?;
    file.persist(path).map_err(|e| Error::Io { path: path.into(), source: e.error })?;
    Ok(())
}

// A temporary file is private to its owner; a result is as readable as any other file.
pub(crate) fn set_public_mode(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Finds the weight files of a diffusers component folder: `<stem>.safetensors`, its `fp16` variant, or the shards of its index.
///
/// # Errors
/// [`Error::Format`] when none is there.
pub fn component_files(dir: &Path, stem: &str) -> Result<Vec<PathBuf>> {
    for name in [format!("{stem}.safetensors"), format!("{stem}.fp16.safetensors")] {
        let file = dir.join(name);
        if file.is_file() {
            return Ok(vec![file]);
        }
    }
    let index = dir.join(format!("{stem}.safetensors.index.json"));
    if index.is_file() {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = std::fs::read_to_string(&index).map_err(Error::io(&index))?;
        let parsed: Index = serde_json::from_str(&text).map_err(|e| Error::Format {
            path: index.clone(),
            problem: format!("bad index ({e})"),
            hint: "fetch it again".into(),
        })?;
        let files: std::collections::BTreeSet<_> = parsed.weight_map.values().cloned().collect();
        return Ok(files.into_iter().map(|f| dir.join(f)).collect());
    }
    Err(Error::Format {
        path: dir.into(),
        problem: format!("no `{stem}.safetensors`, `{stem}.fp16.safetensors` or `{stem}.safetensors.index.json`"),
        hint: "name a diffusers model directory, or the component's folder in it".into(),
    })
}

#[derive(Debug)]
enum Source {
    Files(Vec<TensorFile>),
    Tensors(Tensors),
    Random { seed: u64 },
}

#[derive(Debug)]
struct Inner {
    source: Source,
    device: Device,
    kind: Kind,
    taken: Tensors,
    report: LoadReport,
    failure: Option<Error>,
}

/// Where a network's parameters come from while it is built, and what it took.
#[derive(Debug)]
pub struct Weights {
    inner: Rc<RefCell<Inner>>,
}

/// A place in the tree of key names. `cursor.pp("down_blocks").pp(0)` is the prefix `down_blocks.0`.
#[derive(Debug, Clone)]
pub struct Cursor {
    inner: Rc<RefCell<Inner>>,
    prefix: String,
}

impl Weights {
    /// Parameters from safetensors files, brought to `device` and `kind`.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn open(files: &[PathBuf], device: Device, kind: Kind) -> Result<Self> {
        let files = files.iter().map(TensorFile::open).collect::<Result<Vec<_>>>()?;
        Ok(Self::new(Source::Files(files), device, kind))
    }

    /// Fresh parameters; each one's values depend on `seed` and its own name only, so the order of construction does not matter.
    pub fn random(seed: u64, device: Device, kind: Kind) -> Self {
        Self::new(Source::Random { seed }, device, kind)
    }

    /// Parameters that are already in memory, taken as they are (same storage, same place in the autograd graph). With
    /// `tensors` cast from trainable masters this builds a network that computes in another type and still trains the masters.
    pub fn from_tensors(tensors: Tensors) -> Self {
        let (device, kind) = tensors.values().next().map_or((Device::Cpu, Kind::Float), |t| (t.device(), t.kind()));
        Self::new(Source::Tensors(tensors), device, kind)
    }

    fn new(source: Source, device: Device, kind: Kind) -> Self {
        let inner = Inner { source, device, kind, taken: Tensors::new(), report: LoadReport::default(), failure: None };
        Self { inner: Rc::new(RefCell::new(inner)) }
    }

    /// The root of the names.
    pub fn root(&self) -> Cursor {
        Cursor { inner: self.inner.clone(), prefix: String::new() }
    }

    /// The `__metadata__` of the first file.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        match &self.inner.borrow().source {
            Source::Files(files) => files.first().map(|f| f.metadata().clone()).unwrap_or_default(),
            Source::Random { .. } | Source::Tensors(_) => BTreeMap::new(),
        }
    }

    /// Marks keys that the files may hold without the network asking for them (position ids and other buffers).
    pub fn ignore(&self, matches: impl Fn(&str) -> bool) {
        match &mut self.inner.borrow_mut().source {
            Source::Files(files) => files.iter_mut().for_each(|f| f.entries.retain(|k, _| !matches(k))),
            Source::Tensors(tensors) => tensors.retain(|k, _| !matches(k)),
            Source::Random { .. } => {}
        }
    }

    /// Ends construction: the tensors that the network took (the very ones it holds), by name, and the report.
    ///
    /// # Errors
    /// [`Error::Weights`] when any key is missing, unexpected or mis-shaped.
    pub fn finish(self) -> Result<(Tensors, LoadReport)> {
        let mut inner = self.inner.borrow_mut();
        if let Some(e) = inner.failure.take() {
            return Err(e);
        }
        let mut report = std::mem::take(&mut inner.report);
        let taken = std::mem::take(&mut inner.taken);
        let names: Vec<&String> = match &inner.source {
            Source::Files(files) => files.iter().flat_map(|f| f.entries.keys()).collect(),
            Source::Tensors(tensors) => tensors.keys().collect(),
            Source::Random { .. } => Vec::new(),
        };
        if !matches!(inner.source, Source::Random { .. }) {
            report.unexpected = names.iter().filter(|n| !taken.contains_key(**n)).map(|n| n.to_string()).collect();
            report.unexpected.sort();
            for (key, hint) in &mut report.missing {
                *hint = names
                    .iter()
                    .map(|n| (strsim::levenshtein(n, key), n))
                    .filter(|(d, n)| *d * 4 <= key.len() && !taken.contains_key(n.as_str()))
                    .min()
                    .map(|(_, n)| n.to_string());
            }
            if !report.is_clean() {
                let path = match &inner.source {
                    Source::Files(files) => files.iter().map(|f| f.path.display().to_string()).collect::<Vec<_>>().join(", "),
                    _ => "tensors in memory".to_string(),
                };
                return Err(Error::Weights { path, report });
            }
        }
        Ok((taken, report))
    }
}

impl Cursor {
    /// One step down.
    pub fn pp(&self, name: impl fmt::Display) -> Cursor {
        Cursor { inner: self.inner.clone(), prefix: self.key(&name.to_string()) }
    }

    /// The prefix so far, without a trailing dot.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// The tensors taken so far below this prefix (the very ones that were handed out), named without the prefix.
    pub fn taken(&self) -> Tensors {
        let inner = self.inner.borrow();
        let below = if self.prefix.is_empty() { String::new() } else { format!("{}.", self.prefix) };
        let named = inner.taken.iter().filter_map(|(key, t)| Some((key.strip_prefix(&below)?.to_string(), t.shallow_clone())));
        named.collect()
    }

    /// True when the source holds `name` below this prefix (always, for fresh parameters).
    pub fn has(&self, name: &str) -> bool {
        match &self.inner.borrow().source {
            Source::Files(files) => files.iter().any(|f| f.entries.contains_key(&self.key(name))),
            Source::Tensors(tensors) => tensors.contains_key(&self.key(name)),
            Source::Random { .. } => true,
        }
    }

    /// The parameter `name` of this shape. What does not fit is remembered for [`Weights::finish`] and replaced by zeros here.
    pub fn tensor(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let key = self.key(name);
        let mut inner = self.inner.borrow_mut();
        let (device, kind) = (inner.device, inner.kind);
        let made = match &inner.source {
            Source::Random { seed } => Some(fresh(*seed, &key, shape, init, device, kind)),
            Source::Tensors(tensors) => match tensors.get(&key).map(Tensor::shallow_clone) {
                None => {
                    inner.report.missing.push((key.clone(), None));
                    None
                }
                Some(t) if t.size() != shape => {
                    inner.report.mismatched.push((key.clone(), shape.to_vec(), t.size()));
                    None
                }
                Some(t) => {
                    inner.report.loaded.push(key.clone());
                    Some(t)
                }
            },
            Source::Files(files) => match files.iter().find(|f| f.entries.contains_key(&key)) {
                None => {
                    inner.report.missing.push((key.clone(), None));
                    None
                }
                Some(f) if f.entries[&key].shape != shape => {
                    let got = f.entries[&key].shape.clone();
                    inner.report.mismatched.push((key.clone(), shape.to_vec(), got));
                    None
                }
                Some(f) => match f.tensor(&key).and_then(|t| match t {
                    Some(t) => Ok(t.f_to_device(device)?.f_to_kind(kind)?),
                    None => Ok(fresh(0, &key, shape, Init::Zeros, device, kind)),
                }) {
                    Ok(t) => {
                        inner.report.loaded.push(key.clone());
                        Some(t)
                    }
                    Err(e) => {
                        inner.failure.get_or_insert(e);
                        None
                    }
                },
            },
        };
        let t = made.unwrap_or_else(|| Tensor::zeros(shape, (kind, device)));
        inner.taken.insert(key, t.shallow_clone());
        t
    }
}

fn fresh(seed: u64, key: &str, shape: &[i64], init: Init, device: Device, kind: Kind) -> Tensor {
    let digest = Sha256::digest(key.as_bytes());
    let name_seed = u64::from_le_bytes(digest[..8].try_into().expect("eight bytes"));
    tch::manual_seed(((seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ name_seed) >> 1) as i64);
    // Drawn on the CPU, so that every device gets the same values.
    let opts = (Kind::Float, Device::Cpu);
    let t = match init {
        Init::Zeros => Tensor::zeros(shape, opts),
        Init::Ones => Tensor::ones(shape, opts),
        Init::Normal(std) => Tensor::randn(shape, opts) * std,
        Init::Uniform(bound) => Tensor::rand(shape, opts) * (2.0 * bound) - bound,
    };
    t.to_device(device).to_kind(kind)
}
