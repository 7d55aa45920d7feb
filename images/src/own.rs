//! An image with this program and the libraries it has loaded, and nothing else: no shell, no package, no download.
//!
//! One layer: `/kedge`, its loader, its libraries at the places where this process found them, `/tmp`. The layer is
//! never held in memory: it is written once to be hashed, and again for whoever unpacks it, from the same files.
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: reads this program and its libraries, which are files of the system"
)]

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use kedge_runtimes::image::{BlobSource, Descriptor, Digest, ImagePlan, Manifest, host_architecture};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::elf;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Where the program lies in the image.
const PROGRAM: &str = "kedge";

/// Why the image cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make an image of this program: {path}: {source}")]
pub struct OwnImageError {
    path: String,
    source: io::Error,
}

fn failed(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> OwnImageError {
    let path = path.as_ref().display().to_string();
    move |source| OwnImageError { path, source }
}

/// The image, ready to be installed.
pub struct OwnImage {
    layer: Layer,
    plan: ImagePlan,
}

impl OwnImage {
    /// The image of this program, named `repository:TAG`, where the tag follows from its contents.
    /// Reads the program and its libraries once.
    pub fn of_this_program(repository: &str) -> Result<Self, OwnImageError> {
        let mut layer = Layer::of_this_program()?;
        let digest = layer.digest()?;
        let size = layer.size;
        let config = json!({
            "architecture": host_architecture(), "os": "linux",
            "config": { "Entrypoint": [format!("/{PROGRAM}")], "WorkingDir": "/", "User": "65532:65532" },
            "rootfs": { "type": "layers", "diff_ids": [digest] },
        });
        let config_bytes = config.to_string().into_bytes();
        let descriptor = |media_type: &str, digest: &Digest, size| Descriptor {
            media_type: media_type.into(),
            digest: digest.clone(),
            size,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST_TYPE.into(),
            config: descriptor(CONFIG_TYPE, &Digest::of(&config_bytes), config_bytes.len() as u64),
            layers: vec![descriptor(LAYER_TYPE, &digest, size)],
        };
        let manifest_bytes = serde_json::to_vec(&manifest).expect("a manifest is plain data");
        let manifest_digest = Digest::of(&manifest_bytes);
        let name = format!("{repository}:{}", &manifest_digest.hex()[..16]);
        let plan = ImagePlan {
            names: vec![name],
            manifest_digest,
            manifest_bytes,
            manifest,
            config_bytes,
            diff_ids: vec![digest],
        };
        Ok(Self { layer, plan })
    }

    /// The image's name.
    pub fn name(&self) -> &str {
        &self.plan.names[0]
    }

    /// What a runtime needs to install it.
    pub fn plan(&self) -> ImagePlan {
        self.plan.clone()
    }
}

impl BlobSource for OwnImage {
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send + '_>> {
        if *digest == self.plan.diff_ids[0] {
            return Ok(Box::new(self.layer.read()?));
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("the image has no blob {digest}")))
    }
}

/// The files of the one layer, by their places in it.
struct Layer {
    files: BTreeMap<String, File>,
    links: BTreeMap<String, String>,
    size: u64,
}

impl Layer {
    fn of_this_program() -> Result<Self, OwnImageError> {
        let open = |path: &str| File::open(path).map_err(failed(path));
        let mut files = BTreeMap::from([(PROGRAM.to_owned(), open("/proc/self/exe")?)]);
        let mut links = BTreeMap::new();
        let maps = fs::read_to_string("/proc/self/maps").map_err(failed("/proc/self/maps"))?;
        for library in libraries(&maps) {
            // A library that was replaced while this process runs has no name any more; the map is the way to it.
            files.insert(inside(&library.path), open(&library.path).or_else(|_| open(&library.map))?);
        }
        let mut head = vec![0; 4096];
        let read = files[PROGRAM].try_clone().and_then(|mut program| {
            program.rewind()?;
            program.read(&mut head)
        });
        head.truncate(read.map_err(failed("/proc/self/exe"))?);
        if let Some(loader) = elf::interpreter(&head) {
            let real = fs::canonicalize(loader).map_err(failed(loader))?;
            let (name, target) = (inside(loader), inside(&real.to_string_lossy()));
            if name != target {
                links.insert(name, format!("/{target}"));
            }
            if let Entry::Vacant(place) = files.entry(target) {
                place.insert(open(&real.to_string_lossy())?);
            }
        }
        Ok(Self { files, links, size: 0 })
    }

    /// The digest of the layer's bytes, and its size along with it.
    fn digest(&mut self) -> Result<Digest, OwnImageError> {
        let mut hash = Sha256::new();
        let mut layer = self.read().map_err(failed("the layer"))?;
        self.size = io::copy(&mut layer, &mut HashWriter(&mut hash)).map_err(failed("the layer"))?;
        Ok(Digest::from_hash(hash.finalize().as_slice()))
    }

