//! Tars of images, as WebDataset has them, plain or compressed with gzip. Tar -> **images with captions**.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ::tar::{Archive, Entries, Entry, EntryType};
use diffusion::images::{Content as Kept, HEAD, identify};
use flate2::read::MultiGzDecoder;

use super::captions::{Captions, Written};
use super::folder::not_read;
use super::names::{self, Form, Kind};
use super::seen::Seen;
use super::table::Columns;
use super::{ByteRange, Content, Found, ImageFile, Rejected, Shard, Visit, format, unreadable};
use crate::error::{Error, Result};
use crate::place::text;

/// What tars consist of.
const BLOCK: u64 = 512;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const AGAIN: &str = "fetch or write it again";

/// Refuses a file that is no tar.
pub(super) fn check(path: &Path) -> Result<()> {
    let mut block = Vec::new();
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    reader(file).and_then(|reader| reader.take(BLOCK).read_to_end(&mut block)).map_err(|e| unreadable(path, &e))?;
    let refuse = |problem: &str, hint: &str| Err(format(path, problem, hint));
    let sources = "name a folder of images with captions, a tar of them, or a .parquet table";
    match identify(&block[..block.len().min(HEAD)]) {
        _ if block.is_empty() => refuse("an empty file", AGAIN),
        Kept::Image | Kept::Foreign(_) => refuse("an image, not a tar", "name the folder that it stands in"),
        Kept::Other(what) => refuse(&format!("not a tar but {what}"), sources),
        Kept::Unknown if Archive::new(block.as_slice()).entries().is_ok_and(|mut all| !matches!(all.next(), Some(Err(_)))) => Ok(()),
        Kept::Unknown => refuse("not a tar", sources),
    }
}

fn reader(mut file: File) -> std::io::Result<Box<dyn Read>> {
    Ok(if is_compressed(&mut file)? { Box::new(MultiGzDecoder::new(BufReader::new(file))) } else { Box::new(file) })
}

fn is_compressed(file: &mut File) -> std::io::Result<bool> {
    let mut magic = Vec::new();
    file.by_ref().take(2).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(magic == GZIP)
}

