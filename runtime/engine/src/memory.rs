//! How much memory this process may still take.

#![allow(clippy::disallowed_methods, reason = "this file is the shell that asks the system about memory")]

/// Bytes that are free on the machine or left of the cgroup's limit, whichever is less; nothing known counts as all.
pub(crate) fn bytes_free() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
    });
    let group = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ];
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let left = group.iter().filter_map(|(limit, used)| Some(number(limit)?.saturating_sub(number(used)?)));
    left.chain(machine).min().unwrap_or(u64::MAX)
}
