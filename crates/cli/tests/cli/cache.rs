//! `cache`: every image is stored once, in the bucket of its proportions, and a run that failed midway ends with the same bytes.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::Path;

use diffusion::{AutoencoderKl, ModelDir, TimeIds};
use image::RgbImage;
use tch::{Device, Kind, Tensor};
use unet::weights::TensorFile;

use crate::support::{SIZE, base, command, fails, names, ok, read_json, text};

fn image(w: u32, h: u32, n: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, y| image::Rgb([(x * 7 + n * 50) as u8, (y * 5) as u8, (x * y) as u8]))
}

// Seven images: square, lying and upright ones in turn.
fn write_folder(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for n in 0..7 {
        let (w, h) = [(SIZE, SIZE), (5 * SIZE, 3 * SIZE), (3 * SIZE, 5 * SIZE)][n as usize % 3];
        diffusion::images::write_png(dir.join(format!("{n}.png")), &image(w, h, n), &BTreeMap::new()).unwrap();
        std::fs::write(dir.join(format!("{n}.txt")), format!("a red circle {n}")).unwrap();
    }
}

fn assert_near(what: &str, ours: &Tensor, theirs: &Tensor) {
    // What f16 keeps.
    let scale = theirs.abs().max().double_value(&[]).max(1.0);
    let worst = (ours.to_kind(Kind::Float) - theirs).abs().max().double_value(&[]);
    assert!(worst <= 1e-3 * scale, "{what}: {worst:e}");
}

#[test]
fn every_image_is_stored_once_whatever_happens_in_between() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("images");
    write_folder(&folder);
    let call = |out: &str, more: &[&str]| {
        let call = ["cache", "--model", text(&base.model), "--images", "images", "--device", "cpu", "--out", out, "--shard", "2"];
        let args: Vec<String> = [&call[..], &["--batch", "1", "--size", "64"], more].concat().iter().map(|s| s.to_string()).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        command(&args).current_dir(dir.path()).output().unwrap()
    };
    let whole = call("whole", &[]);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    assert!(String::from_utf8_lossy(&whole.stderr).contains("KiB"), "the cost is told beforehand");
    let whole = dir.path().join("whole");
    let manifest = read_json(&whole.join("cache.json"));
    assert_eq!((manifest["images"].as_u64(), manifest["complete"].as_bool()), (Some(7), Some(true)));

    // The content is what the model's own parts make of the images.
    let vae = AutoencoderKl::open(&base.model, Device::Cpu, Kind::Float).unwrap();
    let parts = ModelDir::open(&base.model, None).unwrap();
    let encoders = parts.text_encoders(Device::Cpu, Kind::Float).unwrap();
    let mut seen = Vec::new();
    for file in manifest["shards"].as_array().unwrap() {
        let file = TensorFile::open(whole.join(file.as_str().unwrap())).unwrap();
        let listed: Vec<String> = serde_json::from_str(&file.metadata()["names"]).unwrap();
        let get = |name: &str| file.tensor(name).unwrap().unwrap();
        assert!(listed.len() <= 2);
        for (row, name) in listed.iter().enumerate() {
            let at = |t: &Tensor| t.get(row as i64).unsqueeze(0);
            // Images are known by their places, however the folder was named.
            let inner = Path::new(name).strip_prefix(folder.canonicalize().unwrap()).unwrap();
            let n: usize = inner.to_str().unwrap().strip_suffix(".png").unwrap().parse().unwrap();
            let ids: Vec<i64> = Vec::try_from(get("time_ids").get(row as i64)).unwrap();
            let (h, w) = (ids[4], ids[5]);
            let shape = [Ordering::Equal, Ordering::Less, Ordering::Greater][n % 3];
            assert_eq!((h.cmp(&w), ids[0].cmp(&ids[1])), (shape, shape), "{name}: {ids:?}");
            let source = diffusion::images::read_image(folder.join(format!("{n}.png"))).unwrap();
            assert_eq!((ids[0], ids[1]), (source.height().into(), source.width().into()));
            let x = diffusion::images::to_tensor(&[&diffusion::images::fit(&source, w as u32, h as u32).unwrap()]).unwrap();
            let moments = tch::no_grad(|| vae.encode(&x)).unwrap();
            assert_near("mean", &at(&get("mean")), &moments.mean);
            assert_near("logvar", &at(&get("logvar")), &moments.logvar);
            let cond = encoders.encode(&[&format!("a red circle {n}")], TimeIds::uncropped(h, w)).unwrap();
            assert_near("text", &at(&get("encoder_hidden_states")), &cond.encoder_hidden_states);
            assert_near("pooled", &at(&get("text_embeds")), &cond.added.unwrap().text_embeds);
            seen.push(n);
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);

    // A damaged image stops a run in the middle of a shard; without it the run goes on to the same bytes.
    std::fs::write(folder.join("45.jpg"), "not an image").unwrap();
    let failed = call("resumed", &["--max-bad", "0"]);
    assert_eq!(failed.status.code(), Some(3), "{}", String::from_utf8_lossy(&failed.stderr));
    let resumed = dir.path().join("resumed");
    assert!(names(&resumed).iter().any(|n| n.contains(".part-")), "{:?}", names(&resumed));
    std::fs::remove_file(folder.join("45.jpg")).unwrap();
    assert!(call("resumed", &[]).status.success());
    assert_eq!(names(&resumed), names(&whole));
    for name in names(&whole) {
        assert!(std::fs::read(resumed.join(&name)).unwrap() == std::fs::read(whole.join(&name)).unwrap(), "{name}");
    }
    // Nothing is left to do; a new image is added, a bad one named.
    assert!(String::from_utf8_lossy(&call("whole", &[]).stdout).contains("7 images in"));
    std::fs::copy(folder.join("0.png"), folder.join("8.png")).unwrap();
    std::fs::copy(folder.join("0.txt"), folder.join("8.txt")).unwrap();
    std::fs::copy(folder.join("0.png"), folder.join("9.png")).unwrap();
    let said = String::from_utf8_lossy(&call("whole", &[]).stdout).into_owned();
    assert!(said.contains("8 images in") && said.contains("1 of them new; 1 left out"), "{said}");
    assert_eq!(read_json(&whole.join("bad.json"))[0]["name"], "images/9.png");
}

