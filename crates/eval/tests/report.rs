//! The results file, the page and the markdown of a made-up run.

mod sample;

use eval::{
    Error, FeatureLoss, Outcome, PlanRow, PublishedDecline, PublishedFile, Results, Role, RunReport, Verdict, Versioned, assess,
    render_html, render_markdown, render_model_card, render_runs_html, render_runs_markdown,
};
use std::path::Path;
use tempfile::TempDir;

fn run() -> (TempDir, Results) {
    let dir = tempfile::tempdir().unwrap();
    let results = sample::results([0, 1, 2], dir.path());
    (dir, results)
}

#[test]
fn results_are_written_whole_and_read_back_to_the_same_bytes() {
    let (dir, results) = run();
    let (a, b) = (dir.path().join("a.json"), dir.path().join("b.json"));
    results.write(&a).unwrap();
    let back = Results::read(&a).unwrap();
    assert_eq!(back, results);
    back.write(&b).unwrap();
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(files.len(), 3, "no temporary file is left: {files:?}");
}

#[test]
fn foreign_damaged_and_newer_files_are_refused_with_the_key() {
    let (dir, results) = run();
    let path = dir.path().join("results.json");
    results.write(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let refused = |text: &str| Results::parse(text, Path::new("results.json")).unwrap_err();
    let err = refused(&text.replacen("\"version\": 1", "\"version\": 9", 1));
    assert!(matches!(&err, Error::Version { key, got, .. } if key == "version" && got == "9"), "{err}");
    let err = refused(&text.replacen("laptop-diff/results", "laptop-diff/plan", 1));
    assert!(matches!(&err, Error::Version { key, .. } if key == "format"), "{err}");
    assert!(matches!(refused("{}"), Error::Version { got, .. } if got == "nothing"));
    assert!(matches!(refused(&text[..text.len() / 2]), Error::Format { .. }));
    let err = refused(&text.replacen("\"prediction_type\"", "\"prediction_kind\"", 1));
    assert!(err.to_string().contains("prediction_type"), "{err}");
    assert!(matches!(Results::read(&dir.path().join("none.json")), Err(Error::Io { .. })));
}

#[test]
fn contradictions_are_found_before_anything_is_written() {
    let (dir, results) = run();
    let path = dir.path().join("bad.json");
    let refused = |change: &dyn Fn(&mut Results)| {
        let mut bad = results.clone();
        change(&mut bad);
        let err = bad.write(&path).unwrap_err().to_string();
        assert!(!path.exists(), "{err}");
        err
    };
    assert!(refused(&|r| r.plans[0].removed.push("mid_block.resnets.7".into())).contains("`mid_block.resnets.7`"));
    assert!(refused(&|r| r.headline_plan = Some("none".into())).contains("headline_plan"));
    assert!(refused(&|r| r.criteria[1].scores.swap(0, 1)).contains("criteria.task-loss"));
    assert!(refused(&|r| r.distillations[0].curve[3].terms.truncate(2)).contains("feature terms"));
    assert!(refused(&|r| r.unets[0].role = Role::Student).contains("the teacher first"));
    assert!(refused(&|r| r.unets[1].name = "teacher".into()).contains("twice"));
    assert!(refused(&|r| r.gallery.as_mut().unwrap().rows[0].cells.truncate(1)).contains("4 pictures"));
    assert!(refused(&|r| r.criteria[0].scores[0].mean = f64::NAN).contains("not finite"));
    assert!(refused(&|r| r.plans[0].predicted = Some(f64::INFINITY)).contains("not finite"));
    assert!(refused(&|r| r.version = 2).contains("version") || refused(&|r| r.version = 2).contains("format"));
}

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
    let html = render_html(&results, Some(&sample::timings()), dir.path()).unwrap();
    let fetched = fetched(&html);
    let pictures = fetched.iter().filter(|u| u.starts_with("data:image/png;base64")).count();
    assert_eq!(pictures, 24, "six prompts by four U-Nets");
    assert!(fetched.iter().all(|u| u.starts_with('#') || u.starts_with("data:image/")), "{fetched:?}");
    // The SVG namespace is a name, not an address that is fetched.
    let rest = html.replace("http://www.w3.org/2000/svg", "");
    assert!(!rest.contains("http://") && !rest.contains("https://") && !html.contains("<link") && !html.contains("import("));
    for layer in &results.layers {
        assert!(html.contains(&format!("aria-label=\"{}: ", layer.id)), "{} is in the drawing", layer.id);
    }
    for id in ["summary", "unet", "scores", "additivity", "plans", "distillation", "quality", "pictures", "run"] {
        assert!(html.contains(&format!("<section id=\"{id}\"")), "{id}");
    }
    let removed = results.headline().unwrap().removed.len();
    assert_eq!(html.matches("class=\"cell gone").count(), removed, "the headline plan is drawn without script");
    assert_eq!(html.matches("<table").count(), html.matches("<caption").count(), "every table has a caption");
    assert_eq!(html.matches("<img ").count(), html.matches("alt=\"").count(), "every picture has a text");
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
    let html = render_html(&results, Some(&sample::timings()), dir.path()).unwrap();
    let size = row(&html, "Size and memory", "teacher");
    assert_eq!(size[4..], ["3.81 MiB", "6.81 MiB", "171 MiB", "201 MiB"]);
    // A student that was not timed has the shape, and so the times and the memory, of its plan.
    let size = row(&html, "Size and memory", "normalized features");
    assert_eq!(size[4..], ["1.91 MiB", "4.91 MiB", "152 MiB", "182 MiB"]);
    let speed = row(&html, "Speed", "normalized features");
    assert_eq!(speed, ["30.2 ms (29.3 ms to 31.4 ms)", "1.60", "40 of batch 1", "1.22 s (1.20 s to 1.26 s)", "1.58", "3"]);
    let markdown = render_markdown(&results, Some(&sample::timings()));
    assert!(markdown.contains("## Size and memory") && markdown.contains("1.22 s (1.20 s to 1.26 s)"), "{markdown}");
    let card = render_model_card(&results, Some(&sample::timings()), "normalized").unwrap();
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
    let bins = results.criteria[0].bins.as_ref().unwrap();
    let filled = bins.means.iter().flatten().flatten().count();
    let of_bins = chart("output loss of every layer by timestep bin");
    assert_eq!((of_bins.matches("class=\"mark").count(), of_bins.matches("class=\"bar").count()), (filled, filled));
    assert!(of_bins.contains("t 801–1000"));
    let front = chart("Predicted and measured joint output loss");
    // Every plan twice: hollow as predicted, filled as measured.
    assert_eq!((front.matches(" hollow\"").count(), front.matches("class=\"mark").count()), (results.plans.len(), 2 * results.plans.len()));
    assert!(front.contains("<polyline class=\"front\""));
    let told = row(&html, "Quality by category", "animals");
    assert_eq!(told[..3], ["CLIP score", "teacher", "48"]);
    assert!(html.contains("distill&#x2f;plain&#x2f;distill.json") && html.contains("&quot;steps&quot;: 1000"));
    // A file of an earlier version has none of these.
    let mut json: serde_json::Value = serde_json::to_value(&results).unwrap();
    json.as_object_mut().unwrap().retain(|key, _| key != "front" && key != "by_category");
    json["criteria"][0]["bins"].as_object_mut().unwrap().retain(|key, _| key != "ses");
    json["provenance"].as_object_mut().unwrap().retain(|key, _| key != "config");
    let older = Results::parse(&json.to_string(), Path::new("results.json")).unwrap();
    assert!(older.front.is_none() && render_html(&older, None, dir.path()).unwrap().contains("by timestep bin"));
    results.criteria[0].bins.as_mut().unwrap().ses.pop();
    assert!(render_html(&results, None, dir.path()).unwrap_err().to_string().contains("criteria.output-loss.bins"));
}

