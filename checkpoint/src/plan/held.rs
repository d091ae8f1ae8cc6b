// SPDX-License-Identifier: Apache-2.0
//! What threads of a checkpoint have that the new container may not have, in words.

use std::fmt;

/// Something that a thread has and the new container may not have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Held {
    /// Another user.
    Uid {
        /// Real, effective, saved and file system user.
        held: [u32; 4],
        /// The only one allowed.
        allowed: u32,
    },
    /// Other groups.
    Groups {
        /// Those that are not allowed.
        held: Vec<u32>,
        /// The main group of the new container.
        allowed: u32,
    },
    /// Capabilities.
    Capabilities {
        /// In which set.
        set: &'static str,
        /// Those that are not allowed.
        names: String,
    },
    /// Secure bits, which the new container could not set.
    SecureBits {
        /// `SECBIT_*`.
        bits: u32,
    },
    /// It can gain privileges by execve.
    NewPrivileges,
    /// It runs without a seccomp filter.
    NoSeccomp,
    /// It runs without a profile of the security module.
    Unconfined,
}

/// The threads that have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// How many.
    pub threads: usize,
    /// The process of the first one, in the container's PID namespace.
    pub pid: u32,
    /// The name of the first one.
    pub comm: String,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { threads, pid, comm } = self;
        let comm = comm.escape_debug();
        match threads {
            1 => write!(f, "process {pid} ({comm})"),
            _ => write!(f, "{threads} threads, the first of process {pid} ({comm}),"),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid { held: [real, effective, saved, fs], allowed } => write!(
                f,
                "ran as user {real} (effective {effective}, saved {saved}, file system {fs}) and the new container allows only {allowed}: set `runAsUser` as it was; a set-user-id program must have ended before the freeze"
            ),
            Self::Groups { held, allowed } => {
                let held = held.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
                write!(
                    f,
                    "had the groups {held}, which the new container (group {allowed}) does not: set `runAsGroup`, `fsGroup` and `supplementalGroups` as they were; a set-group-id program must have ended before the freeze"
                )
            }
            Self::Capabilities { set, names } => write!(
                f,
                "had {names} in the {set} set, which the new container does not allow: set `capabilities` and `privileged` as they were"
            ),
            Self::SecureBits { bits } => write!(
                f,
                "had the secure bits {bits:#x}, which the new container cannot set: give it CAP_SETPCAP as it had"
            ),
            Self::NewPrivileges => f.write_str(
                "ran without no_new_privs, which the new container demands: set `allowPrivilegeEscalation` as it was",
            ),
            Self::NoSeccomp => f.write_str(
                "ran without a seccomp filter, which the new container demands: set `seccompProfile` as it was",
            ),
            Self::Unconfined => f.write_str(
                "ran without an AppArmor/SELinux profile, which the new container demands: set `appArmorProfile`, `seLinuxOptions` and `privileged` as they were",
            ),
        }
    }
}
