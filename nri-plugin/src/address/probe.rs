// SPDX-License-Identifier: Apache-2.0
//! Asks the link whether anybody has an address, and tells it who has one now. For the thread that is in the pod's
//! network namespace; it blocks.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
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
/// How many packets are looked at in one go.
const MOST: usize = 4096;

/// One family's socket, and the addresses that it asks for.
struct Asking {
    socket: OwnedFd,
    protocol: u16,
    addresses: Vec<IpAddr>,
}

/// Whether somebody has one of the addresses, and who. Takes `TIMES * WAIT`.
///
/// # Errors
/// When the kernel does not let one ask.
pub(super) fn ask(interface: u32, own: Mac, addresses: &[IpAddr]) -> io::Result<Option<(IpAddr, Mac)>> {
    let mut asking = Vec::new();
    for (protocol, v4) in [(ARP, true), (IPV6, false)] {
        let addresses: Vec<_> = addresses.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect();
        if !addresses.is_empty() {
            asking.push(Asking { socket: open(interface, protocol)?, protocol, addresses });
        }
    }
    for _ in 0..TIMES {
        for Asking { socket, protocol, addresses } in &asking {
            for address in addresses {
                send(socket, interface, *protocol, &probe(*address, own))?;
            }
        }
        if let Some(found) = listen(&asking, own)? {
            return Ok(Some(found));
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

/// Reads what has come until the wait is over, and then what is there already: on a busy node this thread may have slept
/// all the while.
fn listen(asking: &[Asking], own: Mac) -> io::Result<Option<(IpAddr, Mac)>> {
    let until = Instant::now() + WAIT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(left).unwrap_or_default();
        let mut sockets: Vec<_> = asking.iter().map(|one| PollFd::new(&one.socket, PollFlags::IN)).collect();
        match poll(&mut sockets, Some(&wait)) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        for one in asking {
            if let Some(found) = heard(one, own)? {
                return Ok(Some(found));
            }
        }
        if left.is_zero() {
            return Ok(None);
        }
    }
}

/// What is there to be read. No more of it than the link brings in a busy second, whoever fills it.
fn heard(one: &Asking, own: Mac) -> io::Result<Option<(IpAddr, Mac)>> {
    let mut buffer = [0; 1500];
    for _ in 0..MOST {
        let length = match recv(&one.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => length,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let packet = buffer.get(..length).unwrap_or_default();
        let heard = one.addresses.iter().find_map(|ip| Some((*ip, claim(packet, *ip, own)?)));
        if heard.is_some() {
            return Ok(heard);
        }
    }
    Ok(None)
}
