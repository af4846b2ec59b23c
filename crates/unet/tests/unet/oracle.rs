//! The network against diffusers: outputs, inner outputs, gradients, and removal as ablation and as surgery.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, Weights};
use unet::{Forward, ForwardOptions, RemovalSet, TapSet, UNet};

use crate::support::{Fixture, TOLERANCE, difference, dir, same_bits};

#[test]
fn outputs_and_inner_outputs_agree_with_diffusers() {
    for f in Fixture::all() {
        let taps = TapSet::all(f.unet.config());
        let options = ForwardOptions { ablated: &RemovalSet::empty(), taps: &taps };
        let out = f.unet.forward_with(&f.input("sample"), &f.input("timestep"), &f.cond(), &options).unwrap();
        let error = difference(&out.sample, &f.cases["output"]);
        assert!(error <= TOLERANCE, "{}: output differs by {error}", f.name);
        assert_eq!(out.taps.keys().map(String::as_str).collect::<Vec<_>>(), taps.iter().collect::<Vec<_>>());
        let expected: Vec<_> = f.cases.iter().filter_map(|(k, t)| Some((k.strip_prefix("tap.")?, t))).collect();
        assert!(expected.len() >= f.unet.config().stages.len());
        for (name, tensor) in expected {
            let error = difference(&out.taps[name], tensor);
            assert!(error <= TOLERANCE, "{}: {name} differs by {error}", f.name);
        }
    }
}

#[test]
fn gradients_agree_with_pytorch_and_reach_every_parameter() {
    for f in Fixture::all() {
        for t in f.unet.parameters().values() {
            let _ = t.set_requires_grad(true);
        }
        let out = f.unet.forward(&f.input("sample"), &f.input("timestep"), &f.cond()).unwrap();
        out.square().mean(Kind::Float).backward();
        for (name, t) in f.unet.parameters() {
            assert!(t.grad().defined() && t.grad().abs().max().double_value(&[]) > 0.0, "{}: no gradient at {name}", f.name);
        }
        let expected: Vec<_> = f.cases.iter().filter_map(|(k, t)| Some((k.strip_prefix("grad.")?, t))).collect();
        assert!(expected.len() > 10);
        for (name, tensor) in expected {
            let error = difference(&f.unet.parameters()[name].grad(), tensor);
            assert!(error <= TOLERANCE, "{}: gradient of {name} differs by {error}", f.name);
        }
    }
}

#[test]
fn removable_branches_are_those_of_diffusers() {
    for f in Fixture::all() {
        let mut expected: Vec<String> = serde_json::from_str(&f.metadata["branches"]).unwrap();
        let mut ours: Vec<String> = f.unet.layout().branches().iter().map(|b| b.id.clone()).collect();
        expected.sort();
        ours.sort();
        assert_eq!(ours, expected, "{}", f.name);
    }
}

#[test]
fn removal_agrees_with_zeroed_branches_in_diffusers() {
    for f in Fixture::all() {
        let sets = f.removal_sets();
        assert!(sets.len() >= 4);
        for (i, set) in sets.iter().enumerate() {
            let expected = &f.cases[&format!("removed.{i}")];
            let options = ForwardOptions { ablated: set, taps: &TapSet::none() };
            let (sample, timestep) = (f.input("sample"), f.input("timestep"));
            let ablated = tch::no_grad(|| f.unet.forward_with(&sample, &timestep, &f.cond(), &options)).unwrap().sample;
            let error = difference(&ablated, expected);
            assert!(error <= TOLERANCE, "{}: ablation {i} differs by {error}: {set:?}", f.name);

            let pruned = f.unet.prune(set).unwrap();
            assert!(same_bits(&f.forward(&pruned), &ablated), "{}: surgery {i} is not the ablation", f.name);
            let dir = tempfile::tempdir().unwrap();
            pruned.save(dir.path(), None, &BTreeMap::new()).unwrap();
            let reloaded = UNet::open(dir.path(), Device::Cpu, Kind::Float).unwrap();
            assert_eq!(reloaded.removed(), set, "{}", f.name);
            assert!(same_bits(&f.forward(&reloaded), &ablated), "{}: file {i} is not the ablation", f.name);
        }
    }
}

/// In f16 and bf16 the same network gives the same prediction up to rounding, and hands it back in its own type.
#[test]
fn reduced_precision_stays_close() {
    for f in Fixture::all() {
        let expected = &f.cases["output"];
        for (kind, tolerance) in [(Kind::Half, 0.02), (Kind::BFloat16, 0.1)] {
            let out = f.forward(&f.unet.to(Device::Cpu, kind).unwrap());
            assert_eq!(out.kind(), kind);
            let error = difference(&out.to_kind(Kind::Float), expected);
            assert!(error <= tolerance, "{}: {kind:?} differs by {error}", f.name);
        }
    }
}

/// A network built from bf16 casts of f32 masters trains the masters.
#[test]
fn gradients_reach_the_masters_of_a_cast_network() {
    let f = Fixture::open("sdxl");
    let masters: BTreeMap<&str, Tensor> =
        f.unet.parameters().iter().map(|(k, t)| (k.as_str(), t.detach().copy().set_requires_grad(true))).collect();
    let casts = masters.iter().map(|(k, t)| (k.to_string(), t.to_kind(Kind::BFloat16))).collect();
    let net = UNet::from_weights(f.unet.config(), Weights::from_tensors(casts), &RemovalSet::empty()).unwrap();
    let out = net.forward(&f.input("sample"), &f.input("timestep"), &f.cond()).unwrap();
    out.to_kind(Kind::Float).square().mean(Kind::Float).backward();
    for (name, t) in &masters {
        assert!(t.grad().defined() && t.grad().kind() == Kind::Float, "no gradient at {name}");
    }
    let (exact, cast) = (&f.cases["grad.conv_in.weight"], masters["conv_in.weight"].grad());
    let cosine = (exact * &cast).sum(Kind::Float) / (exact.norm() * cast.norm());
    assert!(cosine.double_value(&[]) > 0.99);
}

