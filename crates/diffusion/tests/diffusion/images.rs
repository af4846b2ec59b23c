//! Images as tensors and files.

use std::collections::BTreeMap;

use diffusion::{Error, images};
use image::RgbImage;

fn gradient(w: u32, h: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, y| image::Rgb([(x * 20) as u8, (y * 30) as u8, (x * y) as u8]))
}

#[test]
fn images_survive_tensors_and_files() {
    let (a, b) = (gradient(7, 5), gradient(7, 5));
    let t = images::to_tensor(&[&a, &b]).unwrap();
    assert_eq!(t.size(), [2, 3, 5, 7]);
    // Pixel (x 2, y 1), green: 30 / 127.5 - 1.
    assert!((t.double_value(&[1, 1, 1, 2]) - (30.0 / 127.5 - 1.0)).abs() < 1e-6);
    assert_eq!(images::from_tensor(&t).unwrap(), [a.clone(), b]);
    assert_eq!(images::from_tensor(&(&t * 0.0 + 7.0)).unwrap()[0].get_pixel(0, 0).0, [255; 3]);
    assert!(matches!(images::from_tensor(&(&t * f64::NAN)), Err(Error::NotFinite { .. })));
    assert!(matches!(images::to_tensor(&[&a, &gradient(5, 7)]), Err(Error::Input { .. })));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    let text: BTreeMap<String, String> =
        [("prompt", "a red circle"), ("seed", "7"), ("author", "Ærøskøbing 红")].map(|(k, v)| (k.into(), v.into())).into();
    images::write_png(&path, &a, &text).unwrap();
    assert_eq!(images::read_image(&path).unwrap(), a);
    assert_eq!(images::read_png_text(&path).unwrap(), text);
    let nowhere = images::write_png(dir.path().join("nowhere/a.png"), &a, &text).unwrap_err();
    assert!(matches!(nowhere, Error::Io { ref path, .. } if path.ends_with("nowhere/a.png")), "{nowhere}");
    let bytes = std::fs::read(&path).unwrap();
    images::write_png(&path, &a, &text).unwrap();
    assert_eq!(bytes, std::fs::read(&path).unwrap());
    std::fs::write(&path, &bytes[..40]).unwrap();
    assert!(matches!(images::read_image(&path), Err(Error::Format { .. })));
}

#[test]
fn a_grid_puts_images_row_by_row() {
    let (a, b, c) = (gradient(4, 3), RgbImage::new(4, 3), gradient(2, 2));
    let sheet = images::grid(&[&a, &b, &c], 2, 1).unwrap();
    assert_eq!(sheet.dimensions(), (2 * 5 + 1, 2 * 4 + 1));
    assert_eq!(sheet.get_pixel(0, 0).0, [255; 3]);
    assert_eq!(sheet.get_pixel(1 + 3, 1 + 2), a.get_pixel(3, 2));
    assert_eq!(sheet.get_pixel(6, 1).0, [0; 3]);
    assert_eq!(sheet.get_pixel(1 + 1, 5 + 1), c.get_pixel(1, 1));
    assert!(images::grid(&[], 2, 1).is_err());
}

#[test]
fn images_are_cut_to_their_middle() {
    let a = gradient(7, 5);
    assert_eq!(images::fit(&a, 7, 5).unwrap(), a);
    // Three squares of one colour each, upright and lying.
    let colours = [[200, 0, 0], [0, 200, 0], [0, 0, 200]];
    let wide = RgbImage::from_fn(36, 12, |x, _| image::Rgb(colours[x as usize / 12]));
    let tall = RgbImage::from_fn(12, 36, |_, y| image::Rgb(colours[y as usize / 12]));
    for (image, side) in [(&wide, 4), (&tall, 4), (&wide, 12), (&tall, 24)] {
        let middle = images::fit(image, side, side).unwrap();
        assert_eq!(middle.dimensions(), (side, side));
        assert!(middle.pixels().all(|p| p.0 == colours[1]), "{side}");
    }
    assert_eq!(images::fit(&wide, 24, 8).unwrap().get_pixel(23, 7).0, colours[2]);
    assert!(images::fit(&a, 0, 5).is_err());
}

/// Image files of tests/fixtures/gen_images.py, with what Pillow reads.
fn files() -> Vec<(String, Vec<u8>, RgbImage)> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/images");
    let paths = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let file = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let expected = dir.join("expected").join(path.with_extension("png").file_name().unwrap());
        (name, std::fs::read(path).unwrap(), image::open(expected).unwrap().to_rgb8())
    };
    paths.map(file).collect()
}

#[test]
fn image_files_are_read_upright_as_pillow_reads_them() {
    let files = files();
    assert!(files.len() > 40);
    let other = files.into_iter().filter_map(|(name, bytes, expected)| {
        let read = match images::decode(&bytes) {
            Ok(read) => read,
            Err(e) => return Some(format!("{name}: {e}")),
        };
        let header = images::dimensions(std::io::Cursor::new(&bytes)).unwrap();
        if read.dimensions() != expected.dimensions() || header != expected.dimensions() {
            return Some(format!("{name}: {:?}, header {header:?}, expected {:?}", read.dimensions(), expected.dimensions()));
        }
        let worst = read.as_raw().iter().zip(expected.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // Decoders of JPEG round differently, and so do conversions from CMYK.
        let allowed = if bytes.starts_with(b"\xff\xd8") || name.contains("cmyk") { 4 } else { 0 };
        (worst > allowed).then(|| format!("{name}: off by {worst}"))
    });
    let other: Vec<String> = other.collect();
    assert!(other.is_empty(), "{other:#?}");
}

#[test]
fn what_ends_early_is_refused() {
    // The first image of an animation stands in its first half.
    for (name, bytes, _) in files().into_iter().filter(|(name, ..)| !name.starts_with("animated")) {
        assert!(images::decode(&bytes[..bytes.len() / 2]).is_err(), "half of {name}");
        assert!(images::decode(&bytes[..20]).is_err(), "the beginning of {name}");
    }
    let marked = |bytes: &[u8]| bytes.starts_with(b"\xff\xd8") || bytes.starts_with(b"RIFF");
    let ended = files().into_iter().filter(|(name, bytes, _)| marked(bytes) && name != "trailing.jpeg");
    for (name, bytes, _) in ended {
        for cut in [1, 2, 3, 9, 40] {
            let refused = images::decode(&bytes[..bytes.len() - cut]);
            assert!(matches!(refused, Err(images::DecodeError::Truncated)), "{name} without {cut} bytes: {refused:?}");
        }
    }
}

#[test]
fn what_is_no_image_is_called_by_its_name() {
    for (bytes, said) in [
        (&b""[..], "an empty file"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avif", "AVIF is not read; convert it to PNG or JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "HEIC is not read"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 is not read"),
        (b"8BPS\0\x01", "Photoshop's format is not read"),
        (b"<?xml version=\"1.0\"?><svg/>", "SVG is not read"),
        (b"\xef\xbb\xbf  <!DOCTYPE html><html>", "not an image but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"{\"error\": 404}", "not an image but text"),
        (b"\x01\x02\x03\x80", "format"),
    ] {
        let problem = images::decode(bytes).unwrap_err().to_string();
        assert!(problem.contains(said), "{problem}");
        assert_eq!(images::dimensions(std::io::Cursor::new(bytes)).unwrap_err().to_string(), problem);
    }
}
