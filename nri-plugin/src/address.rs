// SPDX-License-Identifier: Apache-2.0
//! Brings the old addresses of a pod into the network namespace of a new one (`thaw.dev/address: keep`).
//!
//! ```text
//! reserved on this node ─▶ probed on the link ─▶ MAC set ─▶ added ─▶ announced
//!        │ another pod's         │ answered                  │ fails
//!        ▼                       ▼                           ▼
//!      refused                 refused                    taken back
//! ```
//!
//! The old MAC comes along where a packet socket was bound to the interface: such a program speaks with it, and the shim
//! lets it have the socket only where it may open one, which is to say any frame at all.
//!
//! Nobody needs to take them away: they go with the pod's network namespace.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use checkpoint::dump::Link;
use futures_util::TryStreamExt;
use nri_plugin::nri::api::PodSandbox;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::{Handle, LinkUnspec, new_connection};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::logger::chain;

mod link;
mod owners;
mod packet;
mod probe;

pub(crate) use owners::Owners;
use owners::netns;
use packet::Mac;

/// How long all of it may take; the runtime waits for two seconds.
const WITHIN: Duration = Duration::from_millis(1200);

/// Why the addresses are not there; what was added has been taken back.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("cannot enter its network namespace {path}", path = path.display())]
    Namespace { path: PathBuf, source: io::Error },
    #[error("cannot ask the kernel about its interfaces")]
    Look(#[source] rtnetlink::Error),
    #[error("it has no interface but the loopback one")]
    NoInterface,
    #[error("cannot look for others that have it")]
    Probe(#[source] io::Error),
    #[error("{address} is in use on the pod's network, by {mac}")]
    Taken { address: IpAddr, mac: Mac },
    #[error("cannot add {address} to {interface}")]
    Add { address: IpAddr, interface: String, source: rtnetlink::Error },
    #[error("cannot give {interface} the address {mac}")]
    Card { interface: String, mac: Mac, source: rtnetlink::Error },
    #[error("it took too long")]
    Late,
    #[error("{0}")]
    Thread(io::Error),
}

/// What of the old pod's network comes along.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Old {
    pub(crate) addresses: Vec<IpAddr>,
    /// The interface that packet sockets are bound to.
    pub(crate) card: Option<Link>,
}

/// Gives the pod the addresses as well. Returns those that it has now.
///
/// # Errors
/// In words, why not.
pub(crate) async fn keep(owners: &Owners, pod: &PodSandbox, old: &Old) -> Result<Vec<IpAddr>, String> {
    // Addresses of the link alone come from the interface itself.
    let wanted: Vec<_> = old.addresses.iter().copied().filter(|ip| !is_of_link(ip)).collect();
    if wanted.is_empty() {
        return Err(
            "the checkpoint does not say which address its pod had: leave out thaw.dev/address: keep".into(),
        );
    }
    let Some(netns) = netns(pod) else {
        return Err("a pod with the node's network cannot keep another address: leave out hostNetwork".into());
    };
    let reserved = owners.reserve(pod, &wanted)?;
    let (sender, done) = tokio::sync::oneshot::channel();
    let (kept, card) = (wanted.clone(), old.card.clone());
    // A thread of its own, for it enters the pod's namespace and ends there.
    let thread = std::thread::Builder::new().name("pod-network".into()).spawn(move || {
        // Nobody listens any more if the runtime's call was dropped.
        let _ = sender.send(in_namespace(&netns, &wanted, card.as_ref()));
    });
    let result = match thread {
        Ok(_) => done.await.unwrap_or_else(|e| Err(KeepError::Thread(io::Error::other(e)))),
        Err(e) => Err(KeepError::Thread(e)),
    };
    match result {
        Ok(()) => Ok(kept),
        Err(e) => {
            owners.release(&reserved);
            Err(format!("the old address cannot be kept: {}", chain(&e)))
        }
    }
}

fn is_of_link(ip: &IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

fn in_namespace(netns: &Path, addresses: &[IpAddr], card: Option<&Link>) -> Result<(), KeepError> {
    let failed =
        |source: rustix::io::Errno| KeepError::Namespace { path: netns.to_owned(), source: source.into() };
    let fd = rustix::fs::open(netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network)).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(KeepError::Thread)?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection().map_err(KeepError::Thread)?;
        tokio::spawn(connection);
        let mut done = Done::default();
        let work = tokio::time::timeout(WITHIN, bring(&handle, addresses, card, &mut done)).await;
        let result = work.unwrap_or(Err(KeepError::Late));
        if result.is_err() {
            // The pod fails anyway and takes its namespace along.
            for message in done.added {
                let _ = handle.address().del(message).execute().await;
            }
            if let Some((index, mac)) = done.replaced {
                let _ = set_card(&handle, index, mac).await;
            }
        }
        result
    })
}

