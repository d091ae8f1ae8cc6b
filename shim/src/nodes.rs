// SPDX-License-Identifier: Apache-2.0
//! The device nodes of a restored container: those of the new spec, with the numbers of this node.
//!
//! /dev is a tmpfs whose content the images hold as a compressed tar. Its nodes are those that the old container
//! had, with the numbers of the node it was frozen on; here the same number may be another device, or none.
//!
//! Invariant: every node that the restored /dev has is one that every container has, or is a device of the new spec.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path, PathBuf};

use ::checkpoint::devices::{DEFAULT, Device};
use ::checkpoint::plan::{Frozen, Mountpoint};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, makedev, mknodat, openat2, unlinkat};
use rustix::io::Errno;
use tar::{Archive, Builder, Entry, EntryType, Header};

use crate::mountpoints;

/// CRIU's number of tmpfs. Source: CRIU images/mnt.proto, `fstype`.
const TMPFS: u32 = 5;
/// How much content of /dev is looked through, in bytes: twice what Kubernetes lets it hold.
const LIMIT: u64 = 128 << 20;

/// The image of the tmpfs at /dev with the nodes of `devices`: its name and content. `None` where it is right as it
/// is, or where /dev is not the container's own.
///
/// # Errors
/// When the image is damaged, or has something in the place of a device's directory.
pub(crate) fn image(
    images: BorrowedFd<'_>,
    frozen: &Frozen,
    devices: &[Device],
) -> io::Result<Option<(String, Vec<u8>)>> {
    let dev = frozen.mounts.iter().find(|mount| mount.mountpoint == "/dev");
    let Some(dev) = dev.filter(|mount| mount.fstype == TMPFS && mount.ext_key.is_none()) else {
        return Ok(None);
    };
    // Source: CRIU 4.2 criu/image-desc.c, TMPFS_DEV.
    let name = format!("tmpfs-dev-{}.tar.gz.img", dev.root_dev);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = openat2(images, &name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let here = |device: &&Device| {
        let others = frozen.mounts.iter().map(|mount| Path::new(&mount.mountpoint));
        let mut others = others.filter(|at| at.starts_with("/dev") && *at != Path::new("/dev"));
        device.path.starts_with("/dev") && !others.any(|at| device.path.starts_with(at))
    };
    let nodes = Nodes { old: &frozen.devices, new: devices.iter().filter(here).collect() };
    Ok(nodes.rewrite(std::fs::File::from(file))?.map(|bytes| (name, bytes)))
}

/// What /dev held, and what it shall hold.
struct Nodes<'a> {
    old: &'a [Device],
    new: Vec<&'a Device>,
}

impl Nodes<'_> {
    /// A copy of the archive with the right nodes; `None` where it has them.
    fn rewrite(&self, compressed: impl Read) -> io::Result<Option<Vec<u8>>> {
        let mut archive = Archive::new(GzDecoder::new(compressed).take(LIMIT));
        let mut out = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        let (mut directories, mut right, mut dropped) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = absolute(&entry.path()?);
            match self.judge(&entry, &path, &dropped)? {
                Verdict::Drop => drop(dropped.insert(path)),
                Verdict::Right => drop(right.insert(path)),
                Verdict::Keep if entry.header().entry_type().is_dir() => drop(directories.insert(path)),
                Verdict::Keep if self.new.iter().any(|device| device.path.starts_with(&path)) => {
                    return Err(io::Error::other(format!("/dev has {path:?} where a device belongs")));
                }
                Verdict::Keep => (),
            }
            if !dropped.contains(&absolute(&entry.path()?)) && !right.contains(&absolute(&entry.path()?)) {
                copy(&mut entry, &mut out)?;
            }
        }
        if archive.into_inner().limit() == 0 {
            return Err(io::Error::other(format!("/dev holds more than {LIMIT} bytes")));
        }
        if dropped.is_empty() && right.len() == self.new.len() {
            return Ok(None);
        }
        for device in &self.new {
            append(device, &mut directories, &mut out)?;
        }
        out.into_inner()?.finish().map(Some)
    }

    /// What becomes of an entry of the old archive.
    fn judge<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        path: &Path,
        dropped: &BTreeSet<PathBuf>,
    ) -> io::Result<Verdict> {
        let (header, at) = (entry.header(), self.new.iter().find(|device| device.path == path));
        let kind = header.entry_type();
        if kind.is_gnu_sparse() {
            return Err(io::Error::other(format!("/dev holds the sparse file {path:?}")));
        }
        let block = kind.is_block_special();
        if !block && !kind.is_character_special() {
            // A second name of a node goes with it.
            let target = if kind.is_hard_link() { entry.link_name()? } else { None };
            let gone = target.is_some_and(|target| dropped.contains(&absolute(&target)));
            return Ok(if gone || at.is_some() { Verdict::Drop } else { Verdict::Keep });
        }
        let node = Device {
            path: path.to_owned(),
            block,
            major: header.device_major()?.unwrap_or(0),
            minor: header.device_minor()?.unwrap_or(0),
            mode: header.mode()? & 0o777,
            uid: u32::try_from(header.uid()?).unwrap_or(u32::MAX),
            gid: u32::try_from(header.gid()?).unwrap_or(u32::MAX),
        };
        if let Some(device) = at {
            return Ok(if node == **device { Verdict::Right } else { Verdict::Drop });
        }
        let of_all =
            !block && (DEFAULT.iter().any(|(_, major, minor)| (*major, *minor) == (node.major, node.minor)));
        // The multiplexer of terminals, where it is no link.
        let ptmx = !block && (node.major, node.minor) == (5, 2);
        let given = self.new.iter().any(|device| device.same_numbers(&node));
        let was_given = self.old.iter().any(|device| device.path == path);
        Ok(if !was_given && (of_all || ptmx || given) { Verdict::Keep } else { Verdict::Drop })
    }
}

