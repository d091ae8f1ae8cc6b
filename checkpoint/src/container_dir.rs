// SPDX-License-Identifier: Apache-2.0
//! The directory of one container in a checkpoint: its CRIU images, its writable layer, its small files.
//!
//! Invariant: an open `ContainerDir` has exactly the files that the manifest lists, each a regular file of the
//! listed length. Content is not read: hashing gigabytes is for `import`, not for the path of a restore.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, FileType, statat};
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use crate::beneath;
use crate::container_log::{self, Written};
use crate::dump::{self, ConfigDump, DumpError, NetworkDump, StateDump, StatusDump};
use crate::gpu::{self, Gpu};
use crate::manifest::{Container, File};
use crate::store::CheckpointDir;

/// The folder of the CRIU images.
pub(crate) const IMAGES: &str = "checkpoint";
/// Images that every checkpoint of CRIU has. Source: CRIU images/README, criu/image-desc.c.
const REQUIRED: [&str; 3] =
    ["checkpoint/inventory.img", "checkpoint/pstree.img", "checkpoint/descriptors.json"];

/// One image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// Its name in the images directory, which is flat.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// One container of a checkpoint, found complete.
#[derive(Debug)]
pub struct ContainerDir {
    dir: OwnedFd,
    images_dir: OwnedFd,
    images_path: PathBuf,
    images: Vec<ImageFile>,
    rootfs: Option<PathBuf>,
    record: Container,
}

/// One file that is not what the manifest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It is not there.
    #[error("{file} is missing")]
    Missing {
        /// Its path in the container's directory.
        file: String,
    },
    /// It is a link, directory, device or pipe.
    #[error("{file} is not a regular file")]
    NotRegular {
        /// Its path in the container's directory.
        file: String,
    },
    /// It is too short or too long.
    #[error("{file} has {actual} bytes and the manifest says {expected}")]
    Size {
        /// Its path in the container's directory.
        file: String,
        /// Its length.
        actual: u64,
        /// The length it had when the checkpoint was written.
        expected: u64,
    },
    /// The manifest does not know it.
    #[error("{file} is not in the manifest")]
    Unlisted {
        /// Its path in the container's directory.
        file: String,
    },
}

/// Everything that is wrong with a container's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damages(pub Vec<Damage>);

impl fmt::Display for Damages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::faults::join(f, &self.0)
    }
}

