//! Files for other programs: the pruned network in a target, in the names of the original layout, and back.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};
use unet::{
    Error, ExportFormat, ExportOptions, ExportTarget, ModelSource, Part, Program, RemovalSet, SingleFileNames, StoredUNet, UNet,
    UNetConfig, architecture, export, fingerprint, stored_kind,
};

use crate::support::{Fixture, difference, published, random, same_bits};

const PROGRAMS: [Program; 3] = [Program::Neutral, Program::Diffusers, Program::ComfyUi];

fn blocks(id: &str, numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|i| format!("{id}.transformer_blocks.{i}")).collect()
}

fn set(ids: impl IntoIterator<Item = String>) -> RemovalSet {
    ids.into_iter().collect()
}

fn depth(target: &ExportTarget, id: &str) -> usize {
    let parts = target.config.stages.iter().flat_map(|s| &s.parts);
    let depth = parts.filter_map(|p| if let Part::Transformer(t) = p { (t.id == id).then_some(t.depth) } else { None }).next();
    depth.unwrap_or(0)
}

#[test]
fn a_host_computes_what_the_pruned_network_computes() {
    for f in Fixture::all() {
        for (n, removed) in f.removal_sets().iter().enumerate() {
            let pruned = f.unet.prune(removed).unwrap();
            let expected = f.forward(&pruned);
            for program in PROGRAMS {
                // The fixtures with pooled text have depths of no published model.
                let target = match ExportTarget::new(f.unet.config(), removed, program) {
                    Err(Error::Portable { .. }) if program == Program::ComfyUi => continue,
                    target => target.unwrap(),
                };
                let built = target.build(&pruned).unwrap();
                let off = difference(&f.forward(&built), &expected);
                assert!(off <= 1e-6, "{} set {n} for {program:?} differs by {off}", f.name);
                assert_eq!(built.num_parameters(), pruned.num_parameters() + target.padded_params(), "{} set {n} for {program:?}", f.name);
                // ComfyUI may need more depth than an original that it does not know has.
                assert!(program == Program::ComfyUi || built.num_parameters() <= f.unet.num_parameters());
                if program == Program::Neutral {
                    assert_eq!((built.num_parameters(), built.config()), (f.unet.num_parameters(), f.unet.config()));
                }
            }
        }
    }
}

#[test]
fn whole_blocks_cost_no_padding() {
    let f = Fixture::open("sdxl");
    // Depths [1, 1, 2]: one block of each transformer of the last level, and of the mid block, whose depth it shares.
    let ids = ["down_blocks.2.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.1"];
    let removed = set(ids.iter().flat_map(|id| blocks(id, [0])));
    let target = ExportTarget::new(f.unet.config(), &removed, Program::Diffusers).unwrap();
    assert!(target.padding.is_empty(), "{:?}", target.padding);
    assert_eq!(target.config.to_json()["transformer_layers_per_block"], serde_json::json!([1, 1, [1, 2]]));
    assert_eq!(
        target.rename("up_blocks.0.attentions.1.transformer_blocks.1.ff.net.2.bias").unwrap(),
        "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2.bias"
    );
    assert_eq!(target.rename("up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2.bias"), None);
    assert_eq!(target.rename("conv_in.weight").as_deref(), Some("conv_in.weight"));
    let pruned = f.unet.prune(&removed).unwrap();
    assert!(same_bits(&f.forward(&target.build(&pruned).unwrap()), &f.forward(&pruned)));

    // Only the mid block's: its neighbour's depth pads it for diffusers.
    let target = ExportTarget::new(f.unet.config(), &set(blocks(ids[1], [1])), Program::Diffusers).unwrap();
    assert_eq!(target.padding.len(), 3);
    assert!(target.padding.iter().all(|p| p.at.starts_with("mid_block.attentions.0.transformer_blocks.1.")));
}

