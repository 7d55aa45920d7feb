//! Archives made by hand, whole and broken.

use super::*;

fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

const LAYER: &[u8] = b"not really a tar, but nobody unpacks it here";

fn config(layers: usize) -> Vec<u8> {
    let ids = vec![format!("\"{}\"", Digest::of(LAYER)); layers].join(",");
    format!(r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["sh"]}},"rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#)
        .into_bytes()
}

fn docker() -> Vec<u8> {
    let manifest = br#"[{"Config":"c.json","RepoTags":["busybox:1.36","x/y"],"Layers":["l/layer.tar"]}]"#;
    tar_of(&[("./l/layer.tar", LAYER), ("c.json", &config(1)), ("manifest.json", manifest)])
}

fn blob(bytes: &[u8]) -> (String, String) {
    let digest = Digest::of(bytes);
    (blob_name(&digest), digest.to_string())
}

fn oci(platform: &str, break_layer: bool) -> Vec<u8> {
    let config = config(1);
    let (config_name, config_digest) = blob(&config);
    let (layer_name, layer_digest) = blob(LAYER);
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{config_digest}","size":{}}},"layers":[{{"mediaType":"l","digest":"{layer_digest}","size":{}}}]}}"#,
        config.len(),
        LAYER.len()
    );
    let (manifest_name, manifest_digest) = blob(manifest.as_bytes());
    let inner = format!(
        r#"{{"manifests":[{{"digest":"{manifest_digest}","size":1,"platform":{{"os":"linux","architecture":"{platform}"}}}}]}}"#
    );
    let (inner_name, inner_digest) = blob(inner.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"{inner_digest}","size":1,"annotations":{{"io.containerd.image.name":"localhost/m:1"}}}}]}}"#
    );
    let mut layer = LAYER.to_vec();
    if break_layer {
        layer[0] ^= 1;
    }
    tar_of(&[
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", index.as_bytes()),
        (&inner_name, inner.as_bytes()),
        (&manifest_name, manifest.as_bytes()),
        (&config_name, &config),
        (&layer_name, &layer),
    ])
}

fn plan_of(tar: &[u8]) -> Result<ArchivePlan, ArchiveError> {
    plan(&scan(tar)?, "amd64")
}

fn check_refused(tar: &[u8], expected: &str) {
    let error = plan_of(tar).expect_err(expected).to_string();
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
}

#[test]
fn a_docker_archive_gives_its_images() {
    let plan = plan_of(&docker()).unwrap();
    let image = &plan.images[0];
    assert_eq!(image.names, ["docker.io/library/busybox:1.36", "docker.io/x/y:latest"]);
    assert_eq!(image.manifest.config.digest, Digest::of(&config(1)));
    assert_eq!(image.manifest_digest, Digest::of(&image.manifest_bytes));
    assert_eq!(plan.blobs[&Digest::of(LAYER)], "l/layer.tar");
}

#[test]
fn an_oci_archive_gives_the_image_for_this_machine() {
    let plan = plan_of(&oci("amd64", false)).unwrap();
    assert_eq!(plan.images[0].names, ["localhost/m:1"]);
    check_refused(&oci("arm64", false), "image is for linux/arm64, this node is linux/amd64");
}

#[test]
fn layers_may_be_links_to_other_layers() {
    let manifest = br#"[{"Config":"c.json","RepoTags":null,"Layers":["a/layer.tar","b/layer.tar"]}]"#;
    let mut builder = tar::Builder::new(tar_of(&[("a/layer.tar", LAYER)])[..1024].to_vec());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "b/layer.tar", "../a/layer.tar").unwrap();
    for (name, bytes) in [("c.json", &config(2)[..]), ("manifest.json", manifest)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    let plan = plan_of(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(plan.images[0].manifest.layers.len(), 2);
    assert_eq!(plan.blobs[&Digest::of(LAYER)], "a/layer.tar");
}

#[test]
fn every_truncation_is_refused() {
    for whole in [docker(), oci("amd64", false)] {
        let needed = whole.len() - 1024; // The two empty blocks at the end may be missing, as some writers leave them out.
        for length in (0..needed).step_by(97).chain([needed - 512]) {
            assert!(plan_of(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
        }
    }
}

#[test]
fn what_is_no_archive_is_not_quoted() {
    let error = plan_of("root:secret:0\n".repeat(200).as_bytes()).unwrap_err().to_string();
    assert_eq!(error, "cannot be read as a tar or tar.gz archive: it has no valid tar header");
}

#[test]
fn what_is_broken_is_named() {
    check_refused(&oci("amd64", true), "really is");
    check_refused(&tar_of(&[("x", b"y")]), "neither manifest.json nor index.json");
    check_refused(&tar_of(&[("manifest.json", b"[]")]), "lists no images");
    check_refused(&tar_of(&[("manifest.json", b"[{]")]), "\"manifest.json\" is malformed");
    check_refused(
        &tar_of(&[("manifest.json", br#"[{"Config":"../../etc/passwd","Layers":[]}]"#)]),
        "lacks \"../../etc/passwd\"",
    );
    check_refused(&tar_of(&[("a", b"1"), ("a", b"2"), ("manifest.json", b"[]")]), "holds \"a\" twice");
    check_refused(
        &tar_of(&[("c", &config(2)), ("manifest.json", br#"[{"Config":"c","Layers":[]}]"#)]),
        "2 layers, but 0",
    );
    let mut huge = b"[".to_vec();
    huge.resize((JSON_BYTES_MAX + 1) as usize, b' ');
    check_refused(&tar_of(&[("manifest.json", &huge)]), "larger than 4 MiB");
}

#[test]
fn links_in_a_circle_end() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "manifest.json", "manifest.json").unwrap();
    check_refused(&builder.into_inner().unwrap(), "links nest too deep");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..4096), at in 0..3000usize) {
        let _ = plan_of(&bytes);
        let mut whole = docker();
        for (offset, byte) in bytes.iter().enumerate().take(16) {
            let length = whole.len();
            whole[(at + offset * 37) % length] ^= byte;
        }
        let _ = plan_of(&whole);
    }
}