/// The container cannot be restored from this checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum ContainerDirError {
    /// The checkpoint was not taken of this container.
    #[error("checkpoint {checkpoint} does not hold container {container:?}: it holds {held}")]
    NotHeld {
        /// The checkpoint.
        checkpoint: String,
        /// The container asked for.
        container: String,
        /// The containers it holds.
        held: String,
    },
    /// Its files are not what the manifest says.
    #[error(
        "container {container:?} of checkpoint {checkpoint} is damaged: {damages}; import its archive again"
    )]
    Damaged {
        /// The checkpoint.
        checkpoint: String,
        /// The container.
        container: String,
        /// All that is wrong.
        damages: Damages,
    },
    /// A system call failed.
    #[error("cannot open {path}", path = path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// One of the small files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadDumpError {
    /// It cannot be opened, or is too long.
    #[error("cannot read {file}")]
    Read {
        /// Which file.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It makes no sense.
    #[error(transparent)]
    Parse(#[from] DumpError),
}

impl CheckpointDir {
    /// Opens one container and compares its files with the manifest.
    ///
    /// # Errors
    /// All of [`ContainerDirError`].
    pub fn container(&self, name: &str) -> Result<ContainerDir, ContainerDirError> {
        let containers = &self.manifest().containers;
        let Some(record) = containers.get(name) else {
            let held = containers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let container = crate::reference::shortened(name);
            return Err(ContainerDirError::NotHeld { checkpoint: self.name(), container, held });
        };
        let path = self.path().join(name);
        let opened = ContainerDir::open(self.as_fd(), name, &path, record.clone());
        let (container, damages) = opened.map_err(|source| ContainerDirError::Open { path, source })?;
        if damages.is_empty() {
            return Ok(container);
        }
        let (checkpoint, container) = (self.name(), name.to_owned());
        Err(ContainerDirError::Damaged { checkpoint, container, damages: Damages(damages) })
    }
}

impl ContainerDir {
    fn open(
        checkpoint: BorrowedFd<'_>,
        name: &str,
        path: &Path,
        record: Container,
    ) -> io::Result<(Self, Vec<Damage>)> {
        let dir = beneath::open_dir(checkpoint, name)?;
        let images_dir = beneath::open_dir(dir.as_fd(), IMAGES)?;
        let mut damages = Vec::new();
        let required = REQUIRED.iter().filter(|file| !record.files.contains_key(**file));
        damages.extend(required.map(|file| Damage::Missing { file: (*file).to_owned() }));
        for (file, recorded) in &record.files {
            damages.extend(compare(dir.as_fd(), file, recorded)?);
        }
        let mut images = Vec::new();
        for (name, _) in beneath::names(images_dir.as_fd())? {
            let name = name.to_string_lossy().into_owned();
            let file = format!("{IMAGES}/{name}");
            match record.files.get(&file) {
                Some(recorded) => images.push(ImageFile { name, bytes: recorded.bytes }),
                None => damages.push(Damage::Unlisted { file }),
            }
        }
        let rootfs = match &record.rootfs {
            None => None,
            Some(_) => Some(beneath::open_dir(dir.as_fd(), "rootfs").map(|_| path.join("rootfs"))?),
        };
        Ok((Self { dir, images_dir, images_path: path.join(IMAGES), images, rootfs, record }, damages))
    }

    /// The CRIU images.
    #[must_use]
    pub fn images_dir(&self) -> BorrowedFd<'_> {
        self.images_dir.as_fd()
    }

    /// The absolute path of the CRIU images.
    #[must_use]
    pub fn images_path(&self) -> &Path {
        &self.images_path
    }

    /// The CRIU images, by name.
    #[must_use]
    pub fn images(&self) -> &[ImageFile] {
        &self.images
    }

    /// The absolute path of the writable layer, an overlay upper directory to be mounted as one more lower one.
    #[must_use]
    pub fn rootfs(&self) -> Option<&Path> {
        self.rootfs.as_deref()
    }

    /// See [`crate::manifest::Rootfs::implied_directories`].
    #[must_use]
    pub fn implied_directories(&self) -> &[String] {
        self.record.rootfs.as_ref().map_or(&[], |rootfs| &rootfs.implied_directories)
    }

    /// What the manifest says of this container.
    #[must_use]
    pub fn record(&self) -> &Container {
        &self.record
    }

    /// What descriptors 0, 1 and 2 were: `pipe:[47029]`, `/dev/null`, ...
    ///
    /// # Errors
    /// When `descriptors.json` cannot be read or understood.
    pub fn stdio(&self) -> Result<[Option<String>; 3], ReadDumpError> {
        let json = beneath::read(self.images_dir.as_fd(), dump::DESCRIPTORS, dump::LIMIT_BYTES)
            .map_err(|source| ReadDumpError::Read { file: dump::DESCRIPTORS, source })?;
        Ok(dump::stdio(&json)?)
    }

    /// The GPUs that it had; none where the producer does not say.
    ///
    /// # Errors
    /// When [`gpu::FILE`] cannot be read or understood.
    pub fn gpus(&self) -> Result<Vec<Gpu>, ReadDumpError> {
        self.beside_images(gpu::FILE)
    }

    /// What its network namespace had; nothing where the producer does not say.
    ///
    /// # Errors
    /// When [`dump::NETWORK`] cannot be read or understood.
    pub fn network(&self) -> Result<NetworkDump, ReadDumpError> {
        self.beside_images(dump::NETWORK)
    }

    /// What the threads were like, and when; nothing where the producer does not say.
    ///
    /// # Errors
    /// When [`dump::STATE`] cannot be read or understood.
    pub fn state(&self) -> Result<StateDump, ReadDumpError> {
        self.beside_images(dump::STATE)
    }

    /// What it had logged until it was `frozen`, if the archive had that. See [`container_log`].
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn log(&self, frozen: Option<OffsetDateTime>) -> Result<Option<Written>, ReadDumpError> {
        if !self.record.files.contains_key(dump::LOG) {
            return Ok(None);
        }
        let read = |file| container_log::read(file, frozen);
        let read = beneath::open_file(self.dir.as_fd(), dump::LOG).and_then(read);
        read.map(Some).map_err(|source| ReadDumpError::Read { file: dump::LOG, source })
    }

    /// One of thaw's own files among the images.
    fn beside_images<T: DeserializeOwned + Default>(&self, file: &'static str) -> Result<T, ReadDumpError> {
        if !self.images.iter().any(|image| image.name == file) {
            return Ok(T::default());
        }
        let json = beneath::read(self.images_dir.as_fd(), file, dump::LIMIT_BYTES)
            .map_err(|source| ReadDumpError::Read { file, source })?;
        Ok(dump::parse(file, &json)?)
    }

    /// `config.dump`.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn config(&self) -> Result<ConfigDump, ReadDumpError> {
        self.read(dump::CONFIG)
    }

    /// `spec.dump`.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn spec(&self) -> Result<Spec, ReadDumpError> {
        self.read(dump::SPEC)
    }

    /// `status.dump`, which only some producers write.
    ///
    /// # Errors
    /// When it is there and cannot be read or understood.
    pub fn status(&self) -> Result<Option<StatusDump>, ReadDumpError> {
        if self.record.files.contains_key(dump::STATUS) {
            self.read(dump::STATUS).map(Some)
        } else {
            Ok(None)
        }
    }

    fn read<T: DeserializeOwned>(&self, file: &'static str) -> Result<T, ReadDumpError> {
        let json = beneath::read(self.dir.as_fd(), file, dump::LIMIT_BYTES)
            .map_err(|source| ReadDumpError::Read { file, source })?;
        Ok(dump::parse(file, &json)?)
    }
}

