//! A `docker save` archive made of a few files: what tests and benchmarks run their pods from.

use std::io::{self, Write};

use kedge_runtimes::image::{Digest, host_architecture};
use serde_json::json;

/// Writes an archive with the image `name` of one layer to `out`: `files` by their paths, each of them executable.
pub fn write_archive(out: impl Write, name: &str, files: &[(&str, &[u8])]) -> io::Result<()> {
    let mut layer = tar::Builder::new(Vec::new());
    for (path, content) in files {
        append(&mut layer, path, content, 0o755)?;
    }
    let layer = layer.into_inner()?;
    let config = json!({
        "architecture": host_architecture(), "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer)] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(out);
    append(&mut archive, "config.json", config.to_string().as_bytes(), 0o644)?;
    append(&mut archive, "layer.tar", &layer, 0o644)?;
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644)?;
    archive.finish()
}

fn append<W: Write>(archive: &mut tar::Builder<W>, path: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, path, content)
}
