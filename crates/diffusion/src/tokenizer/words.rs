//! Makes a byte-pair tokenizer of CLIP's form in which every word of a list is one token, for models trained from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::{NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::{BOS, END_OF_WORD, EOS, normalizer, pre_tokenizer};
use crate::error::{Error, Result};

/// Two tokens that become one.
pub(super) type Pair = (String, String);

/// See [`super::Tokenizer::write_from_words`].
pub(super) fn write(dir: &Path, words: &[&str], model_max_length: usize, pad_token: &str) -> Result<()> {
    if model_max_length < 3 {
        let got = model_max_length.to_string();
        return Err(Error::Input { name: "model_max_length".into(), expected: "at least 3".into(), got });
    }
    let words = words.iter().map(|w| symbols(w)).collect::<Result<BTreeSet<_>>>()?;
    let merges = learn(words.into_iter().collect());

    let mut vocab: Vec<String> = byte_signs().iter().map(char::to_string).collect();
    vocab.extend(byte_signs().iter().map(|c| format!("{c}{END_OF_WORD}")));
    let mut known: BTreeSet<String> = vocab.iter().cloned().collect();
    for (left, right) in &merges {
        // Two merges can spell the same token, which then has one id.
        let token = format!("{left}{right}");
        if known.insert(token.clone()) {
            vocab.push(token);
        }
    }
    vocab.extend([BOS.to_string(), EOS.to_string()]);
    if !vocab.iter().any(|t| t == pad_token) {
        return Err(Error::Input { name: "pad_token".into(), expected: format!("`{EOS}`, `!` or another token"), got: pad_token.into() });
    }
    write_files(dir, &vocab, &merges, model_max_length, pad_token)
}

/// Writes a tokenizer's files: the tokens in the order of their ids, and the pairs in the order in which they are merged.
pub(super) fn write_files(dir: &Path, vocab: &[String], merges: &[Pair], model_max_length: usize, pad_token: &str) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let ids: Map<String, Value> = vocab.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    artifact::write_config(&dir.join("vocab.json"), &Value::Object(ids))?;
    let mut lines = String::from("#version: 0.2\n");
    for (left, right) in merges {
        lines.push_str(&format!("{left} {right}\n"));
    }
    artifact::write_bytes(&dir.join("merges.txt"), lines.as_bytes())?;
    let token = |content: &str| json!({"content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false});
    let special = json!({"bos_token": token(BOS), "eos_token": token(EOS), "pad_token": pad_token, "unk_token": token(EOS)});
    artifact::write_config(&dir.join("special_tokens_map.json"), &special)?;
    let config = json!({
        "add_prefix_space": false,
        "bos_token": token(BOS),
        "clean_up_tokenization_spaces": true,
        "do_lower_case": true,
        "eos_token": token(EOS),
        "errors": "replace",
        "model_max_length": model_max_length,
        "pad_token": pad_token,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": token(EOS),
    });
    Ok(artifact::write_config(&dir.join("tokenizer_config.json"), &config)?)
}

// The printable signs that stand for the 256 bytes, in the order of CLIP's ids (GPT-2's table): visible Latin-1 signs stand
// for themselves and come first, the other bytes are shifted past 255.
fn byte_signs() -> Vec<char> {
    signed_bytes().into_iter().map(|(_, sign)| sign).collect()
}

/// The 256 bytes in the order of CLIP's ids, each with its sign.
pub(super) fn signed_bytes() -> Vec<(u8, char)> {
    let visible = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let first = (0..=255).filter(visible).map(|b| (b, char::from(b)));
    let rest = (0..=255).filter(|b| !visible(b)).zip('\u{100}'..);
    first.chain(rest).collect()
}

// A word as the byte signs that byte-pair merging starts from.
fn symbols(word: &str) -> Result<Vec<String>> {
    let mut text = NormalizedString::from(word);
    let wrong = |got: String| Error::Input { name: "words".into(), expected: "words that CLIP's rules do not split".into(), got };
    normalizer().normalize(&mut text).map_err(|e| wrong(e.to_string()))?;
    let mut pieces = PreTokenizedString::from(text);
    pre_tokenizer().pre_tokenize(&mut pieces).map_err(|e| wrong(e.to_string()))?;
    let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let [(piece, _, _)] = pieces[..] else {
        return Err(wrong(format!("`{word}`, which becomes {} words", pieces.len())));
    };
    let mut out: Vec<String> = piece.chars().map(String::from).collect();
    if let Some(last) = out.last_mut() {
        last.push_str(END_OF_WORD);
    }
    Ok(out)
}

// Byte-pair encoding (Sennrich et al., arXiv 1508.07909) on words that count once each, until every word is one symbol. Ties
// go to the pair that sorts first.
fn learn(mut words: Vec<Vec<String>>) -> Vec<Pair> {
    let mut merges = Vec::new();
    let mut ranks: BTreeMap<Pair, usize> = BTreeMap::new();
    loop {
        let mut counts: BTreeMap<Pair, usize> = BTreeMap::new();
        for pair in words.iter().flat_map(|w| w.windows(2)) {
            *counts.entry((pair[0].clone(), pair[1].clone())).or_default() += 1;
        }
        let Some(best) = counts.into_iter().rev().max_by_key(|(_, n)| *n).map(|(pair, _)| pair) else { return merges };
        ranks.insert(best.clone(), merges.len());
        merges.push(best);
        // A merge can bring back a pair that was learnt before, so each word is merged exactly as the tokenizer will do it.
        words.iter_mut().for_each(|word| merge(word, &ranks));
    }
}

// Applies the earliest merge that fits, leftmost first, until none fits.
fn merge(word: &mut Vec<String>, ranks: &BTreeMap<Pair, usize>) {
    let rank = |pair: &[String]| ranks.get(&(pair[0].clone(), pair[1].clone())).copied();
    while let Some((_, at)) = word.windows(2).enumerate().filter_map(|(at, pair)| Some((rank(pair)?, at))).min() {
        let right = word.remove(at + 1);
        word[at].push_str(&right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_signs_are_the_published_ones() {
        let signs = byte_signs();
        assert_eq!(signs.len(), 256);
        assert_eq!(signs.iter().collect::<BTreeSet<_>>().len(), 256);
        // The first ids of CLIP's vocabulary, and the sign of the space.
        assert_eq!(signs[..3], ['!', '"', '#']);
        assert!(signs.contains(&'Ġ'));
    }

    #[test]
    fn words_with_clashing_middles_are_still_one_token() {
        // Merged from the left in this order, `bc` would be taken out of `abcd` before `ab` could be made.
        let words = ["bcx", "abcd", "cdab", "dabc", "banana", "nab", "anab"];
        let start: Vec<_> = words.iter().map(|w| symbols(w).expect("plain words")).collect();
        let merges = learn(start.clone());
        let ranks: BTreeMap<Pair, usize> = merges.into_iter().enumerate().map(|(n, pair)| (pair, n)).collect();
        for (word, mut state) in words.iter().zip(start) {
            merge(&mut state, &ranks);
            assert_eq!(state, [format!("{word}</w>")]);
        }
    }

    #[test]
    fn words_that_would_be_split_are_refused() {
        for word in ["two words", "left-hand", "it's", "12", ""] {
            assert!(matches!(symbols(word), Err(Error::Input { .. })), "{word}");
        }
    }
}
