//! What the machine is and what its kernel says of processes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Clock ticks in a second, as /proc counts them on every architecture of Linux that we run on.
const TICKS: f64 = 100.0;

/// What figures depend on.
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    /// Median of a 4 KiB write and its fdatasync, where the clusters keep their data.
    pub(crate) sync: Duration,
}

impl Machine {
    pub(crate) fn look() -> Result<Self> {
        let line = |path: &str, key: &str| -> Result<String> {
            let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
            let found = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            Ok(found.trim_start_matches([' ', '\t', ':']).to_owned())
        };
        let kibibytes: f64 = line("/proc/meminfo", "MemTotal")?.trim_end_matches(" kB").parse().context("MemTotal")?;
        Ok(Self {
            processor: line("/proc/cpuinfo", "model name")?,
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: kibibytes / f64::from(1 << 20),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            sync: sync_time()?,
        })
    }
}

fn sync_time() -> Result<Duration> {
    let file = tempfile::tempfile()?;
    let block = [7; 4096];
    let mut times = Vec::new();
    for index in 0..200_u64 {
        let begin = Instant::now();
        file.write_all_at(&block, index * 4096)?;
        file.sync_data()?;
        times.push(begin.elapsed());
    }
    Ok(median(&mut times))
}

/// The middle one.
pub(crate) fn median<T: Ord + Copy>(values: &mut [T]) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}

/// The same of numbers that have no order of their own.
pub(crate) fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What some processes have used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Their share of memory, in bytes (Pss).
    pub(crate) memory: u64,
    /// Seconds of processor.
    pub(crate) processor: f64,
    /// Bytes sent to the disk.
    pub(crate) written: u64,
    /// Times a thread was switched away from.
    pub(crate) switches: u64,
}

/// Of the processes `pids`. One that ended meanwhile counts no more.
pub(crate) fn usage(pids: &[u32]) -> Usage {
    let mut all = Usage::default();
    for pid in pids {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let number = |text: &str, key: &str| -> u64 {
            let found = text.lines().find_map(|line| line.strip_prefix(key));
            found.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        all.memory += number(&read("smaps_rollup"), "Pss:") * 1024;
        all.written += number(&read("io"), "write_bytes:");
        let stat = read("stat");
        // The name in brackets may hold blanks; what follows its end is in order.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().skip(11);
        let ticks = |field: Option<&str>| field.and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        all.processor += (ticks(fields.next()) + ticks(fields.next())) / TICKS;
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            all.switches += number(&status, "voluntary_ctxt_switches:");
            all.switches += number(&status, "nonvoluntary_ctxt_switches:");
        }
    }
    all
}
