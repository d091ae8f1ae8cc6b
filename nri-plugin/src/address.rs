// SPDX-License-Identifier: Apache-2.0
//! Brings the old addresses of a pod into the network namespace of a new one (`thaw.dev/address: keep`).
//!
//! ```text
//! reserved on this node ─▶ probed on the link ─▶ added ─▶ announced
//!        │ another pod's         │ answered         │ fails
//!        ▼                       ▼                  ▼
//!      refused                 refused           taken back
//! ```
//!
//! Nobody needs to take them away: they go with the pod's network namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt;
use nri_plugin::nri::api::PodSandbox;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::{Handle, new_connection};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::logger::chain;

mod link;
mod packet;
mod probe;

use packet::Mac;

/// How long all of it may take; the runtime waits for two seconds.
const WITHIN: Duration = Duration::from_millis(1200);

/// Which pods of this node have which addresses, so far as the runtime has told.
#[derive(Debug, Default)]
pub(crate) struct Owners(Mutex<BTreeMap<IpAddr, Owner>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    sandbox: String,
    pod: String,
}

impl Owner {
    fn of(pod: &PodSandbox) -> Self {
        Self { sandbox: pod.id.clone(), pod: format!("{}/{}", pod.namespace, pod.name) }
    }
}

impl Owners {
    /// Forgets all and notes these.
    pub(crate) fn reset(&self, pods: &[PodSandbox]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
        pods.iter().for_each(|pod| self.note(pod));
    }

    /// A pod has come, with the addresses that the runtime gave it.
    pub(crate) fn note(&self, pod: &PodSandbox) {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for ip in pod.ips.iter().filter_map(|ip| ip.parse().ok()) {
            owners.insert(ip, Owner::of(pod));
        }
    }

    /// A pod goes.
    pub(crate) fn forget(&self, sandbox: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, owner| owner.sandbox != sandbox);
    }

    /// Notes the addresses as those of `pod`.
    ///
    /// # Errors
    /// Every address that another pod has; none is noted then.
    fn reserve(&self, pod: &PodSandbox, addresses: &[IpAddr]) -> Result<(), String> {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others = addresses.iter().filter_map(|ip| Some((ip, owners.get(ip)?)));
        let taken = others.filter(|(_, owner)| owner.sandbox != pod.id);
        let taken: Vec<_> =
            taken.map(|(ip, owner)| format!("{ip} belongs to pod {} of this node", owner.pod)).collect();
        if !taken.is_empty() {
            return Err(format!("the old address cannot be kept: {}", taken.join(", ")));
        }
        owners.extend(addresses.iter().map(|ip| (*ip, Owner::of(pod))));
        Ok(())
    }
}

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
    #[error("it took too long")]
    Late,
    #[error("{0}")]
    Thread(io::Error),
}

/// Gives the pod the addresses as well. Returns those that it has now.
///
/// # Errors
/// In words, why not.
pub(crate) async fn keep(
    owners: &Owners,
    pod: &PodSandbox,
    addresses: &[IpAddr],
) -> Result<Vec<IpAddr>, String> {
    // Addresses of the link alone come from the interface itself.
    let wanted: Vec<_> = addresses.iter().copied().filter(|ip| !is_of_link(ip)).collect();
    if wanted.is_empty() {
        return Err(
            "the checkpoint does not say which address its pod had: leave out thaw.dev/address: keep".into(),
        );
    }
    let namespaces = pod.linux.namespaces.iter();
    let Some(netns) = namespaces.filter(|ns| ns.type_ == "network").map(|ns| PathBuf::from(&ns.path)).next()
    else {
        return Err("a pod with the node's network cannot keep another address: leave out hostNetwork".into());
    };
    owners.reserve(pod, &wanted)?;
    let (sender, done) = tokio::sync::oneshot::channel();
    let kept = wanted.clone();
    // A thread of its own, for it enters the pod's namespace and ends there.
    let thread = std::thread::Builder::new().name("pod-network".into()).spawn(move || {
        // Nobody listens any more if the runtime's call was dropped.
        let _ = sender.send(in_namespace(&netns, &wanted));
    });
    let result = match thread {
        Ok(_) => done.await.unwrap_or_else(|e| Err(KeepError::Thread(io::Error::other(e)))),
        Err(e) => Err(KeepError::Thread(e)),
    };
    match result {
        Ok(()) => Ok(kept),
        Err(e) => {
            owners.forget(&pod.id);
            owners.note(pod);
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

fn in_namespace(netns: &Path, addresses: &[IpAddr]) -> Result<(), KeepError> {
    let failed =
        |source: rustix::io::Errno| KeepError::Namespace { path: netns.to_owned(), source: source.into() };
    let fd = rustix::fs::open(netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network)).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(KeepError::Thread)?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection().map_err(KeepError::Thread)?;
        tokio::spawn(connection);
        let mut added = Vec::new();
        let work = tokio::time::timeout(WITHIN, bring(&handle, addresses, &mut added)).await;
        let result = work.unwrap_or(Err(KeepError::Late));
        if result.is_err() {
            for message in added {
                // The pod fails anyway and takes its namespace along.
                let _ = handle.address().del(message).execute().await;
            }
        }
        result
    })
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
    added: &mut Vec<AddressMessage>,
) -> Result<(), KeepError> {
    let interface = interface(handle).await?;
    let missing: Vec<_> = addresses.iter().copied().filter(|ip| !interface.addresses.contains(ip)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (index, mac) = (interface.index, interface.mac);
    // It blocks, and this thread has nothing else to do; it takes less than a second.
    if let Some((address, mac)) = probe::ask(index, mac, &missing).map_err(KeepError::Probe)? {
        return Err(KeepError::Taken { address, mac });
    }
    for address in &missing {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let mut request = handle.address().add(index, *address, prefix);
        // It has just been probed for.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        let message = request.message_mut().clone();
        let failed = |source| KeepError::Add { address: *address, interface: interface.name.clone(), source };
        request.execute().await.map_err(failed)?;
        added.push(message);
    }
    probe::announce(index, mac, &missing).map_err(KeepError::Probe)
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

    fn pod(id: &str, ips: &[&str]) -> PodSandbox {
        PodSandbox {
            id: id.into(),
            namespace: "team".into(),
            name: format!("pod-{id}"),
            ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_of_another_pod_of_the_node_is_not_given_away() {
        let owners = Owners::default();
        owners.reset(&[pod("a", &["10.88.0.5", "fd88::5"]), pod("b", &["10.88.0.6"])]);
        let both = ips(&["10.88.0.5", "fd88::5", "10.88.0.7"]);
        let error = owners.reserve(&pod("c", &[]), &both).unwrap_err();
        assert!(
            error.contains("10.88.0.5 belongs to pod team/pod-a") && error.contains("fd88::5"),
            "{error}"
        );
        owners.reserve(&pod("a", &[]), &both).unwrap();
        owners.forget("a");
        owners.reserve(&pod("c", &[]), &both).unwrap();
        assert!(owners.reserve(&pod("d", &[]), &ips(&["10.88.0.7"])).is_err());
    }

    #[tokio::test]
    async fn without_an_address_or_a_network_of_its_own_nothing_can_be_kept() {
        let owners = Owners::default();
        let error = keep(&owners, &pod("a", &[]), &ips(&["fe80::1", "127.0.0.1"])).await.unwrap_err();
        assert!(error.contains("does not say"), "{error}");
        let error = keep(&owners, &pod("a", &[]), &ips(&["10.88.0.5"])).await.unwrap_err();
        assert!(error.contains("hostNetwork"), "{error}");
    }
}
