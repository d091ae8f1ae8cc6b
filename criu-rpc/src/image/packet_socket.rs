// SPDX-License-Identifier: Apache-2.0
//! Packet sockets, in `files.img`.

use std::{collections::BTreeSet, ffi::OsString};

use super::{
    files::{TYPE, bound_dev},
    message::{FieldError, Message, Tag},
};

// Source of the fields: CRIU 4.2 images/fdinfo.proto (file_entry, fd_types), images/packet-sock.proto
// (packet_sock_entry, packet_mclist).
const PSK: Tag = Tag::new(6, "psk");
const IFINDEX: Tag = Tag::new(5, "psk.ifindex");
const MCLIST: Tag = Tag::new(16, "psk.mclist");
const MCLIST_INDEX: Tag = Tag::new(1, "psk.mclist.index");

const PACKETSK_TYPE: u32 = 10;

/// A packet socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketSocket {
    /// The numbers of the interfaces that it is bound to, or whose groups it has joined.
    pub interfaces: BTreeSet<u32>,
    /// The interface that it is bound to by name (`SO_BINDTODEVICE`).
    pub bound_dev: Option<OsString>,
}

/// The socket's own message, if the entry is one.
fn packet(entry: &Message) -> Result<Option<Message>, FieldError> {
    let is_one = entry.required_u32(TYPE)? == PACKETSK_TYPE;
    if is_one { entry.required_message(PSK).map(Some) } else { Ok(None) }
}

pub(super) fn read(entry: &Message) -> Result<Option<PacketSocket>, FieldError> {
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
pub(super) fn renumber(entry: &mut Message, map: &[(u32, u32)]) -> Result<bool, FieldError> {
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

#[cfg(test)]
mod tests {
    use super::super::files::{
        BOUND_DEV,
        tests::{entry, files},
    };
    use super::*;
    use crate::image::Files;

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
        let mut files = files(&[entry(PACKETSK_TYPE, PSK, &socket)]);
        let numbers =
            |files: &Files| files.packet_sockets()[0].interfaces.iter().copied().collect::<Vec<_>>();
        assert_eq!(numbers(&files), [2, 3]);
        assert_eq!(files.packet_sockets()[0].bound_dev.as_deref(), Some("eth0".as_ref()));
        assert_eq!(files.rewrite_interfaces(&[(7, 8)]), Ok(0));
        assert_eq!(files.rewrite_interfaces(&[(2, 3), (3, 12)]), Ok(1));
        assert_eq!(numbers(&files), [3, 12]);
    }

    fn encoded_bound_dev(name: &str) -> Vec<u8> {
        let mut opts = Message::default();
        opts.set_bytes(BOUND_DEV, name.as_bytes());
        opts.as_bytes().to_vec()
    }
}
