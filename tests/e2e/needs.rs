//! What tests need of the machine, beside kubectl, and what they do without it.
//!
//! A test that lacks something says so and is left out; where `KEDGE_TEST_REQUIRE_…` says that it must be there, as
//! `cargo xtask test` does, that is a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::exists;

/// Something that a machine may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// What real pods run on: root, containerd, runc, nft and a static busybox.
    Pods,
    /// What makes networks: root, ip and tc.
    Network,
    /// The right to mount.
    Root,
    /// The model all-MiniLM-L6-v2, in the folder that `KEDGE_MINILM` names.
    Model,
    /// The official Python client, in the folder that `KEDGE_PYTHON_PACKAGES` names.
    PythonClient,
    /// OpenAI's Python client, in the folder that `KEDGE_OPENAI_PACKAGES` names.
    OpenAi,
}

impl Need {
    /// What is missing of it.
    fn missing(self) -> Option<&'static str> {
        let root = (is_root(), "root");
        let there = |names: &[&str]| names.iter().any(|name| exists(Path::new(name)));
        let first = |checks: &[(bool, &'static str)]| checks.iter().find(|(ok, _)| !ok).map(|(_, what)| *what);
        match self {
            Self::Pods => first(&[
                root,
                (there(&["/usr/bin/containerd"]), "containerd (Debian: containerd)"),
                (there(&["/usr/sbin/runc", "/usr/bin/runc"]), "runc (Debian: runc)"),
                (there(&["/usr/sbin/nft"]), "nft (Debian: nftables)"),
                (there(&["/bin/busybox"]), "busybox (Debian: busybox-static)"),
            ]),
            Self::Network => first(&[
                root,
                (there(&["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"]), "ip (Debian: iproute2)"),
                (there(&["/usr/sbin/tc", "/sbin/tc"]), "tc (Debian: iproute2)"),
            ]),
            Self::Root => first(&[root]),
            Self::Model => first(&[(model().is_some(), "a model (KEDGE_MINILM names its folder)")]),
            Self::PythonClient => {
                first(&[(python_packages().is_some(), "the Python client (KEDGE_PYTHON_PACKAGES names its folder)")])
            }
            Self::OpenAi => {
                first(&[(openai_packages().is_some(), "OpenAI's client (KEDGE_OPENAI_PACKAGES names its folder)")])
            }
        }
    }

    /// What demands it.
    fn variable(self) -> &'static str {
        match self {
            Self::Pods | Self::Root => "KEDGE_TEST_REQUIRE_CONTAINERD",
            Self::Network => "KEDGE_TEST_REQUIRE_NETWORK",
            Self::Model => "KEDGE_TEST_REQUIRE_MODEL",
            Self::PythonClient | Self::OpenAi => "KEDGE_TEST_REQUIRE_PYTHON",
        }
    }
}

/// Whether a test is left out for something that it needs.
pub(crate) fn lacks(needs: &[Need]) -> bool {
    let is_demanded = |need: Need| std::env::var_os(need.variable()).is_some();
    match verdict(needs, Need::missing, is_demanded) {
        Verdict::Run => false,
        Verdict::LeaveOut(what) => {
            println!("skipped: this machine lacks {what}");
            true
        }
        Verdict::Fail(what, variable) => panic!("this machine lacks {what}, and {variable} demands it"),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Run,
    LeaveOut(&'static str),
    /// What is missing, and what demands it.
    Fail(&'static str, &'static str),
}

/// What is demanded and missing counts, whatever else is missing.
fn verdict(
    needs: &[Need],
    missing: impl Fn(Need) -> Option<&'static str>,
    is_demanded: impl Fn(Need) -> bool,
) -> Verdict {
    let lacking = || needs.iter().filter_map(|need| Some((*need, missing(*need)?)));
    match (lacking().find(|(need, _)| is_demanded(*need)), lacking().next()) {
        (Some((need, what)), _) => Verdict::Fail(what, need.variable()),
        (None, Some((_, what))) => Verdict::LeaveOut(what),
        (None, None) => Verdict::Run,
    }
}

/// The folder of the model.
pub(crate) fn model() -> Option<PathBuf> {
    std::env::var_os("KEDGE_MINILM").map(PathBuf::from)
}

/// The folder of the Python client.
pub(crate) fn python_packages() -> Option<PathBuf> {
    std::env::var_os("KEDGE_PYTHON_PACKAGES").map(PathBuf::from)
}

/// The folder of OpenAI's Python client.
pub(crate) fn openai_packages() -> Option<PathBuf> {
    std::env::var_os("KEDGE_OPENAI_PACKAGES").map(PathBuf::from)
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

#[test]
fn what_is_demanded_and_missing_is_a_failure() {
    use Need::{Model, Pods};
    let lacking = |lacking: &'static [Need]| move |need: Need| lacking.contains(&need).then_some("it");
    let demands = |demanded: &'static [Need]| move |need: Need| demanded.contains(&need);
    assert_eq!(verdict(&[Pods, Model], lacking(&[]), demands(&[Pods, Model])), Verdict::Run);
    assert_eq!(verdict(&[Pods, Model], lacking(&[Model]), demands(&[])), Verdict::LeaveOut("it"));
    assert_eq!(verdict(&[Pods, Model], lacking(&[Model]), demands(&[Pods])), Verdict::LeaveOut("it"));
    let failed = Verdict::Fail("it", "KEDGE_TEST_REQUIRE_CONTAINERD");
    assert_eq!(verdict(&[Model, Pods], lacking(&[Model, Pods]), demands(&[Pods])), failed);
    assert_eq!(verdict(&[Model], lacking(&[Pods]), demands(&[Pods])), Verdict::Run, "it needs no pods");
}
