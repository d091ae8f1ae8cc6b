// SPDX-License-Identifier: Apache-2.0
//! What to do about a container that is about to be created. Pure: no files, no clock, no sockets.
//!
//! ```text
//! annotations wrong ───────────────────────▶ the container fails, with every fault
//! nothing to restore ──────────────────────▶ forged notes are taken out, nothing else
//! a checkpoint  ──▶ old device paths, missing driver files and tmpfs are added; notes say what was done,
//!                   and what this node has against it: the shim refuses with these and its own reasons at once
//! ```
//!
//! Invariants: a note under `thaw.dev/internal.` that this program has not set itself does not reach the shim; a
//! container gets no device that it was not given, and no file that neither its devices' vendor nor the administrator
//! has named.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use checkpoint::PodOptions;
use checkpoint::annotation::{
    Address, AnnotationErrors, INTERNAL, KEPT_ADDRESSES, PREPARED, REFUSED, RestoreRequest,
};
use checkpoint::devices::{self, Device};
use checkpoint::reference::Lineage;
use nri_plugin::nri::api::{
    Container, ContainerAdjustment, LinuxContainerAdjustment, LinuxDevice, Mount as NriMount, OptionalUInt32,
    PodSandbox,
};

use protobuf::Message;

use crate::facts::{Held, Here, Mount};

/// The longest note, in bytes.
const NOTE_MAX: usize = 8 * 1024;
/// The longest adjustment, in bytes: the runtime hangs up on a plugin whose answer has more than 1 MiB.
const ADJUST_MAX: u64 = 512 * 1024;

/// What a pod asks for one of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Keys that only this program may set and that are there already.
    forged: BTreeSet<String>,
    /// What to restore into it.
    pub(crate) restore: Option<(RestoreRequest, Lineage)>,
    /// Whether the old addresses come along.
    pub(crate) keep_addresses: bool,
}

impl Asked {
    /// Reads the annotations of a pod and its container.
    ///
    /// # Errors
    /// Everything that is wrong with those under `thaw.dev/`.
    pub(crate) fn of(pod: &PodSandbox, container: &Container) -> Result<Self, AnnotationErrors> {
        // The container's own are those of its spec: what the runtime passed on of the pod's, and what kubelet added.
        let (internal, asked): (BTreeMap<&str, &str>, BTreeMap<_, _>) = pod
            .annotations
            .iter()
            .chain(&container.annotations)
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .partition(|(key, _)| key.starts_with(INTERNAL));
        let options = PodOptions::parse(asked)?;
        // A pod without a proper name is none that could be restored.
        let lineage = options.lineage(&pod.name).ok();
        Ok(Self {
            forged: internal.into_keys().map(str::to_owned).collect(),
            restore: options.for_container(&container.name).zip(lineage),
            keep_addresses: options.address() == Address::Keep,
        })
    }

    /// Keys that only this program may set and that are there already.
    pub(crate) fn forged(&self) -> &BTreeSet<String> {
        &self.forged
    }

    /// The adjustment of a container that is not restored.
    pub(crate) fn strip(&self) -> ContainerAdjustment {
        self.with(&BTreeMap::new())
    }

    /// A key is removed or set, never both: the runtime applies an adjustment's annotations in no certain order.
    fn with(&self, notes: &BTreeMap<&str, String>) -> ContainerAdjustment {
        let forged = self.forged.iter().filter(|key| !notes.contains_key(key.as_str()));
        let forged = forged.map(|key| (format!("-{key}"), String::new()));
        let notes = notes.iter().map(|(key, note)| ((*key).to_owned(), shortened(note)));
        ContainerAdjustment { annotations: forged.chain(notes).collect(), ..Default::default() }
    }

