// SPDX-License-Identifier: Apache-2.0
//! Makes a restored container known to runc, so that `exec`, `pause`, `update`, `ps` and `delete` are the same
//! program's work for every container: the state file that `runc create` would have left.
//!
//! Source: runc 1.3 `libcontainer/container_linux.go` (State, BaseState), `configs/config.go` (Config). Only what
//! those commands read is written. The fields were read in runc 1.2 to 1.5 and run with 1.3.6.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompOperator, LinuxSyscall, Spec,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::TaskError;

/// What runc cannot find out for itself.
pub(crate) struct Adopted<'a> {
    /// containerd's id.
    pub(crate) id: &'a str,
    /// The bundle.
    pub(crate) bundle: &'a Path,
    /// The new spec.
    pub(crate) spec: &'a Spec,
    /// The restored init.
    pub(crate) pid: i32,
    /// Its cgroups, see [`crate::cgroup::paths`].
    pub(crate) cgroups: &'a BTreeMap<String, PathBuf>,
    /// Whether systemd made them.
    pub(crate) systemd: bool,
    /// What descriptors 0, 1, 2 are: `/dev/null` or `pipe:[INODE]`.
    pub(crate) descriptors: &'a [String; 3],
}

/// Writes `<root>/<id>/state.json`.
///
/// # Errors
/// When the state directory cannot be written.
pub(crate) fn adopt(root: &Path, adopted: &Adopted<'_>) -> Result<(), TaskError> {
    // A process that has ended at once has none: runc takes the container for stopped then, as it is.
    let stat = procfs::process::Process::new(adopted.pid).and_then(|process| process.stat());
    let start_time = stat.map_or(0, |stat| stat.starttime);
    let state = state(adopted, start_time, OffsetDateTime::now_utc());
    let dir = root.join(adopted.id);
    let failed = || format!("make the container known to runc in {}", dir.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&dir).map_err(TaskError::io(failed()))?;
    let path = dir.join("state.json");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(TaskError::io(failed()))?;
    file.write_all(state.to_string().as_bytes()).map_err(TaskError::io(failed()))
}

/// Removes what [`adopt`] wrote, after a restore that failed later.
pub(crate) fn forget(root: &Path, id: &str) {
    let _ = std::fs::remove_dir_all(root.join(id));
}

/// The state file's content. Pure.
fn state(adopted: &Adopted<'_>, start_time: u64, created: OffsetDateTime) -> Value {
    let linux = adopted.spec.linux().as_ref();
    let process = adopted.spec.process().as_ref();
    let seccomp = linux.and_then(|linux| linux.seccomp().as_ref()).map(seccomp);
    let namespace_paths: BTreeMap<&str, String> =
        NAMESPACES.iter().map(|(kind, file)| (*kind, format!("/proc/{}/ns/{file}", adopted.pid))).collect();
    json!({
        "id": adopted.id,
        "init_process_pid": adopted.pid,
        "init_process_start": start_time,
        "created": created.format(&Rfc3339).unwrap_or_default(),
        "config": {
            "rootfs": adopted.bundle.join("rootfs"),
            "mounts": [],
            "devices": [],
            "namespaces": namespaces(adopted.spec),
            "cgroups": cgroups(adopted),
            "seccomp": seccomp,
            "oom_score_adj": process.and_then(|p| p.oom_score_adj()),
            "no_new_privileges": process.and_then(|p| p.no_new_privileges()).unwrap_or(false),
            "version": adopted.spec.version(),
            "labels": [format!("bundle={}", adopted.bundle.display())],
        },
        "rootless": false,
        "cgroup_paths": adopted.cgroups,
        "namespace_paths": namespace_paths,
        "external_descriptors": adopted.descriptors,
        "intel_rdt_path": "",
    })
}

/// runc's names of the namespaces and their files in `/proc/PID/ns`.
///
/// Source: runc `libcontainer/configs/namespaces_linux.go`.
const NAMESPACES: [(&str, &str); 8] = [
    ("NEWUSER", "user"),
    ("NEWIPC", "ipc"),
    ("NEWUTS", "uts"),
    ("NEWNET", "net"),
    ("NEWPID", "pid"),
    ("NEWNS", "mnt"),
    ("NEWCGROUP", "cgroup"),
    ("NEWTIME", "time"),
];

