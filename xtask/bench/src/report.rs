//! The figures as a page.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::machine::Machine;
use crate::measure::{Figures, Plan};

/// Bytes in a megabyte, as the goals count them.
const MB: f64 = 1e6;
const DAY: f64 = 86_400.0;

/// A row: what, ours, theirs, whether more is better, and the goal in words.
struct Row {
    what: String,
    of: fn(&Figures, &Plan) -> f64,
    unit: &'static str,
    more_is_better: bool,
    goal: &'static str,
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn rows(plan: &Plan) -> Vec<Row> {
    let row = |what: &str, of, unit, more_is_better, goal| Row { what: what.into(), of, unit, more_is_better, goal };
    vec![
        row("idle node: memory (Pss, containerd included)", |f, _| f.idle.memory as f64 / MB, "MB", false, "≤ 100 MB"),
        row("idle node: processor", |f, p| f.idle.processor / p.idle_seconds as f64 * 100.0, "% of a core", false, ""),
        row(
            "idle node: written",
            |f, p| f.idle.written as f64 / MB * DAY / p.idle_seconds as f64,
            "MB a day",
            false,
            "",
        ),
        row(
            "idle node: context switches",
            |f, p| f.idle.switches as f64 / p.idle_seconds as f64,
            "a second",
            false,
            "",
        ),
        row("start → API ready, empty folders", |f, _| milliseconds(f.api_ready), "ms", false, "≤ 500 ms"),
        row("start → first pod Running, image import included", |f, _| milliseconds(f.first_pod), "ms", false, "≤ 3 s"),
        row("pod start, local image, p50", |f, _| milliseconds(f.pod_start), "ms", false, "no slower"),
        row("pod start, local image, p90", |f, _| milliseconds(f.pod_start_p90), "ms", false, ""),
        row("GET of a 2 KiB object, 8 connections", |f, _| f.gets, "a second", true, ""),
        row("the same per core-second of API and store", |f, _| f.gets_per_core, "", true, "≥ 2 ×"),
        row("create an 8 KB pod, 8 connections", |f, _| f.creates, "a second", true, ""),
        row("the same per core-second of API and store", |f, _| f.creates_per_core, "", true, ""),
        row(&format!("LIST of {} pods", plan.objects), |f, _| milliseconds(f.list), "ms", false, ""),
        row(
            "memory of API and store after five such lists",
            |f, _| f.memory_after_lists as f64 / MB,
            "MB",
            false,
            "≤ 300 MB",
        ),
    ]
}

/// The page.
pub(crate) fn text(machine: &Machine, plan: &Plan, ours: &Figures, theirs: Option<&Figures>) -> String {
    let mut text = String::from(
        "## A cluster of one node\n\nMade by `cargo xtask bench cluster --upstream DIR`; read the ratios, not the figures. ",
    );
    let _ = writeln!(
        text,
        "One machine, one run, one client for both; each cluster alone on it.\n\n\
         Machine: {}, {} cores, {:.0} GiB, Linux {}; a 4 KiB write with fdatasync takes {:.2} ms (median of 200).\n\
         Idle figures over {} s after the first pod had come and gone; pod starts: {} one after the other; API figures \
         without a node (for Kedge controllers and scheduler run in the measured process all the same); lists of {:.1} MB.\n",
        machine.processor,
        machine.cores,
        machine.memory_gib,
        machine.kernel,
        milliseconds(machine.sync),
        plan.idle_seconds,
        plan.pods,
        ours.list_bytes as f64 / MB,
    );
    let peer = theirs.map_or("Kubernetes", |figures| figures.name);
    let _ = writeln!(
        text,
        "| what | {} | {peer} 1.36.3 | times better | goal |\n| --- | ---: | ---: | ---: | --- |",
        ours.name
    );
    for row in rows(plan) {
        let mine = (row.of)(ours, plan);
        let (other, ratio) = match theirs {
            None => ("not measured".to_owned(), String::new()),
            Some(figures) => {
                let other = (row.of)(figures, plan);
                let ratio = if row.more_is_better { mine / other } else { other / mine };
                let ratio = if ratio.is_finite() { format!("{ratio:.1} ×") } else { "—".into() };
                (number(other), ratio)
            }
        };
        let unit = if row.unit.is_empty() { String::new() } else { format!(" ({})", row.unit) };
        let _ = writeln!(text, "| {}{unit} | {} | {other} | {ratio} | {} |", row.what, number(mine), row.goal);
    }
    text
}

/// Writes the part of that name on the page anew, and leaves the others as they are.
pub(crate) fn replace(page: &Path, name: &str, part: &str) -> Result<()> {
    let old = match std::fs::read_to_string(page) {
        Ok(old) => old,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "# Benchmarks\n".into(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", page.display())),
    };
    if let Some(folder) = page.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(page, with_part(&old, name, part)).with_context(|| format!("writing {}", page.display()))
}

fn with_part(page: &str, name: &str, part: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- end of {name} -->"));
    let part = format!("{begin}\n{part}{end}");
    let place = page.find(&begin).zip(page.find(&end)).filter(|(from, to)| from < to);
    match place {
        Some((from, to)) => format!("{}{part}{}", &page[..from], &page[to + end.len()..]),
        None => format!("{}\n\n{part}\n", page.trim_end()),
    }
}

fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_replaced_and_the_others_stay() {
        let both = with_part(&with_part("# Benchmarks\n", "a", "one\n"), "b", "two\n");
        assert_eq!(both, "# Benchmarks\n\n<!-- a -->\none\n<!-- end of a -->\n\n<!-- b -->\ntwo\n<!-- end of b -->\n");
        let again = with_part(&both, "a", "three\n");
        assert_eq!(again, both.replace("one", "three"));
    }
}
