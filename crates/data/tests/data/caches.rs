//! Caches that are gone on with: images are known by where they are, one process writes at a time, and what has changed since is told.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;

use data::{CacheOptions, CacheReport, Encoders, Error, ImageText, LatentCache, Rejected};
use tch::{Device, Kind};
use unet::weights::{TensorFile, save_tensors};

use crate::support::{fixtures, png};

fn encoders() -> Encoders {
    tch::set_num_threads(1);
    Encoders::open(fixtures().join("sdxl"), Device::Cpu, Kind::Float).unwrap()
}

fn write_folder(dir: &Path, numbers: std::ops::Range<u8>) {
    std::fs::create_dir_all(dir).unwrap();
    for n in numbers {
        std::fs::write(dir.join(format!("{n}.png")), png(n)).unwrap();
        std::fs::write(dir.join(format!("{n}.txt")), format!("a red circle {n}")).unwrap();
    }
}

fn build(encoders: &Encoders, source: impl AsRef<Path>, out: &Path) -> data::Result<CacheReport> {
    let options = CacheOptions { shard: 4, batch: 2, ..CacheOptions::default() };
    LatentCache::build(&ImageText::open([source.as_ref()])?, encoders, out, &options, &mut |_| data::Result::Ok(()))
}

#[test]
fn a_folder_is_the_same_by_any_of_its_names() {
    let (dir, encoders) = (tempfile::tempdir().unwrap(), encoders());
    let (folder, out) = (dir.path().join("images"), dir.path().join("cache"));
    write_folder(&folder, 0..3);
    write_folder(&folder.join("in"), 3..5);
    symlink(&folder, dir.path().join("link")).unwrap();
    let first = build(&encoders, &folder, &out).unwrap();
    assert_eq!((first.images, first.new), (5, 5));
    for name in ["images/", "./images", "cache/../images", "link", "images/in"] {
        let again = build(&encoders, dir.path().join(name), &out).unwrap();
        assert_eq!((again.images, again.new, again.captions.count, again.files.count), (5, 0, 0, 0), "{name}");
    }
    // A folder above it has one image more.
    std::fs::write(dir.path().join("5.png"), png(5)).unwrap();
    std::fs::write(dir.path().join("5.txt"), "a red circle").unwrap();
    std::fs::remove_file(dir.path().join("link")).unwrap();
    assert_eq!(build(&encoders, dir.path(), &out).unwrap().new, 1);
}

#[test]
fn what_has_changed_since_is_told_and_stays_as_it_was() {
    let (dir, encoders) = (tempfile::tempdir().unwrap(), encoders());
    let (folder, out) = (dir.path().join("images"), dir.path().join("cache"));
    write_folder(&folder, 0..5);
    build(&encoders, &folder, &out).unwrap();
    let shards = || {
        let shard = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path();
        let paths = std::fs::read_dir(&out).unwrap().map(shard).filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
        paths.map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>()
    };
    let before = shards();
    std::fs::write(folder.join("1.txt"), "another one").unwrap();
    std::fs::write(folder.join("3.txt"), "and another").unwrap();
    // Of the same length, so that only the content tells.
    let (mut other, was) = (png(200), png(2));
    other.resize(was.len().max(other.len()), 0);
    std::fs::write(folder.join("2.png"), &other).unwrap();
    std::fs::write(folder.join("4.png"), png(4)).unwrap();
    let report = build(&encoders, &folder, &out).unwrap();
    assert_eq!((report.images, report.new, report.captions.count, report.files.count), (5, 0, 2, 1));
    assert!(report.captions.first.as_deref().unwrap().ends_with("images/1.png") && report.files.first.unwrap().ends_with("images/2.png"));
    let said = CacheReport { files: data::Changed::default(), ..build(&encoders, &folder, &out).unwrap() }.to_string();
    assert!(said.contains("2 captions have changed since they were cached") && said.contains("choose another folder"), "{said}");
    assert!(shards() == before);
}

#[test]
fn caches_of_the_first_version_are_gone_on_with() {
    let (dir, encoders) = (tempfile::tempdir().unwrap(), encoders());
    let (folder, out) = (dir.path().join("some/images"), dir.path().join("cache"));
    write_folder(&folder, 0..5);
    build(&encoders, &folder, &out).unwrap();
    // Names without endings after the folder as it was written on the command line, and no fingerprints.
    let place = folder.canonicalize().unwrap();
    let aged = |spelling: &str| {
        for entry in std::fs::read_dir(&out).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let file = TensorFile::open(&path).unwrap();
                let names: Vec<String> = serde_json::from_str(&file.metadata()["names"]).unwrap();
                let stem = |name: &String| Path::new(name).file_stem().unwrap().to_str().unwrap().to_string();
                let names: Vec<String> = names.iter().map(|name| format!("{spelling}/{}", stem(name))).collect();
                let mut metadata: BTreeMap<String, String> = file.metadata().clone();
                metadata.insert("names".into(), serde_json::to_string(&names).unwrap());
                metadata.insert("version".into(), "1".into());
                metadata.remove("files");
                let tensors = file.tensors().unwrap();
                save_tensors(&path, &tensors, &metadata, None).unwrap();
            }
        }
    };
    for spelling in [place.to_str().unwrap(), "some/images", "./images/", "../other/../some/images", "images"] {
        aged(spelling);
        let report = build(&encoders, &folder, &out).unwrap();
        let changed = if spelling.contains("other") { 5 } else { 0 };
        assert!(changed == 5 || (report.images, report.new) == (5, 0), "{spelling}: {report:?}");
        if changed == 5 {
            // A detour that leads nowhere from here cannot be known.
            std::fs::remove_dir_all(&out).unwrap();
            build(&encoders, &folder, &out).unwrap();
        }
    }
    aged("images");
    write_folder(&folder, 5..7);
    let report = build(&encoders, &folder, &out).unwrap();
    assert_eq!((report.images, report.new), (7, 2));
    let identity = data::encoder_identity(encoders.dir()).unwrap();
    assert_eq!(LatentCache::open(&out, &identity, true).unwrap().len(), 7);
}