#[test]
fn comfyui_gets_the_cheapest_depths_that_it_knows() {
    let sdxl = UNetConfig::sdxl();
    let low = ["down_blocks.2.attentions.0", "down_blocks.2.attentions.1"];
    // Three of ten are left in one transformer and four in the other: SSD-1B's 4 holds both.
    let mut removed = blocks(low[0], 0..7);
    removed.extend(blocks(low[1], [0, 2, 4, 6, 8, 9]));
    removed.extend(blocks("mid_block.attentions.0", 1..10));
    removed.push("up_blocks.1.attentions.2".into());
    let target = ExportTarget::new(&sdxl, &set(removed), Program::ComfyUi).unwrap();
    assert_eq!((depth(&target, low[0]), depth(&target, low[1]), depth(&target, "mid_block.attentions.0")), (4, 4, 1));
    // One block of 1280 channels and 2048 text features comes back: the parts of SDXL's closed forms.
    let (c, x) = (1280u64, 2048u64);
    assert_eq!(target.padded_params(), 3 * c + 4 * c * c + 3 * c + 2 * c * c + 2 * x * c + 11 * c + 12 * c * c);
    assert!(target.removed.contains("up_blocks.1.attentions.2"));

    // Without attention a lone mid ResNet is a mid block, and an empty one is none.
    let mut ids = vec!["mid_block.attentions.0".to_string(), "mid_block.resnets.0".to_string()];
    let target = ExportTarget::new(&sdxl, &set(ids.clone()), Program::ComfyUi).unwrap();
    assert_eq!(target.config.to_json()["mid_block_type"], "UNetMidBlock2D");
    assert_eq!(target.rename("mid_block.resnets.1.conv1.weight").unwrap(), "mid_block.resnets.0.conv1.weight");
    assert_eq!(target.padded_params(), 0);
    ids.push("mid_block.resnets.1".into());
    let target = ExportTarget::new(&sdxl, &set(ids), Program::Diffusers).unwrap();
    assert!(target.config.to_json()["mid_block_type"].is_null() && target.padding.is_empty());

    // A lone ResNet elsewhere comes back.
    let target = ExportTarget::new(&sdxl, &set(["up_blocks.2.resnets.1".to_string()]), Program::ComfyUi).unwrap();
    assert_eq!(target.padding.iter().map(|p| p.at.as_str()).collect::<Vec<_>>(), ["up_blocks.2.resnets.1"]);

    // SD-v1.5 is known without its depths.
    let target = ExportTarget::new(&UNetConfig::sd15(), &set(["down_blocks.1.attentions.0".to_string()]), Program::ComfyUi).unwrap();
    assert!(target.padding.is_empty() && target.removed.contains("down_blocks.1.attentions.0"));
    // The fixture's own depths are Vega's, so its way up may lose what it likes.
    let vega_like = Fixture::open("sdxl");
    let target = ExportTarget::new(vega_like.unet.config(), &set(blocks("up_blocks.0.attentions.0", [0])), Program::ComfyUi).unwrap();
    assert!(target.padding.is_empty());
}

/// The file without what this program wrote into its metadata, as another program would save it.
fn strip_metadata(path: &Path) {
    let file = TensorFile::open(path).unwrap();
    let tensors = file.tensors().unwrap();
    drop(file);
    save_tensors(path, &tensors, &BTreeMap::new(), None).unwrap();
}

fn same_network(a: &UNet, b: &UNet) {
    assert_eq!(a.parameters().keys().collect::<Vec<_>>(), b.parameters().keys().collect::<Vec<_>>());
    assert!(a.parameters().iter().all(|(k, t)| same_bits(t, &b.parameters()[k])));
    assert_eq!(a.config().stages, b.config().stages);
    assert_eq!(a.removed(), b.removed());
}

#[test]
fn single_files_are_written_and_read() {
    let full = published();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full.safetensors");
    full.save_single_file(&path, None, &BTreeMap::new(), None).unwrap();
    strip_metadata(&path);
    let back = UNet::open(&path, Device::Cpu, Kind::Half).unwrap();
    same_network(&back, &full);
    assert_eq!(stored_kind(&path).unwrap(), Kind::Half);
    assert_eq!((back.config().text_width, &back.config().added), (40, &full.config().added));

    // A whole checkpoint: what stands beside the U-Net goes along, and the U-Net alone is loaded.
    let mut whole: Tensors = TensorFile::open(&path).unwrap().tensors().unwrap();
    let vae = Tensor::ones([3, 2], (Kind::Float, Device::Cpu));
    whole.insert("first_stage_model.decoder.conv_in.weight".into(), vae.shallow_clone());
    whole.insert("alphas_cumprod".into(), Tensor::ones([5], (Kind::Float, Device::Cpu)));
    save_tensors(&path, &whole, &BTreeMap::new(), None).unwrap();
    let opened = UNet::open(&path, Device::Cpu, Kind::Half).unwrap();
    same_network(&opened, &full);
    assert_eq!(stored_kind(&path).unwrap(), Kind::Half);

    let removed = set(blocks("down_blocks.2.attentions.0", [1]).into_iter().chain(["up_blocks.0.attentions.1".to_string()]));
    let pruned = opened.prune(&removed).unwrap();
    let out = folder.path().join("pruned.safetensors");
    pruned.save_single_file(&out, Some(Kind::BFloat16), &BTreeMap::new(), Some(&path)).unwrap();
    let file = TensorFile::open(&out).unwrap();
    assert!(same_bits(&file.tensor("first_stage_model.decoder.conv_in.weight").unwrap().unwrap(), &vae));
    assert!(!file.shapes().any(|(name, _)| name.starts_with("model.diffusion_model.output_blocks.1.1.")));
    assert_eq!(stored_kind(&out).unwrap(), Kind::BFloat16);
    same_network(
        &UNet::open(&out, Device::Cpu, Kind::Half).unwrap(),
        &pruned.to(Device::Cpu, Kind::BFloat16).unwrap().to(Device::Cpu, Kind::Half).unwrap(),
    );
    assert_ne!(fingerprint(&out).unwrap(), fingerprint(&path).unwrap());
}

