// SPDX-License-Identifier: Apache-2.0
//! The mounts of a mount namespace: `mountpoints-N.img`.

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{
    file::{ImageFile, Kind},
    message::{FieldError, Message, Tag},
    view::{View, ViewError, each, entries},
};

// Source of the fields: CRIU 4.2 images/mnt.proto, mnt_entry.
const FSTYPE: Tag = Tag::new(1, "fstype");
const MNT_ID: Tag = Tag::new(2, "mnt_id");
const ROOT_DEV: Tag = Tag::new(3, "root_dev");
const PARENT_MNT_ID: Tag = Tag::new(4, "parent_mnt_id");
const FLAGS: Tag = Tag::new(5, "flags");
const ROOT: Tag = Tag::new(6, "root");
const MOUNTPOINT: Tag = Tag::new(7, "mountpoint");
const SOURCE: Tag = Tag::new(8, "source");
const OPTIONS: Tag = Tag::new(9, "options");
const SHARED_ID: Tag = Tag::new(10, "shared_id");
const MASTER_ID: Tag = Tag::new(11, "master_id");
const WITH_PLUGIN: Tag = Tag::new(12, "with_plugin");
const EXT_MOUNT: Tag = Tag::new(13, "ext_mount");
const FSNAME: Tag = Tag::new(14, "fsname");
const DELETED: Tag = Tag::new(16, "deleted");
const SB_FLAGS: Tag = Tag::new(17, "sb_flags");
const EXT_KEY: Tag = Tag::new(18, "ext_key");

/// The `MS_...` flags that restrict a mount. Source: Linux include/uapi/linux/mount.h.
const RESTRICTIONS: u32 = 0xf;

/// A mount. Without an `ext_key`, and if no other mount is of the same file system, CRIU mounts the file
/// system `fstype` from `source`: both are the checkpoint's own say-so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub mnt_id: u32,
    /// The mount that it is on; unknown for the root.
    pub parent_mnt_id: u32,
    /// CRIU's number of the file system type: 1 proc, 2 sysfs, 5 tmpfs, 6 devpts, 12 cgroup, 14 mqueue,
    /// 16 by `fsname`, 17 overlay, 23 cgroup2, 0 unknown.
    pub fstype: u32,
    /// The name of the file system type, where `fstype` is 16.
    pub fsname: Option<OsString>,
    /// `MS_...` of the mount.
    pub flags: u32,
    /// `MS_...` of the file system.
    pub sb_flags: Option<u32>,
    /// The device number of the file system, at the dump.
    pub root_dev: u32,
    /// What of the file system is mounted; of an external one a path on the dumping host.
    pub root: PathBuf,
    /// Where it is mounted, seen from the namespace's root.
    pub mountpoint: PathBuf,
    /// What is mounted, for file systems that have it.
    pub source: OsString,
    /// Options of the file system.
    pub options: OsString,
    /// Its peer group; 0 if it has none.
    pub shared_id: u32,
    /// The peer group that it receives mounts from; 0 if there is none.
    pub master_id: u32,
    /// A plugin of CRIU's mounts it.
    pub with_plugin: bool,
    /// What was mounted has been deleted.
    pub deleted: bool,
    /// It is external: what is mounted is told by the restore's `ext_mounts` under this key.
    pub ext_key: Option<OsString>,
}

/// Why a mount cannot be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AddMountError {
    /// There is no external mount to copy.
    #[error("the image has no external mount that a new one could be modelled on")]
    NoTemplate,
    /// No mount that it could be on.
    #[error("the image has no mount that a new one could be on")]
    NoParent,
    /// All numbers are in use.
    #[error("the image has no number for a new mount")]
    NoNumber,
}

/// A `mountpoints-N.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mountpoints {
    entries: Vec<Message>,
    /// One for each entry.
    mounts: Vec<Mount>,
}

impl Mountpoints {
    /// All mounts, in CRIU's order.
    #[must_use]
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Removes a mount with all mounts on it; how many there were.
    pub fn remove(&mut self, mnt_id: u32) -> usize {
        let gone = self.below(mnt_id);
        let before = self.mounts.len();
        let mut keep =
            self.mounts.iter().map(|mount| !gone.contains(&mount.mnt_id)).collect::<Vec<_>>().into_iter();
        self.entries.retain(|_| keep.next().unwrap_or(true));
        self.mounts.retain(|mount| !gone.contains(&mount.mnt_id));
        before.saturating_sub(self.mounts.len())
    }

    /// Gives a mount a device number that no other one has, so that CRIU takes it for no view of another one.
    /// Whether there is such a mount.
    pub fn set_apart(&mut self, mnt_id: u32) -> bool {
        let device = self.free_device();
        let at = self.mounts.iter().position(|mount| mount.mnt_id == mnt_id);
        let Some(((entry, mount), device)) =
            at.and_then(|at| self.entries.get_mut(at).zip(self.mounts.get_mut(at))).zip(device)
        else {
            return false;
        };
        entry.set_u64(ROOT_DEV, device.into());
        mount.root_dev = device;
        true
    }

