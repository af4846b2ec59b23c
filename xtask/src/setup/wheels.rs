//! The download behind the set-up: the needed parts of three Python wheels, unpacked into `.libtorch`.
//!
//! Stands before the data flow. Everything happens in `.libtorch.partial`, which becomes `.libtorch` by one rename
//! after its stamp is written; so an interrupted download never counts as done, and the next one starts clean.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::libtorch::{active_python, stamp, verify};
use super::versions::{CUDA_RUNTIME, TORCH, requirement};
use crate::proc::{capture, last_lines, show};

/// Wheels of one purpose.
pub struct Wheels {
    /// What they are, for messages.
    pub what: &'static str,
    /// Names and versions for pip.
    pub packages: &'static [(&'static str, &'static str)],
    /// Their bytes together, for the progress line.
    pub bytes: u64,
    /// Files below a folder of this name are headers, which go to `include`.
    pub headers: &'static str,
    /// Files that go to `lib`.
    pub libraries: &'static [&'static str],
    /// What to do without a network.
    pub offline: &'static str,
}

/// The wheel of libtorch itself, and the two small libraries that its libtorch_cpu loads even where there is no GPU.
const LIBTORCH: Wheels = Wheels {
    what: "libtorch",
    packages: &[("torch", TORCH), ("nvidia-cuda-runtime", CUDA_RUNTIME), ("nvidia-cuda-cupti", "13.0.85")],
    bytes: 543_671_508,
    headers: "torch/include/",
    libraries: &["libtorch_cpu.so", "libc10.so", "libtorch.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"],
    offline: "unpack that libtorch yourself and let LIBTORCH name its folder",
};

/// Kilobytes that wheels and unpacked files need together, with some air.
const NEEDED_KB: u64 = 1_500_000;

