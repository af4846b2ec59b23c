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
        ("dropout", json!(0.1)),
        ("decay", json!(0.9999)),
        ("optimization_step", json!(12000)),
        ("use_ema_warmup", json!(true)),
        ("a_switch_of_tomorrow", json!(false)),
        ("a_list_of_tomorrow", json!([])),
        ("_use_default_values", json!(["dropout", "conv_in_kernel"])),
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
    assert!(matches!(&err, Error::Config { key, .. } if key == "_class_name"), "{err}");
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

/// The defaults of `UNet2DConditionModel`'s signature: a file that leaves all of them out, and the same file with all spelt out.
#[test]
fn missing_settings_take_the_defaults_of_diffusers() {
    // An editor on Windows put its mark before this one.
    let bare = UNetConfig::parse("\u{feff}{\"_class_name\": \"UNet2DConditionModel\"}", "config.json").unwrap();
    let spelt = r#"{
        "_class_name": "UNet2DConditionModel", "sample_size": null, "in_channels": 4, "out_channels": 4, "center_input_sample": false,
        "flip_sin_to_cos": true, "freq_shift": 0,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "only_cross_attention": false, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "downsample_padding": 1,
        "mid_block_scale_factor": 1, "dropout": 0.0, "act_fn": "silu", "norm_num_groups": 32, "norm_eps": 1e-5, "cross_attention_dim": 1280,
        "transformer_layers_per_block": 1, "reverse_transformer_layers_per_block": null, "encoder_hid_dim": null,
        "encoder_hid_dim_type": null, "attention_head_dim": 8, "num_attention_heads": null, "dual_cross_attention": false,
        "use_linear_projection": false, "class_embed_type": null, "addition_embed_type": null, "addition_time_embed_dim": null,
        "num_class_embeds": null, "upcast_attention": false, "resnet_time_scale_shift": "default", "resnet_skip_time_act": false,
        "resnet_out_scale_factor": 1.0, "time_embedding_type": "positional", "time_embedding_dim": null, "time_embedding_act_fn": null,
        "timestep_post_act": null, "time_cond_proj_dim": null, "conv_in_kernel": 3, "conv_out_kernel": 3,
        "projection_class_embeddings_input_dim": null, "attention_type": "default", "class_embeddings_concat": false,
        "mid_block_only_cross_attention": null, "cross_attention_norm": null, "addition_embed_type_num_heads": 64
    }"#;
    let spelt = UNetConfig::parse(spelt, "config.json").unwrap();
    assert_eq!(bare.stages, spelt.stages);
    assert_eq!((bare.text_width, bare.norm_num_groups, bare.time.clone()), (1280, 32, spelt.time));
    // Counted by diffusers for `UNet2DConditionModel()`.
    assert_eq!(parameters(&bare), 872_300_484);
    // A value that needs another network than the default's says which.
    let short = UNetConfig::parse(r#"{"block_out_channels": [32, 64]}"#, "config.json").unwrap_err();
    assert!(matches!(&short, Error::Config { key, .. } if key == "down_block_types"), "{short}");
    let none = UNetConfig::parse(r#"{"in_channels": 4, "norm_num_groups": null}"#, "config.json").unwrap_err();
    assert!(matches!(&none, Error::Config { key, .. } if key == "norm_num_groups"), "{none}");
}

/// What training programs, other libraries and newer versions leave in the file.
#[test]
fn a_setting_that_is_on_and_unknown_is_refused_with_a_short_value() {
    let long = json!((0..500).collect::<Vec<_>>());
    let error = edited(&UNetConfig::sd15(), &[("a_table_of_tomorrow", long)]).unwrap_err().to_string();
    assert!(error.contains("a_table_of_tomorrow") && error.len() < 300, "{error}");
    for (key, value) in [("encoder_hid_dim", json!(768)), ("use_additive_noise", json!(true)), ("attention_bias_scale", json!("0.5"))] {
        let error = edited(&UNetConfig::sd15(), &[(key, value.clone())]).unwrap_err();
        assert!(matches!(&error, Error::Config { key: named, got, .. } if named == key && got == &value.to_string()), "{error}");
    }
}
