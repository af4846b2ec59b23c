//! Fixtures that tests/fixtures/gen_diffusion_pipeline.py made, and the comparison with them.

use std::path::{Path, PathBuf};

use diffusion::Pipeline;
use tch::{Device, Kind, Tensor};
use unet::weights::TensorFile;

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/diffusion_pipeline")
}

pub fn cpu_pipeline(name: &str) -> Pipeline {
    Pipeline::open(fixtures().join(name), None, Device::Cpu, Kind::Float).unwrap()
}

pub fn get(file: &TensorFile, name: &str) -> Tensor {
    file.tensor(name).unwrap().unwrap_or_else(|| panic!("fixture without `{name}`"))
}

pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() { copy_dir(&entry.path(), &target) } else { std::fs::copy(entry.path(), target).map(|_| ()).unwrap() }
    }
}

#[track_caller]
pub fn assert_close(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    assert_eq!(ours.size(), theirs.size(), "{what}: shape");
    let worst = (ours.to_kind(Kind::Double) - theirs.to_kind(Kind::Double)).abs().max().double_value(&[]);
    assert!(worst <= tolerance, "{what}: max abs error {worst:e}, allowed {tolerance:e}");
}
