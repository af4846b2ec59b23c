//! What the names of files tell: which are images, captions or shards of both, and which nobody means.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Endings of images that are read.
const READ: [&str; 17] =
    ["png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff", "pnm", "pbm", "pgm", "ppm", "pam", "qoi"];
/// Endings of images that are not read, unless their content is one that is.
const FOREIGN: [&str; 32] = [
    "avif", "avifs", "heic", "heif", "hif", "jp2", "j2k", "j2c", "jpf", "jpx", "jpm", "jxl", "jxr", "wdp", "svg", "svgz", "psd", "psb",
    "xcf", "ico", "cur", "icns", "tga", "exr", "hdr", "dds", "eps", "pcx", "mng", "bpg", "flif", "dib",
];
/// Endings of cameras' raw files. Many begin like TIFF files, and hold a thumbnail where those hold the image.
const RAW: [&str; 12] = ["cr2", "cr3", "crw", "nef", "nrw", "arw", "dng", "orf", "rw2", "raf", "pef", "srw"];
/// What programs and systems leave in folders.
const CLUTTER: [&str; 8] =
    ["__macosx", "thumbs.db", "desktop.ini", "lost+found", "@eadir", "$recycle.bin", "system volume information", "ehthumbs.db"];

/// What a file is for, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Image,
    /// An image that is not read.
    Raw,
    /// An image that is read where its content is not what its ending says.
    Foreign,
    Caption(Form),
    /// A table of captions beside images.
    Metadata,
    Tar,
    /// A tar of a compression that is not read.
    PackedTar,
    Table,
    /// Nothing can be said without looking into it.
    Unnamed,
    Other,
}

/// How a caption is written; of several beside an image the first of these counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    Txt,
    Caption,
    Json,
}

/// The kind of a file.
pub(super) fn kind(path: &Path) -> Kind {
    let name = lower(path.file_name());
    let ending = lower(path.extension());
    let is = |list: &[&str]| list.contains(&ending.as_str());
    if matches!(name.as_str(), "metadata.jsonl" | "metadata.csv" | "metadata.parquet") {
        return Kind::Metadata;
    }
    if is_tar(path) {
        return Kind::Tar;
    }
    if name.ends_with(&format!(".tar.{ending}")) || ["tbz", "tbz2", "txz", "tzst"].contains(&ending.as_str()) {
        return Kind::PackedTar;
    }
    match ending.as_str() {
        "txt" => Kind::Caption(Form::Txt),
        "caption" => Kind::Caption(Form::Caption),
        "json" => Kind::Caption(Form::Json),
        "parquet" => Kind::Table,
        _ if is(&READ) => Kind::Image,
        _ if is(&FOREIGN) => Kind::Foreign,
        _ if is(&RAW) => Kind::Raw,
        ending if ending.is_empty() || ending.len() > 5 || !ending.bytes().all(|b| b.is_ascii_alphanumeric()) => Kind::Unnamed,
        _ => Kind::Other,
    }
}

/// Whether the name is that of a tar, compressed or not.
pub(super) fn is_tar(path: &Path) -> bool {
    let name = lower(path.file_name());
    [".tar", ".tar.gz", ".tgz"].iter().any(|ending| name.ends_with(ending))
}

/// Whether nobody means a file or folder of this name: hidden ones, and what systems leave behind.
pub(super) fn is_clutter(name: &OsStr) -> bool {
    let name = lower(Some(name));
    name.starts_with('.') || CLUTTER.contains(&name.as_str())
}

/// The same for a path in a tar, with all its folders.
pub(super) fn is_clutter_path(path: &Path) -> bool {
    path.iter().any(|part| part != "." && part != ".." && is_clutter(part))
}

/// The ending in small letters.
pub(super) fn ending(path: &Path) -> String {
    lower(path.extension())
}

/// Everything before the first dot of the file's name: the key of a WebDataset sample.
pub(super) fn key(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let first = name.split('.').next().unwrap_or_default();
    path.with_file_name(first)
}

fn lower(name: Option<&OsStr>) -> String {
    name.unwrap_or_default().to_string_lossy().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_tell_in_any_case() {
        for (name, expected) in [
            ("a.JPG", Kind::Image),
            ("a.b.Tiff", Kind::Image),
            ("a.HEIC", Kind::Foreign),
            ("a.dng", Kind::Raw),
            ("a.TXT", Kind::Caption(Form::Txt)),
            ("sub/metadata.csv", Kind::Metadata),
            ("metadata.json", Kind::Caption(Form::Json)),
            ("0.tar.gz", Kind::Tar),
            ("0.TGZ", Kind::Tar),
            ("0.tar.zst", Kind::PackedTar),
            ("0.parquet", Kind::Table),
            ("0123abcd", Kind::Unnamed),
            ("a.jpg_large", Kind::Unnamed),
            ("a.cls", Kind::Other),
        ] {
            assert_eq!(kind(Path::new(name)), expected, "{name}");
        }
        assert!([".a.jpg", "._a.jpg", "__MACOSX", "Thumbs.db", "lost+found"].iter().all(|name| is_clutter(OsStr::new(name))));
        assert!(is_clutter_path(Path::new("__MACOSX/a.jpg")) && !is_clutter_path(Path::new("./a.jpg")));
        assert_eq!(key(Path::new("x.y/00.input.jpg")), Path::new("x.y/00"));
    }
}
