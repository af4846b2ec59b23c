//! `calibrate --images`: images with captions from folders and tars become the points of a calibration set.

use std::collections::BTreeMap;
use std::path::Path;

use data::CalibrationSet;
use diffusion::NoiseSchedule;
use image::RgbImage;
use tch::{Device, Kind};

use crate::support::{SIZE, base, fails, names, ok, text};

const NAMES: [&str; 3] = ["00/a", "00/b.c", "z"];

fn image(n: u32) -> RgbImage {
    // Wide, upright and of the model's own size.
    let (w, h) = [(2 * SIZE, SIZE), (SIZE, 3 * SIZE), (SIZE, SIZE)][n as usize];
    RgbImage::from_fn(w, h, |x, y| image::Rgb([(x * 7 + n * 50) as u8, (y * 5) as u8, (x * y) as u8]))
}

fn write_folder(dir: &Path) {
    std::fs::create_dir_all(dir.join("00")).unwrap();
    for (n, name) in NAMES.iter().enumerate() {
        diffusion::images::write_png(dir.join(format!("{name}.png")), &image(n as u32), &BTreeMap::new()).unwrap();
        std::fs::write(dir.join(format!("{name}.txt")), format!("a red\n circle {n} ")).unwrap();
    }
    // One image is none, one has no caption.
    std::fs::write(dir.join("broken.jpg"), "not an image").unwrap();
    std::fs::write(dir.join("broken.txt"), "a caption").unwrap();
    std::fs::copy(dir.join("z.png"), dir.join("lone.png")).unwrap();
}

fn write_tar(folder: &Path, path: &Path) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    for name in ["00/a", "00/b.c", "broken", "lone", "z"] {
        for ending in ["json", "png", "jpg", "txt"] {
            let inner = format!("{name}.{ending}");
            if folder.join(&inner).is_file() {
                tar.append_path_with_name(folder.join(&inner), &inner).unwrap();
            }
        }
    }
    tar.finish().unwrap();
}

#[test]
fn images_with_captions_become_points() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (folder, tar) = (dir.path().join("images"), dir.path().join("images.tar"));
    write_folder(&folder);
    write_tar(&folder, &tar);
    let made = |source: &Path, name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let call = ["calibrate", "--model", text(&base.model), "--images", text(source), "--bins", "2", "--batch", "2", "--device", "cpu"];
        ok(&[&call[..], &["--out", text(&out)], more].concat());
        out
    };
    let out = made(&folder, "folder.safetensors", &["--max-bad", "2"]);
    let set = CalibrationSet::open(&out).unwrap();
    assert_eq!(set.prompts, ["a red circle 0", "a red circle 1", "a red circle 2"]);

    // The points are noised latents of the images' middles.
    let images: Vec<RgbImage> = (0..3).map(|n| diffusion::images::fit(&image(n), SIZE, SIZE).unwrap()).collect();
    let x = diffusion::images::to_tensor(&images.iter().collect::<Vec<_>>()).unwrap();
    let vae = diffusion::AutoencoderKl::open(&base.model, Device::Cpu, Kind::Float).unwrap();
    let expected = tch::no_grad(|| vae.encode(&x)).unwrap().mean * vae.config().scaling_factor;
    let schedule = NoiseSchedule::open(base.model.join("scheduler")).unwrap();
    let x0 = schedule.to_x0(set.target.as_ref().unwrap(), &set.x_t, &set.timesteps).unwrap();
    let worst = (x0 - expected).abs().max().double_value(&[]);
    assert!(worst < 1e-3, "{worst:e}");

    // A tar of the same files gives the same set; fewer images are another source.
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    assert!(bytes(&made(&tar, "tar.safetensors", &[])) == bytes(&out));
    let first = CalibrationSet::open(made(&tar, "first.safetensors", &["--count", "2"])).unwrap();
    assert_eq!(first.prompts, ["a red circle 0", "a red circle 1"]);
    assert_ne!(first.source_hash, set.source_hash);
    // The result can be scored on.
    let scores = dir.path().join("scores");
    let call = ["score", "--model", text(&base.model), "--calibration", text(&out), "--criterion", "output_loss", "--device", "cpu"];
    ok(&[&call[..], &["--out", text(&scores)]].concat());
    assert!(names(&scores).contains(&"output_loss.json".to_string()));
}

#[test]
fn too_many_bad_images_stop_the_run() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (dir.path().join("images"), dir.path().join("set.safetensors"));
    write_folder(&folder);
    let call = |more: &[&str], code: i32, words: &[&str]| {
        let call = ["calibrate", "--model", text(&base.model), "--device", "cpu", "--out", text(&out)];
        fails(&[&call[..], more].concat(), code, words);
        assert!(!out.exists());
    };
    let images = text(&folder);
    call(&["--images", images, "--max-bad", "1"], 3, &["2 images", "lone", "--max-bad"]);
    call(&["--images", images, "--count", "4"], 3, &["only 3 images", "4 are asked for"]);
    call(&["--images", images, "--count", "0"], 2, &["--count 0"]);
    call(&["--images", text(&dir.path().join("nowhere"))], 3, &["nowhere"]);
    call(&["--images", text(&base.model)], 3, &["no image with a caption"]);
    call(&["--images", images, "--steps", "3"], 2, &["--num-inference-steps", "--images"]);
}
