// SPDX-License-Identifier: Apache-2.0
//! The address of a packet socket, which rustix does not have.

#![allow(unsafe_code)]

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};

use super::packet::Mac;

/// An interface, a protocol, and who is meant on the link. Source: packet(7).
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkAddress(libc::sockaddr_ll);

impl LinkAddress {
    /// `protocol` is an EtherType.
    pub(super) fn new(interface: u32, protocol: u16, to: Mac) -> Self {
        let [a, b, c, d, e, f] = to.0;
        Self(libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).unwrap_or(0),
            sll_protocol: protocol.to_be(),
            sll_ifindex: interface.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [a, b, c, d, e, f, 0, 0],
        })
    }
}

// SAFETY: the pointer is to a whole `sockaddr_ll`, borrowed for the call, with that type's own length.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let length = SocketAddrLen::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or(0);
        f(std::ptr::from_ref(&self.0).cast(), length)
    }
}
