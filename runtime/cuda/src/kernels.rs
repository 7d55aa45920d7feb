//! The kernels as PTX, made from `kernels/*.cu` by `cargo xtask kernels`: one set for each generation of tensor cores.

/// A set of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// The least compute capability that runs it, major and minor.
    pub capability: (u32, u32),
    /// What it is called in [`kedge_engine::Capabilities`].
    pub name: &'static str,
    /// PTX texts.
    pub texts: [&'static str; 5],
}

macro_rules! texts {
    ($architecture:literal) => {
        [
            include_str!(concat!("../ptx/", $architecture, "/rows.ptx")),
            include_str!(concat!("../ptx/", $architecture, "/linear.ptx")),
            include_str!(concat!("../ptx/", $architecture, "/attention.ptx")),
            include_str!(concat!("../ptx/", $architecture, "/experts.ptx")),
            include_str!(concat!("../ptx/", $architecture, "/sample.ptx")),
        ]
    };
}

/// All sets, the one for the newest devices last.
pub const SETS: [Set; 2] = [
    Set { capability: (7, 5), name: "compute_75", texts: texts!("75") },
    Set { capability: (8, 0), name: "compute_80", texts: texts!("80") },
];

/// The CUDA version that a driver must speak to take them (PTX ISA 7.4), and the Linux driver that first did.
pub const DRIVER_MIN: ((u32, u32), &str) = ((11, 4), "470");

/// The set for a device of that capability; none when it is older than all.
pub fn of(capability: (u32, u32)) -> Option<Set> {
    SETS.into_iter().rev().find(|set| set.capability <= capability)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_get_the_newest_set_that_they_run() {
        for (capability, expected) in [
            ((7, 0), None),
            ((7, 5), Some("compute_75")),
            ((8, 0), Some("compute_80")),
            ((8, 7), Some("compute_80")),
            ((12, 1), Some("compute_80")),
        ] {
            assert_eq!(of(capability).map(|set| set.name), expected, "{capability:?}");
        }
    }

    #[test]
    fn sets_say_the_versions_they_are_for() {
        for set in SETS {
            let (major, minor) = set.capability;
            for text in set.texts {
                assert!(text.contains("\n.version 7.4\n") && text.contains(&format!("\n.target sm_{major}{minor}\n")));
            }
        }
    }
}
