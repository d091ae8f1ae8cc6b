// SPDX-License-Identifier: Apache-2.0
//! The device nodes that a frozen container knew by path, against those that the new one was given.
//!
//! Programs remember paths (`/dev/nvidia0`), and the new pod may have got another device of the same kind
//! (`/dev/nvidia3`), with other numbers on this node. So each old path is paired with a device of the new container:
//! the one at the same path, or else the next one of its family, which then is to appear at the old path as well.
//! That gives the container nothing that it has not: only devices that the new spec holds are ever paired.
//!
//! Pure. `thaw-nri` makes the second nodes, the shim checks that they are there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};

/// Nodes that runtimes make in every container. Source: OCI runtime-spec config-linux.md, "Default Devices"; runc
/// libcontainer/specconv/spec_linux.go, AllowedDevices.
pub const DEFAULT: [(&str, u32, u32); 7] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
    ("/dev/console", 5, 1),
];
/// The mode of a node for which the spec has none. Source: runc libcontainer/specconv/spec_linux.go.
const MODE: u32 = 0o666;

/// A device node of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where it is in the container, absolute.
    pub path: PathBuf,
    /// A block device, and no character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions, without the type.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Device {
    /// A node as OCI describes one; `None` for pipes, and for numbers that no device has.
    #[must_use]
    pub fn from_oci(device: &LinuxDevice) -> Option<Self> {
        let block = match device.typ() {
            LinuxDeviceType::B => true,
            LinuxDeviceType::C | LinuxDeviceType::U => false,
            LinuxDeviceType::P | LinuxDeviceType::A => return None,
        };
        Some(Self {
            path: device.path().components().collect(),
            block,
            major: device.major().try_into().ok()?,
            minor: device.minor().try_into().ok()?,
            mode: device.file_mode().unwrap_or(MODE) & 0o777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        })
    }

    /// Whether runtimes make it in every container.
    #[must_use]
    pub fn is_default(&self) -> bool {
        DEFAULT.iter().any(|(path, ..)| self.path == Path::new(path))
    }

    /// Whether both are the same device, wherever their nodes are.
    #[must_use]
    pub fn same_numbers(&self, other: &Self) -> bool {
        (self.block, self.major, self.minor) == (other.block, other.major, other.minor)
    }
}

/// The devices of a spec, without those that every container has.
#[must_use]
pub fn of_spec(spec: &Spec) -> Vec<Device> {
    let devices = spec.linux().iter().filter_map(|linux| linux.devices().as_ref()).flatten();
    devices.filter_map(Device::from_oci).filter(|device| !device.is_default()).collect()
}

/// Whether the spec allows every device: a privileged container gets all that the node has, wanted or not.
#[must_use]
pub fn allows_all(spec: &Spec) -> bool {
    let resources = spec.linux().iter().filter_map(|linux| linux.resources().as_ref());
    let mut rules = resources.filter_map(|resources| resources.devices().as_ref()).flatten();
    rules.any(|rule| {
        rule.allow()
            && rule.major().is_none()
            && rule.minor().is_none()
            && matches!(rule.typ(), None | Some(LinuxDeviceType::A))
            && rule.access().as_deref().is_none_or(|access| access.contains('r') && access.contains('w'))
    })
}

/// How the devices of a frozen container fit those of a new one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fit {
    /// Each device that was there, and the one that takes its place.
    pub pairs: Vec<(Device, Device)>,
    /// Old paths that the new container lacks although it has a device for them.
    pub aliases: Vec<Device>,
    /// Old paths for which the new container has no device.
    pub missing: Vec<PathBuf>,
}

