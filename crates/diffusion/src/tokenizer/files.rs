//! The files of a tokenizer's folder -> vocabulary, merges, added tokens. The rules are those of transformers, which has written
//! added tokens in four places over the years.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::Fields;
use serde_json::{Map, Value};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{Merges, Vocab};

use super::{BOS, EOS};
use crate::error::{Error, Result};

/// A length beyond this stands for "no limit" in tokenizer_config.json, which the models do not have.
const LONGEST: i64 = 1 << 20;

/// What the files say.
#[derive(Debug)]
pub(super) struct TokenizerFiles {
    /// Every token with its id, added ones included.
    pub vocab: Vocab,
    pub merges: Merges,
    /// Tokens that are found in a text before it is split into words, in the order in which they are added.
    pub added: Vec<AddedToken>,
    /// Contents of the special tokens.
    pub bos: String,
    pub eos: String,
    pub unk: String,
    pub pad: String,
    /// `None` where the files do not say, or say "no limit".
    pub model_max_length: Option<usize>,
}

impl TokenizerFiles {
    pub fn read(dir: &Path) -> Result<Self> {
        let optional = |name: &str| {
            let path = dir.join(name);
            if path.is_file() { Ok::<_, Error>(Some(Fields::open(&path)?)) } else { Ok(None) }
        };
        let config = optional("tokenizer_config.json")?.unwrap_or_else(|| Fields::new(Map::new(), &dir.join("tokenizer_config.json")));
        let (map, numbers, whole) = (optional("special_tokens_map.json")?, optional("added_tokens.json")?, optional("tokenizer.json")?);
        let (vocab_path, merges_path) = (dir.join("vocab.json"), dir.join("merges.txt"));
        let (mut vocab, merges) = match &whole {
            Some(whole) if !(vocab_path.is_file() && merges_path.is_file()) => of_tokenizer_json(whole)?,
            _ => (ids(Fields::open(&vocab_path)?)?, read_merges(&merges_path)?),
        };

        // Newer settings list all added tokens; only where they do not, the older files count.
        let (mut numbered, map) = match config.get("added_tokens_decoder") {
            Some(list) => (of_decoder(&config, list)?, None),
            None => {
                let mut numbered = BTreeMap::new();
                let special = specials(&config, map.as_ref());
                for (content, id) in numbers.map(ids).transpose()?.into_iter().flatten() {
                    let is_special = special.iter().any(|token| token.content == content);
                    insert(&mut numbered, id, AddedToken::from(content, is_special), &dir.join("added_tokens.json"))?;
                }
                if let Some(whole) = &whole {
                    numbered.extend(of_list(whole)?);
                }
                (numbered, map)
            }
        };
        let special = specials(&config, map.as_ref());
        let known: Vec<String> = numbered.values().map(|token| token.content.clone()).collect();
        for token in numbered.values_mut().filter(|token| special.iter().any(|s| s.content == token.content)) {
            token.special = true;
        }
        place(&mut vocab, &numbered, dir)?;
        let mut added: Vec<AddedToken> = numbered.into_values().collect();
        for token in special.iter().cloned().chain(extra(&config, map.as_ref())).filter(|token| !known.contains(&token.content)) {
            // The same token under two names (the end token often pads) is matched as its last name says.
            added.retain(|t| t.content != token.content);
            added.push(token);
        }
        // What has no number of its own follows the highest one.
        for token in &added {
            let next = vocab.values().max().map_or(0, |id| id + 1);
            vocab.entry(token.content.clone()).or_insert(next);
        }
        let length = config.get("model_max_length").or_else(|| config.get("max_len")).map(|v| {
            let whole = v.as_i64().or_else(|| v.as_f64().filter(|n| *n > LONGEST as f64).map(|_| i64::MAX));
            whole.filter(|n| *n >= 3).ok_or_else(|| config.wrong("model_max_length", "a number of tokens, at least 3, such as 77"))
        });
        let model_max_length = length.transpose()?.filter(|n| *n <= LONGEST).map(|n| n as usize);
        let [bos, eos, unk, pad] = special.map(|token| token.content);
        Ok(Self { vocab, merges, added, bos, eos, unk, pad, model_max_length })
    }
}

/// An error about a file that is not what its name promises.
pub(super) fn damaged(path: &Path, problem: impl Into<String>) -> Error {
    Error::Format { path: path.into(), problem: problem.into(), hint: "fetch the tokenizer's files again".into() }
}

/// Tokens and their ids: vocab.json, added_tokens.json, or the vocabulary inside tokenizer.json.
fn ids(fields: Fields) -> Result<Vocab> {
    let path = fields.path().to_path_buf();
    let number = |(token, id): (String, Value)| match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(number) => Ok((token, number)),
        None => Err(damaged(&path, format!("the id of `{token}` is {id}, not a whole number"))),
    };
    fields.into_map().into_iter().map(number).collect()
}

