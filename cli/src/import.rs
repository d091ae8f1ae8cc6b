// SPDX-License-Identifier: Apache-2.0
//! `thaw import`: from archives to a checkpoint in the store.
//!
//! Every archive is looked at first, so that nothing is written of one that cannot be used. Then its content is
//! streamed into the store, and the checkpoint appears by one rename at the end. However the import ends before
//! that, no checkpoint exists, and what it wrote is removed: by itself, or by the next import if it was killed.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use checkpoint::dump;
use checkpoint::layer::{self, ApplyError, Stack};
use checkpoint::manifest::{self, Container, Image, Manifest, Pod};
use checkpoint::store::{ListError, Store, WriteError, Writer};
use checkpoint::{CheckpointId, Lineage};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use time::OffsetDateTime;

use crate::archive::{Archive, ArchiveError, IMAGES, Member, Survey};
use crate::compression::decompressed;
use crate::identity::Identity;
use crate::made::Made;
use crate::store::{StoreArguments, StoreError};

/// Put archives of the kubelet, CRI-O or Podman into the store, as one checkpoint
///
/// Several archives are several containers of one pod. Whose they are stands in them; where it does not (Podman), say
/// so with --namespace, --lineage and --container.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Import {
    /// The archives: tar, also compressed with gzip or zstd
    #[arg(required = true, value_name = "ARCHIVE")]
    pub(crate) archives: Vec<PathBuf>,
    /// The namespace whose pods may restore the checkpoint [default: that of the frozen pod]
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// The lineage it belongs to [default: the frozen pod's annotation thaw.dev/lineage, else its name]
    #[arg(long, value_name = "NAME")]
    pub(crate) lineage: Option<String>,
    /// The container it is restored into [default: the one that was frozen]
    #[arg(long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Print what was imported as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) store: StoreArguments,
}

