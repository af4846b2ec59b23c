//! The committed settings are read by the code that uses them.

use crate::embedded_model::root;

fn table(path: &str) -> toml::Table {
    toml::from_str(&std::fs::read_to_string(root().join(path)).unwrap()).unwrap()
}

#[test]
fn training_settings_are_complete_and_in_range() {
    let settings = table("configs/train-tiny.toml");
    let phases = settings["unet"]["phases"].as_array().unwrap();
    assert!(!phases.is_empty());
    for stage in [&settings["vae"], &settings["clip"], &settings["unet"]["grounding"]].into_iter().chain(phases) {
        let trainer: distill::TrainerConfig = stage["trainer"].clone().try_into().unwrap();
        trainer.check().unwrap();
    }
    let distill = table("configs/reproduce-tiny.toml");
    let trainer: distill::TrainerConfig = distill["distill"]["trainer"].clone().try_into().unwrap();
    trainer.check().unwrap();
    let losses: distill::LossConfig = distill["distill"]["losses"].clone().try_into().unwrap();
    losses.check().unwrap();
}

#[test]
fn architectures_are_those_of_the_embedded_model() {
    let published = unet::UNetConfig::open(root().join("assets/tiny-sdxl/unet")).unwrap();
    let settings = unet::UNetConfig::open(root().join("configs/tiny-sdxl/unet.json")).unwrap();
    assert_eq!(published.to_json(), settings.to_json());
}