    /// A device number that no mount has.
    fn free_device(&self) -> Option<u32> {
        self.mounts.iter().map(|mount| mount.root_dev).max().unwrap_or(0).checked_add(1)
    }

    /// Adds an external mount at `mountpoint`, which is its key as well, on top of what is there, restricted by
    /// `flags` (`MS_RDONLY` and others below 16); its number. The mount point must exist when CRIU mounts there.
    ///
    /// # Errors
    /// [`AddMountError`] when the image gives nothing to go by.
    pub fn add_external(&mut self, mountpoint: &Path, flags: u32) -> Result<u32, AddMountError> {
        let template = self.mounts.iter().position(|mount| mount.ext_key.is_some() && !mount.deleted);
        let template = template.ok_or(AddMountError::NoTemplate)?;
        let parent = self.at(mountpoint).ok_or(AddMountError::NoParent)?;
        let highest = self.mounts.iter().map(|mount| mount.mnt_id).max().unwrap_or(0);
        let mnt_id = highest.checked_add(1).ok_or(AddMountError::NoNumber)?;
        let device = self.free_device().ok_or(AddMountError::NoNumber)?;
        // CRIU compares roots to find binds of one another: this one is like no other.
        let root = format!("/added-{mnt_id}");

        let (Some(entry), Some(mount)) = (self.entries.get(template), self.mounts.get(template)) else {
            return Err(AddMountError::NoTemplate);
        };
        let (mut entry, mut mount) = (entry.clone(), mount.clone());
        mount.flags = mount.flags & !RESTRICTIONS | flags & RESTRICTIONS;
        mount.root_dev = device;
        entry.set_u64(FLAGS, u64::from(mount.flags));
        entry.set_u64(ROOT_DEV, u64::from(device));
        entry.set_u64(MNT_ID, u64::from(mnt_id));
        entry.set_u64(PARENT_MNT_ID, u64::from(parent));
        entry.set_bytes(ROOT, root.as_bytes());
        entry.set_bytes(MOUNTPOINT, mountpoint.as_os_str().as_bytes());
        entry.set_bytes(EXT_KEY, mountpoint.as_os_str().as_bytes());
        entry.set_u64(SHARED_ID, 0);
        entry.set_u64(MASTER_ID, 0);
        mount.mnt_id = mnt_id;
        mount.parent_mnt_id = parent;
        mount.root = root.into();
        mount.mountpoint = mountpoint.to_owned();
        mount.ext_key = Some(mountpoint.into());
        (mount.shared_id, mount.master_id) = (0, 0);
        self.entries.push(entry);
        self.mounts.push(mount);
        Ok(mnt_id)
    }

    /// The image with its changes.
    #[must_use]
    pub fn into_image(self) -> ImageFile {
        ImageFile::new(Self::KIND, self.entries)
    }

    /// The mount that a path is in: the deepest, and of several there the last.
    fn at(&self, path: &Path) -> Option<u32> {
        let holds = |mount: &&Mount| path.starts_with(&mount.mountpoint);
        let depth = |mount: &&Mount| mount.mountpoint.components().count();
        self.mounts.iter().filter(holds).max_by_key(depth).map(|mount| mount.mnt_id)
    }

    /// The mount and all that are on it, directly or not.
    fn below(&self, mnt_id: u32) -> HashSet<u32> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for mount in &self.mounts {
            children.entry(mount.parent_mnt_id).or_default().push(mount.mnt_id);
        }
        let mut found = HashSet::new();
        let mut next = vec![mnt_id];
        while let Some(id) = next.pop() {
            if found.insert(id) {
                next.extend(children.remove(&id).unwrap_or_default());
            }
        }
        found
    }
}

impl View for Mountpoints {
    const KIND: Kind = Kind::Mountpoints;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        let entries = entries(image, Self::KIND)?;
        let mounts = each(&entries, mount)?;
        let mut ids = HashSet::new();
        match mounts.iter().find(|mount| !ids.insert(mount.mnt_id)) {
            Some(mount) => Err(ViewError::Duplicate { name: "mnt_id", id: mount.mnt_id }),
            None => Ok(Self { entries, mounts }),
        }
    }
}

fn mount(entry: &Message) -> Result<Mount, FieldError> {
    // In images of before CRIU 2.0 the key was in `root`.
    if entry.bool(EXT_MOUNT)? {
        return Err(EXT_MOUNT.out_of_range());
    }
    Ok(Mount {
        mnt_id: entry.required_u32(MNT_ID)?,
        parent_mnt_id: entry.required_u32(PARENT_MNT_ID)?,
        fstype: entry.required_u32(FSTYPE)?,
        fsname: entry.text(FSNAME)?,
        flags: entry.required_u32(FLAGS)?,
        sb_flags: entry.u32(SB_FLAGS)?,
        root_dev: entry.required_u32(ROOT_DEV)?,
        root: entry.required_path(ROOT)?,
        mountpoint: entry.required_path(MOUNTPOINT)?,
        source: entry.required_text(SOURCE)?,
        options: entry.required_text(OPTIONS)?,
        shared_id: entry.u32(SHARED_ID)?.unwrap_or(0),
        master_id: entry.u32(MASTER_ID)?.unwrap_or(0),
        with_plugin: entry.bool(WITH_PLUGIN)?,
        deleted: entry.bool(DELETED)?,
        ext_key: entry.text(EXT_KEY)?,
    })
}