/// Pairs every device of the frozen container with one of the new container.
#[must_use]
pub fn fit(frozen: &[Device], new: &[Device]) -> Fit {
    let mut fit = Fit::default();
    let mut families: BTreeMap<_, Vec<&Device>> = BTreeMap::new();
    for device in new.iter().filter(|device| !frozen.iter().any(|old| same_node(old, device))) {
        families.entry(family(device)).or_default().push(device);
    }
    for devices in families.values_mut() {
        // Ascending, so that the lowest is taken from the end.
        devices.sort_by_key(|device| std::cmp::Reverse(number(&device.path)));
        // The same device at a second path is not a second device.
        devices.dedup_by(|one, other| one.same_numbers(other));
    }
    let mut frozen: Vec<_> = frozen.iter().collect();
    // Those that need no other device first: what takes their place is known to their second names then.
    frozen.sort_by_key(|old| (!new.iter().any(|device| same_node(old, device)), number(&old.path)));
    for old in frozen {
        let same = new.iter().find(|device| same_node(old, device));
        let twin = fit.pairs.iter().find(|(was, _)| was.same_numbers(old)).map(|(_, is)| is.clone());
        let other = || families.get_mut(&family(old)).and_then(Vec::pop).cloned();
        match same.cloned().or(twin).or_else(other) {
            Some(device) => {
                if same.is_none() {
                    fit.aliases.push(Device { path: old.path.clone(), ..device.clone() });
                }
                fit.pairs.push((old.clone(), device));
            }
            None => fit.missing.push(old.path.clone()),
        }
    }
    fit
}

fn same_node(old: &Device, new: &Device) -> bool {
    old.path == new.path && old.block == new.block
}

/// Devices of one family differ only in the number at the end of their path.
fn family(device: &Device) -> (bool, String) {
    let path = device.path.to_string_lossy();
    let stem = path.trim_end_matches(|c: char| c.is_ascii_digit());
    // Without a number it is the only one of its family.
    let stem = if stem.len() == path.len() { format!("{stem}\0") } else { stem.to_owned() };
    (device.block, stem)
}