fn namespaces(spec: &Spec) -> Vec<Value> {
    let all = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
    // CRIU puts every restored tree into a time namespace of its own, and runc joins what is listed here.
    let time = json!({ "type": "NEWTIME", "path": "" });
    all.iter()
        .filter(|namespace| namespace.typ() != LinuxNamespaceType::Time)
        .map(|namespace| {
            let kind = match namespace.typ() {
                LinuxNamespaceType::User => "NEWUSER",
                LinuxNamespaceType::Ipc => "NEWIPC",
                LinuxNamespaceType::Uts => "NEWUTS",
                LinuxNamespaceType::Network => "NEWNET",
                LinuxNamespaceType::Pid => "NEWPID",
                LinuxNamespaceType::Mount => "NEWNS",
                LinuxNamespaceType::Cgroup => "NEWCGROUP",
                LinuxNamespaceType::Time => "NEWTIME",
            };
            json!({ "type": kind, "path": namespace.path().clone().unwrap_or_default() })
        })
        .chain([time])
        .collect()
}

/// The cgroup by its driver's name: `slice:prefix:name` under systemd, else a path. Without any field of its
/// resources runc up to 1.3.1 finds none and fails.
///
/// Source: runc `libcontainer/specconv`, CreateCgroupConfig.
fn cgroups(adopted: &Adopted<'_>) -> Value {
    let path =
        adopted.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()).unwrap_or_default();
    let path = path.to_string_lossy().into_owned();
    let mut parts = path.splitn(3, ':');
    match (adopted.systemd, parts.next(), parts.next(), parts.next()) {
        (true, Some(slice), Some(prefix), Some(name)) => {
            json!({ "parent": slice, "scope_prefix": prefix, "name": name, "systemd": true, "devices": [] })
        }
        _ => json!({ "path": path, "devices": [] }),
    }
}

/// The seccomp filter as runc's own configuration has it, so that an exec is confined as the spec says.
///
/// Source: runc `libcontainer/configs/config.go` and `libcontainer/seccomp/config.go`; the numbers are Go's iota.
fn seccomp(seccomp: &LinuxSeccomp) -> Value {
    let architectures: Vec<String> = seccomp
        .architectures()
        .iter()
        .flatten()
        .filter_map(|arch| serde_json::to_value(arch).ok()?.as_str().and_then(architecture))
        .collect();
    let flags: Vec<Value> =
        seccomp.flags().iter().flatten().filter_map(|flag| serde_json::to_value(flag).ok()).collect();
    let syscalls: Vec<Value> = seccomp.syscalls().iter().flatten().flat_map(syscall).collect();
    json!({
        "default_action": action(seccomp.default_action()),
        "default_errno_ret": seccomp.default_errno_ret(),
        "architectures": architectures,
        "flags": flags,
        "syscalls": syscalls,
    })
}

/// `SCMP_ARCH_X86_64` as runc's `amd64`.
fn architecture(name: &str) -> Option<String> {
    let short = name.strip_prefix("SCMP_ARCH_")?.to_ascii_lowercase();
    Some(match short.as_str() {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        "loongarch64" => "loong64".to_owned(),
        _ => short,
    })
}

fn action(action: LinuxSeccompAction) -> u8 {
    match action {
        LinuxSeccompAction::ScmpActKill => 1,
        LinuxSeccompAction::ScmpActErrno => 2,
        LinuxSeccompAction::ScmpActTrap => 3,
        LinuxSeccompAction::ScmpActAllow => 4,
        LinuxSeccompAction::ScmpActTrace => 5,
        LinuxSeccompAction::ScmpActLog => 6,
        LinuxSeccompAction::ScmpActNotify => 7,
        LinuxSeccompAction::ScmpActKillThread => 8,
        LinuxSeccompAction::ScmpActKillProcess => 9,
    }
}

