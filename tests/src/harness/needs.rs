// SPDX-License-Identifier: Apache-2.0
//! What a test needs of the machine, and the line that says why it was skipped.

use std::path::Path;

use super::process;
use crate::kubelet::Kubelet;
use crate::kubelet::cgroup;
use crate::kubelet::settings::Settings;
use crate::kubelet::slice;

/// Something that not every machine has. A container runtime is always needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// CRIU.
    Criu,
    /// The `thaw` command.
    Thaw,
    /// The shim.
    Shim,
    /// Programs built as they are released, for what is measured.
    ReleaseBuild,
    /// The right to look at the limits of other users' processes, without which CRIU cannot freeze them.
    SysResource,
    /// cgroup v2 alone, where a container gets a cgroup namespace of its own.
    CgroupV2,
    /// An image of the node's that not every node has.
    Image(&'static str),
    /// A snapshotter that not every containerd can have.
    Snapshotter(&'static str),
    /// A GPU of NVIDIA's, with what freezes its memory.
    Gpu,
    /// Memory in huge pages that nobody uses.
    HugePages,
    /// AppArmor in the kernel, and a runtime that confines containers by it.
    AppArmor,
    /// `SELinux` in the kernel, and a runtime that labels containers.
    Selinux,
    /// thaw's package, and a machine to install it on.
    Package,
    /// systemd as the init, and the runtime under the systemd cgroup driver.
    SystemdDriver,
}

/// The connection to the runtime; without it, or where a need is not met, the reason.
pub(super) async fn meet(needs: &[Need]) -> Result<Kubelet, String> {
    let settings = Settings::from_env();
    if !settings.socket.exists() {
        let socket = settings.socket.display();
        return Err(format!("no container runtime at {socket}; run the tests with scripts/test"));
    }
    for need in needs {
        need.unmet(&settings)?;
    }
    Kubelet::connect(settings).await.map_err(|error| error.to_string())
}

impl Need {
    fn unmet(self, settings: &Settings) -> Result<(), String> {
        let program = |name: &str, argument: &str| match process::output(name, &[argument]) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{name} does not work here: {error}")),
        };
        match self {
            Self::Criu => program("criu", "--version"),
            Self::Thaw => program("thaw", "--version"),
            Self::Shim if Path::new("/usr/local/bin/containerd-shim-thaw-v1").exists() => Ok(()),
            Self::Shim => Err("/usr/local/bin/containerd-shim-thaw-v1 is not there".to_owned()),
            Self::ReleaseBuild if std::env::var("THAW_PROFILE").as_deref() == Ok("release") => Ok(()),
            Self::ReleaseBuild => {
                Err("memory is measured with release builds: THAW_PROFILE=release scripts/test budget"
                    .to_owned())
            }
            Self::SysResource if process::may_use(process::CAP_SYS_RESOURCE) => Ok(()),
            Self::SysResource => {
                Err("root lacks CAP_SYS_RESOURCE here, so CRIU cannot freeze other users' processes"
                    .to_owned())
            }
            Self::Image(image) => match process::output("ctr", &["-n", "k8s.io", "images", "ls", "-q"]) {
                Ok(all) if all.lines().any(|name| name == image) => Ok(()),
                Ok(_) => Err(format!("the node has no image {image}; scripts/test apps makes it")),
                Err(error) => Err(error.to_string()),
            },
            Self::Snapshotter(name) => match process::output("ctr", &["plugins", "ls"]) {
                Ok(all) if all.lines().any(|line| is_working_snapshotter(line, name)) => Ok(()),
                Ok(_) => Err(format!("the node's containerd has no snapshotter {name}")),
                Err(error) => Err(error.to_string()),
            },
            Self::Gpu if Path::new("/dev/nvidiactl").exists() => program("cuda-checkpoint", "--help"),
            Self::Gpu => Err("the machine has no GPU of NVIDIA's (/dev/nvidiactl)".to_owned()),
            Self::SystemdDriver if slice::of_path(&settings.cgroup_parent).is_some() => Ok(()),
            Self::SystemdDriver => Err("cgroups are not systemd's here; scripts/vm test has them so".into()),
            Self::Package if Path::new("/var/lib/thaw-install").exists() => Ok(()),
            Self::Package => {
                Err("there is no machine to install on here; scripts/vm test install has one".into())
            }
            Self::HugePages => match std::fs::read_to_string("/proc/meminfo").unwrap_or_default() {
                memory if memory.lines().any(|line| free_huge_pages(line) >= 8) => Ok(()),
                _ => Err("the machine has no huge pages to spare (vm.nr_hugepages)".into()),
            },
            Self::AppArmor => {
                let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
                module("AppArmor", enabled.is_ok_and(|text| text.trim() == "Y"), "disable_apparmor = false")
            }
            Self::Selinux => {
                module("SELinux", Path::new("/sys/fs/selinux/enforce").exists(), "enable_selinux = true")
            }
            Self::CgroupV2 => match cgroup::hierarchies() {
                Ok(found) if found == [Path::new("/sys/fs/cgroup")] => Ok(()),
                Ok(_) => {
                    Err("the machine has cgroup v1, where containers share the node's cgroup namespace"
                        .into())
                }
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

/// `io.containerd.snapshotter.v1  btrfs  linux/amd64  ok`
fn is_working_snapshotter(line: &str, name: &str) -> bool {
    let columns: Vec<&str> = line.split_whitespace().collect();
    columns.starts_with(&["io.containerd.snapshotter.v1", name]) && columns.last() == Some(&"ok")
}

/// `HugePages_Free:        8`
fn free_huge_pages(line: &str) -> u64 {
    let number = line.strip_prefix("HugePages_Free:").and_then(|rest| rest.trim().parse().ok());
    number.unwrap_or_default()
}

/// A security module that the kernel has, and that containerd's configuration says to use.
fn module(name: &str, in_kernel: bool, setting: &str) -> Result<(), String> {
    let configuration = std::fs::read_to_string("/etc/containerd/config.toml").unwrap_or_default();
    if !in_kernel {
        return Err(format!("the kernel has no {name}"));
    }
    if configuration.lines().any(|line| line.trim() == setting) {
        return Ok(());
    }
    Err(format!("containerd does not use {name} here: {setting} is not in its configuration"))
}
