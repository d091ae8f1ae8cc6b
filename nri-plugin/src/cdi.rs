// SPDX-License-Identifier: Apache-2.0
//! The Container Device Interface: what this node's vendors say that a container with one of their devices needs.
//!
//! The runtime applies CDI names that kubelet passes on before it asks plugins; names that a plugin adds it applies
//! after all of them. So for the latter the nodes are looked up here. Source: CDI SPEC.md 1.0, "CDI JSON Specification".

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use checkpoint::devices::Device;
use log::warn;
use rustix::fs::{FileType, major, minor};
use serde::Deserialize;

/// Where specifications are; those in the second win. Source: CDI SPEC.md, "CDI JSON Specification".
const DIRS: [&str; 2] = ["etc/cdi", "var/run/cdi"];
/// The longest specification that is read, in bytes.
const LIMIT: u64 = 4 << 20;

/// One vendor's specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Kind {
    /// `vendor.com/class`.
    kind: String,
    container_edits: Edits,
    devices: Vec<Named>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Named {
    name: String,
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
}

/// A file of the driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Mount {
    /// Where it is on the node.
    pub(crate) host_path: PathBuf,
    /// Where it belongs in the container.
    pub(crate) container_path: PathBuf,
}

/// All specifications of the node whose file system is at `root`. One that cannot be used is left out.
pub(crate) fn read(root: &Path) -> Vec<Kind> {
    let files = DIRS.iter().flat_map(|dir| fs::read_dir(root.join(dir)).into_iter().flatten().flatten());
    let files = files.map(|entry| entry.path()).filter(|path| {
        path.extension()
            .is_some_and(|extension| ["json", "yaml", "yml"].iter().any(|known| extension == *known))
    });
    let parse = |path: PathBuf| -> Option<Kind> {
        let file = fs::File::open(&path).map_err(|e| e.to_string());
        let text = file.and_then(|file| {
            let mut text = String::new();
            let read = file.take(LIMIT + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
            let fits = u64::try_from(read).is_ok_and(|read| read <= LIMIT);
            fits.then_some(text).ok_or_else(|| format!("it has more than {LIMIT} bytes"))
        });
        // JSON is YAML.
        let parsed = text.and_then(|text| serde_yaml_ng::from_str(&text).map_err(|e| e.to_string()));
        match parsed {
            Ok(kind) => Some(kind),
            Err(error) => {
                warn!(file:? = path; "a CDI specification is not used: {error}");
                None
            }
        }
    };
    files.filter_map(parse).collect()
}

/// The devices of fully qualified names (`vendor.com/class=name`).
pub(crate) fn devices(kinds: &[Kind], names: &[String], root: &Path) -> Vec<Device> {
    let edits = names.iter().filter_map(|name| name.split_once('=')).flat_map(|(kind, name)| {
        let kinds = kinds.iter().filter(move |other| other.kind == kind);
        kinds.flat_map(move |kind| {
            let named = kind.devices.iter().filter(move |device| device.name == name);
            named.map(|device| &device.container_edits).chain([&kind.container_edits])
        })
    });
    edits.flat_map(|edits| &edits.device_nodes).filter_map(|node| device(node, root)).collect()
}

/// The node's own numbers: those in the specification may be of a time before the driver was loaded again.
fn device(node: &Node, root: &Path) -> Option<Device> {
    let host = node.host_path.as_ref().unwrap_or(&node.path);
    let stat = rustix::fs::stat(root.join(host.strip_prefix("/").ok()?)).ok()?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let block = kind == FileType::BlockDevice;
    if !block && kind != FileType::CharacterDevice {
        return None;
    }
    let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
    let mode = stat.st_mode & 0o777;
    Some(Device { path: node.path.clone(), block, major, minor, mode, uid: stat.st_uid, gid: stat.st_gid })
}

/// The files that belong to the kinds of which a container has a device.
pub(crate) fn mounts(kinds: &[Kind], devices: &[Device]) -> Vec<Mount> {
    let has =
        |edits: &Edits| edits.device_nodes.iter().any(|node| devices.iter().any(|d| d.path == node.path));
    let held = kinds.iter().filter(|kind| kind.devices.iter().any(|device| has(&device.container_edits)));
    held.flat_map(|kind| {
        let own = kind.devices.iter().map(|device| &device.container_edits).filter(|edits| has(edits));
        own.chain([&kind.container_edits]).flat_map(|edits| edits.mounts.iter().cloned())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NVIDIA: &str = "
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  deviceNodes: [{path: /dev/nvidiactl, hostPath: /dev/null}]
  mounts: [{hostPath: /usr/lib/libcuda.so.1, containerPath: /lib/libcuda.so.1, options: [ro, bind]}]
  hooks: [{hookName: createContainer, path: /usr/bin/nvidia-cdi-hook}]
devices:
- name: '0'
  containerEdits: {deviceNodes: [{path: /dev/nvidia0, hostPath: /dev/zero, major: 9}]}
- name: '1'
  containerEdits: {deviceNodes: [{path: /dev/nvidia1}], mounts: [{hostPath: /x, containerPath: /y}]}
";

    #[test]
    fn specifications_are_read_in_both_forms_and_bad_ones_left_out() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), []);
        fs::create_dir_all(dir.path().join("etc/cdi")).unwrap();
        fs::create_dir_all(dir.path().join("var/run/cdi")).unwrap();
        fs::write(dir.path().join("etc/cdi/nvidia.yaml"), NVIDIA).unwrap();
        fs::write(dir.path().join("etc/cdi/bad.yaml"), "kind: [").unwrap();
        fs::write(dir.path().join("etc/cdi/notes.txt"), NVIDIA).unwrap();
        fs::write(dir.path().join("var/run/cdi/x.json"), r#"{"kind": "x.com/y", "devices": []}"#).unwrap();
        let kinds = read(dir.path());
        assert_eq!(
            kinds.iter().map(|kind| kind.kind.as_str()).collect::<Vec<_>>(),
            ["nvidia.com/gpu", "x.com/y"]
        );
    }

    #[test]
    fn names_lead_to_nodes_and_nodes_to_files() {
        let kinds: Vec<Kind> = vec![serde_yaml_ng::from_str(NVIDIA).unwrap()];
        let found = devices(&kinds, &["nvidia.com/gpu=0".into(), "nvidia.com/gpu=7".into()], Path::new("/"));
        let numbers: Vec<_> = found.iter().map(|d| (d.path.to_str().unwrap(), d.major, d.minor)).collect();
        assert!(numbers.contains(&("/dev/nvidia0", 1, 5)), "{numbers:?}");
        assert!(numbers.contains(&("/dev/nvidiactl", 1, 3)), "{numbers:?}");
        let files: Vec<_> = mounts(&kinds, &found).into_iter().map(|mount| mount.container_path).collect();
        assert_eq!(files, [PathBuf::from("/lib/libcuda.so.1")]);
        assert_eq!(mounts(&kinds, &[]), []);
    }
}