/// The gradients of the parameters of a loss on the prediction and on every inner output.
fn gradients(unet: &UNet, f: &Fixture, checkpointed: bool) -> Vec<(String, Tensor)> {
    let masters: Tensors = unet.parameters().iter().map(|(key, t)| (key.clone(), t.detach().set_requires_grad(true))).collect();
    let unet = UNet::from_weights(
        unet.config(),
        Weights::from_tensors(masters.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect()),
        unet.removed(),
    )
    .unwrap();
    let taps = TapSet::all(unet.config());
    let loss = |forward: &Forward| {
        let start = forward.sample.square().mean(Kind::Float);
        forward.taps.values().fold(start, |sum, tap| sum + tap.square().mean(Kind::Float) * 0.37)
    };
    let (x, t, cond) = (f.input("sample"), f.input("timestep"), f.cond());
    if checkpointed {
        let pass = unet.forward_checkpointed(&x, &t, &cond, &taps).unwrap();
        loss(pass.forward()).backward();
        pass.backward().unwrap();
    } else {
        let options = ForwardOptions { ablated: &RemovalSet::empty(), taps: &taps };
        loss(&unet.forward_with(&x, &t, &cond, &options).unwrap()).backward();
    }
    masters.into_iter().map(|(key, t)| (key, t.grad())).collect()
}

#[test]
fn checkpointing_changes_no_bit_of_a_gradient() {
    for f in Fixture::all() {
        let pruned = f.removal_sets().into_iter().map(|set| f.unet.prune(&set).unwrap());
        for unet in std::iter::once(f.unet.prune(&RemovalSet::empty()).unwrap()).chain(pruned) {
            let (plain, checkpointed) = (gradients(&unet, &f, false), gradients(&unet, &f, true));
            for ((key, a), (_, b)) in plain.iter().zip(&checkpointed) {
                assert_eq!(a.defined(), b.defined(), "{}: {key} without {:?}", f.name, unet.removed());
                assert!(!a.defined() || a.equal(b), "{}: {key} differs by {} without {:?}", f.name, (a - b).abs().max(), unet.removed());
            }
            assert!(plain.iter().any(|(_, g)| g.defined() && g.abs().max().double_value(&[]) > 0.0));
        }
    }
}

#[test]
fn outputs_of_self_attentions_agree_with_diffusers() {
    for name in ["sd15", "sd21", "sdxl", "rare"] {
        let f = Fixture::open(name);
        let expected = TensorFile::open(dir(name).join("self_attention.safetensors")).unwrap().tensors().unwrap();
        let taps = TapSet::self_attention(f.unet.config(), &RemovalSet::empty()).unwrap();
        assert_eq!(taps.iter().collect::<Vec<_>>(), expected.keys().map(String::as_str).collect::<Vec<_>>(), "{name}");
        let options = ForwardOptions { ablated: &RemovalSet::empty(), taps: &taps };
        let out = tch::no_grad(|| f.unet.forward_with(&f.input("sample"), &f.input("timestep"), &f.cond(), &options)).unwrap();
        for (id, tensor) in &expected {
            let error = difference(&out.taps[id], tensor);
            assert!(error <= TOLERANCE, "{name}: {id} differs by {error}");
        }
    }
}

#[test]
fn taps_follow_the_removed_layers() {
    let f = Fixture::open("sdxl");
    let config = f.unet.config();
    let (deep, whole) = ("down_blocks.2.attentions.0", "mid_block.attentions.0");
    let removed: RemovalSet =
        [format!("{deep}.transformer_blocks.1.attn1"), whole.to_string(), "up_blocks.1.resnets.1".to_string()].into_iter().collect();
    let all = TapSet::self_attention(config, &RemovalSet::empty()).unwrap();
    let taps = TapSet::self_attention(config, &removed).unwrap();
    // One of two moves to the end of its Transformer2D, and both of the mid block's do, to the same place.
    assert!(taps.contains(&format!("{deep}.transformer_blocks.0.attn1")) && taps.contains(deep) && taps.contains(whole));
    assert_eq!((all.iter().count() - taps.iter().count(), taps.iter().filter(|id| id.contains("mid_block")).count()), (1, 1));
    let behind = TapSet::removed(config, &removed).unwrap();
    assert_eq!(behind.iter().collect::<Vec<_>>(), [deep, whole, "up_blocks.1.resnets.1"]);
    // Teacher and student have all of them, in the same shapes.
    let student = f.unet.prune(&removed).unwrap();
    let wanted = TapSet::of(config, taps.iter().chain(behind.iter())).unwrap();
    let options = ForwardOptions { ablated: &RemovalSet::empty(), taps: &wanted };
    let run = |unet: &UNet| tch::no_grad(|| unet.forward_with(&f.input("sample"), &f.input("timestep"), &f.cond(), &options)).unwrap().taps;
    let shapes = |taps: Tensors| taps.into_iter().map(|(id, t)| (id, t.size())).collect::<Vec<_>>();
    let (teacher, student) = (shapes(run(&f.unet)), shapes(run(&student)));
    assert_eq!(teacher, student);
    assert_eq!(teacher.len(), wanted.iter().count());
}
