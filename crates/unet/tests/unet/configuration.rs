//! Published configurations are understood, and what is not implemented is refused by name.

use prune_core::table::Cost;
use serde_json::{Value, json};
use unet::{Error, UNetConfig, layer_table};

fn edited(base: &UNetConfig, edits: &[(&str, Value)]) -> Result<UNetConfig, Error> {
    let mut json = base.to_json();
    for (key, value) in edits {
        json[key] = value.clone();
    }
    UNetConfig::parse(&json.to_string(), "edited.json")
}

fn parameters(config: &UNetConfig) -> u64 {
    layer_table(config, 8, 8).unwrap().total(Cost::Params)
}

/// Parameter counts of the published checkpoints.
#[test]
fn published_smaller_models_are_read_with_their_sizes() {
    let (sd, xl) = (UNetConfig::sd15(), UNetConfig::sdxl());
    let bk = |edits: &[(&str, Value)]| parameters(&edited(&sd, edits).unwrap());
    assert_eq!(bk(&[("layers_per_block", json!(1))]), 579_384_964);
    assert_eq!(bk(&[("layers_per_block", json!(1)), ("mid_block_type", Value::Null)]), 482_346_884);
    let tiny = [
        ("layers_per_block", json!(1)),
        ("mid_block_type", Value::Null),
        ("block_out_channels", json!([320, 640, 1280])),
        ("down_block_types", json!(["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"])),
        ("up_block_types", json!(["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"])),
    ];
    assert_eq!(bk(&tiny), 323_384_964);
    // Segmind's small-sd and tiny-sd have the first and the last of these shapes. The v2 ones are counted by diffusers.
    let v2 = UNetConfig::sd21();
    let bk = |edits: &[(&str, Value)]| parameters(&edited(&v2, edits).unwrap());
    assert_eq!(bk(&tiny[..1]), 583_480_964, "BK-SDM-v2-Base");
    assert_eq!(bk(&tiny[..2]), 485_787_524, "BK-SDM-v2-Small");
    assert_eq!(bk(&[&tiny[..], &[("attention_head_dim", json!([5, 10, 20]))]].concat()), 326_825_604, "BK-SDM-v2-Tiny");

    let xl = |edits: &[(&str, Value)]| parameters(&edited(&xl, edits).unwrap());
    let depths = |down: Value, up: Value| [("transformer_layers_per_block", down), ("reverse_transformer_layers_per_block", up)];
    let mid = ("mid_block_type", json!("UNetMidBlock2D"));
    let [down, up] = depths(json!([0, [2, 2], [4, 4]]), json!([[4, 4, 10], [2, 1, 1], 0]));
    assert_eq!(xl(&[down, up, mid.clone()]), 1_331_334_404, "SSD-1B");
    let [down, up] = depths(json!([0, [1, 1], [2, 2]]), json!([[2, 2, 2], [1, 1, 1], 0]));
    assert_eq!(xl(&[down, up, mid]), 745_225_604, "Segmind-Vega");
    let one = ("layers_per_block", json!(1));
    assert_eq!(xl(&[one.clone(), ("transformer_layers_per_block", json!([0, 2, 6]))]), 1_161_184_324, "KOALA-1B");
    let small = [one, ("transformer_layers_per_block", json!([0, 2, 5])), ("mid_block_type", Value::Null)];
    assert_eq!(xl(&small), 782_822_724, "KOALA-700M");
    let refiner = [
        ("attention_head_dim", json!([6, 12, 24, 24])),
        ("block_out_channels", json!([384, 768, 1536, 1536])),
        ("cross_attention_dim", json!(1280)),
        ("down_block_types", json!(["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"])),
        ("up_block_types", json!(["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"])),
        ("transformer_layers_per_block", json!(4)),
        ("projection_class_embeddings_input_dim", json!(2560)),
    ];
    assert_eq!(xl(&refiner), 2_259_526_660, "SDXL refiner, counted by diffusers");
}