    /// Prepares a container for what `held` says. `addresses` are the old ones that the pod has now, or why not.
    pub(crate) fn prepare(
        &self,
        container: &Container,
        held: &Held,
        here: &Here,
        addresses: &Result<Vec<IpAddr>, String>,
    ) -> ContainerAdjustment {
        let fit = if allows_all(container) {
            devices::Fit::default()
        } else {
            devices::fit(&held.devices, &here.devices)
        };
        let mounts = mounts(container, held, here);

        let mut notes = BTreeMap::from([(PREPARED, held.name.clone())]);
        if let Err(reason) = addresses {
            notes.insert(REFUSED, reason.clone());
        }
        if let Some(addresses) = addresses.as_ref().ok().filter(|addresses| !addresses.is_empty()) {
            let addresses = addresses.iter().map(ToString::to_string);
            notes.insert(KEPT_ADDRESSES, addresses.collect::<Vec<_>>().join(","));
        }
        let linux = LinuxContainerAdjustment {
            devices: fit.aliases.iter().map(node).collect(),
            ..Default::default()
        };
        let adjust = ContainerAdjustment {
            mounts: mounts.iter().map(nri_mount).collect(),
            linux: (!linux.devices.is_empty()).then_some(linux).into(),
            ..self.with(&notes)
        };
        if adjust.compute_size() <= ADJUST_MAX {
            return adjust;
        }
        notes
            .insert(REFUSED, "the checkpoint names more mounts and devices than a container can have".into());
        self.with(&notes)
    }
}

/// What the checkpoint held, the container lacks, and may have.
fn mounts(container: &Container, held: &Held, here: &Here) -> Vec<Mount> {
    let has = |destination: &Path| {
        container
            .mounts
            .iter()
            .any(|mount| destination == Path::new(&mount.destination).components().as_path())
    };
    let missing = held.mounts.iter().filter(|mount| !has(&mount.destination) && is_plain(&mount.destination));
    let bind = |mount: &Mount, source: &Path| {
        // Drivers' files are the node's: nothing is written to them.
        let options = options(mount).filter(|option| *option != "ro").chain(["ro"]);
        let (kind, source) = ("bind".to_owned(), source.to_owned());
        Mount { kind, source, options: options.map(str::to_owned).collect(), ..mount.clone() }
    };
    let tmpfs = |mount: &Mount| Mount {
        source: "tmpfs".into(),
        options: options(mount).map(str::to_owned).collect(),
        ..mount.clone()
    };
    let provided = |mount: &Mount| {
        let vendors = here.driver_mounts.iter().find(|file| file.container_path == mount.destination);
        match (mount.kind.as_str(), vendors) {
            ("bind", Some(file)) => Some(bind(mount, &file.host_path)),
            ("bind", None) if here.allowed_sources.contains(&mount.source) => {
                Some(bind(mount, &mount.source))
            }
            ("tmpfs", _) => Some(tmpfs(mount)),
            _ => None,
        }
    };
    missing.filter_map(provided).collect()
}

/// The options of a mount that are taken over from a checkpoint: those that restrict, and how large a tmpfs is.
fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    const KNOWN: [&str; 7] = ["bind", "rbind", "ro", "nosuid", "nodev", "noexec", "rprivate"];
    let sized =
        |option: &str| mount.kind == "tmpfs" && ["size=", "mode="].iter().any(|key| option.starts_with(key));
    mount.options.iter().map(String::as_str).filter(move |option| KNOWN.contains(option) || sized(option))
}

/// Whether something may be mounted here that the pod's spec does not name: not over the kernel's own.
fn is_plain(destination: &Path) -> bool {
    let absolute = destination.is_absolute() && destination != Path::new("/");
    let climbs = destination.components().any(|part| part == std::path::Component::ParentDir);
    absolute && !climbs && !["/proc", "/sys", "/dev"].iter().any(|top| destination == Path::new(top))
}

/// Whether it is privileged: it has every device of the node, and needs none.
fn allows_all(container: &Container) -> bool {
    container.linux.resources.devices.iter().any(|rule| {
        let any = rule.major.is_none() && rule.minor.is_none() && matches!(rule.type_.as_str(), "" | "a");
        rule.allow && any && rule.access.contains('r') && rule.access.contains('w')
    })
}

