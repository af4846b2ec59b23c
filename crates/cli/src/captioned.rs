//! Pictures with captions from folders and WebDataset tars, as img2dataset writes both: `0001.jpg` beside `0001.txt`.
//! Pictures -> **pairs** -> calibration set.

use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::common::BadFile;

const PICTURES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// A picture file and its caption, or what is wrong with them.
#[derive(Debug)]
pub struct Pair {
    /// Path in the folder or the tar, without its ending, with `/` between folders.
    pub name: String,
    /// The caption, in one line.
    pub caption: String,
    /// The picture file.
    pub bytes: Vec<u8>,
}

/// What [`visit`] hands out: a pair, or the name of a picture without one and the reason.
pub type Found = Result<Pair, (String, String)>;

/// Visits the pairs of a folder (in the order of their paths, subfolders included) or of a tar (in its own order), until
/// `each` breaks off.
///
/// # Errors
/// [`BadFile`] when `source` cannot be read; what `each` fails with.
pub fn visit(source: &Path, each: &mut dyn FnMut(Found) -> anyhow::Result<ControlFlow<()>>) -> anyhow::Result<ControlFlow<()>> {
    if source.is_dir() { visit_folder(source, each) } else { visit_tar(source, each) }
}

fn unreadable(path: &Path, e: &dyn std::fmt::Display) -> BadFile {
    BadFile::new(path, e.to_string(), "name a folder of pictures with captions, or a tar of them")
}

fn visit_folder(root: &Path, each: &mut dyn FnMut(Found) -> anyhow::Result<ControlFlow<()>>) -> anyhow::Result<ControlFlow<()>> {
    let mut pictures: Vec<PathBuf> = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|e| unreadable(&folder, &e))? {
            let entry = entry.map_err(|e| unreadable(&folder, &e))?;
            let path = entry.path();
            // Not through links, which may lead in circles.
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                folders.push(path);
            } else if is_picture(&path) {
                pictures.push(path);
            }
        }
    }
    pictures.sort();
    for path in pictures {
        let inner = path.strip_prefix(root).unwrap_or(&path).with_extension("");
        let name = inner.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/");
        let captions = path.with_extension("txt");
        let found = match (std::fs::read(&path), std::fs::read_to_string(&captions)) {
            (Ok(bytes), Ok(caption)) => pair(name, Some(bytes), Some(caption)),
            (Err(e), _) => Err((name, e.to_string())),
            (_, Err(e)) => Err((name, format!("no caption in {} ({e})", captions.display()))),
        };
        if each(found)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn visit_tar(path: &Path, each: &mut dyn FnMut(Found) -> anyhow::Result<ControlFlow<()>>) -> anyhow::Result<ControlFlow<()>> {
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let mut archive = tar::Archive::new(BufReader::new(file));
    // The files of one sample stand side by side; what differs is the ending.
    let (mut name, mut bytes, mut caption) = (String::new(), None, None);
    for entry in archive.entries().map_err(|e| unreadable(path, &e))? {
        let mut entry = entry.map_err(|e| unreadable(path, &e))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let inner = entry.path().map_err(|e| unreadable(path, &e))?.into_owned();
        let next = inner.with_extension("").to_string_lossy().trim_start_matches("./").to_string();
        if next != name {
            if bytes.is_some() && each(pair(std::mem::take(&mut name), bytes.take(), caption.take()))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            (name, bytes, caption) = (next, None, None);
        }
        let mut content = Vec::new();
        if is_picture(&inner) || inner.extension().is_some_and(|e| e == "txt") {
            entry.read_to_end(&mut content).map_err(|e| unreadable(path, &e))?;
        }
        if is_picture(&inner) {
            bytes = Some(content);
        } else if inner.extension().is_some_and(|e| e == "txt") {
            caption = Some(String::from_utf8_lossy(&content).into_owned());
        }
    }
    if bytes.is_some() {
        return each(pair(name, bytes, caption));
    }
    Ok(ControlFlow::Continue(()))
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|e| PICTURES.contains(&e.to_string_lossy().to_lowercase().as_str()))
}

fn pair(name: String, bytes: Option<Vec<u8>>, caption: Option<String>) -> Found {
    let caption = caption.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    match bytes {
        Some(bytes) if !caption.is_empty() => Ok(Pair { name, caption, bytes }),
        _ => Err((name, "no caption".into())),
    }
}
