//! Inline SVG by hand: scales with round ticks, axes, markers. All colours are CSS classes, so that a chart follows the page's theme.

use std::fmt::Write;

use super::format::number;

/// A map from values to pixels.
#[derive(Debug, Clone)]
pub struct Scale {
    log: bool,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// A linear scale over `values`, widened to round ticks; zero is included when it is near.
    pub fn linear(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = range(values).unwrap_or((0.0, 1.0));
        if low > 0.0 && low < 0.5 * high {
            low = 0.0;
        }
        if high < 0.0 && high > 0.5 * low {
            high = 0.0;
        }
        if low == high {
            (low, high) = (low - 0.5 * low.abs().max(1.0), high + 0.5 * high.abs().max(1.0));
        }
        let step = round_step((high - low) / 5.0);
        Self { log: false, low: (low / step).floor() * step, high: (high / step).ceil() * step, from, to }
    }

    /// A linear scale from `low` to `high` exactly.
    pub fn fixed(low: f64, high: f64, from: f64, to: f64) -> Self {
        Self { log: false, low, high, from, to }
    }

    /// Logarithmic when all values are positive and span more than a factor of ten, else linear.
    pub fn auto(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        match range(values.clone()) {
            Some((low, high)) if low > 0.0 && high / low > 10.0 => Self { log: true, low: low / 1.15, high: high * 1.15, from, to },
            _ => Self::linear(values, from, to),
        }
    }

    /// True for a logarithmic scale.
    pub fn is_log(&self) -> bool {
        self.log
    }

    /// The lowest and highest value.
    pub fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// The pixel of a value, held inside the scale.
    pub fn at(&self, v: f64) -> f64 {
        let v = v.clamp(self.low, self.high);
        let share = if self.log { (v / self.low).ln() / (self.high / self.low).ln() } else { (v - self.low) / (self.high - self.low) };
        self.from + (self.to - self.from) * share
    }

    /// Round values to label, ascending.
    pub fn ticks(&self) -> Vec<f64> {
        if !self.log {
            let step = round_step((self.high - self.low) / 5.0);
            let first = (self.low / step).ceil() as i64;
            let last = (self.high / step + 1e-9).floor() as i64;
            return (first..=last).map(|k| k as f64 * step).collect();
        }
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        // Many decades: powers of ten only; few: 1, 2, 5.
        let span = (self.high / self.low).log10();
        let steps: &[f64] = if span > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let every = (span / 6.0).ceil().max(1.0) as i32;
        decades
            .filter(|d| d.rem_euclid(every) == 0)
            .flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)))
            .filter(|v| (self.low..=self.high).contains(v))
            .collect()
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|v| v.is_finite()).fold(None, |seen, v| Some(seen.map_or((v, v), |(low, high): (f64, f64)| (low.min(v), high.max(v)))))
}

/// 1, 2 or 5 times a power of ten, at least `rough`.
fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let lead = rough / power;
    power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|s| lead <= *s + 1e-9).unwrap_or(10.0)
}

/// A tick's label: no trailing zeros.
pub fn tick_label(v: f64) -> String {
    let text = if v != 0.0 && !(1e-3..1e5).contains(&v.abs()) { format!("{v:.0e}") } else { format!("{:.4}", v) };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// The four sides of a plot area, in pixels.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    /// Left side.
    pub left: f64,
    /// Right side.
    pub right: f64,
    /// Upper side.
    pub top: f64,
    /// Lower side.
    pub bottom: f64,
}

/// A growing SVG.
pub struct Svg {
    body: String,
    width: f64,
    height: f64,
}