/// Nothing was imported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("import must run as root: it gives files their owners and marks what was deleted")]
    NotRoot,
    #[error("cannot import {path}", path = path.display())]
    Archive { path: PathBuf, source: ArchiveError },
    #[error("cannot import {path}: its {name} cannot be unpacked", path = path.display())]
    Layer { path: PathBuf, name: &'static str, source: ApplyError },
    #[error("cannot import {path}: it does not say {what}; say so with {flag}", path = path.display())]
    Unknown { path: PathBuf, what: &'static str, flag: &'static str },
    #[error("cannot import {path}: it does not say which image the container ran", path = path.display())]
    NoImage { path: PathBuf },
    #[error("{value:?} is not the name of a {what}: lower-case letters, digits and '-'")]
    Name { what: &'static str, value: String },
    #[error("the archives are of different pods: {path} is of {found} and the first one of {expected}; import them one by one", path = path.display())]
    Different { path: PathBuf, found: String, expected: String },
    #[error("two of the archives are of container {container:?}; import them one by one")]
    SameContainer { container: String },
    #[error("--container names one container, and there are {archives} archives")]
    OneContainer { archives: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot remove what an interrupted import left behind")]
    Clean(#[from] ListError),
    #[error("cannot write the checkpoint")]
    Write(#[from] WriteError),
    #[error("cannot get a random number from /dev/urandom")]
    Random(#[source] io::Error),
    #[error("cannot print the result")]
    Print(#[source] io::Error),
}

/// One archive, and what is known of it.
struct Source {
    archive: Archive,
    survey: Survey,
    identity: Identity,
    container: String,
}

impl Import {
    /// Imports, and prints what.
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), ImportError> {
        self.import()?.print("imported", self.json, out).map_err(ImportError::Print)
    }

    /// Imports.
    pub(crate) fn import(&self) -> Result<Made, ImportError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ImportError::NotRoot);
        }
        let sources = self.survey()?;
        let (pod, frozen) = self.pod(&sources)?;
        let store = self.store.create()?;
        store.clean()?;
        let created = OffsetDateTime::now_utc();
        let id = CheckpointId::unique(frozen.unwrap_or(created)).map_err(ImportError::Random)?;
        let progress = progress(&sources);
        let imported = write(&store, &sources, &pod, (id, created), &progress);
        progress.finish_and_clear();
        imported
    }

    fn survey(&self) -> Result<Vec<Source>, ImportError> {
        if self.container.is_some() && self.archives.len() != 1 {
            return Err(ImportError::OneContainer { archives: self.archives.len() });
        }
        let mut sources: Vec<Source> = Vec::new();
        for path in &self.archives {
            let archive = Archive::new(path);
            let survey =
                archive.survey().map_err(|source| ImportError::Archive { path: path.clone(), source })?;
            for name in survey.left_out() {
                let _ = writeln!(
                    io::stderr(),
                    "thaw: left out {name:?} of {}: thaw does not restore it",
                    path.display()
                );
            }
            let identity = Identity::of(&survey);
            let container = self.container.clone().or_else(|| identity.container.clone());
            let container = known(path, container, "which container it is of", "--container")?;
            let container = named("container", container)?;
            if sources.iter().any(|other| other.container == container) {
                return Err(ImportError::SameContainer { container });
            }
            sources.push(Source { archive, survey, identity, container });
        }
        Ok(sources)
    }

    /// The pod that all archives are of, and when it was frozen.
    fn pod(&self, sources: &[Source]) -> Result<(Pod, Option<OffsetDateTime>), ImportError> {
        let mut pods: Vec<Pod> = Vec::new();
        for Source { archive, identity, .. } in sources {
            let namespace = self.namespace.clone().or_else(|| identity.namespace.clone());
            let namespace = known(archive.path(), namespace, "which namespace it is of", "--namespace")?;
            let lineage = self.lineage.as_ref().or(identity.lineage.as_ref()).or(identity.pod.as_ref());
            let lineage = known(archive.path(), lineage.cloned(), "which pod it is of", "--lineage")?;
            let value = lineage.clone();
            let lineage: Lineage =
                lineage.parse().map_err(|_| ImportError::Name { what: "lineage", value })?;
            let pod = Pod {
                namespace: named("namespace", namespace)?,
                name: identity.pod.clone().unwrap_or_else(|| lineage.to_string()),
                uid: identity.uid.clone(),
                lineage,
                addresses: identity.addresses.clone(),
            };
            match pods.first() {
                Some(first)
                    if (&first.namespace, &first.name, &first.uid)
                        != (&pod.namespace, &pod.name, &pod.uid) =>
                {
                    let name = |pod: &Pod| format!("{}/{}", pod.namespace, pod.name);
                    let path = archive.path().to_owned();
                    return Err(ImportError::Different { path, found: name(&pod), expected: name(first) });
                }
                _ => pods.push(pod),
            }
        }
        let frozen = sources.iter().filter_map(|source| source.identity.frozen).max();
        match pods.into_iter().next() {
            Some(pod) => Ok((pod, frozen)),
            None => Err(ImportError::OneContainer { archives: 0 }),
        }
    }
}

fn write(
    store: &Store,
    sources: &[Source],
    pod: &Pod,
    (id, created): (CheckpointId, OffsetDateTime),
    progress: &ProgressBar,
) -> Result<Made, ImportError> {
    let writer = store.begin(&pod.namespace, &pod.lineage, id.clone())?;
    let mut containers = BTreeMap::new();
    for source in sources {
        containers.insert(source.container.clone(), container(&writer, source, progress)?);
    }
    let manifest =
        Manifest { version: manifest::VERSION, id, created, pod: pod.clone(), containers, host: None };
    progress.set_message("waiting for the disk");
    let path = writer.publish(&manifest)?;
    Ok(Made::of(&manifest, path))
}

/// Writes one container.
fn container(writer: &Writer<'_>, source: &Source, progress: &ProgressBar) -> Result<Container, ImportError> {
    let Source { archive, survey, identity, container } = source;
    let path = || archive.path().to_owned();
    let name = identity.image.clone().ok_or_else(|| ImportError::NoImage { path: path() })?;
    progress.set_message(container.clone());
    let mut files = writer.container(container)?;
    let rootfs = if survey.has_layers() { Some(files.rootfs()?) } else { None };
    let mut stack = rootfs.as_ref().map(|dir| Stack::new(dir.as_fd()));
    // The layer of the checkpoint before goes below what changed since, in whatever order they come.
    let (changes, changed) = if survey.has_own() {
        (Member::Own, layer::OWN_LAYER)
    } else {
        (Member::RootfsDiff, dump::ROOTFS_DIFF)
    };
    let (mut below, mut postponed) = (survey.has_inherited(), false);
    let mut visit = |member: &Member, content: &mut dyn Read| -> Result<(), ImportFault> {
        match member {
            Member::Image(name) => files.add(name, content)?,
            Member::Dump(name) => files.add(name, content)?,
            Member::Log => files.add(dump::LOG, content)?,
            Member::Content(_, image) => {
                let mut tar = decompressed(content).map_err(ArchiveError::Read)?;
                files.add(&format!("{IMAGES}/{image}"), &mut tar)?;
            }
            Member::Inherited => {
                unpack(stack.as_mut(), "inherited layer", content)?;
                below = false;
            }
            Member::RootfsDiff | Member::Own if *member == changes => {
                if below {
                    postponed = true;
                } else {
                    unpack(stack.as_mut(), changed, content)?;
                }
            }
            Member::RootfsDiff | Member::Own | Member::DeletedFiles | Member::Other(_) => {}
        }
        Ok(())
    };
    archive.each(progress, &mut visit).map_err(|fault| fault.of(path()))?;
    if postponed {
        let mut last = |member: &Member, content: &mut dyn Read| {
            if *member == changes { unpack(stack.as_mut(), changed, content) } else { Ok(()) }
        };
        archive.each(&ProgressBar::hidden(), &mut last).map_err(|fault| fault.of(path()))?;
    }
    if let (Some(stack), Some(json)) = (stack.as_mut(), &survey.deleted_files) {
        stack.delete(json).map_err(|source| ImportError::Layer {
            path: path(),
            name: "deleted.files",
            source,
        })?;
    }
    Ok(Container {
        image: Image { name, reference: identity.image_reference.clone() },
        runtime: identity.runtime.clone(),
        producer: identity.producer,
        frozen: identity.frozen,
        rootfs: stack.map(Stack::finish),
        files: files.into_files(),
    })
}

/// What goes wrong while an archive is read; becomes an [`ImportError`] with the archive's path.
#[derive(Debug)]
enum ImportFault {
    Archive(ArchiveError),
    Layer(&'static str, ApplyError),
    Write(WriteError),
}

impl ImportFault {
    fn of(self, path: PathBuf) -> ImportError {
        match self {
            Self::Archive(source) => ImportError::Archive { path, source },
            Self::Layer(name, source) => ImportError::Layer { path, name, source },
            // The archive, and not the store, is what could not be read.
            Self::Write(WriteError::Read { source, .. }) => {
                ImportError::Archive { path, source: ArchiveError::Read(source) }
            }
            Self::Write(source) => ImportError::Write(source),
        }
    }
}

impl From<ArchiveError> for ImportFault {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

impl From<WriteError> for ImportFault {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}

fn unpack(
    stack: Option<&mut Stack<'_>>,
    name: &'static str,
    content: &mut dyn Read,
) -> Result<(), ImportFault> {
    let Some(stack) = stack else { return Ok(()) };
    let tar = decompressed(content).map_err(ArchiveError::Read)?;
    stack.apply(tar).map_err(|source| ImportFault::Layer(name, source))
}

fn known(
    path: &std::path::Path,
    value: Option<String>,
    what: &'static str,
    flag: &'static str,
) -> Result<String, ImportError> {
    value.ok_or_else(|| ImportError::Unknown { path: path.to_owned(), what, flag })
}

fn named(what: &'static str, value: String) -> Result<String, ImportError> {
    if checkpoint::reference::is_dns_label(&value) {
        Ok(value)
    } else {
        Err(ImportError::Name { what, value })
    }
}

/// A bar on standard error, where that is a terminal.
fn progress(sources: &[Source]) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let length = |source: &Source| std::fs::metadata(source.archive.path()).map_or(0, |file| file.len());
    let bar = ProgressBar::new(sources.iter().map(length).fold(0, u64::saturating_add));
    let template = "importing {msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

#[cfg(test)]
mod tests;
