// SPDX-License-Identifier: Apache-2.0
//! The private images directory of one restore: rewritten copies of the few small images that must differ in the
//! new pod, laid over all the others. The checkpoint itself is never written to.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use ::checkpoint::container_dir::{ContainerDir, ImageFile};
use ::checkpoint::plan::Plan;
use criu_rpc::image::{Files, Inventory, Mountpoints, Pagemap, RegFile, Utsns};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

use crate::error::TaskError;
use crate::frozen::{FILES, Images};
use crate::nodes;

/// Where a restore keeps rewritten images and CRIU's log, in the bundle. On tmpfs; below 1 MB.
const DIRECTORY: &str = "restore";

/// Where CRIU assembles mount namespaces. Source: CRIU 4.2 criu/mount.c, mntns roots.
const ROOTS: &str = "/tmp/.criu.mntns.";

/// How much of CRIU's log is searched for that, in bytes; it stands near the beginning.
const LOG_LIMIT: u64 = 1 << 20;

/// The size of a page map from which it is worth being rewritten, bytes: a hundred entries or so.
const LARGE_PAGEMAP: u64 = 2 << 10;

/// The private directory of one restore; removed on drop unless kept.
#[derive(Debug)]
pub(crate) struct Workspace {
    path: PathBuf,
    kept: bool,
}

impl Workspace {
    /// Makes an empty one in `bundle`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn create(bundle: &Path) -> Result<Self, TaskError> {
        let workspace = Self { path: bundle.join(DIRECTORY), kept: false };
        std::fs::create_dir(&workspace.path)
            .map_err(TaskError::io("make the restore's working directory"))?;
        std::fs::create_dir(workspace.images())
            .map_err(TaskError::io("make the private images directory"))?;
        Ok(workspace)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// CRIU's images directory.
    pub(crate) fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// CRIU's work directory, for its log.
    pub(crate) fn open(&self) -> Result<OwnedFd, TaskError> {
        open_dir(&self.path)
    }

    /// Removes the directory in /tmp that a failed CRIU leaves: it cannot remove it while its child still has
    /// mounts below it. The name is taken from its log, because removing another restore's would break that one.
    fn sweep(&self) {
        let Ok(log) = std::fs::File::open(self.path.join("restore.log")) else { return };
        let mut text = Vec::new();
        if log.take(LOG_LIMIT).read_to_end(&mut text).is_err() {
            return;
        }
        let text = String::from_utf8_lossy(&text);
        let Some((_, rest)) = text.split_once(ROOTS) else { return };
        let unique: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
        // Gone already in most failures.
        let _ = std::fs::remove_dir(format!("{ROOTS}{unique}"));
    }