/// Whether `file` is what the manifest recorded.
fn compare(dir: BorrowedFd<'_>, file: &str, recorded: &File) -> io::Result<Option<Damage>> {
    let owned = || file.to_owned();
    // Such a name is not one that thaw writes, and could lead elsewhere.
    let plain = |name: &str| !name.is_empty() && Path::new(name).file_name() == Some(OsStr::new(name));
    if !file.strip_prefix("checkpoint/").map_or_else(|| plain(file), plain) {
        return Ok(Some(Damage::NotRegular { file: owned() }));
    }
    let stat = match statat(dir, file, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(Some(Damage::Missing { file: owned() })),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Some(Damage::NotRegular { file: owned() }));
    }
    let actual = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    let (file, expected) = (owned(), recorded.bytes);
    Ok((actual != expected).then_some(Damage::Size { file, actual, expected }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Writer;
    use crate::{CheckpointId, Config, Reference, Store};
    use time::macros::datetime;

    const DESCRIPTORS: &[u8] = br#"["/dev/null","pipe:[1]","pipe:[2]"]"#;

    fn write(writer: Writer<'_>, omit: &str) -> CheckpointId {
        let id = writer.id().clone();
        let mut manifest = crate::manifest::example("team", "trainer", id.clone());
        let mut container = writer.container("main").unwrap();
        let files: [(&str, &[u8]); 5] = [
            ("checkpoint/inventory.img", b"inventory"),
            ("checkpoint/pstree.img", b"pstree"),
            ("checkpoint/pages-1.img", b"0123456789"),
            ("checkpoint/descriptors.json", DESCRIPTORS),
            ("config.dump", b"{\"id\":\"x\"}"),
        ];
        for (name, mut content) in files.into_iter().filter(|(name, _)| *name != omit) {
            container.add(name, &mut content).unwrap();
        }
        drop(container.rootfs().unwrap());
        let record = manifest.containers.get_mut("main").unwrap();
        record.files = container.into_files();
        record.rootfs = Some(crate::manifest::Rootfs::default());
        writer.publish(&manifest).unwrap();
        id
    }

    /// A checkpoint with container `main`, damaged by `damage`, and what opening that container gives.
    fn open(
        omit: &str,
        damage: impl FnOnce(&Path),
    ) -> (tempfile::TempDir, Result<ContainerDir, ContainerDirError>) {
        let root = tempfile::tempdir().unwrap();
        let store =
            Store::create(&Config { roots: vec![root.path().to_owned()], ..Config::default() }).unwrap();
        let lineage = "trainer".parse().unwrap();
        let id = CheckpointId::new(datetime!(2026-11-22 18:15 UTC), 1);
        write(store.begin("team", &lineage, id).unwrap(), omit);
        let checkpoint = store.resolve("team", &lineage, &Reference::Latest).unwrap();
        damage(&checkpoint.path().join("main"));
        let container = checkpoint.container("main");
        (root, container)
    }

    fn message(damage: impl FnOnce(&Path)) -> String {
        open("", damage).1.unwrap_err().to_string()
    }

    #[test]
    fn a_complete_container_opens() {
        let (_root, container) = open("", |_| {});
        let container = container.unwrap();
        assert_eq!(container.images().len(), 4);
        assert_eq!(container.images()[2], ImageFile { name: "pages-1.img".into(), bytes: 10 });
        assert!(container.rootfs().unwrap().ends_with("main/rootfs"));
        assert_eq!(container.stdio().unwrap()[1].as_deref(), Some("pipe:[1]"));
        assert_eq!(container.config().unwrap().id, "x");
        assert!(container.status().unwrap().is_none() && container.spec().is_err());
    }

    #[test]
    fn a_truncated_image_is_named_with_both_sizes() {
        let error = message(|dir| std::fs::write(dir.join("checkpoint/pages-1.img"), "01234").unwrap());
        assert!(error.contains("checkpoint/pages-1.img has 5 bytes and the manifest says 10"), "{error}");
    }

    #[test]
    fn all_damages_come_at_once() {
        let error = message(|dir| {
            std::fs::remove_file(dir.join("checkpoint/pages-1.img")).unwrap();
            std::fs::remove_file(dir.join("config.dump")).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", dir.join("config.dump")).unwrap();
            std::fs::write(dir.join("checkpoint/extra.img"), "x").unwrap();
        });
        for part in [
            "pages-1.img is missing",
            "config.dump is not a regular file",
            "extra.img is not in the manifest",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_checkpoint_without_an_inventory_is_damaged() {
        let error = open("checkpoint/inventory.img", |_| {}).1.unwrap_err().to_string();
        assert!(error.contains("inventory.img is missing"), "{error}");
    }

    #[test]
    fn a_missing_layer_or_linked_directory_does_not_open() {
        assert!(message(|dir| std::fs::remove_dir(dir.join("rootfs")).unwrap()).contains("cannot open"));
        let error = message(|dir| {
            std::fs::rename(dir.join("checkpoint"), dir.join("moved")).unwrap();
            std::os::unix::fs::symlink("moved", dir.join("checkpoint")).unwrap();
        });
        assert!(error.contains("cannot open"), "{error}");
    }
}