#[test]
fn single_files_keep_the_input_for_the_guidance_scale() {
    let mut json = published().config().to_json();
    json["time_cond_proj_dim"] = 24.into();
    let full = random(&json);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lcm.safetensors");
    full.save_single_file(&path, None, &BTreeMap::new(), None).unwrap();
    strip_metadata(&path);
    let back = UNet::open(&path, Device::Cpu, Kind::Half).unwrap();
    same_network(&back, &full);
    assert_eq!(back.config().time.guidance, Some(24));
    let refused = ExportTarget::new(full.config(), &RemovalSet::empty(), Program::ComfyUi);
    assert!(matches!(refused, Err(Error::Portable { reason, .. }) if reason.contains("time_cond_proj_dim")));
}

#[test]
fn a_pruned_file_for_comfyui_tells_its_shape_without_metadata() {
    let full = published();
    let folder = tempfile::tempdir().unwrap();
    // Unequal depths everywhere, the mid block's its own, and a transformer on the way up that is gone.
    let mut ids = blocks("down_blocks.2.attentions.0", [0]);
    ids.extend(blocks("down_blocks.2.attentions.1", [0]));
    ids.extend(blocks("mid_block.attentions.0", [1]));
    ids.extend(blocks("up_blocks.0.attentions.2", [0, 1]));
    let pruned = full.prune(&set(ids)).unwrap();
    let target = ExportTarget::new(full.config(), pruned.removed(), Program::Diffusers).unwrap();
    let built = target.build(&pruned).unwrap();
    assert_eq!(target.padding.len(), 0);
    let path = folder.path().join("pruned.safetensors");
    built.save_single_file(&path, None, &BTreeMap::new(), None).unwrap();
    strip_metadata(&path);
    same_network(&UNet::open(&path, Device::Cpu, Kind::Half).unwrap(), &built);
}

#[test]
fn names_are_told_both_ways_for_every_parameter() {
    for f in Fixture::all() {
        let names = SingleFileNames::new(f.unet.config());
        let there: Vec<String> = f.unet.parameters().keys().map(|k| names.to_single_file(k).unwrap()).collect();
        let back: Vec<String> = there.iter().map(|k| names.from_single_file(k).unwrap()).collect();
        assert!(back.iter().eq(f.unet.parameters().keys()), "{}", f.name);
        assert_eq!(there.iter().collect::<std::collections::BTreeSet<_>>().len(), there.len());
    }
}

#[test]
fn files_without_a_unet_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let tensors = Tensors::from([("lora_unet_down.weight".to_string(), Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)))]);
    save_tensors(&path, &tensors, &BTreeMap::new(), None).unwrap();
    assert!(
        matches!(architecture(&path), Err(Error::Format { problem, hint, .. }) if problem.contains("a LoRA") && hint.contains("remap-lora"))
    );
    // One tensor short: the load report names it by our name.
    let full = published();
    full.save_single_file(&path, None, &BTreeMap::new(), None).unwrap();
    let mut tensors = TensorFile::open(&path).unwrap().tensors().unwrap();
    let _ = tensors.remove("model.diffusion_model.out.2.bias").unwrap();
    save_tensors(&path, &tensors, &BTreeMap::new(), None).unwrap();
    let Err(Error::Weights { report, .. }) = UNet::open(&path, Device::Cpu, Kind::Half) else { panic!("accepted") };
    assert_eq!(report.missing.len(), 1);
    assert_eq!(report.missing[0].0, "conv_out.bias");
}

