//! Weight files: types, shards, metadata, and what goes wrong with them.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use unet::Error;
use unet::weights::{Init, Piece, TensorFile, Tensors, Weights, component_files, save_pieces, save_tensors};

use crate::support::same_bits;

fn tensors() -> Tensors {
    let opts = (Kind::Float, Device::Cpu);
    BTreeMap::from([
        ("a.weight".to_string(), Tensor::arange(6, opts).view([2, 3]) / 7.0),
        // A view whose rows are not in order in memory.
        ("b.weight".to_string(), Tensor::arange(6, opts).view([3, 2]).transpose(0, 1)),
        ("c".to_string(), Tensor::from(1.5f32)),
        ("ids".to_string(), Tensor::from_slice(&[3i64, -1])),
        ("none".to_string(), Tensor::zeros([0, 4], opts)),
    ])
}

#[test]
fn files_hold_every_type_and_shape_and_come_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let metadata = BTreeMap::from([("k".to_string(), "v\n\"é\"".to_string())]);
    for kind in [None, Some(Kind::Half), Some(Kind::BFloat16), Some(Kind::Double)] {
        save_tensors(&path, &tensors(), &metadata, kind).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.metadata(), &metadata);
        let back = file.tensors().unwrap();
        assert_eq!(back.len(), tensors().len());
        for (name, t) in tensors() {
            let expected = if t.is_floating_point() { t.to_kind(kind.unwrap_or(Kind::Float)) } else { t };
            assert!(same_bits(&back[&name], &expected), "{name} as {kind:?}");
        }
        assert!(file.tensor("absent").unwrap().is_none());
    }
}

#[test]
fn components_are_found_as_one_file_as_its_fp16_variant_and_as_shards() {
    let dir = tempfile::tempdir().unwrap();
    let stem = "diffusion_pytorch_model";
    assert!(matches!(component_files(dir.path(), stem), Err(Error::Format { .. })));

    let (first, second): (Tensors, Tensors) = tensors().into_iter().partition(|(k, _)| k.starts_with('a'));
    let names = ["00001-of-00002", "00002-of-00002"].map(|n| format!("{stem}-{n}.safetensors"));
    save_tensors(dir.path().join(&names[0]), &first, &BTreeMap::new(), None).unwrap();
    save_tensors(dir.path().join(&names[1]), &second, &BTreeMap::new(), None).unwrap();
    let of = |k: &String| if first.contains_key(k) { &names[0] } else { &names[1] };
    let map: BTreeMap<&String, &String> = first.keys().chain(second.keys()).map(|k| (k, of(k))).collect();
    let index = dir.path().join(format!("{stem}.safetensors.index.json"));
    std::fs::write(&index, serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let files = component_files(dir.path(), stem).unwrap();
    assert_eq!(files.len(), 2);
    let weights = Weights::open(&files, Device::Cpu, Kind::Double).unwrap();
    weights.ignore(|key| ["c", "ids", "none"].contains(&key));
    let root = weights.root();
    assert_eq!(root.pp("a").tensor("weight", &[2, 3], Init::Zeros).kind(), Kind::Double);
    assert!(root.pp("b").has("weight") && !root.has("c"));
    assert_eq!(root.pp("b").tensor("weight", &[2, 3], Init::Zeros).size(), [2, 3]);
    assert_eq!(root.pp("b").taken().keys().collect::<Vec<_>>(), ["weight"]);
    let (taken, report) = weights.finish().unwrap();
    assert_eq!((taken.len(), report.loaded.len()), (2, 2));

    save_tensors(dir.path().join(format!("{stem}.fp16.safetensors")), &tensors(), &BTreeMap::new(), Some(Kind::Half)).unwrap();
    assert!(component_files(dir.path(), stem).unwrap()[0].ends_with(format!("{stem}.fp16.safetensors")));
    save_tensors(dir.path().join(format!("{stem}.safetensors")), &tensors(), &BTreeMap::new(), None).unwrap();
    assert!(component_files(dir.path(), stem).unwrap()[0].ends_with(format!("{stem}.safetensors")));
}

#[test]
fn files_that_are_not_what_they_should_be_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match TensorFile::open(&path).unwrap_err() {
            Error::Format { path, hint, .. } => assert!(path.ends_with("x.safetensors") && !hint.is_empty()),
            other => panic!("{other}"),
        }
    };
    refused(b"");
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n");
    refused(&u64::MAX.to_le_bytes());
    save_tensors(&path, &tensors(), &BTreeMap::new(), None).unwrap();
    let whole = std::fs::read(&path).unwrap();
    refused(&whole[..whole.len() - 1]);
    refused(&whole[..20]);
    assert!(matches!(TensorFile::open(dir.path().join("absent")), Err(Error::Io { .. })));
    assert!(matches!(save_tensors(Path::new("/no/such/folder/x"), &tensors(), &BTreeMap::new(), None), Err(Error::Io { .. })));
}