#[test]
fn several_runs_stand_side_by_side() {
    let (dir, results) = run();
    let (other_dir, mut other) = run();
    other.protocol.as_mut().unwrap().steps = 30;
    let timings = sample::timings();
    let one = RunReport { name: "a", results: &results, timings: Some(&timings), dir: dir.path() };
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
    results.audits.clear();
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
    results.layers.clear();
    assert!(render_html(&results, None, dir.path()).is_ok());
    assert!(render_markdown(&results, None).starts_with("# LAPTOP-Diff"));
}

#[test]
fn a_refinement_that_found_nothing_is_not_counted_twice() {
    let (_dir, mut results) = run();
    let evidence = |r: &Results| assess(r).into_iter().find(|c| c.id == "best-criterion").unwrap().evidence;
    let before = evidence(&results);
    let own = results.plans.iter().find(|p| p.method == "exact" && p.criterion.as_ref() == Some(&results.criteria[0].criterion)).unwrap();
    let again = PlanRow { name: "refined".into(), ..own.clone() };
    results.plans.push(again);
    assert_eq!(evidence(&results), before);
}

#[test]
fn published_declines_stand_beside_those_of_the_run() {
    let (dir, mut results) = run();
    assert!(!render_markdown(&results, None).contains("Published"));
    let metric = results.metrics[0].id.clone();
    let published =
        PublishedDecline { name: "others at half size".into(), metric, ratio: 0.5, decline_percent: 8.2, source: "a paper".into() };
    results.published = vec![published.clone()];
    let text = render_markdown(&results, None);
    let rows: Vec<&str> =
        text.lines().skip_while(|line| !line.starts_with("## Published")).take_while(|line| !line.starts_with("## St")).collect();
    assert!(rows.iter().any(|row| row.contains("others at half size") && row.contains("| 8.2 |") && row.contains("a paper")));
    let own = results.unets.iter().filter(|unet| unet.metric(&published.metric).is_some_and(|m| m.decline.is_some())).count();
    assert!(own > 0 && rows.iter().filter(|row| row.contains("this run")).count() == own, "{rows:?}");
    assert!(render_html(&results, None, dir.path()).unwrap().contains("others at half size"));

    let file = dir.path().join("published.json");
    let write = |ratio| {
        let results = vec![PublishedDecline { ratio, ..published.clone() }];
        PublishedFile { format: PublishedFile::FORMAT.into(), version: PublishedFile::VERSION, results }.write(&file)
    };
    assert!(write(50.0).unwrap_err().to_string().contains("between 0 and 1"));
    write(0.5).unwrap();
    assert_eq!(PublishedFile::read(&file).unwrap().results, [published]);
}

