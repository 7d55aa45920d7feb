//! Files that people name, opened and read: a name may turn out to be a pipe, a device or without end, and nobody waits for that.

#![allow(clippy::disallowed_methods, reason = "this file is the shell that opens the files of models")]

use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// The file at `path`, also where a link leads to it; an error where that is anything but a regular file.
pub fn open(path: &Path) -> Result<File> {
    // A pipe that nobody writes to would be waited for otherwise.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(Error::other("it is no regular file")) }
}

/// What the file at `path` holds, where that is no more than so many bytes.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(Error::other(format!("it is longer than the {bytes_max} bytes that are read")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "abc").unwrap();
        symlink("file", at("link")).unwrap();
        symlink("/dev/zero", at("zeros")).unwrap();
        symlink("nothing", at("dangling")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        let check = |path: PathBuf, expected: &str| {
            let said = match read(&path, 3) {
                Ok(bytes) => String::from_utf8(bytes).unwrap(),
                Err(error) => error.to_string(),
            };
            assert!(said.contains(expected), "{}: {said}", path.display());
        };
        check(at("file"), "abc");
        check(at("link"), "abc");
        check(at("zeros"), "it is no regular file");
        check(at("pipe"), "it is no regular file");
        check(folder.path().to_owned(), "it is no regular file");
        check(at("dangling"), "No such file");
        std::fs::write(at("file"), "abcd").unwrap();
        check(at("link"), "it is longer than the 3 bytes that are read");
    }
}
