//! How much memory this process may still take.

#![allow(clippy::disallowed_methods, reason = "this file is the shell that asks the system about memory")]

use std::path::{Component, Path, PathBuf};

/// Where a version of cgroups is, and how it calls a limit, what is used of it, and what of that are files that may be read
/// again (of `memory.stat`; Linux `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/memory.rst`).
struct Groups {
    root: &'static str,
    limit: &'static str,
    used: &'static str,
    files: [&'static str; 2],
}

const V2: Groups = Groups {
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    files: ["inactive_file", "active_file"],
};
const V1: Groups = Groups {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    files: ["total_inactive_file", "total_active_file"],
};

/// Bytes that are free on the machine or left of the limit of any cgroup that this process is in, whichever is least;
/// nothing known counts as all.
pub fn bytes_free() -> u64 {
    free(|path| std::fs::read_to_string(path).ok())
}

/// The same, of a system whose files `read` reads.
fn free(read: impl Fn(&Path) -> Option<String>) -> u64 {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
    });
    let own = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let number = |path: PathBuf| read(&path)?.trim().parse::<u64>().ok();
    let left = [V2, V1].into_iter().flat_map(|groups| {
        let own = own.lines().find_map(|line| path_in(&groups, line)).unwrap_or("/");
        let left = |folder: PathBuf| {
            let (limit, used) = (number(folder.join(groups.limit))?, number(folder.join(groups.used))?);
            let stat = read(&folder.join("memory.stat")).unwrap_or_default();
            let of = |line: &str| {
                line.split_once(' ').filter(|(name, _)| groups.files.contains(name))?.1.parse::<u64>().ok()
            };
            let files: u64 = stat.lines().filter_map(of).sum();
            Some(limit.saturating_sub(used.saturating_sub(files)))
        };
        folders(groups.root, own).into_iter().filter_map(left).collect::<Vec<_>>()
    });
    left.chain(machine).min().unwrap_or(u64::MAX)
}

/// Gives memory that nobody uses back to the system, as far as the C library can be told to.
#[allow(unsafe_code, reason = "a call of the C library")]
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function has no preconditions (malloc_trim(3)).
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// The path of a line of `/proc/self/cgroup`, where that is about memory in this version: `0::PATH`, or
/// `NUMBER:CONTROLLERS:PATH` (cgroups(7)).
fn path_in<'a>(groups: &Groups, line: &'a str) -> Option<&'a str> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let is_meant = match groups.root == V2.root {
        true => number == "0" && controllers.is_empty(),
        false => controllers.split(',').any(|controller| controller == "memory"),
    };
    is_meant.then_some(path)
}