/// A file of `published()`'s network in many types, with what people's files hold beside.
fn checkpoint(path: &Path, full: &UNet) -> Tensors {
    let names = SingleFileNames::new(full.config());
    let kinds = [Kind::Half, Kind::Float, Kind::BFloat16, Kind::Float8e4m3fn];
    let mut all: Tensors = full
        .parameters()
        .iter()
        .enumerate()
        .map(|(i, (key, t))| (format!("model.diffusion_model.{}", names.to_single_file(key).unwrap()), t.to_kind(kinds[i % 4])))
        .collect();
    let ones = |shape: &[i64], kind| Tensor::ones(shape, (kind, Device::Cpu));
    all.insert("first_stage_model.decoder.conv_in.weight".into(), ones(&[3, 2], Kind::BFloat16));
    all.insert("conditioner.embedders.0.transformer.text_model.q.weight".into(), ones(&[4, 2], Kind::Float8e5m2));
    all.insert("conditioner.embedders.0.transformer.text_model.q.scale_weight".into(), ones(&[], Kind::Float));
    all.insert("denoiser.sigmas".into(), ones(&[5], Kind::Double));
    all.insert("v_pred".into(), ones(&[0], Kind::Float));
    all.insert("ztsnr".into(), ones(&[], Kind::Half));
    all.insert("model_ema.diffusion_modelout2bias".into(), ones(&[4], Kind::Float));
    let metadata = [("modelspec.architecture", "stable-diffusion-xl-v1-base"), ("modelspec.title", "é"), ("ss_tag", "{}")];
    save_tensors(path, &all, &metadata.map(|(k, v)| (k.to_string(), v.to_string())).into_iter().collect(), None).unwrap();
    all
}

#[test]
fn what_is_kept_of_a_checkpoint_is_kept_bit_for_bit() {
    let full = published();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full.safetensors");
    let given = checkpoint(&path, &full);
    let model = ModelSource::open(&path).unwrap();
    let options = |format, unet_only| ExportOptions { format, unet_only, kind: None, plan_file: None, beside: None };
    let names = SingleFileNames::new(full.config());

    for (unet_only, beside) in [(false, 6), (true, 2)] {
        let out = folder.path().join(format!("out-{unet_only}.safetensors"));
        export(&model, None, &out, &options(ExportFormat::Neutral, unet_only)).unwrap();
        let written = TensorFile::open(&out).unwrap();
        assert_eq!(written.shapes().count(), full.parameters().len() + beside);
        for (key, t) in written.tensors().unwrap() {
            assert!(same_bits(&t, &given[&key]), "{key}");
        }
        assert!(written.has("v_pred") && written.has("ztsnr") && !written.has("model_ema.diffusion_modelout2bias"));
        assert_eq!(written.has("conditioner.embedders.0.transformer.text_model.q.scale_weight"), !unet_only);
        assert_eq!((written.metadata()["modelspec.title"].as_str(), written.metadata()["ss_tag"].as_str()), ("é", "{}"));
    }
    // As a folder, in this program's own form: our names, the markers, the metadata.
    let out = folder.path().join("folder");
    export(&model, None, &out, &options(ExportFormat::Own, true)).unwrap();
    let written = TensorFile::open(out.join("diffusion_pytorch_model.safetensors")).unwrap();
    for key in full.parameters().keys() {
        let there = format!("model.diffusion_model.{}", names.to_single_file(key).unwrap());
        assert!(same_bits(&written.tensor(key).unwrap().unwrap(), &given[&there]), "{key}");
    }
    assert_eq!(StoredUNet::open(&out).unwrap().markers().tensors, ["v_pred", "ztsnr"]);
    assert_eq!(written.metadata()["modelspec.architecture"], "stable-diffusion-xl-v1-base");
    assert_eq!(UNet::open(&out, Device::Cpu, Kind::Float).unwrap().num_parameters(), full.num_parameters());
    // In one type where that is asked for.
    let out = folder.path().join("half.safetensors");
    export(&model, None, &out, &ExportOptions { kind: Some(Kind::Half), ..options(ExportFormat::Neutral, true) }).unwrap();
    let written = TensorFile::open(&out).unwrap();
    assert!(written.shapes().filter(|(key, _)| key.starts_with("model.")).all(|(key, _)| written.kind(key) == Some(Kind::Half)));
}

#[test]
fn checkpoints_of_training_programs_become_single_files() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pytorch_files");
    let folder = tempfile::tempdir().unwrap();
    for name in ["lightning.ckpt", "lightning_legacy.ckpt"] {
        let model = ModelSource::open(files.join(name)).unwrap();
        let out = folder.path().join(format!("{name}.safetensors"));
        export(
            &model,
            None,
            &out,
            &ExportOptions { format: ExportFormat::SingleFile, unet_only: false, kind: None, plan_file: None, beside: None },
        )
        .unwrap();
        let (given, written) = (TensorFile::open(files.join(name)).unwrap(), TensorFile::open(&out).unwrap());
        let others: Vec<&str> = written.shapes().map(|(key, _)| key).filter(|key| !key.starts_with("model.diffusion_model.")).collect();
        assert_eq!(others, ["alphas_cumprod", "first_stage_model.encoder.conv_in.weight"]);
        for (key, t) in written.tensors().unwrap() {
            assert!(same_bits(&t, &given.tensor(&format!("state_dict.{key}")).unwrap().unwrap()), "{key}");
        }
    }
}
