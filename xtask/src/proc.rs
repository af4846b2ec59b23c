//! Child processes: how xtask calls cargo, Python and the built binary, shows what it calls and reports what failed.
//!
//! Stands beside the data flow; every other module of xtask starts its commands through here.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};

/// The root of the repository: the parent of xtask's own folder.
pub fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&here).parent().expect("xtask lies in a folder of the workspace").to_path_buf()
}

/// A cargo command in `root` that sees the environment a user's plain `cargo` would see.
///
/// `cargo run` hands the `[env]` table of `.cargo/config.toml` to xtask as if the user had set it. Handing it on would
/// make a build script believe that its environment changed, and torch-sys would compile its C++ again; so it is
/// removed. The libraries go last on the loader path, for target folders outside the repository, where the relative
/// run path of the binaries does not lead to `.libtorch`.
pub fn cargo(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root);
    if std::env::var_os("LIBTORCH").is_some_and(|given| is_own_libtorch(root, Path::new(&given))) {
        command.env_remove("LIBTORCH");
    }
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    // For the test programs alone (`checks::test`): build scripts look at it, and everything would be compiled anew.
    if cfg!(test) {
        command.env_remove("RUSTC_BOOTSTRAP");
    }
    with_libtorch(&mut command, root);
    command
}

/// Puts `.libtorch/lib` at the end of the loader path of `command`.
pub fn with_libtorch(command: &mut Command, root: &Path) {
    let mut path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(root.join(".libtorch/lib"));
    command.env("LD_LIBRARY_PATH", path);
}

/// Is `given` the `.libtorch` of this repository, however its path is written?
pub fn is_own_libtorch(root: &Path, given: &Path) -> bool {
    let parent = given.parent().and_then(|p| p.canonicalize().ok());
    given.file_name() == Some(OsStr::new(".libtorch")) && parent.is_some() && parent == root.canonicalize().ok()
}

/// Shows the command on stderr, runs it with all its output visible, and fails when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let line = show(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if status.success() { Ok(()) } else { Err(anyhow!("`{line}` failed ({status})")) }
}

/// Runs the command quietly and returns its standard output; on failure the error carries the end of its stderr.
pub fn capture(command: &mut Command) -> Result<String> {
    let line = show(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(anyhow!("`{line}` failed ({}):\n{}", output.status, last_lines(&stderr, 12)));
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` wrote something that is not UTF-8"))
}

/// The bytes that a line such as `MemTotal: 25 kB` of a file below /proc states.
pub fn bytes_of(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The last `count` lines that are not blank.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The command as a line that can be pasted into a shell; cargo is shown by its short name.
pub fn show(command: &Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let program = if program.ends_with("/cargo") { "cargo".to_owned() } else { program };
    let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(program).chain(args).map(|word| quote(&word)).collect::<Vec<_>>().join(" ")
}

/// Quotes a word for a POSIX shell where it needs quoting.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
pub mod tests_support {
    use super::*;

    /// A fresh empty folder for one test, under the target folder so that it is neither tracked nor lost in /tmp.
    pub fn scratch(name: &str) -> PathBuf {
        let folder = root().join("target/tmp/xtask").join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("the target folder can be written");
        folder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["test", "--flag=a b", "it's", ""]);
        assert_eq!(show(&command), r"cargo test '--flag=a b' 'it'\''s' ''");
    }

    #[test]
    fn a_failing_command_is_named_with_its_code_and_words() {
        let error = capture(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no luck"), "{error}");
    }

    #[test]
    fn own_libtorch_is_recognised_through_other_spellings_of_its_path() {
        let root = root();
        assert!(is_own_libtorch(&root, &root.join("xtask/../.libtorch")));
        assert!(!is_own_libtorch(&root, &root.join("xtask/.libtorch")));
        assert!(!is_own_libtorch(&root, Path::new("libtorch")));
    }
}
