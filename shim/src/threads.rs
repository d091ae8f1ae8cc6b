// SPDX-License-Identifier: Apache-2.0
//! What threads have chosen for themselves and CRIU does not carry: the processors they run on, and how late their timers
//! may be. It is noted while the container stands still, and set again before anything of it runs.
//!
//! The kernel keeps every thread within the processors of its cgroup, whatever is set.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use ::checkpoint::dump::{self, StateDump, ThreadDump};
use log::warn;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use time::OffsetDateTime;

/// How late timers may be unless a thread says otherwise, nanoseconds. Source: Linux init/init_task.c, timer_slack_ns.
const TIMER_SLACK: u64 = 50_000;

/// Writes `thaw-state.json` about the processes in `cgroups`, which stand still.
///
/// # Errors
/// When the file cannot be written. A thread that cannot be asked is as in a started container.
pub(crate) fn write(cgroups: &BTreeMap<String, PathBuf>, images: &Path) -> io::Result<()> {
    let all = processors(cgroups);
    let mut threads = BTreeMap::new();
    for thread in threads_of(cgroups) {
        let noted = noted(&thread, all.as_ref());
        if noted != ThreadDump::default() {
            threads.insert(thread.number, noted);
        }
    }
    let state = StateDump { frozen: Some(OffsetDateTime::now_utc()), threads };
    std::fs::write(images.join(dump::STATE), serde_json::to_vec(&state)?)
}

/// Gives the threads in `cgroups` what they had chosen, before any of them runs.
pub(crate) fn apply(noted: &BTreeMap<u32, ThreadDump>, cgroups: &BTreeMap<String, PathBuf>) {
    if noted.is_empty() {
        return;
    }
    for thread in threads_of(cgroups) {
        if let Some(noted) = noted.get(&thread.number)
            && let Err(e) = set(&thread, noted)
        {
            warn!("thread {} is as in a started container: {e}", thread.number);
        }
    }
}

/// A thread of a container.
struct Thread {
    tid: Pid,
    /// Its number in the container's PID namespace, by which the images name it.
    number: u32,
}

impl Thread {
    /// One that ends meanwhile is none.
    fn of(task: &Path) -> Option<Self> {
        let tid = task.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw)?;
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        Some(Self { tid, number: numbers.split_whitespace().last()?.parse().ok()? })
    }

    fn timer_slack(&self) -> PathBuf {
        format!("/proc/{}/timerslack_ns", self.tid.as_raw_nonzero()).into()
    }
}

fn threads_of(cgroups: &BTreeMap<String, PathBuf>) -> Vec<Thread> {
    let tasks = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let pids = crate::cgroup::processes(cgroups);
    pids.into_iter().flat_map(tasks).filter_map(|task| Thread::of(&task.path())).collect()
}

/// What a thread has chosen; `all` are the processors of its container.
fn noted(thread: &Thread, all: Option<&Vec<u32>>) -> ThreadDump {
    let cpus = sched_getaffinity(Some(thread.tid)).ok().map(|set| {
        let numbers = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
        numbers.filter_map(|cpu| u32::try_from(cpu).ok()).collect::<Vec<_>>()
    });
    let slack = std::fs::read_to_string(thread.timer_slack()).ok().and_then(|text| text.trim().parse().ok());
    ThreadDump {
        // Without knowing what all of them are, none was chosen.
        cpus: cpus.filter(|cpus| all.is_some_and(|all| all != cpus)),
        // 0 is what real-time threads have.
        timer_slack: slack.filter(|slack| !matches!(*slack, 0 | TIMER_SLACK)),
    }
}

fn set(thread: &Thread, noted: &ThreadDump) -> io::Result<()> {
    if let Some(cpus) = &noted.cpus {
        let mut set = CpuSet::new();
        for cpu in cpus.iter().filter_map(|cpu| usize::try_from(*cpu).ok()) {
            if cpu < CpuSet::MAX_CPU {
                set.set(cpu);
            }
        }
        sched_setaffinity(Some(thread.tid), &set)
            .map_err(|e| io::Error::other(format!("it cannot be kept on processors {cpus:?}: {e}")))?;
    }
    if let Some(slack) = noted.timer_slack {
        std::fs::write(thread.timer_slack(), slack.to_string())
            .map_err(|e| io::Error::other(format!("it cannot have the timer slack {slack}: {e}")))?;
    }
    Ok(())
}

/// The processors of a container. Source: Linux Documentation/admin-guide/cgroup-v1/cpusets.rst, cgroup-v2.rst
/// ("cpuset.cpus.effective"): a cgroup without the file has those of the one above it. Without any, all of the machine.
fn processors(cgroups: &BTreeMap<String, PathBuf>) -> Option<Vec<u32>> {
    let of_v1 = cgroups.get("cpuset").map(|cgroup| (cgroup, "cpuset.effective_cpus"));
    let own = of_v1.or_else(|| Some((cgroups.get("")?, "cpuset.cpus.effective")));
    let own = own.and_then(|(cgroup, file)| {
        cgroup.ancestors().find_map(|cgroup| std::fs::read_to_string(cgroup.join(file)).ok())
    });
    let online = || std::fs::read_to_string("/sys/devices/system/cpu/online").ok();
    listed(&own.or_else(online)?)
}

/// `0-3,8`: the kernel's form of a list of processors.
fn listed(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        all.extend(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_processors_is_read() {
        assert_eq!(listed("0-2,5,7-8\n"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(listed("\n"), Some(Vec::new()));
        assert_eq!(listed("0-x"), None);
    }

    #[test]
    fn a_cgroup_without_the_controller_has_the_processors_of_the_one_above() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("pod/container");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(root.path().join("cpuset.cpus.effective"), "0-1\n").unwrap();
        let cgroups = BTreeMap::from([(String::new(), inner)]);
        assert_eq!(processors(&cgroups), Some(vec![0, 1]));
    }

    #[test]
    fn only_what_a_thread_has_chosen_is_noted_and_it_is_set_again() {
        let cgroup = tempfile::tempdir().unwrap();
        std::fs::write(cgroup.path().join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let cgroups = BTreeMap::from([(String::new(), cgroup.path().to_owned())]);
        let this = std::thread::spawn(move || {
            let tid = rustix::thread::gettid();
            let thread =
                Thread::of(&PathBuf::from(format!("/proc/self/task/{}", tid.as_raw_nonzero()))).unwrap();
            let all = noted(&thread, Some(&Vec::new())).cpus.unwrap();
            assert_eq!(noted(&thread, Some(&all)), ThreadDump::default());
            let chosen = ThreadDump { cpus: all.last().map(|cpu| vec![*cpu]), timer_slack: Some(70_000) };
            apply(&BTreeMap::from([(thread.number, chosen.clone())]), &cgroups);
            let held = noted(&thread, Some(&Vec::new()));
            assert_eq!(held.cpus, chosen.cpus);
            // Another thread's slack takes a right; one's own is set by prctl.
            if crate::threads::set(&thread, &chosen).is_ok() {
                assert_eq!(held.timer_slack, chosen.timer_slack);
            }
            // A node that has no such processor keeps the thread on those that there are.
            let beyond = ThreadDump { cpus: Some(vec![1023, 5000]), timer_slack: None };
            assert!(set(&thread, &beyond).is_err());
        });
        this.join().unwrap();
    }
}
