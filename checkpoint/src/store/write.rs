// SPDX-License-Identifier: Apache-2.0
//! Writes one checkpoint: under a temporary name first, visible by one rename at the end.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::remove::remove_tree;
use super::write_container::{ContainerWriter, FILE_MODE};
use super::{Root, Store, TEMPORARY, make_dir};
use crate::beneath;
use crate::container_dir::IMAGES;
use crate::id::CheckpointId;
use crate::manifest::{self, Manifest};
use crate::reference::Lineage;

/// How often to begin again when somebody cleans away the directory that was just made.
const BEGIN_ATTEMPTS: u32 = 8;
/// How long to wait before that.
const BEGIN_PAUSE: Duration = Duration::from_millis(10);

/// The checkpoint cannot be written; nothing of it remains.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is one with the same id, or one is being written.
    #[error("checkpoint {path} exists already, or is being written", path = path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The store has no root.
    #[error("the store has no root that exists")]
    NoRoot,
    /// The file cannot be part of a checkpoint.
    #[error("{name:?} is not a name that a file of a checkpoint can have")]
    Name {
        /// The name.
        name: String,
    },
    /// What is to be copied cannot be read.
    #[error("cannot read {name}")]
    Read {
        /// The file.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {step} {path}", path = path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// A checkpoint that does not exist yet. Dropped before it is published, it leaves nothing behind.
#[derive(Debug)]
pub struct Writer<'a> {
    root: &'a Root,
    /// `<namespace>/<lineage>`.
    relative: PathBuf,
    id: CheckpointId,
    parent: OwnedFd,
    dir: OwnedFd,
    /// The manifest, empty until the end. Its lock says that we live.
    manifest: std::fs::File,
    published: bool,
}

impl Store {
    /// Begins a checkpoint in the first root.
    ///
    /// # Errors
    /// All of [`WriteError`] but `Name` and `Read`.
    pub fn begin(
        &self,
        namespace: &str,
        lineage: &Lineage,
        id: CheckpointId,
    ) -> Result<Writer<'_>, WriteError> {
        let root = self.roots.first().ok_or(WriteError::NoRoot)?;
        if !crate::reference::is_dns_label(namespace) {
            return Err(WriteError::Name { name: namespace.to_owned() });
        }
        let relative = Path::new(namespace).join(lineage.as_str());
        let path = root.path.join(&relative).join(id.as_str());
        let mut attempt = 1;
        loop {
            let begun = begin(root, namespace, lineage, &id);
            match begun {
                Ok(Some((parent, dir, manifest))) => {
                    let writer = Writer { root, relative, id, parent, dir, manifest, published: false };
                    // The writer exists before this check so that it cleans up.
                    return if path.exists() { Err(WriteError::Exists { path }) } else { Ok(writer) };
                }
                Ok(None) if attempt < BEGIN_ATTEMPTS => attempt += 1,
                Ok(None) => return Err(WriteError::Exists { path }),
                Err(source) => return Err(WriteError::Io { step: "make", path, source }),
            }
            std::thread::sleep(BEGIN_PAUSE);
        }
    }
}

/// The lineage's directory, the new temporary one in it, and its locked manifest; `None` when a cleaner was faster.
fn begin(
    root: &Root,
    namespace: &str,
    lineage: &Lineage,
    id: &CheckpointId,
) -> io::Result<Option<(OwnedFd, OwnedFd, std::fs::File)>> {
    let name = format!("{TEMPORARY}{id}");
    let make = || {
        make_dir(&root.dir, namespace)?;
        let namespace = beneath::open_dir(root.dir.as_fd(), namespace)?;
        make_dir(&namespace, lineage.as_str())?;
        let parent = beneath::open_dir(namespace.as_fd(), lineage.as_str())?;
        rustix::fs::mkdirat(&parent, &name, Mode::RWXU)?;
        Ok(parent)
    };
    let claim = |parent: &OwnedFd| {
        let dir = beneath::open_dir(parent.as_fd(), &name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let manifest = std::fs::File::from(rustix::fs::openat(&dir, manifest::FILE, flags, FILE_MODE)?);
        rustix::fs::flock(&manifest, FlockOperation::NonBlockingLockExclusive)?;
        let lost = rustix::fs::fstat(&manifest)?.st_nlink == 0;
        Ok((!lost).then_some((dir, manifest)))
    };
    let begun = make().and_then(|parent| match claim(&parent) {
        Ok(claimed) => Ok(claimed.map(|(dir, manifest)| (parent, dir, manifest))),
        Err(error) if lost_to_cleaner(&error) => Ok(None),
        Err(error) => {
            let _ = remove_tree(&root.path.join(namespace).join(lineage.as_str()).join(&name));
            Err(error)
        }
    });
    match begun {
        Err(error) if lost_to_cleaner(&error) || error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        done => done,
    }
}

fn lost_to_cleaner(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock)
}