    /// Leaves it in the bundle, which containerd removes with the container.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.sweep();
        if let Err(e) = std::fs::remove_dir_all(&self.path) {
            log::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// What the new pod has otherwise.
#[derive(Debug)]
pub(crate) struct Changed<'a> {
    /// Open files.
    pub(crate) reopened: &'a [RegFile],
    /// Host and domain name of the sandbox: CRIU writes the images' names into the pod's UTS namespace.
    pub(crate) hostname: Option<&'a (String, String)>,
    /// Images of System V objects, by name.
    pub(crate) ipc: Vec<(String, Vec<u8>)>,
    /// Whether a pager brings the memory.
    pub(crate) lazy: bool,
}

/// Writes the rewritten images into the directory `into`, and opens them together with all others of `container`.
///
/// # Errors
/// When an image cannot be read, or the directory not written.
pub(crate) fn rewrite(
    container: &ContainerDir,
    images: &Images,
    plan: &Plan,
    changed: Changed<'_>,
    into: &Path,
) -> Result<OwnedFd, TaskError> {
    let mut rewritten = vec![
        ("inventory.img".to_owned(), inventory(images)?),
        (FILES.to_owned(), files(images, plan, changed.reopened)?),
    ];
    if let (Some(name), Some((nodename, domainname))) = (&images.utsns, changed.hostname) {
        let mut utsns: Utsns = images.dir.load(name).map_err(unreadable)?;
        utsns.set_nodename(nodename);
        utsns.set_domainname(domainname);
        rewritten.push((name.clone(), utsns.into_image().to_bytes()));
    }
    rewritten.extend(changed.ipc);
    let nodes = nodes::image(container.images_dir(), &images.frozen, &plan.devices);
    rewritten.extend(nodes.map_err(TaskError::io("rewrite the device nodes of the images"))?);
    if changed.lazy {
        rewritten.extend(pagemaps(container, images)?);
    }
    if !plan.apart.is_empty() || !plan.added.is_empty() {
        rewritten.push((images.mountpoints.clone(), mounts(images, plan)?));
    }
    for (name, bytes) in rewritten {
        std::fs::write(into.join(&name), bytes).map_err(TaskError::io(format!("write image {name}")))?;
    }
    merge(open_dir(into)?.as_fd(), container.images_dir())
        .map_err(TaskError::io("lay the rewritten images over the others"))
}

/// A read-only overlay of `rewritten` over `images`, mounted nowhere: CRIU opens it by descriptor, from inside the
/// container's root too, where links would lead nowhere. It is gone when the descriptor is closed.
fn merge(rewritten: BorrowedFd<'_>, images: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let layers = format!("/proc/self/fd/{}:/proc/self/fd/{}", rewritten.as_raw_fd(), images.as_raw_fd());
    fsconfig_set_string(overlay.as_fd(), "lowerdir", layers)?;
    fsconfig_create(overlay.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(overlay.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// The inventory with network locking off: unlocking costs 25 to 60 ms of iptables, and a restore into a new
/// network namespace has nothing to protect. CRIU takes the method from here, not from its request.
fn inventory(images: &Images) -> Result<Vec<u8>, TaskError> {
    let mut inventory: Inventory = images.dir.load("inventory.img").map_err(unreadable)?;
    inventory.skip_network_lock();
    Ok(inventory.into_image().to_bytes())
}

/// The larger page maps, in as few entries as CRIU needs where it leaves the pages to the pager.
fn pagemaps(container: &ContainerDir, images: &Images) -> Result<Vec<(String, Vec<u8>)>, TaskError> {
    let is_large = |image: &&ImageFile| image.name.starts_with("pagemap-") && image.bytes >= LARGE_PAGEMAP;
    let joined = |image: &ImageFile| {
        let pagemap = images.dir.read(&image.name).map_err(unreadable)?;
        let joined = Pagemap::joined(pagemap).map_err(|e| TaskError::Io {
            what: format!("read image {}", image.name),
            source: std::io::Error::other(e),
        })?;
        Ok((image.name.clone(), joined.to_bytes()))
    };
    container.images().iter().filter(is_large).map(joined).collect()
}

/// The mounts, with those that only the new container has.
fn mounts(images: &Images, plan: &Plan) -> Result<Vec<u8>, TaskError> {
    let mut mounts: Mountpoints = images.dir.load(&images.mountpoints).map_err(unreadable)?;
    for id in &plan.apart {
        mounts.set_apart(*id);
    }
    for added in &plan.added {
        mounts.add_external(&added.destination, added.flags).map_err(|e| TaskError::Io {
            what: format!("add a mount at {}", added.destination.display()),
            source: std::io::Error::other(e),
        })?;
    }
    Ok(mounts.into_image().to_bytes())
}

/// The open files, with the sockets as the plan wants them, and timers that go on.
fn files(images: &Images, plan: &Plan, reopened: &[RegFile]) -> Result<Vec<u8>, TaskError> {
    let mut files: Files = images.dir.load(FILES).map_err(unreadable)?;
    let rewritten = files
        .rewrite_addresses(&plan.sockets.addresses)
        .and_then(|moved| Ok(moved + files.rewrite_interfaces(&plan.sockets.interfaces)?))
        .and_then(|moved| Ok((moved, files.close_sockets(&plan.sockets.closed)?)))
        .and_then(|(moved, closed)| Ok((moved, closed, files.replace_reg_files(reopened)?)))
        .and_then(|counts| files.rearm_timers().map(|_| counts));
    let (moved, closed, reopened) = rewritten.map_err(|e| TaskError::Io {
        what: "rewrite the open files".into(),
        source: std::io::Error::other(e),
    })?;
    if moved + closed + reopened > 0 {
        log::info!(moved = moved, closed = closed, reopened = reopened; "sockets and files rewritten");
    }
    Ok(files.into_image().to_bytes())
}

fn unreadable(error: criu_rpc::image::LoadError) -> TaskError {
    TaskError::Io { what: "read an image".into(), source: std::io::Error::other(error) }
}

/// A directory for CRIU, by descriptor.
///
/// # Errors
/// Names the path.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, TaskError> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(TaskError::io(format!("open {}", path.display())))
}
