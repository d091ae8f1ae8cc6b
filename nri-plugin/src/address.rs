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

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use checkpoint::annotation::KEPT_ADDRESSES;
use checkpoint::dump::Link;
use futures_util::TryStreamExt;
use nri_plugin::nri::api::{Container, PodSandbox};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::{Handle, LinkUnspec, new_connection};
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
    /// Whether it is an old address, of which whoever gives out addresses does not know.
    kept: bool,
    /// Its network namespace.
    netns: Option<PathBuf>,
}

impl Owner {
    fn of(pod: &PodSandbox, kept: bool) -> Self {
        let named = format!("{}/{}", pod.namespace, pod.name);
        Self { sandbox: pod.id.clone(), pod: named, kept, netns: netns(pod) }
    }

    /// Whether its network has gone. A pod's end may come while nobody tells us of it.
    fn is_gone(&self) -> bool {
        self.netns.as_ref().is_some_and(|path| !path.exists())
    }
}

impl Owners {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Owner>> {
        // A poisoned lock only means that another call panicked; each entry is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Knows these pods and no others. What their containers were prepared with says which old addresses they have.
    pub(crate) fn reset(&self, pods: &[PodSandbox], containers: &[Container]) {
        let mut owners = self.lock();
        // A container that is being prepared is not among them yet.
        owners.retain(|_, owner| owner.kept && pods.iter().any(|pod| pod.id == owner.sandbox));
        for container in containers {
            let pod = pods.iter().find(|pod| pod.id == container.pod_sandbox_id);
            // A note that the pod has as well is its own.
            let Some(pod) = pod.filter(|pod| !pod.annotations.contains_key(KEPT_ADDRESSES)) else { continue };
            let noted = container.annotations.get(KEPT_ADDRESSES).map(|list| list.split(','));
            let noted = noted.into_iter().flatten().filter_map(|ip| ip.parse().ok());
            owners.extend(noted.map(|ip: IpAddr| (ip, Owner::of(pod, true))));
        }
        for pod in pods {
            owners.extend(given(pod).map(|ip| (ip, Owner::of(pod, false))));
        }
    }

    /// A pod has come, with the addresses that the runtime gave it.
    ///
    /// # Errors
    /// One of them is the old address of another pod: whoever gives out addresses did not know.
    pub(crate) fn note(&self, pod: &PodSandbox) -> Result<(), String> {
        let mut owners = self.lock();
        let others = given(pod).filter_map(|ip| Some((ip, owners.get(&ip)?)));
        let others = others.filter(|(_, owner)| owner.sandbox != pod.id && !owner.is_gone());
        let mut kept = others.filter(|(_, owner)| owner.kept);
        if let Some((ip, owner)) = kept.next() {
            return Err(format!("{ip} is kept by pod {}: the next try gives another address", owner.pod));
        }
        drop(kept);
        owners.extend(given(pod).map(|ip| (ip, Owner::of(pod, false))));
        Ok(())
    }

    /// A pod goes.
    pub(crate) fn forget(&self, sandbox: &str) {
        self.lock().retain(|_, owner| owner.sandbox != sandbox);
    }

    /// Notes the addresses as those of `pod`. Returns those that were nobody's before.
    ///
    /// # Errors
    /// Every address that another pod has; none is noted then.
    fn reserve(&self, pod: &PodSandbox, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
        let mut owners = self.lock();
        owners.retain(|ip, owner| !addresses.contains(ip) || !owner.is_gone());
        let others = addresses.iter().filter_map(|ip| Some((ip, owners.get(ip)?)));
        let taken = others.filter(|(_, owner)| owner.sandbox != pod.id);
        let taken: Vec<_> =
            taken.map(|(ip, owner)| format!("{ip} belongs to pod {} of this node", owner.pod)).collect();
        if !taken.is_empty() {
            return Err(format!("the old address cannot be kept: {}", taken.join(", ")));
        }
        let new: Vec<_> = addresses.iter().copied().filter(|ip| !owners.contains_key(ip)).collect();
        owners.extend(new.iter().map(|ip| (*ip, Owner::of(pod, true))));
        Ok(new)
    }

