//! The container image for Kubernetes, written as an OCI layout in a tar archive without any container tool.
//!
//! The image has one layer with two static binaries and nothing else. `podman load`, `ctr image import` and
//! `skopeo copy oci-archive:` read it.

use std::fs;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Release, gzip, tree::Tree};
use crate::Outcome;

/// Writes the archive, and the folder that `deploy/kubernetes/Dockerfile` is built in.
pub(super) fn build(release: &Release) -> Outcome {
    let context = release.out.join("image");
    let mut binaries = Tree::new();
    let mut layer = Tree::new();
    for (name, path) in [("netloom", &release.netloom), ("netloomd", &release.netloomd)] {
        let content = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        layer.file(&format!("usr/local/bin/{name}"), 0o755, content.clone());
        binaries.file(name, 0o755, content);
    }
    layer.file("usr/share/doc/netloom/THIRD-PARTY-LICENCES.gz", 0o644, gzip(release.licences.as_bytes())?);
    // The daemon keeps state, sockets and temporary files in these.
    for folder in ["etc/netloom", "run", "tmp", "var/lib/netloom"] {
        layer.folder(folder);
    }
    binaries.write(&context)?;

    let mut blobs = Tree::new();
    let mut blob = |content: Vec<u8>| -> (String, usize) {
        let digest = hex(&content);
        let size = content.len();
        blobs.file(&format!("blobs/sha256/{digest}"), 0o644, content);
        (format!("sha256:{digest}"), size)
    };
    let tar = layer.tar(&release.out.join("layer.d"), release.epoch)?;
    let content_digest = format!("sha256:{}", hex(&tar));
    let (layer, layer_size) = blob(gzip(&tar)?);
    let architecture = if release.arch() == "aarch64" { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": ["/usr/local/bin/netloomd"],
            "Env": ["PATH=/usr/local/bin"],
            "Labels": {"org.opencontainers.image.version": release.version, "org.opencontainers.image.licenses": "Apache-2.0"},
        },
        "rootfs": {"type": "layers", "diff_ids": [content_digest]},
        "history": [{"created_by": "cargo xtask package"}],
    });
    let (config, config_size) = blob(bytes(&config));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": layer_size}],
    });
    let (manifest, manifest_size) = blob(bytes(&manifest));
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest,
            "size": manifest_size,
            "platform": {"architecture": architecture, "os": "linux"},
            // The one is read by podman and skopeo, the other by containerd.
            "annotations": {
                "org.opencontainers.image.ref.name": release.version,
                "io.containerd.image.name": format!("docker.io/library/netloom:{}", release.version),
            },
        }],
    });
    blobs.file("index.json", 0o644, bytes(&index));
    blobs.file("oci-layout", 0o644, bytes(&json!({"imageLayoutVersion": "1.0.0"})));
    let archive = blobs.tar(&release.out.join("oci.d"), release.epoch)?;
    let to = release.name("oci.tar");
    fs::write(&to, archive).map_err(|error| format!("{}: {error}", to.display()))
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
