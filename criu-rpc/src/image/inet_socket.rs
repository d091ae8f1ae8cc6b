// SPDX-License-Identifier: Apache-2.0
//! Internet sockets, in `files.img`.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    files::{TYPE, bound_dev},
    message::{FieldError, Message, Tag},
};

// Source of the fields: CRIU 4.2 images/fdinfo.proto (file_entry, fd_types), images/sk-inet.proto (inet_sk_entry).
const ISK: Tag = Tag::new(4, "isk");
const STATE: Tag = Tag::new(6, "isk.state");
const SRC_PORT: Tag = Tag::new(7, "isk.src_port");
const DST_PORT: Tag = Tag::new(8, "isk.dst_port");
const SRC_ADDR: Tag = Tag::new(11, "isk.src_addr");
const DST_ADDR: Tag = Tag::new(12, "isk.dst_addr");
const SHUTDOWN: Tag = Tag::new(19, "isk.shutdown");

const INETSK_TYPE: u32 = 4;

/// Source: netinet/tcp.h.
const TCP_CLOSE: u64 = 7;
/// Source: sys/socket.h, `AF_INET` and `AF_INET6`.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

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

/// The socket's own message, if the entry is one.
fn socket(entry: &Message) -> Result<Option<Message>, FieldError> {
    if entry.required_u32(TYPE)? == INETSK_TYPE { entry.required_message(ISK).map(Some) } else { Ok(None) }
}

pub(super) fn read(entry: &Message) -> Result<Option<InetSocket>, FieldError> {
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
pub(super) fn close(entry: &mut Message, ids: &BTreeSet<u32>) -> Result<bool, FieldError> {
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
pub(super) fn rewrite(entry: &mut Message, map: &[(IpAddr, IpAddr)]) -> Result<bool, FieldError> {
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
    use super::super::files::tests::{entry, files};
    use super::*;
    use crate::image::{Files, ImageFile, Kind, View};

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
}
