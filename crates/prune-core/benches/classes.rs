//! The hard classes of the knapsack literature (Pisinger 2005, doi 10.1016/j.cor.2004.03.002), graphs of `requires`, and language
//! models under several limits: time, gap and proof of every search, as a table. With a folder as argument, the instances are also
//! written as JSON for `benches/rivals.py`, which solves them by other programs.
//!
//! `cargo bench -p prune-core --bench classes [-- FOLDER]`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use prune_core::search::{Resource, SearchOptions, Solution};
use prune_core::{Budget, Constraints, Error, LayerId, LayerTable, Limit, Problem, Scores};
use serde_json::{Value, json};

/// Time on a processor, where the system tells it (Linux), so that other work on the machine does not count; else on the wall.
struct Clock(Option<u64>, Instant);

impl Clock {
    fn start() -> Self {
        Self(Self::spent(), Instant::now())
    }

    fn spent() -> Option<u64> {
        std::fs::read_to_string("/proc/self/schedstat").ok()?.split(' ').next()?.parse().ok()
    }

    fn ms(&self) -> f64 {
        let wall = self.1.elapsed().as_secs_f64() * 1e3;
        // The system counts in ticks of some milliseconds.
        match (self.0, Self::spent()) {
            (Some(start), Some(now)) if wall > 20.0 => (now - start) as f64 / 1e6,
            _ => wall,
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// Largest cost.
const R: u64 = 1_000_000;

const CLASSES: [&str; 14] = [
    "log-normal",
    "transformer",
    "uncorrelated",
    "weakly",
    "almost strongly",
    "strongly",
    "inverse strongly",
    "subset-sum",
    "even-odd",
    "profit ceiling",
    "circle",
    "similar weights",
    "spanner, uncorrelated",
    "spanner, strongly",
];

/// (cost, score) of each layer.
fn class(name: &str, n: usize, random: &mut Random) -> Vec<(u64, f64)> {
    let spanner: Vec<(u64, u64)> = (0..2)
        .map(|_| {
            let cost = random.between(1, R);
            let score = if name.ends_with("strongly") { cost + R / 10 } else { random.between(1, R) };
            (cost.div_ceil(5), score.div_ceil(5))
        })
        .collect();
    let mut layer = |at: usize| {
        let cost = random.between(1, R);
        match name {
            "log-normal" => (cost, (random.normal() * 1.5).exp()),
            "transformer" => ([4_194_304, 8_388_608, 12_582_912][at % 3], (random.normal() * 1.5).exp()),
            "uncorrelated" => (cost, random.between(1, R) as f64),
            "weakly" => (cost, random.between(cost.saturating_sub(R / 10).max(1), cost + R / 10) as f64),
            "almost strongly" => (cost, random.between(cost + R / 10 - R / 500, cost + R / 10 + R / 500) as f64),
            "strongly" => (cost, (cost + R / 10) as f64),
            "inverse strongly" => (cost + R / 10, cost as f64),
            "subset-sum" => (cost, cost as f64),
            "even-odd" => (2 * cost.div_ceil(2), (2 * cost.div_ceil(2) + R / 10) as f64),
            "profit ceiling" => (cost, (3 * cost.div_ceil(3)) as f64),
            "circle" => {
                let x = cost as f64 - 2.0 * R as f64;
                (cost, (2.0 / 3.0 * (4.0 * (R * R) as f64 - x * x).sqrt()).round())
            }
            "similar weights" => (100_000 + cost % 101, random.between(1, 1000) as f64),
            _ => {
                let (base, times) = (spanner[at % 2], random.between(1, 10));
                (base.0 * times, (base.1 * times) as f64)
            }
        }
    };
    (0..n).map(&mut layer).collect()
}

fn id(at: usize) -> LayerId {
    format!("layers.{at:05}").into()
}

fn scores(rows: &[(u64, f64)]) -> Result<Scores, Error> {
    let table = rows.iter().enumerate().fold(LayerTable::builder(), |table, (at, row)| table.layer(id(at), row.0));
    Scores::from_values(&table.build()?, "loss", rows.iter().enumerate().map(|(at, row)| (id(at), row.1)))
}

fn row(name: &str, n: usize, started: Clock, solution: &Solution) {
    let value = solution.plan.predicted.unwrap_or(f64::NAN);
    let gap = if solution.gap == 0.0 { "proven".to_owned() } else { format!("{:.1e}", solution.gap / value.abs()) };
    println!("| {name} | {n} | {:.1} | {gap} |", started.ms());
}

fn limited() -> SearchOptions<'static> {
    SearchOptions::new().time_limit(Duration::from_secs(1))
}

/// One budget: half of the costs.
fn budgets(folder: Option<&PathBuf>) -> Result<(), Box<dyn std::error::Error>> {
    println!("\n| one budget | layers | ms | gap |\n|---|---|---|---|");
    for n in [200, 2000] {
        for name in CLASSES {
            let rows = class(name, n, &mut Random(n as u64));
            let scores = scores(&rows)?;
            let needed = rows.iter().map(|row| row.0).sum::<u64>() / 2;
            let started = Clock::start();
            let solution = Problem::new(&scores, &Constraints::none())?.solve_budget_with(&Budget::params(needed), &limited())?;
            row(name, n, started, &solution);
            write(
                folder,
                &format!("budget-{name}-{n}"),
                &json!({
                    "scores": rows.iter().map(|row| row.1).collect::<Vec<_>>(),
                    "limits": [{"costs": rows.iter().map(|row| row.0).collect::<Vec<_>>(), "at_least": needed, "at_most": null}],
                    "requires": [], "value": solution.plan.predicted,
                }),
            )?;
        }
    }
    Ok(())
}

fn write(folder: Option<&PathBuf>, name: &str, value: &Value) -> Result<(), Box<dyn std::error::Error>> {
    match folder {
        Some(folder) => Ok(std::fs::write(folder.join(format!("{}.json", name.replace(' ', "_"))), value.to_string())?),
        None => Ok(()),
    }
}

/// Graphs of `requires`: (layer, what it needs).
fn graphs() -> Result<(), Error> {
    println!("\n| graph of `requires` | layers | ms | gap |\n|---|---|---|---|");
    type Edges = fn(usize) -> Vec<(usize, usize)>;
    let graphs: [(&str, Edges); 7] = [
        ("star, centre first", |n| (1..n).map(|at| (at, 0)).collect()),
        ("star, centre last", |n| (0..n - 1).map(|at| (at, n - 1)).collect()),
        ("reverse star, centre first", |n| (1..n).map(|at| (0, at)).collect()),
        ("chain", |n| (1..n).map(|at| (at, at - 1)).collect()),
        ("binary tree", |n| (1..n).map(|at| (at, (at - 1) / 2)).collect()),
        ("reverse binary tree", |n| (1..n).map(|at| ((at - 1) / 2, at)).collect()),
        ("ring", |n| (0..n).map(|at| if at % 2 == 0 { (at, (at + 1) % n) } else { ((at + 1) % n, at) }).collect()),
    ];
    for n in [64, 5000] {
        for (name, edges) in &graphs {
            let rows = class("uncorrelated", n, &mut Random(7));
            let scores = scores(&rows)?;
            let constraints = edges(n).into_iter().fold(Constraints::none(), |all, (a, b)| all.requires(id(a), id(b)));
            let needed = rows.iter().map(|row| row.0).sum::<u64>() / 2;
            let started = Clock::start();
            let solution = Problem::new(&scores, &constraints)?.solve_budget_with(&Budget::params(needed), &limited())?;
            row(name, n, started, &solution);
        }
    }
    Ok(())
}

/// A language model of `blocks` blocks: attention and MLP, parameters, latency and cache, pins and precedence.
struct Llm {
    scores: Scores,
    constraints: Constraints,
    latency: Resource,
    cache: Resource,
    limits: Vec<Limit>,
    json: Value,
}

fn llm(blocks: usize, seed: u64) -> Result<Llm, Error> {
    let mut random = Random(seed);
    let noise = [0.0, 0.02, 0.2][(seed % 3) as usize];
    let (mut rows, mut times, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..blocks {
        for (params, us, cache) in [(67_108_864, 310.0, 16_384), (135_266_304, 450.0, 0)] {
            rows.push((params, (random.normal() * 1.2).exp() * 0.01));
            times.push((us * (1.0 + noise * random.normal().clamp(-2.0, 2.0))).round() as u64);
            bytes.push(cache);
        }
    }
    let (mut constraints, n) = (Constraints::none(), rows.len());
    let mut requires = Vec::new();
    let keep = [0, 1, n - 2, n - 1];
    if seed % 2 == 1 {
        constraints = constraints.keep(keep.map(id));
    }
    for block in 0..blocks {
        // In some models the MLP may only go with its attention.
        if seed % 5 < 2 && random.next().is_multiple_of(3) {
            constraints = constraints.requires(id(2 * block + 1), id(2 * block));
            requires.push((2 * block + 1, 2 * block));
        }
    }
    let share = |sum: u64, part: f64| (sum as f64 * part) as u64;
    let (params, time, memory) = (rows.iter().map(|row| row.0).sum::<u64>(), times.iter().sum::<u64>(), bytes.iter().sum::<u64>());
    let ratio = 0.2 + 0.4 * random.unit();
    let mut limits = vec![Limit::at_least("params", share(params, ratio))];
    if !seed.is_multiple_of(4) {
        limits.push(Limit::at_least("latency_us", share(time, ratio * (0.9 + 0.2 * random.unit()))));
    }
    if seed % 4 > 1 {
        let low = share(memory, 0.8 * ratio);
        limits.push(Limit::between("cache", low, low + share(memory, 0.2)));
    }
    let resource =
        |name: &str, costs: &[u64]| costs.iter().enumerate().fold(Resource::new(name), |all, (at, cost)| all.layer(id(at), *cost));
    let costs = |name: &str| match name {
        "params" => rows.iter().map(|row| row.0).collect::<Vec<_>>(),
        "latency_us" => times.clone(),
        _ => bytes.clone(),
    };
    let told: Vec<Value> =
        limits.iter().map(|limit| json!({"costs": costs(&limit.resource), "at_least": limit.at_least, "at_most": limit.at_most})).collect();
    let json = json!({
        "scores": rows.iter().map(|row| row.1).collect::<Vec<_>>(), "limits": told, "requires": requires,
        "keep": if seed % 2 == 1 { keep.to_vec() } else { vec![] },
    });
    Ok(Llm { latency: resource("latency_us", &times), cache: resource("cache", &bytes), scores: scores(&rows)?, constraints, limits, json })
}

impl Llm {
    fn solve(&self) -> Result<Solution, Error> {
        Problem::new(&self.scores, &self.constraints)?
            .with_resource(&self.latency)?
            .with_resource(&self.cache)?
            .solve(&self.limits, limited())
    }
}

fn llms(count: u64, folder: Option<&PathBuf>) -> Result<(), Box<dyn std::error::Error>> {
    println!("\n| language models of 64 layers, 1 to 3 limits | |\n|---|---|");
    let (mut times, mut open, mut infeasible) = (Vec::new(), Vec::new(), 0);
    for seed in 0..count {
        let mut model = llm(32, seed)?;
        let started = Clock::start();
        let solution = model.solve();
        times.push(started.ms());
        match solution {
            Ok(solution) => {
                model.json["value"] = json!(solution.plan.predicted);
                if solution.gap > 0.0 {
                    open.push((seed, solution.gap / solution.plan.predicted.unwrap_or(f64::NAN)));
                }
            }
            Err(Error::LimitsInfeasible { .. }) => infeasible += 1,
            Err(error) => {
                println!("{seed}: {error}");
                open.push((seed, f64::INFINITY));
            }
        }
        write(folder, &format!("llm-{seed:04}"), &model.json)?;
    }
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!("| instances, of which infeasible | {count}, {infeasible} |\n| without a proof | {open:?} |");
    println!("| ms: median, 90 %, 99 %, most | {:.2}, {:.1}, {:.1}, {:.1} |", at(0.5), at(0.9), at(0.99), at(1.0));
    Ok(())
}

/// Many layers, several limits.
fn large(folder: Option<&PathBuf>) -> Result<(), Box<dyn std::error::Error>> {
    println!("\n| several limits | layers | ms | gap |\n|---|---|---|---|");
    for (n, count) in [(2000, 2), (2000, 3), (20_000, 3)] {
        let mut random = Random(n as u64);
        let rows: Vec<(u64, f64)> = (0..n).map(|_| (random.between(1, R), (random.normal() * 1.5).exp())).collect();
        let others: Vec<Vec<u64>> = (1..count).map(|_| rows.iter().map(|row| row.0 / 2 + random.between(1, R)).collect()).collect();
        let scores = scores(&rows)?;
        let mut problem = Problem::new(&scores, &Constraints::none())?;
        let mut limits = vec![Limit::at_least("params", rows.iter().map(|row| row.0).sum::<u64>() / 2)];
        let mut told =
            vec![json!({"costs": rows.iter().map(|row| row.0).collect::<Vec<_>>(), "at_least": limits[0].at_least, "at_most": null})];
        for (at, costs) in others.iter().enumerate() {
            let name = format!("other.{at}");
            problem =
                problem.with_resource(&costs.iter().enumerate().fold(Resource::new(&name), |all, (at, cost)| all.layer(id(at), *cost)))?;
            let half = costs.iter().sum::<u64>() / 2;
            limits.push(if at == 0 { Limit::at_least(&name, half + half / 50) } else { Limit::at_most(&name, half + half / 10) });
            told.push(json!({"costs": costs, "at_least": limits[at + 1].at_least, "at_most": limits[at + 1].at_most}));
        }
        let started = Clock::start();
        let solution = problem.solve(&limits, limited())?;
        row(&format!("{count} limits"), n, started, &solution);
        let value = json!({"scores": rows.iter().map(|row| row.1).collect::<Vec<_>>(), "limits": told, "requires": [], "value": solution.plan.predicted});
        write(folder, &format!("large-{n}-{count}"), &value)?;
    }
    let rows = class("uncorrelated", 20_000, &mut Random(3));
    let started = Clock::start();
    let solution = Problem::new(&scores(&rows)?, &Constraints::none())?
        .solve(&[Limit::at_least("params", R * 5000), Limit::at_most("params", R * 5000 + 9)], SearchOptions::new().node_limit(1))?;
    row("one node", 20_000, started, &solution);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let folder = arguments.iter().find(|argument| argument.contains('/')).map(PathBuf::from);
    let wanted = |part: &str| arguments.iter().all(|argument| argument.contains('/')) || arguments.iter().any(|argument| argument == part);
    if wanted("budgets") {
        budgets(folder.as_ref())?;
    }
    if wanted("graphs") {
        graphs()?;
    }
    if wanted("llm") {
        llms(300, folder.as_ref())?;
    }
    if wanted("large") {
        large(folder.as_ref())?;
    }
    Ok(())
}
