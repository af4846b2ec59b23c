//! How far the checker can be trusted: right images pass, also after what a decoder does to them, wrong ones fail.
//!
//! The bounds are those that evaluation relies on; run with `--nocapture` to see the measured shares.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use scenes::{Background, Color, RgbImage, Scene, SceneSpec, Split, check, render};

/// So many images are checked for each share.
const SCENES: u64 = 1000;

/// What is done to an image before it is checked.
#[derive(Clone, Copy)]
struct Damage {
    /// Standard deviation of a Gaussian blur, in pixels.
    blur: f32,
    /// Standard deviation of the noise that is added, of 255.
    noise: f32,
}

const NONE: Damage = Damage { blur: 0.0, noise: 0.0 };
/// About what a small autoencoder leaves.
const DECODER: Damage = Damage { blur: 0.8, noise: 6.0 };

#[test]
fn rendered_scenes_are_read_back() {
    assert!(share_of_right(NONE, 64) >= 0.995);
    assert!(share_of_right(NONE, 100) >= 0.995);
    assert!(share_of_right(NONE, 256) >= 0.995);
}

#[test]
fn blurred_and_noisy_scenes_are_read_back() {
    assert!(share_of_right(DECODER, 64) >= 0.97);
    let heavy = Damage { blur: 1.2, noise: 10.0 };
    assert!(share_of_right(heavy, 64) >= 0.9);
}

#[test]
fn one_wrong_attribute_is_noticed() {
    for (name, damage) in [("clean", NONE), ("blurred", DECODER)] {
        let passed = share(|index| {
            let scene = scene(index);
            let image = damaged(&scene, 64, damage, index);
            let mut rng = ChaCha8Rng::seed_from_u64(index);
            let wrong = scene.spec.with_one_change(&mut rng);
            let result = check(&wrong, &image);
            if result.all_correct {
                println!("  {name}: `{}` passes for `{}`", scene.spec.caption(), wrong.caption());
            }
            result.all_correct
        });
        println!("{name}: {:.2} % pass with one wrong attribute", passed * 100.0);
        assert!(passed <= 0.02);
    }
}

#[test]
fn one_wrong_attribute_leaves_the_others_right() {
    let kept = share(|index| {
        let scene = scene(index);
        let mut rng = ChaCha8Rng::seed_from_u64(index);
        let wrong = scene.spec.with_one_change(&mut rng);
        let result = check(&wrong, &damaged(&scene, 64, NONE, index));
        // With two objects, a wrong item may be matched to the other object, which hides one attribute more.
        result.correct + 2 >= result.total
    });
    println!("{:.2} % lose two attributes at most by one that is wrong", kept * 100.0);
    assert!(kept >= 0.98);
}

#[test]
fn noise_and_flat_images_show_nothing() {
    for size in [32, 64, 128] {
        let passed = share(|index| {
            let mut rng = ChaCha8Rng::seed_from_u64(index);
            let flat: [u8; 3] = rng.random();
            let amount = [0, 20, 100, 255][index as usize % 4];
            let data = (0..size * size * 3).map(|i| flat[i % 3].wrapping_add(rng.random_range(0..=amount))).collect();
            let image = RgbImage::new(size, size, data).expect("the right length");
            check(&scene(index).spec, &image).all_correct
        });
        println!("noise at {size} px: {:.2} % pass", passed * 100.0);
        assert!(passed <= 0.001);
    }
}

#[test]
fn captions_do_not_pass_for_images_of_other_scenes() {
    let passed = share(|index| {
        let (scene, other) = (scene(index), scene(index + SCENES));
        let passes = check(&other.spec, &damaged(&scene, 64, NONE, index)).all_correct;
        if passes {
            println!("`{}` passes for `{}`", scene.spec.caption(), other.spec.caption());
        }
        passes
    });
    println!("{:.2} % pass for the caption of another scene", passed * 100.0);
    assert!(passed <= 0.02);
}

#[test]
fn each_attribute_is_reported_with_what_was_seen() {
    let drawn = SceneSpec::parse("a small blue ring in the bottom right on a gray background");
    let scene = Scene::from_spec(drawn.expect("a prompt"), 1, 2).expect("a scene");
    let image = render(&scene, 64).expect("a fair size");
    let asked = SceneSpec::parse("a large blue circle in the top left on a black background");
    let result = check(&asked.expect("a prompt"), &image);
    let rows: Vec<_> = result.attributes.iter().map(|a| (a.name.as_str(), a.stated.as_str(), a.seen.as_str(), a.ok)).collect();
    assert_eq!(
        rows,
        [
            ("count", "1", "1", true),
            ("color", "blue", "blue", true),
            ("shape", "circle", "ring", false),
            ("size", "large", "small", false),
            ("position", "top left", "bottom right", false),
            ("background", "black", "gray", false),
        ]
    );
    assert_eq!((result.correct, result.total, result.all_correct), (2, 6, false));
}

