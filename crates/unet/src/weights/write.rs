//! Weight files as this project writes them: safetensors, whole or not at all, the same bytes for the same content.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, TchError, Tensor};

use super::Tensors;
use super::files::{TensorFile, dtype_of, kind_of};
use crate::error::{Error, Result};

/// Where the numbers of one written tensor come from.
#[derive(Debug, Clone)]
pub enum Piece<'a> {
    /// A tensor in memory, stored as a type.
    Tensor(&'a Tensor, Kind),
    /// A tensor of another file: as a type, or, without one, byte for byte in whatever type it has there. It is read when it is written.
    Stored(&'a TensorFile, &'a str, Option<Kind>),
    /// Tensors of other files, one behind the other along the first dimension; read when they are written.
    Joined(Vec<(&'a TensorFile, String)>),
    /// Zeros of a shape, stored as a type.
    Zeros(Vec<i64>, Kind),
}

/// The type and shape under which a piece is written.
struct Header {
    dtype: Dtype,
    shape: Vec<i64>,
}

impl Header {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<i64>() as usize * self.dtype.bitsize() / 8
    }

    /// Lengthens it by `part`, the header of the tensor `name`.
    fn join(&mut self, part: &Self, name: &str) -> Result<()> {
        if part.dtype != self.dtype || part.shape.get(1..) != self.shape.get(1..) || self.shape.is_empty() {
            let expected = format!("{} of rows {:?}, as what it stands together with", self.dtype, self.shape.get(1..).unwrap_or_default());
            return Err(Error::Input { name: name.into(), expected, got: format!("{} {:?}", part.dtype, part.shape) });
        }
        self.shape[0] += part.shape[0];
        Ok(())
    }
}

impl Piece<'_> {
    fn header(&self, name: &str) -> Result<Header> {
        let typed = |kind: Kind| {
            dtype_of(kind).ok_or_else(|| Error::Input {
                name: name.into(),
                expected: "a type that safetensors can hold".into(),
                got: format!("{kind:?}"),
            })
        };
        Ok(match self {
            Piece::Tensor(t, kind) => Header { dtype: typed(*kind)?, shape: t.size() },
            Piece::Zeros(shape, kind) => Header { dtype: typed(*kind)?, shape: shape.clone() },
            Piece::Joined(parts) => {
                let mut whole: Option<Header> = None;
                for (file, from) in parts {
                    let part = Piece::Stored(file, from, None).header(name)?;
                    match &mut whole {
                        None => whole = Some(part),
                        Some(whole) => whole.join(&part, from)?,
                    }
                }
                whole.unwrap_or(Header { dtype: Dtype::F32, shape: vec![0] })
            }
            Piece::Stored(file, from, kind) => {
                let (dtype, shape) = file.stored(from).ok_or_else(|| Error::Input {
                    name: (*from).into(),
                    expected: format!("a tensor of {}", file.path().display()),
                    got: "nothing".into(),
                })?;
                Header { dtype: kind.map_or(Ok(dtype), typed)?, shape: shape.to_vec() }
            }
        })
    }

    /// The numbers as they stand in the file.
    fn bytes(&self, header: &Header) -> Result<Cow<'_, [u8]>> {
        match self {
            Piece::Tensor(t, kind) => Ok(Cow::Owned(bytes_of(t, *kind)?)),
            Piece::Zeros(..) => Ok(Cow::Owned(vec![0; header.bytes()])),
            Piece::Stored(file, from, kind) => stored_bytes(file, from, *kind, header),
            Piece::Joined(parts) => match &parts[..] {
                [(file, from)] => stored_bytes(file, from, None, header),
                parts => {
                    let mut all = Vec::with_capacity(header.bytes());
                    for (file, from) in parts {
                        all.extend_from_slice(&stored_bytes(file, from, None, header)?);
                    }
                    Ok(Cow::Owned(all))
                }
            },
        }
    }

    /// Gives the pages of what was read back to the system.
    fn release(&self) {
        match self {
            Piece::Stored(file, from, _) => file.release_tensor(from),
            Piece::Joined(parts) => parts.iter().for_each(|(file, from)| file.release_tensor(from)),
            Piece::Tensor(..) | Piece::Zeros(..) => {}
        }
    }
}

