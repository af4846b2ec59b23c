//! Folders of images, and of tars and tables of them. Folder -> **images with captions**.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use diffusion::images::{Content as Kept, HEAD, identify};

use super::captions::{Captions, Written};
use super::names::{self, Kind, is_clutter};
use super::seen::Seen;
use super::table::{Columns, Table};
use super::{ByteRange, Content, Found, ImageFile, Rejected, Shard, Visit, metadata, tar, unreadable};
use crate::error::{Error, Result};
use crate::place::text;

/// Visits what the folder `root` has, subfolders included, in the order of paths.
pub(super) fn visit<E: From<Error>>(root: &Shard, columns: &Columns, seen: &mut Seen, each: &mut dyn FnMut(Found) -> Visit<E>) -> Visit<E> {
    let Folder { listing, items, captions } = Folder::read(root, columns, seen)?;
    let others = items.iter().any(|(_, item)| !matches!(item, Item::Table));
    for (entry, item) in &items {
        let Shard { path, name, place } = &listing.shard(entry, root);
        let rejected = |reason: String| Rejected { name: name.clone(), reason };
        let flow = match item {
            Item::Image => each(captions.of(path).map_err(rejected).map(|caption| {
                let content = Content::At(ByteRange { file: path.clone(), part: None });
                ImageFile { name: name.clone(), place: text(place), caption, content }
            }))?,
            Item::Refused(reason) => each(Err(rejected(reason.clone())))?,
            Item::Tar => tar::visit(&listing.shard(entry, root), columns, seen, each)?,
            Item::Table => match Table::open(path, columns) {
                Err(Error::Column { .. }) if others => {
                    tracing::warn!("{} is not read: a table without images or captions", path.display());
                    continue;
                }
                table => table?.visit(&listing.shard(entry, root), each)?,
            },
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

enum Item {
    Image,
    Refused(String),
    Tar,
    Table,
}

/// What a folder has of use.
struct Folder<'a> {
    listing: Listing,
    items: Vec<(Entry, Item)>,
    captions: Captions<'a>,
}

impl<'a> Folder<'a> {
    fn read(root: &Shard, columns: &'a Columns, seen: &mut Seen) -> Result<Self> {
        let mut listing = Listing::of(root, seen)?;
        let mut captions = Captions::new(columns, false);
        let (mut items, mut tables) = (Vec::new(), Vec::new());
        for entry in std::mem::take(&mut listing.files) {
            let path = &entry.path;
            let item = match names::kind(path) {
                Kind::Image => Some(Item::Image),
                Kind::Raw => Some(Item::Refused("a camera's raw format is not read; convert it to PNG or JPEG".into())),
                Kind::Foreign => Some(looked_into(path).unwrap_or_else(|| Item::Refused(not_read(path)))),
                Kind::Unnamed => looked_into(path),
                Kind::Caption(form) => {
                    captions.add_file(path, form, Written::At(ByteRange { file: path.clone(), part: None }));
                    None
                }
                Kind::Metadata => {
                    tables.push(path.clone());
                    None
                }
                Kind::Tar => Some(Item::Tar),
                Kind::PackedTar => Some(Item::Refused("a tar of this compression is not read; unpack it, or compress it with gzip".into())),
                // img2dataset writes what it knows of each image beside the shard of the same name.
                Kind::Table if path.with_extension("tar").is_file() || path.with_extension("").is_dir() => None,
                Kind::Table => Some(Item::Table),
                Kind::Other => None,
            };
            match item {
                Some(item) => items.push((entry, item)),
                None => seen.file(path),
            }
        }
        // What stands further in comes later.
        tables.sort_by_key(|path| path.components().count());
        for path in tables {
            let entries = metadata::read(&path, columns)?;
            captions.add_table(path, entries);
        }
        let images: Vec<PathBuf> = items.iter().map(|(entry, _)| entry.path.clone()).collect();
        if let Some((first, count)) = captions.absent(&images) {
            tracing::warn!("{}: metadata names {count} images that are not there, {} is the first", root.path.display(), first.display());
        }
        Ok(Self { listing, items, captions })
    }
}

/// What a file is by its content, as far as it is an image.
fn looked_into(path: &Path) -> Option<Item> {
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head)).ok()?;
    match identify(&head) {
        Kept::Image => Some(Item::Image),
        Kept::Foreign(format) => Some(Item::Refused(format!("{format} is not read; convert it to PNG or JPEG"))),
        _ => None,
    }
}

/// Why an image with such an ending is left out.
pub(super) fn not_read(path: &Path) -> String {
    format!(".{} is not read; convert it to PNG or JPEG", names::ending(path))
}

/// A file, and which of the listing's folders it stands in.
struct Entry {
    path: PathBuf,
    folder: usize,
}

/// All files below a folder in the order of their paths, each folder once, whatever links lead to it.
struct Listing {
    files: Vec<Entry>,
    // Without links.
    folders: Vec<PathBuf>,
}

impl Listing {
    fn of(root: &Shard, seen: &mut Seen) -> Result<Self> {
        let mut listing = Self { files: Vec::new(), folders: Vec::new() };
        let mut known = BTreeSet::new();
        // Links come last, so that a folder goes by its own name where it has one.
        let (mut open, mut links) = (vec![(root.path.clone(), root.place.clone())], BTreeSet::new());
        loop {
            let (path, place) = match open.pop() {
                Some(folder) => folder,
                None => match links.pop_first() {
                    Some(link) => link,
                    None => break,
                },
            };
            if known.insert(place.clone()) {
                listing.add(&path, place, &mut open, &mut links, seen)?;
            }
        }
        listing.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(listing)
    }

    fn add(
        &mut self,
        path: &Path,
        place: PathBuf,
        open: &mut Vec<(PathBuf, PathBuf)>,
        links: &mut BTreeSet<(PathBuf, PathBuf)>,
        seen: &mut Seen,
    ) -> Result<()> {
        for entry in std::fs::read_dir(path).map_err(|e| unreadable(path, &e))? {
            let entry = entry.map_err(|e| unreadable(path, &e))?;
            let (name, kind) = (entry.file_name(), entry.file_type().map_err(|e| unreadable(&entry.path(), &e))?);
            let path = entry.path();
            if is_clutter(&name) {
                seen.hidden();
            } else if kind.is_dir() {
                open.push((path, place.join(&name)));
            } else if kind.is_file() {
                self.files.push(Entry { path, folder: self.folders.len() });
            } else if kind.is_symlink() {
                match path.canonicalize() {
                    Ok(target) if target.is_dir() => drop(links.insert((path, target))),
                    Ok(target) if target.is_file() => self.files.push(Entry { path, folder: self.folders.len() }),
                    _ => seen.dead_link(),
                }
            }
        }
        self.folders.push(place);
        Ok(())
    }

    fn shard(&self, entry: &Entry, root: &Shard) -> Shard {
        let inner = entry.path.strip_prefix(&root.path).unwrap_or(&entry.path);
        let name = inner.iter().map(|part| text(Path::new(part))).collect::<Vec<_>>().join("/");
        let place = self.folders[entry.folder].join(entry.path.file_name().unwrap_or_default());
        Shard { path: entry.path.clone(), name, place }
    }
}