/// What there is to be taken back.
#[derive(Default)]
struct Done {
    added: Vec<AddressMessage>,
    /// The number of the interface, and the MAC that it had.
    replaced: Option<(u32, Mac)>,
}

async fn set_card(handle: &Handle, index: u32, mac: Mac) -> Result<(), rtnetlink::Error> {
    let message = LinkUnspec::new_with_index(index).address(mac.0.to_vec()).build();
    handle.link().set(message).execute().await
}

/// The pod's interface.
struct Interface {
    index: u32,
    name: String,
    mac: Mac,
    addresses: Vec<IpAddr>,
}

async fn bring(
    handle: &Handle,
    addresses: &[IpAddr],
    card: Option<&Link>,
    done: &mut Done,
) -> Result<(), KeepError> {
    let Interface { index, name, mac: own, addresses: present } = interface(handle).await?;
    let missing: Vec<_> = addresses.iter().copied().filter(|ip| !present.contains(ip)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // It blocks, and this thread has nothing else to do; it takes less than half a second.
    if let Some((address, mac)) = probe::ask(index, own, &missing).map_err(KeepError::Probe)? {
        return Err(KeepError::Taken { address, mac });
    }
    let old = card.filter(|card| card.name == name).and_then(|card| card.mac).map(Mac);
    let mac = old.filter(Mac::is_one_cards).unwrap_or(own);
    if mac != own {
        let failed = |source| KeepError::Card { interface: name.clone(), mac, source };
        set_card(handle, index, mac).await.map_err(failed)?;
        done.replaced = Some((index, own));
    }
    for address in &missing {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let mut request = handle.address().add(index, *address, prefix);
        // It has just been probed for.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        let message = request.message_mut().clone();
        let failed = |source| KeepError::Add { address: *address, interface: name.clone(), source };
        request.execute().await.map_err(failed)?;
        done.added.push(message);
    }
    // With another card, those that the pod has had so far are elsewhere too.
    let moved = present.into_iter().filter(|ip| mac != own && !is_of_link(ip));
    let told: Vec<_> = missing.into_iter().chain(moved).collect();
    probe::announce(index, mac, &told).map_err(KeepError::Probe)
}

/// The first interface that is not the loopback one, as the runtime makes it.
async fn interface(handle: &Handle) -> Result<Interface, KeepError> {
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(KeepError::Look)? {
        if link.header.flags.contains(LinkFlags::Loopback) || !link.header.flags.contains(LinkFlags::Up) {
            continue;
        }
        let (mut name, mut mac) = (String::new(), None);
        for attribute in link.attributes {
            if let LinkAttribute::IfName(text) = attribute {
                name = text;
            } else if let LinkAttribute::Address(bytes) = attribute {
                mac = bytes.try_into().ok().map(Mac);
            }
        }
        let Some(mac) = mac else { continue };
        let addresses = addresses(handle, link.header.index).await?;
        return Ok(Interface { index: link.header.index, name, mac, addresses });
    }
    Err(KeepError::NoInterface)
}

async fn addresses(handle: &Handle, index: u32) -> Result<Vec<IpAddr>, KeepError> {
    let mut messages = handle.address().get().set_link_index_filter(index).execute();
    let mut addresses = Vec::new();
    while let Some(message) = messages.try_next().await.map_err(KeepError::Look)? {
        addresses.extend(message.attributes.into_iter().filter_map(|attribute| {
            if let AddressAttribute::Address(ip) = attribute { Some(ip) } else { None }
        }));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_an_address_or_a_network_of_its_own_nothing_can_be_kept() {
        let owners = Owners::default();
        let old = |list: &[&str]| {
            let addresses = list.iter().map(|ip| ip.parse().unwrap()).collect();
            Old { addresses, card: None }
        };
        let error = keep(&owners, &PodSandbox::default(), &old(&["fe80::1", "127.0.0.1"])).await.unwrap_err();
        assert!(error.contains("does not say"), "{error}");
        let error = keep(&owners, &PodSandbox::default(), &old(&["10.88.0.5"])).await.unwrap_err();
        assert!(error.contains("hostNetwork"), "{error}");
    }
}
