//! Indexes of folders and tars that are opened again, moved, damaged or of an earlier version.

use std::collections::BTreeMap;

use image::RgbImage;

use super::file::{FILE, FIRST_FILE};
use super::*;

const BUCKETS: [Size; 3] = [(16, 16), (8, 16), (16, 8)];

fn png(w: u32, h: u32, n: u8) -> Vec<u8> {
    diffusion::images::encode_png(&RgbImage::from_pixel(w, h, image::Rgb([n, 0, 0])), &BTreeMap::new()).unwrap()
}

// A folder with four images and a tar with three, one of each without a caption.
fn sources(dir: &Path) -> [PathBuf; 2] {
    let (folder, tar) = (dir.join("folder"), dir.join("part.tar"));
    std::fs::create_dir_all(folder.join("deep")).unwrap();
    for (name, (w, h), n) in [("a", (30, 30), 1), ("deep/b", (40, 20), 2), ("c", (20, 21), 3), ("d", (9, 9), 4)] {
        std::fs::write(folder.join(format!("{name}.png")), png(w, h, n)).unwrap();
        if name != "d" {
            std::fs::write(folder.join(format!("{name}.txt")), format!("number {n}\n")).unwrap();
        }
    }
    let mut out = tar::Builder::new(std::fs::File::create(&tar).unwrap());
    let mut append = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        out.append_data(&mut header, name, bytes).unwrap();
    };
    for (n, (w, h)) in [(5u8, (20, 40)), (6, (10, 10)), (7, (10, 10))] {
        append(&format!("{n:04}.png"), &png(w, h, n));
        if n != 6 {
            append(&format!("{n:04}.txt"), format!("number {n}").as_bytes());
        }
    }
    out.finish().unwrap();
    [folder, tar]
}

fn open(work: &Path, sources: &[PathBuf], max_bad: usize) -> Result<ImageIndex> {
    ImageIndex::open(work, &ImageText::open(sources)?, &BUCKETS, max_bad, &mut |_| Ok(()))
}

fn seen(images: &ImageIndex) -> Vec<(usize, String, u8)> {
    let places = images.buckets().into_iter().enumerate().flat_map(|(b, n)| (0..n).map(move |i| (b, i)));
    places.map(|(b, i)| images.image(b, i).map(|p| (b, p.caption, p.rgb[0])).unwrap()).collect()
}

#[test]
fn images_of_folders_and_tars_are_found_in_their_buckets_and_read_from_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources(dir.path());
    let images = open(dir.path(), &sources, 2).unwrap();
    assert_eq!(images.buckets(), [3, 1, 1]);
    let expected = [(0, 1), (0, 3), (0, 7), (1, 2), (2, 5)].map(|(b, n)| (b, format!("number {n}"), n));
    assert_eq!(seen(&images), expected);
    let first = images.image(1, 0).unwrap();
    assert_eq!((first.size.original_size, first.size.target_size, first.rgb.len()), ((20, 40), (8, 16), 3 * 8 * 16));
    // Another opening takes the index as it is, even when the folder has changed; a longer tar is indexed anew.
    std::fs::copy(sources[0].join("a.png"), sources[0].join("e.png")).unwrap();
    std::fs::copy(sources[0].join("a.txt"), sources[0].join("e.txt")).unwrap();
    assert_eq!(seen(&open(dir.path(), &sources, 2).unwrap()), expected);
    let only: Vec<PathBuf> = vec![sources[0].clone()];
    assert_eq!(open(dir.path(), &only, 2).unwrap().buckets(), [3, 1, 0]);
    let err = open(dir.path(), &sources, 1).unwrap_err();
    assert!(err.to_string().contains("max_bad") && err.to_string().contains("0006"), "{err}");
}

#[test]
fn an_image_that_turns_out_damaged_is_replaced_until_there_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources(dir.path());
    let whole = std::fs::read(sources[0].join("c.png")).unwrap();
    // The header is whole, the pixels are not.
    std::fs::write(sources[0].join("c.png"), &whole[..whole.len() - 24]).unwrap();
    let images = open(dir.path(), &sources, 3).unwrap();
    assert_eq!(images.image(0, 1).unwrap().caption, "number 7");
    std::fs::remove_file(sources[0].join("a.png")).unwrap();
    let err = images.image(0, 0).unwrap_err();
    assert!(matches!(&err, Error::Format { hint, .. } if hint.contains("data.max_bad")), "{err}");
}