fn stored_bytes<'f>(file: &'f TensorFile, from: &str, kind: Option<Kind>, header: &Header) -> Result<Cow<'f, [u8]>> {
    if let Some(bytes) = file.dense(from, header.dtype) {
        return Ok(Cow::Borrowed(bytes));
    }
    let kind = kind.or(kind_of(header.dtype)).unwrap_or(Kind::Float);
    let t = file.tensor_as(from, Device::Cpu, kind)?.unwrap_or_else(|| Tensor::zeros(&header.shape, (kind, Device::Cpu)));
    Ok(Cow::Owned(bytes_of(&t, kind)?))
}

fn bytes_of(t: &Tensor, kind: Kind) -> std::result::Result<Vec<u8>, TchError> {
    let t = t.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_contiguous()?;
    let size = t.numel() * kind.elt_size_in_bytes();
    if size == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: a contiguous tensor on the CPU has `size` bytes from its data pointer on, and is alive here.
    Ok(unsafe { std::slice::from_raw_parts(t.data_ptr().cast::<u8>(), size) }.to_vec())
}

/// Writes `tensors` and `metadata` as one safetensors file, whole or not at all.
///
/// Floating tensors are stored as `kind` when it is given, others as they are.
///
/// # Errors
/// As [`save_pieces`].
pub fn save_tensors(path: impl AsRef<Path>, tensors: &Tensors, metadata: &BTreeMap<String, String>, kind: Option<Kind>) -> Result<()> {
    let stored = |t: &Tensor| if t.is_floating_point() { kind.unwrap_or(t.kind()) } else { t.kind() };
    let pieces = tensors.iter().map(|(name, t)| (name.clone(), Piece::Tensor(t, stored(t)))).collect();
    save_pieces(path, &pieces, metadata)
}

/// Writes `pieces` and `metadata` as one safetensors file, whole or not at all; at most one piece is in memory beyond what was there.
///
/// As the Python library does, tensors of wider types come first, so that all are aligned. The safetensors crate keeps metadata in an
/// unordered map; the header is written here so that the same content always gives the same bytes.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be written, [`Error::Torch`] when a tensor cannot be read, [`Error::Input`] for a type that
/// safetensors cannot hold.
pub fn save_pieces(path: impl AsRef<Path>, pieces: &BTreeMap<String, Piece<'_>>, metadata: &BTreeMap<String, String>) -> Result<()> {
    let path = path.as_ref();
    let headers = pieces.iter().map(|(name, piece)| Ok((name, piece, piece.header(name)?)));
    let mut headers = headers.collect::<Result<Vec<_>>>()?;
    headers.sort_by_key(|(name, _, header)| (Reverse(header.dtype.bitsize()), *name));

    let mut head = Map::new();
    if !metadata.is_empty() {
        head.insert("__metadata__".into(), serde_json::to_value(metadata).expect("strings are JSON"));
    }
    let mut offset = 0usize;
    for (name, _, header) in &headers {
        let end = offset + header.bytes();
        let dtype = serde_json::to_value(header.dtype).unwrap_or(Value::Null);
        head.insert((*name).clone(), json!({"dtype": dtype, "shape": header.shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut head = serde_json::to_vec(&head).expect("a header of strings and numbers is JSON");
    head.resize(head.len().next_multiple_of(8), b' ');

    let written = artifact::write_whole(path, |file| {
        let mut out = BufWriter::new(file);
        out.write_all(&(head.len() as u64).to_le_bytes())?;
        out.write_all(&head)?;
        for (_, piece, header) in &headers {
            out.write_all(&piece.bytes(header)?)?;
            piece.release();
        }
        Ok(out.flush()?)
    });
    written.map_err(|failure| match failure {
        Failure::Io(source) => Error::io(path)(source),
        Failure::Read(error) => error,
    })
}

/// Compares every tensor of the written file `path` with the piece that it was made from.
///
/// # Errors
/// [`Error::Format`] for the first one that differs; as [`TensorFile::open`].
pub fn check_pieces(path: &Path, pieces: &BTreeMap<String, Piece<'_>>) -> Result<()> {
    let written = TensorFile::open(path)?;
    for (name, piece) in pieces {
        let header = piece.header(name)?;
        let same = written.stored(name) == Some((header.dtype, header.shape.as_slice()))
            && written.dense(name, header.dtype) == Some(&*piece.bytes(&header)?);
        if !same {
            return Err(Error::Format {
                path: path.into(),
                problem: format!("`{name}` is not what was written"),
                hint: "nothing was kept; is the disk full or failing?".into(),
            });
        }
        piece.release();
        written.release_tensor(name);
    }
    Ok(())
}

/// What can fail while a tensor is written.
enum Failure {
    Io(io::Error),
    Read(Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Read(error)
    }
}
