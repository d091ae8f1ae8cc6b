// SPDX-License-Identifier: Apache-2.0
//! The outer tar of a checkpoint archive, as kubelet, CRI-O and Podman write it.
//!
//! Invariant: the archive is a stranger's. Whatever is not a plain file or directory beneath the top is an error for
//! the whole archive, and no part of it is used. Source for the names: checkpointctl lib/metadata.go.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use checkpoint::dump::{self, ConfigDump, DumpError, NetworkDump, NetworkStatus, SpecDump, StatusDump};
use checkpoint::layer::{HeadLimit, INHERITED_LAYER, OWN_LAYER};
use checkpoint::plan::{SHM, volume_file};
use indicatif::ProgressBar;
use tar::Entries;

use crate::compression::{Compression, decompressed};

/// What was in /dev/shm, in archives of Podman.
const PODMAN_SHM: &str = "devshm-checkpoint.tar";
/// What was in a volume, in archives of Podman: around the volume's name.
const PODMAN_VOLUMES: (&str, &str) = ("volumes/", ".tar");

/// The folder of the CRIU images.
pub(crate) const IMAGES: &str = "checkpoint";

/// One file of an archive, by what it is to an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Member {
    /// A CRIU image: `checkpoint/pages-1.img`.
    Image(String),
    /// The layer of the checkpoint from which the container had been restored.
    Inherited,
    /// Podman's `devshm-checkpoint.tar`, or the tar of a volume; and the image that thaw keeps it as.
    Content(String, String),
    /// What the container changed since then.
    Own,
    /// `config.dump`, `spec.dump` or `status.dump`.
    Dump(&'static str),
    /// `rootfs-diff.tar`.
    RootfsDiff,
    /// `deleted.files`.
    DeletedFiles,
    /// The container's log.
    Log,
    /// Anything else; an import leaves it out.
    Other(String),
}

/// What an archive holds, found before anything of it is written.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) config: ConfigDump,
    pub(crate) spec: SpecDump,
    pub(crate) status: StatusDump,
    pub(crate) network: NetworkDump,
    pub(crate) network_status: NetworkStatus,
    pub(crate) deleted_files: Option<Vec<u8>>,
    pub(crate) members: BTreeSet<String>,
}

/// A checkpoint archive.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    path: PathBuf,
}

