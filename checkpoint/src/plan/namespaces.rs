// SPDX-License-Identifier: Apache-2.0
//! Which namespaces the container is restored into: those of the new pod, and of the same kind as before.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{Frozen, Host, Plan, Reason};

/// A namespace in the new spec: absent is the host's.
type Wanted = Option<Option<PathBuf>>;

/// Fills in the plan's namespaces, or adds what is against them.
pub(super) fn plan(frozen: &Frozen, spec: &Spec, host: &Host, plan: &mut Plan, reasons: &mut Vec<Reason>) {
    let namespaces = spec.linux().iter().filter_map(|linux| linux.namespaces().as_ref()).flatten();
    let namespaces: Vec<_> = namespaces.collect();
    let wanted = |kind| -> Wanted {
        let mut kinds =
            namespaces.iter().filter(|namespace| !host.host_namespaces.contains(&namespace.typ()));
        let found = kinds.find(|namespace| namespace.typ() == kind);
        found.map(|namespace| namespace.path().clone().filter(|path| !path.as_os_str().is_empty()))
    };
    if frozen.own.user || wanted(LinuxNamespaceType::User).is_some() {
        reasons.push(Reason::UserNamespace { frozen: frozen.own.user });
    }
    let mut same_kind = |namespace, frozen_own: bool, wanted: &Wanted, field| {
        let same = frozen_own == wanted.is_some();
        if !same {
            reasons.push(Reason::Namespace { namespace, frozen_own, field });
        }
        same
    };
    let (network, pid) = (wanted(LinuxNamespaceType::Network), wanted(LinuxNamespaceType::Pid));
    let (ipc, uts) = (wanted(LinuxNamespaceType::Ipc), wanted(LinuxNamespaceType::Uts));
    let network_same = same_kind("network", frozen.own.network, &network, "hostNetwork");
    let pid_same = same_kind("PID", frozen.own.pid, &pid, "hostPID");
    same_kind("IPC", frozen.own.ipc, &ipc, "hostIPC");
    same_kind("UTS", frozen.own.uts, &uts, "hostNetwork");
    let mut shared = |namespace, same: bool, key: &Option<String>, wanted: Wanted, field| {
        let (own, path) = (wanted.is_some(), wanted.flatten());
        if same && own && key.is_some() != path.is_some() {
            reasons.push(Reason::SharedNamespace { namespace, frozen_shared: key.is_some(), field });
        }
        key.clone().zip(path)
    };
    plan.network = shared("network", network_same, &frozen.network_key, network, "hostNetwork");
    plan.pid = shared("PID", pid_same, &frozen.pid_key, pid, "shareProcessNamespace");
    plan.ipc = ipc.flatten();
    plan.uts = uts.flatten();
    plan.cgroup_namespace = wanted(LinuxNamespaceType::Cgroup).is_some();
}
