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

#[test]
fn objects_of_training_programs_say_nothing_and_disturb_nothing() {
    // The values of `lightning()` in the script.
    let order = Tensor::arange(32 * 768, (Kind::Int64, Device::Cpu));
    let base = ((order * 7919).remainder(1009).to_kind(Kind::Float) / 1009.0 - 0.5).to_kind(Kind::Half) / 4.0;
    for name in ["lightning.ckpt", "lightning_legacy.ckpt"] {
        let file = TensorFile::open(fixture(name)).unwrap();
        let mut seen = 0;
        for (key, shape) in file.shapes().filter(|(key, _)| key.starts_with("state_dict.model.diffusion_model.")) {
            let want = base.narrow(0, 0, shape.iter().product()).view(shape);
            assert!(same_bits(&file.tensor(key).unwrap().unwrap(), &want), "{name}: {key}");
            seen += 1;
        }
        assert!(seen > 50);
        assert!(file.has("optimizer_states.0.state.0.exp_avg") && file.has("state_dict.model_ema.decay"));
        assert!(!file.shapes().any(|(key, _)| key.starts_with("hyper_parameters") || key.starts_with("lr_schedulers")));
    }
    let file = TensorFile::open(fixture("fp8.pt")).unwrap();
    let eight = Tensor::arange(8, (Kind::Float, Device::Cpu));
    assert!(same_bits(&file.tensor("fp8").unwrap().unwrap(), &eight.to_kind(Kind::Float8e4m3fn)));
    assert!(same_bits(&file.tensor("e5m2").unwrap().unwrap(), &eight.to_kind(Kind::Float8e5m2)));
    assert!(same_bits(&file.tensor("sub").unwrap().unwrap(), &base.narrow(0, 0, 3)));
    assert_eq!(file.shape("u16"), Some(&[3i64][..]));
}

/// The beginning of a file of the old form, up to the pickle of its content.
fn old_head() -> Vec<u8> {
    let legacy = std::fs::read(fixture("cycle.pth")).unwrap();
    let at = legacy.windows(2).enumerate().filter(|(_, w)| w == b"\x80\x02").nth(3).unwrap().0;
    legacy[..at].to_vec()
}

/// Small files that ask for much memory: each is refused, and quickly.
#[test]
fn what_a_pickle_makes_is_charged_against_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.pth");
    let mark = |items: &[u8], end: u8| [b"(", items, &[end]].concat();
    let long = mark(&vec![b'N'; 20_000], b't');
    let sizes = mark(&b"K\x01".repeat(20_000), b't');
    let again = |call: &[u8], n: usize| call.repeat(n);
    let key = vec![b'k'; 60_000];
    let storage = [
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX",
        &(key.len() as u32).to_le_bytes()[..],
        &key,
        b"X\x03\x00\x00\x00cpuK\x01tQq\x01",
    ]
    .concat();
    for (what, pickle) in [
        ("a tuple copied by torch.Size", [&long[..], b"q\x00", &again(b"ctorch\nSize\nh\x00\x85R", 2_000)].concat()),
        (
            "a shape of 20,000 sides",
            [&storage[..], b"0", &sizes, b"q\x00", &again(b"ctorch._utils\n_rebuild_tensor_v2\n(h\x01K\x00h\x00h\x00tR", 2_000)].concat(),
        ),
        ("a long name copied with each storage", [&storage[..storage.len() - 3], b"q\x05", &again(b"h\x05Q0", 20_000)].concat()),
        ("names of every two of many texts", {
            let texts: Vec<u8> =
                (0..200u8).flat_map(|n| [&b"\x8c\xc8"[..], &[b'a' + n % 26; 199], &[b'0' + n % 64], b"q", &[n], b"0"].concat()).collect();
            let pairs: Vec<u8> = (0..200u8).flat_map(|a| (0..200u8).flat_map(move |b| [b'h', a, b'h', b, 0x93, b'0'])).collect();
            [&texts[..], &pairs, b"]"].concat()
        }),
        ("a dictionary copied", [&long[..], b"q\x000]q\x02", &again(b"ccollections\nOrderedDict\n(h\x00tR", 2_000)].concat()),
        ("lists of lists of lists", {
            let mut levels = b"]q\x00(NNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNe".to_vec();
            for n in 0..8u8 {
                levels.extend([&b"]q"[..], &[n + 1], b"(", &[b'h', n].repeat(200), b"e"].concat());
            }
            levels
        }),
    ] {
        std::fs::write(&path, [&old_head()[..], b"\x80\x02", &pickle, b".\x80\x02]."].concat()).unwrap();
        let error = TensorFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("bomb.pth") && error.len() < 500, "{what}: {error}");
    }
    // One tensor under many long names.
    let name = |n: usize| [b"X", &(30_000u32).to_le_bytes()[..], format!("{n:030000}").as_bytes(), b"h\x02"].concat();
    let tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00))tRq\x020";
    let inner = [b"}q\x03(".to_vec(), (0..40).flat_map(name).collect(), b"u0".to_vec()].concat();
    let outer: Vec<u8> =
        (0..100).flat_map(|n| [b"X", &(300u32).to_le_bytes()[..], format!("{n:0300}").as_bytes(), b"h\x03"].concat()).collect();
    let pickle = [&tensor[..], &inner, b"}(", &outer, b"u"].concat();
    std::fs::write(&path, [&old_head()[..], b"\x80\x02", &pickle, b".\x80\x02]."].concat()).unwrap();
    let error = TensorFile::open(&path).unwrap_err().to_string();
    assert!(error.contains("endless names") || error.contains("not in the file"), "{error}");
    // A tensor that repeats one number beyond memory is known by its header, and refused when it is asked for.
    let huge = b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00\
        (J\x00\x00\x00\x40K\x10t(K\x00K\x00ttRs";
    let keys = [b"\x80\x02]X\x01\x00\x00\x000a.".to_vec(), 1u64.to_le_bytes().to_vec(), 2f32.to_le_bytes().to_vec()].concat();
    std::fs::write(&path, [&old_head()[..], b"\x80\x02", &huge[..], b".", &keys].concat()).unwrap();
    let file = TensorFile::open(&path).unwrap();
    assert_eq!(file.shape("a"), Some(&[1 << 30, 16][..]));
    assert!(file.tensor("a").unwrap_err().to_string().contains("repeats 1 numbers"));
}
