//! Inputs of a wrong shape are refused before anything runs, naming what was expected.

use tch::{Device, Kind, Tensor};
use unet::{AddedConditioning, Conditioning, Error, ForwardOptions, RemovalSet, TapSet, UNet};

use crate::support::Fixture;

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Float, Device::Cpu))
}

fn refused(unet: &UNet, sample: &Tensor, timestep: &Tensor, cond: &Conditioning) -> String {
    match unet.forward(sample, timestep, cond).unwrap_err() {
        Error::Input { name, expected, got } => {
            assert!(!expected.is_empty() && !got.is_empty());
            name
        }
        other => panic!("{other}"),
    }
}

#[test]
fn every_wrong_shape_is_named() {
    let f = Fixture::open("sdxl");
    let (u, x, t) = (&f.unet, f.input("sample"), f.input("timestep"));
    for shape in [vec![2, 5, 12, 8], vec![4, 12, 8], vec![0, 4, 12, 8], vec![2, 4, 0, 8]] {
        assert_eq!(refused(u, &zeros(&shape), &t, &f.cond()), "sample");
    }
    assert_eq!(refused(u, &x.to_kind(Kind::Int64), &t, &f.cond()), "sample");
    for shape in [vec![], vec![1], vec![2, 1], vec![3]] {
        assert_eq!(refused(u, &x, &zeros(&shape), &f.cond()), "timestep");
    }
    for shape in [vec![2, 6, 25], vec![1, 6, 26], vec![2, 0, 26], vec![2, 26]] {
        let cond = Conditioning { encoder_hidden_states: zeros(&shape), added: f.cond().added, guidance: None };
        assert_eq!(refused(u, &x, &t, &cond), "encoder_hidden_states");
    }
    for (text, sizes) in [([2, 19], [2, 5]), ([2, 18], [2, 6]), ([1, 19], [2, 6]), ([2, 19], [1, 6])] {
        let added = Some(AddedConditioning { text_embeds: zeros(&text), time_ids: zeros(&sizes) });
        let cond = Conditioning { encoder_hidden_states: f.cond().encoder_hidden_states, added, guidance: None };
        assert_eq!(refused(u, &x, &t, &cond), "text_embeds and time_ids");
    }
    assert_eq!(refused(u, &x, &t, &Conditioning::text(f.cond().encoder_hidden_states)), "text_embeds");
    let plain = Fixture::open("sd15");
    let added = Some(AddedConditioning { text_embeds: zeros(&[2, 19]), time_ids: zeros(&[2, 6]) });
    let cond = Conditioning { encoder_hidden_states: plain.cond().encoder_hidden_states, added, guidance: None };
    assert_eq!(refused(&plain.unet, &plain.input("sample"), &plain.input("timestep"), &cond), "text_embeds");

    let guided = Fixture::open("lcm");
    for shape in [[2, 13], [1, 14]] {
        let cond = Conditioning { guidance: Some(zeros(&shape)), ..guided.cond() };
        assert_eq!(refused(&guided.unet, &guided.input("sample"), &guided.input("timestep"), &cond), "guidance");
    }
    let cond = Conditioning { guidance: Some(zeros(&[2, 14])), ..plain.cond() };
    assert_eq!(refused(&plain.unet, &plain.input("sample"), &plain.input("timestep"), &cond), "guidance");
}

#[test]
fn unknown_taps_and_layers_are_refused() {
    let f = Fixture::open("nomid");
    assert!(matches!(TapSet::of(f.unet.config(), ["mid_block"]), Err(Error::Input { got, .. }) if got == "mid_block"));
    let taps = TapSet::of(f.unet.config(), ["up_blocks.1"]).unwrap();
    let options = ForwardOptions { ablated: &RemovalSet::single("up_blocks.1"), taps: &taps };
    let err = f.unet.forward_with(&f.input("sample"), &f.input("timestep"), &f.cond(), &options).unwrap_err();
    assert!(matches!(err, Error::Layer { id, .. } if id == "up_blocks.1"));
}

/// Any size works, down to one position, with integer time steps and one sample.
#[test]
fn sizes_that_do_not_halve_evenly_and_integer_time_steps_work() {
    let f = Fixture::open("sd15");
    for (h, w) in [(1, 1), (3, 17), (8, 8)] {
        let sample = zeros(&[1, 4, h, w]);
        let cond = Conditioning::text(zeros(&[1, 2, 22]));
        let out = f.unet.forward(&sample, &Tensor::from_slice(&[7i64]), &cond).unwrap();
        assert_eq!(out.size(), [1, 4, h, w]);
        let same = f.unet.forward(&sample, &Tensor::from_slice(&[7f32]), &cond).unwrap();
        assert!(out.equal(&same));
    }
}

#[test]
fn conditioning_is_cut_and_joined_along_the_batch() {
    let cond = Fixture::open("sdxl").cond();
    let (a, b) = (cond.narrow(0, 1), cond.narrow(1, 1));
    let joined = Conditioning::cat(&[&a, &b]).unwrap();
    assert!(joined.encoder_hidden_states.equal(&cond.encoder_hidden_states));
    assert!(joined.added.unwrap().time_ids.equal(&cond.added.as_ref().unwrap().time_ids));
    assert!(cond.index_select(&Tensor::from_slice(&[1i64])).encoder_hidden_states.equal(&b.encoder_hidden_states));
    assert!(matches!(Conditioning::cat(&[&a, &Conditioning::text(b.encoder_hidden_states.shallow_clone())]), Err(Error::Input { .. })));
    assert!(matches!(Conditioning::cat(&[]), Err(Error::Input { .. })));
}
