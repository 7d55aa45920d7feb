//! The figures as a part of the page on benchmarks.

use std::fmt::Write as _;

use super::serving::{PREFIX, ROUNDS, STREAMS, SUFFIX};
use super::{ANSWER, Comparison, Found, PROMPT};
use crate::machine::Machine;

/// What is asked of us, beside the fastest peer.
fn goal(what: &str) -> f64 {
    match what {
        "prompt" => 1.0,
        "answer" => 1.05,
        _ => 1.2,
    }
}

/// One question in words.
fn words(what: &str, count: usize) -> String {
    match what {
        "prompt" => format!("prompt of {count}"),
        "answer" => format!("answer of {count}"),
        _ => format!("{count} at once"),
    }
}

impl Comparison {
    /// Things made a second.
    fn speed(&self, column: usize, question: usize) -> f64 {
        self.questions[question].1 as f64 / self.columns[column].seconds[question]
    }

    /// The fastest peer and how many times faster we are.
    fn best_peer(&self, question: usize) -> Option<(&str, f64)> {
        let peers = 1..self.columns.len();
        let best = peers.max_by(|a, b| self.speed(*a, question).total_cmp(&self.speed(*b, question)))?;
        Some((&self.columns[best].name, self.speed(0, question) / self.speed(best, question)))
    }
}

/// One comparison in a line, for whoever waits.
pub(super) fn line(comparison: &Comparison) -> String {
    let mut line = comparison.model.clone();
    for (question, (what, count)) in comparison.questions.iter().enumerate() {
        let _ = write!(line, "; {}:", words(what, *count));
        for (column, contender) in comparison.columns.iter().enumerate() {
            let _ = write!(line, " {} {:.1}", contender.name, comparison.speed(column, question));
        }
    }
    line
}

/// The part of the page.
pub(super) fn text(machine: &Machine, found: &Found) -> String {
    let mut text = String::from(
        "## Inference\n\nMade by `cargo xtask bench inference`; read the ratios, not the figures. All engines are loaded at \
         once and asked in turn, without HTTP; ",
    );
    let _ = writeln!(
        text,
        "medians of {} rounds, {} threads each. Weights are random at the shapes of Llamas: they say how fast, never how \
         well. Every engine's clock runs from the question to the last token that was asked for: with a prompt of {PROMPT} that is \
         the one token after it; an answer of {ANSWER} is made token by token after a prompt of eight, whose reading is in \
         its time. Nothing is remembered between questions. The share of the bandwidth counts the weights alone; one above \
         100 % would say that the bandwidth was measured too low.\n\n\
         Machine: {}, {} cores, Linux {}. {}\n",
        found.rounds,
        found.threads,
        machine.processor,
        machine.cores,
        machine.kernel,
        found.conditions.text(found.threads),
    );
    table(&mut text, "tokens a second", &found.decoders, Some(found.conditions.bandwidth()));
    text.push('\n');
    table(&mut text, "texts of 32 tokens a second", std::slice::from_ref(&found.encoder), None);
    let s = &found.serving;
    let row = |what: &str, value: String, goal: &str| format!("| {what} | {value} | {goal} |\n");
    let _ = write!(
        text,
        "\n`kedge infer` over HTTP, 0.25 B Q8_0, medians of {ROUNDS}:\n\n| what | Kedge | goal |\n| --- | ---: | --- |\n{}{}{}{}{}{}{}",
        row("start → ready, weights in the page cache (ms)", format!("{:.0}", s.ready.as_secs_f64() * 1e3), "≤ 1500"),
        row("the first start, which packs them (ms)", format!("{:.0}", s.ready_first.as_secs_f64() * 1e3), ""),
        row("memory that is no file's, after one answer (MB)", format!("{:.0}", s.memory as f64 / 1e6), "≤ 200"),
        row(
            "the same after all of this, with keys and values of what was asked (MB)",
            format!("{:.0}", s.memory_after as f64 / 1e6),
            "",
        ),
        row("one client (tokens a second)", format!("{:.1}", s.one), ""),
        row(
            &format!("{STREAMS} clients together (tokens a second)"),
            format!("{:.1}, {:.1} × one", s.many, s.many / s.one),
            "≥ 4 ×"
        ),
        row(
            &format!("first token after {} tokens, {PREFIX} of them known (ms)", PREFIX + SUFFIX),
            format!(
                "{:.1}, not known {:.0}: {:.0} ×",
                s.warm.as_secs_f64() * 1e3,
                s.cold.as_secs_f64() * 1e3,
                s.cold.as_secs_f64() / s.warm.as_secs_f64()
            ),
            "≥ 20 ×",
        ),
    );
    text.push_str("\nOn a GPU: not measured.\n");
    text
}

