// SPDX-License-Identifier: Apache-2.0
//! The private images directory of one restore: links to the checkpoint's images, and rewritten copies of the
//! few small ones that must differ in the new pod. The checkpoint itself is never written to.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use ::checkpoint::container_dir::ContainerDir;
use criu_rpc::image::{Inventory, Utsns, View};
use rustix::fs::{Mode, OFlags};

use crate::error::Error;
use crate::frozen::Images;

/// Where a restore keeps its links, rewritten images and CRIU's log, in the bundle. On tmpfs; below 1 MB.
const DIRECTORY: &str = "restore";

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
    pub(crate) fn create(bundle: &Path) -> Result<Self, Error> {
        let workspace = Self { path: bundle.join(DIRECTORY), kept: false };
        std::fs::create_dir(&workspace.path).map_err(Error::io("make the restore's working directory"))?;
        std::fs::create_dir(workspace.images()).map_err(Error::io("make the private images directory"))?;
        Ok(workspace)
    }

    /// CRIU's images directory.
    pub(crate) fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// CRIU's work directory, for its log.
    pub(crate) fn open(&self) -> Result<OwnedFd, Error> {
        open_dir(&self.path)
    }

    /// Leaves it in the bundle, which containerd removes with the container.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.kept
            && let Err(e) = std::fs::remove_dir_all(&self.path)
        {
            log::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// Fills `into` with links to all images of `container` and the rewritten ones, and opens it.
///
/// `hostname` is that of the new sandbox: CRIU writes the images' name into the pod's UTS namespace.
/// The links go through this process's own descriptor of the images directory, so they mean what was checked.
///
/// # Errors
/// When an image cannot be read, or the directory not written.
pub(crate) fn rewrite(
    container: &ContainerDir,
    images: &Images,
    hostname: Option<&(String, String)>,
    into: &Path,
) -> Result<OwnedFd, Error> {
    let mut rewritten = vec![("inventory.img".to_owned(), inventory(images)?)];
    if let (Some(name), Some((nodename, domainname))) = (&images.utsns, hostname) {
        let mut utsns: Utsns = images.dir.load(name).map_err(unreadable)?;
        utsns.set_nodename(nodename);
        utsns.set_domainname(domainname);
        rewritten.push((name.clone(), utsns.into_image().to_bytes()));
    }
    let source = format!("/proc/{}/fd/{}", std::process::id(), container.images_dir().as_raw_fd());
    for image in container.images() {
        let to = into.join(&image.name);
        match rewritten.iter().find(|(name, _)| *name == image.name) {
            Some((_, bytes)) => std::fs::write(&to, bytes),
            None => std::os::unix::fs::symlink(format!("{source}/{}", image.name), &to),
        }
        .map_err(Error::io(format!("prepare image {}", image.name)))?;
    }
    open_dir(into)
}

/// The inventory with network locking off: unlocking costs 25 to 60 ms of iptables, and a restore into a new
/// network namespace has nothing to protect. CRIU takes the method from here, not from its request.
fn inventory(images: &Images) -> Result<Vec<u8>, Error> {
    let mut inventory: Inventory = images.dir.load("inventory.img").map_err(unreadable)?;
    inventory.set_network_lock_skip();
    Ok(inventory.into_image().to_bytes())
}

fn unreadable(error: criu_rpc::image::LoadError) -> Error {
    Error::Io { what: "read an image".into(), source: std::io::Error::other(error) }
}

fn open_dir(path: &Path) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::io(format!("open {}", path.display())))
}
