//! House rules for the thin command, `crates/cli/src`: how long it is, how long its functions are, and that its files form no circle.
//!
//! Part of `tidy`. The command's files are parsed as far as these rules need it: `mod`, `use` and other paths that begin with `crate`,
//! `super` or the name of a child, and the first and last lines of functions, which rustfmt puts where they can be found.

use std::collections::{BTreeMap, BTreeSet};

/// Where the command's sources lie.
pub const SOURCES: &str = "crates/cli/src/";
/// Where its subcommands lie: one file each, which parses, calls one function of a library, and prints.
const COMMANDS: &str = "crates/cli/src/commands";

/// Lines of all its files together.
const MOST_LINES: usize = 4_500;
/// Lines of one function of a subcommand, from `fn` to its brace.
const LONGEST_FUNCTION: usize = 60;

/// More lines than the command may have.
pub fn too_long(files: &BTreeMap<String, String>) -> Option<String> {
    let lines: usize = files.values().map(|text| text.lines().count()).sum();
    (lines > MOST_LINES)
        .then(|| format!("{SOURCES} has {lines} lines, at most {MOST_LINES}: what a Rust program could want belongs to a library"))
}

/// Uses of `tch` in subcommands, outside comments.
pub fn tensors(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path.starts_with(COMMANDS)) {
        for (index, line) in text.lines().enumerate() {
            if code(line).contains("tch::") {
                found.push(format!("{path}:{}: a subcommand handles no tensors; let a library do it", index + 1));
            }
        }
    }
    found
}

/// Functions of subcommands that are longer than a page, outside tests.
pub fn long_functions(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path.starts_with(COMMANDS)) {
        for (name, line, length) in functions(text).into_iter().filter(|(.., length)| *length > LONGEST_FUNCTION) {
            found.push(format!("{path}:{line}: `{name}` has {length} lines, at most {LONGEST_FUNCTION}"));
        }
    }
    found
}

/// Name, first line and number of lines of each function with a body of its own lines.
fn functions(text: &str) -> Vec<(&str, usize, usize)> {
    let lines: Vec<&str> = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = line.len() - line.trim_start().len();
        let Some(head) = lines[start..].iter().position(|line| line.ends_with(['{', ';', '}'])) else { continue };
        if !lines[start + head].ends_with('{') {
            continue;
        }
        let is_end = |line: &&str| line.trim_end() == format!("{}}}", " ".repeat(indent));
        if let Some(body) = lines[start + head + 1..].iter().position(is_end) {
            found.push((name, start + 1, head + body + 2));
        }
    }
    found
}

/// The name of the function that this line begins.
fn function_name(line: &str) -> Option<&str> {
    let (before, rest) = line.trim_start().split_once("fn ").or_else(|| line.trim_start().strip_prefix("fn ").map(|rest| ("", rest)))?;
    let modifier = |word: &str| word.starts_with("pub") || ["async", "const", "unsafe", "extern", "\"C\"", "in"].contains(&word);
    if !before.split_whitespace().all(|word| modifier(word) || word.ends_with(')')) {
        return None;
    }
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'))?;
    (end > 0).then(|| &rest[..end])
}

/// The files that import each other in a circle: one line per circle, all its files named.
pub fn circles(files: &BTreeMap<String, String>) -> Vec<String> {
    let modules: BTreeMap<Vec<String>, &str> = files.keys().map(|path| (module_of(path), path.as_str())).collect();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, text) in files {
        let own = module_of(path);
        let targets = imports(text, &own).into_iter().filter_map(|target| {
            // The longest beginning of the path that is a file; the rest names things in it.
            (0..=target.len()).rev().find_map(|length| modules.get(&target[..length])).copied()
        });
        edges.insert(path, targets.filter(|target| target != path).collect());
    }
    let reached: BTreeMap<&str, BTreeSet<&str>> = edges.keys().map(|&start| (start, reach(start, &edges))).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for &start in edges.keys().filter(|&&start| reached[start].contains(start)) {
        let members: Vec<&str> = reached[start].iter().copied().filter(|other| reached[other].contains(start)).collect();
        if members.iter().all(|member| seen.insert(*member)) {
            let names: Vec<&str> = members.iter().map(|path| path.strip_prefix(SOURCES).unwrap_or(path)).collect();
            found.push(format!("{SOURCES}: these files import each other in a circle: {}", names.join(", ")));
        }
    }
    found
}

/// All that can be reached along edges, `start` itself only through a circle.
fn reach<'a>(start: &'a str, edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(path) = open.pop() {
        for &next in edges.get(path).into_iter().flatten() {
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    seen
}

/// The module that a file is: `main.rs` is the root, `a/mod.rs` and `a.rs` are `a`.
fn module_of(path: &str) -> Vec<String> {
    let inner = path.strip_prefix(SOURCES).unwrap_or(path);
    let inner = inner.strip_suffix(".rs").unwrap_or(inner);
    let mut parts: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "main") {
        parts.pop();
    }
    parts
}

