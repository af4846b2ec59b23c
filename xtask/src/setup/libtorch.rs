//! Makes `.libtorch/` a libtorch of the version that tch expects, by a link if there is one, else by download.
//!
//! Stands before the data flow: everything but prune-core and scenes is compiled and run against `.libtorch`. The order
//! is: what is there already, `LIBTORCH`, the torch of the active Python environment, a download (`wheels`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::versions::TORCH;
use super::wheels;
use crate::proc;

/// Written last into a downloaded `.libtorch`: its absence or a mismatch means that the folder is not complete.
const STAMP: &str = "laptop-diff-stamp.json";

/// Without these nothing can be linked or run.
const REQUIRED: [&str; 4] = ["lib/libtorch_cpu.so", "lib/libc10.so", "lib/libtorch.so", "include/torch/csrc/api/include/torch/torch.h"];

/// Where libtorch says its version, the oldest habit last. The first file has one line, the others are C headers.
const VERSION_FILES: [&str; 4] =
    ["build-version", "include/torch/headeronly/version.h", "include/torch/version.h", "include/torch/csrc/api/include/torch/version.h"];

/// What a downloaded `.libtorch` must consist of: sizes in bytes by path relative to the folder.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Stamp {
    version: String,
    sizes: BTreeMap<String, u64>,
}

/// Makes `.libtorch` in `root` ready and checks that C++ can be compiled; does nothing when all is there.
pub fn run(root: &Path, verbose: bool) -> Result<()> {
    supported_machine()?;
    need_cxx()?;
    let home = root.join(".libtorch");
    if let Some(given) = std::env::var_os("LIBTORCH").map(PathBuf::from).filter(|given| !proc::is_own_libtorch(root, given)) {
        return adopt(&home, &given);
    }
    if is_ready(&home, verbose)? {
        return Ok(());
    }
    // Two set-ups at once would work in the same folder; the second waits, then finds the work done.
    let lock = fs::File::create(root.join(".libtorch.lock")).context("cannot write to the root of the repository")?;
    lock.lock().context("cannot lock .libtorch.lock")?;
    if is_ready(&home, verbose)? {
        return Ok(());
    }
    let forced = std::env::var("LIBTORCH_USE_PYTORCH").is_ok_and(|value| !["", "0", "false"].contains(&value.as_str()));
    match python_torch() {
        Ok(folder) => return link(&home, &folder, "the torch of the active Python environment"),
        Err(reason) if forced => {
            bail!("LIBTORCH_USE_PYTORCH is set, but {reason}; install torch {TORCH} there, or unset the variable to download libtorch")
        }
        Err(reason) if verbose => eprintln!("setup: no torch from Python: {reason}"),
        Err(_) => {}
    }
    wheels::download(root, &home)
}

/// Links `.libtorch` to the folder that the user named in LIBTORCH, if it has the right version.
fn adopt(home: &Path, given: &Path) -> Result<()> {
    let absolute = std::path::absolute(given)?;
    if let Err(problem) = verify(&absolute) {
        bail!(
            "LIBTORCH is {}, but {problem}\n  next step: let LIBTORCH name a folder of libtorch {TORCH}, or unset it and run `cargo xtask setup` to download one",
            given.display()
        );
    }
    if home.canonicalize().ok() == absolute.canonicalize().ok() {
        return Ok(());
    }
    if home.is_dir() && !home.is_symlink() {
        eprintln!("setup: building against LIBTORCH; programs load the libtorch {TORCH} in .libtorch (remove that folder to link yours)");
        return Ok(());
    }
    link(home, &absolute, "LIBTORCH")
}

/// Is `.libtorch` complete? Removes what is ours and broken; fails on a folder that is not ours and not usable.
fn is_ready(home: &Path, verbose: bool) -> Result<bool> {
    if home.is_symlink() {
        let target = fs::read_link(home)?;
        return match verify(home) {
            Ok(()) => {
                if verbose {
                    eprintln!("setup: .libtorch is a link to {}, libtorch {TORCH}", target.display());
                }
                Ok(true)
            }
            Err(problem) => {
                eprintln!("setup: .libtorch was a link to {}, but {problem}; setting up anew", target.display());
                fs::remove_file(home).context("cannot remove the link .libtorch")?;
                Ok(false)
            }
        };
    }
    if !home.exists() {
        return Ok(false);
    }
    if !home.join(STAMP).exists() {
        // Somebody unpacked a libtorch here by hand: fine if it is the right one, not ours to delete if not.
        if let Err(problem) = verify(home) {
            bail!("{} was not made by this set-up, and {problem}\n  next step: remove it and run `cargo xtask setup`", home.display());
        }
        return Ok(true);
    }
    match check_stamp(home) {
        Ok(()) => {
            if verbose {
                eprintln!("setup: .libtorch is complete, libtorch {TORCH}");
            }
            Ok(true)
        }
        Err(problem) => {
            eprintln!("setup: .libtorch is damaged ({problem:#}); setting up anew");
            fs::remove_dir_all(home).context("cannot remove the damaged .libtorch")?;
            Ok(false)
        }
    }
}