fn table(text: &mut String, unit: &str, comparisons: &[Comparison], bandwidth: Option<f64>) {
    let Some(first) = comparisons.first() else { return };
    let names: String = first.columns.iter().map(|column| format!(" {} |", column.name)).collect();
    let _ = writeln!(text, "| {unit} |{names} beside the fastest | goal | of the bandwidth |");
    let _ = writeln!(text, "| --- |{} ---: | --- | ---: |", " ---: |".repeat(first.columns.len()));
    for comparison in comparisons {
        for (question, (what, count)) in comparison.questions.iter().enumerate() {
            let speeds: String =
                (0..comparison.columns.len()).map(|c| format!(" {:.1} |", comparison.speed(c, question))).collect();
            let beside = comparison.best_peer(question);
            let beside = beside.map_or("not measured".into(), |(name, ratio)| format!("{ratio:.2} × {name}"));
            let share = match bandwidth {
                Some(bandwidth) if *what == "answer" => {
                    let bytes = comparison.speed(0, question) * comparison.bytes_read as f64;
                    format!("{:.0} %", bytes / bandwidth * 100.0)
                }
                _ => String::new(),
            };
            let _ = writeln!(
                text,
                "| {}, {} |{speeds} {beside} | ≥ {} × | {share} |",
                comparison.model,
                words(what, *count),
                goal(what)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Column, conditions, serving};
    use super::*;

    #[test]
    fn the_page_tells_the_clock_the_conditions_and_shares_of_the_best_bandwidth() {
        let column = |name: &str, seconds: [f64; 2]| Column { name: name.into(), seconds: seconds.into() };
        let comparison = |questions: [(&'static str, usize); 2], peer: &str, bytes_read| Comparison {
            model: "M".into(),
            questions: questions.into(),
            columns: vec![column("Kedge", [0.5, 1.0]), column(peer, [1.0, 1.5])],
            bytes_read,
        };
        let brief = Duration::from_millis(10);
        let found = Found {
            threads: 2,
            rounds: 7,
            conditions: conditions::tests::some(),
            // 64 times as many a second: half of the best, two thirds of the worst.
            decoders: vec![comparison([("prompt", 512), ("answer", 64)], "peer", 20_000_000_000 / 64)],
            encoder: comparison([("embed", 1), ("embed", 32)], "other", 0),
            serving: serving::Figures {
                ready: brief,
                ready_first: brief,
                memory: 1,
                memory_after: 1,
                one: 1.0,
                many: 2.0,
                cold: brief,
                warm: brief,
            },
        };
        let machine =
            Machine { processor: "P".into(), cores: 2, memory_gib: 1.0, kernel: "6".into(), sync: Duration::ZERO };
        let text = text(&machine, &found);
        for said in [
            "medians of 7 rounds, 2 threads each.",
            "an answer of 64 is made token by token after a prompt of eight, whose reading is in its time.",
            &found.conditions.text(2),
            "| M, prompt of 512 | 1024.0 | 512.0 | 2.00 × peer | ≥ 1 × |  |",
            "| M, answer of 64 | 64.0 | 42.7 | 1.50 × peer | ≥ 1.05 × | 50 % |",
            "| M, 32 at once | 32.0 | 21.3 | 1.50 × other | ≥ 1.2 × |  |",
        ] {
            assert!(text.contains(said), "{said}\n{text}");
        }
    }
}
