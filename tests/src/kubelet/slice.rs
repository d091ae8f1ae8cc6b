// SPDX-License-Identifier: Apache-2.0
//! The slices above a pod's containers, under the systemd cgroup driver: kubelet has systemd make them.
//!
//! Source: kubelet, `pkg/kubelet/cm/cgroup_manager_linux.go`; systemd.slice(5), org.freedesktop.systemd1(5).

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::cgroup::BUSY_LIMIT;
use super::error::KubeletError;
use super::patience::patient;
use super::resources::Amounts;

/// The slice that a cgroup path or a kubelet's cgroup root ends in; `None` under the cgroupfs driver.
#[must_use]
pub fn of_path(path: &str) -> Option<&str> {
    path.rsplit('/').next().filter(|name| name.ends_with(".slice"))
}

/// The slice named by `parts` beneath the slice `parent`. A dash in a name says what is beneath what, so a part
/// has none.
#[must_use]
pub fn beneath(parent: &str, parts: &[&str]) -> String {
    let mut name = parent.trim_end_matches(".slice").to_owned();
    for part in parts {
        name.push('-');
        name.push_str(&part.replace('-', "_"));
    }
    name + ".slice"
}

/// Where a slice's cgroup is, relative to the hierarchy and with a leading slash.
#[must_use]
pub fn path(slice: &str) -> String {
    let name = slice.trim_end_matches(".slice");
    let ends = name.match_indices('-').map(|(end, _)| end).chain([name.len()]);
    ends.filter_map(|end| name.get(..end)).map(|name| format!("/{name}.slice")).collect()
}

/// Has systemd make a slice, with what all in it may use together, and waits for its cgroup in `hierarchy`.
///
/// # Errors
/// [`KubeletError::File`] naming the cgroup.
pub fn start(hierarchy: &Path, slice: &str, amounts: Option<&Amounts>) -> Result<(), KubeletError> {
    let group = hierarchy.join(path(slice).trim_start_matches('/'));
    if group.exists() {
        return Ok(());
    }
    let failed = |source| KubeletError::file("make", &group, source);
    let properties = properties(amounts);
    let mut arguments: Vec<String> = [
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        slice,
        "replace",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(properties.len().to_string());
    for (name, kind, value) in properties {
        arguments.extend([name.to_owned(), kind.to_owned(), value]);
    }
    arguments.push("0".to_owned());
    run("busctl", &arguments).map_err(failed)?;
    let began = Instant::now();
    while !group.exists() {
        if began.elapsed() > patient(BUSY_LIMIT) {
            return Err(failed(std::io::Error::other("systemd took it on, and does not do it")));
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

/// Has systemd end a slice, with all that is in it.
///
/// # Errors
/// [`KubeletError::File`] naming the slice.
pub fn stop(slice: &str) -> Result<(), KubeletError> {
    let arguments = ["stop", slice].map(str::to_owned);
    run("systemctl", &arguments).map_err(|source| KubeletError::file("stop", slice, source))
}

/// Properties of the unit: name, D-Bus type, value. The accounting makes systemd hand the controllers on.
fn properties(amounts: Option<&Amounts>) -> Vec<(&'static str, &'static str, String)> {
    let accounting = ["CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"];
    let mut properties: Vec<_> = accounting.map(|name| (name, "b", "true".to_owned())).into();
    let Some(amounts) = amounts else { return properties };
    properties.push(("CPUWeight", "t", super::cgroup::weight(amounts.shares())));
    if let Some((quota, period)) = amounts.quota() {
        properties.push(("CPUQuotaPeriodUSec", "t", period.to_string()));
        properties.push(("CPUQuotaPerSecUSec", "t", (quota * 1_000_000 / period).to_string()));
    }
    if let Some(bytes) = amounts.memory_limit {
        properties.push(("MemoryMax", "t", bytes.to_string()));
    }
    properties
}

fn run(program: &str, arguments: &[String]) -> std::io::Result<()> {
    let made = Command::new(program).args(arguments).output()?;
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
    Err(std::io::Error::other(format!("{program}: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_lies_beneath_those_that_its_name_begins_with() {
        let slice = beneath("kubepods.slice", &["burstable", "pod1-2"]);
        assert_eq!(slice, "kubepods-burstable-pod1_2.slice");
        let at = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        assert_eq!(path(&slice), at);
        assert_eq!(of_path(at), Some(slice.as_str()));
        assert_eq!(of_path("/kubepods/burstable/pod1"), None);
    }

    #[test]
    fn a_pods_limits_are_the_slices() {
        let amounts = Amounts { cpu_limit: Some(500), memory_limit: Some(1 << 20), ..Amounts::default() };
        let limits: Vec<_> = properties(Some(&amounts)).split_off(5);
        let limit = |name, value: &str| (name, "t", value.to_owned());
        assert_eq!(
            limits,
            [
                limit("CPUQuotaPeriodUSec", "100000"),
                limit("CPUQuotaPerSecUSec", "500000"),
                limit("MemoryMax", "1048576"),
            ]
        );
    }
}
