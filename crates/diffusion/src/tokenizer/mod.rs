//! Prompts -> token ids of CLIP's form, the first step from a prompt to an image, and the making of small tokenizers.
//!
//! The rules are those of transformers' fast CLIP tokenizer (in version 5 the only one): Unicode NFC, white space to single
//! spaces, lower case, CLIP's split into words, bytes as characters, byte-pair merges with `</w>` at a word's end. OpenAI's
//! original cleans text with `ftfy` first, and the old slow tokenizer without `ftfy` split as BERT does; neither is imitated.

mod published;
mod words;

use std::collections::BTreeMap;
use std::path::Path;

use artifact::Fields;
use serde_json::{Map, Value};
use tch::Tensor;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::error::{Error, Result};

/// The published begin token.
const BOS: &str = "<|startoftext|>";
/// The published end token; unless the settings say otherwise it also pads.
const EOS: &str = "<|endoftext|>";
/// What ends a word's last piece.
const END_OF_WORD: &str = "</w>";
/// CLIP's words: a special token, an English contraction, letters, one digit, or a run of other signs.
const WORD: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
// A length beyond this stands for "no limit" in tokenizer_config.json, which the models do not have.
const LONGEST: i64 = 1 << 20;

/// A CLIP tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: i64,
    eos: i64,
    pad: i64,
    model_max_length: usize,
}

/// Token ids of a batch of prompts.
#[derive(Debug)]
pub struct Encoded {
    /// `[B, model_max_length]` of i64: begin token, the prompt, end token, padding.
    pub ids: Tensor,
    /// The prompts that were too long.
    pub truncated: Vec<Truncated>,
}

/// A prompt whose end was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncated {
    /// Its place in the batch.
    pub prompt: usize,
    /// How many tokens it has; `model_max_length - 2` of them were kept.
    pub tokens: usize,
    /// The text that the model will not see.
    pub rest: String,
}

impl Tokenizer {
    /// Opens a tokenizer's folder: `vocab.json` and `merges.txt` (or else `tokenizer.json`), `tokenizer_config.json`, and
    /// `special_tokens_map.json` where there is one.
    ///
    /// # Errors
    /// [`Error::Io`] for a missing file, [`Error::Format`] for a damaged one, [`Error::Config`] without a usable `model_max_length`.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config_path = dir.join("tokenizer_config.json");
        let config = Fields::open(&config_path)?.into_map();
        let map_path = dir.join("special_tokens_map.json");
        let map = if map_path.is_file() { Fields::open(&map_path)?.into_map() } else { Map::new() };
        let special = |key: &str, default: &str| added(config.get(key).or_else(|| map.get(key)).filter(|v| !v.is_null()), default);
        let [bos, eos, unk, pad] =
            [("bos_token", BOS), ("eos_token", EOS), ("unk_token", EOS), ("pad_token", EOS)].map(|(key, default)| special(key, default));

        let (vocab, merges, whole) = (dir.join("vocab.json"), dir.join("merges.txt"), dir.join("tokenizer.json"));
        let mut inner = if vocab.is_file() || !whole.is_file() {
            from_merges(&vocab, &merges, &unk.content)?
        } else {
            let mut inner = tokenizers::Tokenizer::from_file(&whole).map_err(|e| damaged(&whole, &e))?;
            inner.with_truncation(None).map_err(|e| damaged(&whole, &e))?;
            inner.with_padding(None);
            inner
        };
        // The same token under two names (the end token often pads) is matched as its last name says, as in transformers.
        let mut specials: Vec<AddedToken> = Vec::new();
        for token in [&bos, &eos, &unk, &pad] {
            specials.retain(|t| t.content != token.content);
            specials.push(token.clone());
        }
        inner.add_special_tokens(&specials);