/// The archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    #[error("it is truncated: the end mark of the tar is missing; copy it again")]
    Truncated,
    #[error(
        "{path:?} in it is no plain file but of type {kind:?}: no container engine writes that into a checkpoint"
    )]
    NotPlain { path: PathBuf, kind: tar::EntryType },
    #[error("{path:?} in it leads outside of it: no container engine writes that into a checkpoint")]
    Outside { path: PathBuf },
    #[error("{path:?} in it lies too deep: CRIU's images are flat")]
    Deep { path: PathBuf },
    #[error("{name:?} is in it twice")]
    Twice { name: String },
    #[error(
        "it is no checkpoint of a container: {name} is missing (give the archive that the kubelet, CRI-O or Podman wrote)"
    )]
    Missing { name: &'static str },
    #[error(transparent)]
    Dump(#[from] DumpError),
}

impl Archive {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at what is in the archive. Of one that is not compressed only the headers and small files are read.
    pub(crate) fn survey(&self) -> Result<Survey, ArchiveError> {
        let mut survey = Survey::default();
        let mut look = |member: &Member, content: &mut dyn Read| survey.add(member, content);
        let (mut file, compression) = self.open(&ProgressBar::hidden())?;
        match compression {
            Compression::None => {
                file.seek(SeekFrom::Start(0)).map_err(ArchiveError::Read)?;
                let head = HeadLimit::default();
                let mut tar = tar::Archive::new(head.of(file));
                walk(tar.entries_with_seek().map_err(ArchiveError::Read)?, &head, &mut look)?;
            }
            Compression::Gzip | Compression::Zstd => self.each(&ProgressBar::hidden(), &mut look)?,
        }
        for name in [
            "checkpoint/inventory.img",
            "checkpoint/pstree.img",
            "checkpoint/descriptors.json",
            dump::CONFIG,
            dump::SPEC,
        ] {
            if !survey.members.contains(name) {
                return Err(ArchiveError::Missing { name });
            }
        }
        Ok(survey)
    }

    /// Reads the archive from beginning to end and shows every file of it.
    pub(crate) fn each<E: From<ArchiveError>>(
        &self,
        progress: &ProgressBar,
        visit: &mut dyn FnMut(&Member, &mut dyn Read) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut file, _) = self.open(progress)?;
        file.seek(SeekFrom::Start(0)).map_err(ArchiveError::Read)?;
        let ended = Rc::new(Cell::new(false));
        let stream = decompressed(file).map_err(ArchiveError::Read)?;
        let head = HeadLimit::default();
        let mut tar = tar::Archive::new(head.of(Tail { stream, ended: Rc::clone(&ended) }));
        walk(tar.entries().map_err(ArchiveError::Read)?, &head, visit)?;
        if ended.get() {
            return Err(ArchiveError::Truncated.into());
        }
        // The checksums of a compressed stream are at its end.
        io::copy(&mut tar.into_inner().into_inner(), &mut io::sink()).map_err(ArchiveError::Read)?;
        Ok(())
    }

    fn open(
        &self,
        progress: &ProgressBar,
    ) -> Result<(indicatif::ProgressBarIter<File>, Compression), ArchiveError> {
        let mut file = File::open(&self.path).map_err(ArchiveError::Read)?;
        if !file.metadata().map_err(ArchiveError::Read)?.is_file() {
            return Err(ArchiveError::Read(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")));
        }
        let mut start = Vec::new();
        (&mut file).take(4).read_to_end(&mut start).map_err(ArchiveError::Read)?;
        Ok((progress.wrap_read(file), Compression::of(&start)))
    }
}

impl Survey {
    /// Whether the container had changed anything in its root file system.
    pub(crate) fn has_layers(&self) -> bool {
        self.has_inherited() || self.members.contains(dump::ROOTFS_DIFF) || self.deleted_files.is_some()
    }

    /// Whether the container had been restored, and brings the layer of the checkpoint before.
    pub(crate) fn has_inherited(&self) -> bool {
        self.members.contains(&Member::Inherited.name())
    }

    /// Whether what it changed since then is there in full, so that `rootfs-diff.tar` adds nothing.
    pub(crate) fn has_own(&self) -> bool {
        self.members.contains(&Member::Own.name())
    }

    /// What an import leaves out though the container may miss it.
    pub(crate) fn left_out(&self) -> impl Iterator<Item = &str> {
        let wanted = |name: &&String| name.starts_with(PODMAN_VOLUMES.0) && volume(name).is_none();
        self.members.iter().filter(wanted).map(String::as_str)
    }

    fn add(&mut self, member: &Member, content: &mut dyn Read) -> Result<(), ArchiveError> {
        let name = member.name();
        match member {
            Member::Dump(name) if *name == dump::CONFIG => {
                self.config = dump::parse(dump::CONFIG, &small(content)?)?;
            }
            Member::Dump(name) if *name == dump::SPEC => {
                self.spec = dump::parse(dump::SPEC, &small(content)?)?;
            }
            Member::Dump(_) => self.status = dump::parse(dump::STATUS, &small(content)?)?,
            Member::DeletedFiles => self.deleted_files = Some(small(content)?),
            Member::Image(image) if image.strip_prefix("checkpoint/") == Some(dump::NETWORK) => {
                self.network = dump::parse(dump::NETWORK, &small(content)?)?;
            }
            Member::Other(name) if name == dump::NETWORK_STATUS => {
                self.network_status = dump::parse(dump::NETWORK_STATUS, &small(content)?)?;
            }
            Member::Image(_)
            | Member::Content(..)
            | Member::Inherited
            | Member::Own
            | Member::RootfsDiff
            | Member::Log
            | Member::Other(_) => {}
        }
        if self.members.insert(name.clone()) { Ok(()) } else { Err(ArchiveError::Twice { name }) }
    }
}

impl Member {
    fn of(path: &Path) -> Result<Self, ArchiveError> {
        let Some(name) = path.to_str() else {
            return Ok(Self::Other(path.to_string_lossy().into_owned()));
        };
        let known = [dump::CONFIG, dump::SPEC, dump::STATUS].into_iter().find(|known| *known == name);
        Ok(match (known, name.split_once('/')) {
            (Some(dump), _) => Self::Dump(dump),
            (None, None) if name == dump::ROOTFS_DIFF => Self::RootfsDiff,
            (None, None) if name == dump::DELETED_FILES => Self::DeletedFiles,
            (None, None) if name == dump::LOG => Self::Log,
            (None, None) if name == PODMAN_SHM => Self::Content(name.to_owned(), SHM.to_owned()),
            (None, Some(_)) if volume(name).is_some() => {
                Self::Content(name.to_owned(), volume_file(volume(name).unwrap_or_default()))
            }
            (None, Some((IMAGES, INHERITED_LAYER))) => Self::Inherited,
            (None, Some((IMAGES, OWN_LAYER))) => Self::Own,
            (None, Some((IMAGES, image))) if image.contains('/') => {
                return Err(ArchiveError::Deep { path: path.to_owned() });
            }
            (None, Some((IMAGES, _))) => Self::Image(name.to_owned()),
            (None, _) => Self::Other(name.to_owned()),
        })
    }

    fn name(&self) -> String {
        match self {
            Self::Image(name) | Self::Other(name) | Self::Content(name, _) => name.clone(),
            Self::Inherited => format!("{IMAGES}/{INHERITED_LAYER}"),
            Self::Own => format!("{IMAGES}/{OWN_LAYER}"),
            Self::Dump(name) => (*name).to_owned(),
            Self::RootfsDiff => dump::ROOTFS_DIFF.to_owned(),
            Self::Log => dump::LOG.to_owned(),
            Self::DeletedFiles => dump::DELETED_FILES.to_owned(),
        }
    }
}

/// The volume whose content a file of a Podman archive has, if a volume of a pod can have that name.
fn volume(name: &str) -> Option<&str> {
    let name = name.strip_prefix(PODMAN_VOLUMES.0)?.strip_suffix(PODMAN_VOLUMES.1)?;
    checkpoint::reference::is_dns_label(name).then_some(name)
}

fn walk<R: Read, E: From<ArchiveError>>(
    mut entries: Entries<'_, R>,
    head: &HeadLimit,
    visit: &mut dyn FnMut(&Member, &mut dyn Read) -> Result<(), E>,
) -> Result<(), E> {
    while let Some(entry) = head.within(|| entries.next()) {
        let mut entry = entry.map_err(ArchiveError::Read)?;
        head.body(entry.header().entry_size().map_err(ArchiveError::Read)?);
        let kind = entry.header().entry_type();
        if kind == tar::EntryType::XGlobalHeader {
            continue;
        }
        let path = entry.path().map_err(ArchiveError::Read)?.into_owned();
        let mut plain = PathBuf::new();
        for component in path.components() {
            match component {
                Component::CurDir => {}
                Component::Normal(name) => plain.push(name),
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(ArchiveError::Outside { path }.into());
                }
            }
        }
        if kind.is_dir() {
            continue;
        }
        if !(kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse()) {
            return Err(ArchiveError::NotPlain { path, kind }.into());
        }
        visit(&Member::of(&plain)?, &mut entry)?;
    }
    Ok(())
}

/// Reads a file that must be small.
fn small(content: &mut dyn Read) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    let read = content.take(dump::LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(ArchiveError::Read)?;
    if u64::try_from(read).is_ok_and(|read| read <= dump::LIMIT_BYTES) {
        Ok(bytes)
    } else {
        let text = format!("a description in it is longer than {} bytes", dump::LIMIT_BYTES);
        Err(ArchiveError::Read(io::Error::new(io::ErrorKind::FileTooLarge, text)))
    }
}

/// Notes whether the end of the stream was reached; a whole tar ends with a mark before that.
struct Tail<R> {
    stream: R,
    ended: Rc<Cell<bool>>,
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            self.ended.set(true);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_header_that_claims_to_be_huge_is_refused_and_not_read_into_memory() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(100 << 30);
        header.set_cksum();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(header.as_bytes()).unwrap();
        gzip.write_all(&vec![0x61; 2 * usize::try_from(HeadLimit::MAX).unwrap()]).unwrap();
        let compressed = gzip.finish().unwrap();
        let mut sparse = tempfile::NamedTempFile::new().unwrap();
        sparse.write_all(header.as_bytes()).unwrap();
        sparse.as_file().set_len(200 << 30).unwrap();
        let mut small = tempfile::NamedTempFile::new().unwrap();
        small.write_all(&compressed).unwrap();
        for file in [sparse, small] {
            let error = Archive::new(file.path()).survey().unwrap_err();
            let reason = std::error::Error::source(&error).unwrap().to_string();
            assert!(reason.contains("a header in it is longer than"), "{reason}");
        }
    }
}