/// Takes what [`Wheels`] names, headers in `argv[3]` and libraries in the rest, out of the folder `argv[1]` into `argv[2]`; zipfile
/// checks each CRC.
const UNPACK: &str = r#"
import os, shutil, sys, zipfile
source, target, headers = sys.argv[1:4]
wanted = set(sys.argv[4:])
for wheel in sorted(os.listdir(source)):
    try:
        with zipfile.ZipFile(os.path.join(source, wheel)) as archive:
            for name in archive.namelist():
                base = os.path.basename(name)
                _, found, header = name.partition(headers)
                if found and base and ".." not in name.split("/"):
                    path = os.path.join(target, "include", header)
                elif base in wanted:
                    path = os.path.join(target, "lib", base)
                    wanted.discard(base)
                else:
                    continue
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with archive.open(name) as packed, open(path, "wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
    except (zipfile.BadZipFile, EOFError) as error:
        sys.exit(f"{wheel} is broken: {error}")
if wanted:
    sys.exit("the wheels lack " + ", ".join(sorted(wanted)))
"#;

/// Downloads libtorch into `home`, the `.libtorch` of `root`, which does not exist yet.
pub fn download(root: &Path, home: &Path) -> Result<()> {
    let pip = find_pip()?;
    enough_disk(root)?;
    let partial = root.join(".libtorch.partial");
    eprintln!("setup: no libtorch {TORCH} found; downloading its wheels once, {} MB", LIBTORCH.bytes / 1_000_000);
    unpacked(&pip, &partial, &LIBTORCH, || {
        verify(&partial).map_err(|problem| anyhow::anyhow!("what was unpacked is not usable: {problem}"))?;
        stamp(&partial)?;
        fs::rename(&partial, home).context("cannot rename .libtorch.partial to .libtorch")
    })?;
    eprintln!("setup: .libtorch is ready, {} MB", folder_size(home) / 1_000_000);
    Ok(())
}

/// Downloads wheels and unpacks them into the new folder `partial`, out of which `finish` takes the result. Keeps nothing half-done.
pub fn unpacked(pip: &Pip, partial: &Path, wheels: &Wheels, finish: impl FnOnce() -> Result<()>) -> Result<()> {
    remove(partial)?;
    for folder in ["wheels", "tmp"] {
        fs::create_dir_all(partial.join(folder)).with_context(|| format!("cannot write to {}", partial.display()))?;
    }
    let result = fetch(pip, partial, wheels).and_then(|()| unpack(&pip.python, partial, wheels)).and_then(|()| finish());
    if result.is_err() {
        remove(partial)?;
    }
    result
}

/// How to call pip, and a Python to unpack with.
pub struct Pip {
    command: Vec<PathBuf>,
    python: PathBuf,
}

/// pip as a module of the active Python, else as a program of its own (environments made by other tools lack the module).
pub fn find_pip() -> Result<Pip> {
    let works = |words: &[PathBuf]| capture(Command::new(&words[0]).args(&words[1..]).arg("--version")).is_ok();
    let pythons: Vec<PathBuf> =
        [active_python(), "python3".into(), "python".into()].into_iter().filter(|p| works(std::slice::from_ref(p))).collect();
    let Some(first) = pythons.first() else {
        bail!(
            "there is no python3, which downloads and unpacks libtorch {TORCH}\n  next step: install it (Debian, Ubuntu: `sudo apt install python3 python3-pip`), or unpack libtorch {TORCH} yourself and let LIBTORCH name its folder"
        )
    };
    let modules = pythons.iter().map(|python| vec![python.clone(), "-m".into(), "pip".into()]);
    let programs = ["pip3", "pip"].map(|name| vec![name.into()]);
    match modules.chain(programs).find(|words| works(words)) {
        Some(command) => Ok(Pip { command, python: first.clone() }),
        None => bail!(
            "{} has no pip, which downloads libtorch {TORCH}\n  next step: install it (Debian, Ubuntu: `sudo apt install python3-pip`), or unpack libtorch {TORCH} yourself and let LIBTORCH name its folder",
            first.display()
        ),
    }
}

fn enough_disk(root: &Path) -> Result<()> {
    match free_kb_at(root) {
        Some(free) if free < NEEDED_KB => bail!(
            "{} has {} MB free, and unpacking libtorch needs {} MB (about 520 MB stay)\n  next step: free some space, or let LIBTORCH name a libtorch {TORCH} elsewhere",
            root.display(),
            free / 1000,
            NEEDED_KB / 1000
        ),
        _ => Ok(()),
    }
}

/// Kilobytes that are free where `path` lies, if `df` tells.
pub fn free_kb_at(path: &Path) -> Option<u64> {
    free_kb(&capture(Command::new("df").arg("-Pk").arg(path)).ok()?)
}

/// The fourth column of the last line of `df -Pk`: available kilobytes.
fn free_kb(table: &str) -> Option<u64> {
    table.lines().last()?.split_whitespace().nth(3)?.parse().ok()
}

/// Runs `pip download` into the folder `wheels` of `partial`, showing how much has come.
fn fetch(pip: &Pip, partial: &Path, wheels: &Wheels) -> Result<()> {
    let log = partial.join("pip.log");
    let log_file = fs::File::create(&log)?;
    let mut command = Command::new(&pip.command[0]);
    command.args(&pip.command[1..]).args([
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--no-input",
        "--progress-bar=off",
    ]);
    // The same wheel whatever Python is installed: libtorch itself does not depend on it.
    command.args(["--python-version=3.12", "--implementation=cp", "--abi=cp312"]);
    // pip compares these tags literally, and the wheels are tagged with different versions of glibc.
    command.args((5..=28).map(|minor| format!("--platform=manylinux_2_{minor}_x86_64")));
    command.args(["2014", "2010", "1"].map(|year| format!("--platform=manylinux{year}_x86_64")));
    command.arg("--dest").arg(partial.join("wheels")).args(wheels.packages.iter().map(|package| requirement(*package)));
    // TMPDIR, because a small /tmp would not hold the wheel; the other one, because we install nothing.
    command.env("TMPDIR", partial.join("tmp")).env("PIP_REQUIRE_VIRTUALENV", "0").env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    command.stdin(Stdio::null()).stdout(log_file.try_clone()?).stderr(log_file);
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", show(&command)))?;
    let terminal = std::io::stderr().is_terminal();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if terminal {
            let done = folder_size(partial).min(wheels.bytes);
            eprint!("\rsetup: {} of {} MB ", done / 1_000_000, wheels.bytes / 1_000_000);
            let _ = std::io::stderr().flush();
        }
        std::thread::sleep(Duration::from_millis(300));
    };
    if terminal {
        eprint!("\r\x1b[K");
    }
    if status.success() {
        return Ok(());
    }
    let said = last_lines(&fs::read_to_string(&log).unwrap_or_default(), 6);
    let version = capture(Command::new(&pip.command[0]).args(&pip.command[1..]).arg("--version")).unwrap_or_default();
    bail!(
        "the download of {} ({}) failed ({status}); the last words of {}:\n{}\n  next step: check the network (and pip's proxy or index settings) and run the same command again; nothing half-done is kept.\n  Without a network: {}",
        wheels.what,
        requirement(wheels.packages[0]),
        version.split(" from ").next().unwrap_or("pip"),
        said.lines().map(|line| format!("    {}", line.trim())).collect::<Vec<_>>().join("\n"),
        wheels.offline,
    )
}

