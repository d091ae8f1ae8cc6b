// SPDX-License-Identifier: Apache-2.0
//! The packets by which hosts of a link ask for an address and tell that they have one. Pure.
//!
//! Source: RFC 826 (ARP), RFC 5227 (probes and announcements), RFC 4861 (neighbour discovery), RFC 4443 (checksum).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mac(pub(super) [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Mac {
    /// Whether a card can have it: it is not nothing, and means no group.
    pub(super) fn is_one_cards(&self) -> bool {
        let [first, ..] = self.0;
        self.0 != [0; 6] && first & 1 == 0
    }
}

/// Everybody on the link.
pub(super) const BROADCAST: Mac = Mac([0xff; 6]);
/// Ethernet and IPv4, with their lengths.
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
/// All hosts on the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// "Override": forget what you knew.
const OVERRIDE: u8 = 0x20;

/// A packet without its link header, and to whom it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) to: Mac,
    pub(super) bytes: Vec<u8>,
}

/// Asks who has the address, without saying that oneself wants it.
pub(super) fn probe(address: IpAddr, own: Mac) -> Packet {
    match address {
        IpAddr::V4(ip) => arp(own, Ipv4Addr::UNSPECIFIED, ip),
        IpAddr::V6(ip) => {
            let [.., x, y, z] = ip.octets();
            let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
            let body = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &ip.octets()].concat();
            icmp(Ipv6Addr::UNSPECIFIED, group, body)
        }
    }
}

/// Tells everybody who has the address now.
pub(super) fn announcement(address: IpAddr, own: Mac) -> Packet {
    match address {
        IpAddr::V4(ip) => arp(own, ip, ip),
        IpAddr::V6(ip) => {
            // The option says the link address: type 2, of 8 bytes.
            let option = [&[2, 1][..], &own.0].concat();
            let body = [&[ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0][..], &ip.octets(), &option].concat();
            icmp(ip, ALL_NODES, body)
        }
    }
}

/// Whether somebody else says in this packet that he has the address; with ARP, also that he wants it at the same time.
/// A probe for an IPv6 address does not say whose it is, and the socket hears one's own as well.
pub(super) fn claim(packet: &[u8], address: IpAddr, own: Mac) -> Option<Mac> {
    let who = match address {
        IpAddr::V4(ip) => {
            let packet: &[u8; 28] = packet.first_chunk()?;
            let head = packet.get(..6)?;
            let sender_mac: [u8; 6] = packet.get(8..14)?.try_into().ok()?;
            let (sender, target) = (packet.get(14..18)?, packet.get(24..28)?);
            let probes = sender == [0; 4] && target == ip.octets();
            (head == ARP_HEAD && (sender == ip.octets() || probes)).then_some(sender_mac)?
        }
        IpAddr::V6(ip) => {
            let (kind, target) = (packet.get(40)?, packet.get(48..64)?);
            let is_for = packet.get(6) == Some(&ICMPV6) && target == ip.octets();
            let claims = is_for && *kind == ADVERTISEMENT;
            let option = packet.get(64..72).filter(|option| option.first() == Some(&2));
            let mac = option.and_then(|option| option.get(2..8)?.try_into().ok()).unwrap_or([0; 6]);
            claims.then_some(mac)?
        }
    };
    (who != own.0).then_some(Mac(who))
}

fn arp(own: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Packet {
    let bytes = [&ARP_HEAD[..], &ARP_REQUEST, &own.0, &sender.octets(), &[0; 6], &target.octets()].concat();
    Packet { to: BROADCAST, bytes }
}

/// An ICMPv6 message to a group, in an IPv6 packet.
fn icmp(from: Ipv6Addr, group: Ipv6Addr, mut body: Vec<u8>) -> Packet {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    let pseudo = [&from.octets()[..], &group.octets(), &[0, 0], &length, &[0, 0, 0, ICMPV6], &body].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    if let Some(place) = body.get_mut(2..4) {
        place.copy_from_slice(&sum);
    }
    // Version 6, and 255 hops: from this link alone.
    let head = [&[0x60, 0, 0, 0][..], &length, &[ICMPV6, 255], &from.octets(), &group.octets()].concat();
    let [.., a, b, c, d] = group.octets();
    Packet { to: Mac([0x33, 0x33, a, b, c, d]), bytes: [head, body].concat() }
}

/// Source: RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        u32::from(pair.first().copied().unwrap_or(0)) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn an_arp_probe_names_no_sender_and_an_announcement_names_it_twice() {
        let ip: IpAddr = "10.88.0.5".parse().unwrap();
        let probe = probe(ip, OWN);
        assert_eq!((probe.to, probe.bytes.len()), (BROADCAST, 28));
        assert_eq!(&probe.bytes[8..28], [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 88, 0, 5]);
        let announcement = announcement(ip, OWN);
        assert_eq!(
            (&announcement.bytes[14..18], &announcement.bytes[24..28]),
            (&[10, 88, 0, 5][..], &[10, 88, 0, 5][..])
        );
    }

    #[test]
    fn a_solicitation_goes_to_the_group_of_the_address_with_a_right_checksum() {
        let packet = probe("fd88::12:3456".parse().unwrap(), OWN);
        assert_eq!(packet.to, Mac([0x33, 0x33, 0xff, 0x12, 0x34, 0x56]));
        let bytes = packet.bytes;
        assert_eq!((bytes.len(), bytes[40], bytes[7]), (64, SOLICITATION, 255));
        // Over what is right, the checksum with itself is nothing.
        let pseudo = [&bytes[8..40], &[0, 0, 0, 24, 0, 0, 0, ICMPV6], &bytes[40..]].concat();
        assert_eq!(checksum(&pseudo), 0);
    }

    #[test]
    fn who_has_the_address_or_wants_it_too_is_heard_and_oneself_is_not() {
        for ip in ["10.88.0.5", "fd88::5"].map(|ip| ip.parse::<IpAddr>().unwrap()) {
            let other: IpAddr = if ip.is_ipv4() { "10.88.0.6" } else { "fd88::6" }.parse().unwrap();
            let said = announcement(ip, OTHER).bytes;
            assert_eq!(claim(&said, ip, OWN), Some(OTHER));
            assert_eq!(claim(&said, ip, OTHER), None);
            assert_eq!(claim(&said, other, OWN), None);
            assert_eq!(claim(&probe(ip, OTHER).bytes, ip, OWN).is_some(), ip.is_ipv4());
            assert_eq!(claim(&probe(ip, OWN).bytes, ip, OWN), None);
            assert_eq!(claim(&said[..20], ip, OWN), None);
            assert_eq!(claim(&[], ip, OWN), None);
        }
        assert_eq!(OTHER.to_string(), "02:00:00:00:00:02");
        assert!(OTHER.is_one_cards() && !BROADCAST.is_one_cards() && !Mac([0; 6]).is_one_cards());
    }
}
