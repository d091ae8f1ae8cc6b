// SPDX-License-Identifier: Apache-2.0
//! `manifest.json`: what a checkpoint is and what it consists of.
//!
//! Invariant: it is written last, and a directory without it is no checkpoint. Within format version 1 fields are
//! only ever added, so unknown ones are tolerated; another version is refused.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::id::CheckpointId;
use crate::reference::Lineage;

/// The name of the file in a checkpoint's directory.
pub const FILE: &str = "manifest.json";
/// The format that this code writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// The longest manifest that is read, in bytes.
pub const LIMIT_BYTES: u64 = 16 * 1024 * 1024;

/// One checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format version, [`VERSION`].
    pub version: u32,
    /// Its name; the directory has the same.
    pub id: CheckpointId,
    /// When it came into the store (UTC). When the containers were frozen is in [`Container::frozen`].
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// The pod that was frozen.
    pub pod: Pod,
    /// Its containers that were frozen, by name.
    pub containers: BTreeMap<String, Container>,
    /// The node on which it was frozen, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
}

/// The pod that a checkpoint was taken of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace; the checkpoint lies beneath a directory of this name.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The line of checkpoints that this one belongs to.
    pub lineage: Lineage,
    /// The addresses it had, where they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// One frozen container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The image it ran.
    pub image: Image,
    /// The OCI runtime it ran under, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Who froze it.
    pub producer: Producer,
    /// When it was frozen (UTC), where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub frozen: Option<OffsetDateTime>,
    /// Its writable layer, where it had changed anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<Rootfs>,
    /// Every file outside the writable layer, by its path in the container's directory (`checkpoint/pages-1.img`).
    pub files: BTreeMap<String, File>,
}

/// The image that a container ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name as the pod gave it (`docker.io/library/python:3.12`).
    pub name: String,
    /// Name and digest, or the image's id, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// Who froze a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Producer {
    /// kubelet with containerd.
    Containerd,
    /// kubelet with CRI-O.
    CriO,
    /// Podman.
    Podman,
    /// thaw itself, without an archive.
    Thaw,
    /// A producer of a later release.
    #[serde(other)]
    Unknown,
}

/// A writable layer, kept in `rootfs/` as an overlay upper directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Bytes of file content in it.
    pub bytes: u64,
    /// SHA-256 of each layer archive it was made from, lowest first, hexadecimal, of the uncompressed tar.
    pub layers: Vec<String>,
    /// Directories that no layer archive describes, though it has something inside them: their mode and owner here
    /// are made up, and must be taken from the container's image instead. Relative paths, parents first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub implied_directories: Vec<String>,
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

/// What is known of a node; absent fields are not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// The kernel's release, `uname -r`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// CPU feature flags as in /proc/cpuinfo, separated by blanks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_features: Option<String>,
    /// CRIU's version, `4.2.1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub criu: Option<String>,
    /// The OCI runtime and its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// 1 or 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_version: Option<u8>,
}

/// The bytes are not a manifest that this release can use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read, or is longer than [`LIMIT_BYTES`].
    #[error("the manifest cannot be read: {0}")]
    Read(std::io::Error),
    /// Not JSON, or not with the fields of a manifest.
    #[error("the manifest cannot be understood: {0}")]
    Format(serde_json::Error),
    /// Another format version.
    #[error(
        "the manifest has format version {found}, and this release of thaw reads version {VERSION}: use the release that wrote the checkpoint, or update thaw on this node"
    )]
    Version {
        /// What the manifest says.
        found: u64,
    },
    /// A name in it could not be a directory of the store.
    #[error("the manifest names the {what} {name:?}, which no pod can have")]
    Name {
        /// Namespace or container.
        what: &'static str,
        /// The name, shortened.
        name: String,
    },
}

impl Manifest {
    /// Reads a manifest from JSON.
    ///
    /// # Errors
    /// All of [`ManifestError`].
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let found = serde_json::from_slice::<Versioned>(json).map_err(ManifestError::Format)?.version;
        if found != u64::from(VERSION) {
            return Err(ManifestError::Version { found });
        }
        let manifest: Self = serde_json::from_slice(json).map_err(ManifestError::Format)?;
        let names = std::iter::once(("namespace", &manifest.pod.namespace))
            .chain(manifest.containers.keys().map(|name| ("container", name)));
        for (what, name) in names {
            if !crate::reference::is_dns_label(name) {
                return Err(ManifestError::Name { what, name: crate::reference::shortened(name) });
            }
        }
        Ok(manifest)
    }

    /// The manifest as it is written, with a line break at its end.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // The types have nothing that JSON lacks (all map keys are strings), so this cannot fail.
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }

    /// Bytes of all files, the writable layers included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.containers.values().map(Container::bytes).fold(0, u64::saturating_add)
    }
}

impl Container {
    /// Bytes of all files, the writable layer included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let rootfs = self.rootfs.as_ref().map_or(0, |rootfs| rootfs.bytes);
        self.files.values().map(|file| file.bytes).fold(rootfs, u64::saturating_add)
    }
}

/// A manifest for tests of other modules.
#[cfg(test)]
pub(crate) fn example(namespace: &str, lineage: &str, id: CheckpointId) -> Manifest {
    Manifest {
        version: VERSION,
        created: id.time(),
        id,
        pod: Pod {
            namespace: namespace.into(),
            name: "trainer-0".into(),
            uid: None,
            lineage: lineage.parse().unwrap(),
            addresses: vec!["10.88.0.7".parse().unwrap()],
        },
        containers: BTreeMap::from([(
            "main".to_owned(),
            Container {
                image: Image { name: "docker.io/library/python:3.12".into(), reference: None },
                runtime: Some("runc".into()),
                producer: Producer::Containerd,
                frozen: None,
                rootfs: None,
                files: BTreeMap::new(),
            },
        )]),
        host: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    fn manifest() -> Manifest {
        example("team", "trainer", CheckpointId::new(datetime!(2026-11-22 18:15 UTC), 1))
    }

    #[test]
    fn what_is_written_is_read_again() {
        let manifest = manifest();
        assert_eq!(Manifest::parse(&manifest.to_json()).unwrap(), manifest);
    }

    #[test]
    fn unknown_fields_and_producers_of_a_later_release_are_tolerated() {
        let json = String::from_utf8(manifest().to_json()).unwrap();
        let json = json.replacen('{', "{\"later\": [1],", 1).replace("\"containerd\"", "\"another\"");
        assert_eq!(Manifest::parse(json.as_bytes()).unwrap().containers["main"].producer, Producer::Unknown);
    }

    #[test]
    fn another_version_is_refused_with_what_to_do() {
        let error = Manifest::parse(br#"{"version": 2, "anything": true}"#).unwrap_err().to_string();
        assert!(error.contains("version 2") && error.contains("update thaw"), "{error}");
    }

    #[test]
    fn names_that_could_leave_the_store_are_refused() {
        let mut manifest = manifest();
        let container = manifest.containers["main"].clone();
        manifest.containers.insert("../x".into(), container);
        assert!(matches!(
            Manifest::parse(&manifest.to_json()),
            Err(ManifestError::Name { what: "container", .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes: Vec<u8>, text in "[\\{\\}\\[\\]\",:a-z0-9 ]{0,60}") {
            let _ = Manifest::parse(&bytes);
            let _ = Manifest::parse(text.as_bytes());
        }

        #[test]
        fn a_cut_manifest_is_an_error(cut in 0usize..400) {
            let json = manifest().to_json();
            prop_assume!(cut < json.len() - 2);
            prop_assert!(Manifest::parse(&json[..cut]).is_err());
        }
    }
}
