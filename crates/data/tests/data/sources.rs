//! From images on disk to a calibration set and a cache, as a Rust program has it; callbacks that fail stop the work with their own error.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use data::{
    CacheEvent, CacheOptions, CalibrationOptions, CalibrationPoints, Encoders, Error, ImageText, LatentCache, calibrate, encoder_identity,
};
use diffusion::images::write_png;
use image::RgbImage;
use tch::{Device, Kind};

use crate::support::fixtures;

fn write_folder(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    for n in 0..5u32 {
        let (w, h) = [(40, 40), (64, 32)][n as usize % 2];
        let image = RgbImage::from_fn(w, h, |x, y| image::Rgb([(x * 7 + n * 50) as u8, (y * 5) as u8, (x * y) as u8]));
        write_png(dir.join(format!("{n}.png")), &image, &BTreeMap::new()).unwrap();
        std::fs::write(dir.join(format!("{n}.txt")), format!("a red circle {n}")).unwrap();
    }
}

fn encoders() -> Encoders {
    Encoders::open(fixtures().join("sdxl"), Device::Cpu, Kind::Float).unwrap()
}

/// A caller's own error.
#[derive(Debug)]
enum Failure {
    Enough,
    Data(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Data(error)
    }
}

#[test]
fn a_cache_that_a_callback_stopped_is_completed_to_the_same_bytes() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("images"));
    let (source, encoders) = (ImageText::open([dir.path().join("images")]).unwrap(), encoders());
    let options = CacheOptions { shard: 2, batch: 1, ..CacheOptions::default() };
    let (whole, stopped) = (dir.path().join("whole"), dir.path().join("stopped"));
    let report = LatentCache::build(&source, &encoders, &whole, &options, &mut |_| data::Result::Ok(())).unwrap();
    assert_eq!((report.images, report.new, report.bad.len()), (5, 5, 0));
    let mut told = false;
    let failure = LatentCache::build(&source, &encoders, &stopped, &options, &mut |event| match event {
        CacheEvent::Images(4) => Err(Failure::Enough),
        CacheEvent::Images(_) => Ok(()),
        CacheEvent::Cost { bytes, .. } => {
            told = bytes > 0.0;
            Ok(())
        }
    });
    assert!(told && matches!(failure, Err(Failure::Enough)), "{failure:?}");
    let identity = encoder_identity(encoders.dir()).unwrap();
    let unfinished = LatentCache::open(&stopped, &identity, true).unwrap_err().to_string();
    assert!(unfinished.contains("not complete"), "{unfinished}");
    LatentCache::build(&source, &encoders, &stopped, &options, &mut |_| data::Result::Ok(())).unwrap();
    for entry in std::fs::read_dir(&whole).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(std::fs::read(stopped.join(&name)).unwrap() == std::fs::read(whole.join(&name)).unwrap(), "{name:?}");
    }
    assert_eq!(LatentCache::open(&stopped, &identity, true).unwrap().len(), 5);

    // Other settings, another folder.
    let other = CacheOptions { shard: 4, ..options };
    let refused = LatentCache::build(&source, &encoders, &stopped, &other, &mut |_| data::Result::Ok(()));
    assert!(matches!(refused, Err(Error::OtherCache { .. })), "{refused:?}");
}

#[test]
fn images_and_scenes_become_points_until_a_callback_stops_it() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("images"));
    let (source, encoders) = (ImageText::open([dir.path().join("images")]).unwrap(), encoders());
    let options = CalibrationOptions { bins: 2, batch: 2, ..CalibrationOptions::default() };
    let points = |count| CalibrationPoints::Images { source: &source, count, max_bad: 0 };
    let all = calibrate(&encoders, &points(None), &options, &mut |_| data::Result::Ok(())).unwrap();
    assert_eq!((all.len(), all.num_bins), (5, 2));
    let first = calibrate(&encoders, &points(Some(3)), &options, &mut |_| data::Result::Ok(())).unwrap();
    assert_eq!(first.prompts, all.prompts[..3]);
    let failure = calibrate(&encoders, &points(None), &options, &mut |n| if n < 2 { Ok(()) } else { Err(Failure::Enough) });
    assert!(matches!(failure, Err(Failure::Enough)));
    let many = calibrate::<Failure>(&encoders, &points(Some(6)), &options, &mut |_| Ok(()));
    assert!(matches!(&many, Err(Failure::Data(Error::Format { problem, .. })) if problem.contains("only 5 images")), "{many:?}");
    let none = calibrate(&encoders, &CalibrationPoints::Scenes(0), &options, &mut |_| data::Result::Ok(()));
    assert!(matches!(&none, Err(Error::Input { name, .. }) if name == "scenes"), "{none:?}");
}

#[test]
fn a_source_is_visited_until_the_visitor_breaks_off() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(&dir.path().join("a"));
    write_folder(&dir.path().join("b"));
    let source = ImageText::open(["a", "b"].map(|name| dir.path().join(name))).unwrap();
    let mut seen = Vec::new();
    let flow = source.visit(&mut |from, found| -> data::Result<_> {
        seen.push((from.file_name().unwrap().to_string_lossy().into_owned(), found.unwrap().name));
        Ok(if seen.len() == 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    assert!(flow.unwrap().is_break());
    assert_eq!((seen.len(), &seen[4], &seen[5]), (6, &("a".to_string(), "4.png".to_string()), &("b".to_string(), "0.png".to_string())));
    let missing = ImageText::open([dir.path().join("c")]).unwrap_err().to_string();
    assert!(missing.contains("/c: ") && missing.contains("a folder of images"), "{missing}");
}