/// The number at the end of a path.
fn number(path: &Path) -> (Option<u32>, PathBuf) {
    let text = path.to_string_lossy();
    let digits = text.len() - text.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let number = text.get(text.len() - digits..).and_then(|digits| digits.parse().ok());
    (number, path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_name_that_a_restore_gave_a_device_needs_no_second_device() {
        let frozen = devices(&[("/dev/gpu0", 195, 3), ("/dev/gpu3", 195, 3)]);
        for given in ["/dev/gpu0", "/dev/gpu3", "/dev/gpu5"] {
            let fit = fit(&frozen, &devices(&[(given, 195, 7)]));
            assert_eq!(fit.missing, Vec::<PathBuf>::new(), "{given}");
            assert_eq!(fit.pairs.len(), 2);
            assert!(fit.aliases.iter().all(|alias| alias.minor == 7 && alias.path != Path::new(given)));
        }
        // Two devices are two.
        let frozen = devices(&[("/dev/gpu0", 195, 0), ("/dev/gpu1", 195, 1)]);
        assert_eq!(fit(&frozen, &devices(&[("/dev/gpu0", 195, 0)])).missing, [PathBuf::from("/dev/gpu1")]);
    }

    fn device(path: &str, major: u32, minor: u32) -> Device {
        Device { path: path.into(), block: false, major, minor, mode: MODE, uid: 0, gid: 0 }
    }

    fn devices(list: &[(&str, u32, u32)]) -> Vec<Device> {
        list.iter().map(|(path, major, minor)| device(path, *major, *minor)).collect()
    }

    fn fitted(frozen: &[(&str, u32, u32)], new: &[(&str, u32, u32)]) -> (Vec<String>, Vec<PathBuf>) {
        let fit = fit(&devices(frozen), &devices(new));
        assert_eq!(fit.pairs.len() + fit.missing.len(), frozen.len());
        let aliases = fit.aliases.iter();
        let aliases =
            aliases.map(|alias| format!("{}={}:{}", alias.path.display(), alias.major, alias.minor));
        (aliases.collect(), fit.missing)
    }

    #[test]
    fn every_old_path_leads_to_a_device_of_the_new_container_or_is_named() {
        let none: [&str; 0] = [];
        for (frozen, new, aliases, missing) in [
            (vec![], vec![("/dev/x0", 1, 1)], vec![], vec![]),
            // The same path, with the numbers of this node.
            (vec![("/dev/nvidia-uvm", 510, 0)], vec![("/dev/nvidia-uvm", 508, 0)], vec![], vec![]),
            (
                vec![("/dev/nvidia0", 195, 0)],
                vec![("/dev/nvidia3", 195, 3)],
                vec!["/dev/nvidia0=195:3"],
                vec![],
            ),
            // What is at its own path stays there, and the others follow in order.
            (
                vec![("/dev/nvidia0", 195, 0), ("/dev/nvidia1", 195, 1), ("/dev/nvidia2", 195, 2)],
                vec![("/dev/nvidia1", 195, 1), ("/dev/nvidia10", 195, 10), ("/dev/nvidia9", 195, 9)],
                vec!["/dev/nvidia0=195:9", "/dev/nvidia2=195:10"],
                vec![],
            ),
            (
                vec![("/dev/dri/renderD128", 226, 128), ("/dev/kfd", 240, 0)],
                vec![("/dev/dri/renderD130", 226, 130), ("/dev/kfd", 241, 0)],
                vec!["/dev/dri/renderD128=226:130"],
                vec![],
            ),
            // Fewer than there were: all that is missing is named.
            (
                vec![("/dev/nvidia0", 195, 0), ("/dev/nvidia1", 195, 1), ("/dev/fuse", 10, 229)],
                vec![("/dev/nvidia5", 195, 5)],
                vec!["/dev/nvidia0=195:5"],
                vec!["/dev/fuse", "/dev/nvidia1"],
            ),
            // Another family is no replacement, and neither is a second node of the same device.
            (vec![("/dev/fuse", 10, 229)], vec![("/dev/fused", 10, 1)], vec![], vec!["/dev/fuse"]),
            (
                vec![("/dev/x0", 1, 0), ("/dev/x1", 1, 1)],
                vec![("/dev/x2", 1, 2), ("/dev/x3", 1, 2)],
                vec!["/dev/x0=1:2"],
                vec!["/dev/x1"],
            ),
        ] {
            let (found, gone) = fitted(&frozen, &new);
            assert_eq!(found, aliases, "{frozen:?} {new:?}");
            let missing: Vec<PathBuf> = missing.into_iter().chain(none).map(PathBuf::from).collect();
            assert_eq!(gone, missing, "{frozen:?} {new:?}");
        }
    }

    #[test]
    fn what_has_been_given_its_aliases_needs_no_more() {
        let (frozen, mut new) = (devices(&[("/dev/x0", 1, 0)]), devices(&[("/dev/x7", 1, 7)]));
        let first = fit(&frozen, &new);
        new.extend(first.aliases);
        let again = fit(&frozen, &new);
        assert_eq!((again.aliases, again.missing), (vec![], vec![]));
    }

    #[test]
    fn a_block_device_does_not_replace_a_character_device() {
        let block = Device { block: true, ..device("/dev/x1", 1, 1) };
        assert_eq!(fit(&devices(&[("/dev/x0", 1, 0)]), &[block]).missing, [PathBuf::from("/dev/x0")]);
    }

    #[test]
    fn a_specs_devices_are_read_without_those_of_every_container() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.2.0", "linux": {
                "devices": [
                    {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
                    {"path": "/dev//x", "type": "b", "major": 7, "minor": 1, "fileMode": 25008, "gid": 44},
                    {"path": "/dev/pipe", "type": "p", "major": 0, "minor": 0},
                    {"path": "/dev/y", "type": "c", "major": -1, "minor": 0}
                ],
                "resources": {"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "access": "m"}]}
            }}"#,
        )
        .unwrap();
        let x = Device { block: true, mode: 0o660, gid: 44, ..device("/dev/x", 7, 1) };
        assert_eq!(of_spec(&spec), [x]);
        assert!(!allows_all(&spec));
        let all =
            r#"{"ociVersion": "1", "linux": {"resources": {"devices": [{"allow": true, "access": "rwm"}]}}}"#;
        assert!(allows_all(&serde_json::from_str(all).unwrap()));
    }
}