        let model_max_length = config.get("model_max_length").and_then(Value::as_i64).filter(|n| (3..=LONGEST).contains(n));
        let model_max_length = model_max_length.ok_or_else(|| Error::Config {
            path: config_path.clone(),
            key: "model_max_length".into(),
            expected: format!("a number of tokens from 3 to {LONGEST}, such as 77"),
            got: config.get("model_max_length").map_or("nothing".into(), Value::to_string),
        })?;
        let id = |token: &AddedToken| {
            inner.token_to_id(&token.content).map(i64::from).ok_or_else(|| Error::Format {
                path: vocab.clone(),
                problem: format!("special token `{}` is not in the vocabulary", token.content),
                hint: "do vocab.json and tokenizer_config.json come from the same model?".into(),
            })
        };
        let (bos, eos, pad) = (id(&bos)?, id(&eos)?, id(&pad)?);
        Ok(Self { inner, bos, eos, pad, model_max_length: model_max_length as usize })
    }

    /// Token ids `[B, model_max_length]` of i64: begin token, prompt, end token, padding. Prompts that are too long lose
    /// their end (not the end token), with a warning in the log.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_batch`].
    pub fn encode(&self, prompts: &[&str]) -> Result<Tensor> {
        let encoded = self.encode_batch(prompts)?;
        for t in &encoded.truncated {
            let room = self.model_max_length - 2;
            tracing::warn!("prompt {} has {} tokens, the model takes {room}; it will not see `{}`", t.prompt, t.tokens, t.rest);
        }
        Ok(encoded.ids)
    }

    /// As [`Tokenizer::encode`], and says what was cut off instead of logging it.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty batch.
    pub fn encode_batch(&self, prompts: &[&str]) -> Result<Encoded> {
        if prompts.is_empty() {
            return Err(Error::Input { name: "prompts".into(), expected: "at least one".into(), got: "none".into() });
        }
        let room = self.model_max_length - 2;
        let mut ids = Vec::with_capacity(prompts.len() * self.model_max_length);
        let mut truncated = Vec::new();
        for (n, prompt) in prompts.iter().enumerate() {
            let encoding = self.inner.encode(*prompt, false).map_err(|e| Error::Input {
                name: format!("prompt {n}"),
                expected: "text that the tokenizer can read".into(),
                got: e.to_string(),
            })?;
            let tokens = encoding.get_ids();
            if tokens.len() > room {
                let from = encoding.get_offsets()[room].0;
                truncated.push(Truncated { prompt: n, tokens: tokens.len(), rest: prompt.get(from..).unwrap_or_default().into() });
            }
            ids.push(self.bos);
            ids.extend(tokens.iter().take(room).map(|&id| i64::from(id)));
            ids.push(self.eos);
            ids.resize((n + 1) * self.model_max_length, self.pad);
        }
        let ids = Tensor::f_from_slice(&ids)?.f_view([prompts.len() as i64, self.model_max_length as i64])?;
        Ok(Encoded { ids, truncated })
    }

    /// The token with this id, as it stands in the vocabulary.
    pub fn token(&self, id: i64) -> Option<String> {
        u32::try_from(id).ok().and_then(|id| self.inner.id_to_token(id))
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> i64 {
        self.inner.get_vocab_size(true) as i64
    }

    /// Length of an encoded prompt.
    pub fn model_max_length(&self) -> usize {
        self.model_max_length
    }

    /// Id of the begin token.
    pub fn bos(&self) -> i64 {
        self.bos
    }

    /// Id of the end token.
    pub fn eos(&self) -> i64 {
        self.eos
    }

    /// Id of the padding token.
    pub fn pad(&self) -> i64 {
        self.pad
    }

    /// Token ids of CLIP's published vocabulary.
    pub const PUBLISHED_IDS: i64 = 49408;

    /// Writes CLIP's published tokenizer, which all of Stable Diffusion uses, as [`Tokenizer::write_from_words`] writes others.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written.
    pub fn write_published(dir: impl AsRef<Path>, model_max_length: usize, pad_token: &str) -> Result<()> {
        let (tokens, merges) = published::published();
        words::write_files(dir.as_ref(), tokens, &merges, model_max_length, pad_token)
    }

    /// Whether the folder `dir` holds a vocabulary and merges that are CLIP's published ones.
    pub(crate) fn is_published(dir: &Path) -> bool {
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        let lines = read("merges.txt");
        let mut lines = lines.lines().skip_while(|line| line.starts_with("#version"));
        let count = Self::PUBLISHED_IDS as usize;
        // Most others are told by their size.
        let ids: BTreeMap<String, usize> = serde_json::from_str(&read("vocab.json")).unwrap_or_default();
        if ids.len() != count || dir.join("added_tokens.json").is_file() {
            return false;
        }
        let (tokens, merges) = published::published();
        merges.iter().all(|(a, b)| lines.next().is_some_and(|line| line.split_once(' ') == Some((a, b))))
            && lines.all(str::is_empty)
            && tokens.iter().enumerate().all(|(id, token)| ids.get(token) == Some(&id))
    }

    /// Writes a tokenizer in which each of `words` is one token, as `vocab.json`, `merges.txt`, `tokenizer_config.json` and
    /// `special_tokens_map.json`. Ids are in CLIP's order: 256 byte signs, the same with `</w>`, one per merge, then the
    /// begin and end tokens. `pad_token` is `<|endoftext|>`, or `!` as in SDXL's second tokenizer.
    ///
    /// # Errors
    /// [`Error::Input`] for a word that CLIP's rules split, or for another `pad_token` that is no token; [`Error::Io`].
    pub fn write_from_words(dir: impl AsRef<Path>, words: &[&str], model_max_length: usize, pad_token: &str) -> Result<()> {
        words::write(dir.as_ref(), words, model_max_length, pad_token)
    }
}

