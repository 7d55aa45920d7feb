//! The systemd units that the installer puts on a machine, when there are any.
#![allow(clippy::disallowed_methods, reason = "a shell: asks systemd")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The server's unit and the hub's; the latter is there, and not enabled unless somebody wants a hub.
const NAMES: [&str; 2] = ["kedge.service", "kedge-hub.service"];
/// Where the installer puts them.
const FOLDER: &str = "/etc/systemd/system";

/// The files of the units.
pub(crate) fn files() -> impl Iterator<Item = PathBuf> {
    NAMES.iter().map(|name| Path::new(FOLDER).join(name))
}

/// Whether systemd runs this machine.
fn is_here() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Stops the unit whose main process is `pid`: systemd would start a process that was ended behind its back again.
pub(crate) fn stop_if_main(pid: i32) {
    for name in NAMES.iter().filter(|name| is_here() && main_pid(name) == Some(pid)) {
        systemctl(&["stop", name]);
    }
}

/// Stops the units for good.
pub(crate) fn disable() {
    for (name, _) in NAMES.iter().zip(files()).filter(|(_, file)| file.exists()) {
        systemctl(&["disable", "--now", name]);
    }
}

/// Lets systemd see that the units' files are gone.
pub(crate) fn reload() {
    if is_here() {
        systemctl(&["daemon-reload"]);
    }
}

fn main_pid(name: &str) -> Option<i32> {
    let output = Command::new("systemctl").args(["show", "--property", "MainPID", "--value", name]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// What systemd says is shown; whoever calls ends the process anyway.
fn systemctl(arguments: &[&str]) {
    match Command::new("systemctl").args(arguments).status() {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("kedge: systemctl {} ended with {status}", arguments.join(" ")),
        Err(error) => eprintln!("kedge: cannot run systemctl: {error}"),
    }
}
