//! Captions and specifications: the way there and back, the errors, the split and the streams.

use std::collections::BTreeSet;

use proptest::prelude::*;
use scenes::{Scene, SceneRecord, SceneSpec, ScenesError, Split, prompts, render, vocabulary};

proptest! {
    #[test]
    fn a_caption_reads_back_as_its_specification(seed: u64, index: u64) {
        let spec = Scene::sample(seed, index, Split::Train).spec;
        let caption = spec.caption();
        prop_assert!(caption.split(' ').count() <= 16);
        prop_assert!(caption.split(' ').all(|word| vocabulary().contains(&word)));
        prop_assert_eq!(SceneSpec::parse(&caption), Ok(spec));
    }

    #[test]
    fn any_words_give_a_specification_or_an_error(words in proptest::collection::vec(
        proptest::sample::select(vocabulary()), 0..12)) {
        if let Ok(spec) = SceneSpec::parse(&words.join(" ")) {
            prop_assert_eq!(SceneSpec::parse(&spec.caption()), Ok(spec));
        }
    }
}

#[test]
fn errors_name_the_word() {
    let error = SceneSpec::parse("a red dog").expect_err("dogs are unknown");
    assert!(matches!(&error, ScenesError::UnknownWord { word, position: 3, .. } if word == "dog"));
    assert!(error.to_string().starts_with("unknown word `dog` (word 3 of the prompt)"));
    for (prompt, position) in [
        ("", 1),
        ("red circle", 1),
        ("a red", 3),
        ("a red circle in top left", 5),
        ("a red circle red", 4),
        ("a large red circle above a blue square", 5),
        ("two red circle", 3),
        ("a red circle on a red background", 6),
    ] {
        let error = SceneSpec::parse(prompt).expect_err(prompt);
        assert!(matches!(error, ScenesError::Grammar { position: p, .. } if p == position), "{prompt}: {error}");
    }
    for prompt in ["a small striped red ring", "two large red rings", "a red ring and a red ring", "a red ring above a red ring"] {
        assert!(matches!(SceneSpec::parse(prompt), Err(ScenesError::Contradiction { .. })), "{prompt}");
    }
}

#[test]
fn splits_never_meet_and_prompts_are_balanced() {
    let held_out = prompts(3, 120);
    assert_eq!(held_out, prompts(3, 120));
    let captions: BTreeSet<_> = held_out.iter().map(SceneSpec::caption).collect();
    assert_eq!(captions.len(), 120);
    for family in ["single", "relation", "pair", "count"] {
        assert_eq!(held_out.iter().filter(|s| s.family() == family).count(), 30, "{family}");
    }
    for index in 0..5000 {
        let caption = Scene::sample(3, index, Split::Train).spec.caption();
        assert!(!captions.contains(&caption), "{caption}");
    }
    assert_eq!(prompts(4, 1000).len(), 1000);
}

#[test]
fn one_caption_in_sixteen_is_held_out() {
    let captions: BTreeSet<_> =
        (0..20_000).flat_map(|i| [Split::Train, Split::HeldOut].map(|s| Scene::sample(1, i, s).spec.caption())).collect();
    let held_out = captions.iter().filter(|c| Split::of(c) == Split::HeldOut).count();
    // Held-out captions were drawn as often as the others, so nearly all of them are seen, and of the others most.
    let share = held_out as f64 / captions.len() as f64;
    assert!((0.05..0.2).contains(&share), "{share}");
}

#[test]
fn a_scene_is_the_same_every_time_and_writes_and_reads_back() {
    for index in 0..200 {
        let scene = Scene::sample(9, index, Split::Train);
        assert_eq!(scene, Scene::sample(9, index, Split::Train));
        let record = scene.record(index);
        let text = serde_json::to_string(&record).expect("a record is plain data");
        let back: SceneRecord = serde_json::from_str(&text).expect("its own output");
        assert_eq!(back, record);
    }
    assert_ne!(Scene::sample(9, 0, Split::Train), Scene::sample(10, 0, Split::Train));
}

#[test]
fn objects_keep_clear_of_the_border_and_of_each_other() {
    for index in 0..5000 {
        let scene = Scene::sample(2, index, Split::Train);
        for (i, a) in scene.objects.iter().enumerate() {
            for c in a.center {
                assert!(c - a.extent / 2.0 >= 3.0 && c + a.extent / 2.0 <= 61.0, "{scene:?}");
            }
            for b in &scene.objects[..i] {
                let apart = (0..2).map(|d| (a.center[d] - b.center[d]).abs()).fold(0.0, f32::max);
                assert!(apart - (a.extent + b.extent) / 2.0 >= 5.0, "{scene:?}");
            }
        }
    }
}

#[test]
fn a_scene_can_be_made_for_any_valid_specification() {
    for spec in prompts(5, 100) {
        let scene = Scene::from_spec(spec.clone(), 1, 7).expect("prompts are valid");
        assert_eq!(scene.spec, spec);
        assert_ne!(scene, Scene::from_spec(spec, 1, 8).expect("prompts are valid"));
    }
    let text = r#"{"family":"count","number":"two","size":"large","item":{"color":"red","shape":"ring"},"background":null}"#;
    let spec: SceneSpec = serde_json::from_str(text).expect("well-formed");
    assert!(matches!(Scene::from_spec(spec, 0, 0), Err(ScenesError::Contradiction { .. })));
}

#[test]
fn sizes_outside_the_range_are_refused() {
    let scene = Scene::sample(0, 0, Split::Train);
    for size in [0, 31, 8193] {
        assert!(matches!(render(&scene, size), Err(ScenesError::Image { .. })));
    }
    assert_eq!(render(&scene, 96).expect("a fair size").data().len(), 96 * 96 * 3);
}

#[test]
fn neighbors_are_training_scenes_that_differ_in_little() {
    let mut repeated = 0;
    for index in 0..300 {
        let scenes = Scene::neighbors(9, index, 4);
        assert_eq!(scenes.len(), 4);
        assert_eq!(scenes[0], Scene::sample(9, index, Split::Train));
        let captions: Vec<String> = scenes.iter().map(|s| s.spec.caption()).collect();
        for (scene, caption) in scenes.iter().zip(&captions).skip(1) {
            assert_eq!(Split::of(caption), Split::Train, "{caption}");
            assert_eq!(scene.spec.family(), scenes[0].spec.family());
            assert_ne!(scene.spec, scenes[0].spec);
            // The longest attribute, a position, has four words; what changes places keeps its words.
            let mut left: Vec<&str> = captions[0].split(' ').collect();
            let new = caption.split(' ').filter(|word| left.iter().position(|w| w == word).map(|i| left.remove(i)).is_none());
            assert!(new.count() <= 4, "{}, {caption}", captions[0]);
        }
        repeated += usize::from(captions.iter().collect::<BTreeSet<_>>().len() < 4);
    }
    assert!(repeated < 60, "{repeated} of 300 groups repeat a caption");
}
