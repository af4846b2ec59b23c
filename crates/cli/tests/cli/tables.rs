//! `cache` and `calibrate` from Parquet tables (tests/fixtures/gen_parquet.py): the same as from a folder, and nothing lost or doubled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::CalibrationSet;
use tch::Tensor;
use unet::weights::TensorFile;

use crate::support::{base, command, fails, names, ok, read_json, text};

fn tables() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parquet")
}

fn cache_of(source: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let model = text(&base().model);
    let call = ["cache", "--model", model, "--images", text(source), "--out", text(out), "--device", "cpu"];
    [&call[..], &["--shard", "2", "--batch", "1", "--size", "64"], more].concat().iter().map(|s| s.to_string()).collect()
}

/// Name, caption and VAE mean of everything in a cache.
fn content(dir: &Path) -> Vec<(String, String, Tensor)> {
    let mut out = Vec::new();
    for file in read_json(&dir.join("cache.json"))["shards"].as_array().unwrap() {
        let file = TensorFile::open(dir.join(file.as_str().unwrap())).unwrap();
        let list = |key: &str| -> Vec<String> { serde_json::from_str(&file.metadata()[key]).unwrap() };
        let mean = file.tensor("mean").unwrap().unwrap();
        for (row, (name, caption)) in list("names").into_iter().zip(list("captions")).enumerate() {
            out.push((name.rsplit('/').next().unwrap().to_string(), caption, mean.get(row as i64)));
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

#[test]
fn tables_give_what_the_same_images_in_a_folder_give() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    for (name, (n, caption)) in ["a", "b", "c", "d"].iter().zip([(0, "red 0"), (1, "red 1"), (2, "red 2"), (0, "blue 0")]) {
        std::fs::copy(tables().join(format!("{n}.png")), folder.join(format!("{name}.png"))).unwrap();
        std::fs::write(folder.join(format!("{name}.txt")), caption).unwrap();
    }
    let run = |source: &Path, name: &str| {
        let out = dir.path().join(name);
        let args = cache_of(source, &out, &[]);
        let said = ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        (content(&out), said, read_json(&out.join("bad.json")))
    };
    let (expected, ..) = run(&folder, "from-folder");
    assert_eq!(expected.len(), 4);
    // The table, its rows, and what is wrong with the others.
    type Case<'a> = (&'a str, [u32; 4], &'a [(&'a str, &'a str)]);
    let cases: [Case; 3] = [
        ("embedded", [0, 1, 3, 6], &[("2", "no image in column `jpg`"), ("4", "image"), ("5", "no caption")]),
        ("list", [0, 1, 3, 4], &[("2", "missing.png: ")]),
        ("datasets", [0, 1, 2, 3], &[]),
    ];
    for (name, rows, wrong) in cases {
        let (found, said, bad) = run(&tables().join(format!("{name}.parquet")), name);
        assert!(said.contains("4 images in") && said.contains(&format!("{} left out", wrong.len())), "{said}");
        assert_eq!(found.len(), 4, "{name}");
        for ((found, expected), row) in found.iter().zip(&expected).zip(rows) {
            assert_eq!((&found.0, &found.1), (&format!("{row:09}"), &expected.1), "{name}");
            assert!(found.2.equal(&expected.2), "{name}, row {row}");
        }
        let bad = bad.as_array().unwrap();
        assert_eq!(bad.len(), wrong.len(), "{bad:?}");
        for (bad, (row, reason)) in bad.iter().zip(wrong) {
            assert!(bad["name"].as_str().unwrap().ends_with(&format!("{name}.parquet/00000000{row}")), "{bad}");
            assert!(bad["reason"].as_str().unwrap().contains(reason), "{bad}");
        }
    }
}

#[test]
fn a_table_is_gone_on_with_in_the_middle_of_a_shard() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, resumed) = (dir.path().join("whole"), dir.path().join("resumed"));
    let run = |out: &Path, more: &[&str]| {
        command(&cache_of(&tables().join("embedded.parquet"), out, more).iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()
    };
    assert!(run(&whole, &[]).status.success());
    let stopped = run(&resumed, &["--max-bad", "0"]);
    assert_eq!(stopped.status.code(), Some(3), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert!(names(&resumed).iter().any(|n| n.contains(".part-")), "{:?}", names(&resumed));
    assert!(run(&resumed, &[]).status.success());
    assert_eq!(names(&resumed), names(&whole));
    for name in names(&whole) {
        assert!(std::fs::read(resumed.join(&name)).unwrap() == std::fs::read(whole.join(&name)).unwrap(), "{name}");
    }
}

#[test]
fn calibration_sets_come_from_tables_too() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("set.safetensors");
    let table = tables().join("list.parquet");
    ok(&["calibrate", "--model", text(&base().model), "--images", text(&table), "--device", "cpu", "--out", text(&out)]);
    assert_eq!(CalibrationSet::open(&out).unwrap().prompts, ["red 0", "red 1", "red 2", "blue 0"]);
}

#[test]
fn tables_that_cannot_be_read_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(tables().join("embedded.parquet")).unwrap();
    let damaged: BTreeMap<&str, Vec<u8>> = BTreeMap::from([
        ("empty", Vec::new()),
        ("cut", bytes[..bytes.len() / 2].to_vec()),
        // The images, and not what describes them.
        ("spoiled", bytes.iter().enumerate().map(|(i, b)| if (100..1000).contains(&i) { !b } else { *b }).collect()),
    ]);
    let out = dir.path().join("out");
    let wrong = |source: &Path, more: &[&str], words: &[&str]| {
        let args = cache_of(source, &out, more);
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), 3, words);
    };
    for (name, bytes) in damaged {
        let path = dir.path().join(format!("{name}.parquet"));
        std::fs::write(&path, bytes).unwrap();
        wrong(&path, &[], &[&format!("{name}.parquet: no intact Parquet table"), "snappy or zstd"]);
    }
    let table = |name: &str| tables().join(name);
    wrong(&table("gzip.parquet"), &[], &["gzip.parquet: no intact Parquet table", "snappy or zstd"]);
    wrong(&table("list.parquet"), &["--caption-column", "width"], &["column `width`: expected texts", "--caption-column"]);
    wrong(&table("list.parquet"), &["--image-column", "width"], &["column `width`: expected one image file or path", "--image-column"]);
    let columns = "looked for photo); the table has width, path, text";
    wrong(&table("list.parquet"), &["--image-column", "photo"], &["no column of images", columns, "--image-column"]);
    wrong(&table("list.parquet"), &["--caption-column", "url"], &["no column of captions", "looked for url", "--caption-column"]);
    wrong(&dir.path().join("none.parquet"), &[], &["none.parquet", "No such file"]);
}
