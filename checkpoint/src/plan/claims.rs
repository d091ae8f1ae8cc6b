// SPDX-License-Identifier: Apache-2.0
//! Compares what the images claim for every thread with what the new spec allows its process.

use std::collections::{BTreeSet, HashMap};

use oci_spec::runtime::{LinuxCapabilities, Process, Spec};

use super::capability::{Capabilities, SETGID, SETPCAP, SETUID, bits, capability_names};
use super::held::{Held, Who};
use super::reason::Reason;

/// `SECCOMP_MODE_FILTER`. Source: Linux include/uapi/linux/seccomp.h.
const SECCOMP_FILTER: u32 = 2;

/// `SECBIT_KEEP_CAPS`, the only secure bit that a thread may set without a right to. Source: Linux
/// include/uapi/linux/securebits.h, security/commoncap.c, cap_task_prctl.
const KEEP_CAPS: u32 = 1 << 4;

/// The credentials of one thread. Source: CRIU images/core.proto, images/creds.proto.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The process, in the container's PID namespace.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The thread's name.
    pub comm: String,
    /// Real, effective, saved and file system user.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capability sets.
    pub capabilities: Capabilities,
    /// `SECBIT_*`.
    pub secure_bits: u32,
    /// Whether execve can give no privileges.
    pub no_new_privs: bool,
    /// `SECCOMP_MODE_*`.
    pub seccomp_mode: u32,
    /// AppArmor profile or SELinux label.
    pub lsm_profile: Option<String>,
}

/// What the new spec allows.
struct Allowed {
    uid: u32,
    any_uid: bool,
    gid: u32,
    any_gid: bool,
    groups: BTreeSet<u32>,
    bounding: u64,
    ambient: u64,
    no_new_privs: bool,
    seccomp: bool,
    confined: bool,
}

/// Whether a thread has a seccomp filter.
pub(super) fn has_filter(claims: &Claims) -> bool {
    claims.seccomp_mode == SECCOMP_FILTER
}

type CapabilitySet = fn(&LinuxCapabilities) -> &Option<oci_spec::runtime::Capabilities>;

fn held(process: &Process, set: CapabilitySet) -> u64 {
    process.capabilities().as_ref().and_then(|all| set(all).as_ref()).map_or(0, bits)
}

/// What the processes of the new container can ever have.
pub(super) fn bounding(process: &Process) -> u64 {
    held(process, LinuxCapabilities::bounding)
}

impl Allowed {
    fn by(spec: &Spec, process: &Process, confined: bool) -> Self {
        let user = process.user();
        let bounding = bounding(process);
        let root = user.uid() == 0;
        let additional = user.additional_gids().iter().flatten().copied();
        Self {
            uid: user.uid(),
            any_uid: root && bounding & SETUID != 0,
            gid: user.gid(),
            any_gid: root && bounding & SETGID != 0,
            groups: additional.chain([user.gid()]).collect(),
            bounding,
            ambient: held(process, LinuxCapabilities::ambient),
            no_new_privs: process.no_new_privileges().unwrap_or(false),
            seccomp: spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some()),
            confined,
        }
    }

    /// Everything that one thread has and may not have.
    fn faults(&self, claims: &Claims) -> Vec<Held> {
        let mut faults = Vec::new();
        if !self.any_uid && claims.uids.iter().any(|uid| *uid != self.uid) {
            faults.push(Held::Uid { held: claims.uids, allowed: self.uid });
        }
        let gids = claims.gids.iter().chain(&claims.groups).copied();
        let foreign: BTreeSet<u32> = gids.filter(|gid| !self.groups.contains(gid)).collect();
        if !self.any_gid && !foreign.is_empty() {
            faults.push(Held::Groups { held: foreign.into_iter().collect(), allowed: self.gid });
        }
        // A process of root gets its capabilities at execve; another one only those that the spec makes ambient,
        // unless a file gives it more, which no_new_privs forbids.
        let gained = if self.no_new_privs && self.uid != 0 { self.ambient } else { self.bounding };
        let held = &claims.capabilities;
        for (set, bits, allowed) in [
            ("inheritable", held.inheritable, self.bounding),
            ("permitted", held.permitted, gained),
            ("effective", held.effective, gained),
            ("bounding", held.bounding, self.bounding),
            ("ambient", held.ambient, gained),
        ] {
            if bits & !allowed != 0 {
                faults.push(Held::Capabilities { set, names: capability_names(bits & !allowed) });
            }
        }
        // A started container begins with none of them, and sets others only by this capability.
        if claims.secure_bits & !KEEP_CAPS != 0 && self.bounding & SETPCAP == 0 {
            faults.push(Held::SecureBits { bits: claims.secure_bits });
        }
        if self.no_new_privs && !claims.no_new_privs {
            faults.push(Held::NewPrivileges);
        }
        if self.seccomp && !has_filter(claims) {
            faults.push(Held::NoSeccomp);
        }
        let unconfined = matches!(claims.lsm_profile.as_deref(), None | Some("" | "unconfined"));
        if self.confined && unconfined {
            faults.push(Held::Unconfined);
        }
        faults
    }
}

/// Adds a reason for everything that threads have and may not have; equal ones of many threads become one. With
/// `confined` the new container demands a profile of a security module.
pub(super) fn check(
    threads: &[Claims],
    spec: &Spec,
    process: &Process,
    confined: bool,
    reasons: &mut Vec<Reason>,
) {
    let allowed = Allowed::by(spec, process, confined);
    let mut order = Vec::new();
    let mut seen: HashMap<Held, Who> = HashMap::new();
    for thread in threads {
        for fault in allowed.faults(thread) {
            match seen.get_mut(&fault) {
                Some(who) => who.threads += 1,
                None => {
                    let comm = crate::reference::shortened(&thread.comm);
                    seen.insert(fault.clone(), Who { threads: 1, pid: thread.pid, comm });
                    order.push(fault);
                }
            }
        }
    }
    reasons.extend(
        order.into_iter().filter_map(|held| seen.remove(&held).map(|who| Reason::Claim { who, held })),
    );
}