fn link(home: &Path, target: &Path, what: &str) -> Result<()> {
    if home.is_symlink() {
        fs::remove_file(home).context("cannot replace the link .libtorch")?;
    }
    std::os::unix::fs::symlink(target, home).with_context(|| format!("cannot make the link {}", home.display()))?;
    eprintln!("setup: .libtorch -> {} ({what}, {TORCH})", target.display());
    Ok(())
}

/// Checks that `folder` is a libtorch of the right version whose libraries the loader can resolve; else says what is wrong.
pub fn verify(folder: &Path) -> Result<(), String> {
    if !folder.is_dir() {
        return Err(format!("there is no folder {}", folder.display()));
    }
    match version_of(folder) {
        None => return Err(format!("{} has no version of libtorch (looked for {})", folder.display(), VERSION_FILES.join(", "))),
        Some(found) if found != TORCH => return Err(format!("its version is {found}, expected {TORCH}")),
        Some(_) => {}
    }
    if let Some(missing) = REQUIRED.iter().find(|file| !folder.join(file).exists()) {
        return Err(format!("{} is missing in {}", missing, folder.display()));
    }
    // The loader is asked, because the CUDA build of libtorch_cpu needs libcudart and libcupti even on a machine without a GPU.
    if let Ok(list) = proc::capture(Command::new("ldd").arg(folder.join("lib/libtorch_cpu.so"))) {
        let lost: Vec<&str> = list.lines().filter(|l| l.contains("not found")).filter_map(|l| l.split_whitespace().next()).collect();
        if !lost.is_empty() {
            return Err(format!("the loader does not find {} for its libtorch_cpu.so", lost.join(", ")));
        }
    }
    Ok(())
}

/// The version that a libtorch folder states, without a local part such as `+cpu`.
fn version_of(folder: &Path) -> Option<String> {
    VERSION_FILES.iter().find_map(|file| {
        let text = fs::read_to_string(folder.join(file)).ok()?;
        if file.ends_with(".h") { version_in_header(&text) } else { Some(text.trim().split('+').next()?.to_owned()) }
    })
}

fn version_in_header(text: &str) -> Option<String> {
    let number = |name: &str| {
        text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("#define") && words.next() == Some(name)).then(|| words.next()?.parse::<u32>().ok())?
        })
    };
    Some(format!("{}.{}.{}", number("TORCH_VERSION_MAJOR")?, number("TORCH_VERSION_MINOR")?, number("TORCH_VERSION_PATCH")?))
}

/// Writes the stamp that declares `folder` complete, as its last file.
pub fn stamp(folder: &Path) -> Result<()> {
    let mut sizes = BTreeMap::new();
    for entry in fs::read_dir(folder.join("lib"))? {
        let entry = entry?;
        sizes.insert(format!("lib/{}", entry.file_name().to_string_lossy()), entry.metadata()?.len());
    }
    for file in REQUIRED.iter().chain(&VERSION_FILES) {
        if let Ok(data) = fs::metadata(folder.join(file)) {
            sizes.insert((*file).to_owned(), data.len());
        }
    }
    let text = serde_json::to_string_pretty(&Stamp { version: TORCH.to_owned(), sizes })?;
    fs::write(folder.join(STAMP), text + "\n")?;
    fs::File::open(folder.join(STAMP))?.sync_all()?;
    Ok(())
}

fn check_stamp(folder: &Path) -> Result<()> {
    let stamp: Stamp = serde_json::from_str(&fs::read_to_string(folder.join(STAMP))?).context("its stamp cannot be read")?;
    if stamp.version != TORCH {
        bail!("it is version {}, expected {TORCH}", stamp.version);
    }
    for (file, expected) in &stamp.sizes {
        let got = fs::metadata(folder.join(file)).with_context(|| format!("{file} is missing"))?.len();
        if got != *expected {
            bail!("{file} has {got} bytes, expected {expected}");
        }
    }
    Ok(())
}