enum Verdict {
    /// It stays as it is.
    Keep,
    /// It is a node of the new spec already; it is written again with the others.
    Right,
    /// It goes.
    Drop,
}

/// A path of the archive (`./dri/card0`), as the container sees it. What leads upwards is not followed.
fn absolute(path: &Path) -> PathBuf {
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_)));
    Path::new("/dev").join(parts.collect::<PathBuf>()).components().collect()
}

fn copy<R: Read>(entry: &mut Entry<'_, R>, out: &mut Builder<impl Write>) -> io::Result<()> {
    let (mut header, path) = (entry.header().clone(), entry.path()?.into_owned());
    match entry.link_name()? {
        Some(target) => out.append_link(&mut header, path, target),
        None => out.append_data(&mut header, path, entry),
    }
}

/// Writes a node, and the directories that it needs, as the OCI runtime makes them.
fn append(
    device: &Device,
    directories: &mut BTreeSet<PathBuf>,
    out: &mut Builder<impl Write>,
) -> io::Result<()> {
    let header = |kind: EntryType, mode: u32| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(0);
        header
    };
    let relative = |path: &Path| Path::new(".").join(path.strip_prefix("/dev").unwrap_or(path));
    let mut parents: Vec<_> =
        device.path.ancestors().skip(1).take_while(|path| *path != Path::new("/dev")).collect();
    parents.reverse();
    for parent in parents {
        if directories.insert(parent.to_owned()) {
            out.append_data(&mut header(EntryType::Directory, 0o755), relative(parent), io::empty())?;
        }
    }
    let mut header = header(if device.block { EntryType::Block } else { EntryType::Char }, device.mode);
    header.set_device_major(device.major)?;
    header.set_device_minor(device.minor)?;
    header.set_uid(device.uid.into());
    header.set_gid(device.gid.into());
    out.append_data(&mut header, relative(&device.path), io::empty())
}

/// Makes the nodes that lie outside /dev, in the container's root file system.
///
/// # Errors
/// Names the device.
pub(crate) fn create(rootfs: &Path, devices: &[Device]) -> io::Result<()> {
    for device in devices.iter().filter(|device| !device.path.starts_with("/dev")) {
        make(rootfs, device)
            .map_err(|e| io::Error::other(format!("device {}: {e}", device.path.display())))?;
    }
    Ok(())
}

