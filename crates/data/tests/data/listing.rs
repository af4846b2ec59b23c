//! What folders, tars and tables are found to have, as people have them: every image is taken or named, with the caption that is its own.

use std::ops::ControlFlow;
use std::path::Path;

use data::{Columns, Error, ImageText, Rejected};
use diffusion::images::decode;

use crate::support::{gzip, png, tar};

/// Name, caption and the number in the pixels of what is taken; name and reason of what is not.
type Seen = (Vec<(String, String, u8)>, Vec<(String, String)>);

fn visit(source: &ImageText) -> data::Result<Seen> {
    let (mut taken, mut bad) = Seen::default();
    let _all = source.visit(&mut |_, found| -> data::Result<_> {
        match found {
            Ok(image) => {
                let number = decode(&image.bytes().unwrap()).unwrap().get_pixel(0, 0).0[0];
                taken.push((image.name, image.caption, number));
            }
            Err(Rejected { name, reason }) => bad.push((name, reason)),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((taken, bad))
}

fn seen(path: impl AsRef<Path>) -> Seen {
    visit(&ImageText::open([path.as_ref()]).unwrap()).unwrap()
}

fn refused(path: impl AsRef<Path>) -> String {
    ImageText::open([path.as_ref()]).and_then(|source| visit(&source)).unwrap_err().to_string()
}

/// A folder with these files, folders above them included.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

fn of(expected: &[(&str, &str, u8)]) -> Vec<(String, String, u8)> {
    expected.iter().map(|(name, caption, n)| (name.to_string(), caption.to_string(), *n)).collect()
}

const FORMS: &[(&str, &str, u8)] = &[
    ("0.JPG", "a cat", 0),
    ("1.png", "a dog", 1),
    ("2.png", "a bird", 2),
    ("3.png", "a fish", 3),
    ("4.png", "ein Bär", 4),
    ("5.png", "first of two", 5),
    ("6.v1.png", "with a dot", 6),
    ("7.png", "by its full name", 7),
];

fn forms() -> Vec<(&'static str, Vec<u8>)> {
    let wide: Vec<u8> = "\u{feff}ein Bär\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let texts: [(&str, &[u8]); 9] = [
        ("0.TXT", b"\xef\xbb\xbfa cat\r\n"),
        ("1.caption", b"a\n  dog"),
        ("2.json", br#"{"url": "x", "caption": "a bird", "width": 8}"#),
        ("3.Json", br#"["no object"]"#),
        ("3.txt", b"a fish"),
        ("4.txt", &wide),
        ("5.json", br#"{"captions": ["first of two", "second"]}"#),
        ("6.v1.txt", b"with a dot"),
        ("7.png.txt", b"by its full name"),
    ];
    let images = FORMS.iter().map(|(name, _, n)| (*name, png(*n)));
    let mut all: Vec<_> = images.chain(texts.map(|(name, bytes)| (name, bytes.to_vec()))).collect();
    all.sort();
    all
}

#[test]
fn captions_of_every_form_belong_to_their_images_in_folders_and_tars() {
    let forms = forms();
    let files: Vec<(&str, &[u8])> = forms.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let dir = folder(&files);
    assert_eq!(seen(dir.path()), (of(FORMS), Vec::new()));
    // In a tar, images first and captions long after them too; compressed, and named as if it were not.
    let (mut images, texts): (Vec<_>, Vec<_>) = files.iter().copied().partition(|(name, _)| name.to_lowercase().ends_with("g"));
    images.extend(texts);
    let plain = tar(&files);
    for (name, bytes) in [
        ("a.tar", plain.clone()),
        ("b.tar", tar(&images)),
        ("c.tar.gz", gzip(&plain)),
        ("d.TAR", gzip(&plain)),
        ("e.tgz", gzip(&tar(&images))),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(seen(&path), (of(FORMS), Vec::new()), "{name}");
    }
}

#[test]
fn keys_of_a_tar_go_to_the_first_dot() {
    let (a, b, c) = (png(1), png(2), png(3));
    let members: [(&str, &[u8]); 7] = [
        ("./x/00.input.png", &a),
        ("./x/00.output.TXT", b"a cat"),
        ("./x/00.cls", b"3"),
        ("01.before.png", &b),
        ("01.before.txt", b"before"),
        ("01.after.png", &c),
        ("01.after.txt", b"after"),
    ];
    let dir = folder(&[("a.tar", &tar(&members))]);
    let expected = of(&[("x/00.input.png", "a cat", 1), ("01.before.png", "before", 2), ("01.after.png", "after", 3)]);
    assert_eq!(seen(dir.path().join("a.tar")), (expected, Vec::new()));
}

#[test]
fn every_image_is_taken_or_named() {
    let images: Vec<Vec<u8>> = (0..9).map(png).collect();
    let avif = b"\0\0\0\x1cftypavif\0\0\0\0avif".as_slice();
    let files: Vec<(&str, &[u8])> = vec![
        ("a.jpg", &images[0]),
        ("a.png", &images[1]),
        ("a.webp", &images[2]),
        ("a.txt", b"three of one name"),
        ("b.avif", avif),
        ("c.heic", &images[3]),
        ("c.txt", b"named wrongly"),
        ("d.NEF", b"II*\0"),
        ("e", &images[4]),
        ("e.txt", b"without an ending"),
        ("f.jpg_large", &images[5]),
        ("f.txt", b"as a browser calls it"),
        ("g.png", &images[6]),
        ("h.png", &images[7]),
        ("h.txt", b" \n"),
        ("i.png", &images[8]),
        ("i.txt", b"Stra\xdfe"),
        (".hidden.png", &images[0]),
        ("._a.jpg", b"x"),
        ("__MACOSX/a.jpg", b"x"),
        ("lost+found/a.jpg", &images[0]),
        ("Thumbs.db", b"x"),
        ("notes.pdf", b"%PDF"),
    ];
    let taken = of(&[
        ("a.jpg", "three of one name", 0),
        ("a.png", "three of one name", 1),
        ("a.webp", "three of one name", 2),
        ("c.heic", "named wrongly", 3),
        ("e", "without an ending", 4),
        ("f.jpg_large", "as a browser calls it", 5),
    ]);
    let named = [
        ("b.avif", "AVIF is not read; convert it"),
        ("d.NEF", "raw format"),
        ("g.png", "no caption"),
        ("h.png", "is empty"),
        ("i.png", "not UTF-8"),
    ];
    let dir = folder(&files);
    let archive = dir.path().join("x.tar");
    std::fs::write(&archive, tar(&files)).unwrap();
    for path in [&archive, dir.path()] {
        if path.is_dir() {
            std::fs::remove_file(&archive).unwrap();
        }
        let (found, bad) = seen(path);
        assert_eq!(found, taken, "{path:?}");
        let bad: Vec<(&str, &str)> = bad.iter().map(|(name, reason)| (name.as_str(), reason.as_str())).collect();
        assert_eq!(bad.len(), named.len(), "{bad:?}");
        for ((name, reason), (expected, words)) in bad.iter().zip(named) {
            assert!(*name == expected && reason.contains(words), "{name}: {reason}");
        }
    }
}

#[test]
fn a_name_twice_in_a_tar_is_told() {
    let (a, b) = (png(1), png(2));
    let dir = folder(&[(
        "a.tar",
        &tar(&[("0.png", &a), ("0.txt", b"one"), ("1.png", &a), ("1.txt", b"two"), ("0.png", &b), ("0.txt", b"three")]),
    )]);
    let (taken, bad) = seen(dir.path().join("a.tar"));
    assert_eq!(taken, of(&[("0.png", "one", 1), ("1.png", "two", 1)]));
    assert!(bad.len() == 1 && bad[0].0 == "0.png" && bad[0].1.contains("another file of this name"), "{bad:?}");
}

#[test]
fn metadata_files_of_image_folders_give_captions() {
    let images: Vec<Vec<u8>> = (0..6).map(png).collect();
    let jsonl = "\u{feff}{\"file_name\": \"0.png\", \"text\": \"a cat\"}\n\n{\"file_name\": \"./in/1.png\", \"text\": \"far\"}\n{\"file_name\": \"in\\\\2.png\", \"text\": [\"from Windows\", \"x\"]}\n";
    let csv = "file_name;text\r\n1.png;\"near; and \"\"quoted\"\"\"\r\n3.png;\r\n4.png;listed\r\n";
    let dir = folder(&[
        ("0.png", &images[0]),
        ("in/1.png", &images[1]),
        ("in/2.png", &images[2]),
        ("in/3.png", &images[3]),
        ("in/4.png", &images[4]),
        ("in/4.txt", b"beside it"),
        ("in/5.png", &images[5]),
        ("metadata.jsonl", jsonl.as_bytes()),
        ("in/metadata.csv", csv.as_bytes()),
    ]);
    let (taken, bad) = seen(dir.path());
    let expected =
        [("0.png", "a cat", 0), ("in/1.png", "near; and \"quoted\"", 1), ("in/2.png", "from Windows", 2), ("in/4.png", "beside it", 4)];
    assert_eq!(taken, of(&expected));
    assert!(bad.len() == 2 && bad[0].0 == "in/3.png" && bad[1].1.contains("2 tables of metadata"), "{bad:?}");

    // Other columns, by name or because there is one only.
    for (name, table, columns) in [
        ("metadata.csv", "file_name,label\n0.png,a cat\n", Columns::default()),
        ("metadata.jsonl", "{\"file_name\": \"0.png\", \"label\": \"a cat\", \"n\": 1}", Columns::default()),
        ("metadata.csv", "image,a,b\n0.png,x,a cat\n", Columns { image: Some("image".into()), caption: Some("b".into()) }),
        ("metadata.csv", "main_file_name,text\n0.png,a cat\n", Columns::default()),
    ] {
        let dir = folder(&[("0.png", &images[0]), (name, table.as_bytes())]);
        let source = ImageText::open([dir.path()]).unwrap().with_columns(columns);
        assert_eq!(visit(&source).unwrap().0, of(&[("0.png", "a cat", 0)]), "{table}");
    }
    for (name, table, words) in [
        ("metadata.csv", "file_name,a,b\n0.png,x,y\n", "no column of captions"),
        ("metadata.csv", "name,text\n0.png,x\n", "no column `file_name`"),
        ("metadata.csv", "file_name,text\n0.png,x,y,z\n", "fields"),
        ("metadata.jsonl", "{\"file_name\": \"0.png\"}\n{\"text\": 1}", "line 2: no `file_name`"),
        ("metadata.jsonl", "{\"file_name\": \"0.png\"", "line 1: no JSON object"),
    ] {
        let dir = folder(&[("0.png", &images[0]), (name, table.as_bytes())]);
        let said = refused(dir.path());
        assert!(said.contains(name) && said.contains(words), "{said}");
    }
}

#[test]
fn folders_of_shards_are_read_as_the_shards_are() {
    let (a, b, c) = (png(1), png(2), png(3));
    let dir = folder(&[
        ("00000.tar", &tar(&[("0.png", &a), ("0.txt", b"one")])),
        ("00000.parquet", b"what img2dataset knows of each image"),
        ("00001.tar.gz", &gzip(&tar(&[("0.png", &b), ("0.txt", b"two")]))),
        ("in/00002.tar", &tar(&[])),
        ("z.png", &c),
        ("z.txt", b"three"),
    ]);
    let expected = of(&[("00000.tar/0.png", "one", 1), ("00001.tar.gz/0.png", "two", 2), ("z.png", "three", 3)]);
    assert_eq!(seen(dir.path()), (expected, Vec::new()));
    let tables = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parquet");
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::copy(tables.join("datasets.parquet"), dir.path().join("data/train-00000-of-00001.parquet")).unwrap();
    for n in 0..3 {
        std::fs::copy(tables.join(format!("{n}.png")), dir.path().join(format!("data/{n}.png"))).unwrap();
    }
    let (taken, bad) = seen(dir.path());
    let names: Vec<&str> = taken.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names[2..5], [0, 1, 2].map(|n| format!("data/train-00000-of-00001.parquet/{n:09}")), "{names:?}");
    assert_eq!((taken.len(), bad.len()), (7, 3), "{bad:?}");
}

#[test]
fn tables_have_images_and_captions_in_every_form() {
    let tables = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/parquet");
    let pixels = |n: usize| decode(&std::fs::read(tables.join(format!("{n}.png"))).unwrap()).unwrap().get_pixel(0, 0).0[0];
    let row = |n: usize, caption: &str, image: usize| (format!("{n:09}"), caption.to_string(), pixels(image));
    let (taken, bad) = seen(tables.join("base64.parquet"));
    assert_eq!(taken, [row(0, "red 0", 0), row(1, "red 1", 1), row(4, "red 2", 2)]);
    assert!(bad[0].1.contains("example.org") && bad[0].1.contains("is an address; fetch the images first"), "{bad:?}");
    assert!(bad[1].1.contains("neither the path of an image nor its base64"), "{bad:?}");
    assert!(bad.len() == 2 && bad.iter().all(|(_, reason)| reason.len() < 200));
    assert_eq!(seen(tables.join("lists.parquet")), (vec![row(0, "a", 0)], Vec::new()));
    let (taken, bad) = seen(tables.join("large.parquet"));
    assert_eq!((taken, bad.len()), (vec![row(0, "red 0", 0)], 1));
    // Beside its images, and named as one pleases.
    let dir = folder(&[("0.png", &png(0)), ("in/0.png", &png(1)), ("in/1.png", &png(2))]);
    std::fs::copy(tables.join("list.parquet"), dir.path().join("in/metadata.parquet")).unwrap();
    std::fs::copy(tables.join("large.parquet"), dir.path().join("table")).unwrap();
    let source = ImageText::open([dir.path().join("in")]).unwrap();
    let source = source.with_columns(Columns { image: Some("path".into()), caption: None });
    assert_eq!(visit(&source).unwrap(), (of(&[("0.png", "red 0", 1), ("1.png", "red 1", 2)]), Vec::new()));
    assert_eq!(seen(dir.path().join("table")).0.len(), 1);
}

#[test]
fn nothing_found_is_an_error_that_says_what_there_is() {
    let table = |files: &[(&str, &[u8])], path: &str, words: &[&str]| {
        let dir = folder(files);
        std::fs::create_dir_all(dir.path().join("empty")).unwrap();
        let said = refused(dir.path().join(path));
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    table(&[], "empty", &["empty: no image with a caption: it is empty", "0001.jpg beside 0001.txt"]);
    table(&[("a/x.tar", &tar(&[])), ("a/y.tar", &tar(&[("0.txt", b"x")]))], "a", &["2 tars without images"]);
    table(
        &[("a/0.txt", b"x"), ("a/1.txt", b"x"), ("a/README", b"x"), ("a/.b/0.png", b"x")],
        "a",
        &["2 .txt files", "1 file without ending", "hidden"],
    );
    table(&[("x.tar", &tar(&[]))], "x.tar", &["x.tar: no image with a caption: it is empty"]);
    table(&[("x.tar", b"")], "x.tar", &["x.tar: an empty file"]);
    table(&[("x.tar", b"<html><head><title>404</title>")], "x.tar", &["x.tar: not a tar but a web page"]);
    table(&[("x.zip", b"PK\x03\x04..")], "x.zip", &["x.zip: not a tar but a zip archive"]);
    table(&[("x.tar.zst", b"\x28\xb5\x2f\xfd..")], "x.tar.zst", &["compressed with zstd"]);
    table(&[("x.png", &png(1))], "x.png", &["an image, not a tar; name the folder that it stands in"]);
    table(&[("x.tar", &[7; 2000])], "x.tar", &["x.tar: not a tar"]);
    table(&[], "nothing", &["nothing: No such file"]);
}

#[test]
fn a_tar_that_ends_early_is_an_error_that_says_where() {
    let (a, b) = (png(1), png(2));
    let whole = tar(&[("0.png", &a), ("0.txt", b"one"), ("1.png", &b), ("1.txt", b"two")]);
    let dir = folder(&[]);
    let path = dir.path().join("x.tar");
    // Two headers and two contents of one block each stand before the second image.
    for (len, words) in [(5 * 512 + 20, "inside `1.png`"), (4 * 512 + 100, "after `0.txt`"), (512 + 10, "inside `0.png`")] {
        for (name, bytes) in [("x.tar", whole[..len].to_vec()), ("x.tar.gz", gzip(&whole[..len]))] {
            let path = dir.path().join(name);
            std::fs::write(&path, &bytes).unwrap();
            let said = refused(&path);
            assert!(said.contains("ends early") && said.contains("fetch or write it again"), "{name} of {len}: {said}");
            assert!(name.ends_with("gz") || said.contains(words), "{said}");
        }
    }
    let packed = gzip(&whole);
    std::fs::write(dir.path().join("y.tar.gz"), &packed[..packed.len() - 20]).unwrap();
    assert!(refused(dir.path().join("y.tar.gz")).contains("ends early"));
    // Without the mark of its end it is read.
    std::fs::write(&path, &whole[..8 * 512]).unwrap();
    assert_eq!(seen(&path).0.len(), 2);
}

#[cfg(unix)]
#[test]
fn links_are_followed_once_and_names_that_are_no_text_are_two() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    let (a, b, c) = (png(1), png(2), png(3));
    let elsewhere = folder(&[("deep/0.png", &a), ("deep/0.txt", b"linked"), ("1.png", &b)]);
    let dir = folder(&[("in/2.png", &c), ("in/2.txt", b"own"), ("3.txt", b"a linked file")]);
    let at = |name: &str| dir.path().join(name);
    symlink(elsewhere.path().join("deep"), at("link")).unwrap();
    symlink(elsewhere.path().join("1.png"), at("3.png")).unwrap();
    symlink(dir.path(), at("in/loop")).unwrap();
    symlink(at("in"), at("again")).unwrap();
    symlink("nowhere.png", at("dead.png")).unwrap();
    let expected = [("3.png", "a linked file", 2), ("in/2.png", "own", 3), ("link/0.png", "linked", 1)];
    assert_eq!(seen(dir.path()), (of(&expected), Vec::new()));
    // A folder that is nothing but a link.
    symlink(elsewhere.path().join("deep"), elsewhere.path().join("to")).unwrap();
    assert_eq!(seen(elsewhere.path().join("to")).0, of(&[("0.png", "linked", 1)]));

    let two = folder(&[]);
    for (n, byte) in [(1, 0xfe), (2, 0xff)] {
        let stem = [b"caf", &[byte][..]].concat();
        std::fs::write(two.path().join(OsStr::from_bytes(&[&stem, &b".png"[..]].concat())), png(n)).unwrap();
        std::fs::write(two.path().join(OsStr::from_bytes(&[&stem, &b".txt"[..]].concat())), format!("{n}")).unwrap();
    }
    assert_eq!(seen(two.path()).0, of(&[("caf\\xFE.png", "1", 1), ("caf\\xFF.png", "2", 2)]));
}

#[test]
fn what_is_named_twice_is_read_once() {
    let dir = folder(&[
        ("a/0.png", &png(1)),
        ("a/0.txt", b"x"),
        ("a/in/1.png", &png(2)),
        ("a/in/1.txt", b"y"),
        ("b/2.png", &png(3)),
        ("b/2.txt", b"z"),
    ]);
    let at = |name: &str| dir.path().join(name);
    let source = ImageText::open([at("a/in"), at("a"), at("b/../a/."), at("a/"), at("b")]).unwrap();
    assert_eq!(visit(&source).unwrap().0, of(&[("0.png", "x", 1), ("in/1.png", "y", 2), ("2.png", "z", 3)]));
    assert!(matches!(ImageText::open(Vec::<&str>::new()), Err(Error::Input { .. })));
}