#[test]
fn a_missing_picture_is_named() {
    let (dir, results) = run();
    std::fs::remove_file(dir.path().join("pictures/plain-2.png")).unwrap();
    let err = render_html(&results, None, dir.path()).unwrap_err();
    assert!(matches!(&err, Error::Io { path, .. } if path.ends_with("pictures/plain-2.png")), "{err}");
}

#[test]
fn the_page_is_the_same_every_time() {
    let (dir, results) = run();
    let page = || render_html(&results, Some(&sample::timings()), dir.path()).unwrap();
    assert_eq!(page(), page());
}

#[test]
fn markdown_tables_have_equal_rows_and_all_claims() {
    let (_dir, results) = run();
    let text = render_markdown(&results, Some(&sample::timings()));
    let mut columns = None;
    for line in text.lines() {
        let n = line.starts_with('|').then(|| line.matches('|').count());
        assert!(n.is_none() || columns.is_none() || n == columns, "{line}");
        columns = n;
    }
    assert!(results.claims.iter().all(|c| text.contains(&c.statement)));
    assert!(text.contains("| **30 % – output loss, exact** |"), "the best plan is bold");
}

fn outcome(results: &Results, id: &str) -> Outcome {
    assess(results).into_iter().find(|c| c.id == id).unwrap().outcome
}

