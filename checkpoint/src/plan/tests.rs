// SPDX-License-Identifier: Apache-2.0
//! The plan as a table: one frozen container and one new one that fit, and every way in which they do not.

mod claims;
mod gpus;
mod mounts;

use super::*;
use crate::gpu;
use serde_json::{Value, json};

const IMAGE: &str = "docker.io/library/python:3.12";

/// A container's spec as containerd writes it for a restricted pod.
fn spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "annotations": { "thaw.dev/internal.prepared": "team/trainer/x" },
        "root": { "path": "rootfs", "readonly": false },
        "process": {
            "cwd": "/", "args": ["python3"], "noNewPrivileges": true,
            "user": { "uid": 1000, "gid": 1000, "additionalGids": [1000, 2000] },
            "capabilities": { "bounding": ["CAP_CHOWN", "CAP_NET_RAW"] }
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/etc/hosts", "type": "bind", "source": "/new/hosts", "options": ["rbind", "rw"] },
            { "destination": "/var/run/secrets", "type": "bind", "source": "/new/token", "options": ["rbind", "ro"] }
        ],
        "linux": {
            "seccomp": { "defaultAction": "SCMP_ACT_ERRNO" },
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "cgroup" },
                { "type": "network", "path": "/proc/77/ns/net" },
                { "type": "ipc", "path": "/proc/77/ns/ipc" },
                { "type": "uts", "path": "/proc/77/ns/uts" }
            ],
            "maskedPaths": ["/proc/kcore", "/proc/scsi", "/proc/absent"],
            "readonlyPaths": ["/proc/bus"]
        }
    })
}

fn mount(id: u32, mountpoint: &str, fstype: u32, flags: u32, ext_key: Option<&str>) -> FrozenMount {
    FrozenMount {
        id,
        parent: 1,
        mountpoint: mountpoint.into(),
        root: "/".into(),
        fstype,
        flags,
        root_dev: 100 + id,
        deleted: false,
        ext_key: ext_key.map(Into::into),
    }
}

fn thread() -> Claims {
    Claims {
        pid: 1,
        tid: 1,
        comm: "python3".into(),
        uids: [1000; 4],
        gids: [1000; 4],
        groups: vec![2000],
        capabilities: Capabilities { bounding: 1, ..Capabilities::default() },
        no_new_privs: true,
        seccomp_mode: 2,
        lsm_profile: None,
        secure_bits: 0,
    }
}

fn frozen() -> Frozen {
    Frozen {
        image: IMAGE.into(),
        mounts: vec![
            mount(1, "/", 17, 0, None),
            mount(2, "/proc", 1, 14, None),
            mount(3, "/dev", 5, 2, None),
            mount(4, "/sys", 2, 15, None),
            mount(5, "/etc/hosts", 0, 0, Some("/etc/hosts")),
            mount(6, "/run/secrets", 0, 1, Some("/run/secrets")),
            FrozenMount {
                parent: 2,
                root: "/null".into(),
                root_dev: 103,
                ..mount(7, "/proc/kcore", 5, 2, Some("/dev/null"))
            },
            FrozenMount { parent: 2, ..mount(8, "/proc/scsi", 5, 1, None) },
            FrozenMount {
                parent: 2,
                root: "/bus".into(),
                root_dev: 102,
                ..mount(9, "/proc/bus", 1, 15, None)
            },
        ],
        devices: Vec::new(),
        gpus: Vec::new(),
        cuda: false,
        network_key: Some("extRootNetNS".into()),
        pid_key: None,
        own: OwnNamespaces { network: true, pid: true, ipc: true, uts: true, user: false },
        seccomp: serde_json::from_value(spec()["linux"]["seccomp"].clone()).unwrap(),
        threads: vec![thread()],
        stdio: ["/dev/null", "pipe:[1]", "pipe:[2]"].map(|name| Some(name.to_owned())),
        terminal: false,
        lsm: Lsm::None,
        network: FrozenNetwork::default(),
        volumes: FrozenVolumes::default(),
    }
}

fn host() -> Host {
    let existing = ["/proc/kcore", "/proc/scsi", "/proc/bus"].map(PathBuf::from).into_iter().collect();
    Host { lsm: Lsm::None, existing, host_namespaces: Vec::new(), gpus: Vec::new() }
}

fn run(frozen: &Frozen, spec: &Value, host: &Host) -> Result<Plan, Refused> {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    let destinations = [("/var/run/secrets".into(), "/run/secrets".into())].into_iter().collect();
    let cgroups = [("/sys/fs/cgroup/memory".to_owned(), "/host/memory/new".into())].into_iter().collect();
    let (network, volumes) = (NewNetwork::default(), NewVolumes::default());
    let prepared = spec.annotations().iter().flatten().any(|(key, _)| key == crate::annotation::PREPARED);
    let new = NewContainer { spec: &spec, image: IMAGE, destinations, cgroups, network, volumes, prepared };
    plan(frozen, &new, host)
}

