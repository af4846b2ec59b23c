//! Tables on the terminal: columns as wide as their widest cell, two blanks between them.

use std::fmt;

/// Rows of cells under a head.
#[derive(Debug)]
pub struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these heads; a column whose head begins with `>` is aligned to the right, as numbers are.
    pub fn new<'a>(heads: impl IntoIterator<Item = &'a str>) -> Self {
        let (right, head) = heads.into_iter().map(|h| (h.starts_with('>'), h.trim_start_matches('>').to_string())).unzip();
        Self { right, rows: vec![head] }
    }

    /// One more row; columns without a cell stay empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |i: usize| self.rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).zip(&self.right);
            let cells = cells.map(|((cell, w), right)| if *right { format!("{cell:>w$}") } else { format!("{cell:w$}") });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A number with commas between thousands.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A measured number with its standard error, where it has one.
pub fn with_error(value: f64, standard_error: Option<f64>) -> String {
    match standard_error {
        Some(se) => format!("{value:.3e} ± {se:.1e}"),
        None => format!("{value:.3e}"),
    }
}