#[test]
fn claims_follow_their_rules_in_both_directions() {
    let (_dir, mut r) = run();
    assert_eq!(outcome(&r, "additivity-rank"), Outcome::Held);
    r.audits[0].stats[0].spearman = Some(0.75);
    assert_eq!(outcome(&r, "additivity-rank"), Outcome::Partly);
    r.audits[0].stats[0].pearson = Some(0.2);
    assert_eq!(outcome(&r, "additivity-rank"), Outcome::Failed);

    assert_eq!(outcome(&r, "additivity-size"), Outcome::Held);
    r.audits[0].stats[2].slope = Some(2.0);
    assert_eq!(outcome(&r, "additivity-size"), Outcome::Partly);

    let own = |p: &&mut eval::PlanRow| p.criterion.as_deref() == Some("output-loss");
    r.plans.iter_mut().filter(own).for_each(|p| p.measured.as_mut().unwrap().mean = 1e-3);
    assert_eq!(outcome(&r, "best-criterion"), Outcome::Held);
    r.plans.iter_mut().filter(own).for_each(|p| p.measured.as_mut().unwrap().mean = 9.0);
    assert_eq!(outcome(&r, "best-criterion"), Outcome::Failed);
    r.plans.iter_mut().filter(own).take(1).for_each(|p| p.measured.as_mut().unwrap().mean = 1e-3);
    assert_eq!(outcome(&r, "best-criterion"), Outcome::Partly);

    assert_eq!(outcome(&r, "imbalance"), Outcome::Held);
    let plain = r.distillations.iter().position(|d| d.feature_loss == FeatureLoss::Plain).unwrap();
    r.distillations[plain].curve.iter_mut().for_each(|p| p.terms.fill(1.0));
    assert_eq!(outcome(&r, "imbalance"), Outcome::Failed);

    r.comparisons.iter_mut().for_each(|c| c.verdict = Verdict::NotShown);
    assert_eq!(outcome(&r, "normalized-beats-plain"), Outcome::Open);
    r.comparisons[0].verdict = Verdict::Worse;
    assert_eq!(outcome(&r, "normalized-beats-plain"), Outcome::Failed);
    r.comparisons[1].verdict = Verdict::Better;
    assert_eq!(outcome(&r, "normalized-beats-plain"), Outcome::Partly);

    let student = r.unets.iter_mut().find(|u| u.name == "normalized").unwrap();
    student.metrics[0].decline.as_mut().unwrap().high = 0.039;
    assert_eq!(outcome(&r, "small-decline"), Outcome::Held);
}

#[test]
fn a_model_card_tells_what_went_what_it_costs_and_how_it_was_made() {
    let (_dir, results) = run();
    let student = results.unets.iter().find(|u| u.role == Role::Student).unwrap();
    let card = render_model_card(&results, Some(&sample::timings()), &student.name).unwrap();
    assert!(card.starts_with("---\nlibrary_name: diffusers\n"), "{card}");
    let plan = results.plan(student.plan.as_deref().unwrap()).unwrap();
    assert!(plan.removed.iter().all(|layer| card.contains(&format!("- `{layer}`"))), "{card}");
    for info in results.metrics.iter().filter(|m| student.metric(&m.id).is_some()) {
        assert!(card.contains(&format!("| {} |", info.label)), "{}: {card}", info.label);
    }
    for word in ["## Retraining", "## Commands", "Licence", results.model.unet_sha256.as_str()] {
        assert!(card.contains(word), "{word}: {card}");
    }
    let err = render_model_card(&results, None, "teacher").unwrap_err().to_string();
    assert!(err.contains("`unets`") && err.contains(&student.name), "{err}");
}
