//! The user files of an image, read from its unpacked layers without mounting them.
//!
//! A hostile image may make `/etc` or `passwd` a link to anywhere: every step is resolved inside its layer by the
//! kernel (openat2 with RESOLVE_IN_ROOT), and only regular files of a sane size are read.
#![allow(clippy::disallowed_methods, reason = "a shell: reads files of image layers through their folder's descriptor")]

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;

use containerd_client::types::Mount;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::runtime::RuntimeError;

/// The largest passwd or group file believed.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The contents of `path` (relative) in a snapshot with these mounts; empty where there is none.
pub(super) fn read_text(mounts: &[Mount], path: &str) -> Result<String, RuntimeError> {
    for layer in mounts.iter().flat_map(layers) {
        let attempt = || format!("read {path} of the image");
        let Ok(folder) = File::open(&layer) else { continue };
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file = match openat2(folder.as_fd(), path, how) {
            Ok(descriptor) => File::from(descriptor),
            // ENXIO is a whiteout, a device that nobody drives: the file was removed here and lower ones are hidden.
            Err(nix::Error::ENXIO) => return Ok(String::new()),
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP) => continue,
            Err(e) => return Err(RuntimeError::host(attempt(), e)),
        };
        let meta = file.metadata().map_err(|e| RuntimeError::host(attempt(), e))?;
        if meta.file_type().is_char_device() {
            return Ok(String::new());
        }
        if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
            return Err(RuntimeError::Config(format!("{path} of the image is not a file of sane size")));
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| RuntimeError::host(attempt(), e))?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    Ok(String::new())
}

/// The folders of a mount, the uppermost first.
fn layers(mount: &Mount) -> Vec<String> {
    if mount.r#type == "bind" {
        return vec![mount.source.clone()];
    }
    let option = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
    let lower = option("lowerdir=").map(|dirs| dirs.split(':').map(str::to_owned)).into_iter().flatten();
    option("upperdir=").map(str::to_owned).into_iter().chain(lower).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside_the_layer_and_upper_layers_win() {
        let folder = tempfile::tempdir().unwrap();
        let dir = |name: &str| folder.path().join(name);
        for layer in ["lower/etc", "upper", "evil/etc"] {
            std::fs::create_dir_all(dir(layer)).unwrap();
        }
        std::fs::write(dir("lower/etc/passwd"), "low").unwrap();
        std::fs::write(dir("upper/real"), "up").unwrap();
        std::fs::create_dir(dir("upper/etc")).unwrap();
        std::os::unix::fs::symlink("/real", dir("upper/etc/passwd")).unwrap();
        std::os::unix::fs::symlink(dir("lower/etc/passwd"), dir("evil/etc/passwd")).unwrap();
        let mount = |layers: &[&str]| {
            let layers: Vec<_> = layers.iter().map(|layer| dir(layer).display().to_string()).collect();
            let options = vec![format!("lowerdir={}", layers.join(":"))];
            Mount { r#type: "overlay".into(), options, ..Mount::default() }
        };
        for (layers, expected) in [
            (&["upper", "lower"][..], "up"),
            (&["lower", "upper"], "low"),
            (&["evil"], ""),
            (&["missing", "lower"], "low"),
        ] {
            assert_eq!(read_text(&[mount(layers)], "etc/passwd").unwrap(), expected, "{layers:?}");
        }
    }
}
