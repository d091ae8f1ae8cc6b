// SPDX-License-Identifier: Apache-2.0
//! GPUs: which ones a container had, which ones this node has, and whether one may take the place of another.
//!
//! What a driver keeps in the memory of a process fits one model and one version of itself.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::devices::Device;

/// The file among a container's images that says which GPUs it had; JSON, a list of [`Gpu`].
pub const FILE: &str = "thaw-gpus.json";
/// Major number of NVIDIA's devices. Source: Linux Documentation/admin-guide/devices.txt.
const NVIDIA_MAJOR: u32 = 195;
/// Major number of graphics devices. Source: as above.
const DRM_MAJOR: u32 = 226;

/// One GPU of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its node in the container.
    pub path: PathBuf,
    /// What it is.
    #[serde(flatten)]
    pub card: Card,
}

/// What a GPU is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Its own id, `GPU-...` for NVIDIA.
    pub uuid: String,
    /// The model as its driver calls it.
    pub model: String,
    /// The driver's name and version.
    pub driver: String,
}

/// One GPU of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeGpu {
    /// Major number of its character device.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// What it is.
    pub card: Card,
}

/// The GPUs of the node whose file system is at `root`: NVIDIA's and AMD's, as their drivers list them.
#[must_use]
pub fn of_node(root: &Path) -> Vec<NodeGpu> {
    let mut gpus = nvidia(root);
    gpus.extend(amd(root));
    gpus
}

/// Source: NVIDIA driver README, "The /proc file system interface".
fn nvidia(root: &Path) -> Vec<NodeGpu> {
    let version = fs::read_to_string(root.join("sys/module/nvidia/version")).unwrap_or_default();
    let gpus = entries(&root.join("proc/driver/nvidia/gpus"));
    let gpu = |path: &PathBuf| {
        let text = fs::read_to_string(path.join("information")).ok()?;
        let value = |key: &str| {
            text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned()))
        };
        let card = Card {
            uuid: value("GPU UUID")?,
            model: value("Model")?,
            driver: format!("nvidia {}", version.trim()),
        };
        Some(NodeGpu { major: NVIDIA_MAJOR, minor: value("Device Minor")?.parse().ok()?, card })
    };
    gpus.iter().filter_map(gpu).collect()
}

/// Source: Linux drivers/gpu/drm/amd/amdkfd/kfd_topology.c, `node_show`. CPUs are nodes without a render minor.
fn amd(root: &Path) -> Vec<NodeGpu> {
    // The driver of the kernel itself has no version of its own.
    let kernel = || fs::read_to_string(root.join("proc/sys/kernel/osrelease"));
    let version = fs::read_to_string(root.join("sys/module/amdgpu/version")).or_else(|_| kernel());
    let version = version.unwrap_or_default();
    let nodes = entries(&root.join("sys/class/kfd/kfd/topology/nodes"));
    let gpu = |path: &PathBuf| {
        let text = fs::read_to_string(path.join("properties")).ok()?;
        let value = |key: &str| text.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()));
        let minor = value("drm_render_minor ")?.parse().ok().filter(|minor| *minor > 0)?;
        let card = Card {
            uuid: value("unique_id ")?,
            model: format!("gfx {}", value("gfx_target_version ")?),
            driver: format!("amdgpu {}", version.trim()),
        };
        Some(NodeGpu { major: DRM_MAJOR, minor, card })
    };
    nodes.iter().filter_map(gpu).collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

/// Those of a container's devices that are GPUs.
#[must_use]
pub fn of_devices(devices: &[Device], node: &[NodeGpu]) -> Vec<Gpu> {
    let card = |device: &Device| {
        let mut cards = node.iter().filter(|gpu| (gpu.major, gpu.minor) == (device.major, device.minor));
        let card = cards.next().filter(|_| !device.block)?.card.clone();
        Some(Gpu { path: device.path.clone(), card })
    };
    devices.iter().filter_map(card).collect()
}

/// Whether it can be told to a program: what a checkpoint says of itself may be anything.
fn is_uuid(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.len() <= 64 && text.chars().all(plain)
}

