// SPDX-License-Identifier: Apache-2.0
//! What a request asks of CRIU, in types; the conversion to CRIU's message is pure.
//!
//! Every switch is sent, also where it is off, so that no default of CRIU's decides. CRIU runs with
//! `--no-default-config`: the only configuration file it reads is the one that an option names.

mod dump;
mod restore;

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::{dump::DumpOptions, restore::RestoreOptions};
use crate::proto::rpc::{CriuOpts, ExtMount};

/// What becomes of established TCP connections.
///
/// Source: CRIU 4.2 images/rpc.proto, `tcp_established` and `tcp_close`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tcp {
    /// There must be none: CRIU fails when it meets one.
    #[default]
    None,
    /// They are kept.
    Established,
    /// They are closed; the program finds a socket that is not connected.
    Close,
}

/// Whether CRIU restores the cgroups that the images hold.
///
/// Source: CRIU 4.2 images/rpc.proto, `criu_cg_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ManageCgroups {
    /// Processes stay in the cgroup that CRIU itself is in.
    #[default]
    Ignore = 0,
    /// Cgroups must exist, properties are left alone.
    None = 1,
    /// Cgroups must exist, properties are restored.
    Props = 2,
    /// Missing cgroups are made and get properties.
    Soft = 3,
    /// Cgroups are made where missing, properties always restored.
    Full = 4,
    /// No cgroup may exist before.
    Strict = 5,
    /// CRIU's own default.
    Default = 6,
}

/// How CRIU holds back packets of the dumped processes.
///
/// On restore CRIU takes the method from the inventory image, not from the request:
/// see [`Inventory`](crate::image::Inventory).
///
/// Source: CRIU 4.2 images/rpc.proto, `criu_network_lock_method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkLock {
    /// With `iptables-restore`.
    #[default]
    Iptables = 1,
    /// With libnftables.
    Nftables = 2,
    /// Not at all.
    Skip = 3,
}

/// A kind of namespace that restored processes can join by path.
///
/// Source: CRIU 4.2 criu/namespaces.c, `join_ns_add`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// System V IPC, POSIX message queues.
    Ipc,
    /// Host name, domain name.
    Uts,
    /// Offsets of the monotonic and boot-time clocks.
    Time,
    /// Network.
    Net,
    /// Mounts.
    Mnt,
    /// Users.
    User,
}

impl Namespace {
    /// CRIU's name of the namespace.
    fn name(self) -> &'static str {
        match self {
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Time => "time",
            Self::Net => "net",
            Self::Mnt => "mnt",
            Self::User => "user",
        }
    }
}

/// The options that every request with images has: where they are and what is logged.
fn base(images_dir: &OwnedFd, work_dir: &OwnedFd, log_file: &str, log_level: i32) -> CriuOpts {
    CriuOpts {
        images_dir_fd: Some(images_dir.as_raw_fd()),
        work_dir_fd: Some(work_dir.as_raw_fd()),
        log_file: Some(log_file.as_bytes().to_vec()),
        log_level: Some(log_level),
        notify_scripts: Some(true),
        ..CriuOpts::default()
    }
}

/// The options of a `CHECK` request; CRIU 4.2 needs no images directory for it, 4.1 does.
pub(crate) fn check(work_dir: i32, log_file: &str) -> CriuOpts {
    CriuOpts {
        images_dir_fd: Some(work_dir),
        work_dir_fd: Some(work_dir),
        log_file: Some(log_file.as_bytes().to_vec()),
        log_level: Some(LOG_LEVEL),
        ..CriuOpts::default()
    }
}

/// CRIU's most talkative level (0 to 4): its errors then have the lines before them.
const LOG_LEVEL: i32 = 4;

fn ext_mounts(pairs: &[(OsString, PathBuf)]) -> Vec<ExtMount> {
    let pair = |(key, val): &(OsString, PathBuf)| ExtMount {
        key: Some(bytes(key)),
        val: Some(path(val)),
        ..ExtMount::default()
    };
    pairs.iter().map(pair).collect()
}

fn bytes(text: &OsStr) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn path(path: &Path) -> Vec<u8> {
    bytes(path.as_os_str())
}

/// Whole seconds, rounded up: a timeout below one second must not become none.
fn seconds(timeout: Duration) -> u32 {
    let up = u64::from(timeout.subsec_nanos() > 0);
    u32::try_from(timeout.as_secs().saturating_add(up)).unwrap_or(u32::MAX)
}
