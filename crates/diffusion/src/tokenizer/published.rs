//! CLIP's published vocabulary, which every Stable Diffusion model uses and no checkpoint holds: crate -> **tokens and merges**.
//!
//! OpenAI published it under the MIT licence; the crate `instant-clip-tokenizer` carries it. That crate tells what tokens mean and not how
//! they are merged, so the merges are found again: a token is the last pair that merging its own text by the earlier merges leaves.

use std::collections::{BTreeMap, HashMap}; // hashed: a hundred thousand texts are looked up, and never walked
use std::sync::LazyLock;

use instant_clip_tokenizer::{Token, Tokenizer};

use super::words::{Pair, signed_bytes};
use super::{BOS, END_OF_WORD, EOS};

/// What completes a token that begins or ends inside a character: the bytes before it, or behind it.
const BEFORE: [&[u8]; 8] = [&[], &[0xc2], &[0xe1], &[0xf1], &[0xe1, 0x80], &[0xf1, 0x80], &[0xf1, 0x80, 0x80], &[0xe0]];
const BEHIND: [&[u8]; 7] = [&[], &[0x80], &[0xa0], &[0x80, 0x80], &[0xa0, 0x80], &[0x90, 0x80], &[0x90, 0x80, 0x80]];
/// What bytes that are no text are read as.
const NO_TEXT: char = char::REPLACEMENT_CHARACTER;

type Ranks<'a> = HashMap<&'a str, usize>; // hashed: as above

/// The tokens in the order of their ids, and the pairs in the order in which they are merged.
pub(super) static PUBLISHED: LazyLock<(Vec<String>, Vec<Pair>)> = LazyLock::new(published);

fn published() -> (Vec<String>, Vec<Pair>) {
    let clip = Tokenizer::new();
    let bytes = signed_bytes();
    let single = bytes.iter().map(|(_, sign)| sign.to_string());
    let last = bytes.iter().map(|(_, sign)| format!("{sign}{END_OF_WORD}"));
    let mut tokens: Vec<String> = single.chain(last).collect();
    let plain = tokens.len();

    let sign: BTreeMap<u8, char> = bytes.iter().copied().collect();
    let token = |id: usize| u16::try_from(id).ok().and_then(|id| Token::from_u16(id, &clip));
    let of_byte: BTreeMap<u8, Token> = bytes.iter().enumerate().filter_map(|(id, (byte, _))| Some((*byte, token(id)?))).collect();
    let ids = usize::from(clip.start_of_text().to_u16());
    tokens.extend((plain..ids).filter_map(token).map(|token| {
        let text = bytes_of(&clip, &of_byte, token);
        // A word's end is told as a space, which no token holds otherwise.
        let (text, end) = text.strip_suffix(b" ").map_or((&text[..], ""), |text| (text, END_OF_WORD));
        text.iter().map(|byte| sign[byte]).chain(end.chars()).collect()
    }));

    let rank: Ranks = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let merges = tokens.iter().enumerate().skip(plain).filter_map(|(id, token)| last_pair(token, id, &rank)).collect();
    tokens.extend([BOS.to_string(), EOS.to_string()]);
    (tokens, merges)
}

/// The bytes of a token; a space at their end stands for the end of a word.
fn bytes_of(clip: &Tokenizer, of_byte: &BTreeMap<u8, Token>, token: Token) -> Vec<u8> {
    let tokens = |bytes: &[u8]| bytes.iter().map(|byte| of_byte[byte]).collect::<Vec<_>>();
    for before in BEFORE {
        for behind in BEHIND {
            let text = clip.decode(tokens(before).into_iter().chain([token]).chain(tokens(behind)));
            if !text.contains(NO_TEXT) {
                return text.as_bytes()[before.len()..text.len() - behind.len()].to_vec();
            }
        }
    }
    // The vocabulary has that very character, too.
    clip.decode([token]).into_bytes()
}

/// What merging leaves of a token's text by the pairs of lower ids.
fn last_pair(token: &str, id: usize, rank: &Ranks) -> Option<Pair> {
    let text = token.strip_suffix(END_OF_WORD).unwrap_or(token);
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    parts.last_mut()?.push_str(&token[text.len()..]);
    while parts.len() > 2 {
        let pairs = parts.windows(2).enumerate().filter_map(|(at, pair)| Some((*rank.get(pair.concat().as_str())?, at)));
        let (_, at) = pairs.filter(|(rank, _)| *rank < id).min()?;
        let right = parts.remove(at + 1);
        parts[at].push_str(&right);
    }
    let right = parts.pop()?;
    Some((parts.pop()?, right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_merges_are_those_of_the_published_files() {
        let (tokens, merges) = &*PUBLISHED;
        assert_eq!((tokens.len(), merges.len()), (49408, 48894));
        // Lines of merges.txt and entries of vocab.json of openai/clip-vit-large-patch14.
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(
            merges[..7],
            [pair("i", "n"), pair("t", "h"), pair("a", "n"), pair("r", "e"), pair("a", "r"), pair("e", "r"), pair("th", "e</w>")]
        );
        let id = |token: &str| tokens.iter().position(|t| t == token);
        for (token, expected) in
            [("!", 0), ("a</w>", 320), ("the</w>", 518), ("cat</w>", 2368), ("photo</w>", 1125), (BOS, 49406), (EOS, 49407)]
        {
            assert_eq!(id(token), Some(expected), "{token}");
        }
        let unique: std::collections::HashSet<&String> = tokens.iter().collect();
        assert_eq!(unique.len(), tokens.len());
        assert!(merges.iter().zip(&tokens[512..]).all(|((a, b), token)| format!("{a}{b}") == *token));
    }
}