/// Images that the renderer cannot draw, so that the checker is not only tested on its twin.
#[test]
fn foreign_images_are_judged_as_a_person_would() {
    type Paint = fn(i32, i32) -> Option<[u8; 3]>;
    const RED: [u8; 3] = [220, 50, 60];
    let cases: [(&str, Paint, &[&str]); 8] = [
        // A plain disc in a slightly different red passes.
        ("a red circle", |x, y| (x * x + y * y < 200).then_some(RED), &[]),
        ("a red circle", |x, y| (x * x + 4 * y * y < 600).then_some(RED), &["shape"]),
        ("a red circle", |x, y| (x * x + y * y < 200).then_some([120, 70, 30]), &["color"]),
        // An extra blob is an object too, a speck is not.
        ("a red circle", |x, y| (x * x + y * y < 200 || (x > 20 && y > 20)).then_some(RED), &["count"]),
        ("a red circle", |x, y| (x * x + y * y < 200 || (x > 27 && y > 27)).then_some(RED), &[]),
        // A tilted square is no shape of this world; it is nearest to the circle, but not near enough.
        ("a red square", |x, y| (x.abs() + y.abs() < 18).then_some(RED), &["shape"]),
        // Upright stripes are stripes; a single change of colour is not.
        ("a striped red square", |x, y| (x.abs() < 15 && y.abs() < 15).then_some(if (x + 30) / 5 % 2 == 0 { RED } else { [9, 9, 9] }), &[]),
        ("a striped red square", |x, y| (x.abs() < 15 && y.abs() < 15).then_some(if x > 0 { RED } else { [9, 9, 9] }), &["texture"]),
    ];
    for (number, (prompt, paint, wrong)) in cases.into_iter().enumerate() {
        let data = (0..64 * 64).flat_map(|i| paint(i % 64 - 32, i / 64 - 32).unwrap_or([250, 250, 250])).collect();
        let image = RgbImage::new(64, 64, data).expect("the right length");
        let result = check(&SceneSpec::parse(prompt).expect("a prompt"), &image);
        let failed: Vec<_> = result.attributes.iter().filter(|a| !a.ok).collect();
        let names: Vec<_> = failed.iter().map(|a| a.name.as_str()).collect();
        assert_eq!(names, wrong, "case {number}: {failed:?}");
    }
}

#[test]
fn colours_are_far_apart() {
    let objects: Vec<_> = Color::ALL.iter().map(|c| c.rgb()).collect();
    let backgrounds: Vec<_> = Background::ALL.iter().map(|b| b.rgb()).collect();
    let apart = |a: [u8; 3], b: [u8; 3]| (0..3).map(|i| (f64::from(a[i]) - f64::from(b[i])).powi(2)).sum::<f64>().sqrt();
    for (i, &color) in objects.iter().enumerate() {
        assert!(objects[..i].iter().all(|&other| apart(color, other) > 100.0), "{color:?}");
        assert!(backgrounds.iter().all(|&other| apart(color, other) > 110.0), "{color:?}");
    }
}

#[test]
fn the_checker_takes_any_image() {
    for (width, height) in [(1, 1), (1, 300), (17, 64), (63, 65)] {
        let data = (0..width * height * 3).map(|i| (i * 37 % 251) as u8).collect();
        let image = RgbImage::new(width, height, data).expect("the right length");
        assert!(!check(&scene(0).spec, &image).all_correct);
    }
    assert!(RgbImage::new(2, 2, vec![0; 11]).is_err());
    assert!(RgbImage::new(0, 2, Vec::new()).is_err());
}

fn scene(index: u64) -> Scene {
    Scene::sample(11, index, Split::Train)
}

fn share(passes: impl Fn(u64) -> bool + Sync) -> f64 {
    let hits = (0..SCENES).into_par_iter().filter(|&i| passes(i)).count();
    hits as f64 / SCENES as f64
}

fn share_of_right(damage: Damage, size: usize) -> f64 {
    let right = share(|index| {
        let scene = scene(index);
        let result = check(&scene.spec, &damaged(&scene, size, damage, index));
        for a in result.attributes.iter().filter(|a| !a.ok) {
            println!("  `{}`: {} {} seen as {}", scene.spec.caption(), a.name, a.stated, a.seen);
        }
        result.all_correct
    });
    let Damage { blur, noise } = damage;
    println!("size {size}, blur {blur}, noise {noise}: {:.2} % all correct", right * 100.0);
    right
}

fn damaged(scene: &Scene, size: usize, damage: Damage, seed: u64) -> RgbImage {
    let image = render(scene, size).expect("a fair size");
    let mut values: Vec<f32> = image.data().iter().map(|&b| f32::from(b)).collect();
    if damage.blur > 0.0 {
        values = blurred(&values, size, damage.blur, 3);
        values = blurred(&values, size, damage.blur, 3 * size);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let data = values
        .iter()
        .map(|v| {
            // Box and Muller's normal deviate.
            let (a, b): (f32, f32) = (rng.random_range(1e-7..1.0), rng.random());
            let normal = (-2.0 * a.ln()).sqrt() * (b * std::f32::consts::TAU).cos();
            (v + damage.noise * normal).round().clamp(0.0, 255.0) as u8
        })
        .collect();
    RgbImage::new(size, size, data).expect("the right length")
}

/// Gaussian blur along the direction in which neighbours are `stride` values apart; the border is repeated.
fn blurred(values: &[f32], size: usize, sigma: f32, stride: usize) -> Vec<f32> {
    const REACH: isize = 4;
    let weights: Vec<f32> = (-REACH..=REACH).map(|d| (-0.5 * (d as f32 / sigma).powi(2)).exp()).collect();
    let sum: f32 = weights.iter().sum();
    (0..values.len())
        .map(|i| {
            let place = (i / stride % size) as isize;
            let start = i - place as usize * stride;
            weights
                .iter()
                .zip(-REACH..)
                .map(|(w, d)| {
                    let at = (place + d).clamp(0, size as isize - 1) as usize;
                    w * values[start + at * stride]
                })
                .sum::<f32>()
                / sum
        })
        .collect()
}