impl Svg {
    /// An empty image with a title for screen readers.
    pub fn new(width: f64, height: f64, title: &str) -> Self {
        Self { body: format!("<title>{}</title>", escape(title)), width, height }
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        let _ = write!(self.body, r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#);
    }

    /// A filled rectangle.
    pub fn rect(&mut self, class: &str, [x, y]: [f64; 2], [w, h]: [f64; 2]) {
        let _ = write!(self.body, r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}"/>"#);
    }

    /// Text at its baseline; `anchor` is start, middle or end.
    pub fn text(&mut self, class: &str, anchor: &str, [x, y]: [f64; 2], text: &str) {
        let _ = write!(self.body, r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(text));
    }

    /// An open line through `points`.
    pub fn polyline(&mut self, class: &str, points: &[[f64; 2]]) {
        let _ = write!(self.body, r#"<polyline class="{class}" points="{}"/>"#, joined(points));
    }

    /// A closed, filled outline through `points`, with a tooltip.
    pub fn polygon(&mut self, class: &str, points: &[[f64; 2]], tip: &str) {
        let _ = write!(self.body, r#"<polygon class="{class}" points="{}"><title>{}</title></polygon>"#, joined(points), escape(tip));
    }

    /// A marker whose shape depends on the series as its colour does, with a tooltip.
    pub fn marker(&mut self, series: usize, extra: &str, [x, y]: [f64; 2], tip: &str) {
        let _ = write!(
            self.body,
            r#"<path class="mark s{} {extra}" d="{}"><title>{}</title></path>"#,
            series % 8,
            shape(series, x, y, 3.6),
            escape(tip)
        );
    }

    /// A vertical error bar.
    pub fn error_bar(&mut self, series: usize, x: f64, y1: f64, y2: f64) {
        self.line(&format!("bar s{}", series % 8), [x, y1], [x, y2]);
    }

    /// Axes with ticks, grid lines and labels around `area`; no ticks on x when `x` is none.
    pub fn axes(&mut self, area: Area, x: Option<&Scale>, y: &Scale, x_label: &str, y_label: &str) {
        for tick in y.ticks() {
            let at = y.at(tick);
            self.line("grid", [area.left, at], [area.right, at]);
            self.text("tick", "end", [area.left - 5.0, at + 3.5], &tick_label(tick));
        }
        for tick in x.map(Scale::ticks).unwrap_or_default() {
            let at = x.map_or(0.0, |x| x.at(tick));
            self.line("grid", [at, area.top], [at, area.bottom]);
            self.text("tick", "middle", [at, area.bottom + 14.0], &tick_label(tick));
        }
        self.line("axis", [area.left, area.bottom], [area.right, area.bottom]);
        self.line("axis", [area.left, area.top], [area.left, area.bottom]);
        let x_label = format!("{x_label}{}", if x.is_some_and(Scale::is_log) { " (log)" } else { "" });
        let y_label = format!("{y_label}{}", if y.is_log() { " (log)" } else { "" });
        self.text("label", "middle", [(area.left + area.right) / 2.0, area.bottom + 30.0], &x_label);
        self.text("label", "start", [2.0, area.top - 8.0], &y_label);
    }

    /// The finished element.
    pub fn finish(self) -> String {
        let (w, h) = (self.width, self.height);
        format!(
            r#"<svg role="img" viewBox="0 0 {w:.0} {h:.0}" style="max-width:{w:.0}px" xmlns="http://www.w3.org/2000/svg">{}</svg>"#,
            self.body
        )
    }
}

/// A legend entry's marker as a small image of its own.
pub fn swatch(series: usize) -> String {
    format!(
        r#"<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true"><path class="mark s{}" d="{}"/></svg>"#,
        series % 8,
        shape(series, 6.0, 6.0, 4.5)
    )
}

/// A legend entry's colour alone, for areas.
pub fn patch(series: usize) -> String {
    format!(
        r#"<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true"><rect class="mark s{}" x="1" y="1" width="10" height="10"/></svg>"#,
        series % 8
    )
}

/// A value with its unit-free short form, for tooltips.
pub fn tip(name: &str, values: &[(&str, f64)]) -> String {
    values.iter().fold(name.to_owned(), |text, (key, v)| format!("{text}\n{key} {}", number(*v)))
}

fn shape(series: usize, x: f64, y: f64, r: f64) -> String {
    match series % 4 {
        0 => format!("M{:.1} {y:.1}a{r} {r} 0 1 0 {d:.1} 0a{r} {r} 0 1 0 -{d:.1} 0z", x - r, d = 2.0 * r),
        1 => format!("M{:.1} {:.1}h{d:.1}v{d:.1}h-{d:.1}z", x - 0.88 * r, y - 0.88 * r, d = 1.76 * r),
        2 => format!("M{x:.1} {:.1}l{:.1} {d:.1}h-{w:.1}z", y - 1.1 * r, 1.1 * r, d = 2.0 * r, w = 2.2 * r),
        _ => format!("M{x:.1} {:.1}l{d:.1} {d:.1}l-{d:.1} {d:.1}l-{d:.1} -{d:.1}z", y - 1.25 * r, d = 1.25 * r),
    }
}

fn joined(points: &[[f64; 2]]) -> String {
    points.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

/// Text for HTML and SVG, in content and in double-quoted attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let s = Scale::linear([0.3, 9.7].into_iter(), 0.0, 100.0);
        assert_eq!(s.ticks(), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!((s.at(0.0), s.at(10.0), s.at(5.0)), (0.0, 100.0, 50.0));
        let s = Scale::auto([0.02, 3.0].into_iter(), 0.0, 100.0);
        assert!(s.is_log());
        assert_eq!(s.ticks().iter().map(|t| tick_label(*t)).collect::<Vec<_>>(), ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"]);
        assert!(!Scale::auto([-1.0, 300.0].into_iter(), 0.0, 1.0).is_log());
        let s = Scale::auto([4.0, 4.0].into_iter(), 0.0, 1.0);
        assert!(s.at(4.0).is_finite() && !s.ticks().is_empty());
        assert!(Scale::linear(std::iter::empty(), 0.0, 1.0).at(0.5).is_finite());
    }

    #[test]
    fn text_is_escaped() {
        let mut svg = Svg::new(10.0, 10.0, "a < b");
        svg.text("t", "start", [0.0, 0.0], "\"&\"");
        let out = svg.finish();
        assert!(out.contains("<title>a &lt; b</title>") && out.contains(">&quot;&amp;&quot;</text>"), "{out}");
    }
}
