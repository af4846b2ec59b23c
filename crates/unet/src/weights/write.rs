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
#[derive(Debug)]
pub enum Piece<'a> {
    /// A tensor in memory, stored as a type.
    Tensor(&'a Tensor, Kind),
    /// A tensor of another file: as a type, or, without one, byte for byte in whatever type it has there. It is read when it is written.
    Stored(&'a TensorFile, &'a str, Option<Kind>),
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
            Piece::Stored(file, from, kind) => match (file.dense(from, header.dtype), kind) {
                (Some(bytes), _) => Ok(Cow::Borrowed(bytes)),
                (None, kind) => {
                    let kind = kind.or(kind_of(header.dtype)).unwrap_or(Kind::Float);
                    let t = file.tensor_as(from, Device::Cpu, kind)?.unwrap_or_else(|| Tensor::zeros(&header.shape, (kind, Device::Cpu)));
                    Ok(Cow::Owned(bytes_of(&t, kind)?))
                }
            },
        }
    }
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
            if let Piece::Stored(file, from, _) = piece {
                file.release_tensor(from);
            }
        }
        Ok(out.flush()?)
    });
    written.map_err(|failure| match failure {
        Failure::Io(source) => Error::io(path)(source),
        Failure::Read(error) => error,
    })
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
