// SPDX-License-Identifier: Apache-2.0
//! Capability sets as bits, in the kernel's order.

use oci_spec::runtime::Capability;

/// Names by number, without `CAP_`. Source: Linux include/uapi/linux/capability.h.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// `CAP_SETGID`.
pub(super) const SETGID: u64 = 1 << 6;
/// `CAP_SETUID`.
pub(super) const SETUID: u64 = 1 << 7;
/// `CAP_NET_RAW`.
pub(super) const NET_RAW: u64 = 1 << 13;
/// `CAP_SETPCAP`.
pub(super) const SETPCAP: u64 = 1 << 8;

/// The five capability sets of a thread; bit N is capability N.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Kept over execve of a file with capabilities.
    pub inheritable: u64,
    /// What it may make effective.
    pub permitted: u64,
    /// What it has now.
    pub effective: u64,
    /// What it can ever get.
    pub bounding: u64,
    /// Kept over execve of any file.
    pub ambient: u64,
}

/// The bits of a set of the spec; a capability that the kernel does not know allows nothing.
pub(super) fn bits<'a>(set: impl IntoIterator<Item = &'a Capability>) -> u64 {
    let number = |capability: &Capability| {
        let name = capability.to_string();
        NAMES.iter().position(|known| *known == name)
    };
    set.into_iter().filter_map(number).fold(0, |bits, number| bits | 1 << number)
}

/// The names of the capabilities in a set: `CAP_NET_RAW, CAP_SYS_ADMIN`.
#[must_use]
pub fn capability_names(bits: u64) -> String {
    let name = |number: u32| {
        let known = usize::try_from(number).ok().and_then(|number| NAMES.get(number));
        known.map_or_else(|| format!("capability {number}"), |name| format!("CAP_{name}"))
    };
    (0..u64::BITS).filter(|number| bits & (1 << number) != 0).map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_spec_have_the_numbers_of_the_kernel() {
        assert_eq!(bits(&[Capability::Chown]), 1);
        assert_eq!(bits(&[Capability::Setuid, Capability::Setgid]), SETUID | SETGID);
        assert_eq!(bits(&[Capability::Setpcap]), SETPCAP);
        assert_eq!(bits(&[Capability::SysAdmin]), 1 << 21);
        assert_eq!(bits(&[Capability::CheckpointRestore]), 1 << 40);
        assert_eq!(
            capability_names(1 << 21 | 1 << 13 | 1 << 63),
            "CAP_NET_RAW, CAP_SYS_ADMIN, capability 63"
        );
    }
}
