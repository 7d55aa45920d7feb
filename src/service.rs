//! The systemd unit that the installer puts on a machine, when there is one.
#![allow(clippy::disallowed_methods, reason = "a shell: asks systemd")]

use std::path::Path;
use std::process::Command;

/// The unit's name.
const NAME: &str = "kedge.service";
/// Where the installer puts it.
pub(crate) const UNIT: &str = "/etc/systemd/system/kedge.service";

/// Whether systemd runs this machine.
fn is_here() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Stops the unit if `pid` is its main process: systemd would start a process that was ended behind its back again.
pub(crate) fn stop_if_main(pid: i32) {
    if is_here() && main_pid() == Some(pid) {
        systemctl(&["stop", NAME]);
    }
}

/// Stops the unit for good.
pub(crate) fn disable() {
    if Path::new(UNIT).exists() {
        systemctl(&["disable", "--now", NAME]);
    }
}

/// Lets systemd see that the unit's file is gone.
pub(crate) fn reload() {
    if is_here() {
        systemctl(&["daemon-reload"]);
    }
}

fn main_pid() -> Option<i32> {
    let output = Command::new("systemctl").args(["show", "--property", "MainPID", "--value", NAME]).output().ok()?;
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
