//! One blob: fetched to a file, gone on with after a cut, believed only by its digest.

use std::path::Path;

use kedge_content::{Partial, discard};
use kedge_runtimes::image::Descriptor;

use super::{PullError, Session};

/// Fetches `blob` to `path`. After an error what came stays, unless it proved to be wrong.
pub(super) async fn fetch(session: &mut Session<'_>, blob: &Descriptor, path: &Path) -> Result<(), PullError> {
    let disk = |source| PullError::Disk { path: path.to_owned(), source };
    let mut file = Partial::open(path).await.map_err(disk)?;
    if file.length() > blob.size {
        file.restart().await.map_err(disk)?;
    }
    if file.length() < blob.size {
        let taken = take(session, blob, &mut file, path).await;
        file.flush().await.map_err(disk)?;
        taken?;
    }
    let here = file.length();
    let actual = file.finish().await.map_err(disk)?;
    if here == blob.size && actual == blob.digest {
        return Ok(());
    }
    // What is wrong once stays wrong; the next attempt begins anew.
    discard(path);
    let reason = format!("has {here} bytes and the digest {actual}, and the manifest says {} bytes", blob.size);
    Err(PullError::Invalid { what: format!("the blob {}", blob.digest), reason })
}

/// Takes what is missing, and no more than one piece beyond the blob's size.
async fn take(session: &mut Session<'_>, blob: &Descriptor, file: &mut Partial, path: &Path) -> Result<(), PullError> {
    let disk = |source| PullError::Disk { path: path.to_owned(), source };
    let mut answer = session.get(&format!("blobs/{}", blob.digest), file.length(), None).await?;
    if answer.offset() != file.length() {
        file.restart().await.map_err(disk)?;
    }
    while file.length() <= blob.size
        && let Some(bytes) = answer.next().await?
    {
        file.append(&bytes).await.map_err(disk)?;
    }
    Ok(())
}
