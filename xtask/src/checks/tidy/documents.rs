//! House rules for what people read: no line that an editor must scroll for, one version of torch, a first page that fits a screen.
//!
//! Part of `tidy`.

use crate::setup::{PEERS, TORCH};

/// Characters of a line.
const WIDEST: usize = 160;
/// Lines of a program's `main.rs`, which says what there is and does nothing.
const MAIN: usize = 100;

/// Lines of Markdown that are too wide. Rust's are the formatter's, which leaves long messages alone.
pub fn wide_lines(path: &str, text: &str) -> Vec<String> {
    if !path.ends_with(".md") {
        return Vec::new();
    }
    let wide = text.lines().enumerate().map(|(index, line)| (index + 1, line.chars().count())).filter(|(_, width)| *width > WIDEST);
    wide.map(|(line, width)| format!("{path}:{line}: has {width} characters, at most {WIDEST}")).collect()
}

/// A `main.rs` that does more than to begin.
pub fn long_main(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (path.ends_with("src/main.rs") && lines >= MAIN).then(|| format!("{path} has {lines} lines, and a main.rs fewer than {MAIN}"))
}

/// Mentions of another version than the one that everything is built against or compared with: of torch anywhere, of other programs in
/// Markdown, since a fixture's script names what it ran with.
pub fn other_versions(path: &str, text: &str) -> Vec<String> {
    let torch = ["torch ", "torch==", "LIBTORCH: &str = \""].map(|before| (before.to_owned(), TORCH));
    let pinned = PEERS.iter().filter(|(name, version)| *name != "torch" && !version.is_empty() && path.ends_with(".md"));
    let known: Vec<(String, &str)> = torch.into_iter().chain(pinned.map(|(name, version)| (format!("{name}=="), *version))).collect();
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for (before, right) in &known {
            // open_clip_torch is another package.
            for (at, _) in line.match_indices(before.as_str()).filter(|(at, _)| !line[..*at].ends_with('_')) {
                let rest = &line[at + before.len()..];
                let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
                let version = rest[..end].trim_end_matches('.');
                if version.matches('.').count() == 2 && version != *right {
                    found.push(format!("{path}:{}: `{before}{version}`, but xtask/src/setup/versions.rs says {right}", index + 1));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_lines_are_found_in_text_but_not_in_data() {
        let wide = "ä".repeat(161);
        assert!(wide_lines("docs/a.md", &wide[2..]).is_empty());
        assert_eq!(wide_lines("docs/a.md", &format!("a\n{wide}")), ["docs/a.md:2: has 161 characters, at most 160"]);
        assert!(wide_lines("crates/x/src/a.rs", &wide).is_empty());
        assert!(wide_lines("tests/fixtures/a.json", &wide).is_empty());
    }

    #[test]
    fn a_long_main_is_found() {
        assert_eq!(long_main("xtask/src/main.rs", &"\n".repeat(99)), None);
        assert!(long_main("xtask/src/main.rs", &"\n".repeat(100)).is_some());
        assert_eq!(long_main("crates/cli/tests/cli/main.rs", &"\n".repeat(100)), None);
    }

    #[test]
    fn another_version_is_found_wherever_it_is_named() {
        let right =
            format!("torch {TORCH}. open_clip_torch 3.3.0, pip install torch=={TORCH}; torch 2\nconst LIBTORCH: &str = \"{TORCH}\";");
        assert!(other_versions("a.md", &right).is_empty());
        for wrong in ["a CUDA build of torch ", "torch==", "const LIBTORCH: &str = \""] {
            let found = other_versions("a", &format!("x\n{wrong}2.1.3"));
            assert!(found.len() == 1 && found[0].starts_with("a:2: ") && found[0].contains("2.1.3`, but"), "{found:?}");
        }
        let old = format!("pip install diffusers=={}", "0.1.0");
        assert_eq!((other_versions("a.md", &old).len(), other_versions("gen_a.py", &old).len()), (1, 0));
    }
}
