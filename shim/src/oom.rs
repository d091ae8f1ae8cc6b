// SPDX-License-Identifier: Apache-2.0
//! TaskOOM: tells containerd that the kernel killed for memory in a container's cgroup, on both cgroup versions.
//!
//! cgroup v1 signals an eventfd, cgroup v2 changes `memory.events`. Both also wake when the cgroup is removed.
//!
//! systemd removes a scope as soon as its last process has ended, and the count of its kills with it. The pod's cgroup
//! counts those of all its containers and stays: a kill there that no container is known for is that of one that has
//! just ended with its cgroup.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use containerd_shim_protos::events::task::TaskOOM;
use log::debug;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use crate::container::Container;
use crate::pod::Pod;
use crate::reaper::Exit;

/// How often to look after a signal, and how long between.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// What is known of the kills in one container's cgroup.
#[derive(Debug, Default)]
pub(crate) struct Kills {
    /// The cgroup's directory; kept, because the pid cannot be asked once it is gone.
    cgroup: OnceLock<PathBuf>,
    /// How many have been published.
    seen: AtomicU64,
}

/// What is known of the kills in the pod's cgroup, on cgroup v2.
#[derive(Debug, Default)]
pub(crate) struct PodKills {
    /// How many there were when the first container was watched.
    before: OnceLock<u64>,
    /// How many since are known to be a container's.
    known: AtomicU64,
}

/// Publishes the OOM kills of `container` while its init lives.
pub(crate) fn watch(pod: &Arc<Pod>, container: &Arc<Container>) {
    let (pod, container) = (pod.clone(), container.clone());
    tokio::spawn(async move {
        let watched = tokio::select! {
            ended = follow(&pod, &container) => ended,
            _ = container.init.wait() => Ok(()),
        };
        if let Err(e) = watched {
            debug!("OOM kills of container {} are not watched: {e}", container.id);
        }
    });
}

/// Publishes TaskOOM if there were kills since the last look; whether there were.
async fn look(pod: &Pod, container: &Container) -> bool {
    let Some(now) = container.kills.cgroup.get().and_then(|cgroup| killed(cgroup)) else { return false };
    let more = now.saturating_sub(container.kills.seen.fetch_max(now, Ordering::SeqCst));
    pod.kills.known.fetch_add(more, Ordering::SeqCst);
    if more > 0 {
        publish(pod, container).await;
    }
    more > 0
}

async fn publish(pod: &Pod, container: &Container) {
    pod.events.publish(TaskOOM { container_id: container.id.clone(), ..Default::default() }).await;
}

/// The last look, before the `exit` of the init is published, because the kill that ended it is to be known first.
pub(crate) async fn look_at_the_end(pod: &Pod, container: &Container, exit: Exit) {
    let Some(cgroup) = container.kills.cgroup.get() else { return };
    if cgroup.exists() {
        look(pod, container).await;
        return;
    }
    // What containers without a pod are in is not theirs alone.
    let in_a_pod = pod.bundle.file_name().is_some_and(|sandbox| *sandbox != *container.id);
    if exit.code != Exit::killed().code || !in_a_pod {
        return;
    }
    for other in pod.all() {
        look(pod, &other).await;
    }
    let (Some(all), Some(before)) = (cgroup.parent().and_then(killed), pod.kills.before.get()) else {
        return;
    };
    let since = all.saturating_sub(*before);
    if pod.kills.known.fetch_max(since, Ordering::SeqCst) < since {
        publish(pod, container).await;
    }
}

/// Looks until a kill is counted, but not for long: cgroup v1 signals before it chooses what to kill, and also where
/// the memory was short in a cgroup above and the kill is another container's.
async fn look_closely(pod: &Pod, container: &Container) {
    for _ in 0..LOOKS {
        if look(pod, container).await {
            return;
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

async fn follow(pod: &Pod, container: &Container) -> std::io::Result<()> {
    let paths = crate::cgroup::paths(container.init.pid()).map_err(std::io::Error::other)?;
    let v1 = paths.get("memory");
    let Some(cgroup) = v1.or_else(|| paths.get("")) else { return Ok(()) };
    let signal = if v1.is_some() { oom_control(cgroup)? } else { memory_events(cgroup)? };
    #[expect(
        deprecated,
        reason = "the caution is for types that give up their descriptor; an OwnedFd does not"
    )]
    let signal = AsyncFd::new(signal)?;
    container.kills.cgroup.get_or_init(|| cgroup.clone());
    pod.kills.before.get_or_init(|| cgroup.parent().and_then(killed).unwrap_or(0));
    while cgroup.exists() {
        if v1.is_some() {
            look_closely(pod, container).await;
        } else {
            look(pod, container).await;
        }
        // What is read is only the signal; how many were killed is counted by the kernel.
        let mut ready = signal.readable().await?;
        let mut buffer = [0u8; 4096];
        if let Ok(read) = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?)) {
            read?;
        }
    }
    Ok(())
}

/// Whether the kernel has killed for memory in the cgroup of these.
pub(crate) fn has_killed(cgroups: &BTreeMap<String, PathBuf>) -> bool {
    let cgroup = cgroups.get("memory").or_else(|| cgroups.get(""));
    cgroup.and_then(|cgroup| killed(cgroup)).is_some_and(|kills| kills > 0)
}

/// How many processes the kernel has killed for memory in this cgroup; `None` when the cgroup is gone.
fn killed(cgroup: &Path) -> Option<u64> {
    let text = ["memory.oom_control", "memory.events"].iter().find_map(|name| {
        let mut text = String::new();
        File::open(cgroup.join(name)).ok()?.take(4096).read_to_string(&mut text).ok()?;
        Some(text)
    })?;
    Some(count(&text))
}

/// The value of `oom_kill` in either version's file. Pure.
///
/// Source: Linux `Documentation/admin-guide/cgroup-v1/memory.rst` (since 4.13) and `cgroup-v2.rst`.
fn count(text: &str) -> u64 {
    let value = |line: &str| line.strip_prefix("oom_kill ").and_then(|n| n.trim().parse().ok());
    text.lines().find_map(value).unwrap_or(0)
}

/// cgroup v1: an eventfd that the memory controller signals.
fn oom_control(cgroup: &Path) -> std::io::Result<OwnedFd> {
    let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = File::open(cgroup.join("memory.oom_control"))?;
    let line = format!("{} {}", signal.as_raw_fd(), control.as_raw_fd());
    std::fs::write(cgroup.join("cgroup.event_control"), line)?;
    Ok(signal)
}

/// cgroup v2: an inotify on the file of counters.
fn memory_events(cgroup: &Path) -> std::io::Result<OwnedFd> {
    let signal = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let what = WatchFlags::MODIFY | WatchFlags::DELETE_SELF;
    inotify::add_watch(&signal, cgroup.join("memory.events"), what)?;
    Ok(signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_the_files_of_both_versions() {
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(count("low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n"), 3);
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\n"), 0);
    }
}