/// The reasons after changing what fits.
fn reasons(change: impl FnOnce(&mut Frozen, &mut Value)) -> Vec<String> {
    let (mut frozen, mut spec) = (frozen(), spec());
    change(&mut frozen, &mut spec);
    let reasons = run(&frozen, &spec, &host()).err().map_or_else(Vec::new, |refused| refused.0);
    reasons.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn refused(part: &str, change: impl FnOnce(&mut Frozen, &mut Value)) {
    let reasons = reasons(change);
    assert!(reasons.len() == 1 && reasons[0].contains(part), "{part}: {reasons:#?}");
}

#[track_caller]
fn allowed(change: impl FnOnce(&mut Frozen, &mut Value)) {
    assert_eq!(reasons(change), [""; 0]);
}

fn process(spec: &mut Value) -> &mut Value {
    &mut spec["process"]
}

#[test]
fn what_fits_becomes_a_plan_with_everything_from_the_new_spec() {
    let plan = run(&frozen(), &spec(), &host()).unwrap();
    let external = [("/dev/null", "/dev/null"), ("/etc/hosts", "/new/hosts"), ("/run/secrets", "/new/token")];
    assert_eq!(plan.external_mounts, external.map(|(key, path)| (key.to_owned(), path.into())));
    assert_eq!(plan.network, Some(("extRootNetNS".into(), "/proc/77/ns/net".into())));
    assert_eq!((plan.ipc, plan.uts), (Some("/proc/77/ns/ipc".into()), Some("/proc/77/ns/uts".into())));
    assert_eq!((plan.pid, plan.cgroup_namespace), (None, true));
    assert_eq!(plan.stdio, [None, Some("pipe:[1]".into()), Some("pipe:[2]".into())]);
    let hosts = Mountpoint { destination: "/etc/hosts".into(), like: Some("/new/hosts".into()) };
    assert_eq!(plan.devices, []);
    assert!(plan.mountpoints.contains(&hosts) && plan.mountpoints.len() == 5);
}

#[test]
fn another_image_or_terminal_is_refused() {
    refused("\"other\" when frozen and is \"docker.io/library/python:3.12\" now", |frozen, _| {
        frozen.image = "other".into();
    });
    refused("a terminal", |frozen, _| frozen.terminal = true);
    refused("no terminal", |_, spec| process(spec)["terminal"] = true.into());
}

/// A device as OCI has it.
fn device(path: &str, minor: u32) -> Value {
    json!({ "path": path, "type": "c", "major": 195, "minor": minor })
}

fn had_device(frozen: &mut Frozen, path: &str, minor: u32) {
    let device = serde_json::from_value(device(path, minor)).unwrap();
    frozen.devices.extend(crate::devices::Device::from_oci(&device));
}

#[test]
fn every_device_that_was_known_by_path_must_be_there() {
    allowed(|frozen, spec| {
        had_device(frozen, "/dev/nvidia0", 0);
        spec["linux"]["devices"] = json!([device("/dev/nvidia0", 3), device("/dev/nvidia3", 3)]);
    });
    refused("the devices \"/dev/nvidia0\", \"/dev/nvidia1\" when frozen", |frozen, _| {
        had_device(frozen, "/dev/nvidia1", 1);
        had_device(frozen, "/dev/nvidia0", 0);
    });
    refused("knew the device \"/dev/nvidia0\", which must lead to", |frozen, spec| {
        had_device(frozen, "/dev/nvidia0", 0);
        spec["linux"]["devices"] = json!([device("/dev/nvidia3", 3)]);
    });
    allowed(|frozen, spec| {
        had_device(frozen, "/dev/sda", 0);
        spec["linux"]["resources"] = json!({ "devices": [{ "allow": true, "access": "rwm" }] });
    });
}

#[test]
fn what_the_plugin_would_have_provided_is_missed_together_with_the_plugin() {
    let unprepared = |change: fn(&mut Frozen, &mut Value)| {
        let reasons = reasons(|frozen, spec| {
            spec["annotations"] = json!({});
            change(frozen, spec);
        });
        reasons.iter().any(|reason| reason.starts_with("thaw-nri is not running on this node"))
    };
    assert!(!unprepared(|_, _| ()));
    assert!(!unprepared(|frozen, _| frozen.terminal = true));
    assert!(unprepared(|frozen, _| frozen.mounts.push(mount(20, "/lib/driver.so", 5, 1, None))));
    assert!(unprepared(|frozen, spec| {
        had_device(frozen, "/dev/nvidia0", 0);
        spec["linux"]["devices"] = json!([device("/dev/nvidia3", 3)]);
    }));
}

#[test]
fn what_the_spec_hides_must_be_hidden() {
    refused("\"/proc/kcore\" must be hidden", |frozen, _| drop(frozen.mounts.remove(6)));
    refused("\"/proc/scsi\" must be hidden", |frozen, _| drop(frozen.mounts.remove(7)));
    refused("\"/proc/bus\" must be read-only", |frozen, _| drop(frozen.mounts.remove(8)));
    allowed(|_, spec| drop(spec["linux"].as_object_mut().unwrap().remove("maskedPaths")));
    allowed(|_, spec| drop(spec["linux"].as_object_mut().unwrap().remove("readonlyPaths")));
}

#[test]
fn a_trick_does_not_uncover_what_is_hidden() {
    let shown = |id, path: &str| FrozenMount {
        parent: 8,
        root: path[5..].into(),
        root_dev: 102,
        ..mount(id, path, 1, 15, None)
    };
    let more = |frozen: &mut Frozen, mount| frozen.mounts.push(mount);
    refused("\"/proc/scsi/scsi\"", |frozen, _| more(frozen, shown(20, "/proc/scsi/scsi")));
    assert!(
        !reasons(|frozen, _| more(frozen, FrozenMount { parent: 2, ..shown(20, "/proc/kcore") })).is_empty()
    );
    refused("one mount covered another", |frozen, _| frozen.mounts[6].parent = 1);
    refused("\"/proc/bus\"", |frozen, _| {
        (frozen.mounts[8].root, frozen.mounts[8].root_dev) = ("/".into(), 30);
    });
    assert!(reasons(|frozen, _| frozen.mounts[1].root = "/1".into())[0].contains("\"/proc\" was proc"));
    assert_eq!(reasons(|frozen, _| frozen.mounts[8].flags = 14).len(), 2);
    refused("the images mount \"/dev/null\" at \"/etc/passwd\"", |frozen, _| {
        more(frozen, mount(20, "/etc/passwd", 5, 0, Some("/dev/null")));
    });
}

#[test]
fn cgroup_v1_mounts_go_to_the_new_cgroup() {
    let cgroup =
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] });
    let prepare = |key: &str, flags| {
        let (mut frozen, mut spec) = (frozen(), spec());
        spec["mounts"].as_array_mut().unwrap().push(cgroup.clone());
        frozen.mounts.push(FrozenMount { parent: 4, ..mount(20, "/sys/fs/cgroup", 5, 1, None) });
        frozen.mounts.push(FrozenMount {
            parent: 20,
            root: "/old".into(),
            ..mount(21, key, 12, flags, Some(key))
        });
        run(&frozen, &spec, &host())
    };
    let plan = prepare("/sys/fs/cgroup/memory", 1).unwrap();
    assert!(plan.external_mounts.contains(&("/sys/fs/cgroup/memory".into(), "/host/memory/new".into())));
    let Refused(reasons) = prepare("/sys/fs/cgroup/cpu", 1).unwrap_err();
    assert!(matches!(&reasons[..], [Reason::CgroupMount { .. }]), "{reasons:?}");
    let Refused(reasons) = prepare("/sys/fs/cgroup/memory", 0).unwrap_err();
    assert!(matches!(&reasons[..], [Reason::MountFlags { .. }]), "{reasons:?}");
}

