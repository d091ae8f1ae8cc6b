// SPDX-License-Identifier: Apache-2.0
//! What must be known for a decision: what the checkpoint held, and what this node has. Reads files, so it blocks.

use std::path::{Component, Path, PathBuf};

use checkpoint::annotation::{RestoreRequest, Scope};
use checkpoint::config::Config;
use checkpoint::container_dir::{ContainerDir, ContainerDirError};
use checkpoint::devices::{self, Device};
use checkpoint::dump::Link;
use checkpoint::reference::Lineage;
use checkpoint::store::{CheckpointDir, Store};
use criu_rpc::image::{Files, ImagesDir};
use nri_plugin::nri::api::Container;
use oci_spec::runtime::Spec;

use crate::address::Old;
use crate::cdi;
use crate::logger::chain;

/// The number of the loopback interface of every network namespace. Source: Linux include/net/flow.h, LOOPBACK_IFINDEX.
const LOOPBACK: u32 = 1;

/// A mount that a checkpoint held, or that a container is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) destination: PathBuf,
    /// `bind`, `tmpfs`, ...
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
    pub(crate) options: Vec<String>,
}

/// What the checkpoint held of the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// `NAMESPACE/LINEAGE/ID`.
    pub(crate) name: String,
    pub(crate) devices: Vec<Device>,
    pub(crate) mounts: Vec<Mount>,
    /// What its pod had of a network; nothing unless it is to be kept.
    pub(crate) network: Old,
}

/// What this node has for the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Here {
    /// What the container was given, by whomever.
    pub(crate) devices: Vec<Device>,
    /// Files of the drivers of the container's devices.
    pub(crate) driver_mounts: Vec<cdi::Mount>,
    /// Those of the checkpoint's mount sources that the administrator lets containers have, and that exist.
    pub(crate) allowed_sources: Vec<PathBuf>,
}

/// What the checkpoint held; `None` where there is nothing to restore.
///
/// # Errors
/// In words, what is wrong with the checkpoint. The shim finds the same and reports it.
pub(crate) fn held(
    config: &Config,
    namespace: &str,
    container: &str,
    lineage: &Lineage,
    request: &RestoreRequest,
    keep: bool,
) -> Result<Option<Held>, String> {
    let store = Store::open(config).map_err(|e| chain(&e))?;
    let checkpoint = match store.resolve(namespace, lineage, &request.reference) {
        Ok(checkpoint) => checkpoint,
        Err(e) if e.is_missing() => return Ok(None),
        Err(e) => return Err(chain(&e)),
    };
    let dir = match checkpoint.container(container) {
        Ok(dir) => dir,
        Err(ContainerDirError::NotHeld { .. }) if request.scope == Scope::Pod => return Ok(None),
        Err(e) => return Err(chain(&e)),
    };
    let spec = dir.spec().map_err(|e| chain(&e))?;
    Ok(Some(Held {
        name: checkpoint.name(),
        devices: devices::of_spec(&spec),
        mounts: spec_mounts(&spec),
        network: if keep { network(&checkpoint, &dir)? } else { Old::default() },
    }))
}

fn network(checkpoint: &CheckpointDir, dir: &ContainerDir) -> Result<Old, String> {
    let images = dir.images_dir().try_clone_to_owned().map_err(|e| chain(&e))?;
    let files: Files = ImagesDir::open(images).load("files.img").map_err(|e| chain(&e))?;
    let links = dir.network().map_err(|e| chain(&e))?.interfaces;
    let bound =
        |link: &Link| files.packet_sockets().iter().any(|socket| socket.interfaces.contains(&link.index));
    // All of a checkpoint's own is the pod's one interface; the loopback one has no card.
    let card = links.into_iter().filter(bound).find(|link| link.index != LOOPBACK);
    Ok(Old { addresses: checkpoint.manifest().pod.addresses.clone(), card })
}

fn spec_mounts(spec: &Spec) -> Vec<Mount> {
    let mounts = spec.mounts().iter().flatten();
    mounts
        .map(|mount| {
            let options = mount.options().clone().unwrap_or_default();
            let bind = options.iter().any(|option| option == "bind" || option == "rbind");
            Mount {
                destination: mount.destination().components().collect(),
                kind: if bind { "bind".into() } else { mount.typ().clone().unwrap_or_default() },
                source: mount.source().clone().unwrap_or_default(),
                options,
            }
        })
        .collect()
}

/// What the node whose file system is at `root` has for a container with that checkpoint.
pub(crate) fn here(config: &Config, root: &Path, container: &Container, held: &Held) -> Here {
    let kinds = cdi::read(root);
    let names: Vec<String> = container.CDI_devices.iter().map(|device| device.name.clone()).collect();
    let mut devices = given(container);
    for device in cdi::devices(&kinds, &names, root) {
        if !devices.iter().any(|other| other.path == device.path) {
            devices.push(device);
        }
    }
    let allowed = |path: &PathBuf| is_allowed(&config.driver_files, root, path);
    let sources = held.mounts.iter().filter(|mount| mount.kind == "bind").map(|mount| mount.source.clone());
    Here {
        driver_mounts: cdi::mounts(&kinds, &devices),
        allowed_sources: sources.filter(allowed).collect(),
        devices,
    }
}

/// The devices in the container's spec, and those that other plugins have added so far.
fn given(container: &Container) -> Vec<Device> {
    let devices = container.linux.devices.iter().filter_map(|device| {
        let (major, minor) = (device.major.try_into().ok()?, device.minor.try_into().ok()?);
        let block = match device.type_.as_str() {
            "b" => true,
            "c" | "u" => false,
            _ => return None,
        };
        let number = |value: &protobuf::MessageField<nri_plugin::nri::api::OptionalUInt32>, default| {
            value.as_ref().map_or(default, |value| value.value)
        };
        Some(Device {
            path: Path::new(&device.path).components().collect(),
            block,
            major,
            minor,
            mode: number(&device.file_mode, 0o666) & 0o777,
            uid: number(&device.uid, 0),
            gid: number(&device.gid, 0),
        })
    });
    devices.filter(|device| !device.is_default()).collect()
}

/// Whether a source that a checkpoint names is one of the administrator's, by its path and by where it really is.
fn is_allowed(allowed: &[PathBuf], root: &Path, source: &Path) -> bool {
    let on_node = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let plain = source.is_absolute() && !source.components().any(|part| part == Component::ParentDir);
    let Ok(real) = on_node(source).canonicalize() else { return false };
    plain
        && allowed.iter().any(|path| {
            source.starts_with(path) && on_node(path).canonicalize().is_ok_and(|path| real.starts_with(path))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_allowed_by_its_name_and_by_where_it_leads() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for folder in ["usr/lib/driver", "etc"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in ["usr/lib/driver/a.so", "usr/lib/b.so", "etc/shadow"] {
            std::fs::write(root.join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("../../../etc/shadow", root.join("usr/lib/driver/link.so")).unwrap();
        let allowed = [PathBuf::from("/usr/lib/driver"), PathBuf::from("/usr/lib/b.so")];
        for (source, expected) in [
            ("/usr/lib/driver/a.so", true),
            ("/usr/lib/b.so", true),
            ("/usr/lib/driver", true),
            ("/usr/lib/driver/none.so", false),
            ("/usr/lib/driver/link.so", false),
            ("/usr/lib/driver/../../../etc/shadow", false),
            ("/etc/shadow", false),
            ("usr/lib/b.so", false),
        ] {
            assert_eq!(is_allowed(&allowed, root, Path::new(source)), expected, "{source}");
        }
        assert!(!is_allowed(&[], root, Path::new("/usr/lib/b.so")));
    }
}