/// Unpacks the needed parts and removes the wheels.
fn unpack(python: &Path, partial: &Path, needed: &Wheels) -> Result<()> {
    let wheels = partial.join("wheels");
    eprintln!("setup: unpacking headers and libraries");
    let mut command = Command::new(python);
    command.args(["-c", UNPACK]).arg(&wheels).arg(partial).arg(needed.headers).args(needed.libraries);
    capture(&mut command).map_err(|error| {
        let text = error.to_string();
        let reason = last_lines(&text, 1);
        anyhow::anyhow!("the wheels cannot be unpacked: {reason}\n  next step: run the same command again; it downloads them anew")
    })?;
    remove(&wheels)?;
    remove(&partial.join("tmp"))?;
    fs::remove_file(partial.join("pip.log"))?;
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Bytes of all files under `folder`; files that vanish meanwhile count as nothing.
fn folder_size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => folder_size(&entry.path()),
        _ => entry.metadata().map_or(0, |data| data.len()),
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::tests_support::scratch;

    #[test]
    fn free_space_is_read_from_df() {
        let table = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/x 264212084 19490196 75795692 21% /\n";
        assert_eq!(free_kb(table), Some(75_795_692));
        assert_eq!(free_kb(""), None);
        assert!(capture(Command::new("df").args(["-Pk", "/"])).ok().and_then(|t| free_kb(&t)).is_some());
    }

    /// Makes a wheel of the given members with Python and returns its path.
    fn wheel(folder: &Path, name: &str, members: &[&str]) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        let path = folder.join(name);
        let script = "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1], 'w')\nfor m in sys.argv[2:]: z.writestr(m, m * 99)\nz.close()";
        capture(Command::new("python3").args(["-c", script]).arg(&path).args(members)).unwrap();
        path
    }

    #[test]
    fn only_headers_and_the_needed_libraries_are_unpacked() {
        let partial = scratch("unpack");
        let wheels = partial.join("wheels");
        fs::write(partial.join("pip.log"), "").unwrap();
        wheel(
            &wheels,
            "torch.whl",
            &[
                "torch/include/a/b.h",
                "torch/lib/libtorch_cpu.so",
                "torch/lib/libc10.so",
                "torch/lib/libtorch.so",
                "torch/lib/libtorch_cuda.so",
                "torch/x.py",
            ],
        );
        wheel(&wheels, "more.whl", &["torch.libs/libgomp.so.1", "n/lib/libcudart.so.13", "n/lib/libcupti.so.13", "n/include/no.h"]);
        unpack(Path::new("python3"), &partial, &LIBTORCH).unwrap();
        let mut libraries: Vec<String> =
            fs::read_dir(partial.join("lib")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        libraries.sort();
        assert_eq!(libraries, ["libc10.so", "libcudart.so.13", "libcupti.so.13", "libgomp.so.1", "libtorch.so", "libtorch_cpu.so"]);
        assert!(partial.join("include/a/b.h").exists());
        let mut left: Vec<String> = fs::read_dir(&partial).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["include", "lib"], "wheels and logs are removed");
    }

    #[test]
    fn a_broken_or_incomplete_wheel_is_named() {
        let partial = scratch("broken");
        let wheels = partial.join("wheels");
        let path = wheel(&wheels, "torch.whl", &["torch/lib/libc10.so"]);
        let error = unpack(Path::new("python3"), &partial, &LIBTORCH).unwrap_err().to_string();
        assert!(error.contains("the wheels lack libcudart.so.13, libcupti.so.13, libgomp.so.1"), "{error}");
        let mut bytes = fs::read(&path).unwrap();
        bytes[60] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = unpack(Path::new("python3"), &partial, &LIBTORCH).unwrap_err().to_string();
        assert!(error.contains("torch.whl is broken: Bad CRC-32") && error.contains("next step"), "{error}");
    }
}
