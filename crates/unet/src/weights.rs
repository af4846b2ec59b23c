//! Weights in and out: the only module that opens weight files. First arrow of the flow (weights -> U-Net), and the last (pruned model -> files).
//!
//! A network is built by walking a [`Cursor`] along the checkpoint's own key names and asking for each tensor with its shape.
//! Nothing fails while the network is built; [`Weights::finish`] then says everything that did not fit at once.

mod files;
mod folder;
mod header;
mod identify;
mod pickle;
mod pytorch;
mod quantised;
mod view;
mod weight_name;
mod write;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use artifact::nearest;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

pub use files::TensorFile;
pub use folder::{component_files, indexed_files};
pub(crate) use folder::{index_of_shard, is_index, is_weights};
pub use identify::{Known, identify};
pub use view::{Form, Slice};
pub use weight_name::{WeightFile, WeightName};
pub use write::{Piece, check_pieces, save_pieces, save_tensors};

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

#[derive(Debug)]
enum Source {
    Files(Vec<TensorFile>),
    /// Files of which shapes are checked and nothing is read: every tensor is zero.
    Headers(Vec<TensorFile>),
    Tensors(Tensors),
    /// What is missing is zero.
    Padded(Tensors),
    Random {
        seed: u64,
    },
}

#[derive(Debug)]
struct Inner {
    source: Source,
    device: Device,
    kind: Kind,
    /// The file that tensors in memory came from.
    origin: Option<PathBuf>,
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
    /// Parameters from weight files, brought to `device` and `kind`.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn open(files: &[PathBuf], device: Device, kind: Kind) -> Result<Self> {
        let files = files.iter().map(|file| TensorFile::open(file)?.dequantised()).collect::<Result<Vec<_>>>()?;
        Ok(Self::from_files(files, device, kind))
    }

    /// Parameters from one opened file, under the names that it has now.
    pub fn from_file(file: TensorFile, device: Device, kind: Kind) -> Self {
        Self::from_files(vec![file], device, kind)
    }

    /// Parameters from several opened files, under the names that they have now.
    pub(crate) fn from_files(files: Vec<TensorFile>, device: Device, kind: Kind) -> Self {
        Self::new(Source::Files(files), device, kind)
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

    /// As [`Weights::from_tensors`], with zeros for everything that `tensors` lack. They take no memory of their own.
    pub(crate) fn padded(tensors: Tensors) -> Self {
        let (device, kind) = tensors.values().next().map_or((Device::Cpu, Kind::Float), |t| (t.device(), t.kind()));
        Self::new(Source::Padded(tensors), device, kind)
    }

    /// As [`Weights::from_files`], reading headers alone: what does not fit is found, and every tensor is zeros that take no memory.
    pub(crate) fn headers(files: Vec<TensorFile>) -> Self {
        Self::new(Source::Headers(files), Device::Cpu, Kind::Float)
    }

    fn new(source: Source, device: Device, kind: Kind) -> Self {
        let inner = Inner { source, device, kind, origin: None, taken: Tensors::new(), report: LoadReport::default(), failure: None };
        Self { inner: Rc::new(RefCell::new(inner)) }
    }

    /// Says which file tensors in memory were read from, for the error of [`Weights::finish`].
    pub fn named(self, path: &Path) -> Self {
        self.inner.borrow_mut().origin = Some(path.into());
        self
    }

    /// The root of the names.
    pub fn root(&self) -> Cursor {
        Cursor { inner: self.inner.clone(), prefix: String::new() }
    }

    /// The `__metadata__` of the first file.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        match &self.inner.borrow().source {
            Source::Files(files) | Source::Headers(files) => files.first().map(|f| f.metadata().clone()).unwrap_or_default(),
            Source::Random { .. } | Source::Tensors(_) | Source::Padded(_) => BTreeMap::new(),
        }
    }

    /// Marks keys that the files may hold without the network asking for them (position ids and other buffers).
    pub fn ignore(&self, matches: impl Fn(&str) -> bool) {
        match &mut self.inner.borrow_mut().source {
            Source::Files(files) | Source::Headers(files) => files.iter_mut().for_each(|f| f.entries.retain(|k, _| !matches(k))),
            Source::Tensors(tensors) | Source::Padded(tensors) => tensors.retain(|k, _| !matches(k)),
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
            Source::Files(files) | Source::Headers(files) => files.iter().flat_map(|f| f.entries.keys()).collect(),
            Source::Tensors(tensors) | Source::Padded(tensors) => tensors.keys().collect(),
            Source::Random { .. } => Vec::new(),
        };
        if !matches!(inner.source, Source::Random { .. }) {
            report.unexpected = names.iter().filter(|n| !taken.contains_key(**n)).map(|n| n.to_string()).collect();
            report.unexpected.sort();
            // Hints are costly; the first few tell what went wrong.
            for (key, hint) in report.missing.iter_mut().take(HINTS) {
                let free = names.iter().map(|n| n.as_str()).filter(|n| !taken.contains_key(*n));
                *hint = nearest(key, free).map(str::to_string);
            }
            if !report.is_clean() {
                let path = match &inner.source {
                    Source::Files(files) | Source::Headers(files) => {
                        files.iter().map(|f| f.path.display().to_string()).collect::<Vec<_>>().join(", ")
                    }
                    _ => inner.origin.as_ref().map_or("tensors in memory".to_string(), |p| p.display().to_string()),
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
            Source::Files(files) | Source::Headers(files) => files.iter().any(|f| f.entries.contains_key(&self.key(name))),
            Source::Tensors(tensors) => tensors.contains_key(&self.key(name)),
            Source::Random { .. } | Source::Padded(_) => true,
        }
    }

    /// The parameter `name` of this shape. What does not fit is remembered for [`Weights::finish`] and replaced by zeros here.
    pub fn tensor(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let key = self.key(name);
        let mut inner = self.inner.borrow_mut();
        let (device, kind) = (inner.device, inner.kind);
        let made = match &inner.source {
            Source::Random { seed } => Some(fresh(*seed, &key, shape, init, device, kind)),
            Source::Padded(tensors) if !tensors.contains_key(&key) => Some(placeholder(shape, device, kind)),
            Source::Tensors(tensors) | Source::Padded(tensors) => match tensors.get(&key).map(Tensor::shallow_clone) {
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
            Source::Files(files) | Source::Headers(files) => match files.iter().find(|f| f.entries.contains_key(&key)) {
                None => {
                    inner.report.missing.push((key.clone(), None));
                    None
                }
                Some(f) if f.entries[&key].shape != shape => {
                    let got = f.entries[&key].shape.clone();
                    inner.report.mismatched.push((key.clone(), shape.to_vec(), got));
                    None
                }
                Some(_) if matches!(&inner.source, Source::Headers(_)) => {
                    inner.report.loaded.push(key.clone());
                    None
                }
                Some(f) => match f.tensor_as(&key, device, kind) {
                    Ok(t) => {
                        inner.report.loaded.push(key.clone());
                        t
                    }
                    Err(e) => {
                        inner.failure.get_or_insert(e);
                        None
                    }
                },
            },
        };
        let t = made.unwrap_or_else(|| placeholder(shape, device, kind));
        inner.taken.insert(key, t.shallow_clone());
        t
    }
}

/// Missing keys that are compared with every key of the files.
const HINTS: usize = 16;

/// Runs `draw` right after seeding libtorch's CPU generator. That generator is one for the whole process, so seeding and drawing
/// must not be interleaved with another thread's: all of this project's draws go through here. `draw` must not call it again.
pub fn seeded<T>(seed: i64, draw: impl FnOnce() -> T) -> T {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _ours = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    draw()
}

/// Zeros that take no memory, whatever size a configuration asks for; of ones where there are more numbers than can be counted.
fn placeholder(shape: &[i64], device: Device, kind: Kind) -> Tensor {
    let zero = Tensor::zeros([1; 0], (kind, device));
    zero.f_expand(shape, false).unwrap_or_else(|_| zero.expand(vec![1; shape.len()], false))
}

fn fresh(seed: u64, key: &str, shape: &[i64], init: Init, device: Device, kind: Kind) -> Tensor {
    let digest = Sha256::digest(key.as_bytes());
    let name_seed = u64::from_le_bytes(digest[..8].try_into().expect("eight bytes"));
    // Drawn on the CPU, so that every device gets the same values.
    let opts = (Kind::Float, Device::Cpu);
    let t = seeded(((seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ name_seed) >> 1) as i64, || match init {
        Init::Zeros => Tensor::zeros(shape, opts),
        Init::Ones => Tensor::ones(shape, opts),
        Init::Normal(std) => Tensor::randn(shape, opts) * std,
        Init::Uniform(bound) => Tensor::rand(shape, opts) * (2.0 * bound) - bound,
    });
    t.to_device(device).to_kind(kind)
}
