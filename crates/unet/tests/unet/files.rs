//! Model directories: written whole, read back bit for bit, refused when they do not hold together.

use std::collections::BTreeMap;

use tch::{Device, Kind};
use unet::weights::{TensorFile, save_tensors};
use unet::{Error, RemovalSet, UNet, fingerprint};

use crate::support::{Fixture, dir, same_bits};

fn open(path: &std::path::Path) -> Result<UNet, Error> {
    UNet::open(path, Device::Cpu, Kind::Float)
}

#[test]
fn a_pruned_model_carries_its_plan_and_lacks_what_was_removed() {
    let f = Fixture::open("sdxl");
    // One block of two, and one whole Transformer2D with its norm and projections.
    let removed: RemovalSet = ["mid_block.attentions.0.transformer_blocks.1", "up_blocks.1.attentions.2"].into_iter().collect();
    let pruned = f.unet.prune(&removed).unwrap();
    assert_eq!(pruned.removed().len(), 6);
    // Kept tensors are shared, not copied.
    assert_eq!(pruned.parameters()["conv_in.weight"].data_ptr(), f.unet.parameters()["conv_in.weight"].data_ptr());
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("unet");
    let extra = BTreeMap::from([("laptop_diff.plan".to_string(), "{\"ratio\": 0.5}".to_string())]);
    pruned.save(&folder, None, &extra).unwrap();

    let file = TensorFile::open(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    let names: Vec<&str> = file.shapes().map(|(name, _)| name).collect();
    assert!(!names.iter().any(|n| n.starts_with("mid_block.attentions.0.transformer_blocks.1.")));
    assert!(!names.iter().any(|n| n.starts_with("up_blocks.1.attentions.2.")));
    assert!(names.iter().any(|n| n.starts_with("mid_block.attentions.0.proj_in.")));
    assert_eq!(names.len(), pruned.parameters().len());

    // By the model directory and by its unet folder.
    for path in [out.path(), &folder] {
        let back = open(path).unwrap();
        assert_eq!(back.removed(), pruned.removed());
        assert_eq!(back.config(), f.unet.config());
        assert_eq!(back.metadata()["laptop_diff.plan"], "{\"ratio\": 0.5}");
        assert!(same_bits(&f.forward(&back), &f.forward(&pruned)));
    }
    // Saved again after more pruning, the plan goes along.
    let more = open(&folder).unwrap().prune(&RemovalSet::single("down_blocks.0.resnets.1")).unwrap();
    more.save(&folder, Some(Kind::Half), &BTreeMap::new()).unwrap();
    let back = open(&folder).unwrap();
    assert_eq!(back.removed().len(), 7);
    assert_eq!(back.metadata()["laptop_diff.plan"], "{\"ratio\": 0.5}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn saving_twice_gives_the_same_bytes_and_the_fingerprint_follows_content() {
    let f = Fixture::open("nomid");
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&a, &b] {
        f.unet.save(dir.path(), None, &BTreeMap::new()).unwrap();
    }
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        assert_eq!(std::fs::read(a.path().join(name)).unwrap(), std::fs::read(b.path().join(name)).unwrap());
    }
    assert_eq!(fingerprint(a.path()).unwrap(), fingerprint(b.path()).unwrap());
    UNet::random(f.unet.config(), 3, Device::Cpu, Kind::Float).unwrap().save(b.path(), None, &BTreeMap::new()).unwrap();
    assert_ne!(fingerprint(a.path()).unwrap(), fingerprint(b.path()).unwrap());
}

#[test]
fn random_networks_depend_on_the_seed_alone() {
    let config = Fixture::open("sd21").unet.config().clone();
    let make = |seed| UNet::random(&config, seed, Device::Cpu, Kind::Float).unwrap();
    let (a, b, c) = (make(1), make(1), make(2));
    assert!(a.parameters().iter().all(|(k, t)| same_bits(t, &b.parameters()[k])));
    assert!(!same_bits(&a.parameters()["conv_in.weight"], &c.parameters()["conv_in.weight"]));
    let half = a.to(Device::Cpu, Kind::Double).unwrap();
    assert_eq!((half.kind(), half.num_parameters()), (Kind::Double, a.num_parameters()));
}

#[test]
fn weights_that_do_not_fit_are_listed() {
    let f = Fixture::open("nomid");
    let folder = tempfile::tempdir().unwrap();
    f.unet.save(folder.path(), None, &BTreeMap::new()).unwrap();
    let file = folder.path().join("diffusion_pytorch_model.safetensors");
    let mut tensors = TensorFile::open(&file).unwrap().tensors().unwrap();
    let moved = tensors.remove("conv_out.bias").unwrap();
    tensors.insert("conv_out.biases".into(), moved);
    let flat = tensors["conv_in.weight"].flatten(0, -1);
    tensors.insert("conv_in.weight".into(), flat);
    save_tensors(&file, &tensors, &BTreeMap::new(), None).unwrap();
    let Err(Error::Weights { path, report }) = open(folder.path()) else { panic!("accepted") };
    assert!(path.contains("diffusion_pytorch_model"));
    assert_eq!(report.missing, [("conv_out.bias".to_string(), Some("conv_out.biases".to_string()))]);
    assert_eq!(report.unexpected, ["conv_out.biases"]);
    assert_eq!(report.mismatched[0].0, "conv_in.weight");
}

#[test]
fn damaged_and_foreign_folders_are_refused() {
    let f = Fixture::open("nomid");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("diffusion_pytorch_model.safetensors");
    let save = |unet: &UNet| unet.save(folder.path(), None, &BTreeMap::new()).unwrap();

    assert!(matches!(open(folder.path()), Err(Error::Io { .. })));
    save(&f.unet);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(open(folder.path()), Err(Error::Format { .. })));
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(open(folder.path()), Err(Error::Format { .. })));

    // A pruned file under another configuration, and metadata that this program cannot read.
    let pruned = f.unet.prune(&RemovalSet::single("up_blocks.0.resnets.1")).unwrap();
    save(&pruned);
    std::fs::copy(dir("sd21").join("config.json"), folder.path().join("config.json")).unwrap();
    assert!(matches!(open(folder.path()), Err(Error::Format { problem, .. }) if problem.contains("config.json")));
    for (key, value) in [("laptop_diff.version", "9"), ("laptop_diff.removed", "up_blocks.0.resnets.1")] {
        save(&pruned);
        let opened = TensorFile::open(&file).unwrap();
        let mut metadata = opened.metadata().clone();
        metadata.insert(key.into(), value.into());
        save_tensors(&file, &opened.tensors().unwrap(), &metadata, None).unwrap();
        assert!(matches!(open(folder.path()), Err(Error::Format { problem, .. }) if problem.contains(key)));
    }
    // A folder that cannot be made.
    let blocked = folder.path().join("config.json").join("unet");
    assert!(matches!(f.unet.save(&blocked, None, &BTreeMap::new()), Err(Error::Io { .. })));
}