#[test]
fn settings_that_would_change_numbers_are_refused_by_name() {
    let refused = [
        ("dual_cross_attention", json!(true)),
        ("only_cross_attention", json!([false, true, false])),
        ("resnet_time_scale_shift", json!("scale_shift")),
        ("class_embed_type", json!("timestep")),
        ("time_embedding_type", json!("fourier")),
        ("act_fn", json!("gelu")),
        ("dropout", json!(0.1)),
        ("addition_embed_type", json!("text_image")),
        ("time_cond_proj_dim", json!(2)),
        ("attention_type", json!("gated")),
        ("a_setting_of_tomorrow", json!(7)),
        ("_class_name", json!("AutoencoderKL")),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("down_block_types", json!(["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"])),
        ("up_block_types", json!(["UpBlock2D"])),
        ("block_out_channels", json!([320, "640", 1280])),
        ("layers_per_block", json!(0)),
        ("layers_per_block", json!(100_000)),
        ("block_out_channels", json!(vec![32; 70])),
        ("transformer_layers_per_block", json!([1, 1u64 << 40, 1])),
        ("norm_num_groups", json!(48)),
        ("attention_head_dim", json!([5, 10, 21])),
        ("cross_attention_dim", json!([8, 16, 24])),
        ("projection_class_embeddings_input_dim", Value::Null),
        ("transformer_layers_per_block", json!([1, [2], [10, 10]])),
        ("conv_in_kernel", json!(4)),
        ("norm_eps", json!("small")),
    ];
    for (key, value) in refused {
        let Err(Error::Config { key: named, path, .. }) = edited(&UNetConfig::sdxl(), &[(key, value.clone())]) else {
            panic!("{key} = {value} was accepted, or refused without its name");
        };
        let nested = value.to_string().contains("[2]");
        let expected = if nested { "reverse_transformer_layers_per_block" } else { key };
        assert_eq!((named.as_str(), path.to_str().unwrap()), (expected, "edited.json"));
    }
}

#[test]
fn settings_without_effect_are_accepted() {
    let accepted = [
        ("_name_or_path", json!("somewhere")),
        ("class_embed_type", Value::Null),
        ("a_setting_of_tomorrow", Value::Null),
        ("only_cross_attention", json!([false, false, false])),
        ("resnet_out_scale_factor", json!(1.0)),
        ("act_fn", json!("swish")),
        ("num_attention_heads", json!([5, 10, 20])),
    ];
    let config = edited(&UNetConfig::sdxl(), &accepted).unwrap();
    assert_eq!(config.stages, UNetConfig::sdxl().stages);
}

#[test]
fn a_file_that_is_no_configuration_is_named() {
    let err = UNetConfig::parse("version https://git-lfs", "x/config.json").unwrap_err();
    assert!(matches!(&err, Error::Format { path, .. } if path.ends_with("config.json")), "{err}");
    let err = UNetConfig::parse("{}", "x/config.json").unwrap_err();
    assert!(matches!(&err, Error::Config { key, .. } if key == "block_out_channels"), "{err}");
    assert!(matches!(UNetConfig::open("no/such/folder").unwrap_err(), Error::Io { .. }));
}

#[test]
fn the_hash_depends_on_settings_and_not_on_their_order_or_origin() {
    let config = UNetConfig::sdxl();
    let mut reversed: Vec<(String, Value)> = config.to_json().as_object().unwrap().clone().into_iter().collect();
    reversed.reverse();
    reversed.push(("_name_or_path".into(), json!("somewhere")));
    let text = Value::Object(reversed.into_iter().collect()).to_string();
    assert_eq!(UNetConfig::parse(&text, "x").unwrap().hash(), config.hash());
    assert_ne!(edited(&config, &[("norm_eps", json!(1e-6))]).unwrap().hash(), config.hash());
}