// A special token is a string, or an object with its own rules for the white space around it.
fn added(value: Option<&Value>, default: &str) -> AddedToken {
    let flag = |key: &str| value.and_then(|v| v.get(key)).and_then(Value::as_bool).unwrap_or(false);
    let content = value.and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str())).unwrap_or(default);
    AddedToken::from(content, true)
        .normalized(flag("normalized"))
        .lstrip(flag("lstrip"))
        .rstrip(flag("rstrip"))
        .single_word(flag("single_word"))
}

fn from_merges(vocab: &Path, merges: &Path, unk: &str) -> Result<tokenizers::Tokenizer> {
    // Read here first, for errors that name the file that is missing or damaged.
    if let Some((token, id)) = Fields::open(vocab)?.map().iter().find(|(_, id)| id.as_u64().is_none()) {
        return Err(damaged(vocab, &format!("the id of `{token}` is {id}, not a whole number")));
    }
    std::fs::metadata(merges).map_err(Error::io(merges))?;
    let name = |path: &Path| {
        path.to_str().map(str::to_string).ok_or_else(|| Error::Format {
            path: path.into(),
            problem: "the path is not valid Unicode".into(),
            hint: "move the model to another folder".into(),
        })
    };
    let bpe = BPE::builder().files(name(vocab)?, name(merges)?).unk_token(unk.into()).end_of_word_suffix(END_OF_WORD.into()).build();
    let mut inner = tokenizers::Tokenizer::new(bpe.map_err(|e| damaged(merges, &e))?);
    inner.with_normalizer(Some(normalizer()));
    inner.with_pre_tokenizer(Some(pre_tokenizer()));
    Ok(inner)
}

fn damaged(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::Format { path: path.into(), problem: e.to_string(), hint: "fetch the tokenizer's files again".into() }
}

fn normalizer() -> Normalizers {
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").expect("the pattern is valid");
    Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])
}

fn pre_tokenizer() -> PreTokenizers {
    let words = Split::new(SplitPattern::Regex(WORD.into()), SplitDelimiterBehavior::Removed, true).expect("the pattern is valid");
    PreTokenizers::new(vec![words.into(), ByteLevel::new(false, true, true).into()])
}
