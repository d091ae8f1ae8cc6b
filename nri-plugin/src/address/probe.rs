// SPDX-License-Identifier: Apache-2.0
//! Asks the link whether anybody has an address, and tells it who has one now. For the thread that is in the pod's
//! network namespace; it blocks.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

use super::link::LinkAddress;
use super::packet::{BROADCAST, Mac, Packet, announcement, claim, probe};

/// EtherTypes. Source: Linux include/uapi/linux/if_ether.h.
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// How often the link is asked. RFC 5227 has three probes within some seconds; pods' links are local.
const TIMES: u32 = 2;
/// How long an answer is waited for.
const WAIT: Duration = Duration::from_millis(200);

/// Whether somebody has one of the addresses, and who.
///
/// # Errors
/// When the kernel does not let one ask.
pub(super) fn ask(interface: u32, own: Mac, addresses: &[IpAddr]) -> io::Result<Option<(IpAddr, Mac)>> {
    let families = [(ARP, true), (IPV6, false)].map(|(protocol, v4)| {
        let of_family: Vec<_> = addresses.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect();
        (protocol, of_family)
    });
    for (protocol, addresses) in families.iter().filter(|(_, addresses)| !addresses.is_empty()) {
        let socket = open(interface, *protocol)?;
        for _ in 0..TIMES {
            for address in addresses {
                send(&socket, interface, *protocol, &probe(*address, own))?;
            }
            if let Some(found) = listen(&socket, own, addresses)? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// Tells everybody on the link that the addresses are here now.
///
/// # Errors
/// When the kernel does not let one tell.
pub(super) fn announce(interface: u32, own: Mac, addresses: &[IpAddr]) -> io::Result<()> {
    for address in addresses {
        let protocol = if address.is_ipv4() { ARP } else { IPV6 };
        let socket = open(interface, protocol)?;
        for _ in 0..TIMES {
            send(&socket, interface, protocol, &announcement(*address, own))?;
        }
    }
    Ok(())
}

fn open(interface: u32, protocol: u16) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &LinkAddress::new(interface, protocol, BROADCAST))?;
    Ok(socket)
}

fn send(socket: &OwnedFd, interface: u32, protocol: u16, packet: &Packet) -> io::Result<()> {
    sendto(socket, &packet.bytes, SendFlags::empty(), &LinkAddress::new(interface, protocol, packet.to))?;
    Ok(())
}

fn listen(socket: &OwnedFd, own: Mac, addresses: &[IpAddr]) -> io::Result<Option<(IpAddr, Mac)>> {
    let until = Instant::now() + WAIT;
    let mut buffer = [0; 1500];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        // The kernel takes nothing for no limit.
        set_socket_timeout(socket.as_fd(), Timeout::Recv, Some(left.max(Duration::from_millis(1))))?;
        let length = match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => length,
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let packet = buffer.get(..length).unwrap_or_default();
        let heard = addresses.iter().find_map(|ip| Some((*ip, claim(packet, *ip, own)?)));
        if heard.is_some() {
            return Ok(heard);
        }
    }
}
