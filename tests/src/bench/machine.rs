// SPDX-License-Identifier: Apache-2.0
//! What the numbers were measured on.

use std::fs;

use serde::{Deserialize, Serialize};

use super::command;

/// The machine and the programs of the node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    thaw: String,
    cpu: String,
    cores: usize,
    pub(crate) memory_bytes: u64,
    kernel: String,
    /// Of the last minute, when the benchmark began: other work on the machine.
    load: String,
    containerd: String,
    runc: String,
    criu: String,
    podman: String,
    pub(crate) date: String,
}

impl Machine {
    /// Looks at this one.
    pub(crate) fn look() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let meminfo = read("/proc/meminfo");
        Self {
            thaw: format!("thaw {}", env!("CARGO_PKG_VERSION")),
            cpu: value_of(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: crate::kubelet::resources::memory_capacity(&meminfo)
                .and_then(|bytes| u64::try_from(bytes).ok())
                .unwrap_or_default(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            containerd: version("containerd"),
            runc: version("runc"),
            criu: format!("CRIU {}", version("criu")),
            podman: version("podman"),
            date: time::OffsetDateTime::now_utc().date().to_string(),
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let gib = self.memory_bytes >> 30;
        format!(
            "{}; {}; {}; {}; {}; {}, {} cores, {gib} GiB, Linux {}; load {} at the start; {}",
            self.thaw,
            self.containerd,
            self.runc,
            self.criu,
            self.podman,
            self.cpu,
            self.cores,
            self.kernel,
            self.load,
            self.date
        )
    }
}

fn value_of(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The first line of what `--version` says, without what is in it for programs.
fn version(program: &str) -> String {
    let Ok(said) = command::run(program, &["--version"]) else { return format!("no {program}") };
    let line = said.lines().next().unwrap_or("unknown").trim_start_matches("Version: ");
    // containerd: name, source, version, commit; podman: name, "version", version.
    let words: Vec<_> = line.split(' ').collect();
    match words.as_slice() {
        [name, _, version, ..] if ["containerd", "podman"].contains(name) => format!("{name} {version}"),
        _ => line.to_owned(),
    }
}
