//! PyTorch's own files: values against the formula of `gen_pytorch_files.py`, and what is refused.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use unet::weights::{Init, TensorFile, Weights};

use crate::support::same_bits;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pytorch_files").join(name)
}

/// The tensors of `tensors()` in the script.
fn expected() -> Vec<(&'static str, Tensor)> {
    let base = Tensor::arange(24, (Kind::Float, Device::Cpu)).view([4, 6]) / 8.0;
    let ints = Tensor::arange(5, (Kind::Int64, Device::Cpu)) - 2;
    vec![
        ("f32", base.copy()),
        ("f16", base.to_kind(Kind::Half)),
        ("bf16", base.to_kind(Kind::BFloat16)),
        ("f64", base.to_kind(Kind::Double)),
        ("i64", ints.copy()),
        ("i32", ints.to_kind(Kind::Int)),
        ("u8", Tensor::arange(5, (Kind::Uint8, Device::Cpu))),
        ("bool", Tensor::from_slice(&[true, false, true])),
        ("scalar", Tensor::from(2.5f32)),
        ("empty", Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))),
        ("transposed", base.transpose(0, 1).contiguous()),
        ("slice", base.narrow(0, 1, 2).narrow(1, 2, 3).contiguous()),
        ("parameter", base.get(0)),
    ]
}

#[test]
fn every_type_view_and_form_is_read_bit_for_bit() {
    for (name, prefix, more) in [("zip.pt", "", 0), ("nested.pt", "state_dict.", 1), ("legacy.pth", "state_dict.", 1)] {
        let file = TensorFile::open(fixture(name)).unwrap();
        assert_eq!(file.shapes().count(), expected().len() + more, "{name}");
        for (key, want) in expected() {
            let got = file.tensor(&format!("{prefix}{key}")).unwrap().unwrap_or_else(|| panic!("{name}: no {key}"));
            assert!(got.kind() == want.kind() && same_bits(&got, &want), "{name}: {key}");
        }
        if more > 0 {
            assert!(same_bits(&file.tensor("list.0").unwrap().unwrap(), &Tensor::ones([2], (Kind::Float, Device::Cpu))));
        }
    }
}

#[test]
fn networks_are_built_from_them_as_strictly_as_from_safetensors() {
    let build = |shape: &[i64]| {
        let weights = Weights::open(&[fixture("zip.pt")], Device::Cpu, Kind::Float).unwrap();
        weights.ignore(|key| !matches!(key, "bf16" | "slice"));
        let _ = (weights.root().tensor("bf16", shape, Init::Zeros), weights.root().tensor("slice", &[2, 3], Init::Zeros));
        weights.finish()
    };
    assert!(build(&[4, 6]).unwrap().1.is_clean());
    let err = build(&[6, 4]).unwrap_err().to_string();
    assert!(err.contains("zip.pt") && err.contains("`bf16`: expected shape [6, 4], got [4, 6]"), "{err}");
}

#[test]
fn programs_in_files_are_named_and_never_run() {
    let dir = tempfile::tempdir().unwrap();
    for (name, told) in [
        ("evil.pt", "`posix.system`"),
        ("evil_legacy.pth", "`posix.system`"),
        ("module.pt", "`torch.nn.modules.linear.Linear`"),
        ("torchscript.pt", "TorchScript"),
        ("cycle.pth", "entries"),
        ("bomb.pth", "entries"),
    ] {
        let err = TensorFile::open(fixture(name)).unwrap_err().to_string();
        assert!(err.contains(name) && err.contains(told), "{err}");
    }
    assert!(!Path::new("executed").exists());

    // A million lists inside each other: no stack is used for them.
    let legacy = std::fs::read(fixture("cycle.pth")).unwrap();
    let head = &legacy[..legacy.windows(2).enumerate().filter(|(_, w)| w == b"\x80\x02").nth(3).unwrap().0];
    let n = 1_000_000;
    let deep = [head, b"\x80\x02", &vec![b']'; n], &vec![b'a'; n - 1], b".\x80\x02]."].concat();
    std::fs::write(dir.path().join("deep.pth"), deep).unwrap();
    assert!(TensorFile::open(dir.path().join("deep.pth")).unwrap_err().to_string().contains("entries"));
}

#[test]
fn cut_and_spoiled_files_are_errors_that_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.pt");
    for name in ["zip.pt", "legacy.pth"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for end in (20..whole.len() - 1).step_by(7) {
            std::fs::write(&path, &whole[..end]).unwrap();
            let err = TensorFile::open(&path).unwrap_err().to_string();
            assert!(err.contains("cut.pt") && err.contains("PyTorch file"), "{end}: {err}");
        }
        // One wrong byte may go unnoticed in a number, but must never end the process.
        for at in 0..whole.len() {
            let mut spoiled = whole.clone();
            spoiled[at] ^= 0x55;
            std::fs::write(&path, &spoiled).unwrap();
            if let Ok(file) = TensorFile::open(&path) {
                let _either = file.tensors();
            }
        }
    }
}
