//! Draws the first scenes of the training stream on one sheet, to be looked at; also measures the speed of
//! the renderer and the checker.
//!
//! `cargo run -p scenes --example contact_sheet -- sheet.png [seed]`; the captions go to stdout, row by row.

use std::error::Error;
use std::time::Instant;

use scenes::{Scene, Split, check, render};

const COLUMNS: usize = 10;
const ROWS: usize = 8;
const SIZE: usize = 64;
const GAP: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or("contact_sheet.png".to_owned());
    let seed: u64 = arguments.next().map_or(Ok(0), |text| text.parse())?;

    let width = COLUMNS * (SIZE + GAP) + GAP;
    let height = ROWS * (SIZE + GAP) + GAP;
    let mut sheet = vec![200u8; width * height * 3];
    for index in 0..COLUMNS * ROWS {
        let scene = Scene::sample(seed, index as u64, Split::Train);
        let image = render(&scene, SIZE)?;
        let left = GAP + index % COLUMNS * (SIZE + GAP);
        let top = GAP + index / COLUMNS * (SIZE + GAP);
        for (y, row) in image.data().chunks_exact(SIZE * 3).enumerate() {
            let at = ((top + y) * width + left) * 3;
            sheet[at..at + SIZE * 3].copy_from_slice(row);
        }
        println!("{:2},{:2}  {}", index / COLUMNS, index % COLUMNS, scene.spec.caption());
    }
    image::save_buffer(&path, &sheet, u32::try_from(width)?, u32::try_from(height)?, image::ColorType::Rgb8)?;

    let scenes = 5_000u32;
    let start = Instant::now();
    let images = (0..scenes)
        .map(|index| {
            let scene = Scene::sample(seed, u64::from(index), Split::Train);
            render(&scene, SIZE).map(|image| (scene.spec, image))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let drawn = f64::from(scenes) / start.elapsed().as_secs_f64();
    let start = Instant::now();
    let right = images.iter().filter(|(spec, image)| check(spec, image).all_correct).count();
    let checked = f64::from(scenes) / start.elapsed().as_secs_f64();
    println!("{path}; one core, {SIZE} px: {drawn:.0} scenes drawn and {checked:.0} checked per second");
    println!("{right} of {scenes} read back");
    Ok(())
}
