// SPDX-License-Identifier: Apache-2.0
//! All open files: `files.img`. Regular files and Internet sockets are looked into, others only kept.

use std::{collections::BTreeSet, ffi::OsString, net::IpAddr, path::PathBuf};

use thiserror::Error;

use super::{
    file::{ImageFile, Kind},
    inet_socket::{self, InetSocket},
    message::{FieldError, Message, Tag},
    packet_socket::{self, PacketSocket},
    timerfd::rearm,
    view::{View, ViewError, each, entries},
};

// Source of the fields: CRIU 4.2 images/fdinfo.proto (file_entry, fd_types), images/regfile.proto
// (reg_file_entry), images/sk-opts.proto (sk_opts_entry).
pub(super) const TYPE: Tag = Tag::new(1, "type");
const REG: Tag = Tag::new(3, "reg");
const NAME: Tag = Tag::new(6, "reg.name");
const SIZE: Tag = Tag::new(8, "reg.size");
const MODE: Tag = Tag::new(10, "reg.mode");
pub(super) const BOUND_DEV: Tag = Tag::new(15, "opts.so_bound_dev");

const REG_TYPE: u32 = 1;

/// An open regular file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegFile {
    /// Its number among all files.
    pub id: u32,
    /// `O_...`.
    pub flags: u32,
    /// Its path from the root of the mount namespace; may end in ` (deleted)`.
    pub name: PathBuf,
    /// The mount that it is in; -1 if that is not known.
    pub mnt_id: i32,
    /// Its size at the dump, in bytes; the restore fails where it has another one.
    pub size: Option<u64>,
    /// Its type and permissions at the dump, likewise.
    pub mode: Option<u32>,
}

/// Why addresses cannot be replaced.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RewriteError {
    /// The new address is of another family.
    #[error("{old} cannot become {new}: one is IPv4, the other IPv6")]
    Family {
        /// What is to be replaced.
        old: IpAddr,
        /// By what.
        new: IpAddr,
    },
    /// The image cannot be changed.
    #[error("an open file cannot be changed")]
    View {
        /// Why.
        #[source]
        source: ViewError,
    },
}

/// A `files.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    entries: Vec<Message>,
    reg_files: Vec<RegFile>,
    inet_sockets: Vec<InetSocket>,
    packet_sockets: Vec<PacketSocket>,
}

impl Files {
    /// All regular files and directories.
    #[must_use]
    pub fn reg_files(&self) -> &[RegFile] {
        &self.reg_files
    }

    /// All Internet sockets.
    #[must_use]
    pub fn inet_sockets(&self) -> &[InetSocket] {
        &self.inet_sockets
    }

    /// All packet sockets.
    #[must_use]
    pub fn packet_sockets(&self) -> &[PacketSocket] {
        &self.packet_sockets
    }

    /// Replaces the numbers of interfaces of packet sockets, old by new in one pass. How many sockets changed.
    ///
    /// # Errors
    /// When a socket cannot be changed.
    pub fn rewrite_interfaces(&mut self, map: &[(u32, u32)]) -> Result<usize, RewriteError> {
        self.change(|entry| packet_socket::renumber(entry, map))
    }

    /// Replaces addresses, a socket's own as well as its peer's, old by new in one pass; an IPv4 address
    /// also where it is mapped into IPv6. How many sockets changed.
    ///
    /// # Errors
    /// [`RewriteError::Family`] when an address should become one of the other family.
    pub fn rewrite_addresses(&mut self, map: &[(IpAddr, IpAddr)]) -> Result<usize, RewriteError> {
        if let Some((old, new)) = map.iter().find(|(old, new)| old.is_ipv4() != new.is_ipv4()) {
            return Err(RewriteError::Family { old: *old, new: *new });
        }
        self.change(|entry| inet_socket::rewrite(entry, map))
    }

    /// Gives regular files, found by their numbers, another name, size and mode; how many there were. What an entry
    /// does not have it does not get.
    ///
    /// # Errors
    /// When an entry cannot be changed.
    pub fn replace_reg_files(&mut self, files: &[RegFile]) -> Result<usize, RewriteError> {
        self.change(|entry| replace(entry, files))
    }

    /// Makes sockets, by number, such as were never bound nor connected: CRIU then makes a new socket, on which the
    /// program gets `ENOTCONN` or `EPIPE` at once. How many there were.
    ///
    /// # Errors
    /// When a socket cannot be changed.
    pub fn close_sockets(&mut self, ids: &BTreeSet<u32>) -> Result<usize, RewriteError> {
        self.change(|entry| inet_socket::close(entry, ids))
    }

    /// Lets periodic timers go on that had expired when they were frozen. How many.
    ///
    /// # Errors
    /// [`RewriteError::View`] when an entry is not what it says.
    pub fn rearm_timers(&mut self) -> Result<usize, RewriteError> {
        self.change(rearm)
    }

    /// The image with its changes.
    #[must_use]
    pub fn into_image(self) -> ImageFile {
        ImageFile::new(Self::KIND, self.entries)
    }

