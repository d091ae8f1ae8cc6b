// SPDX-License-Identifier: Apache-2.0
//! All open files: `files.img`. Regular files and Internet sockets are looked into, others only kept.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use thiserror::Error;

use super::{
    file::{ImageFile, Kind},
    message::{FieldError, Message, Tag},
    timerfd::rearm,
    view::{View, ViewError, each, entries},
};

// Source of the fields: CRIU 4.2 images/fdinfo.proto (file_entry, fd_types), images/regfile.proto
// (reg_file_entry), images/sk-inet.proto (inet_sk_entry).
const TYPE: Tag = Tag::new(1, "type");
const REG: Tag = Tag::new(3, "reg");
const ISK: Tag = Tag::new(4, "isk");
const NAME: Tag = Tag::new(6, "reg.name");
const SIZE: Tag = Tag::new(8, "reg.size");
const MODE: Tag = Tag::new(10, "reg.mode");
const STATE: Tag = Tag::new(6, "isk.state");
const SRC_PORT: Tag = Tag::new(7, "isk.src_port");
const DST_PORT: Tag = Tag::new(8, "isk.dst_port");
const SRC_ADDR: Tag = Tag::new(11, "isk.src_addr");
const DST_ADDR: Tag = Tag::new(12, "isk.dst_addr");

// images/packet-sock.proto (packet_sock_entry, packet_mclist), images/sk-opts.proto (sk_opts_entry).
const PSK: Tag = Tag::new(6, "psk");
const IFINDEX: Tag = Tag::new(5, "psk.ifindex");
const MCLIST: Tag = Tag::new(16, "psk.mclist");
const MCLIST_INDEX: Tag = Tag::new(1, "psk.mclist.index");
const BOUND_DEV: Tag = Tag::new(15, "opts.so_bound_dev");

const REG_TYPE: u32 = 1;
const INETSK_TYPE: u32 = 4;
const PACKETSK_TYPE: u32 = 10;

const SHUTDOWN: Tag = Tag::new(19, "isk.shutdown");

/// Source: netinet/tcp.h.
const TCP_CLOSE: u64 = 7;
/// Source: sys/socket.h, `AF_INET` and `AF_INET6`.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

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

/// An Internet socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InetSocket {
    /// Its number among all files.
    pub id: u32,
    /// Its inode at the dump.
    pub ino: u32,
    /// 1 stream, 2 datagram, 3 raw.
    pub kind: u32,
    /// 6 TCP, 17 UDP.
    pub proto: u32,
    /// 1 established, 7 closed, 10 listening (`TCP_...`).
    pub state: u32,
    /// Its own address; unspecified if it is not bound to one.
    pub src: IpAddr,
    /// Its own port; 0 if it is not bound.
    pub src_port: u32,
    /// Its peer's address; unspecified if it has none.
    pub dst: IpAddr,
    /// Its peer's port; 0 if it has none.
    pub dst_port: u32,
    /// The interface of a link-local address.
    pub ifname: Option<OsString>,
    /// The interface that it is bound to (`SO_BINDTODEVICE`).
    pub bound_dev: Option<OsString>,
}

