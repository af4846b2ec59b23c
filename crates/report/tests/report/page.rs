//! The page and the Markdown of a made-up run.

use report::{Error, Role, RunReport, assess, render_html, render_markdown, render_model_card, render_runs_html, render_runs_markdown};

use crate::run;
use crate::support::timings;

/// Every attribute value and CSS reference that could make a browser fetch something.
fn fetched(html: &str) -> Vec<String> {
    let mut found = Vec::new();
    for key in ["src=\"", "href=\"", "srcset=\"", "action=\"", "data=\"", "poster=\"", "url(", "@import"] {
        for (at, _) in html.match_indices(key) {
            let rest = &html[at + key.len()..];
            found.push(rest[..rest.find(['"', ')']).unwrap_or(0)].to_owned());
        }
    }
    found
}

#[test]
fn the_page_holds_everything_and_fetches_nothing() {
    let (dir, results) = run();
    let html = render_html(&results, Some(&timings()), dir.path()).unwrap();
    let fetched = fetched(&html);
    let images = fetched.iter().filter(|u| u.starts_with("data:image/png;base64")).count();
    assert_eq!(images, 24, "six prompts by four U-Nets");
    assert!(fetched.iter().all(|u| u.starts_with('#') || u.starts_with("data:image/")), "{fetched:?}");
    // The SVG namespace is a name, not an address that is fetched.
    let rest = html.replace("http://www.w3.org/2000/svg", "");
    assert!(!rest.contains("http://") && !rest.contains("https://") && !html.contains("<link") && !html.contains("import("));
    for layer in results.layers() {
        assert!(html.contains(&format!("aria-label=\"{}: ", layer.id)), "{} is in the drawing", layer.id);
    }
    for id in ["summary", "unet", "scores", "additivity", "plans", "distillation", "quality", "images", "run"] {
        assert!(html.contains(&format!("<section id=\"{id}\"")), "{id}");
    }
    let removed = results.headline().unwrap().plan.removed.len();
    assert_eq!(html.matches("class=\"cell gone").count(), removed, "the headline plan is drawn without script");
    assert_eq!(html.matches("<table").count(), html.matches("<caption").count(), "every table has a caption");
    assert_eq!(html.matches("<img ").count(), html.matches("alt=\"").count(), "every image has a text");
    let charts: Vec<&str> = html.split("<svg role=\"img\"").skip(1).collect();
    assert!(charts.len() > 10 && charts.iter().all(|c| c[c.find('>').unwrap()..].starts_with("><title>")), "every chart has a title");
    for command in &results.provenance.commands {
        assert!(html.contains(&command.line.replace('/', "&#x2f;")), "minijinja also escapes slashes");
    }
}

/// The texts of all cells in the row that begins with `first` and has `second` next, in the table with this caption.
fn row<'a>(html: &'a str, caption: &str, first: &str) -> Vec<&'a str> {
    let table = html.split("<table").find(|t| t.contains(&format!("<caption>{caption}"))).unwrap_or_else(|| panic!("no table {caption}"));
    let row = table.split("<tr").find(|r| r.contains(&format!(">{first}</th>"))).unwrap_or_else(|| panic!("no row {first}"));
    row.split("<td").skip(1).map(|cell| &cell[cell.find('>').unwrap() + 1..cell.find("</td>").unwrap()]).collect()
}

#[test]
fn size_memory_and_speed_are_told_of_every_unet() {
    let (dir, results) = run();
    let html = render_html(&results, Some(&timings()), dir.path()).unwrap();
    let size = row(&html, "Size and memory", "teacher");
    assert_eq!(size[4..], ["3.81 MiB", "6.81 MiB", "171 MiB", "201 MiB"]);
    // A student that was not timed has the shape, and so the times and the memory, of its plan.
    let size = row(&html, "Size and memory", "normalized features");
    assert_eq!(size[4..], ["1.91 MiB", "4.91 MiB", "152 MiB", "182 MiB"]);
    let speed = row(&html, "Speed", "normalized features");
    assert_eq!(speed, ["30.2 ms (29.3 ms to 31.4 ms)", "1.60", "40 of batch 1", "1.22 s (1.20 s to 1.26 s)", "1.58", "3"]);
    let markdown = render_markdown(&results, Some(&timings()));
    assert!(markdown.contains("## Size and memory") && markdown.contains("1.22 s (1.20 s to 1.26 s)"), "{markdown}");
    let card = render_model_card(&results, Some(&timings()), "normalized").unwrap();
    assert!(card.contains("takes 1.22 s there: 1.58 times as fast") && card.contains("1.91 MiB") && card.contains("182 MiB"), "{card}");
    // Without times there is no table of them, and no number in the other.
    let html = render_html(&results, None, dir.path()).unwrap();
    assert!(!html.contains("<caption>Speed") && row(&html, "Size and memory", "teacher")[4..] == ["–"; 4]);
}

