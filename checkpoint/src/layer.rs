// SPDX-License-Identifier: Apache-2.0
//! A container's writable layer: from the tar in which it travels to the directory in which it is kept, and back.
//!
//! It travels as an OCI layer: `.wh.NAME` stands for a deletion, `.wh..wh..opq` for a directory that hides what lies
//! below it. It is kept as an overlay upper directory, so that a restore can mount it as one more lower layer:
//! a character device 0:0 stands for a deletion, `trusted.overlay.opaque=y` marks the hiding directory.
//! Source: OCI image-spec layer.md, "Whiteouts"; Linux Documentation/filesystems/overlayfs.rst.
//!
//! Invariant: the tar is a stranger's. Nothing is read or written outside the directory, no link is followed, and
//! attributes that overlayfs itself would obey are never taken from it.
//!
//! The content of a volume travels in the same form, but is what it is: no name in it stands for a deletion, and it
//! has no devices.
//!
//! Where the root file system is no overlay, the upper directory is laid onto it: see [`lay()`].
//!
//! Sockets are left out, as every writer of OCI layers does; CRIU makes those anew that a process had open.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, statat};

mod apply;
mod attributes;
mod copy;
mod head;
mod lay;
mod sparse;
mod upper;
mod write;
mod xattr;

pub use apply::{ApplyError, Conflict, Stack, empty, fill, fill_tmpfs};
pub use copy::{CopyError, copy};
pub use head::{HeadLimit, Limited};
pub use lay::{Laid, LayError, lay};
pub use write::{WriteLayerError, write, write_content};

/// Under this name, among the CRIU images, the layer of a restored container's checkpoint travels when the container
/// is frozen again: only what changed since belongs on top of it.
pub const INHERITED_LAYER: &str = "thaw-rootfs.tar";

/// What a tar stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Changes of a root file system.
    Layer,
    /// The content of a volume.
    Content,
    /// The content of a container's own tmpfs, which may hold device nodes.
    Tmpfs,
}
/// Under this name what a restored container changed since. `rootfs-diff.tar` has not all of that: containerd compares
/// with the image alone, so that a file of the inherited layer that was deleted since is no difference for it.
pub const OWN_LAYER: &str = "thaw-upper.tar";

/// Before a name: it was deleted.
const WHITEOUT: &str = ".wh.";
/// The name that makes its directory hide everything below.
const OPAQUE: &str = ".wh..wh..opq";
/// The attribute that does the same in an upper directory.
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// The attribute's value.
const OPAQUE_YES: &[u8] = b"y";
/// The deepest path, in components; each level costs an open descriptor when a tree is removed.
const DEPTH_MAX: usize = 256;
/// The longest path in bytes. Source: limits.h, PATH_MAX.
const PATH_MAX: usize = 4095;

/// Attributes that belong to the container, as opposed to the host's policy or overlayfs.
fn carried_xattr(name: &str) -> bool {
    name.starts_with("user.")
        || matches!(name, "security.capability" | "system.posix_acl_access" | "system.posix_acl_default")
}

/// A path beneath the layer's top directory (empty: the top itself), or what is wrong with it.
fn plain_path(path: &Path) -> Result<PathBuf, &'static str> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => return Err("leads upwards"),
            Component::RootDir | Component::Prefix(_) => return Err("is absolute"),
        }
    }
    match plain.as_os_str() {
        long if long.len() > PATH_MAX || plain.components().count() > DEPTH_MAX => Err("is too long"),
        text if text.as_encoded_bytes().contains(&0) => Err("has a zero byte"),
        _ => Ok(plain),
    }
}

/// The directory that a path lies in; that of the top directory is itself.
fn above(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// What lies in the layer under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    Nothing,
    Whiteout,
    Directory,
    Other,
}

fn existing(dir: impl AsFd, name: &OsStr) -> io::Result<Existing> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(rustix::io::Errno::NOENT) => Ok(Existing::Nothing),
        Err(error) => Err(error.into()),
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Existing::Directory,
            FileType::CharacterDevice if stat.st_rdev == 0 => Existing::Whiteout,
            FileType::CharacterDevice
            | FileType::RegularFile
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::BlockDevice
            | FileType::Unknown => Existing::Other,
        }),
    }
}

#[cfg(test)]
mod tests;