/// The absolute paths that a file's code names, outside tests: through `crate`, `super`, or a child that it declares.
fn imports(text: &str, own: &[String]) -> Vec<Vec<String>> {
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    let text: String = lines.map(|line| format!("{}\n", code(line))).collect();
    let children: BTreeSet<&str> = text.lines().filter_map(child).collect();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(|c: char| c.is_alphabetic() || c == '_').map(|offset| at + offset) {
        let end = start + text[start..].find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len() - start);
        let word = &text[start..end];
        // A later segment of a path, or a name after a dollar sign, begins nothing.
        let begins = !text[..start].ends_with([':', '$', '.']);
        let base = match word {
            "crate" => Some(Vec::new()),
            "self" => Some(own.to_vec()),
            "super" => Some(own[..own.len().saturating_sub(1)].to_vec()),
            child if children.contains(child) => Some([own, &[child.to_owned()]].concat()),
            _ => None,
        };
        at = end;
        if let (true, Some(base), true) = (begins, base, text[end..].starts_with("::")) {
            at += tree(&text[end + 2..], base, &mut found) + 2;
        }
    }
    found
}

/// Reads what follows `base::`, a path or a group in braces; returns how many bytes that took.
fn tree(text: &str, base: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    if text.starts_with('{') {
        let mut at = 1;
        while at < text.len() {
            let rest = &text[at..];
            match rest.chars().next() {
                Some('}') => return at + 1,
                Some(c) if c.is_alphanumeric() || c == '_' => at += tree(rest, base.clone(), found).max(1),
                Some(c) => at += c.len_utf8(),
                None => break,
            }
        }
        return at;
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let mut path = base;
    match &text[..end] {
        "super" => {
            path.pop();
        }
        "self" | "" => {}
        name => path.push(name.to_owned()),
    }
    if text[end..].starts_with("::") {
        return end + 2 + tree(&text[end + 2..], path, found);
    }
    found.push(path);
    end
}

/// The child that a line such as `pub(crate) mod a;` declares.
fn child(line: &str) -> Option<&str> {
    let (before, name) = line.split_once("mod ")?;
    let name = name.trim_end().strip_suffix(';')?;
    before.split_whitespace().all(|word| word.starts_with("pub")).then_some(name)
}

/// A line without its comment. Slashes in a string are no comment where no blank stands before them.
fn code(line: &str) -> &str {
    let trimmed = line.trim_start();
    if trimmed.starts_with("//") { "" } else { line.split(" // ").next().unwrap_or(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(texts: &[(&str, &str)]) -> BTreeMap<String, String> {
        texts.iter().map(|(path, text)| (format!("{SOURCES}{path}"), (*text).to_owned())).collect()
    }

    #[test]
    fn a_command_that_grew_is_found() {
        let line = "//! A\n";
        assert_eq!(too_long(&files(&[("main.rs", &line.repeat(4_500))])), None);
        let grown = too_long(&files(&[("main.rs", &line.repeat(4_000)), ("commands/a.rs", &line.repeat(501))])).unwrap();
        assert!(grown.contains("4501 lines"), "{grown}");
    }

    #[test]
    fn tensors_are_found_in_subcommands_only() {
        let text = "//! tch::Tensor\nuse tch::Tensor;\nlet a = 1; // tch::no_grad\n";
        let found = tensors(&files(&[("device.rs", text), ("commands/a.rs", text)]));
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("crates/cli/src/commands/a.rs:2: "), "{found:?}");
    }

    #[test]
    fn functions_are_measured_from_their_first_line_to_their_brace() {
        let text = "\
impl A {
    pub(super) fn short(&self) -> u32 { 1 }
    fn declared(&self);
    pub async fn long(
        a: u32,
    ) -> u32 {
        if a > 1 {
            2
        }
    }
}
/// fn in_a_comment() {
fn other() {
}
#[cfg(test)]
fn in_tests() {
}
";
        assert_eq!(functions(text), [("long", 4, 7), ("other", 13, 2)]);
        let body = |count: usize| format!("fn a() {{\n{}}}\n", "    b();\n".repeat(count));
        assert!(long_functions(&files(&[("commands/a.rs", &body(58)), ("shell.rs", &body(99))])).is_empty());
        let found = long_functions(&files(&[("commands/a.rs", &body(59))]));
        assert_eq!(found, ["crates/cli/src/commands/a.rs:1: `a` has 61 lines, at most 60"]);
    }

    #[test]
    fn a_circle_is_found_through_groups_parents_and_children() {
        let down = [("main.rs", "mod commands;\nmod shell;\n"), ("shell.rs", "pub fn run() {}\n")];
        let fine = [("commands/mod.rs", "mod eval;\nuse eval::Args;\n"), ("commands/eval.rs", "use crate::shell::{self, run};\n")];
        assert!(circles(&files(&[down, fine].concat())).is_empty());

        let up = [("commands/mod.rs", "mod eval;\nuse eval::Args;\n"), ("commands/eval.rs", "use super::Shared;\n")];
        let found = circles(&files(&[down, up].concat()));
        assert_eq!(found.len(), 1);
        assert!(found[0].ends_with("commands/eval.rs, commands/mod.rs"), "{found:?}");

        let texts = [
            ("a.rs", "use crate::{b::{X, c::Y}, d::Z};\n"),
            ("b/mod.rs", "pub struct X;\n"),
            ("b/c.rs", "fn f() { crate::d::g() }\n"),
            ("d.rs", "fn g() {}\n// use crate::a::Q;\n#[cfg(test)]\nuse crate::a::Q;\n"),
        ];
        assert!(circles(&files(&texts)).is_empty());
        let closed = [texts[0], texts[1], texts[2], ("d.rs", "use super::a::Q;\n")];
        assert!(circles(&files(&closed))[0].ends_with("a.rs, b/c.rs, d.rs"), "{:?}", circles(&files(&closed)));
    }
}
