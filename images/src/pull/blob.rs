//! One blob: fetched to a file, gone on with after a cut, believed only by its digest.
#![allow(clippy::disallowed_methods, reason = "a shell: a large file that grows at its end")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use kedge_runtimes::image::{Descriptor, Digest};
use sha2::{Digest as _, Sha256};

use super::PullError;
use super::auth::Session;

/// Fetches `blob` to `path`. After an error what came stays, unless it proved to be wrong.
pub(super) async fn fetch(session: &mut Session<'_>, blob: &Descriptor, path: &Path) -> Result<(), PullError> {
    let disk = |source| PullError::Disk { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(disk)?;
    let mut hash = Sha256::new();
    let mut here = read(&mut file, &mut hash).map_err(disk)?;
    if here > blob.size {
        (hash, here) = restart(&mut file).map_err(disk)?;
    }
    if here < blob.size {
        let mut answer = session.get(&format!("blobs/{}", blob.digest), here, None).await?;
        if answer.offset() != here {
            (hash, here) = restart(&mut file).map_err(disk)?;
        }
        while let Some(bytes) = answer.next().await? {
            here += bytes.len() as u64;
            if here > blob.size {
                break;
            }
            file.write_all(&bytes).map_err(disk)?;
            hash.update(&bytes);
        }
    }
    let actual = Digest::from_hash(hash.finalize().as_slice());
    if here == blob.size && actual == blob.digest {
        return Ok(());
    }
    // What is wrong once stays wrong; the next attempt begins anew.
    let _ = fs::remove_file(path);
    let reason = format!("has {here} bytes and the digest {actual}, and the manifest says {} bytes", blob.size);
    Err(PullError::Invalid { what: format!("the blob {}", blob.digest), reason })
}

fn restart(file: &mut File) -> io::Result<(Sha256, u64)> {
    file.set_len(0)?;
    file.rewind()?;
    Ok((Sha256::new(), 0))
}

fn read(file: &mut File, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut all = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(all),
            read => {
                hash.update(&buffer[..read]);
                all += read as u64;
            }
        }
    }
}
