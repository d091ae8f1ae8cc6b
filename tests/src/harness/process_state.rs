// SPDX-License-Identifier: Apache-2.0
//! What `/proc` shows of the processes of a container, in a form in which a frozen and a restored one can be
//! compared: without the numbers that the kernel gives anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{HarnessError, process};

/// One process: what is compared, by name (`fd/3`, `limits`), one text each.
pub type ProcessState = BTreeMap<String, String>;

/// The lines of `/proc/PID/status` that must stay. Source: proc_pid_status(5).
const STATUS: [&str; 24] = [
    "Name",
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "NStgid",
    "NSpid",
    "NSpgid",
    "NSsid",
    "VmLck",
    "Threads",
    "SigPnd",
    "ShdPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
];

/// Memory that the kernel itself puts somewhere, and lays out as it likes.
const KERNELS: [&str; 4] = ["[vvar]", "[vdso]", "[vvar_vclock]", "[vsyscall]"];

/// Flags that only matter while a file is opened, and that CRIU opens without or with: `O_LARGEFILE`, `O_DIRECTORY`,
/// `O_TMPFILE`. Source: Linux include/uapi/asm-generic/fcntl.h.
const OF_OPENING: u32 = 0o100_000 | 0o200_000 | 0o20_000_000;

/// Every process in the PID namespace of `init`, by its number there. `own` are words of the pod's own (its uid, ids,
/// name), which stand for themselves in no text.
///
/// # Errors
/// When `init` has ended.
pub fn of_container(init: u32, own: &[&str]) -> Result<BTreeMap<u32, ProcessState>, HarnessError> {
    let mut all = BTreeMap::new();
    for pid in process::processes_with(init)? {
        // One that ends meanwhile is none to compare.
        let Ok(mut state) = of_process(pid) else { continue };
        for text in state.values_mut() {
            *text = nameless(text, own);
        }
        let number = state.get("status").and_then(|status| last_number(status, "NSpid"));
        all.extend(number.map(|number| (number, state)));
    }
    Ok(all)
}

/// What differs, one line each.
#[must_use]
pub fn differences(before: &BTreeMap<u32, ProcessState>, after: &BTreeMap<u32, ProcessState>) -> Vec<String> {
    let mut found = Vec::new();
    let pids: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for pid in pids {
        let (Some(old), Some(new)) = (before.get(pid), after.get(pid)) else {
            let side = if before.contains_key(pid) { "after" } else { "before" };
            found.push(format!("process {pid} was not there {side}"));
            continue;
        };
        let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
        for key in keys {
            let (old, new) = (old.get(key), new.get(key));
            if old != new {
                found.push(format!("process {pid}: {key}: {}", first_difference(old, new)));
            }
        }
    }
    found
}

fn first_difference(old: Option<&String>, new: Option<&String>) -> String {
    let (Some(old), Some(new)) = (old, new) else { return format!("was {old:?} and is {new:?}") };
    let lines = old.lines().zip(new.lines()).find(|(old, new)| old != new);
    lines.map_or_else(
        || format!("was {} lines and is {}: {old:?} {new:?}", old.lines().count(), new.lines().count()),
        |(old, new)| format!("was {old:?} and is {new:?}"),
    )
}

fn of_process(pid: u32) -> Result<ProcessState, HarnessError> {
    let mut state = ProcessState::new();
    let status = process::read(pid, "status")?;
    let dead = status.lines().any(|line| line.starts_with("State:\tZ"));
    state.insert("status".into(), lines_of(&status, dead));
    if dead {
        return Ok(state);
    }
    state.insert("limits".into(), process::read(pid, "limits")?);
    state.insert("cgroup".into(), process::read(pid, "cgroup")?);
    state.insert("maps".into(), maps(&process::read(pid, "maps")?));
    state.insert("mountinfo".into(), mountinfo(&process::read(pid, "mountinfo")?));
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let hosts = process::namespace(pid, kind)? == process::namespace(std::process::id(), kind)?;
        state.insert(format!("ns/{kind}"), if hosts { "the node's" } else { "its own" }.to_owned());
    }
    descriptors(pid, &mut state);
    Ok(state)
}

fn lines_of(status: &str, dead: bool) -> String {
    let wanted = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default();
        // A dead one keeps little but its number.
        if dead { name.starts_with("NS") || name == "State" } else { STATUS.contains(&name) }
    };
    // The first number of each is that of the node's PID namespace.
    let inner = |line: &str| match line.split_once('\t') {
        Some((name, numbers)) if name.starts_with("NS") => {
            format!("{name}\t{}", numbers.rsplit('\t').next().unwrap_or_default())
        }
        _ => line.to_owned(),
    };
    status.lines().filter(wanted).map(inner).collect::<Vec<_>>().join("\n")
}