    /// The layer's bytes: headers in memory, contents from their files.
    fn read(&self) -> io::Result<LayerReader> {
        let mut parts: Vec<Part> = Vec::new();
        let mut header =
            |name: &str, kind: tar::EntryType, mode: u32, size: u64, link: Option<&str>| -> io::Result<()> {
                let mut builder = tar::Builder::new(Vec::new());
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(kind);
                header.set_mode(mode);
                header.set_size(size);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mtime(0);
                match link {
                    Some(target) => builder.append_link(&mut header, name, target)?,
                    // The contents follow from their file, so that none of them is held in memory.
                    None => builder.append_data(&mut header, name, io::empty())?,
                }
                let mut bytes = builder.into_inner()?;
                bytes.truncate(bytes.len() - END_BYTES);
                parts.push(Part::Bytes(io::Cursor::new(bytes)));
                Ok(())
            };
        let mut folders = BTreeSet::new();
        for name in self.files.keys().chain(self.links.keys()) {
            folders.extend(Path::new(name).ancestors().skip(1).map(Path::to_owned));
        }
        for folder in folders.iter().filter(|folder| !folder.as_os_str().is_empty()) {
            header(&format!("{}/", folder.display()), tar::EntryType::Directory, 0o755, 0, None)?;
        }
        header("tmp/", tar::EntryType::Directory, 0o1777, 0, None)?;
        for (name, target) in &self.links {
            header(name, tar::EntryType::Symlink, 0o777, 0, Some(target))?;
        }
        let mut pending = Vec::new();
        for (name, file) in &self.files {
            let size = file.metadata()?.len();
            header(name, tar::EntryType::Regular, 0o755, size, None)?;
            pending.push((file.try_clone()?, size));
        }
        let headers = parts.len() - pending.len();
        let mut all: Vec<Part> = Vec::new();
        let mut rest = parts.into_iter();
        all.extend(rest.by_ref().take(headers));
        for (part, (file, size)) in rest.zip(pending) {
            all.push(part);
            all.push(Part::File { file, at: 0, size });
            all.push(Part::Bytes(io::Cursor::new(vec![0; (size.next_multiple_of(512) - size) as usize])));
        }
        all.push(Part::Bytes(io::Cursor::new(vec![0; END_BYTES])));
        Ok(LayerReader { parts: all.into() })
    }
}

/// Two empty blocks end a tar.
const END_BYTES: usize = 1024;

enum Part {
    Bytes(io::Cursor<Vec<u8>>),
    File { file: File, at: u64, size: u64 },
}

struct LayerReader {
    parts: std::collections::VecDeque<Part>,
}

impl Read for LayerReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        while let Some(part) = self.parts.front_mut() {
            let read = match part {
                Part::Bytes(bytes) => bytes.read(out)?,
                Part::File { file, at, size } => {
                    let want = out.len().min(usize::try_from(*size - *at).unwrap_or(usize::MAX));
                    let read = if want == 0 { 0 } else { file.read_at(&mut out[..want], *at)? };
                    if read == 0 && want > 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    *at += read as u64;
                    read
                }
            };
            if read > 0 || out.is_empty() {
                return Ok(read);
            }
            self.parts.pop_front();
        }
        Ok(0)
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A library that a process has loaded.
#[derive(Debug, PartialEq, Eq)]
struct Library {
    path: String,
    /// Its entry in `/proc/self/map_files`.
    map: String,
}

/// The libraries that `maps`, a `/proc/PID/maps`, shows: every file with a part that may be executed, but the program.
fn libraries(maps: &str) -> Vec<Library> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some(rights), Some(path)) = (fields.next(), fields.next(), fields.nth(3)) else { continue };
        let is_library = path.starts_with('/') && path.contains(".so") && rights.contains('x');
        if is_library && seen.insert(path.to_owned()) {
            all.push(Library { path: path.to_owned(), map: format!("/proc/self/map_files/{range}") });
        }
    }
    all
}

/// A path of this machine as a path in the image.
fn inside(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_is_mapped_and_may_be_executed() {
        let maps = "\
55d0-55d1 r-xp 00000000 08:01 1 /usr/bin/kedge
7f00-7f01 r--p 00000000 08:01 2 /usr/lib/x86_64-linux-gnu/libc.so.6
7f01-7f02 r-xp 00001000 08:01 2 /usr/lib/x86_64-linux-gnu/libc.so.6
7f02-7f03 r-xp 00000000 08:01 3 /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
7f03-7f04 r--p 00000000 08:01 4 /usr/lib/locale/C.utf8/LC_CTYPE
7ffd-7ffe r-xp 00000000 00:00 0 [vdso]
";
        let paths: Vec<_> = libraries(maps).into_iter().map(|library| library.path).collect();
        assert_eq!(paths, ["/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn the_layer_holds_this_program_and_is_the_same_each_time() {
        let image = OwnImage::of_this_program("example.test/own").unwrap();
        let again = OwnImage::of_this_program("example.test/own").unwrap();
        assert_eq!(image.name(), again.name());
        let plan = image.plan();
        let mut bytes = Vec::new();
        image.open(&plan.diff_ids[0]).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, plan.manifest.layers[0].size);
        assert_eq!(Digest::of(&bytes), plan.diff_ids[0]);
        let mut names = Vec::new();
        let mut archive = tar::Archive::new(bytes.as_slice());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            if name == PROGRAM {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                assert!(content == fs::read("/proc/self/exe").unwrap());
            }
            names.push(name);
        }
        assert!(names.iter().any(|name| name.contains("libc.so")), "{names:?}");
        assert!(image.open(&Digest::of(b"other")).is_err());
    }
}
