// SPDX-License-Identifier: Apache-2.0
//! Limits of restored processes, set before any of them runs: those of the images, but never more than a started
//! container would have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxCapabilities, PosixRlimitType, Spec};
use procfs::process::{Limit, LimitValue, Limits, Process};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// Each limit: as the kernel, the spec and `/proc/PID/limits` call it.
type Kind = (Resource, PosixRlimitType, fn(&Limits) -> Limit);

const KINDS: [Kind; 16] = [
    (Resource::Cpu, PosixRlimitType::RlimitCpu, |limits| limits.max_cpu_time),
    (Resource::Fsize, PosixRlimitType::RlimitFsize, |limits| limits.max_file_size),
    (Resource::Data, PosixRlimitType::RlimitData, |limits| limits.max_data_size),
    (Resource::Stack, PosixRlimitType::RlimitStack, |limits| limits.max_stack_size),
    (Resource::Core, PosixRlimitType::RlimitCore, |limits| limits.max_core_file_size),
    (Resource::Rss, PosixRlimitType::RlimitRss, |limits| limits.max_resident_set),
    (Resource::Nproc, PosixRlimitType::RlimitNproc, |limits| limits.max_processes),
    (Resource::Nofile, PosixRlimitType::RlimitNofile, |limits| limits.max_open_files),
    (Resource::Memlock, PosixRlimitType::RlimitMemlock, |limits| limits.max_locked_memory),
    (Resource::As, PosixRlimitType::RlimitAs, |limits| limits.max_address_space),
    (Resource::Locks, PosixRlimitType::RlimitLocks, |limits| limits.max_file_locks),
    (Resource::Sigpending, PosixRlimitType::RlimitSigpending, |limits| limits.max_pending_signals),
    (Resource::Msgqueue, PosixRlimitType::RlimitMsgqueue, |limits| limits.max_msgqueue_size),
    (Resource::Nice, PosixRlimitType::RlimitNice, |limits| limits.max_nice_priority),
    (Resource::Rtprio, PosixRlimitType::RlimitRtprio, |limits| limits.max_realtime_priority),
    (Resource::Rttime, PosixRlimitType::RlimitRttime, |limits| limits.max_realtime_timeout),
];

/// Gives all processes of the container the OOM score of `spec`, and takes from them what limits it does not allow.
/// All are there, with `init` among them, and none has run yet; `criu` is in the same cgroups.
pub(crate) fn apply(spec: &Spec, cgroups: &BTreeMap<String, PathBuf>, init: Option<i32>, criu: i32) {
    let pids: Vec<i32> = crate::cgroup::processes(cgroups).into_iter().filter(|pid| *pid != criu).collect();
    set_oom_scores(spec, init, &pids);
    let allowed = allowed(spec);
    for pid in pids {
        // What ends meanwhile needs none.
        let Ok(limits) = Process::new(pid).and_then(|process| process.limits()) else { continue };
        allowed.iter().for_each(|(kind, allowed)| lower(pid, &limits, kind, *allowed));
    }
}

/// A started container would have the score that `spec` names, or the one that it inherits from here.
fn set_oom_scores(spec: &Spec, init: Option<i32>, pids: &[i32]) {
    let named = spec.process().as_ref().and_then(oci_spec::runtime::Process::oom_score_adj);
    let Some(new) = named.or_else(|| oom_score(Path::new("/proc/self"))) else { return };
    let old = init.and_then(|init| oom_score(&proc(init)));
    for pid in pids {
        let Some(held) = oom_score(&proc(*pid)) else { continue };
        let score = score(new, old, held);
        if score != held
            && let Err(e) = std::fs::write(proc(*pid).join("oom_score_adj"), score.to_string())
        {
            log::warn!("cannot set the OOM score of process {pid} to {score}: {e}");
        }
    }
}

