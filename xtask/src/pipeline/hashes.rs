//! Content hashes of files and folders, remembered by size and modification time.
//!
//! Part of the stage engine: the hash of a stage's inputs decides whether the stage is up to date.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::engine::write_whole;

/// The hash of a file as it was when its size and time of modification were these.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    size: u64,
    modified_ns: u64,
    sha256: String,
}

/// Hashes files relative to a root and remembers the results in a file of the run's folder.
pub struct Hashes {
    root: PathBuf,
    store: PathBuf,
    known: BTreeMap<String, Known>,
}

impl Hashes {
    /// Starts with what `store` remembers; a store that is absent or cannot be read only costs time.
    pub fn load(root: &Path, store: PathBuf) -> Self {
        let known = fs::read_to_string(&store).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Hashes { root: root.to_path_buf(), store, known }
    }

    /// Writes the store.
    pub fn save(&self) -> Result<()> {
        write_whole(&self.store, &self.known)
    }

    /// The hash of a file's content, or of a folder's relative paths and contents in order of their names.
    pub fn of(&mut self, path: &Path) -> Result<String> {
        if !self.root.join(path).is_dir() {
            return self.of_file(path);
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(path))? {
            names.push(entry?.file_name());
        }
        names.sort();
        let mut all = Sha256::new();
        for name in names {
            all.update(name.as_encoded_bytes());
            all.update([0]);
            all.update(self.of(&path.join(&name))?);
        }
        Ok(hex(&all.finalize()))
    }

    fn of_file(&mut self, path: &Path) -> Result<String> {
        let full = self.root.join(path);
        let data = fs::metadata(&full).with_context(|| format!("{}", path.display()))?;
        let modified_ns = data.modified()?.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        let name = path.to_string_lossy().into_owned();
        if let Some(known) = self.known.get(&name).filter(|known| known.size == data.len() && known.modified_ns == modified_ns) {
            return Ok(known.sha256.clone());
        }
        let mut file = fs::File::open(&full)?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
        let sha256 = hex(&hash.finalize());
        self.known.insert(name, Known { size: data.len(), modified_ns, sha256: sha256.clone() });
        Ok(sha256)
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::tests_support::scratch;

    #[test]
    fn a_file_has_the_published_hash_of_its_content() {
        let root = scratch("hash-file");
        fs::write(root.join("abc"), "abc").unwrap();
        let mut hashes = Hashes::load(&root, root.join("store.json"));
        // FIPS 180-2, appendix B.1.
        assert_eq!(hashes.of(Path::new("abc")).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(hashes.of(Path::new("absent")).is_err());
    }

    #[test]
    fn a_folder_changes_with_contents_and_names_below_it() {
        let root = scratch("hash-folder");
        fs::create_dir_all(root.join("m/unet")).unwrap();
        fs::write(root.join("m/unet/a"), "1").unwrap();
        let of = {
            let root = root.clone();
            move || Hashes::load(&root, root.join("none.json")).of(Path::new("m")).unwrap()
        };
        let first = of();
        fs::write(root.join("m/unet/a"), "2").unwrap();
        let second = of();
        fs::rename(root.join("m/unet/a"), root.join("m/unet/b")).unwrap();
        let third = of();
        assert!(first != second && second != third && first != third);
        assert_eq!(third, of());
    }

    #[test]
    fn remembered_hashes_are_used_while_size_and_time_are_the_same() {
        let root = scratch("hash-memory");
        fs::write(root.join("a"), "1").unwrap();
        let mut hashes = Hashes::load(&root, root.join("store.json"));
        hashes.of(Path::new("a")).unwrap();
        hashes.known.get_mut("a").unwrap().sha256 = "remembered".to_owned();
        hashes.save().unwrap();
        let mut again = Hashes::load(&root, root.join("store.json"));
        assert_eq!(again.of(Path::new("a")).unwrap(), "remembered");
        fs::write(root.join("a"), "22").unwrap();
        assert_ne!(again.of(Path::new("a")).unwrap(), "remembered");
    }
}
