// SPDX-License-Identifier: Apache-2.0
//! The container's root file system: the snapshot that containerd names, mounted at `<bundle>/rootfs`, with the
//! checkpoint's writable layer on it. On an overlay that is one more lower layer on top of the image's, and nothing is
//! copied. Other snapshots are all the container's own: there the layer is laid onto what the image has.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use ::checkpoint::layer::{Laid, lay};
use containerd_shim_protos::types::mount::Mount;
use log::{info, warn};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use crate::error::{TaskError, full};
use crate::rewrite::open_dir;
use crate::{idmap, implied, overlay};

/// A checkpoint's writable layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer<'a> {
    /// An overlay upper directory.
    pub(crate) path: &'a Path,
    /// See [`implied`].
    pub(crate) implied: &'a [String],
}

/// How a checkpoint's writable layer came to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is a layer of the overlay: what the container writes lies above it.
    Attached,
    /// Its files lie among the image's.
    Laid,
}

/// A mounted root file system; unmounted on drop.
#[derive(Debug)]
pub(crate) struct Rootfs {
    target: PathBuf,
    mounted: bool,
    layer: Option<Way>,
    /// Takes the layer away again, until the restore holds.
    laid: Option<Laid>,
}

impl Rootfs {
    /// Mounts `mounts` at `target`, with `layer` on top of the image's layers where there is one.
    ///
    /// No mounts at all means that the root file system is already in the bundle.
    ///
    /// # Errors
    /// When the kernel refuses, or the layer cannot be laid onto the snapshot.
    pub(crate) async fn mount(
        mounts: &[Mount],
        target: PathBuf,
        layer: Option<Layer<'_>>,
    ) -> Result<Self, TaskError> {
        let failed = |source| TaskError::Rootfs { target: target.clone(), source };
        if layer.is_some() && mounts.is_empty() {
            let nowhere =
                "the root file system is in the bundle and the checkpoint's layer cannot be attached to it";
            return Err(failed(std::io::Error::other(nowhere)));
        }
        match std::fs::create_dir(&target) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(e)),
            Ok(()) | Err(_) => {}
        }
        // Some snapshotters mount each of the image's layers before the overlay.
        let way = if mounts.iter().any(is_overlay) { Way::Attached } else { Way::Laid };
        let mut rootfs =
            Self { target: target.clone(), mounted: false, layer: layer.map(|_| way), laid: None };
        for mount in mounts {
            let mut mount = mount.clone();
            if let Some(layer) = layer.filter(|_| is_overlay(&mount)) {
                let options = with_lower(&mount, layer.path).map_err(failed)?;
                implied::create(&mount.options, layer.implied).map_err(failed)?;
                mount.options = options;
            }
            let folder = target.with_file_name("lower");
            let _mapped = idmap::map(&mut mount, folder).map_err(failed)?;
            if overlay::is_long(&mount) {
                let at = target.clone();
                let mounting = tokio::task::spawn_blocking(move || overlay::mount(&mount, &at));
                mounting.await.map_err(std::io::Error::other).flatten().map_err(failed)?;
            } else {
                containerd_shim::asynchronous::util::mount_rootfs(&mount, &target)
                    .await
                    .map_err(|e| failed(std::io::Error::other(e)))?;
            }
            rootfs.mounted = true;
        }
        if rootfs.mounted {
            // CRIU takes this mount as the root of the restored tree: nothing may propagate out of it.
            mount_change(&target, MountPropagationFlags::PRIVATE).map_err(|e| failed(e.into()))?;
        }
        match (layer, way) {
            (Some(layer), Way::Laid) => rootfs.laid = Some(onto(&target, layer).await.map_err(failed)?),
            (Some(_), Way::Attached) => {
                info!("the checkpoint's writable layer is attached to the overlay at {}", target.display());
            }
            (None, _) => {}
        }
        Ok(rootfs)
    }

    /// How a checkpoint's writable layer came to be there, if one did.
    pub(crate) fn layer(&self) -> Option<Way> {
        self.layer
    }

    /// Leaves the layer where it was laid: the restore holds.
    pub(crate) fn keep_layer(&mut self) {
        if let Some(Err(e)) = self.laid.take().map(Laid::keep) {
            warn!("cannot remove what the checkpoint's layer replaced at {}: {e}", self.target.display());
        }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.target
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        drop(self.laid.take());
        if self.mounted {
            unmount_all(&self.target);
        }
    }
}