#[test]
fn a_cache_of_other_settings_is_not_gone_on_with() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (dir.path().join("images"), dir.path().join("cache"));
    write_folder(&folder);
    let call = ["cache", "--model", text(&base.model), "--images", text(&folder), "--device", "cpu", "--out", text(&out)];
    ok(&[&call[..], &["--batch", "2", "--shard", "4"]].concat());
    fails(&[&call[..], &["--batch", "1", "--shard", "4"]].concat(), 2, &["choose another --out"]);
    fails(&[&call[..], &["--batch", "3", "--shard", "4"]].concat(), 2, &["--shard 4 with a batch of 3"]);
    fails(&[&call[..], &["--size", "33"]].concat(), 2, &["--size 33"]);
}

#[test]
fn a_source_that_is_not_there_or_empty_is_told_with_what_is() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("cache");
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let call = |model: &str, source: &str, words: &[&str]| {
        let source = dir.path().join(source);
        fails(&["cache", "--model", model, "--images", text(&source), "--device", "cpu", "--out", text(&out)], 3, words);
    };
    // Before a model is looked for, and before anything is written.
    call("no-model", "nothere", &["nothere: No such file"]);
    assert!(!out.exists());
    call(text(&base.model), "empty", &["empty: no image with a caption: it is empty"]);
    assert_eq!(read_json(&out.join("cache.json"))["complete"], false);
    // Another process has it.
    let owner = std::fs::File::create(out.join("cache.lock")).unwrap();
    owner.lock().unwrap();
    std::fs::write(out.join("cache.lock"), "process 12 on elsewhere\n").unwrap();
    let folder = dir.path().join("images");
    write_folder(&folder);
    let call = ["cache", "--model", text(&base.model), "--images", text(&folder), "--device", "cpu", "--out", text(&out)];
    fails(&call, 6, &["cache.lock: in use by process 12 on elsewhere"]);
    drop(owner);
    std::fs::write(out.join(".48x80-00000.safetensors.tmp12-3"), "half").unwrap();
    ok(&call);
    assert!(names(&out).iter().all(|name| !name.contains("tmp") && !name.contains("lock")), "{:?}", names(&out));
}