impl Mount {
    /// Whether it is external under this key.
    #[must_use]
    pub fn has_key(&self, key: &OsStr) -> bool {
        self.ext_key.as_deref() == Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mnt_id: u32, parent: u32, mountpoint: &str, ext_key: Option<&str>) -> Message {
        let mut entry = Message::default();
        entry.set_u64(FSTYPE, 0);
        entry.set_u64(MNT_ID, mnt_id.into());
        entry.set_u64(ROOT_DEV, 0x30);
        entry.set_u64(PARENT_MNT_ID, parent.into());
        entry.set_u64(FLAGS, 0x20_0000);
        entry.set_bytes(ROOT, b"/");
        entry.set_bytes(MOUNTPOINT, mountpoint.as_bytes());
        entry.set_bytes(SOURCE, b"s");
        entry.set_bytes(OPTIONS, b"");
        entry.set_u64(SHARED_ID, 9);
        if let Some(key) = ext_key {
            entry.set_bytes(EXT_KEY, key.as_bytes());
        }
        entry
    }

    fn mountpoints(entries: &[Message]) -> Mountpoints {
        Mountpoints::from_image(ImageFile::new(Kind::Mountpoints, entries.to_vec())).unwrap()
    }

    fn tree() -> [Message; 5] {
        [
            entry(1, 0, "/", Some("/")),
            entry(2, 1, "/dev", None),
            entry(3, 2, "/dev/pts", None),
            entry(4, 3, "/dev/pts/x", None),
            entry(5, 1, "/etc/hosts", Some("/etc/hosts")),
        ]
    }

    #[test]
    fn removing_a_mount_removes_what_is_on_it() {
        let mut mounts = mountpoints(&tree());
        assert_eq!(mounts.remove(2), 3);
        assert_eq!(mounts.remove(2), 0);
        let left: Vec<u32> = mounts.mounts().iter().map(|mount| mount.mnt_id).collect();
        assert_eq!(left, [1, 5]);
        assert_eq!(mounts.into_image().entries(), [tree()[0].clone(), tree()[4].clone()]);
    }

    #[test]
    fn mounts_on_each_other_are_removed_without_end() {
        let mut mounts = mountpoints(&[entry(1, 2, "/a", None), entry(2, 1, "/b", None)]);
        assert_eq!(mounts.remove(1), 2);
    }

    #[test]
    fn an_added_mount_is_on_the_deepest_mount_and_private() {
        let mut mounts = mountpoints(&tree());
        assert_eq!(mounts.add_external(Path::new("/dev/pts/nvidia0"), 3), Ok(6));
        let added = mounts.mounts().last().unwrap().clone();
        assert_eq!((added.parent_mnt_id, added.shared_id), (3, 0));
        assert_eq!((added.flags, added.root_dev), (0x20_0003, 0x31));
        assert!(mounts.set_apart(5) && !mounts.set_apart(7));
        assert_eq!(mounts.mounts()[4].root_dev, 0x32);
        assert!(added.has_key(OsStr::new("/dev/pts/nvidia0")));
        let again = Mountpoints::from_image(mounts.into_image()).unwrap();
        assert_eq!(again.mounts().last(), Some(&added));
        assert_eq!(again.mounts().len(), 6);
    }

    #[test]
    fn a_mount_cannot_be_added_without_a_model_or_a_place() {
        let add = |entries: &[Message]| mountpoints(entries).add_external(Path::new("/x"), 0);
        assert_eq!(add(&[entry(1, 0, "/", None)]), Err(AddMountError::NoTemplate));
        assert_eq!(add(&[entry(1, 0, "/y", Some("/y"))]), Err(AddMountError::NoParent));
        assert_eq!(add(&[entry(u32::MAX, 0, "/", Some("/"))]), Err(AddMountError::NoNumber));
    }

    #[test]
    fn an_external_mount_of_the_older_format_and_a_number_given_twice_are_refused() {
        let mut old = entry(1, 0, "/", None);
        old.set_u64(EXT_MOUNT, 1);
        let view =
            |entries: Vec<Message>| Mountpoints::from_image(ImageFile::new(Kind::Mountpoints, entries));
        assert!(view(vec![old]).is_err());
        let twice = vec![entry(1, 0, "/", None), entry(1, 0, "/a", None)];
        assert_eq!(view(twice), Err(ViewError::Duplicate { name: "mnt_id", id: 1 }));
    }
}
