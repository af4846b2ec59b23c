//! The name that was meant.

/// The likeliest of the names there are, by Levenshtein distance; the first of equally near ones. `None` where nothing is near:
/// a name further away than a third of its length is no misspelling.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |other: &&str| strsim::levenshtein(name, other);
    known.into_iter().min_by_key(distance).filter(|other| distance(other) <= name.chars().count().max(other.chars().count()).div_ceil(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_mended_and_another_word_is_not() {
        assert_eq!(nearest("sampels", ["batch", "samples", "seed"]), Some("samples"));
        assert_eq!(nearest("samplse", ["samples", "sample"]), Some("sample"));
        assert_eq!(nearest("learning_rate", ["batch", "samples", "seed"]), None);
        assert_eq!(nearest("lr", []), None);
    }
}
