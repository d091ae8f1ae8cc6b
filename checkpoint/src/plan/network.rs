// SPDX-License-Identifier: Apache-2.0
//! What becomes of the sockets: addresses of the old pod become those of the new one, connections go on or are closed.
//!
//! A connection is inside the pod when both of its ends are among the images: its packets never left the network
//! namespace, so both ends can move to the new address together. Everything else had its peer outside of what was
//! frozen, and cannot follow: such a socket comes back closed, and the program gets an error at once.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Reason;
use crate::annotation::{Address, TcpConnections};

/// Source: CRIU 4.2 criu/sk-inet.c, `tcp_connection`: what has a peer's port is a connection to it.
const TCP: u32 = 6;
/// The peer has sent its last byte. Source: Linux include/net/tcp_states.h.
const CLOSE_WAIT: u32 = 8;

/// The network side of a frozen container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrozenNetwork {
    /// The addresses that the pod had, where they are known; in the order of its interfaces.
    pub addresses: Vec<IpAddr>,
    /// Its Internet sockets.
    pub sockets: Vec<Socket>,
    /// Its packet sockets.
    pub packets: Vec<PacketSocket>,
    /// The names of the interfaces that there were by number, where they are known.
    pub interfaces: BTreeMap<u32, String>,
}

/// A packet socket of the images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PacketSocket {
    /// The numbers of the interfaces that it is bound to.
    pub interfaces: BTreeSet<u32>,
    /// The interface that it is bound to by name.
    pub device: Option<String>,
}

/// An Internet socket of the images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Its number among the files of the images.
    pub id: u32,
    /// 6 TCP, 17 UDP.
    pub proto: u32,
    /// `TCP_...`: 1 established, 7 closed, 8 close-wait, 10 listening.
    pub state: u32,
    /// Its own address and port.
    pub own: SocketAddr,
    /// Its peer's; port 0: it has none.
    pub peer: SocketAddr,
    /// The interface of its link-local address.
    pub interface: Option<String>,
    /// The interface that it is bound to, `SO_BINDTODEVICE`.
    pub device: Option<String>,
    /// Whether it is a raw socket.
    pub raw: bool,
}

/// The network side of the new container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewNetwork {
    /// The addresses of the sandbox but for those of the loopback interface, in the order of its interfaces.
    pub addresses: Vec<IpAddr>,
    /// Its interfaces, and their numbers.
    pub interfaces: BTreeMap<String, u32>,
    /// `thaw.dev/address`.
    pub address: Address,
    /// `thaw.dev/tcp`.
    pub tcp: TcpConnections,
}

/// What the images say differently.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Old and new addresses.
    pub addresses: Vec<(IpAddr, IpAddr)>,
    /// The sockets that come back closed, by number.
    pub closed: BTreeSet<u32>,
    /// Old and new numbers of interfaces of packet sockets.
    pub interfaces: Vec<(u32, u32)>,
}

/// Decides about every socket, or adds what is against it. `may_raw`: whether the new container may open sockets below
/// the transport.
pub(super) fn plan(
    frozen: &FrozenNetwork,
    new: &NewNetwork,
    may_raw: bool,
    reasons: &mut Vec<Reason>,
) -> Sockets {
    let old = if frozen.addresses.is_empty() { inferred(&frozen.sockets) } else { frozen.addresses.clone() };
    let addresses = match new.address {
        Address::Rewrite => moved(&old, &new.addresses),
        Address::Keep => Vec::new(),
    };
    let closed = closed(frozen, &old, new.tcp);
    let (mut gone, mut interfaces) = (BTreeSet::new(), BTreeSet::new());
    for socket in frozen.sockets.iter().filter(|socket| !closed.contains(&socket.id)) {
        let own = plain(socket.own.ip());
        let stays = addresses.iter().all(|(from, _)| *from != own);
        if old.contains(&own) && stays && !new.addresses.contains(&own) {
            gone.insert(own);
        }
        // Its peer is outside: it is reached from the old address alone.
        let connected = new.tcp == TcpConnections::Keep && is_connection(socket) && !stays;
        if connected && !old.contains(&plain(socket.peer.ip())) {
            gone.insert(own);
        }
        interfaces.extend(socket.interface.clone().filter(|name| !new.interfaces.contains_key(name)));
    }
    // CRIU binds closed ones too.
    let devices = frozen.sockets.iter().map(|socket| &socket.device);
    let devices = devices.chain(frozen.packets.iter().map(|socket| &socket.device)).flatten();
    interfaces.extend(devices.filter(|name| !new.interfaces.contains_key(*name)).cloned());
    let numbers = numbers(frozen, new, &mut interfaces, reasons);
    if !may_raw && (!frozen.packets.is_empty() || frozen.sockets.iter().any(|socket| socket.raw)) {
        reasons.push(Reason::RawSocket);
    }
    let keep = new.address == Address::Keep;
    reasons.extend(gone.into_iter().map(|address| match (new.tcp, keep) {
        (TcpConnections::Keep, false) => Reason::ConnectionsMoved { address },
        _ => Reason::AddressGone { address, keep },
    }));
    reasons.extend(interfaces.into_iter().map(|interface| Reason::InterfaceGone { interface }));
    Sockets { addresses, closed, interfaces: numbers }
}

