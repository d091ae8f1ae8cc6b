// SPDX-License-Identifier: Apache-2.0
//! Archives as the container engines write them, and an empty store, for the tests of all verbs.

use std::io::Write;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::import::{Import, ImportError};
use crate::made::Made;
use crate::store::StoreArguments;

/// A tar in memory.
pub(crate) struct Tar(Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(crate) fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        self.0.append(&header(EntryType::Regular, path, content.len()), content).unwrap();
        self
    }

    pub(crate) fn folder(mut self, path: &str) -> Self {
        self.0.append(&header(EntryType::Directory, path, 0), &b""[..]).unwrap();
        self
    }

    pub(crate) fn odd(mut self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = header(kind, path, 0);
        header.set_link_name_literal(target).unwrap();
        header.set_cksum();
        self.0.append(&header, &b""[..]).unwrap();
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn header(kind: EntryType, path: &str, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size as u64);
    header.set_cksum();
    header
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A CRIU image with one entry. Source for the form and the magics: CRIU criu/image.c, include/magic.h.
fn image(magic: u32, entry: &[u8]) -> Vec<u8> {
    let size = u32::try_from(entry.len()).unwrap();
    let words = [0x5456_4319, magic, size].map(u32::to_le_bytes);
    [&words.concat(), entry].concat()
}

/// A message whose fields are small numbers.
fn numbers(fields: &[(u8, u8)]) -> Vec<u8> {
    fields.iter().flat_map(|(field, value)| varint_key(*field, 0).into_iter().chain([*value])).collect()
}

fn nested(field: u8, message: &[u8]) -> Vec<u8> {
    [&varint_key(field, 2)[..], &[u8::try_from(message.len()).unwrap()], message].concat()
}

fn varint_key(field: u8, wire: u8) -> Vec<u8> {
    let low = field << 3 | wire;
    if field < 16 { vec![low] } else { vec![low | 128, field >> 4] }
}

/// The CRIU images of one process, `comm`, of user 7.
pub(crate) fn images(tar: Tar, comm: &str) -> Tar {
    let pstree = numbers(&[(1, 1), (2, 0), (3, 1), (4, 1), (5, 1)]);
    let ids = (1..=8).map(|field| (field, 7)).collect::<Vec<_>>();
    let credentials = numbers(&[&ids[..], &[(11, 2), (13, 0), (18, 1)]].concat());
    let task = [numbers(&[(1, 1)]), nested(6, comm.as_bytes())].concat();
    let thread = [nested(10, &credentials), numbers(&[(11, 2)])].concat();
    let core = [numbers(&[(1, 1)]), nested(3, &task), nested(5, &thread)].concat();
    tar.folder("checkpoint/")
        .file("checkpoint/inventory.img", "inventory")
        .file("checkpoint/pstree.img", image(0x5027_3030, &pstree))
        .file("checkpoint/core-1.img", image(0x5505_3847, &core))
        .file("checkpoint/pages-1.img", [7; 5000])
        .file("checkpoint/descriptors.json", r#"["/dev/null","pipe:[1]","pipe:[2]"]"#)
}

/// `spec.dump` of containerd.
pub(crate) fn containerd_spec(namespace: &str, pod: &str, container: &str) -> String {
    format!(
        r#"{{"ociVersion":"1.2.0","annotations":{{
            "io.kubernetes.cri.container-type":"container",
            "io.kubernetes.cri.sandbox-namespace":"{namespace}",
            "io.kubernetes.cri.sandbox-name":"{pod}",
            "io.kubernetes.cri.sandbox-uid":"11111111-2222",
            "io.kubernetes.cri.container-name":"{container}",
            "io.kubernetes.cri.image-name":"docker.io/library/python:3.12"}}}}"#
    )
}

/// The rest of what containerd writes, after the images and the layer.
pub(crate) fn containerd(tar: Tar, namespace: &str, pod: &str, container: &str) -> Tar {
    tar.file("config.dump", r#"{"id":"abc","name":"x","rootfsImageRef":"python@sha256:1","runtime":"runc"}"#)
        .file("spec.dump", containerd_spec(namespace, pod, container))
        .file("status.dump", r#"{"labels":{"io.kubernetes.pod.name":"x"}}"#)
        .file("container.log", "log")
}

/// An archive of container `main` of pod `team/trainer` without a layer.
pub(crate) fn plain() -> Vec<u8> {
    containerd(images(Tar::new(), "python3"), "team", "trainer", "main").bytes()
}

/// A directory with archives, and a store beside them.
pub(crate) struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("checkpoints")
    }

    pub(crate) fn store(&self) -> StoreArguments {
        StoreArguments { root: Some(self.root()) }
    }

    pub(crate) fn archive(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// What `import` does with archives of this content.
    pub(crate) fn import(&self, archives: &[&[u8]]) -> Result<Made, ImportError> {
        self.import_as(archives, Import::default())
    }

    pub(crate) fn import_as(&self, archives: &[&[u8]], import: Import) -> Result<Made, ImportError> {
        let paths = archives
            .iter()
            .enumerate()
            .map(|(index, content)| self.archive(&format!("{index}.tar"), content));
        Import { archives: paths.collect(), store: self.store(), ..import }.import()
    }

    /// Everything beneath the store's root.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        let mut todo = vec![self.root()];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    todo.push(path.clone());
                }
                all.push(path);
            }
        }
        all
    }
}

/// An error with everything that led to it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let source = error.source().map(chain).unwrap_or_default();
    format!("{error}: {source}")
}

/// Whether this is how overlayfs marks a deletion.
pub(crate) fn is_whiteout(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = std::fs::symlink_metadata(path).unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}