fn of_tokenizer_json(whole: &Fields) -> Result<(Vocab, Merges)> {
    let wrong = || damaged(whole.path(), "no vocabulary and merges of byte-pair encoding, so not the tokenizer of a CLIP model");
    let model = whole.section("model").ok_or_else(wrong)?;
    let vocab = ids(model.section("vocab").ok_or_else(wrong)?)?;
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())),
        Value::Array(both) => Some((both.first()?.as_str()?.to_string(), both.get(1)?.as_str()?.to_string())),
        _ => None,
    };
    let merges = model.get("merges").and_then(Value::as_array).ok_or_else(wrong)?;
    Ok((vocab, merges.iter().map(|merge| pair(merge).ok_or_else(wrong)).collect::<Result<_>>()?))
}

fn read_merges(path: &Path) -> Result<Merges> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let lines = lines.filter(|(n, line)| !(line.is_empty() || *n == 0 && line.starts_with("#version")));
    let pair = |(n, line): (usize, &str)| match line.split(' ').collect::<Vec<_>>()[..] {
        [a, b] => Ok((a.to_string(), b.to_string())),
        _ => Err(damaged(path, format!("line {} is no pair of tokens: `{line}`", n + 1))),
    };
    lines.map(pair).collect()
}

/// An added token in the form of the files: its content alone, or an object with its own rules for the white space around it.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
    let flag = |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
    let special = special || flag("special", false);
    let token = AddedToken::from(content, special).lstrip(flag("lstrip", false)).rstrip(flag("rstrip", false));
    Some(token.normalized(flag("normalized", !special)).single_word(flag("single_word", false)))
}

/// Begin, end, unknown and padding token, in the order in which transformers adds them.
fn specials(config: &Fields, map: Option<&Fields>) -> [AddedToken; 4] {
    [("bos_token", BOS), ("eos_token", EOS), ("unk_token", EOS), ("pad_token", EOS)].map(|(key, default)| {
        let value = map.and_then(|map| map.get(key)).or_else(|| config.get(key));
        value.and_then(|value| token(value, true)).unwrap_or_else(|| AddedToken::from(default, true))
    })
}

fn extra(config: &Fields, map: Option<&Fields>) -> Vec<AddedToken> {
    let lists = ["extra_special_tokens", "additional_special_tokens"];
    let found = map.into_iter().chain([config]).flat_map(|fields| lists.map(|key| fields.get(key))).flatten();
    found.filter_map(Value::as_array).flatten().filter_map(|value| token(value, true)).collect()
}

type Numbered = BTreeMap<u32, AddedToken>;

fn insert(all: &mut Numbered, id: u32, token: AddedToken, path: &Path) -> Result<()> {
    let content = token.content.clone();
    match all.insert(id, token) {
        Some(other) if other.content != content => Err(damaged(path, format!("`{}` and `{content}` both have the id {id}", other.content))),
        _ => Ok(()),
    }
}

fn of_decoder(config: &Fields, list: &Value) -> Result<Numbered> {
    let wrong = || config.wrong("added_tokens_decoder", "an object of ids, each with a token");
    let read = |(id, value): (&String, &Value)| Some((id.parse().ok()?, token(value, false)?));
    let list = list.as_object().ok_or_else(wrong)?;
    list.iter().map(|entry| Ok(read(entry).ok_or_else(wrong)?)).collect()
}

fn of_list(whole: &Fields) -> Result<Numbered> {
    let wrong = || whole.wrong("added_tokens", "a list of tokens, each with its id");
    let read = |value: &Value| Some((u32::try_from(value.get("id")?.as_u64()?).ok()?, token(value, false)?));
    let list = whole.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    list.map(|value| Ok(read(value).ok_or_else(wrong)?)).collect()
}

/// Gives new tokens the ids that the files name: their rows in the text encoder's table. Tokens of the vocabulary keep their own.
fn place(vocab: &mut Vocab, added: &Numbered, dir: &Path) -> Result<()> {
    let taken: BTreeMap<u32, String> =
        vocab.iter().filter(|(_, id)| added.contains_key(id)).map(|(token, id)| (*id, token.clone())).collect();
    for (id, token) in added {
        if vocab.contains_key(&token.content) {
            continue;
        }
        if let Some(other) = taken.get(id) {
            return Err(damaged(dir, format!("the added token `{}` has the id {id}, which is that of `{other}`", token.content)));
        }
        vocab.insert(token.content.clone(), *id);
    }
    Ok(())
}
