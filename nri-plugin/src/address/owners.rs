// SPDX-License-Identifier: Apache-2.0
//! Which pods of this node have which addresses, so that none gets another one's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use checkpoint::annotation::KEPT_ADDRESSES;
use nri_plugin::nri::api::{Container, PodSandbox};

/// The addresses of pods, so far as the runtime has told.
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
    pub(crate) fn reserve(&self, pod: &PodSandbox, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
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
    pub(crate) fn release(&self, addresses: &[IpAddr]) {
        self.lock().retain(|ip, _| !addresses.contains(ip));
    }
}

/// A pod's network namespace; none where it has the node's.
pub(crate) fn netns(pod: &PodSandbox) -> Option<PathBuf> {
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
}
