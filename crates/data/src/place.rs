//! Where files are: paths as text that nothing is lost in, and whether two of them name one place.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path in a JSON file: a text, or the bytes of a name that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilePath(pub PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(PathBuf),
    Bytes(Vec<u8>),
}

impl Serialize for FilePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.to_str().is_some() { Form::Text(self.0.clone()) } else { Form::Bytes(bytes(&self.0)) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Form::deserialize(deserializer)? {
            Form::Text(path) => path,
            Form::Bytes(bytes) => path(bytes),
        }))
    }
}

#[cfg(unix)]
fn bytes(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().to_vec()
}

#[cfg(unix)]
fn path(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(not(unix))]
fn bytes(path: &Path) -> Vec<u8> {
    path.to_string_lossy().into_owned().into_bytes()
}

#[cfg(not(unix))]
fn path(bytes: Vec<u8>) -> PathBuf {
    String::from_utf8_lossy(&bytes).into_owned().into()
}

/// A path as text that differs for different paths: bytes that are no UTF-8 are written as `\xFF`.
pub(crate) fn text(path: &Path) -> String {
    let mut out = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
    }
    out
}

/// Whether `named`, as someone wrote it once, in another folder perhaps, is what `place` is, a path of the whole system without links.
pub(crate) fn same_place(named: &Path, place: &Path) -> bool {
    let end: PathBuf = named.components().skip_while(|part| matches!(part, Component::CurDir | Component::ParentDir)).collect();
    named == place
        || named.canonicalize().is_ok_and(|found| found == place)
        || (named.is_relative() && !end.as_os_str().is_empty() && place.ends_with(&end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_known_by_any_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/images")).unwrap();
        let place = root.join("a/images");
        assert!(["images", "./images", "../a/images", "a/images/"].iter().all(|name| same_place(Path::new(name), &place)));
        assert!(same_place(&root.join("a/../a/images/."), &place));
        assert!(["mages", "b/images", ".", ".."].iter().all(|name| !same_place(Path::new(name), &place)));
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_text_stay_two() {
        let [a, b] = [b"a\xff.png", b"a\xfe.png"].map(|name| FilePath(path(name.to_vec())));
        assert_eq!(text(&a.0), "a\\xFF.png");
        assert_ne!(text(&a.0), text(&b.0));
        let json = serde_json::to_string(&[&a, &b]).unwrap();
        assert_eq!(serde_json::from_str::<Vec<FilePath>>(&json).unwrap(), [a, b]);
        assert_eq!(serde_json::to_string(&FilePath("ä.png".into())).unwrap(), "\"ä.png\"");
    }
}
