//! The report's tables about size, memory and time.

use eval::{LatencyRow, PeakMemory, Timings};

use super::format;
use super::tables::Table;
use crate::results::{Results, Role};

/// `median (q1 to q3)`.
fn latency(row: Option<&LatencyRow>) -> String {
    row.map_or("–".into(), |l| format!("{} ({} to {})", format::seconds(l.median_s), format::seconds(l.q1_s), format::seconds(l.q3_s)))
}

/// The memory that counts: the GPU's where there is one.
pub(super) fn memory(peak: Option<PeakMemory>) -> String {
    peak.map_or("–".into(), |p| format::bytes(p.device_bytes.unwrap_or(p.resident_bytes)))
}

/// Parameters, MACs, files and memory; files and memory say nothing where they were not measured.
pub(super) fn size_table(results: &Results, timings: Option<&Timings>) -> Option<Table> {
    let head = [
        "U-Net",
        "parameters",
        "share",
        "MACs",
        "share",
        "weight file",
        "files of the whole model",
        "peak memory, calls alone",
        "peak memory, drawing an image",
    ];
    let on_gpu = timings.is_some_and(|t| t.footprints.iter().any(|f| f.call.is_some_and(|p| p.device_bytes.is_some())));
    let place = if on_gpu { "the GPU’s memory that it takes" } else { "resident memory, the program included" };
    let caption = format!("Size and memory; each peak is that of a fresh process, loading included ({place})");
    let mut table = Table::new(&caption, &head);
    let teacher = results.teacher()?;
    for u in &results.unets {
        let found = timings.and_then(|t| t.footprint_of(&u.names()));
        table.push(
            u.role == Role::Teacher,
            vec![
                u.label.clone(),
                format::count(u.params),
                format::share(u.params, teacher.params),
                format::macs(u.macs),
                format::share(u.macs, teacher.macs),
                found.map_or("–".into(), |f| format::bytes(f.unet_file_bytes)),
                found.and_then(|f| f.model_file_bytes).map_or("–".into(), format::bytes),
                memory(found.and_then(|f| f.call)),
                memory(found.and_then(|f| f.image)),
            ],
        );
    }
    Some(table)
}

/// Latency of calls and images, teacher and students timed in turns; none where nothing was timed.
pub(super) fn speed_table(results: &Results, timings: Option<&Timings>) -> Option<Table> {
    let timings = timings.filter(|t| !t.latency.is_empty())?;
    let of_image = timings.image.as_ref().map(|p| {
        let [h, w] = p.size;
        format!("; one image is {h}×{w} pixels, {} steps of {}, guidance {}, from prompt to pixels", p.steps, p.sampler, p.guidance)
    });
    let caption = format!(
        "Speed, teacher and students timed in turns: medians with quartiles{}; a retrained student has the times of its plan",
        of_image.unwrap_or_default()
    );
    let head = ["U-Net", "one U-Net call", "times as fast", "calls", "one image", "times as fast", "images"];
    let mut table = Table::new(&caption, &head);
    for u in &results.unets {
        let (call, image) = (timings.call_of(&u.names()), timings.image_of(&u.names()));
        let fast = |row: Option<&LatencyRow>| row.map_or("–".into(), |l| format!("{:.2}", l.speedup));
        table.push(
            u.role == Role::Teacher,
            vec![
                u.label.clone(),
                latency(call),
                fast(call),
                call.map_or("–".into(), |l| format!("{} of batch {}", l.n, l.batch)),
                latency(image),
                fast(image),
                image.map_or("–".into(), |l| l.n.to_string()),
            ],
        );
    }
    Some(table)
}

/// The machine, key by key.
pub(super) fn hardware(timings: &Timings) -> Vec<[String; 2]> {
    let h = &timings.hardware;
    let pair = |key: &str, value: String| [key.to_owned(), value];
    vec![
        pair("platform", h.platform.clone()),
        pair("processor", format!("{}, {} logical", h.cpu, h.logical_cpus)),
        pair("libtorch threads", h.torch_threads.to_string()),
        pair("memory", h.memory_bytes.map_or("unknown".into(), format::bytes)),
        pair("device", h.device.clone()),
    ]
}

/// Wall-clock time per stage with the sum; empty without timings.
pub(super) fn stage_table(timings: Option<&Timings>) -> Table {
    let mut table = Table::new("Time of each stage", &["stage", "wall-clock time", "highest memory of the process"]);
    let Some(timings) = timings else { return table };
    for s in &timings.stages {
        table.push(false, vec![s.stage.clone(), format::seconds(s.seconds), s.peak_rss_bytes.map_or("–".into(), format::bytes)]);
    }
    if !timings.stages.is_empty() {
        table.push(true, vec!["all".into(), format::seconds(timings.stages.iter().map(|s| s.seconds).sum()), String::new()]);
    }
    table
}