fn node(device: &Device) -> LinuxDevice {
    let number = |value| Some(OptionalUInt32 { value, ..Default::default() }).into();
    LinuxDevice {
        path: device.path.to_string_lossy().into_owned(),
        type_: if device.block { "b" } else { "c" }.to_owned(),
        major: device.major.into(),
        minor: device.minor.into(),
        file_mode: number(device.mode),
        uid: number(device.uid),
        gid: number(device.gid),
        ..Default::default()
    }
}

fn nri_mount(mount: &Mount) -> NriMount {
    NriMount {
        destination: mount.destination.to_string_lossy().into_owned(),
        type_: mount.kind.clone(),
        source: mount.source.to_string_lossy().into_owned(),
        options: mount.options.clone(),
        ..Default::default()
    }
}

fn shortened(note: &str) -> String {
    match note.char_indices().find(|(at, _)| *at >= NOTE_MAX) {
        Some((at, _)) => format!("{}...", note.get(..at).unwrap_or_default()),
        None => note.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::annotation::RESTORE;
    use nri_plugin::nri::api::{LinuxContainer, LinuxDeviceCgroup, LinuxResources};

    use super::*;

    fn annotations(list: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn decide(pod: &[(&str, &str)], container: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let pod = PodSandbox { annotations: annotations(pod), ..Default::default() };
        let container = Container { annotations: annotations(container), ..Default::default() };
        let adjustment = Asked::of(&pod, &container).map_err(|errors| errors.to_string())?.strip();
        let rest = ContainerAdjustment { annotations: Default::default(), ..adjustment.clone() };
        assert_eq!(rest, ContainerAdjustment::default());
        assert!(adjustment.annotations.values().all(String::is_empty));
        let mut keys: Vec<_> = adjustment.annotations.into_keys().collect();
        keys.sort();
        Ok(keys)
    }

    #[test]
    fn a_container_gets_only_its_forged_annotations_removed() {
        let restart = ("io.kubernetes.container.restartCount", "0");
        let restore = ("thaw.dev/restore", "latest");
        let plan = ("thaw.dev/internal.plan", "x");
        let gpu = ("thaw.dev/internal.gpu-map", "");
        for (pod, container, removed) in [
            (vec![], vec![], vec![]),
            (vec![("example.com/thaw.dev/internal.x", "")], vec![restart], vec![]),
            (vec![restore], vec![restore, restart], vec![]),
            (vec![plan], vec![], vec!["-thaw.dev/internal.plan"]),
            (vec![plan], vec![plan], vec!["-thaw.dev/internal.plan"]),
            (vec![], vec![gpu], vec!["-thaw.dev/internal.gpu-map"]),
            (vec![restore, plan], vec![gpu], vec!["-thaw.dev/internal.gpu-map", "-thaw.dev/internal.plan"]),
        ] {
            assert_eq!(decide(&pod, &container).unwrap(), removed, "{pod:?} {container:?}");
        }
    }

    #[test]
    fn a_container_is_refused_with_all_faults_of_its_annotations() {
        for (pod, container, faults) in [
            (vec![("thaw.dev/restor", "latest")], vec![], vec!["thaw.dev/restor\""]),
            (vec![("thaw.dev/restore", "../x")], vec![], vec!["thaw.dev/restore\""]),
            (vec![("thaw.dev/address", "both")], vec![], vec!["thaw.dev/address\""]),
            (vec![], vec![("thaw.dev/if-failed", "maybe")], vec!["thaw.dev/if-failed\"", "maybe"]),
            // A key without a name after `internal` is no internal key.
            (vec![("thaw.dev/internal", "x")], vec![], vec!["thaw.dev/internal\""]),
            (
                vec![("thaw.dev/internal.x", "x"), ("thaw.dev/a", ""), ("thaw.dev/if-missing", "no")],
                vec![("thaw.dev/b", "")],
                vec!["thaw.dev/a\"", "thaw.dev/b\"", "thaw.dev/if-missing\""],
            ),
        ] {
            let message = decide(&pod, &container).unwrap_err();
            assert!(faults.iter().all(|fault| message.contains(fault)), "{message}");
            assert!(!message.contains("internal.x"), "{message}");
        }
    }

    fn device(path: &str, minor: u32) -> Device {
        Device { path: path.into(), block: false, major: 195, minor, mode: 0o660, uid: 1, gid: 2 }
    }

    fn bind(destination: &str, source: &str) -> Mount {
        let options = ["rbind", "rw", "nosuid", "rshared"].map(str::to_owned).to_vec();
        Mount { destination: destination.into(), kind: "bind".into(), source: source.into(), options }
    }

    fn asked(annotations_of_pod: &[(&str, &str)]) -> Asked {
        let pod = PodSandbox {
            name: "p".into(),
            annotations: annotations(annotations_of_pod),
            ..Default::default()
        };
        Asked::of(&pod, &Container { name: "main".into(), ..Default::default() }).unwrap()
    }

    /// What becomes of a container without mounts: nodes, mounts and notes, in words.
    fn prepared(held: &Held, here: &Here, addresses: &Result<Vec<IpAddr>, String>) -> [Vec<String>; 3] {
        let forged = [(RESTORE, "latest"), (PREPARED, "forged"), ("thaw.dev/internal.x", "forged")];
        let adjust = asked(&forged).prepare(&Container::new(), held, here, addresses);
        let ContainerAdjustment { annotations, mounts, linux, .. } = adjust;
        let nodes = linux
            .devices
            .iter()
            .map(|d| format!("{} {} {}:{} {:o}", d.path, d.type_, d.major, d.minor, d.file_mode.value));
        let mounts = mounts
            .iter()
            .map(|m| format!("{} {} {} {}", m.destination, m.type_, m.source, m.options.join(",")));
        let mut notes: Vec<_> = annotations.iter().map(|(key, note)| format!("{key}={note}")).collect();
        notes.sort();
        [nodes.collect(), mounts.collect(), notes]
    }

    const STRIPPED: &str = "-thaw.dev/internal.x=";
    const NOTED: &str = "thaw.dev/internal.prepared=team/a/1";

    #[test]
    fn a_pod_says_what_is_restored_and_whether_addresses_stay() {
        let nothing = asked(&[]);
        assert_eq!((nothing.restore, nothing.keep_addresses), (None, false));
        let all = asked(&[(RESTORE, "latest"), ("thaw.dev/address", "keep"), ("thaw.dev/lineage", "l")]);
        let (request, lineage) = all.restore.unwrap();
        assert_eq!((request.reference.to_string().as_str(), lineage.to_string().as_str()), ("latest", "l"));
        assert!(all.keep_addresses);
        assert_eq!(asked(&[("thaw.dev/restore.other", "latest")]).restore, None);
    }

    #[test]
    fn a_restored_container_gets_old_paths_and_missing_files_and_nothing_more() {
        let held = Held {
            name: "team/a/1".into(),
            devices: vec![device("/dev/gpu0", 0), device("/dev/fuse", 9)],
            mounts: vec![
                bind("/lib/vendor.so", "/old/vendor.so"),
                bind("/lib/driver.so", "/usr/lib/driver.so"),
                bind("/etc/shadow", "/etc/shadow"),
                bind("/proc", "/usr/lib/driver.so"),
                Mount {
                    kind: "tmpfs".into(),
                    options: ["nodev", "size=1m", "context=x"].map(str::to_owned).to_vec(),
                    ..bind("/scratch", "/etc")
                },
                Mount { kind: "sysfs".into(), ..bind("/sys2", "") },
            ],
            ..Held::default()
        };
        let here = Here {
            devices: vec![device("/dev/gpu3", 3), device("/dev/other", 5)],
            driver_mounts: vec![crate::cdi::Mount {
                host_path: "/new/vendor.so".into(),
                container_path: "/lib/vendor.so".into(),
            }],
            allowed_sources: vec!["/usr/lib/driver.so".into()],
        };
        let [nodes, mounts, notes] = prepared(&held, &here, &Ok(vec![]));
        assert_eq!(nodes, ["/dev/gpu0 c 195:3 660"]);
        assert_eq!(
            mounts,
            [
                "/lib/vendor.so bind /new/vendor.so rbind,nosuid,ro",
                "/lib/driver.so bind /usr/lib/driver.so rbind,nosuid,ro",
                "/scratch tmpfs tmpfs nodev,size=1m",
            ]
        );
        assert_eq!(notes, [STRIPPED, NOTED]);
    }

    #[test]
    fn what_is_there_already_is_left_alone() {
        let held = Held {
            name: "team/a/1".into(),
            devices: vec![device("/dev/gpu0", 0)],
            mounts: vec![bind("/lib/driver.so", "/usr/lib/driver.so")],
            ..Held::default()
        };
        let here = Here {
            devices: vec![device("/dev/gpu0", 7)],
            allowed_sources: vec!["/usr/lib/driver.so".into()],
            ..Here::default()
        };
        let mounts = vec![NriMount { destination: "/lib/driver.so/".into(), ..Default::default() }];
        let container = Container { mounts, ..Default::default() };
        let adjust = asked(&[(RESTORE, "latest")]).prepare(&container, &held, &here, &Ok(vec![]));
        assert!(adjust.mounts.is_empty() && adjust.linux.is_none(), "{adjust:?}");
    }

    #[test]
    fn kept_addresses_are_noted_and_so_is_why_they_cannot_be_kept() {
        let held = Held { name: "team/a/1".into(), ..Held::default() };
        let kept = Ok(vec!["10.88.0.5".parse().unwrap(), "fd88::5".parse().unwrap()]);
        let [_, _, notes] = prepared(&held, &Here::default(), &kept);
        assert_eq!(notes, [STRIPPED, "thaw.dev/internal.addresses=10.88.0.5,fd88::5", NOTED]);
        let [_, _, notes] = prepared(&held, &Here::default(), &Err("10.88.0.5 is taken".into()));
        assert_eq!(notes, [STRIPPED, NOTED, "thaw.dev/internal.refused=10.88.0.5 is taken"]);
    }

    #[test]
    fn what_a_checkpoint_names_has_a_bound() {
        let tmpfs =
            |n: u32| Mount { kind: "tmpfs".into(), ..bind(&format!("/{n}/{}", "x".repeat(1000)), "") };
        let held = Held { mounts: (0..1000).map(tmpfs).collect(), ..Held::default() };
        let [nodes, mounts, notes] = prepared(&held, &Here::default(), &Ok(vec![]));
        assert!(nodes.is_empty() && mounts.is_empty());
        assert!(
            notes.iter().any(|note| note.starts_with(REFUSED) && note.contains("more mounts")),
            "{notes:?}"
        );
    }

    #[test]
    fn a_privileged_container_needs_no_device() {
        let rule = LinuxDeviceCgroup { allow: true, access: "rwm".into(), ..Default::default() };
        let resources = LinuxResources { devices: vec![rule], ..Default::default() };
        let linux = LinuxContainer { resources: Some(resources).into(), ..Default::default() };
        let container = Container { linux: Some(linux).into(), ..Default::default() };
        let held = Held { devices: vec![device("/dev/gpu0", 0)], ..Held::default() };
        let here = Here { devices: vec![device("/dev/gpu1", 1)], ..Here::default() };
        let adjust = asked(&[(RESTORE, "latest")]).prepare(&container, &held, &here, &Ok(vec![]));
        assert!(adjust.linux.is_none());
    }

    #[test]
    fn a_note_has_a_bound() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"ä".repeat(NOTE_MAX)).len(), NOTE_MAX + 3);
    }
}