    /// Applies an edit to every entry, which says whether it changed it; to all or, where one fails, to none. How many
    /// changed.
    fn change(
        &mut self,
        edit: impl Fn(&mut Message) -> Result<bool, FieldError>,
    ) -> Result<usize, RewriteError> {
        let mut entries = self.entries.clone();
        let mut changed: usize = 0;
        for (entry, message) in entries.iter_mut().enumerate() {
            let failed = |source| RewriteError::View { source: ViewError::Field { entry, source } };
            changed = changed.saturating_add(usize::from(edit(message).map_err(failed)?));
        }
        *self = Self::read(entries).map_err(|source| RewriteError::View { source })?;
        Ok(changed)
    }

    fn read(entries: Vec<Message>) -> Result<Self, ViewError> {
        let reg_files = each(&entries, reg_file)?.into_iter().flatten().collect();
        let inet_sockets = each(&entries, inet_socket::read)?.into_iter().flatten().collect();
        let packet_sockets = each(&entries, packet_socket::read)?.into_iter().flatten().collect();
        Ok(Self { entries, reg_files, inet_sockets, packet_sockets })
    }
}

impl View for Files {
    const KIND: Kind = Kind::Files;

    fn from_image(image: ImageFile) -> Result<Self, ViewError> {
        Self::read(entries(image, Self::KIND)?)
    }
}

fn reg_file(entry: &Message) -> Result<Option<RegFile>, FieldError> {
    if entry.required_u32(TYPE)? != REG_TYPE {
        return Ok(None);
    }
    let reg = entry.required_message(REG)?;
    Ok(Some(RegFile {
        id: reg.required_u32(Tag::new(1, "reg.id"))?,
        flags: reg.required_u32(Tag::new(2, "reg.flags"))?,
        name: reg.required_path(NAME)?,
        mnt_id: reg.sint32(Tag::new(7, "reg.mnt_id"))?.unwrap_or(-1),
        size: reg.u64(SIZE)?,
        mode: reg.u32(MODE)?,
    }))
}

/// Gives the regular file of an entry, if it is one of these, another name, size and mode; whether it was.
fn replace(entry: &mut Message, files: &[RegFile]) -> Result<bool, FieldError> {
    let Some(old) = reg_file(entry)? else { return Ok(false) };
    let Some(new) = files.iter().find(|new| new.id == old.id) else { return Ok(false) };
    let mut reg = entry.required_message(REG)?;
    reg.set_bytes(NAME, new.name.as_os_str().as_encoded_bytes());
    for (tag, value) in [(SIZE, new.size.filter(|_| old.size.is_some())), (MODE, new.mode.map(u64::from))] {
        if let Some(value) = value.filter(|_| reg.has(tag)) {
            reg.set_u64(tag, value);
        }
    }
    entry.set_bytes(REG, reg.as_bytes());
    Ok(true)
}

/// The interface that a socket is bound to, by the field that holds its options.
pub(super) fn bound_dev(socket: &Message, opts: Tag) -> Result<Option<OsString>, FieldError> {
    socket.message(opts)?.map_or(Ok(None), |opts| opts.text(BOUND_DEV))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::image) fn entry(kind: u32, tag: Tag, inner: &Message) -> Message {
        let mut entry = Message::default();
        entry.set_u64(TYPE, kind.into());
        entry.set_u64(Tag::new(2, "id"), 3);
        entry.set_bytes(tag, inner.as_bytes());
        entry
    }

    pub(in crate::image) fn files(entries: &[Message]) -> Files {
        Files::from_image(ImageFile::new(Kind::Files, entries.to_vec())).unwrap()
    }

    #[test]
    fn regular_files_are_read() {
        let reg = b"\x08\x07\x10\x80\x80\x02\x18\x00\x32\x05a/\xff.x\x38\x19\x40\x80\x02\x50\xa4\x83\x02";
        let files = files(&[entry(REG_TYPE, REG, &Message::parse(*reg).unwrap())]);
        let [file] = files.reg_files() else { panic!() };
        assert_eq!((file.id, file.mnt_id, file.size, file.mode), (7, -13, Some(256), Some(0o100_644)));
        assert_eq!(file.name.as_os_str().as_encoded_bytes(), b"a/\xff.x");
    }

    #[test]
    fn a_regular_file_gets_another_name_size_and_mode() {
        let reg = b"\x08\x07\x10\x80\x80\x02\x18\x00\x32\x05a/\xff.x\x38\x19\x40\x80\x02\x50\xa4\x83\x02";
        let mut files = files(&[entry(REG_TYPE, REG, &Message::parse(*reg).unwrap())]);
        let new = RegFile {
            name: "/b".into(),
            size: Some(9),
            mode: Some(0o100_600),
            ..files.reg_files()[0].clone()
        };
        assert_eq!(files.replace_reg_files(&[RegFile { id: 8, ..new.clone() }]), Ok(0));
        assert_eq!(files.replace_reg_files(std::slice::from_ref(&new)), Ok(1));
        assert_eq!(files.reg_files(), [new]);
    }
}