fn operator(operator: LinuxSeccompOperator) -> u8 {
    match operator {
        LinuxSeccompOperator::ScmpCmpEq => 1,
        LinuxSeccompOperator::ScmpCmpNe => 2,
        LinuxSeccompOperator::ScmpCmpGt => 3,
        LinuxSeccompOperator::ScmpCmpGe => 4,
        LinuxSeccompOperator::ScmpCmpLt => 5,
        LinuxSeccompOperator::ScmpCmpLe => 6,
        LinuxSeccompOperator::ScmpCmpMaskedEq => 7,
    }
}

/// One rule per name.
fn syscall(rule: &LinuxSyscall) -> impl Iterator<Item = Value> + '_ {
    let args: Vec<Value> = rule
        .args()
        .iter()
        .flatten()
        .map(|arg| {
            json!({
                "index": arg.index(),
                "value": arg.value(),
                "value_two": arg.value_two().unwrap_or(0),
                "op": operator(arg.op()),
            })
        })
        .collect();
    rule.names().iter().map(move |name| {
        json!({ "name": name, "action": action(rule.action()), "errnoRet": rule.errno_ret(), "args": args })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{
        "ociVersion": "1.2.0",
        "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true},
        "linux": {
            "cgroupsPath": "/kubepods/pod1/c1",
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{
                    "names": ["read", "clone"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}]
                }]
            }
        }
    }"#;

    fn state_of(spec: &str, systemd: bool) -> Value {
        let spec: Spec = serde_json::from_str(spec).unwrap();
        let cgroups = BTreeMap::from([("memory".to_owned(), PathBuf::from("/sys/fs/cgroup/memory/k/c1"))]);
        let adopted = Adopted {
            id: "c1",
            bundle: Path::new("/run/b/c1"),
            spec: &spec,
            pid: 42,
            cgroups: &cgroups,
            systemd,
            descriptors: &["/dev/null".into(), "pipe:[1]".into(), "pipe:[2]".into()],
        };
        state(&adopted, 777, OffsetDateTime::UNIX_EPOCH)
    }

    #[test]
    fn runc_finds_the_process_its_namespaces_and_its_cgroups() {
        let state = state_of(SPEC, false);
        assert_eq!(state["init_process_pid"], 42);
        assert_eq!(state["init_process_start"], 777);
        assert_eq!(state["created"], "1970-01-01T00:00:00Z");
        assert_eq!(state["namespace_paths"]["NEWTIME"], "/proc/42/ns/time");
        assert_eq!(state["config"]["namespaces"][1], json!({"type": "NEWNET", "path": "/run/netns/x"}));
        assert_eq!(state["config"]["cgroups"]["path"], "/kubepods/pod1/c1");
        assert_eq!(state["cgroup_paths"]["memory"], "/sys/fs/cgroup/memory/k/c1");
    }

    #[test]
    fn an_exec_is_confined_by_the_new_spec_s_filter() {
        let seccomp = &state_of(SPEC, false)["config"]["seccomp"];
        assert_eq!(seccomp["default_action"], 2);
        assert_eq!(seccomp["architectures"], json!(["amd64"]));
        let rule = |name| {
            json!({
                "name": name, "action": 4, "errnoRet": null,
                "args": [{"index": 0, "value": 2_114_060_288_u64, "value_two": 0, "op": 7}],
            })
        };
        assert_eq!(seccomp["syscalls"], json!([rule("read"), rule("clone")]));
        assert_eq!(state_of(SPEC, false)["config"]["no_new_privileges"], true);
    }

    #[test]
    fn a_systemd_cgroup_is_named_by_its_parts() {
        let spec = SPEC.replace("/kubepods/pod1/c1", "pod.slice:cri-containerd:c1");
        let cgroups = state_of(&spec, true)["config"]["cgroups"].clone();
        assert_eq!(cgroups["parent"], "pod.slice");
        assert_eq!(cgroups["scope_prefix"], "cri-containerd");
        assert_eq!(cgroups["name"], "c1");
    }
}