/// A packet socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketSocket {
    /// The numbers of the interfaces that it is bound to, or whose groups it has joined.
    pub interfaces: BTreeSet<u32>,
    /// The interface that it is bound to by name (`SO_BINDTODEVICE`).
    pub bound_dev: Option<OsString>,
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
        let mut entries = self.entries.clone();
        let mut changed: usize = 0;
        for (entry, message) in entries.iter_mut().enumerate() {
            let failed = |source| RewriteError::View { source: ViewError::Field { entry, source } };
            changed = changed.saturating_add(usize::from(renumber(message, map).map_err(failed)?));
        }
        *self = Self::read(entries).map_err(|source| RewriteError::View { source })?;
        Ok(changed)
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
        let mut entries = self.entries.clone();
        let mut changed: usize = 0;
        for (entry, message) in entries.iter_mut().enumerate() {
            let failed = |source| RewriteError::View { source: ViewError::Field { entry, source } };
            changed = changed.saturating_add(usize::from(rewrite(message, map).map_err(failed)?));
        }
        *self = Self::read(entries).map_err(|source| RewriteError::View { source })?;
        Ok(changed)
    }

    /// Gives regular files, found by their numbers, another name, size and mode; how many there were. What an entry
    /// does not have it does not get.
    ///
    /// # Errors
    /// When an entry cannot be changed.
    pub fn replace_reg_files(&mut self, files: &[RegFile]) -> Result<usize, RewriteError> {
        let mut entries = self.entries.clone();
        let mut replaced: usize = 0;
        for (entry, message) in entries.iter_mut().enumerate() {
            let failed = |source| RewriteError::View { source: ViewError::Field { entry, source } };
            let Some(old) = reg_file(message).map_err(failed)? else { continue };
            let Some(new) = files.iter().find(|new| new.id == old.id) else { continue };
            let mut reg = message.required_message(REG).map_err(failed)?;
            reg.set_bytes(NAME, new.name.as_os_str().as_encoded_bytes());
            for (tag, value) in
                [(SIZE, new.size.filter(|_| old.size.is_some())), (MODE, new.mode.map(u64::from))]
            {
                if let Some(value) = value.filter(|_| reg.has(tag)) {
                    reg.set_u64(tag, value);
                }
            }
            message.set_bytes(REG, reg.as_bytes());
            replaced = replaced.saturating_add(1);
        }
        *self = Self::read(entries).map_err(|source| RewriteError::View { source })?;
        Ok(replaced)
    }

    /// Makes sockets, by number, such as were never bound nor connected: CRIU then makes a new socket, on which the
    /// program gets `ENOTCONN` or `EPIPE` at once. How many there were.
    ///
    /// # Errors
    /// When a socket cannot be changed.
    pub fn close_sockets(&mut self, ids: &BTreeSet<u32>) -> Result<usize, RewriteError> {
        let mut entries = self.entries.clone();
        let mut closed: usize = 0;
        for (entry, message) in entries.iter_mut().enumerate() {
            let failed = |source| RewriteError::View { source: ViewError::Field { entry, source } };
            closed = closed.saturating_add(usize::from(close(message, ids).map_err(failed)?));
        }
        *self = Self::read(entries).map_err(|source| RewriteError::View { source })?;
        Ok(closed)
    }

    /// Lets periodic timers go on that had expired when they were frozen. How many.
    ///
    /// # Errors
    /// [`RewriteError::View`] when an entry is not what it says.
    pub fn rearm_timers(&mut self) -> Result<usize, RewriteError> {
        let mut rearmed: usize = 0;
        for (entry, message) in self.entries.iter_mut().enumerate() {
            let failed = |source| RewriteError::View { source: ViewError::Field { entry, source } };
            rearmed = rearmed.saturating_add(usize::from(rearm(message).map_err(failed)?));
        }
        Ok(rearmed)
    }

    /// The image with its changes.
    #[must_use]
    pub fn into_image(self) -> ImageFile {
        ImageFile::new(Self::KIND, self.entries)
    }

    fn read(entries: Vec<Message>) -> Result<Self, ViewError> {
        let reg_files = each(&entries, reg_file)?.into_iter().flatten().collect();
        let inet_sockets = each(&entries, inet_socket)?.into_iter().flatten().collect();
        let packet_sockets = each(&entries, packet_socket)?.into_iter().flatten().collect();
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

/// The socket's own message, if the entry is one.
fn socket(entry: &Message) -> Result<Option<Message>, FieldError> {
    if entry.required_u32(TYPE)? == INETSK_TYPE { entry.required_message(ISK).map(Some) } else { Ok(None) }
}

fn inet_socket(entry: &Message) -> Result<Option<InetSocket>, FieldError> {
    let Some(socket) = socket(entry)? else { return Ok(None) };
    let number = |number, name| socket.required_u32(Tag::new(number, name));
    Ok(Some(InetSocket {
        id: number(1, "isk.id")?,
        ino: number(2, "isk.ino")?,
        kind: number(4, "isk.type")?,
        proto: number(5, "isk.proto")?,
        state: number(6, "isk.state")?,
        src: address(&socket, SRC_ADDR)?,
        src_port: number(7, "isk.src_port")?,
        dst: address(&socket, DST_ADDR)?,
        dst_port: number(8, "isk.dst_port")?,
        ifname: socket.text(Tag::new(17, "isk.ifname"))?,
        bound_dev: bound_dev(&socket, Tag::new(14, "isk.opts"))?,
    }))
}

fn bound_dev(socket: &Message, opts: Tag) -> Result<Option<OsString>, FieldError> {
    socket.message(opts)?.map_or(Ok(None), |opts| opts.text(BOUND_DEV))
}

/// The packet socket's own message, if the entry is one.
fn packet(entry: &Message) -> Result<Option<Message>, FieldError> {
    let is_one = entry.required_u32(TYPE)? == PACKETSK_TYPE;
    if is_one { entry.required_message(PSK).map(Some) } else { Ok(None) }
}

fn packet_socket(entry: &Message) -> Result<Option<PacketSocket>, FieldError> {
    let Some(socket) = packet(entry)? else { return Ok(None) };
    let joined = memberships(&socket)?;
    let joined = joined.iter().map(|group| group.required_u32(MCLIST_INDEX));
    let mut interfaces = joined.collect::<Result<BTreeSet<u32>, _>>()?;
    interfaces.insert(socket.required_u32(IFINDEX)?);
    // Bound to none.
    interfaces.remove(&0);
    Ok(Some(PacketSocket { interfaces, bound_dev: bound_dev(&socket, Tag::new(7, "psk.opts"))? }))
}

fn memberships(socket: &Message) -> Result<Vec<Message>, FieldError> {
    let parse = |bytes: &[u8]| Message::parse(bytes).map_err(|source| MCLIST.no_message(source));
    socket.all_bytes(MCLIST)?.into_iter().map(parse).collect()
}

/// Replaces the numbers of interfaces of one entry; whether it had any of them.
fn renumber(entry: &mut Message, map: &[(u32, u32)]) -> Result<bool, FieldError> {
    let Some(mut socket) = packet(entry)? else { return Ok(false) };
    let new = |old: u32| map.iter().find(|(from, _)| *from == old).map(|(_, to)| u64::from(*to));
    let bound = new(socket.required_u32(IFINDEX)?);
    if let Some(number) = bound {
        socket.set_u64(IFINDEX, number);
    }
    let mut changed = bound.is_some();
    let mut groups = memberships(&socket)?;
    for group in &mut groups {
        if let Some(number) = new(group.required_u32(MCLIST_INDEX)?) {
            group.set_u64(MCLIST_INDEX, number);
            changed = true;
        }
    }
    if changed {
        socket.set_all_bytes(MCLIST, groups.iter().map(Message::as_bytes));
        entry.set_bytes(PSK, socket.as_bytes());
    }
    Ok(changed)
}

/// An address: its words hold the bytes in network order, whatever the machine's own order.
fn address(socket: &Message, tag: Tag) -> Result<IpAddr, FieldError> {
    let words = socket.u32s(tag)?;
    match (socket.required_u32(Tag::new(3, "isk.family"))?, &words[..]) {
        (AF_INET, [word]) => Ok(Ipv4Addr::from(word.to_ne_bytes()).into()),
        (AF_INET6, [a, b, c, d]) => {
            let mut bytes = [0; 16];
            for (place, word) in bytes.chunks_exact_mut(4).zip([a, b, c, d]) {
                place.copy_from_slice(&word.to_ne_bytes());
            }
            Ok(Ipv6Addr::from(bytes).into())
        }
        _ => Err(tag.out_of_range()),
    }
}

fn words(address: IpAddr) -> Vec<u32> {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    bytes.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(u32::from_ne_bytes).collect()
}

/// Closes the socket of an entry, if it is one of these; whether it was.
fn close(entry: &mut Message, ids: &BTreeSet<u32>) -> Result<bool, FieldError> {
    let Some(mut socket) = socket(entry)? else { return Ok(false) };
    if !ids.contains(&socket.required_u32(Tag::new(1, "isk.id"))?) {
        return Ok(false);
    }
    for (tag, value) in [(STATE, TCP_CLOSE), (SRC_PORT, 0), (DST_PORT, 0)] {
        socket.set_u64(tag, value);
    }
    for tag in [SRC_ADDR, DST_ADDR] {
        let none = vec![0; socket.u32s(tag)?.len()];
        socket.set_u32s(tag, &none);
    }
    // A shut-down socket would read as one whose peer has said everything, whatever was still queued.
    socket.remove(SHUTDOWN);
    entry.set_bytes(ISK, socket.as_bytes());
    Ok(true)
}

/// Replaces the addresses of one entry; whether it had any of them.
fn rewrite(entry: &mut Message, map: &[(IpAddr, IpAddr)]) -> Result<bool, FieldError> {
    let Some(mut socket) = socket(entry)? else { return Ok(false) };
    let mut changed = false;
    for tag in [SRC_ADDR, DST_ADDR] {
        if let Some(new) = replacement(address(&socket, tag)?, map) {
            socket.set_u32s(tag, &words(new));
            changed = true;
        }
    }
    if changed {
        entry.set_bytes(ISK, socket.as_bytes());
    }
    Ok(changed)
}

fn replacement(address: IpAddr, map: &[(IpAddr, IpAddr)]) -> Option<IpAddr> {
    map.iter().find_map(|(old, new)| match (address, old, new) {
        (address, old, new) if address == *old => Some(*new),
        (IpAddr::V6(address), IpAddr::V4(old), IpAddr::V4(new)) if address == old.to_ipv6_mapped() => {
            Some(new.to_ipv6_mapped().into())
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: u32, tag: Tag, inner: &Message) -> Message {
        let mut entry = Message::default();
        entry.set_u64(TYPE, kind.into());
        entry.set_u64(Tag::new(2, "id"), 3);
        entry.set_bytes(tag, inner.as_bytes());
        entry
    }

    fn listening(family: u32, src: &str, dst: &str) -> Message {
        let mut socket = Message::default();
        for (number, value) in [(1, 3), (2, 4711), (3, family), (4, 1), (5, 6), (6, 10), (7, 80), (8, 0)] {
            socket.set_u64(Tag::new(number, "x"), value.into());
        }
        socket.set_u32s(SRC_ADDR, &words(src.parse().unwrap()));
        socket.set_u32s(DST_ADDR, &words(dst.parse().unwrap()));
        socket.set_bytes(Tag::new(14, "opts"), b"\x08\x01");
        entry(INETSK_TYPE, ISK, &socket)
    }

    fn files(entries: &[Message]) -> Files {
        Files::from_image(ImageFile::new(Kind::Files, entries.to_vec())).unwrap()
    }

    fn map(old: &str, new: &str) -> (IpAddr, IpAddr) {
        (old.parse().unwrap(), new.parse().unwrap())
    }

    #[test]
    fn addresses_are_words_in_network_order() {
        // The address and its word as CRIU 4.2 wrote them on x86-64.
        assert_eq!(words("10.77.0.5".parse().unwrap()), [83_905_802]);
        assert_eq!(words("::ffff:10.77.0.5".parse().unwrap()), [0, 0, 4_294_901_760, 83_905_802]);
    }

    #[test]
    fn sockets_on_the_old_address_move_to_the_new_one() {
        let before = [
            listening(2, "10.0.0.5", "0.0.0.0"),
            listening(10, "::ffff:10.0.0.5", "::ffff:10.0.0.5"),
            listening(10, "fd00::5", "::"),
            listening(2, "0.0.0.0", "0.0.0.0"),
            listening(2, "10.0.0.50", "10.0.0.5"),
        ];
        let mut files = files(&before);
        let pod = [map("10.0.0.5", "10.0.9.9"), map("fd00::5", "fd00::9")];
        assert_eq!(files.rewrite_addresses(&pod), Ok(4));
        let addresses: Vec<String> =
            files.inet_sockets().iter().map(|socket| format!("{} {}", socket.src, socket.dst)).collect();
        assert_eq!(
            addresses,
            [
                "10.0.9.9 0.0.0.0",
                "::ffff:10.0.9.9 ::ffff:10.0.9.9",
                "fd00::9 ::",
                "0.0.0.0 0.0.0.0",
                "10.0.0.50 10.0.9.9"
            ]
        );
        let want = [
            listening(2, "10.0.9.9", "0.0.0.0"),
            listening(10, "::ffff:10.0.9.9", "::ffff:10.0.9.9"),
            listening(10, "fd00::9", "::"),
            before[3].clone(),
            listening(2, "10.0.0.50", "10.0.9.9"),
        ];
        assert_eq!(files.into_image().entries(), want);
    }

    #[test]
    fn a_closed_socket_is_as_if_it_had_never_been_bound_or_connected() {
        let mut files = files(&[listening(2, "10.0.0.5", "10.0.0.1"), listening(10, "fd00::5", "fd00::1")]);
        assert_eq!(files.close_sockets(&BTreeSet::from([4])), Ok(0));
        assert_eq!(files.close_sockets(&BTreeSet::from([3])), Ok(2));
        for socket in files.inet_sockets() {
            assert!(socket.src.is_unspecified() && socket.dst.is_unspecified());
            assert_eq!((socket.state, socket.src_port, socket.dst_port), (7, 0, 0));
        }
    }

    #[test]
    fn exchanged_addresses_are_exchanged_once() {
        let mut files = files(&[listening(2, "10.0.0.1", "10.0.0.2")]);
        files.rewrite_addresses(&[map("10.0.0.1", "10.0.0.2"), map("10.0.0.2", "10.0.0.1")]).unwrap();
        let socket = &files.inet_sockets()[0];
        assert_eq!((socket.src.to_string(), socket.dst.to_string()), ("10.0.0.2".into(), "10.0.0.1".into()));
    }

    #[test]
    fn an_address_cannot_change_its_family() {
        let error = files(&[]).rewrite_addresses(&[map("10.0.0.1", "fd00::1")]).unwrap_err();
        assert_eq!(error.to_string(), "10.0.0.1 cannot become fd00::1: one is IPv4, the other IPv6");
    }

    #[test]
    fn an_address_of_the_wrong_length_is_refused() {
        let mut socket =
            Message::parse(listening(2, "10.0.0.1", "0.0.0.0").bytes(ISK).unwrap().unwrap()).unwrap();
        socket.set_u32s(SRC_ADDR, &[1, 2]);
        let image = ImageFile::new(Kind::Files, vec![entry(INETSK_TYPE, ISK, &socket)]);
        assert!(Files::from_image(image).is_err());
    }

    #[test]
    fn packet_sockets_follow_their_interfaces_to_new_numbers() {
        let mut group = Message::default();
        group.set_u64(MCLIST_INDEX, 3);
        group.set_bytes(Tag::new(3, "addr"), b"\x01\x00\x5e\x00\x00\x01");
        let mut socket = Message::default();
        socket.set_u64(Tag::new(1, "id"), 9);
        socket.set_u64(IFINDEX, 2);
        socket.set_bytes(Tag::new(7, "opts"), &encoded_bound_dev("eth0"));
        socket.set_all_bytes(MCLIST, [group.as_bytes()]);
        let mut files = files(&[entry(PACKETSK_TYPE, PSK, &socket), listening(2, "10.0.0.1", "0.0.0.0")]);
        let numbers =
            |files: &Files| files.packet_sockets()[0].interfaces.iter().copied().collect::<Vec<_>>();
        assert_eq!(numbers(&files), [2, 3]);
        assert_eq!(files.packet_sockets()[0].bound_dev.as_deref(), Some("eth0".as_ref()));
        assert_eq!(files.rewrite_interfaces(&[(7, 8)]), Ok(0));
        assert_eq!(files.rewrite_interfaces(&[(2, 3), (3, 12)]), Ok(1));
        assert_eq!(numbers(&files), [3, 12]);
        assert_eq!(files.inet_sockets()[0].bound_dev, None);
    }

    fn encoded_bound_dev(name: &str) -> Vec<u8> {
        let mut opts = Message::default();
        opts.set_bytes(BOUND_DEV, name.as_bytes());
        opts.as_bytes().to_vec()
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