#[test]
fn namespaces_must_be_of_the_same_kind() {
    refused("frozen in the host's network namespace and the new one has its own", |frozen, _| {
        (frozen.own.network, frozen.network_key) = (false, None);
    });
    refused("`hostPID`", |frozen, _| frozen.own.pid = false);
    refused("`hostIPC`", |frozen, _| frozen.own.ipc = false);
    refused("its own IPC namespace and the new one has the host's", |_, spec| {
        drop(spec["linux"]["namespaces"].as_array_mut().unwrap().remove(4));
    });
    refused("shareProcessNamespace", |frozen, _| frozen.pid_key = Some("extRootPidNS".into()));
    refused("not shared with the pod", |_, spec| {
        spec["linux"]["namespaces"][0] = json!({ "type": "pid", "path": "/proc/77/ns/pid" });
    });
    refused("network namespace was not shared", |frozen, _| frozen.network_key = None);
    refused("frozen in a user namespace", |frozen, _| frozen.own.user = true);
    refused("the new container has a user namespace", |_, spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    });
}

#[test]
fn a_pod_on_the_hosts_network_goes_on_there() {
    let mut frozen = frozen();
    (frozen.own.network, frozen.network_key) = (false, None);
    let host = Host { host_namespaces: vec![oci_spec::runtime::LinuxNamespaceType::Network], ..host() };
    assert_eq!(run(&frozen, &spec(), &host).unwrap().network, None);
}