/// The new number of each interface that packet sockets are bound to. Adds to `gone` those that the new pod lacks.
fn numbers(
    frozen: &FrozenNetwork,
    new: &NewNetwork,
    gone: &mut BTreeSet<String>,
    reasons: &mut Vec<Reason>,
) -> Vec<(u32, u32)> {
    let used: BTreeSet<u32> = frozen.packets.iter().flat_map(|socket| &socket.interfaces).copied().collect();
    let mut map = Vec::new();
    for old in used {
        match frozen.interfaces.get(&old).map(|name| (name, new.interfaces.get(name))) {
            Some((_, Some(number))) if *number == old => {}
            Some((_, Some(number))) => map.push((old, *number)),
            Some((name, None)) => drop(gone.insert(name.clone())),
            None => reasons.push(Reason::InterfaceUnknown { number: old }),
        }
    }
    map
}

/// The addresses that a pod must have had, because sockets are bound to them: at most one of a kind, or it is not clear
/// which is the pod's.
fn inferred(sockets: &[Socket]) -> Vec<IpAddr> {
    let bound: BTreeSet<_> = sockets.iter().map(|socket| plain(socket.own.ip())).collect();
    let own = |address: &&IpAddr| match address {
        IpAddr::V4(address) => *address != Ipv4Addr::BROADCAST && !address.is_multicast(),
        IpAddr::V6(address) => !address.is_multicast(),
    };
    let own: Vec<_> =
        bound.iter().filter(own).filter(|it| !it.is_loopback() && !it.is_unspecified()).copied().collect();
    let alone = |address: &&IpAddr| own.iter().filter(|other| kind(other) == kind(address)).count() == 1;
    own.iter().filter(alone).copied().collect()
}

/// Each old address that the new pod lacks, and the one in its place: the first of its kind that is not taken.
fn moved(old: &[IpAddr], new: &[IpAddr]) -> Vec<(IpAddr, IpAddr)> {
    let mut free: Vec<_> = new.iter().filter(|address| !old.contains(address)).collect();
    let mut moved = Vec::new();
    for from in old.iter().filter(|address| !new.contains(address)) {
        if let Some(at) = free.iter().position(|to| kind(to) == kind(from)) {
            moved.push((*from, *free.remove(at)));
        }
    }
    moved
}

/// Family, and whether it is valid on one link only.
fn kind(address: &IpAddr) -> (bool, bool) {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    (address.is_ipv4(), link_local)
}

fn closed(frozen: &FrozenNetwork, old: &[IpAddr], tcp: TcpConnections) -> BTreeSet<u32> {
    let all: HashSet<_> = frozen.sockets.iter().filter(|it| is_connection(it)).map(ends).collect();
    let own = |address: IpAddr| address.is_loopback() || old.contains(&address);
    let inside = |socket: &Socket| {
        let (from, to) = ends(socket);
        // The other end of one that has been closed may be gone: what it sent last is still there to be read.
        let last = socket.state == CLOSE_WAIT && own(from.0) && own(to.0);
        all.contains(&(to, from)) || last
    };
    let close = |socket: &&Socket| match tcp {
        TcpConnections::Auto => is_connection(socket) && !inside(socket),
        TcpConnections::Keep => false,
        TcpConnections::Close => is_connection(socket),
    };
    frozen.sockets.iter().filter(close).map(|socket| socket.id).collect()
}

fn is_connection(socket: &Socket) -> bool {
    socket.proto == TCP && socket.peer.port() != 0
}

type End = (IpAddr, u16);