/// Peak memory of loading is the network and one tensor, because what was copied leaves the map of the file.
#[cfg(target_os = "linux")]
#[test]
fn tensors_that_were_read_leave_the_map() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    let tensors: Tensors = (0..16).map(|i| (format!("t{i:02}"), Tensor::full([1 << 19], i as f64, (Kind::Half, Device::Cpu)))).collect();
    save_tensors(&path, &tensors, &BTreeMap::new(), None).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let read = file.tensors().unwrap();
    assert!(read.iter().all(|(k, t)| t.equal(&tensors[k])));
    // Kilobytes of the file that this process has in memory.
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let ours = maps.split_once("large.safetensors").expect("the file is mapped").1;
    let resident = ours.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(resident <= 2048, "{resident} kB of 16 MB are still mapped");
    // And they can be read again.
    assert!(file.tensor("t03").unwrap().unwrap().equal(&tensors["t03"]));
}

#[test]
fn rows_are_read_without_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.safetensors");
    let t = Tensor::arange(40, (Kind::Float, Device::Cpu)).view([5, 2, 4]).to_kind(Kind::Half);
    save_tensors(
        &path,
        &Tensors::from([("a".into(), Tensor::ones([3], (Kind::Int64, Device::Cpu))), ("t".into(), t.copy())]),
        &BTreeMap::new(),
        None,
    )
    .unwrap();
    let file = TensorFile::open(&path).unwrap();
    let got = file.rows("t", &[4, 0, 4]).unwrap().unwrap();
    assert!(got.equal(&t.index_select(0, &Tensor::from_slice(&[4i64, 0, 4]))) && got.kind() == Kind::Half);
    assert!(file.rows("other", &[0]).unwrap().is_none());
    assert!(matches!(file.rows("t", &[5]), Err(Error::Input { name, got, .. }) if name == "t" && got == "5"));
}

#[test]
fn a_size_that_no_memory_has_room_for_is_refused_before_it_is_made() {
    // A terabyte; and more numbers than can be counted.
    for huge in [vec![1 << 20, 1 << 20], vec![1 << 40, 1 << 40]] {
        let weights = Weights::from_tensors(tensors());
        for name in ["a.weight", "absent"] {
            assert_eq!(weights.root().tensor(name, &huge, Init::Zeros).dim(), huge.len());
        }
        let error = weights.finish().unwrap_err().to_string();
        assert!(error.contains(&format!("expected shape {huge:?}, got [2, 3]")) && error.contains("missing `absent`"), "{error}");
    }
}

/// A safetensors file from its header and the bytes behind it.
fn by_hand(path: &Path, header: &str, bytes: &[u8]) {
    std::fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), bytes].concat()).unwrap();
}

#[test]
fn files_of_other_writers_are_read_and_damaged_ones_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let (a, b) = ([1u8, 2, 3], 0.5f32.to_le_bytes());
    let both = [&a[..], &b].concat();
    // Not in the order of names, not aligned, padded before and behind, with a tensor of no elements and a type of no library.
    let header = format!(
        "{{ \"b\": {{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[3,7]}}, \"z\":{{\"shape\":[0,2],\"dtype\":\"F16\",\"data_offsets\":[3,3]}},\
         \"__metadata__\":{{\"modelspec.title\":\"é\"}}, \"a\":{{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}} }}{}",
        " ".repeat(1000)
    );
    by_hand(&path, &header, &both);
    let file = TensorFile::open(&path).unwrap();
    assert!(same_bits(&file.tensor("b").unwrap().unwrap(), &Tensor::from_slice(&[0.5f32])));
    assert!(same_bits(&file.tensor("a").unwrap().unwrap(), &Tensor::from_slice(&a)));
    assert_eq!(file.tensor("z").unwrap().unwrap().size(), [0, 2]);
    assert_eq!(file.metadata()["modelspec.title"], "é");
    drop(file);

    let entry = |name: &str, from: usize, to: usize| {
        format!("\"{name}\":{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[{from},{to}]}}", to - from)
    };
    for (header, told) in [
        (format!("{{{},{}}}", entry("a", 0, 3), entry("a", 3, 7)), "`a` stands there twice"),
        (format!("{{{},{}}}", entry("a", 0, 3), entry("b", 3, 8)), "of which"),
        (format!("{{{},{}}}", entry("a", 0, 3), entry("b", 4, 7)), "bad safetensors header"),
        (format!("{{{},{}}}", entry("a", 0, 4), entry("b", 3, 7)), "bad safetensors header"),
        (format!("{{{}, \"b\":{{\"dtype\":\"F9\",\"shape\":[4],\"data_offsets\":[3,7]}}}}", entry("a", 0, 3)), "F9"),
        (
            format!("{{{}, \"b\":{{\"dtype\":\"F32\",\"shape\":[2305843009213693952, 4, 0],\"data_offsets\":[7,7]}}}}", entry("a", 0, 7)),
            "beyond memory",
        ),
        ("[1, 2]".into(), "neither a safetensors file"),
    ] {
        by_hand(&path, &header, &both);
        let error = TensorFile::open(&path).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("x.safetensors") && error.len() < 600, "{told}: {error}");
    }
    // A wrong byte anywhere may go unnoticed in a name, but must never end the process.
    save_tensors(&path, &tensors(), &BTreeMap::new(), None).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        for flip in [0x01, 0x10, 0x55] {
            let mut spoiled = whole.clone();
            spoiled[at] ^= flip;
            std::fs::write(&path, &spoiled).unwrap();
            let _either = TensorFile::open(&path).and_then(|file| file.tensors());
        }
    }
}