#[test]
fn a_second_process_is_told_who_writes_and_leftovers_of_a_dead_one_do_no_harm() {
    let (dir, encoders) = (tempfile::tempdir().unwrap(), encoders());
    let (folder, out) = (dir.path().join("images"), dir.path().join("cache"));
    write_folder(&folder, 0..3);
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("cache.lock"), "process 1 on another host").unwrap();
    let options = CacheOptions { shard: 4, batch: 2, ..CacheOptions::default() };
    let source = ImageText::open([&folder]).unwrap();
    let mut second = None;
    LatentCache::build(&source, &encoders, &out, &options, &mut |_| {
        second.get_or_insert_with(|| build(&encoders, &folder, &out).unwrap_err());
        data::Result::Ok(())
    })
    .unwrap();
    let said = second.unwrap().to_string();
    assert!(said.contains(&format!("cache.lock: in use by process {} on ", std::process::id())) && said.contains("wait"), "{said}");
    assert!(!out.join("cache.lock").exists());
    assert_eq!(build(&encoders, &folder, &out).unwrap().new, 0);
}

#[test]
fn a_cache_of_nothing_is_not_complete() {
    let (dir, encoders) = (tempfile::tempdir().unwrap(), encoders());
    let (folder, out) = (dir.path().join("images"), dir.path().join("cache"));
    std::fs::create_dir(&folder).unwrap();
    assert!(matches!(build(&encoders, &folder, &out), Err(Error::NoImages { .. })));
    std::fs::write(folder.join("0.png"), png(0)).unwrap();
    match build(&encoders, &folder, &out) {
        Err(Error::AllBad { count: 1, name, reason, .. }) => {
            assert!(name.ends_with("images/0.png") && reason.contains("no caption"), "{name} {reason}")
        }
        other => panic!("{other:?}"),
    }
    let manifest = std::fs::read_to_string(out.join("cache.json")).unwrap();
    assert!(manifest.contains("\"complete\": false") && std::fs::read_to_string(out.join("bad.json")).unwrap().contains("0.png"));
}

#[test]
fn photographs_are_cached_upright() {
    let (dir, encoders) = (tempfile::tempdir().unwrap(), encoders());
    let files = fixtures().join("../images");
    let out = dir.path().join("cache");
    for (name, number) in [("jpeg-1.jpg", 1), ("jpeg-3.jpg", 3), ("jpeg-6.jpg", 6)] {
        let folder = dir.path().join("images");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(files.join(name), folder.join(name)).unwrap();
        std::fs::write(folder.join(format!("jpeg-{number}.txt")), "blocks").unwrap();
        let expected = dir.path().join("expected");
        std::fs::create_dir_all(&expected).unwrap();
        std::fs::copy(files.join(format!("expected/jpeg-{number}.png")), expected.join(format!("jpeg-{number}.png"))).unwrap();
        std::fs::write(expected.join(format!("jpeg-{number}.txt")), "blocks").unwrap();
    }
    let all = |source: &str, out: &Path| {
        build(&encoders, dir.path().join(source), out).unwrap();
        let mut rows = Vec::new();
        for entry in std::fs::read_dir(out).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let file = TensorFile::open(&path).unwrap();
                let names: Vec<String> = serde_json::from_str(&file.metadata()["names"]).unwrap();
                let (mean, ids) = (file.tensor("mean").unwrap().unwrap(), file.tensor("time_ids").unwrap().unwrap());
                for (row, name) in names.iter().enumerate() {
                    let stem = Path::new(name).file_stem().unwrap().to_owned();
                    rows.push((stem, Vec::<i64>::try_from(ids.get(row as i64)).unwrap(), mean.get(row as i64).to_kind(Kind::Float)));
                }
            }
        }
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        rows
    };
    let (read, upright) = (all("images", &out), all("expected", &dir.path().join("upright")));
    assert_eq!(read.len(), 3);
    for (a, b) in read.iter().zip(&upright) {
        assert_eq!((&a.0, &a.1), (&b.0, &b.1));
        let off = (&a.2 - &b.2).abs().max().double_value(&[]) / b.2.abs().max().double_value(&[]);
        // JPEG's decoders round; a turned image is far off.
        assert!(off < 0.1, "{:?}: {off}", a.0);
    }
    assert_eq!((&read[0].1[..2], &read[2].1[..2]), (&[16, 24][..], &[24, 16][..]), "height and width of the upright image");
    let unused: Vec<Rejected> = build(&encoders, dir.path().join("images"), &out).unwrap().bad;
    assert!(unused.is_empty());
}