/// The torch folder of the active Python environment, found without importing torch; else why there is none.
fn python_torch() -> Result<PathBuf, String> {
    const FIND: &str = "import importlib.metadata as m, importlib.util as u, os\n\
        spec = u.find_spec('torch')\n\
        print(m.version('torch') if spec else '')\n\
        print(os.path.dirname(spec.origin) if spec else '')";
    let python = active_python();
    let answer = proc::capture(Command::new(&python).args(["-c", FIND])).map_err(|_| format!("{} does not know one", python.display()))?;
    let mut lines = answer.lines();
    let (version, folder) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if version.is_empty() || folder.is_empty() {
        return Err(format!("{} has no torch", python.display()));
    }
    if version.split('+').next() != Some(TORCH) {
        return Err(format!("the torch of {} is version {version}, expected {TORCH}", python.display()));
    }
    verify(Path::new(folder)).map(|()| PathBuf::from(folder))
}

/// The interpreter of the active virtual environment, else `python3`.
pub fn active_python() -> PathBuf {
    let environment = std::env::var_os("VIRTUAL_ENV").map(|env| Path::new(&env).join("bin/python"));
    environment.filter(|python| python.exists()).unwrap_or_else(|| "python3".into())
}

fn supported_machine() -> Result<()> {
    if cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
        return Ok(());
    }
    bail!(
        "this set-up knows Linux on x86-64 with glibc only, and this is {} on {}\n  next step: `cargo test -p prune-core` works everywhere; the rest needs such a machine, a container or WSL2",
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}

/// Fails at once where the C++ of torch-sys could not be compiled some minutes later.
fn need_cxx() -> Result<()> {
    let given = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut words = given.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("c++"));
    command.args(words).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if command.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    bail!(
        "there is no C++ compiler `{given}`, which the bindings to libtorch need\n  next step: install one (Debian, Ubuntu: `sudo apt install g++`; Fedora: `sudo dnf install gcc-c++`), or let CXX name yours"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::tests_support::scratch;

    const HEADER: &str = "#pragma once\n#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 10\n#define TORCH_VERSION_PATCH 1\n";

    #[test]
    fn the_version_is_read_from_a_header_and_from_build_version() {
        let folder = scratch("version");
        assert_eq!(version_of(&folder), None);
        fs::create_dir_all(folder.join("include/torch/headeronly")).unwrap();
        fs::write(folder.join("include/torch/headeronly/version.h"), HEADER).unwrap();
        assert_eq!(version_of(&folder).as_deref(), Some("2.10.1"));
        fs::write(folder.join("build-version"), format!("{TORCH}+cpu\n")).unwrap();
        assert_eq!(version_of(&folder).as_deref(), Some(TORCH));
    }

    #[test]
    fn a_folder_of_another_version_or_without_libraries_is_refused() {
        let folder = scratch("verify");
        fs::write(folder.join("build-version"), "2.10.0").unwrap();
        assert_eq!(verify(&folder).unwrap_err(), format!("its version is 2.10.0, expected {TORCH}"));
        fs::write(folder.join("build-version"), TORCH).unwrap();
        assert!(verify(&folder).unwrap_err().starts_with("lib/libtorch_cpu.so is missing"));
    }

    #[test]
    fn a_stamped_folder_counts_only_while_every_size_is_right() {
        let folder = scratch("stamp");
        fs::create_dir_all(folder.join("lib")).unwrap();
        fs::write(folder.join("lib/libc10.so"), "1234").unwrap();
        stamp(&folder).unwrap();
        assert!(is_ready(&folder, false).unwrap());
        fs::write(folder.join("lib/libc10.so"), "123").unwrap();
        assert_eq!(check_stamp(&folder).unwrap_err().to_string(), "lib/libc10.so has 3 bytes, expected 4");
        assert!(!is_ready(&folder, false).unwrap());
        assert!(!folder.exists(), "a damaged download is removed");
    }

    #[test]
    fn a_foreign_folder_is_refused_but_not_removed() {
        let folder = scratch("foreign");
        fs::write(folder.join("precious.txt"), "mine").unwrap();
        let error = is_ready(&folder, false).unwrap_err().to_string();
        assert!(error.contains("was not made by this set-up") && error.contains("next step: remove it"), "{error}");
        assert!(folder.join("precious.txt").exists());
    }

    #[test]
    fn a_dangling_link_is_set_up_anew() {
        let folder = scratch("dangling");
        let home = folder.join(".libtorch");
        std::os::unix::fs::symlink(folder.join("gone"), &home).unwrap();
        assert!(!is_ready(&home, false).unwrap());
        assert!(!home.is_symlink());
    }
}