/// Its own end and its peer's, the same for a socket of either family.
fn ends(socket: &Socket) -> (End, End) {
    let end = |address: SocketAddr| (plain(address.ip()), address.port());
    (end(socket.own), end(socket.peer))
}

/// The IPv4 address of one that is mapped into IPv6.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: [&str; 2] = ["10.88.0.5", "fd88::5"];

    fn socket(id: u32, proto: u32, state: u32, own: &str, peer: &str) -> Socket {
        Socket {
            id,
            proto,
            state,
            own: own.parse().unwrap(),
            peer: peer.parse().unwrap(),
            interface: None,
            device: None,
            raw: false,
        }
    }

    fn listening(id: u32, own: &str) -> Socket {
        socket(id, TCP, 10, own, if own.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })
    }

    fn connected(id: u32, own: &str, peer: &str) -> Socket {
        socket(id, TCP, 1, own, peer)
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn new(addresses: &[&str]) -> NewNetwork {
        let interfaces = [("lo".to_owned(), 1), ("eth0".to_owned(), 5)].into();
        NewNetwork { addresses: ips(addresses), interfaces, ..NewNetwork::default() }
    }

    fn run(addresses: &[&str], sockets: &[Socket], new: &NewNetwork) -> (Sockets, Vec<String>) {
        let frozen = FrozenNetwork {
            addresses: ips(addresses),
            sockets: sockets.to_vec(),
            ..FrozenNetwork::default()
        };
        let mut reasons = Vec::new();
        let plan = plan(&frozen, new, false, &mut reasons);
        (plan, reasons.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn each_address_moves_to_the_new_one_of_its_kind() {
        let sockets = [listening(1, "10.88.0.5:80"), listening(2, "[fd88::5]:80"), listening(3, "[::]:81")];
        let (plan, reasons) = run(&OLD, &sockets, &new(&["fe80::1", "10.88.0.9", "fd88::9"]));
        assert!(reasons.is_empty(), "{reasons:?}");
        let expected = [("10.88.0.5", "10.88.0.9"), ("fd88::5", "fd88::9")];
        assert_eq!(plan.addresses, expected.map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap())));
        assert!(plan.closed.is_empty());
    }

    #[test]
    fn an_address_that_the_new_pod_has_as_well_stays() {
        let sockets = [listening(1, "10.88.0.5:80")];
        let (plan, reasons) = run(&["10.88.0.5"], &sockets, &new(&["10.88.0.9", "10.88.0.5"]));
        assert_eq!((plan, reasons), (Sockets::default(), vec![]));
    }

    #[test]
    fn an_address_without_one_in_its_place_is_a_reason_only_where_a_socket_needs_it() {
        let (_, reasons) = run(&OLD, &[listening(1, "[fd88::5]:80")], &new(&["10.88.0.9"]));
        assert!(reasons[0].contains("fd88::5"), "{reasons:?}");
        let (_, reasons) = run(&OLD, &[listening(1, "[::]:80")], &new(&["10.88.0.9"]));
        assert!(reasons.is_empty(), "{reasons:?}");
        let keep = NewNetwork { address: Address::Keep, ..new(&["10.88.0.9"]) };
        let (plan, reasons) = run(&OLD, &[listening(1, "10.88.0.5:80")], &keep);
        assert!(plan.addresses.is_empty() && reasons[0].contains("thaw.dev/address"), "{reasons:?}");
    }

    #[test]
    fn without_a_record_the_address_is_the_only_one_of_its_kind_that_sockets_are_bound_to() {
        let sockets = [
            listening(1, "127.0.0.1:80"),
            listening(2, "[::ffff:10.88.0.5]:80"),
            socket(3, 17, 7, "224.0.0.1:5353", "0.0.0.0:0"),
            listening(4, "0.0.0.0:1"),
            listening(5, "[fd88::5]:1"),
            listening(6, "[fd99::5]:1"),
        ];
        let (plan, _) = run(&[], &sockets, &new(&["10.88.0.9", "fd88::9"]));
        assert_eq!(plan.addresses, [(ips(&["10.88.0.5"])[0], ips(&["10.88.0.9"])[0])]);
    }

    #[test]
    fn a_connection_goes_on_when_both_its_ends_were_frozen() {
        let sockets = [
            connected(1, "127.0.0.1:80", "127.0.0.1:999"),
            connected(2, "127.0.0.1:999", "127.0.0.1:80"),
            connected(3, "10.88.0.5:999", "10.88.0.5:80"),
            connected(4, "[::ffff:10.88.0.5]:80", "[::ffff:10.88.0.5]:999"),
            connected(5, "127.0.0.1:80", "127.0.0.1:998"),
            connected(6, "10.88.0.5:80", "10.88.0.1:5000"),
            socket(7, TCP, CLOSE_WAIT, "127.0.0.1:80", "127.0.0.1:997"),
            socket(8, TCP, CLOSE_WAIT, "10.88.0.5:80", "10.88.0.1:5001"),
            socket(9, 17, 1, "10.88.0.5:53", "10.88.0.1:53"),
            listening(10, "10.88.0.5:80"),
        ];
        let closed = |tcp| {
            let new = NewNetwork { tcp, ..new(&["10.88.0.9"]) };
            run(&OLD, &sockets, &new).0.closed.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(closed(TcpConnections::Auto), [5, 6, 8]);
        assert_eq!(closed(TcpConnections::Close), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(closed(TcpConnections::Keep).is_empty());
    }

    #[test]
    fn connections_to_outside_are_kept_at_the_same_address_only() {
        let sockets = [connected(1, "10.88.0.5:80", "10.88.0.1:5000")];
        let keep = |addresses| NewNetwork { tcp: TcpConnections::Keep, ..new(addresses) };
        assert!(run(&OLD, &sockets, &keep(&["10.88.0.5"])).1.is_empty());
        let (_, reasons) = run(&OLD, &sockets, &keep(&["10.88.0.9"]));
        assert!(reasons[0].contains("thaw.dev/address: keep"), "{reasons:?}");
        let inside =
            [connected(1, "10.88.0.5:80", "10.88.0.5:5000"), connected(2, "10.88.0.5:5000", "10.88.0.5:80")];
        assert!(run(&OLD, &inside, &keep(&["10.88.0.9"])).1.is_empty());
    }

    #[test]
    fn a_socket_on_an_interface_that_is_gone_is_a_reason() {
        let mut bound = listening(1, "0.0.0.0:80");
        bound.interface = Some("net1".into());
        let (_, reasons) = run(&OLD, &[bound], &new(&["10.88.0.9"]));
        assert!(reasons[0].contains("net1"), "{reasons:?}");
    }

    #[test]
    fn a_socket_bound_to_a_device_that_is_gone_is_a_reason_also_if_it_is_closed() {
        for mut bound in [listening(1, "0.0.0.0:80"), connected(1, "10.88.0.5:80", "10.88.0.1:5000")] {
            bound.device = Some("net1".into());
            let (_, reasons) = run(&OLD, &[bound.clone()], &new(&["10.88.0.9", "fd88::9"]));
            assert!(reasons.len() == 1 && reasons[0].contains("net1"), "{reasons:?}");
            bound.device = Some("eth0".into());
            assert!(run(&OLD, &[bound], &new(&["10.88.0.9", "fd88::9"])).1.is_empty());
        }
    }

    #[test]
    fn packet_sockets_go_to_the_interface_of_the_same_name_and_need_the_right_to_have_them() {
        let packet = |interfaces: &[u32]| PacketSocket {
            interfaces: interfaces.iter().copied().collect(),
            device: None,
        };
        let names = [(1, "lo"), (2, "eth0"), (3, "net1")].map(|(number, name)| (number, name.to_owned()));
        let judge = |interfaces: &[u32], may_raw| {
            let packets = vec![packet(interfaces)];
            let frozen =
                FrozenNetwork { packets, interfaces: names.clone().into(), ..FrozenNetwork::default() };
            let mut reasons = Vec::new();
            let sockets = plan(&frozen, &new(&[]), may_raw, &mut reasons);
            (sockets.interfaces, reasons.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(judge(&[], true), (vec![], vec![]));
        assert_eq!(judge(&[1, 2], true), (vec![(2, 5)], vec![]));
        let (_, reasons) = judge(&[3, 4], false);
        for (reason, part) in reasons.iter().zip(["number 4", "NET_RAW", "\"net1\""]) {
            assert!(reason.contains(part), "{reasons:?}");
        }
        assert_eq!(reasons.len(), 3);
        let mut raw = listening(1, "0.0.0.0:1");
        raw.raw = true;
        assert!(run(&OLD, &[raw], &new(&["10.88.0.9"])).1[0].contains("NET_RAW"));
    }
}
