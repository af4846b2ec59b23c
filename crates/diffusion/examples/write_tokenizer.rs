//! Writes a CLIP tokenizer in which every word of a list is one token: `write_tokenizer DIR WORDS_FILE LENGTH PAD_TOKEN`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, words, length, pad] = &args[..] else {
        return Err("usage: write_tokenizer DIR WORDS_FILE LENGTH PAD_TOKEN".into());
    };
    let text = std::fs::read_to_string(words)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    diffusion::Tokenizer::write_from_words(dir, &words, length.parse()?, pad)?;
    Ok(())
}