fn make(rootfs: &Path, device: &Device) -> io::Result<()> {
    let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    mountpoints::create(rootfs, &[Mountpoint { destination: parent.to_owned(), like: None }])?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, rootfs, flags, Mode::empty())?;
    let relative = Path::new(".").join(parent.strip_prefix("/").unwrap_or(parent));
    let parent = openat2(root.as_fd(), &relative, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    match unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => (),
        Err(e) => return Err(e.into()),
    }
    let kind = if device.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    mknodat(&parent, name, kind, Mode::from_raw_mode(device.mode), makedev(device.major, device.minor))?;
    // The mode is subject to the process's mask.
    rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(device.mode), AtFlags::empty())?;
    let owner = |id| rustix::fs::Uid::from_raw(id);
    let group = rustix::fs::Gid::from_raw(device.gid);
    Ok(rustix::fs::chownat(&parent, name, Some(owner(device.uid)), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str, major: u32, minor: u32) -> Device {
        Device { path: path.into(), block: false, major, minor, mode: 0o666, uid: 0, gid: 0 }
    }

    /// Name, type, link or numbers.
    type Line = (&'static str, EntryType, &'static str, (u32, u32));

    fn archive(lines: &[Line]) -> Vec<u8> {
        let mut out = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, kind, link, (major, minor)) in lines {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o666);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            header.set_device_major(*major).unwrap();
            header.set_device_minor(*minor).unwrap();
            if link.is_empty() {
                out.append_data(&mut header, name, io::empty()).unwrap();
            } else {
                out.append_link(&mut header, name, link).unwrap();
            }
        }
        out.into_inner().unwrap().finish().unwrap()
    }

    fn listed(bytes: &[u8]) -> Vec<String> {
        let mut archive = Archive::new(GzDecoder::new(bytes));
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let (header, path) = (entry.header(), entry.path().unwrap().display().to_string());
            let kind = header.entry_type();
            if !kind.is_block_special() && !kind.is_character_special() {
                return path;
            }
            let number = |number: io::Result<Option<u32>>| number.unwrap().unwrap();
            format!("{path} {}:{}", number(header.device_major()), number(header.device_minor()))
        });
        entries.collect()
    }

    const DEV: [Line; 4] = [
        ("./", EntryType::Directory, "", (0, 0)),
        ("./null", EntryType::Char, "", (1, 3)),
        ("./fd", EntryType::Symlink, "/proc/self/fd", (0, 0)),
        ("./gpu0", EntryType::Char, "", (510, 0)),
    ];

    #[test]
    fn nodes_are_replaced_by_those_of_the_new_spec() {
        let old = [device("/dev/gpu0", 510, 0)];
        let new = [device("/dev/gpu0", 508, 3), device("/dev/dri/renderD130", 226, 130)];
        let nodes = Nodes { old: &old, new: new.iter().collect() };
        let written = nodes.rewrite(archive(&DEV).as_slice()).unwrap().unwrap();
        assert_eq!(listed(&written), ["./", "null 1:3", "fd", "gpu0 508:3", "dri", "dri/renderD130 226:130"]);
        assert_eq!(nodes.rewrite(written.as_slice()).unwrap(), None, "what is right is left alone");
    }

    #[test]
    fn what_the_new_spec_does_not_have_is_gone_with_its_other_names() {
        let mut lines = DEV.to_vec();
        lines.push(("./again", EntryType::Link, "./gpu0", (0, 0)));
        lines.push(("./disk", EntryType::Block, "", (8, 0)));
        lines.push(("./mine", EntryType::Char, "", (1, 5)));
        lines.push(("./copy", EntryType::Char, "", (42, 1)));
        let (old, new) = ([device("/dev/gpu0", 510, 0)], [device("/dev/x", 42, 1)]);
        let nodes = Nodes { old: &old, new: new.iter().collect() };
        let written = nodes.rewrite(archive(&lines).as_slice()).unwrap().unwrap();
        assert_eq!(listed(&written), ["./", "null 1:3", "fd", "mine 1:5", "copy 42:1", "x 42:1"]);
    }

    #[test]
    fn a_device_does_not_appear_behind_a_link_of_the_images() {
        let mut lines = DEV.to_vec();
        lines.push(("./dri", EntryType::Symlink, "/etc", (0, 0)));
        let new = [device("/dev/dri/renderD128", 226, 128)];
        let error = Nodes { old: &[], new: new.iter().collect() }.rewrite(archive(&lines).as_slice());
        assert!(error.unwrap_err().to_string().contains("where a device belongs"));
    }

    #[test]
    fn a_damaged_archive_is_an_error() {
        let bytes = archive(&DEV);
        let nodes = Nodes { old: &[], new: Vec::new() };
        assert!(nodes.rewrite(&bytes[..bytes.len() / 2]).is_err());
        assert!(nodes.rewrite(&b"nonsense"[..]).is_err());
    }

    #[test]
    fn nodes_outside_dev_are_made_in_the_root_file_system() {
        let root = tempfile::tempdir().unwrap();
        let devices = [device("/devices/zero", 1, 5), device("/dev/zero", 1, 5)];
        create(root.path(), &devices).unwrap();
        create(root.path(), &devices).expect("what is there already is replaced");
        let stat = rustix::fs::stat(root.path().join("devices/zero")).unwrap();
        assert_eq!((stat.st_rdev, stat.st_mode & 0o777), (makedev(1, 5), 0o666));
        assert!(!root.path().join("dev").exists());
    }
}