#[test]
fn any_type_is_copied_and_metadata_of_any_size_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("x.safetensors"), dir.path().join("y.safetensors"));
    // libtorch computes with none of these; only reading one asks for that.
    let types = [("U16", 2), ("U32", 4), ("U64", 8), ("F8_E8M0", 1), ("I8", 1), ("I16", 2), ("F8_E4M3", 1), ("C64", 8), ("F64", 8)];
    let (mut header, mut bytes) = (BTreeMap::new(), Vec::new());
    for (i, (dtype, size)) in types.iter().enumerate() {
        let start = bytes.len();
        bytes.extend((0..3 * size).map(|n| (17 * n + 31 * i + 1) as u8));
        header.insert(format!("t{i}"), serde_json::json!({"dtype": dtype, "shape": [3], "data_offsets": [start, bytes.len()]}));
    }
    let metadata = BTreeMap::from([("modelspec.thumbnail".to_string(), "x".repeat(5 << 20)), ("a".to_string(), String::new())]);
    header.insert("__metadata__".into(), serde_json::to_value(&metadata).unwrap());
    by_hand(&path, &serde_json::to_string(&header).unwrap(), &bytes);
    let file = TensorFile::open(&path).unwrap();
    let Err(Error::Format { problem, .. }) = file.tensor("t0") else { panic!("read") };
    assert!(problem.contains("`t0`") && problem.contains("U16"), "{problem}");
    let names: Vec<String> = file.shapes().map(|(name, _)| name.to_string()).collect();
    let more = Tensor::from_slice(&[1.5f32, -2.0]);
    let mut pieces: BTreeMap<String, Piece> = names.iter().map(|name| (format!("new.{name}"), Piece::Stored(&file, name, None))).collect();
    pieces.insert("half".into(), Piece::Tensor(&more, Kind::Half));
    pieces.insert("zeros".into(), Piece::Zeros(vec![2, 2], Kind::BFloat16));
    pieces.insert("wide".into(), Piece::Stored(&file, "t4", Some(Kind::Float)));
    save_pieces(&out, &pieces, &metadata).unwrap();

    let written = std::fs::read(&out).unwrap();
    let (_, back) = safetensors::SafeTensors::read_metadata(&written).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&written).unwrap();
    for (i, (dtype, size)) in types.iter().enumerate() {
        let t = tensors.tensor(&format!("new.t{i}")).unwrap();
        assert_eq!(t.dtype().to_string(), *dtype);
        assert_eq!(t.data(), (0..3 * size).map(|n| (17 * n + 31 * i + 1) as u8).collect::<Vec<_>>(), "{dtype}");
        // Aligned for its type.
        assert!(back.info(&format!("new.t{i}")).unwrap().data_offsets.0.is_multiple_of(*size), "{dtype}");
    }
    let read = TensorFile::open(&out).unwrap();
    assert_eq!(read.metadata(), &metadata);
    assert!(same_bits(&read.tensor("half").unwrap().unwrap(), &more.to_kind(Kind::Half)));
    assert!(same_bits(&read.tensor("zeros").unwrap().unwrap(), &Tensor::zeros([2, 2], (Kind::BFloat16, Device::Cpu))));
    assert!(same_bits(&read.tensor("wide").unwrap().unwrap(), &file.tensor("t4").unwrap().unwrap().to_kind(Kind::Float)));
    let absent = BTreeMap::from([("a".to_string(), Piece::Stored(&file, "no such", None))]);
    assert!(matches!(save_pieces(&out, &absent, &metadata), Err(Error::Input { name, .. }) if name == "no such"));
    assert!(TensorFile::open(&out).is_ok(), "what was there stays");
}