/// A cgroup and all above it, as far as this process sees them: of a path that begins outside (`/../x`) only the root.
fn folders(root: &str, own: &str) -> Vec<PathBuf> {
    let names = Path::new(own).components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    let outside = Path::new(own).components().any(|part| part == Component::ParentDir);
    let mut all = vec![PathBuf::from(root)];
    for name in names.take(if outside { 0 } else { usize::MAX }) {
        all.push(all[all.len() - 1].join(name));
    }
    all
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_least_that_is_left_counts_of_the_machine_and_all_cgroups_around_the_process() {
        let meminfo = ("/proc/meminfo", "MemTotal: 33554432 kB\nMemAvailable:   16777216 kB\n");
        let of_v2 = ("/proc/self/cgroup", "0::/a.slice/b.service\n");
        let of_v1 =
            ("/proc/self/cgroup", "11:cpu,cpuacct:/x\n4:name=systemd:/y\n3:hugetlb,memory:/pods/one:two\n0::/\n");
        let v2 = |folder: &str, limit: &'static str, used: &'static str| {
            let file = |name| format!("/sys/fs/cgroup{folder}/{name}");
            [(file("memory.max"), limit), (file("memory.current"), used)]
        };
        let v1 = |folder: &str, limit: &'static str, used: &'static str| {
            let file = |name| format!("/sys/fs/cgroup/memory{folder}/{name}");
            [(file("memory.limit_in_bytes"), limit), (file("memory.usage_in_bytes"), used)]
        };
        let stat = |folder: &str, text: &'static str| {
            let file = (format!("/sys/fs/cgroup{folder}/memory.stat"), text);
            [file.clone(), file]
        };
        let (gib, two, three, four) = ("1073741824\n", "2147483648\n", "3221225472\n", "4294967296\n");
        let none = "9223372036854771712\n";
        let table = [
            ("nothing is known", vec![], vec![], u64::MAX),
            ("no limit", vec![meminfo, of_v2], vec![v2("/a.slice", "max\n", gib)], 16 * GIB),
            ("of its own", vec![meminfo, of_v2], vec![v2("/a.slice/b.service", four, gib)], 3 * GIB),
            (
                "of one above",
                vec![meminfo, of_v2],
                vec![v2("/a.slice/b.service", "max\n", gib), v2("/a.slice", four, two)],
                2 * GIB,
            ),
            (
                "the one above is fuller",
                vec![meminfo, of_v2],
                vec![v2("/a.slice/b.service", two, gib), v2("/a.slice", four, four)],
                0,
            ),
            (
                "files of weights that were read before",
                vec![meminfo, of_v2],
                vec![
                    v2("", four, three),
                    stat("", "anon 1073741824\ninactive_file 1073741824\nactive_file 1073741824\n"),
                ],
                3 * GIB,
            ),
            (
                "files in the first version",
                vec![meminfo, of_v1],
                vec![v1("", four, three), stat("/memory", "inactive_file 5\ntotal_inactive_file 1073741824\n")],
                2 * GIB,
            ),
            ("used is beyond it", vec![meminfo, of_v2], vec![v2("/a.slice", gib, two)], 0),
            // A container's files are its own, whatever path it is told.
            ("of what looks like the root", vec![meminfo, of_v2], vec![v2("", three, gib)], 2 * GIB),
            ("no path", vec![meminfo], vec![v2("", three, gib)], 2 * GIB),
            ("of a neighbour", vec![meminfo, of_v2], vec![v2("/a.slice/c.service", two, gib)], 16 * GIB),
            (
                "beyond what is seen",
                vec![meminfo, ("/proc/self/cgroup", "0::/../a.slice\n")],
                vec![v2("/a.slice", two, gib), v2("", four, gib)],
                3 * GIB,
            ),
            ("the first version", vec![meminfo, of_v1], vec![v1("/pods/one:two", two, gib), v1("", none, gib)], GIB),
            ("above, in the first version", vec![meminfo, of_v1], vec![v1("/pods", two, gib)], GIB),
            ("of another controller", vec![meminfo, of_v1], vec![v1("/x", two, gib), v1("/y", two, gib)], 16 * GIB),
            ("both versions", vec![meminfo, of_v1], vec![v1("", four, gib), v2("", three, gib)], 2 * GIB),
            ("the machine is fuller", vec![meminfo, of_v2], vec![v2("", "34359738368\n", gib)], 16 * GIB),
        ];
        for (what, files, groups, expected) in table {
            let groups = groups.iter().flatten().map(|(path, text)| (path.as_str(), *text));
            let files: Vec<(&str, &str)> = files.into_iter().chain(groups).collect();
            let read = |path: &Path| {
                files.iter().find(|(known, _)| Path::new(known) == path).map(|(_, text)| (*text).to_owned())
            };
            assert_eq!(free(read), expected, "{what}");
        }
    }

    const THIS: &str = "memory::tests::says_what_is_free";

    /// What the next one starts in a cgroup.
    #[test]
    #[ignore = "is no test by itself"]
    fn says_what_is_free() {
        println!("free: {}.", bytes_free());
    }

    /// Cgroups, the inner after the outer, that go when the test is over.
    struct Made(Vec<PathBuf>);

    impl Drop for Made {
        fn drop(&mut self) {
            self.0.iter().rev().for_each(|folder| drop(std::fs::remove_dir(folder)));
        }
    }

    /// A cgroup with that limit and one without within it.
    fn made(limit: u64) -> Result<Made, std::io::Error> {
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let of_v1 = own.lines().find_map(|line| path_in(&V1, line));
        let (groups, above) = match of_v1 {
            Some(own) => (V1, folders(V1.root, own).pop().unwrap_or_default()),
            // Where processes are, no controllers are given on; below the root they are.
            None => (V2, PathBuf::from(V2.root)),
        };
        let outer = above.join(format!("kedge-test-{}", std::process::id()));
        std::fs::create_dir(&outer)?;
        let mut made = Made(vec![outer.clone()]);
        std::fs::write(outer.join(groups.limit), limit.to_string())?;
        std::fs::create_dir(outer.join("inner"))?;
        made.0.push(outer.join("inner"));
        Ok(made)
    }

    #[test]
    fn a_process_in_a_cgroup_within_one_with_a_limit_knows_it() {
        let made = match made(GIB) {
            Ok(made) => made,
            Err(error) => {
                assert!(std::env::var_os("KEDGE_TEST_REQUIRE_CONTAINERD").is_none(), "cgroups need root: {error}");
                println!("skipped: there is no leave to make a cgroup with a limit of memory: {error}");
                return;
            }
        };
        let enters = "echo $$ > \"$0\"/cgroup.procs && exec \"$@\"";
        let mut child = Command::new("sh");
        child.args(["-c", enters]).arg(&made.0[1]).arg(std::env::current_exe().unwrap());
        child.args(["--exact", THIS, "--ignored", "--nocapture"]).stderr(Stdio::inherit());
        let output = child.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let free = said.split_once("free: ").and_then(|(_, rest)| rest.split_once('.')).expect(&said).0;
        let free: u64 = free.parse().unwrap();
        assert!(free <= GIB, "{free} of {GIB}");
    }
}
