//! Time of a forward pass and of its blocks one by one, on random weights in the shape of the embedded model.
//!
//!     cargo bench -p unet --bench unet

use criterion::{Criterion, criterion_group, criterion_main};
use prune_core::RemovalSet;
use prune_core::score::Segmented;
use tch::{Device, Kind, Tensor};
use unet::scoring::{Calibration, OUTPUT_LOSS, TASK_LOSS_DELTA, UNetPasses};
use unet::{AddedConditioning, Conditioning, UNet, UNetConfig, layer_table};

const SAMPLES: i64 = 8;

struct Setting {
    unet: UNet,
    x: Tensor,
    t: Tensor,
    cond: Conditioning,
}

fn setting() -> Setting {
    let config = UNetConfig::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/tiny-sdxl/unet.json")).expect("a configuration");
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let added = config.added.as_ref().map(|added| AddedConditioning {
        text_embeds: random(&[SAMPLES, added.input - 6 * added.channels]),
        time_ids: Tensor::full([SAMPLES, 6], 64, (Kind::Float, Device::Cpu)),
    });
    let (h, w) = config.sample_size.unwrap_or((16, 16));
    Setting {
        x: random(&[SAMPLES, config.in_channels, h, w]),
        t: Tensor::arange(SAMPLES, (Kind::Float, Device::Cpu)) * 100.0,
        cond: Conditioning { encoder_hidden_states: random(&[SAMPLES, 20, config.text_width]), added, guidance: None },
        unet: UNet::random(&config, 1, Device::Cpu, Kind::Float).expect("a network"),
    }
}

fn benches(c: &mut Criterion) {
    let setting = setting();
    let Setting { unet, x, t, cond } = &setting;
    let table = layer_table(unet.config(), 16, 16).expect("a table");
    c.bench_function("forward, 8 samples", |b| b.iter(|| tch::no_grad(|| unet.forward(x, t, cond)).expect("a prediction")));

    let data = || {
        Calibration::new(x.shallow_clone(), t.shallow_clone(), cond.shallow_clone(), Some(x.shallow_clone()), vec![0; 8]).expect("samples")
    };
    let mut passes = UNetPasses::new(unet, table.clone(), data(), &[OUTPUT_LOSS, TASK_LOSS_DELTA]).expect("passes");
    let mut group = c.benchmark_group("one block, 8 samples");
    let none = RemovalSet::empty();
    let mut state = passes.start(0..SAMPLES as usize).expect("a pass");
    for segment in 0..passes.segments().len() {
        let name = passes.segments()[segment].layers.clone().map(|at| table.layers()[at].id.to_string()).next().unwrap_or_default();
        group.bench_function(format!("{segment:02} from {name}"), |b| b.iter(|| passes.step(&state, segment, &none).expect("a step")));
        state = passes.step(&state, segment, &none).expect("a step");
    }
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