fn proc(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

fn oom_score(proc: &Path) -> Option<i32> {
    std::fs::read_to_string(proc.join("oom_score_adj")).ok()?.trim().parse().ok()
}

/// The score of a process that came with `held`: the `new` container's, unless it differed from its `old` container's
/// and makes it an easier victim. Pure.
fn score(new: i32, old: Option<i32>, held: i32) -> i32 {
    if Some(held) == old { new } else { held.max(new) }
}

/// The highest hard limit of each kind that a started container would have: the spec's, else the one inherited from
/// here. None at all for one that may raise its limits.
fn allowed(spec: &Spec) -> Vec<(&'static Kind, Option<u64>)> {
    let capabilities = spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
    let bounding = capabilities.map(LinuxCapabilities::bounding).and_then(Option::as_ref);
    if bounding.is_some_and(|set| set.contains(&Capability::SysResource)) {
        return Vec::new();
    }
    let named = spec.process().as_ref().and_then(|process| process.rlimits().as_ref());
    let hard = |(resource, of_spec, _): &Kind| {
        let named = named.into_iter().flatten().find(|limit| limit.typ() == *of_spec);
        // The kernel's RLIM_INFINITY, as the spec has it.
        named.map_or_else(
            || getrlimit(*resource).maximum,
            |limit| (limit.hard() != u64::MAX).then(|| limit.hard()),
        )
    };
    KINDS.iter().map(|kind| (kind, hard(kind))).collect()
}

/// Lowers a limit of one process, if it has more in `limits`.
fn lower(pid: i32, limits: &Limits, (resource, _, of_proc): &Kind, allowed: Option<u64>) {
    let Some(lowered) = lowered(of_proc(limits), allowed) else { return };
    if let Err(e) = prlimit(Pid::from_raw(pid), *resource, lowered) {
        log::warn!("cannot lower the limit {resource:?} of process {pid} to {allowed:?}: {e}");
    }
}

/// A limit as it may be, if that is less than it is; `None` for `allowed` is no limit. Pure.
fn lowered(held: Limit, allowed: Option<u64>) -> Option<Rlimit> {
    let number = |value: LimitValue| match value {
        LimitValue::Unlimited => None,
        LimitValue::Value(value) => Some(value),
    };
    let allowed = allowed?;
    let within = |value: LimitValue| number(value).map_or(allowed, |value| value.min(allowed));
    let exceeds = number(held.hard_limit).is_none_or(|hard| hard > allowed);
    exceeds.then(|| Rlimit { current: Some(within(held.soft_limit)), maximum: Some(allowed) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(soft: Option<u64>, hard: Option<u64>) -> Limit {
        let value = |value: Option<u64>| value.map_or(LimitValue::Unlimited, LimitValue::Value);
        Limit { soft_limit: value(soft), hard_limit: value(hard) }
    }

    #[test]
    fn a_limit_is_lowered_and_never_raised() {
        for (soft, hard, allowed, expected) in [
            (Some(5), Some(10), Some(10), None),
            (Some(5), Some(9), Some(10), None),
            (Some(5), Some(11), Some(10), Some((5, 10))),
            (Some(11), None, Some(10), Some((10, 10))),
            (None, None, Some(10), Some((10, 10))),
            (None, None, None, None),
        ] {
            let expected = expected.map(|(soft, hard)| Rlimit { current: Some(soft), maximum: Some(hard) });
            assert_eq!(lowered(held(soft, hard), allowed), expected, "{soft:?} {hard:?} {allowed:?}");
        }
    }

    #[test]
    fn the_specs_limits_hold_unless_the_container_may_raise_them() {
        let spec = |bounding: &str| -> Spec {
            let json = format!(
                r#"{{"ociVersion": "1.2.0", "process": {{"cwd": "/", "user": {{"uid": 0, "gid": 0}},
                "capabilities": {{"bounding": [{bounding}]}},
                "rlimits": [{{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}}]}}}}"#
            );
            serde_json::from_str(&json).unwrap()
        };
        let limits = allowed(&spec("\"CAP_CHOWN\""));
        let files = limits.iter().find(|((resource, ..), _)| *resource == Resource::Nofile).unwrap();
        assert_eq!((limits.len(), files.1), (16, Some(6)));
        assert!(allowed(&spec("\"CAP_SYS_RESOURCE\"")).is_empty());
    }

    #[test]
    fn only_an_easier_victim_than_its_container_keeps_its_score() {
        for (new, old, held, expected) in [
            (900, Some(-997), -997, 900),
            (-997, Some(900), 900, -997),
            (100, Some(900), 1000, 1000),
            (900, Some(100), 300, 900),
            (900, None, -1000, 900),
        ] {
            assert_eq!(score(new, old, held), expected, "{new} {old:?} {held}");
        }
    }
}