    /// Gives reserved addresses up.
    fn release(&self, addresses: &[IpAddr]) {
        self.lock().retain(|ip, _| !addresses.contains(ip));
    }
}

/// A pod's network namespace; none where it has the node's.
fn netns(pod: &PodSandbox) -> Option<PathBuf> {
    let mut networks = pod.linux.namespaces.iter().filter(|namespace| namespace.type_ == "network");
    networks
        .next()
        .map(|namespace| PathBuf::from(&namespace.path))
        .filter(|path| !path.as_os_str().is_empty())
}

/// The addresses that the runtime gave a pod.
fn given(pod: &PodSandbox) -> impl Iterator<Item = IpAddr> {
    pod.ips.iter().filter_map(|ip| ip.parse().ok())
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
    use nri_plugin::nri::api::LinuxNamespace;

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
        owners.reset(&[pod("a", &["10.88.0.5", "fd88::5"]), pod("b", &["10.88.0.6"])], &[]);
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

    #[test]
    fn a_kept_address_outlives_a_new_synchronisation_and_is_given_to_no_new_pod() {
        let owners = Owners::default();
        let (a, b) = (pod("a", &["10.88.0.5"]), pod("b", &["10.88.0.6"]));
        owners.reserve(&a, &ips(&["10.88.0.1"])).unwrap();
        let container = |sandbox: &str, kept: &str| Container {
            pod_sandbox_id: sandbox.into(),
            annotations: [(KEPT_ADDRESSES.to_owned(), kept.to_owned())].into(),
            ..Default::default()
        };
        let forger = PodSandbox {
            annotations: [(KEPT_ADDRESSES.to_owned(), "10.88.0.3".to_owned())].into(),
            ..pod("f", &["10.88.0.7"])
        };
        let containers = [container("b", "10.88.0.2,fd88::2"), container("f", "10.88.0.3")];
        owners.reset(&[a.clone(), b, forger], &containers);
        for (kept, owner) in [("10.88.0.1", "pod-a"), ("10.88.0.2", "pod-b"), ("fd88::2", "pod-b")] {
            let error = owners.note(&pod("new", &["10.88.0.9", kept])).unwrap_err();
            assert!(error.contains(kept) && error.contains(owner), "{error}");
        }
        owners.note(&pod("new", &["10.88.0.9", "10.88.0.3"])).unwrap();
        // Its own is not taken from it, and what has gone is free.
        owners.note(&pod("a", &["10.88.0.1"])).unwrap();
        owners.reset(std::slice::from_ref(&a), &[]);
        owners.note(&pod("new", &["10.88.0.2"])).unwrap();
    }

    #[test]
    fn an_address_is_free_when_its_pods_network_has_gone_though_nobody_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cni-1");
        std::fs::write(&path, "").unwrap();
        let mut a = pod("a", &["10.88.0.5"]);
        let namespace = LinuxNamespace {
            type_: "network".into(),
            path: path.display().to_string(),
            ..Default::default()
        };
        a.linux.mut_or_insert_default().namespaces.push(namespace);
        let owners = Owners::default();
        owners.note(&a).unwrap();
        owners.reserve(&a, &ips(&["10.88.0.1"])).unwrap();
        assert!(owners.reserve(&pod("b", &[]), &ips(&["10.88.0.5"])).is_err());
        assert!(owners.note(&pod("b", &["10.88.0.1"])).is_err());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(owners.reserve(&pod("b", &[]), &ips(&["10.88.0.5"])), Ok(ips(&["10.88.0.5"])));
        owners.note(&pod("b", &["10.88.0.1"])).unwrap();
    }

    #[test]
    fn what_cannot_be_kept_is_given_up_and_what_was_kept_before_is_not() {
        let (owners, a) = (Owners::default(), pod("a", &[]));
        assert_eq!(owners.reserve(&a, &ips(&["10.88.0.5"])), Ok(ips(&["10.88.0.5"])));
        let new = owners.reserve(&a, &ips(&["10.88.0.5", "10.88.0.6"])).unwrap();
        assert_eq!(new, ips(&["10.88.0.6"]));
        owners.release(&new);
        assert!(owners.reserve(&pod("b", &[]), &ips(&["10.88.0.5"])).is_err());
        owners.reserve(&pod("b", &[]), &ips(&["10.88.0.6"])).unwrap();
    }

    #[tokio::test]
    async fn without_an_address_or_a_network_of_its_own_nothing_can_be_kept() {
        let owners = Owners::default();
        let old = |list| Old { addresses: ips(list), card: None };
        let error = keep(&owners, &pod("a", &[]), &old(&["fe80::1", "127.0.0.1"])).await.unwrap_err();
        assert!(error.contains("does not say"), "{error}");
        let error = keep(&owners, &pod("a", &[]), &old(&["10.88.0.5"])).await.unwrap_err();
        assert!(error.contains("hostNetwork"), "{error}");
    }
}
