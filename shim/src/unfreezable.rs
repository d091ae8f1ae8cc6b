// SPDX-License-Identifier: Apache-2.0
//! What processes hold open that CRIU cannot dump, or would restore as something else: found before the dump, all of
//! it at once, in words that say what to do.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use procfs::process::{FDInfo, FDTarget, Process};

/// Everything that keeps a container from being frozen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub(crate) struct Unfreezable(BTreeSet<Held>);

/// Something of one process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    kind: Kind,
    comm: String,
    pid: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    IoUring,
    Userfaultfd,
    PerfEvent,
    Fanotify,
    SemaphoreEventfd,
}

impl Kind {
    /// By what `/proc/PID/fd/N` and `fdinfo/N` say. Source: proc_pid_fd(5), proc_pid_fdinfo(5).
    fn of(target: &FDTarget, information: impl FnOnce() -> String) -> Option<Self> {
        let FDTarget::AnonInode(name) = target else { return None };
        match name.as_str() {
            "[io_uring]" => Some(Self::IoUring),
            "[userfaultfd]" => Some(Self::Userfaultfd),
            "[perf_event]" => Some(Self::PerfEvent),
            "[fanotify]" => Some(Self::Fanotify),
            "[eventfd]" if information().lines().any(|line| line == "eventfd-semaphore: 1") => {
                Some(Self::SemaphoreEventfd)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, advice) = match self.kind {
            Kind::IoUring => (
                "an io_uring",
                "turn it off before the program starts: `seccompProfile: {type: RuntimeDefault}` in the pod forbids it, \
                 and programs do without (for Node.js UV_USE_IO_URING=0 is not enough)",
            ),
            Kind::Userfaultfd => ("a userfaultfd", "freeze the container when the program has closed it"),
            Kind::PerfEvent => ("a perf event", "stop profiling it"),
            Kind::Fanotify => ("a fanotify group", "the program must use inotify"),
            Kind::SemaphoreEventfd => {
                ("an eventfd with EFD_SEMAPHORE", "it would be restored as a plain counter")
            }
        };
        let Self { comm, pid, .. } = self;
        let comm = comm.escape_debug();
        write!(f, "process {pid} ({comm}) uses {what}, which cannot be frozen: {advice}")
    }
}

/// Looks at every descriptor of every process of `cgroup`.
///
/// # Errors
/// The cgroup cannot be read.
pub(crate) fn find(cgroup: &Path) -> std::io::Result<Option<Unfreezable>> {
    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let held: BTreeSet<Held> = pids.lines().filter_map(|pid| pid.parse().ok()).flat_map(of_process).collect();
    Ok((!held.is_empty()).then_some(Unfreezable(held)))
}

/// One that ends meanwhile holds nothing.
fn of_process(pid: i32) -> Vec<Held> {
    let Ok(process) = Process::new(pid) else { return Vec::new() };
    let Ok(descriptors) = process.fd() else { return Vec::new() };
    let information = |descriptor: &FDInfo| {
        std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", descriptor.fd)).unwrap_or_default()
    };
    let kinds: BTreeSet<Kind> = descriptors
        .filter_map(Result::ok)
        .filter_map(|descriptor| Kind::of(&descriptor.target, || information(&descriptor)))
        .collect();
    if kinds.is_empty() {
        return Vec::new();
    }
    let comm = process.stat().map(|stat| stat.comm).unwrap_or_default();
    kinds.into_iter().map(|kind| Held { kind, comm: comm.clone(), pid }).collect()
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_semaphore_is_found_and_a_counter_is_not() {
        let cgroup = tempfile::tempdir().unwrap();
        std::fs::write(cgroup.path().join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        let _counter = eventfd(3, EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(find(cgroup.path()).unwrap(), None);
        let _semaphore = eventfd(3, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE).unwrap();
        let said = find(cgroup.path()).unwrap().unwrap().to_string();
        assert!(said.contains("EFD_SEMAPHORE, which cannot be frozen"), "{said}");
    }

    #[test]
    fn each_kind_is_known_by_its_name() {
        let kind = |name: &str| Kind::of(&FDTarget::AnonInode(name.to_owned()), String::new);
        assert_eq!(kind("[io_uring]"), Some(Kind::IoUring));
        assert_eq!(kind("[userfaultfd]"), Some(Kind::Userfaultfd));
        assert_eq!(kind("[eventfd]"), None);
        assert_eq!(kind("[eventpoll]"), None);
    }
}
