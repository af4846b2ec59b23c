//! Prompts -> token ids of CLIP's form, the first step from a prompt to an image, and the making of small tokenizers.
//!
//! The rules are those of transformers' fast CLIP tokenizer (in version 5 the only one): Unicode NFC, white space to single
//! spaces, lower case, CLIP's split into words, bytes as characters, byte-pair merges with `</w>` at a word's end. OpenAI's
//! original cleans text with `ftfy` first, and the old slow tokenizer without `ftfy` split as BERT does; neither is imitated.

mod files;
mod published;
mod words;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tch::Tensor;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use self::files::{TokenizerFiles, damaged};
use crate::error::{Error, Result};

/// The published begin token.
const BOS: &str = "<|startoftext|>";
/// The published end token; unless the settings say otherwise it also pads.
const EOS: &str = "<|endoftext|>";
/// What ends a word's last piece.
const END_OF_WORD: &str = "</w>";
/// CLIP's words: a special token, an English contraction, letters, one digit, or a run of other signs.
const WORD: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// CLIP's length, for a folder that does not name its own.
const PUBLISHED_LENGTH: usize = 77;

/// A CLIP tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: i64,
    eos: i64,
    pad: i64,
    // One more than the highest.
    ids: i64,
    added: BTreeMap<String, i64>,
    model_max_length: Option<usize>,
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
    /// Opens a tokenizer's folder: `vocab.json` and `merges.txt` (or else `tokenizer.json`), with `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json` where they are. Tokens that were added to the vocabulary (textual
    /// inversion) are found as transformers finds them, with the ids that the files give them.
    ///
    /// # Errors
    /// [`Error::Io`] for a missing file, [`Error::Format`] for a damaged one, [`Error::Config`] for an impossible `model_max_length`.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let files = TokenizerFiles::read(dir)?;
        let id = |token: &String| i64::from(files.vocab[token]);
        let (bos, eos, pad) = (id(&files.bos), id(&files.eos), id(&files.pad));
        let added: BTreeMap<String, i64> = files.added.iter().map(|token| (token.content.clone(), id(&token.content))).collect();
        let ids = 1 + files.vocab.values().max().map_or(0, |id| i64::from(*id));
        let bpe = BPE::builder().vocab_and_merges(files.vocab, files.merges).unk_token(files.unk).end_of_word_suffix(END_OF_WORD.into());
        let mut inner = tokenizers::Tokenizer::new(bpe.build().map_err(|e| damaged(dir, e.to_string()))?);
        inner.with_normalizer(Some(normalizer()));
        inner.with_pre_tokenizer(Some(pre_tokenizer()));
        inner.add_tokens(&files.added);
        Ok(Self { inner, bos, eos, pad, ids, added, model_max_length: files.model_max_length })
    }

    /// Whether `dir` holds a tokenizer's files.
    pub fn is_in(dir: &Path) -> bool {
        ["vocab.json", "tokenizer.json"].iter().any(|name| dir.join(name).is_file())
    }

    /// The same tokenizer for an encoder that takes at most `longest` tokens, which is its length where its files name none.
    pub(crate) fn for_encoder(mut self, longest: i64) -> Self {
        self.model_max_length = self.model_max_length.or(usize::try_from(longest).ok());
        self
    }

    /// The prompt with every further vector of a textual inversion behind its first: `<cat>` becomes `<cat> <cat>_1 <cat>_2` where the
    /// tokenizer has these tokens, as in diffusers' pipelines (`maybe_convert_prompt`).
    ///
    /// # Errors
    /// [`Error::Input`] for a text that cannot be read.
    pub(crate) fn with_all_vectors<'a>(&self, prompt: &'a str) -> Result<Cow<'a, str>> {
        let more = |token: &str| self.added.contains_key(&format!("{token}_1"));
        if !self.added.keys().any(|token| more(token)) {
            return Ok(prompt.into());
        }
        let mut tokens: Vec<String> = self.inner.encode(prompt, false).map_err(|e| unreadable(prompt, &e))?.get_tokens().to_vec();
        let mut seen = BTreeSet::new();
        tokens.retain(|token| self.added.contains_key(token) && more(token) && seen.insert(token.clone()));
        let whole = |token: &String| {
            let further = (1..).map(|n| format!("{token}_{n}")).take_while(|name| self.added.contains_key(name));
            std::iter::once(token.clone()).chain(further).collect::<Vec<_>>().join(" ")
        };
        Ok(tokens.iter().fold(prompt.into(), |prompt, token| prompt.replace(token, &whole(token)).into()))
    }

    /// Added tokens whose ids are `ids` or beyond, which an encoder with so many embeddings does not know; the lowest first.
    pub(crate) fn added_beyond(&self, ids: i64) -> Vec<(&str, i64)> {
        let special = [self.bos, self.eos, self.pad];
        let beyond = self.added.iter().filter(|(_, id)| **id >= ids && !special.contains(id));
        let mut beyond: Vec<(&str, i64)> = beyond.map(|(token, id)| (token.as_str(), *id)).collect();
        beyond.sort_by_key(|(_, id)| *id);
        beyond
    }

    /// Token ids `[B, model_max_length]` of i64: begin token, prompt, end token, padding. Prompts that are too long lose
    /// their end (not the end token), with a warning in the log.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_batch`].
    pub fn encode(&self, prompts: &[&str]) -> Result<Tensor> {
        let encoded = self.encode_batch(prompts)?;
        for t in &encoded.truncated {
            let room = self.model_max_length() - 2;
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
        let length = self.model_max_length();
        let room = length - 2;
        let mut ids = Vec::with_capacity(prompts.len() * length);
        let mut truncated = Vec::new();
        for (n, prompt) in prompts.iter().enumerate() {
            let encoding = self.inner.encode(*prompt, false).map_err(|e| unreadable(prompt, &e))?;
            let tokens = encoding.get_ids();
            if tokens.len() > room {
                let from = encoding.get_offsets()[room].0;
                truncated.push(Truncated { prompt: n, tokens: tokens.len(), rest: prompt.get(from..).unwrap_or_default().into() });
            }
            ids.push(self.bos);
            ids.extend(tokens.iter().take(room).map(|&id| i64::from(id)));
            ids.push(self.eos);
            ids.resize((n + 1) * length, self.pad);
        }
        let ids = Tensor::f_from_slice(&ids)?.f_view([prompts.len() as i64, length as i64])?;
        Ok(Encoded { ids, truncated })
    }

    /// The token with this id, as it stands in the vocabulary.
    pub fn token(&self, id: i64) -> Option<String> {
        u32::try_from(id).ok().and_then(|id| self.inner.id_to_token(id))
    }

    /// Number of token ids, added ones included: one more than the highest.
    pub fn vocab_size(&self) -> i64 {
        self.ids
    }

    /// Length of an encoded prompt; CLIP's 77 where the files name none.
    pub fn model_max_length(&self) -> usize {
        self.model_max_length.unwrap_or(PUBLISHED_LENGTH)
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
        let (tokens, merges) = &*published::PUBLISHED;
        words::write_files(dir.as_ref(), tokens, merges, model_max_length, pad_token)
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
        let (tokens, merges) = &*published::PUBLISHED;
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

fn unreadable(prompt: &str, e: &tokenizers::Error) -> Error {
    Error::Input { name: format!("prompt `{prompt}`"), expected: "text that the tokenizer can read".into(), got: e.to_string() }
}

fn normalizer() -> Normalizers {
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").expect("the pattern is valid");
    Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])
}

fn pre_tokenizer() -> PreTokenizers {
    let words = Split::new(SplitPattern::Regex(WORD.into()), SplitDelimiterBehavior::Removed, true).expect("the pattern is valid");
    PreTokenizers::new(vec![words.into(), ByteLevel::new(false, true, true).into()])
}