#[test]
fn bins_front_categories_and_configuration_are_on_the_page() {
    let (dir, mut results) = run();
    let html = render_html(&results, None, dir.path()).unwrap();
    let chart = |title: &str| {
        html.split("<svg role=\"img\"").find(|c| c.contains(&format!("<title>{title}"))).unwrap().split("</svg>").next().unwrap()
    };
    // One mark and one bar for every layer in every bin that has samples.
    let bins = results.criteria[0].bins().unwrap();
    let filled = bins.means.iter().flatten().flatten().count();
    let of_bins = chart("output loss of every layer by timestep bin");
    assert_eq!((of_bins.matches("class=\"mark").count(), of_bins.matches("class=\"bar").count()), (filled, filled));
    assert!(of_bins.contains("t 800–999"));
    let front = chart("Predicted and measured joint output loss");
    // Every plan twice: hollow as predicted, filled as measured.
    assert_eq!((front.matches(" hollow\"").count(), front.matches("class=\"mark").count()), (results.plans.len(), 2 * results.plans.len()));
    assert!(front.contains("<polyline class=\"front\""));
    let told = row(&html, "Quality by category", "animals");
    assert_eq!(told[..3], ["CLIP score", "teacher", "48"]);
    assert!(html.contains("distill&#x2f;plain&#x2f;distill.json") && html.contains("&quot;steps&quot;: 1000"));
    // A run may have none of these.
    (results.front, results.by_category) = (None, Vec::new());
    results.provenance.config.clear();
    assert!(render_html(&results, None, dir.path()).unwrap().contains("by timestep bin"));
}

