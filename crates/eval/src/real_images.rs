//! The images that a distance is measured to: those of a folder of this project, or any folder of photographs. Images -> evaluation.

use std::path::{Path, PathBuf};

use data::SCENES_FILE;
use diffusion::images::read_image;
use image::ImageFormat;
use rayon::prelude::*;
use tch::Tensor;

use crate::error::{Error, Result};
use crate::image_folder::{IMAGES_FILE, ImageFolder};
use crate::metric::SetDistance;

/// Images read at once: photographs may be large and many.
const CHUNK: usize = 64;

/// A set of images of any number and sizes.
#[derive(Debug)]
pub(crate) struct RealImages {
    files: Vec<PathBuf>,
    /// Whether image i shows prompt i of the U-Nets' images.
    pub is_paired: bool,
}

impl RealImages {
    /// The images of a folder that `generate` or `render-scenes` wrote, in their order; otherwise all images in `dir` and its folders.
    /// `prompts` are those of the U-Nets' images.
    ///
    /// # Errors
    /// [`Error::Format`] for fewer than two images; those of the list of a folder that has one.
    pub fn open<'a>(dir: &Path, prompts: impl Iterator<Item = &'a str>) -> Result<Self> {
        let (files, is_paired) = if dir.join(IMAGES_FILE).is_file() || dir.join(SCENES_FILE).is_file() {
            let folder = ImageFolder::open(dir)?;
            let is_paired = folder.prompts().eq(prompts);
            if !is_paired {
                tracing::warn!("{}: other prompts than the U-Nets' images; distances to them are those between two sets", dir.display());
            }
            (folder.images.iter().map(|image| dir.join(&image.file)).collect(), is_paired)
        } else {
            (images_in(dir)?, false)
        };
        if files.len() < 2 {
            let problem = format!("{} image{} where a distance needs two or more", files.len(), if files.len() == 1 { "" } else { "s" });
            let hint = "name a folder of images (.png, .jpg, .webp), which may have folders in it".into();
            return Err(Error::Format { path: dir.into(), problem, hint });
        }
        Ok(Self { files, is_paired })
    }

    /// The features of all images, `[N, D]`.
    ///
    /// # Errors
    /// [`Error::Diffusion`] naming an image that cannot be read; those of the metric.
    pub fn features(&self, distance: &dyn SetDistance) -> Result<Tensor> {
        let mut rows = Vec::new();
        for chunk in self.files.chunks(CHUNK) {
            let images = chunk.par_iter().map(|path| Ok(read_image(path)?)).collect::<Result<Vec<_>>>()?;
            rows.push(distance.features(&images)?);
        }
        Ok(Tensor::f_cat(&rows, 0)?)
    }
}

/// All files below `dir` that are named as images, in the order of their names; hidden ones are none.
fn images_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let is_hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
    let (mut files, mut unread) = (Vec::new(), 0);
    let entries = walkdir::WalkDir::new(dir).follow_links(true).sort_by_file_name().into_iter();
    for entry in entries.filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.file_name())) {
        let entry = entry.map_err(|e| {
            let path = e.path().unwrap_or(dir).to_path_buf();
            Error::Io { path, source: e.into_io_error().unwrap_or_else(|| std::io::Error::other("a link that leads into itself")) }
        })?;
        match ImageFormat::from_path(entry.path()) {
            Ok(format) if entry.file_type().is_file() && format.reading_enabled() => files.push(entry.into_path()),
            Ok(_) if entry.file_type().is_file() => unread += 1,
            _ => {}
        }
    }
    if unread > 0 {
        tracing::warn!("{}: {unread} images of kinds that are not read here are left out; convert them to PNG", dir.display());
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_in_folders_whatever_their_ending() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        std::fs::create_dir_all(inner.join(".cache")).unwrap();
        for name in ["z.PNG", "a/photo.JPEG", "a/b/x.webp", "a/notes.txt", "a/b/.cache/hidden.png", "._z.PNG"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let found = images_in(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a/b/x.webp", "a/photo.JPEG", "z.PNG"]);
        std::fs::remove_file(dir.path().join("z.PNG")).unwrap();
        std::fs::remove_dir_all(&inner).unwrap();
        for (path, told) in
            [(dir.path().to_path_buf(), "1 image where"), (dir.path().join("a/notes.txt"), "0 images"), (inner, "No such file")]
        {
            let error = RealImages::open(&path, std::iter::empty()).unwrap_err().to_string();
            assert!(error.contains(told) && error.contains(path.to_str().unwrap()), "{error}");
        }
    }
}
