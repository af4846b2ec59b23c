//! The words of the scenes and the tokenizers that are made from them.

use diffusion::Tokenizer;
use scenes::{Scene, Split, prompts, vocabulary};

/// `model_max_length` of the embedded model.
const TOKENS: usize = 20;

#[test]
fn every_word_is_one_token_and_every_caption_fits() {
    let dir = tempfile::tempdir().unwrap();
    Tokenizer::write_from_words(dir.path(), &vocabulary(), TOKENS, "!").unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let stream = (0..2000).map(|i| Scene::sample(5, i, Split::Train).spec);
    for spec in stream.chain(prompts(5, 200)) {
        let caption = spec.caption();
        let encoded = tokenizer.encode_batch(&[&caption]).unwrap();
        assert!(encoded.truncated.is_empty(), "{caption}");
        let ids = Vec::<i64>::try_from(encoded.ids.get(0)).unwrap();
        let end = ids.iter().position(|id| *id == tokenizer.eos()).expect("an end token");
        // One token per word between begin and end.
        assert_eq!(end, caption.split(' ').count() + 1, "{caption}");
    }
}

#[test]
fn evaluation_prompts_never_occur_in_training() {
    let held_out: Vec<String> = prompts(1, 300).iter().map(|s| s.caption()).collect();
    for i in 0..3000 {
        let caption = Scene::sample(1, i, Split::Train).spec.caption();
        assert!(!held_out.contains(&caption), "{caption}");
    }
}