/// Visits the images of a tar in their order.
pub(super) fn visit<E: From<Error>>(tar: &Shard, columns: &Columns, seen: &mut Seen, each: &mut dyn FnMut(Found) -> Visit<E>) -> Visit<E> {
    check(&tar.path)?;
    let unread = |e: std::io::Error| unreadable(&tar.path, &e);
    let mut file = File::open(&tar.path).map_err(unread)?;
    let compressed = is_compressed(&mut file).map_err(unread)?;
    let Members { images, captions, .. } = if compressed {
        let mut archive = Archive::new(MultiGzDecoder::new(BufReader::new(file)));
        Members::read(&tar.path, None, columns, archive.entries().map_err(unread)?)?
    } else {
        let len = file.metadata().map_err(unread)?.len();
        let mut archive = Archive::new(BufReader::new(file));
        Members::read(&tar.path, Some(len), columns, archive.entries_with_seek().map_err(unread)?)?
    };
    if images.is_empty() {
        seen.empty_tar();
    }
    let mut stream = compressed.then(|| Stream::open(&tar.path)).transpose().map_err(unread)?;
    let mut taken = BTreeSet::new();
    for Member { path, first, len, refused } in &images {
        let inner = text(path);
        let mut content = || match &mut stream {
            None => Ok(Content::At(ByteRange { file: tar.path.clone(), part: Some((*first, *len)) })),
            Some(stream) => stream.read(*first, *len).map(Content::Bytes).map_err(|e| e.to_string()),
        };
        let found = match refused {
            Some(reason) => Err(reason.clone()),
            None if !taken.insert(path) => Err("the tar has another file of this name; rename one of them".to_string()),
            None => captions.of(path).and_then(|caption| Ok((caption, content()?))),
        };
        let name = if tar.name.is_empty() { inner.clone() } else { format!("{}/{inner}", tar.name) };
        let found = match found {
            Ok((caption, content)) => Ok(ImageFile { name, place: format!("{}/{inner}", text(&tar.place)), caption, content }),
            Err(reason) => Err(Rejected { name, reason }),
        };
        if each(found)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// An image of a tar.
struct Member {
    path: PathBuf,
    // Of its content.
    first: u64,
    len: u64,
    refused: Option<String>,
}

/// What a tar has of use.
struct Members<'a> {
    tar: &'a Path,
    // Of the file; unknown where it is compressed.
    len: Option<u64>,
    images: Vec<Member>,
    captions: Captions<'a>,
}

impl<'a> Members<'a> {
    fn read<R: Read>(tar: &'a Path, len: Option<u64>, columns: &'a Columns, entries: Entries<'_, R>) -> Result<Self> {
        let mut members = Self { tar, len, images: Vec::new(), captions: Captions::new(columns, true) };
        let (mut end, mut last) = (0, String::new());
        let cut = |at: u64, last: &str, why: &dyn std::fmt::Display| {
            let problem = format!("the tar is damaged or ends early: {why}, at byte {at}, after `{last}`");
            format(tar, problem, AGAIN)
        };
        for entry in entries {
            let mut entry = entry.map_err(|e| cut(end, &last, &e))?;
            let path = entry.path().map_err(|e| cut(end, &last, &e))?.into_owned();
            let path = path.strip_prefix("./").unwrap_or(&path).to_path_buf();
            let (first, size) = (entry.raw_file_position(), entry.size());
            end = first + size.next_multiple_of(BLOCK);
            last = text(&path);
            if let Some(len) = len.filter(|len| entry.header().entry_type().is_file() && first + size > *len) {
                let problem = format!("the tar ends early, at byte {len}, inside `{last}`, which ends at byte {}", first + size);
                return Err(format(tar, problem, AGAIN));
            }
            members.add(path, &mut entry).map_err(|e| cut(first, &last, &e))?;
        }
        if len.is_some_and(|len| end > 0 && len < end + BLOCK) {
            tracing::warn!("{} has no mark of its end; more may be missing after `{last}`", tar.display());
        }
        Ok(members)
    }

    fn add<R: Read>(&mut self, path: PathBuf, entry: &mut Entry<'_, R>) -> std::io::Result<()> {
        if names::is_clutter_path(&path) {
            return Ok(());
        }
        let (first, len, kind) = (entry.raw_file_position(), entry.size(), names::kind(&path));
        let is_link = matches!(entry.header().entry_type(), EntryType::Link | EntryType::Symlink);
        if !entry.header().entry_type().is_file() && !is_link {
            return Ok(());
        }
        let refused = match kind {
            _ if is_link && kind != Kind::Image => return Ok(()),
            Kind::Image if is_link => Some("a link, which is not read in a tar; write the tar with `--dereference`".to_string()),
            Kind::Image => None,
            Kind::Raw => Some("a camera's raw format is not read; convert it to PNG or JPEG".to_string()),
            Kind::Foreign | Kind::Unnamed => match self.identify(entry)? {
                Kept::Image => None,
                Kept::Foreign(format) => Some(format!("{format} is not read; convert it to PNG or JPEG")),
                _ if kind == Kind::Foreign => Some(not_read(&path)),
                _ => return Ok(()),
            },
            Kind::Caption(form) => return self.caption(&path, form, entry),
            Kind::Metadata | Kind::Tar | Kind::PackedTar | Kind::Table | Kind::Other => return Ok(()),
        };
        self.images.push(Member { path, first, len, refused });
        Ok(())
    }

    fn caption<R: Read>(&mut self, path: &Path, form: Form, entry: &mut Entry<'_, R>) -> std::io::Result<()> {
        let written = match self.len {
            Some(_) => Written::At(ByteRange { file: self.tar.to_path_buf(), part: Some((entry.raw_file_position(), entry.size())) }),
            None => {
                let mut text = Vec::new();
                entry.read_to_end(&mut text)?;
                Written::Here(text)
            }
        };
        self.captions.add_file(path, form, written);
        Ok(())
    }

    fn identify<R: Read>(&self, entry: &mut Entry<'_, R>) -> std::io::Result<Kept> {
        let mut head = Vec::new();
        entry.take(HEAD as u64).read_to_end(&mut head)?;
        Ok(identify(&head))
    }
}

/// A compressed tar, which can only be read from its beginning to its end.
struct Stream {
    reader: MultiGzDecoder<BufReader<File>>,
    at: u64,
}

impl Stream {
    fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { reader: MultiGzDecoder::new(BufReader::new(File::open(path)?)), at: 0 })
    }

    /// The bytes from `first` on, which lies behind what was read before.
    fn read(&mut self, first: u64, len: u64) -> std::io::Result<Vec<u8>> {
        std::io::copy(&mut self.reader.by_ref().take(first - self.at), &mut std::io::sink())?;
        let mut bytes = Vec::new();
        self.reader.by_ref().take(len).read_to_end(&mut bytes)?;
        self.at = first + bytes.len() as u64;
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
    }
}
