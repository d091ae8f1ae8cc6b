// SPDX-License-Identifier: Apache-2.0
//! Overlays for pods with users of their own (`hostUsers: false`): the image's layers, which belong to the node's
//! users, appear in them as the pod's.
//!
//! containerd asks for it with the options `uidmap=` and `gidmap=`, which the kernel does not know: each lower layer is
//! mounted once more, with its owners mapped, and the overlay is made of those. Once it stands they can go.
//!
//! Source: containerd `core/mount/mount_idmapped_linux.go`; Linux `Documentation/filesystems/idmappings.rst`.

use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use containerd_shim_protos::types::mount::Mount;
use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree,
    unmount,
};

/// The argument with which this program holds a user namespace until its input ends.
pub(crate) const HOLD: &str = "hold-user-namespace";

/// Lower layers that are mounted once more; unmounted on drop.
#[derive(Debug, Default)]
pub(crate) struct Mapped {
    folder: PathBuf,
    mounted: Vec<PathBuf>,
}

/// Replaces the lower layers of an overlay that has `uidmap=` and `gidmap=` by mapped ones beneath `folder`; `None`
/// where it has none. What is returned may go when the overlay is mounted.
///
/// # Errors
/// When the kernel cannot map a layer's file system.
pub(crate) fn map(mount: &mut Mount, folder: PathBuf) -> Result<Option<Mapped>> {
    let (Some(uids), Some(gids)) = (take(mount, "uidmap="), take(mount, "gidmap=")) else { return Ok(None) };
    let Some(lower) = mount.options.iter_mut().find(|option| option.starts_with("lowerdir=")) else {
        return Err(Error::other(format!("a {} mount of mapped owners has no lower layers", mount.type_)));
    };
    let users = UserNamespace::new(&uids, &gids)?;
    std::fs::create_dir(&folder)?;
    let mut mapped = Mapped { folder, mounted: Vec::new() };
    let layers: Vec<_> = lower.trim_start_matches("lowerdir=").split(':').map(PathBuf::from).collect();
    for layer in &layers {
        mapped.add(layer, users.descriptor.as_fd())?;
    }
    let paths: Vec<_> = mapped.mounted.iter().map(|path| path.display().to_string()).collect();
    *lower = format!("lowerdir={}", paths.join(":"));
    Ok(Some(mapped))
}

/// Takes the option that begins with `name` away and returns its value.
fn take(mount: &mut Mount, name: &str) -> Option<String> {
    let at = mount.options.iter().position(|option| option.starts_with(name))?;
    Some(mount.options.remove(at).trim_start_matches(name).to_owned())
}

impl Mapped {
    fn add(&mut self, layer: &Path, users: BorrowedFd<'_>) -> Result<()> {
        let tree = open_tree(CWD, layer, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        set_owners(tree.as_fd(), users)?;
        let at = self.folder.join(self.mounted.len().to_string());
        std::fs::create_dir(&at)?;
        move_mount(&tree, "", CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        self.mounted.push(at.clone());
        Ok(mount_change(&at, MountPropagationFlags::PRIVATE)?)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        for at in &self.mounted {
            // The overlay holds what it is made of.
            if let Err(e) = unmount(at, UnmountFlags::DETACH) {
                log::warn!("cannot unmount {}: {e}", at.display());
            }
        }
        // A folder that is still a mount point stays, and what is in it too.
        for at in &self.mounted {
            let _ = std::fs::remove_dir(at);
        }
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// Maps the owners of all files of a mount that is not attached yet.
fn set_owners(tree: BorrowedFd<'_>, users: BorrowedFd<'_>) -> Result<()> {
    let wanted = libc::mount_attr {
        // Whatever happens to this program, nobody who clears its folder away clears the layers away.
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users.as_raw_fd()).map_err(Error::other)?,
    };
    // SAFETY: mount_setattr(2): the path is a C string, the structure is initialised and of the size that is given, and
    // both live until the call returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// A user namespace that only carries a mapping.
struct UserNamespace {
    descriptor: OwnedFd,
    holder: Child,
}

impl UserNamespace {
    /// One with these mappings, `INSIDE:OUTSIDE:LENGTH` each, with commas between.
    fn new(uids: &str, gids: &str) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(HOLD).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let unshare = || Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?);
        // SAFETY: after the fork the closure makes one system call, and no memory is allocated for its result.
        let holder = unsafe { command.pre_exec(unshare) }.spawn()?;
        let of = |file: &str| format!("/proc/{}/{file}", holder.id());
        let lines = |map: &str| map.replace(':', " ").replace(',', "\n");
        std::fs::write(of("uid_map"), lines(uids))?;
        std::fs::write(of("gid_map"), lines(gids))?;
        let descriptor = std::fs::File::open(of("ns/user"))?.into();
        Ok(Self { descriptor, holder })
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        // It ends with its input; the shim's reaper takes its exit.
        drop(self.holder.stdin.take());
    }
}

/// What the holder does: waits for the end of its input.
pub(crate) fn hold() {
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_the_kernel_does_not_know_are_taken_out() {
        let options = ["index=off", "uidmap=0:1000:5,5:9:1", "gidmap=0:1000:5"].map(str::to_owned).to_vec();
        let mut mount = Mount { type_: "overlay".into(), options, ..Default::default() };
        assert_eq!(take(&mut mount, "uidmap=").as_deref(), Some("0:1000:5,5:9:1"));
        assert_eq!(take(&mut mount, "gidmap=").as_deref(), Some("0:1000:5"));
        assert_eq!(mount.options, ["index=off"]);
        assert_eq!(take(&mut mount, "uidmap="), None);
    }
}
