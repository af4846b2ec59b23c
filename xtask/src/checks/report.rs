//! `cargo xtask check-report`: does the page work in a browser?
//!
//! Stands beside the data flow. Apart from `cargo xtask test`, because it installs a browser. The page forbids itself any request by its
//! content security policy, so a request that it tries, like a mistake of its script, is a message on the console, and any message
//! fails the check. Screenshots are left for people to look at.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{proc, setup};

/// Put at the end of a copy of the page: does what a reader does and leaves what came of it in the title.
const PROBE: &str = r#"<script>
window.addEventListener("load", () => setTimeout(() => {
  const wrong = [];
  const root = document.documentElement;
  if (root.scrollWidth > window.innerWidth) wrong.push(`the page is ${root.scrollWidth} wide on ${window.innerWidth}`);
  for (const e of document.querySelectorAll("img")) if (!e.alt || !e.src.startsWith("data:") || !e.naturalWidth) wrong.push("an image without text or content");
  for (const e of document.querySelectorAll("select, input")) if (!e.labels.length && !e.ariaLabel) wrong.push(`#${e.id} has no label`);
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map((h) => Number(h.tagName[1]));
  if (levels[0] !== 1 || levels.some((l, i) => i && l > levels[i - 1] + 1)) wrong.push(`headings ${levels}`);
  for (const e of document.querySelectorAll("nav a")) if (!document.querySelector(e.getAttribute("href"))) wrong.push(`${e.href} leads nowhere`);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) wrong.push("an id is there twice");
  const runs = [...document.querySelectorAll(".run-body")];
  if (!runs.length) wrong.push("no run");
  for (const run of runs) {
    const part = (name) => run.querySelector(`[data-part="${name}"]`);
    for (const e of run.querySelectorAll(".stage")) if (e.scrollWidth > e.clientWidth + 1) wrong.push("a stage of the drawing is cut off");
    const cells = [...run.querySelectorAll(".unet .cell")];
    cells[0].focus();
    cells[0].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    if (document.activeElement !== cells[1]) wrong.push("the arrow keys do not move in the drawing");
    const plan = part("plan-choice");
    if (plan && plan.options.length > 1) {
      const others = () => runs.filter((r) => r !== run).map((r) => r.querySelector(".unet").innerHTML).join();
      const before = [others(), run.querySelector(".unet").innerHTML];
      // Two plans may remove the same layers, but not all of them do.
      for (let next = 1; next < plan.options.length && run.querySelector(".unet").innerHTML === before[1]; next++) {
        plan.selectedIndex = (plan.selectedIndex + 1) % plan.options.length;
        plan.dispatchEvent(new Event("change"));
      }
      if (run.querySelector(".unet").innerHTML === before[1]) wrong.push("all plans draw the same");
      if (others() !== before[0]) wrong.push("a plan of one run changes another run's drawing");
    }
    const at = part("slide-at");
    if (at) {
      at.value = 20;
      at.dispatchEvent(new Event("input"));
      if (part("slide-over").style.clipPath !== "inset(0px 80% 0px 0px)") wrong.push("the slider does not move");
      const column = part("slide-column");
      const before = part("slide-under").src;
      column.selectedIndex = column.options.length - 1;
      column.dispatchEvent(new Event("change"));
      if (column.options.length > 1 && part("slide-under").src === before) wrong.push("the slider keeps its image");
      at.value = 50;
      at.dispatchEvent(new Event("input"));
    }
  }
  document.title = wrong.length ? `wrong: ${wrong.join("; ")}` : "checked";
}, 100));
</script>"#;

/// The ways of looking at it: name, and what the browser is told.
const VIEWS: [(&str, &[&str]); 3] = [
    ("light", &["--window-size=1280,6000", "--blink-settings=preferredColorScheme=1"]),
    ("dark", &["--window-size=1280,6000", "--blink-settings=preferredColorScheme=0"]),
    ("phone", &["--window-size=500,9000", "--blink-settings=preferredColorScheme=1"]),
];

/// Makes or takes a page, and opens it.
pub fn run(root: &Path, report: Option<PathBuf>, out: &Path, verbose: bool) -> Result<()> {
    let out = root.join(out);
    std::fs::create_dir_all(&out).with_context(|| format!("{} cannot be made", out.display()))?;
    // One run and several side by side.
    let pages = match report {
        Some(page) => vec![page],
        None => {
            setup::run(root, verbose)?;
            let mut sample = proc::cargo(root, &["run", "--package", "report", "--example", "sample_report", "--"]);
            proc::run(sample.arg(&out))?;
            vec![out.join("report.html"), out.join("runs.html")]
        }
    };
    let browser = browser()?;
    for page in &pages {
        check(&browser, page, &out)?;
    }
    println!("no message, no request; look at *-light.png, *-dark.png, *-phone.png and *-print.pdf in {}", out.display());
    Ok(())
}

/// Opens one page in every way.
fn check(browser: &Path, page: &Path, out: &Path) -> Result<()> {
    let text = std::fs::read_to_string(page).with_context(|| format!("{} cannot be read", page.display()))?;
    let probed = out.join("probed.html");
    std::fs::write(&probed, text.replace("</body>", &format!("{PROBE}</body>")))?;
    let stem = page.file_stem().unwrap_or_default().to_string_lossy();
    for (name, view) in VIEWS {
        let dom = open(browser, out, &probed, &[view, &["--dump-dom"]].concat())?;
        let title = dom.split("<title>").nth(1).and_then(|t| t.split("</title>").next()).unwrap_or("no title");
        if title != "checked" {
            bail!("{}, {name}: {title}", page.display());
        }
        let image = format!("--screenshot={}", out.join(format!("{stem}-{name}.png")).display());
        open(browser, out, page, &[view, &[image.as_str()]].concat())?;
    }
    let printed = format!("--print-to-pdf={}", out.join(format!("{stem}-print.pdf")).display());
    open(browser, out, page, &["--no-pdf-header-footer", &printed])?;
    Ok(())
}

/// Debian's chromium, installed where it is missing.
fn browser() -> Result<PathBuf> {
    let found = || ["chromium", "chromium-browser"].iter().find(|name| proc_exists(name)).map(PathBuf::from);
    if let Some(browser) = found() {
        return Ok(browser);
    }
    eprintln!("check-report: installing Debian's package chromium");
    proc::run(Command::new("apt-get").args(["install", "--yes", "--no-install-recommends", "chromium"]))?;
    found().context("no chromium after its package was installed")
}

fn proc_exists(name: &str) -> bool {
    Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success())
}

/// Opens `page` and gives what the browser prints; any message on the page's console is an error.
fn open(browser: &Path, out: &Path, page: &Path, args: &[&str]) -> Result<String> {
    let page = page.canonicalize().with_context(|| format!("{} is not there", page.display()))?;
    let mut command = Command::new(browser);
    command.args([
        "--headless",
        "--disable-gpu",
        "--no-sandbox",
        "--no-first-run",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
    ]);
    command.arg(format!("--user-data-dir={}", out.join("profile").display())).args(args).arg(format!("file://{}", page.display()));
    let done = command.output().context("the browser does not start")?;
    let log = String::from_utf8_lossy(&done.stderr);
    if let Some(message) = log.lines().find(|l| l.contains("CONSOLE")) {
        bail!("the page says on the console: {message}");
    }
    if !done.status.success() {
        bail!("the browser failed ({}): {}", done.status, log.lines().last().unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
