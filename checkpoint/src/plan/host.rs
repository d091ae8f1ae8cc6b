// SPDX-License-Identifier: Apache-2.0
//! What the plan must know of the node.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};

use crate::gpu::{self, NodeGpu};

/// A Linux security module that labels processes. Source: CRIU images/inventory.proto, `Lsmtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lsm {
    /// None.
    None,
    /// SELinux.
    Selinux,
    /// AppArmor.
    Apparmor,
}

/// The node on which the container shall run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its security module.
    pub lsm: Lsm,
    /// Those of the spec's masked and read-only paths that this kernel has.
    pub existing: BTreeSet<PathBuf>,
    /// Namespaces to which the spec gives a path that is the host's own: containerd joins every container to the
    /// namespaces of its sandbox by path, also where the pod says `hostNetwork`, `hostPID` or `hostIPC`.
    pub host_namespaces: Vec<LinuxNamespaceType>,
    /// Its GPUs.
    pub gpus: Vec<NodeGpu>,
}

impl Host {
    /// Looks at this node, for this spec.
    #[must_use]
    pub fn probe(spec: &Spec) -> Self {
        let exists = |path: &str| Path::new(path).exists();
        // Source: CRIU criu/kerndat.c and criu/lsm.c look at the same places.
        let lsm = if exists("/sys/kernel/security/apparmor") {
            Lsm::Apparmor
        } else if exists("/sys/fs/selinux/enforce") {
            Lsm::Selinux
        } else {
            Lsm::None
        };
        let hidden = spec.linux().iter().flat_map(|linux| [linux.masked_paths(), linux.readonly_paths()]);
        let hidden = hidden.flatten().flatten().map(super::normal);
        // Only these two look the same from here as from inside; what the root file system has the runtime hides
        // where it exists, and Kubernetes lists none of it.
        let kernels = |path: &PathBuf| path.starts_with("/proc") || path.starts_with("/sys");
        let existing = hidden.filter(|path| kernels(path) && path.exists()).collect();
        let namespaces = spec.linux().iter().filter_map(|linux| linux.namespaces().as_ref()).flatten();
        let host_namespaces =
            namespaces.filter(|namespace| is_hosts(namespace)).map(LinuxNamespace::typ).collect();
        Self { lsm, existing, host_namespaces, gpus: gpu::of_node(Path::new("/")) }
    }
}

/// Whether the namespace's path leads to the one that this process is in.
fn is_hosts(namespace: &LinuxNamespace) -> bool {
    let own = match namespace.typ() {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    };
    let inode = |path: &Path| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let path = namespace.path().as_ref().and_then(|path| inode(path));
    path.is_some() && path == inode(&Path::new("/proc/self/ns").join(own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxBuilder, LinuxNamespaceBuilder, SpecBuilder};

    #[test]
    fn a_path_to_the_hosts_namespace_is_recognised() {
        let namespace =
            |typ, path: &str| LinuxNamespaceBuilder::default().typ(typ).path(path).build().unwrap();
        let linux = LinuxBuilder::default()
            .namespaces([
                namespace(LinuxNamespaceType::Network, "/proc/self/ns/net"),
                namespace(LinuxNamespaceType::Ipc, "/proc/self/ns/uts"),
                namespace(LinuxNamespaceType::Uts, "/nonexistent"),
            ])
            .masked_paths([
                "/proc/kcore".to_owned(),
                "/proc/never-there".to_owned(),
                "/etc/passwd".to_owned(),
            ])
            .build()
            .unwrap();
        let host = Host::probe(&SpecBuilder::default().linux(linux).build().unwrap());
        assert_eq!(host.host_namespaces, [LinuxNamespaceType::Network]);
        assert!(!host.existing.contains(Path::new("/proc/never-there")));
        assert!(!host.existing.contains(Path::new("/etc/passwd")));
    }
}