#[test]
fn the_index_of_an_earlier_version_is_read_and_keeps_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources(dir.path());
    let expected = seen(&open(dir.path(), &sources, 2).unwrap());
    let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
    let lines = text.lines().filter(|line| !line.contains("\"identity\"")).map(|line| format!("{line}\n"));
    let text = lines.collect::<String>();
    let first = text.replace("laptop-diff/image-index", "laptop-diff/picture-index").replace("\"version\": 3", "\"version\": 1");
    let first = first.replace("\"images\"", "\"pictures\"");
    std::fs::remove_file(dir.path().join(FILE)).unwrap();
    std::fs::write(dir.path().join(FIRST_FILE), &first).unwrap();
    let index = open(dir.path(), &sources, 2).unwrap();
    assert_eq!(seen(&index), expected);
    assert_eq!(index.sha256(), artifact::sha256(&first));
    assert!(!dir.path().join(FILE).exists(), "what is there is used");
}

#[test]
fn an_index_is_the_same_from_wherever_its_sources_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (here, work) = (dir.path().join("here"), dir.path().join("work"));
    std::fs::create_dir_all(&work).unwrap();
    std::fs::create_dir_all(&here).unwrap();
    let paths = sources(&here);
    let first = open(&work, &paths, 2).unwrap();
    let (identity, expected) = (first.sha256().to_string(), seen(&first));
    let detours = [here.join("../here/folder/"), here.join("./part.tar")];
    let again = open(&work, &detours, 2).unwrap();
    assert_eq!((again.sha256(), seen(&again)), (identity.as_str(), expected.clone()));
    assert!(!work.join("images-2.json").exists());
    // Moved, the same images are found anew.
    std::fs::rename(&here, dir.path().join("there")).unwrap();
    let there = paths.map(|path| dir.path().join("there").join(path.file_name().unwrap()));
    let moved = open(&work, &there, 2).unwrap();
    assert_eq!((moved.sha256(), seen(&moved)), (identity.as_str(), expected));
    // Others have an index of their own, and what is there stays.
    let kept = std::fs::read(work.join("images.json")).unwrap();
    let only = open(&work, &there[..1], 2).unwrap();
    assert_ne!(only.sha256(), identity);
    assert!(std::fs::read(work.join("images.json")).unwrap() == kept && work.join("images-3.json").is_file());
}

#[test]
fn an_index_of_a_former_version_goes_by_the_names_that_it_was_made_with() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("some");
    std::fs::create_dir_all(&root).unwrap();
    let paths = sources(&root);
    let index = open(dir.path(), &paths, 2).unwrap();
    let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
    let identity = format!("  \"identity\": \"{}\",\n", index.sha256());
    assert!(text.contains(&identity));
    // From the folder above, as a run named its sources there.
    let root = root.canonicalize().unwrap();
    let former = text.replace(&identity, "").replace("\"version\": 3", "\"version\": 2").replace(root.to_str().unwrap(), "../some");
    std::fs::write(dir.path().join(FILE), &former).unwrap();
    let again = open(dir.path(), &paths, 2).unwrap();
    assert_eq!((again.sha256(), seen(&again)), (artifact::sha256(&former).as_str(), seen(&index)));
}

#[test]
fn photographs_go_to_the_buckets_of_their_upright_sides() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("images");
    std::fs::create_dir(&folder).unwrap();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/images");
    for name in ["jpeg-1.jpg", "jpeg-6.jpg", "png-late.png", "png-6.png", "webp-8.webp", "tiff-5.tif"] {
        std::fs::copy(files.join(name), folder.join(name)).unwrap();
        std::fs::write(folder.join(name).with_extension("txt"), "number 1").unwrap();
    }
    let index = open(dir.path(), &[folder], 0).unwrap();
    assert_eq!(index.buckets(), [0, 2, 4]);
    let first = index.image(2, 0).unwrap();
    assert_eq!((first.size.original_size, first.size.target_size), ((24, 16), (16, 8)));
}
