// SPDX-License-Identifier: Apache-2.0
//! The metrics of a container on cgroup v1, all that containerd's own shim tells: the crate's collector leaves out
//! the processor time where `cpuacct` is a hierarchy of its own, and most of memory.
//!
//! Source: containerd/cgroups v3 `cgroup1/{cpu,cpuacct,memory,pids,blkio}.go`; Linux
//! `Documentation/admin-guide/cgroup-v1/{cpuacct,memory,pids,blkio-controller}.rst`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, MemoryEntry, MemoryOomControl, MemoryStat, Metrics, PidsStat,
    Throttle,
};

/// Longest file that is read, bytes: `cpuacct.usage_percpu` has some ten for each processor.
const LONGEST: u64 = 1 << 20;

/// The metrics of the cgroup whose directories by controller are `paths`; what cannot be read is left out.
pub(crate) fn metrics(paths: &BTreeMap<String, PathBuf>) -> Metrics {
    let at = |controller: &str| paths.get(controller).map(PathBuf::as_path);
    Metrics {
        cpu: at("cpuacct").or_else(|| at("cpu")).map(|acct| cpu(acct, at("cpu"))).into(),
        memory: at("memory").map(memory).into(),
        memory_oom_control: at("memory").map(oom_control).into(),
        pids: at("pids").map(pids).into(),
        blkio: at("blkio").map(blkio).into(),
        ..Default::default()
    }
}

fn text(dir: &Path, file: &str) -> String {
    let mut text = String::new();
    if let Ok(file) = File::open(dir.join(file)) {
        // What was read before an error is still worth telling.
        let _ = file.take(LONGEST).read_to_string(&mut text);
    }
    text
}

/// A file with one number; `max`, and one that is not there, are 0.
fn number(dir: &Path, file: &str) -> u64 {
    text(dir, file).trim().parse().unwrap_or(0)
}

/// A file of lines `KEY NUMBER`. Pure.
fn keyed(text: &str) -> HashMap<&str, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, n)| Some((key, n.trim().parse().ok()?)))
        .collect()
}

fn cpu(acct: &Path, cpu: Option<&Path>) -> CPUStat {
    let usage = CPUUsage {
        total: number(acct, "cpuacct.usage"),
        kernel: number(acct, "cpuacct.usage_sys"),
        user: number(acct, "cpuacct.usage_user"),
        per_cpu: text(acct, "cpuacct.usage_percpu")
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect(),
        ..Default::default()
    };
    let stat = cpu.map(|cpu| text(cpu, "cpu.stat")).unwrap_or_default();
    let stat = keyed(&stat);
    let of = |key: &str| stat.get(key).copied().unwrap_or(0);
    let throttling = Throttle {
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled_time: of("throttled_time"),
        ..Default::default()
    };
    CPUStat { usage: Some(usage).into(), throttling: Some(throttling).into(), ..Default::default() }
}

fn memory(dir: &Path) -> MemoryStat {
    let stat = text(dir, "memory.stat");
    let stat = keyed(&stat);
    let of = |key: &str| stat.get(key).copied().unwrap_or(0);
    let entry = |kind: &str| {
        let of = |what: &str| number(dir, &format!("memory{kind}.{what}"));
        Some(MemoryEntry {
            limit: of("limit_in_bytes"),
            usage: of("usage_in_bytes"),
            max: of("max_usage_in_bytes"),
            failcnt: of("failcnt"),
            ..Default::default()
        })
        .into()
    };
    MemoryStat {
        cache: of("cache"),
        rss: of("rss"),
        rss_huge: of("rss_huge"),
        mapped_file: of("mapped_file"),
        dirty: of("dirty"),
        writeback: of("writeback"),
        pg_pg_in: of("pgpgin"),
        pg_pg_out: of("pgpgout"),
        pg_fault: of("pgfault"),
        pg_maj_fault: of("pgmajfault"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        hierarchical_memory_limit: of("hierarchical_memory_limit"),
        hierarchical_swap_limit: of("hierarchical_memsw_limit"),
        total_cache: of("total_cache"),
        total_rss: of("total_rss"),
        total_rss_huge: of("total_rss_huge"),
        total_mapped_file: of("total_mapped_file"),
        total_dirty: of("total_dirty"),
        total_writeback: of("total_writeback"),
        total_pg_pg_in: of("total_pgpgin"),
        total_pg_pg_out: of("total_pgpgout"),
        total_pg_fault: of("total_pgfault"),
        total_pg_maj_fault: of("total_pgmajfault"),
        total_inactive_anon: of("total_inactive_anon"),
        total_active_anon: of("total_active_anon"),
        total_inactive_file: of("total_inactive_file"),
        total_active_file: of("total_active_file"),
        total_unevictable: of("total_unevictable"),
        usage: entry(""),
        swap: entry(".memsw"),
        kernel: entry(".kmem"),
        kernel_tcp: entry(".kmem.tcp"),
        ..Default::default()
    }
}

fn oom_control(dir: &Path) -> MemoryOomControl {
    let control = text(dir, "memory.oom_control");
    let control = keyed(&control);
    let of = |key: &str| control.get(key).copied().unwrap_or(0);
    MemoryOomControl {
        oom_kill_disable: of("oom_kill_disable"),
        under_oom: of("under_oom"),
        oom_kill: of("oom_kill"),
        ..Default::default()
    }
}

fn pids(dir: &Path) -> PidsStat {
    PidsStat { current: number(dir, "pids.current"), limit: number(dir, "pids.max"), ..Default::default() }
}

fn blkio(dir: &Path) -> BlkIOStat {
    BlkIOStat {
        io_service_bytes_recursive: transfers(&text(dir, "blkio.throttle.io_service_bytes_recursive")),
        io_serviced_recursive: transfers(&text(dir, "blkio.throttle.io_serviced_recursive")),
        ..Default::default()
    }
}

/// Lines `MAJOR:MINOR OPERATION NUMBER`; the sum at the end has no device. Pure.
fn transfers(text: &str) -> Vec<BlkIOEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (op, value) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        Some(BlkIOEntry { op, major, minor, value, ..Default::default() })
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_files_say_is_told_and_what_is_not_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cpuacct.usage", "3000\n"),
            ("cpuacct.usage_user", "2000\n"),
            ("cpuacct.usage_percpu", "1000 2000 \n"),
            ("cpu.stat", "nr_periods 5\nnr_throttled 2\nthrottled_time 700\n"),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let paths = ["cpu", "cpuacct"].map(|name| (name.to_owned(), dir.path().to_owned())).into();
        let metrics = metrics(&paths);
        assert_eq!(
            (metrics.cpu.usage.total, metrics.cpu.usage.user, metrics.cpu.usage.kernel),
            (3000, 2000, 0)
        );
        assert_eq!(
            (metrics.cpu.usage.per_cpu.as_slice(), metrics.cpu.throttling.throttled_time),
            (&[1000, 2000][..], 700)
        );
        assert!(metrics.memory.is_none() && metrics.pids.is_none());
    }

    #[test]
    fn transfers_are_told_by_device_and_operation() {
        let told = transfers("254:0 Read 4096\n254:0 Total 4096\nTotal 4096\n");
        let shown: Vec<_> = told.iter().map(|one| (one.major, one.op.as_str(), one.value)).collect();
        assert_eq!(shown, [(254, "Read", 4096), (254, "Total", 4096)]);
    }
}