/// Unmounts everything at `target`, best effort.
pub(crate) fn unmount_all(target: &Path) {
    let umounted = containerd_shim::mount::umount_recursive(target.to_str(), 0);
    if umounted.is_err()
        && let Err(e) = unmount(target, UnmountFlags::DETACH)
    {
        warn!("cannot unmount {}: {e}", target.display());
    }
}

/// Where what the container writes goes: the upper directory of the overlay that is mounted at `target`.
///
/// # Errors
/// When there is no such mount.
pub(crate) fn upper_directory(target: &Path) -> std::io::Result<PathBuf> {
    let mounts = procfs::process::Process::myself()
        .and_then(|process| process.mountinfo())
        .map_err(std::io::Error::other)?;
    let target = target.canonicalize()?;
    let mount = mounts.0.iter().rev().find(|mount| mount.mount_point == target);
    let upper = mount.and_then(|mount| mount.super_options.get("upperdir").cloned().flatten());
    upper.map(PathBuf::from).ok_or_else(|| {
        std::io::Error::other(format!("{} is no overlay with an upper directory", target.display()))
    })
}

/// Lays `layer` onto the snapshot that is mounted at `target`.
async fn onto(target: &Path, layer: Layer<'_>) -> std::io::Result<Laid> {
    let (from, to) = (open_dir(layer.path), open_dir(target));
    let (from, to) = (from.map_err(std::io::Error::other)?, to.map_err(std::io::Error::other)?);
    let (implied, shown) = (layer.implied.to_vec(), target.display().to_string());
    let lay = move || {
        let laid = lay(from.as_fd(), to, &implied).map_err(|e| std::io::Error::other(full(&e)))?;
        info!(
            "the checkpoint's writable layer is laid onto the snapshot at {shown}: {} bytes by reflink, {} copied",
            laid.shared, laid.copied
        );
        Ok(laid)
    };
    tokio::task::spawn_blocking(lay).await.map_err(std::io::Error::other)?
}

fn is_overlay(mount: &Mount) -> bool {
    mount.type_ == "overlay"
}

/// The overlay options of `mount` with `layer` as the uppermost lower layer. Pure.
fn with_lower(mount: &Mount, layer: &Path) -> std::io::Result<Vec<String>> {
    let lower = mount.options.iter().position(|option| option.starts_with("lowerdir="));
    let Some(at) = lower else {
        return Err(std::io::Error::other("the overlay's options name no lower directories"));
    };
    let layer = layer.to_str().filter(|path| !path.contains([':', ',', '\\'])).ok_or_else(|| {
        std::io::Error::other(format!("{} cannot stand in overlay options", layer.display()))
    })?;
    let mut options = mount.options.clone();
    if let Some(option) = options.get_mut(at) {
        *option = option.replacen("lowerdir=", &format!("lowerdir={layer}:"), 1);
    }
    // Where a kernel redirects renamed directories by default, the upper directory alone would not tell what is in them,
    // and it travels alone when the container is frozen again.
    if !options.iter().any(|option| option.starts_with("redirect_dir=")) {
        options.push("redirect_dir=off".to_owned());
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> Mount {
        Mount {
            type_: "overlay".into(),
            options: options.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_checkpoints_layer_lies_above_the_images_and_below_the_upper() {
        let mount = overlay(&["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/2:/1"]);
        let options = with_lower(&mount, Path::new("/store/c/rootfs")).unwrap();
        assert_eq!(
            options,
            ["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/store/c/rootfs:/2:/1", "redirect_dir=off"]
        );
    }

    #[test]
    fn an_overlay_without_lower_directories_is_refused() {
        let error = with_lower(&overlay(&["upperdir=/u"]), Path::new("/layer")).unwrap_err();
        assert!(error.to_string().contains("no lower directories"), "{error}");
    }

    #[test]
    fn a_path_that_overlay_would_misread_is_refused() {
        assert!(with_lower(&overlay(&["lowerdir=/1"]), Path::new("/a:b")).is_err());
    }
}