#[test]
fn several_runs_stand_side_by_side() {
    let (dir, results) = run();
    let (other_dir, mut other) = run();
    other.protocol.as_mut().unwrap().steps = 30;
    let times = timings();
    let one = RunReport { name: "a", results: &results, timings: Some(&times), dir: dir.path() };
    let two = RunReport { name: "b", results: &other, timings: None, dir: other_dir.path() };
    let html = render_runs_html("Two runs", &[one, two]).unwrap();
    assert!(html.contains("<h1>Two runs</h1>") && html.contains("differ in sampling"), "what keeps them apart is told");
    let all = |caption: &str| {
        html.split("<table").find(|t| t.contains(&format!("<caption>{caption}"))).unwrap().split("</table>").next().unwrap()
    };
    for caption in ["Size and speed of all U-Nets", "Quality of all U-Nets"] {
        assert_eq!(all(caption).matches("<tr").count(), 1 + 8, "{caption}: a row for each of four U-Nets of two runs");
    }
    assert_eq!(row(&html, "The runs", "b")[9], "ddim, 30 steps, guidance 3");
    // Every id once, and every link leads somewhere.
    let mut ids: Vec<&str> = html.split(" id=\"").skip(1).map(|rest| &rest[..rest.find('"').unwrap()]).collect();
    for link in fetched(&html).iter().filter_map(|u| u.strip_prefix('#')) {
        assert!(ids.contains(&link), "#{link}");
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
    assert_eq!(html.matches("data-part=\"drawing-data\"").count(), 2);
    let levels: Vec<u8> =
        html.match_indices("<h").map(|(at, _)| html.as_bytes()[at + 2]).filter(u8::is_ascii_digit).map(|digit| digit - b'0').collect();
    assert!(levels[0] == 1 && levels.windows(2).all(|w| w[1] <= w[0] + 1), "{levels:?}");
    assert!(render_runs_html("x", &[one, one]).unwrap_err().to_string().contains("`a` twice"));
    assert!(render_runs_html("x", &[]).is_err());

    let text = render_runs_markdown("Two runs", &[one, two]);
    assert!(text.starts_with("# Two runs\n") && text.contains("## Size and speed of all runs") && text.contains("\n## b\n"), "{text}");
    assert_eq!(text.lines().filter(|l| l.starts_with("# ")).count(), 1);
}

#[test]
fn foreign_text_cannot_become_markup() {
    let (dir, mut results) = run();
    let evil = "</script><script>alert(1)</script>\"'&";
    results.title = evil.into();
    results.criteria[0].label = evil.into();
    results.plans[0].label = evil.into();
    results.gallery.as_mut().unwrap().rows[0].prompt = evil.into();
    results.distillations[0].terms[0] = evil.into();
    let html = render_html(&results, None, dir.path()).unwrap();
    assert!(!html.contains("<script>alert"), "escaped everywhere");
    assert_eq!(html.matches("</script>").count(), 2);
}

#[test]
fn a_run_that_stopped_after_scoring_has_a_page_too() {
    let (dir, mut results) = run();
    results.audit = None;
    results.plans.clear();
    results.headline_plan = None;
    results.distillations.clear();
    results.protocol = None;
    results.metrics.clear();
    results.unets.clear();
    results.comparisons.clear();
    results.by_category.clear();
    results.front = None;
    results.gallery = None;
    results.claims = assess(&results);
    assert!(results.claims.is_empty());
    let html = render_html(&results, None, dir.path()).unwrap();
    assert!(html.contains("id=\"scores\"") && !html.contains("id=\"plans\"") && !html.contains("id=\"quality\""));
    results.criteria.clear();
    assert!(render_html(&results, None, dir.path()).is_ok());
    assert!(render_markdown(&results, None).starts_with("# LAPTOP-Diff"));
}

#[test]
fn a_missing_image_is_named() {
    let (dir, results) = run();
    std::fs::remove_file(dir.path().join("images/plain-2.png")).unwrap();
    let err = render_html(&results, None, dir.path()).unwrap_err();
    assert!(matches!(&err, Error::Io { path, .. } if path.ends_with("images/plain-2.png")), "{err}");
}

#[test]
fn the_page_is_the_same_every_time() {
    let (dir, results) = run();
    let page = || render_html(&results, Some(&timings()), dir.path()).unwrap();
    assert_eq!(page(), page());
}

#[test]
fn markdown_tables_have_equal_rows_and_all_claims() {
    let (_dir, results) = run();
    let text = render_markdown(&results, Some(&timings()));
    let mut columns = None;
    for line in text.lines() {
        let n = line.starts_with('|').then(|| line.matches('|').count());
        assert!(n.is_none() || columns.is_none() || n == columns, "{line}");
        columns = n;
    }
    assert!(results.claims.iter().all(|c| text.contains(&c.statement)));
    assert!(text.contains("| **30 % – output loss, exact** |"), "the best plan is bold");
}

#[test]
fn a_model_card_tells_what_went_what_it_costs_and_how_it_was_made() {
    let (_dir, results) = run();
    let student = results.unets.iter().find(|u| u.role == Role::Student).unwrap();
    let card = render_model_card(&results, Some(&timings()), &student.name).unwrap();
    assert!(card.starts_with("---\nlibrary_name: diffusers\n"), "{card}");
    let plan = results.plan(student.plan.as_deref().unwrap()).unwrap();
    assert!(plan.plan.removed.iter().all(|layer| card.contains(&format!("- `{layer}`"))), "{card}");
    for info in results.metrics.iter().filter(|m| student.metric(&m.id).is_some()) {
        assert!(card.contains(&format!("| {} |", info.label)), "{}: {card}", info.label);
    }
    for word in ["## Retraining", "## Commands", "Licence", results.model.unet_sha256.as_str()] {
        assert!(card.contains(word), "{word}: {card}");
    }
    let err = render_model_card(&results, None, "teacher").unwrap_err().to_string();
    assert!(err.contains("`unets`") && err.contains(&student.name), "{err}");
}