fn last_number(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find(|line| line.starts_with(&format!("{name}:")))?;
    line.rsplit('\t').next()?.parse().ok()
}

/// Addresses, rights, offsets and names, without device and inode numbers; neighbours of one kind as one, for where
/// one mapping ends and the next of the same kind begins is the kernel's own matter.
fn maps(text: &str) -> String {
    let mut all: Vec<(u64, u64, String)> = Vec::new();
    for line in text.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [range, rights, offset, _, _, name @ ..] = &fields[..] else { continue };
        let name = name.join(" ");
        if KERNELS.contains(&name.as_str()) {
            continue;
        }
        let Some((begin, end)) = range.split_once('-') else { continue };
        let (Ok(begin), Ok(end)) = (u64::from_str_radix(begin, 16), u64::from_str_radix(end, 16)) else {
            continue;
        };
        // The stack and the heap have their names by where they are.
        let kind = match name.as_str() {
            "" | "[heap]" | "[stack]" => rights.to_string(),
            // CRIU makes such memory anew as a memfd of that name where several map parts of it.
            shared if shared.trim_start_matches("/memfd:").starts_with("/dev/zero") => {
                format!("{rights} shared")
            }
            // Where the file would begin, which neighbours share.
            file => {
                let offset = u64::from_str_radix(offset, 16).unwrap_or_default();
                format!("{rights} {:x} {file}", begin.wrapping_sub(offset))
            }
        };
        match all.last_mut() {
            Some((_, last, same)) if *last == begin && *same == kind => *last = end,
            _ => all.push((begin, end, kind)),
        }
    }
    let line = |(begin, end, kind): &(u64, u64, String)| format!("{begin:x}-{end:x} {kind}");
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Where what kind of file system is mounted with which flags, in the order of paths.
fn mountinfo(text: &str) -> String {
    let mount = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mount: Vec<_> = mount.split(' ').collect();
        let (kind, flags) = match *mount.get(3)? {
            // A masked file: the null device, of this or that file system of devices, with the flags of that.
            "/null" => ("null", mount.get(5)?.split(',').next()?),
            _ => (file_system.split(' ').next()?, *mount.get(5)?),
        };
        Some(format!("{} {kind} {flags}", mount.get(4)?))
    };
    let mut lines: Vec<_> = text.lines().filter_map(mount).collect();
    lines.sort();
    lines.join("\n")
}

/// What each descriptor is, its flags and its position.
fn descriptors(pid: u32, state: &mut ProcessState) {
    let folder = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(Path::new(&folder)).into_iter().flatten().flatten();
    for entry in entries {
        let number = entry.file_name().to_string_lossy().into_owned();
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy();
        // `pipe:[4711]` and `socket:[4711]`: the number is the kernel's.
        let target = target.split(":[").next().unwrap_or_default().to_owned();
        let information = process::read(pid, &format!("fdinfo/{number}")).unwrap_or_default();
        let flags = information.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).unwrap_or_default();
        // CRIU gives the old file of a replaced name one that ends so, before it deletes it again.
        let target = target.replace(".cr_link (deleted)", " (deleted)");
        state.insert(format!("fd/{number}"), format!("{target} {:o}", flags & !OF_OPENING));
    }
}

fn nameless(text: &str, own: &[&str]) -> String {
    own.iter().filter(|word| !word.is_empty()).fold(text.to_owned(), |text, word| text.replace(word, "POD"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_mappings_of_one_kind_are_one() {
        let split = "1000-2000 rw-p 00000000 00:00 0 \n2000-3000 rw-p 00000000 00:00 0 [heap]\n";
        let whole = "1000-3000 rw-p 00000000 00:00 0 \n7000-8000 r-xp 00000000 00:00 0 [vdso]\n";
        assert_eq!(maps(split), maps(whole));
        assert_ne!(maps(split), maps("1000-3000 r--p 00000000 00:00 0 \n"));
    }

    #[test]
    fn what_differs_is_named() {
        let state =
            |limit: &str| BTreeMap::from([(1, ProcessState::from([("limits".into(), limit.into())]))]);
        assert!(differences(&state("a\nb"), &state("a\nb")).is_empty());
        assert_eq!(
            differences(&state("a\nb"), &state("a\nc")),
            ["process 1: limits: was \"b\" and is \"c\""]
        );
        assert_eq!(differences(&state("a"), &BTreeMap::new()), ["process 1 was not there after"]);
    }

    #[test]
    fn numbers_of_the_nodes_pid_namespace_are_left_out() {
        let status = "Name:\tx\nNSpid:\t4711\t1\nState:\tS (sleeping)\n";
        assert_eq!(lines_of(status, false), "Name:\tx\nNSpid:\t1");
        assert_eq!(last_number("NSpid:\t4711\t12", "NSpid"), Some(12));
    }
}