/// What has become of each GPU, by UUID, and every reason why one cannot take the place of another. `pairs` are the paths
/// of devices of the frozen container, and of those in their place.
#[must_use]
pub fn compare(
    pairs: &[(PathBuf, PathBuf)],
    old: &[Gpu],
    new: &[Gpu],
) -> (Vec<(String, String)>, Vec<String>) {
    let (mut map, mut problems) = (Vec::new(), Vec::new());
    for (was, is) in pairs {
        let Some(was) = old.iter().find(|gpu| gpu.path == *was) else { continue };
        if !is_uuid(&was.card.uuid) {
            problems
                .push(format!("{:?} had the UUID {:?} when frozen, which is none", was.path, was.card.uuid));
            continue;
        }
        let Some(is) = new.iter().find(|gpu| gpu.path == *is) else {
            problems.push(format!("{:?} was a GPU ({}) and is none on this node", was.path, was.card.model));
            continue;
        };
        for (what, was_so, is_so) in
            [("GPU", &was.card.model, &is.card.model), ("GPU driver", &was.card.driver, &is.card.driver)]
        {
            if was_so != is_so {
                problems.push(format!(
                    "the {what} of {:?} was {was_so} when frozen and is {is_so} on this node: use a node with the same one",
                    was.path
                ));
            }
        }
        map.push((was.card.uuid.clone(), is.card.uuid.clone()));
    }
    (map, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn device(path: &str, major: u32, minor: u32) -> Device {
        Device { path: path.into(), block: false, major, minor, mode: 0o666, uid: 0, gid: 0 }
    }

    #[test]
    fn the_drivers_lists_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(of_node(root), []);
        write(root, "sys/module/nvidia/version", "570.124.06\n");
        let information = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 90\nGPU UUID: \t GPU-1\nDevice Minor: \t 3\n";
        write(root, "proc/driver/nvidia/gpus/0000:19:00.0/information", information);
        write(root, "proc/sys/kernel/osrelease", "6.18.0\n");
        let nodes = "sys/class/kfd/kfd/topology/nodes";
        write(
            root,
            &format!("{nodes}/0/properties"),
            "cpu_cores_count 64\ndrm_render_minor 0\nunique_id 0\n",
        );
        let properties = "gfx_target_version 90402\ndrm_render_minor 128\nunique_id 77\n";
        write(root, &format!("{nodes}/1/properties"), properties);
        let card = |uuid: &str, model: &str, driver: &str| Card {
            uuid: uuid.into(),
            model: model.into(),
            driver: driver.into(),
        };
        let gpus = of_node(root);
        let nvidia =
            NodeGpu { major: 195, minor: 3, card: card("GPU-1", "NVIDIA H200", "nvidia 570.124.06") };
        let amd = NodeGpu { major: 226, minor: 128, card: card("77", "gfx 90402", "amdgpu 6.18.0") };
        assert_eq!(gpus, [nvidia, amd]);
        let devices = [device("/dev/nvidiactl", 195, 255), device("/dev/nvidia0", 195, 3)];
        let of = of_devices(&devices, &gpus);
        assert_eq!(of, [Gpu { path: "/dev/nvidia0".into(), card: gpus[0].card.clone() }]);
        let json = serde_json::to_string(&of).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Gpu>>(&json).unwrap(), of);
    }

    #[test]
    fn another_model_or_driver_is_a_reason_and_all_come_at_once() {
        let gpu = |path: &str, uuid: &str, model: &str, driver: &str| Gpu {
            path: path.into(),
            card: Card { uuid: uuid.into(), model: model.into(), driver: driver.into() },
        };
        let path = |n: u32| PathBuf::from(format!("/dev/nvidia{n}"));
        let pairs: Vec<_> = (0..3).map(|n| (path(n), path(n + 4))).collect();
        let old = ["0", "1", "2"].map(|n| gpu(&format!("/dev/nvidia{n}"), n, "H200", "nvidia 1"));
        let new =
            [gpu("/dev/nvidia4", "4", "H200", "nvidia 1"), gpu("/dev/nvidia5", "5", "A100", "nvidia 2")];
        let (map, problems) = compare(&pairs, &old, &new);
        assert_eq!(map, [("0".into(), "4".into()), ("1".into(), "5".into())]);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].contains("was H200 when frozen and is A100"), "{problems:?}");
        assert!(problems[1].contains("was nvidia 1 when frozen and is nvidia 2"), "{problems:?}");
        assert!(problems[2].contains("is none on this node"), "{problems:?}");
        assert_eq!(compare(&pairs, &[], &new), (vec![], vec![]));
        let forged = [gpu("/dev/nvidia0", "--pid=1,x", "H200", "nvidia 1")];
        assert!(compare(&pairs, &forged, &new).1[0].contains("which is none"));
    }
}
