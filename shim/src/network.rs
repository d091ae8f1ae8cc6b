// SPDX-License-Identifier: Apache-2.0
//! The addresses and interfaces of a network namespace.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;

use ::checkpoint::dump::Link;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What is in a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interfaces {
    /// By name.
    pub(crate) links: BTreeMap<String, Link>,
    /// Their addresses but for those of the loopback interface, in the kernel's order.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Looks into a network namespace; without a path, into this process's. The thread that enters it ends with it.
///
/// # Errors
/// When it cannot be entered, or the kernel does not tell.
pub(crate) fn interfaces(namespace: Option<&Path>) -> std::io::Result<Interfaces> {
    let Some(path) = namespace else { return look() };
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let seen = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        look()
    });
    seen.join().map_err(|_| std::io::Error::other("the thread that reads it panicked"))?
}

fn look() -> std::io::Result<Interfaces> {
    let mut found = Interfaces::default();
    for interface in getifaddrs()? {
        let loopback = interface.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let address = interface.address.as_ref().and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::from(Ipv6Addr::from(it.ip().octets()))))
        });
        let card = interface.address.as_ref().and_then(nix::sys::socket::SockaddrStorage::as_link_addr);
        if let Some(card) = card {
            let index = u32::try_from(card.ifindex()).unwrap_or(0);
            let link = Link { name: interface.interface_name.clone(), index, mac: card.addr() };
            found.links.insert(interface.interface_name, link);
        }
        found.addresses.extend(address.filter(|_| !loopback));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_named_and_its_addresses_are_left_out() {
        let found = interfaces(None).unwrap();
        assert_eq!(found.links["lo"].index, 1);
        assert!(found.addresses.iter().all(|address| !address.is_loopback()), "{found:?}");
        assert_eq!(interfaces(Some(Path::new("/proc/self/ns/net"))).unwrap(), found);
        assert!(interfaces(Some(Path::new("/proc/self/ns/uts"))).is_err());
    }
}