impl Writer<'_> {
    /// The checkpoint's id.
    #[must_use]
    pub fn id(&self) -> &CheckpointId {
        &self.id
    }

    /// Where it lies for now.
    fn path(&self) -> PathBuf {
        self.root.path.join(&self.relative).join(format!("{TEMPORARY}{}", self.id))
    }

    /// Makes the directory of one container.
    ///
    /// # Errors
    /// `Name` and `Io`.
    pub fn container(&self, name: &str) -> Result<ContainerWriter, WriteError> {
        if !crate::reference::is_dns_label(name) {
            return Err(WriteError::Name { name: name.to_owned() });
        }
        let path = self.path().join(name);
        let make = || {
            rustix::fs::mkdirat(&self.dir, name, Mode::RWXU)?;
            let dir = beneath::open_dir(self.dir.as_fd(), name)?;
            rustix::fs::mkdirat(&dir, IMAGES, Mode::RWXU)?;
            Ok(dir)
        };
        let dir = make().map_err(|source| WriteError::Io { step: "make", path: path.clone(), source })?;
        Ok(ContainerWriter::new(path, dir))
    }

    /// Makes everything durable, writes the manifest, and gives the checkpoint its name.
    ///
    /// # Errors
    /// `Io`; then nothing was published.
    pub fn publish(mut self, manifest: &Manifest) -> Result<PathBuf, WriteError> {
        let path = self.path();
        let failed = |step| {
            let path = path.clone();
            move |source: io::Error| WriteError::Io { step, path, source }
        };
        let json = manifest.to_json();
        if u64::try_from(json.len()).unwrap_or(u64::MAX) > manifest::LIMIT_BYTES {
            let text = format!(
                "it has too many files: longer than the {} bytes that are read",
                manifest::LIMIT_BYTES
            );
            return Err(failed("write the manifest of")(io::Error::new(io::ErrorKind::FileTooLarge, text)));
        }
        // One call for what may be 100,000 small files; it returns when all of them are on the disk.
        rustix::fs::syncfs(&self.dir).map_err(|error| failed("write")(error.into()))?;
        self.manifest
            .write_all(&json)
            .and_then(|()| self.manifest.sync_all())
            .and_then(|()| Ok(rustix::fs::fsync(&self.dir)?))
            .map_err(failed("write the manifest of"))?;
        self.name().map_err(failed("rename"))?;
        let durable = || {
            rustix::fs::fsync(&self.parent)?;
            let namespace = self.relative.parent().unwrap_or(&self.relative);
            rustix::fs::fsync(beneath::open_dir(self.root.dir.as_fd(), namespace)?)?;
            rustix::fs::fsync(&self.root.dir)?;
            Ok(())
        };
        durable().map_err(failed("write the directory of"))?;
        Ok(self.root.path.join(&self.relative).join(self.id.as_str()))
    }

    /// Gives the directory its final name; from then on it can be restored, so the lock goes at once.
    fn name(&mut self) -> io::Result<()> {
        let name = self.id.as_str();
        rustix::fs::renameat(&self.parent, format!("{TEMPORARY}{name}"), &self.parent, name)?;
        self.published = true;
        // If this fails the lock goes with the file.
        let _ = rustix::fs::flock(&self.manifest, FlockOperation::Unlock);
        Ok(())
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !self.published {
            // If this fails the next cleaning does it: our lock dies with us.
            let _ = remove_tree(&self.path());
            self.root.remove_empty_parents(&self.relative);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::manifest::example;

    #[test]
    fn a_checkpoint_can_be_restored_as_soon_as_it_has_its_name() {
        let root = tempfile::tempdir().unwrap();
        let config = Config { roots: vec![root.path().to_owned()], ..Config::default() };
        let store = Store::create(&config).unwrap();
        let id = CheckpointId::new(time::macros::datetime!(2026-11-22 18:15 UTC), 1);
        let lineage: Lineage = "trainer".parse().unwrap();
        let mut writer = store.begin("team", &lineage, id.clone()).unwrap();
        writer.manifest.write_all(&example("team", "trainer", id.clone()).to_json()).unwrap();
        writer.name().unwrap();
        // The writer still lives, as it does while it makes the name durable.
        let found = store.resolve("team", &lineage, &"latest".parse().unwrap()).unwrap();
        assert_eq!(*found.id(), id);
        drop(writer);
    }
}
