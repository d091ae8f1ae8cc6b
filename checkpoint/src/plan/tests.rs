// SPDX-License-Identifier: Apache-2.0
//! The plan as a table: one frozen container and one new one that fit, and every way in which they do not.

mod claims;

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
fn mounts_must_be_the_same_set() {
    refused("\"/etc/hosts\" when frozen and the new one has none", |_, spec| {
        drop(spec["mounts"].as_array_mut().unwrap().remove(3));
    });
    refused("new container has a mount at \"/sys\"", |frozen, _| drop(frozen.mounts.remove(3)));
    refused("\"/mnt\"", |frozen, _| frozen.mounts.push(mount(20, "/mnt", 5, 1, None)));
    refused("was tmpfs when frozen and is a volume", |frozen, _| {
        frozen.mounts[4] = mount(5, "/etc/hosts", 5, 0, None);
    });
    refused("was proc when frozen and is sysfs", |frozen, _| frozen.mounts[3].fstype = 1);
    refused("a volume when frozen and is tmpfs", |frozen, _| frozen.mounts[2].ext_key = Some("/dev".into()));
    refused("the images mount \"/etc/hosts\" at \"/run/secrets\"", |frozen, _| {
        frozen.mounts[5].ext_key = Some("/etc/hosts".into());
    });
}

#[test]
fn a_mount_must_be_as_restricted_as_the_spec_wants_it() {
    refused("\"/run/secrets\" must be ro", |frozen, _| frozen.mounts[5].flags = 0);
    refused("\"/sys\" must be ro, nosuid, nodev, noexec", |frozen, _| frozen.mounts[3].flags = 0);
    refused("\"/\" must be ro", |_, spec| spec["root"]["readonly"] = true.into());
    allowed(|frozen, _| frozen.mounts[4].flags = 15);
}

#[test]
fn a_recursive_restriction_of_the_spec_counts() {
    refused("\"/etc/hosts\" must be ro in", |_, spec| {
        spec["mounts"][3]["options"] = json!(["rbind", "rro", "rw"]);
    });
}

#[test]
fn a_mount_must_say_plainly_what_it_shows() {
    let refused = |part: &str, change: fn(&mut Frozen)| {
        let reasons = reasons(|frozen, _| change(frozen));
        let found = |reason: &String| reason.contains(part) && reason.contains("which cannot be restored");
        assert!(reasons.iter().any(found), "{part}: {reasons:#?}");
    };
    for path in ["/a/../etc/hosts", "/etc/./hosts", "/etc//hosts", "/etc/hosts/", "etc/hosts", ""] {
        let reasons = reasons(|frozen, _| frozen.mounts[4].mountpoint = path.into());
        assert!(reasons.iter().any(|reason| reason.contains("not plain")), "{path}: {reasons:#?}");
    }
    refused("not plain", |frozen| frozen.mounts[8].root = "/x/../bus".into());
    refused("something deleted", |frozen| frozen.mounts[5].deleted = true);
    refused("\"/dev\" shows only a part", |frozen| frozen.mounts[2].root = "/1".into());
    refused("\"/proc/scsi\" shows only a part", |frozen| frozen.mounts[7].root = "/1".into());
}

#[test]
fn mounts_of_one_file_system_must_be_those_that_runtimes_make() {
    let shared = |first: usize, second: usize| {
        refused("has the file system of the one at", |frozen, _| {
            frozen.mounts[first].root_dev = frozen.mounts[second].root_dev;
        });
    };
    // A lid with a volume, /dev with /sys, a lid with /dev, /proc with the root.
    for (first, second) in [(7, 5), (2, 3), (7, 2), (1, 0)] {
        shared(first, second);
    }
    let lid = |frozen: &mut Frozen| {
        frozen.mounts.push(FrozenMount {
            parent: 2,
            root_dev: frozen.mounts[7].root_dev,
            ..mount(20, "/proc/acpi", 5, 1, None)
        });
    };
    allowed(|frozen, _| lid(frozen));
    refused("has the file system of the one at", |frozen, _| {
        lid(frozen);
        frozen.mounts[2].root_dev = frozen.mounts[9].root_dev;
    });
    let views = |frozen: &mut Frozen| frozen.mounts[5].root_dev = frozen.mounts[4].root_dev;
    allowed(|frozen, _| views(frozen));
}

#[test]
fn volumes_on_the_disk_of_the_root_file_system_are_set_apart() {
    let mut frozen = frozen();
    for volume in [4, 5] {
        frozen.mounts[volume].root_dev = frozen.mounts[0].root_dev;
    }
    assert_eq!(run(&frozen, &spec(), &host()).unwrap().apart, [5, 6]);
}

#[test]
fn the_terminal_is_a_part_of_the_containers_own_terminals() {
    let prepare = |frozen: &mut Frozen, spec: &mut Value, console_dev| {
        frozen.terminal = true;
        process(spec)["terminal"] = true.into();
        let devpts = json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts" });
        spec["mounts"].as_array_mut().unwrap().push(devpts);
        frozen.mounts.push(FrozenMount { parent: 3, ..mount(20, "/dev/pts", 6, 0, None) });
        let console = mount(21, "/dev/console", 6, 0, None);
        frozen.mounts.push(FrozenMount { parent: 3, root: "/0".into(), root_dev: console_dev, ..console });
    };
    allowed(|frozen, spec| prepare(frozen, spec, 120));
    refused("has the file system of the one at", |frozen, spec| prepare(frozen, spec, 103));
}

#[test]
fn of_two_read_only_views_of_one_volume_the_second_is_set_apart() {
    let prepare = |frozen: &mut Frozen, spec: &mut Value, root: &str| {
        let volume =
            json!({ "destination": "/data", "type": "bind", "source": "/new/data", "options": ["ro"] });
        spec["mounts"].as_array_mut().unwrap().push(volume);
        frozen.mounts[5].root = "/volume".into();
        frozen.mounts.push(FrozenMount {
            root: root.into(),
            root_dev: 106,
            ..mount(20, "/data", 0, 0x8_0001, Some("/data"))
        });
    };
    for root in ["/volume/part", "/volume", "/volume-2"] {
        let (mut frozen, mut spec) = (frozen(), spec());
        prepare(&mut frozen, &mut spec, root);
        assert_eq!(run(&frozen, &spec, &host()).unwrap().apart, [20], "{root}");
    }
}

#[test]
fn a_volume_that_only_the_new_container_has_is_added_where_it_covers_nothing() {
    let add = |destination: &str, kind: &str| {
        let (frozen, mut spec) = (frozen(), spec());
        let volume =
            json!({ "destination": destination, "type": kind, "source": "/new", "options": ["rbind", "ro"] });
        spec["mounts"].as_array_mut().unwrap().push(volume);
        if kind != "bind" {
            spec["mounts"].as_array_mut().unwrap().last_mut().unwrap()["options"] = json!(["ro"]);
        }
        run(&frozen, &spec, &host())
    };
    for destination in ["/data", "/run/secrets/more"] {
        let plan = add(destination, "bind").unwrap();
        assert_eq!(plan.added, [AddedMount { destination: destination.into(), flags: 1 }]);
        assert!(plan.external_mounts.contains(&(destination.into(), "/new".into())));
    }
    // Above a mount, in a file system that CRIU fills, over what hides something, and no bind at all.
    for (destination, kind) in [("/etc", "bind"), ("/dev/x", "bind"), ("/proc/x", "bind"), ("/data", "tmpfs")]
    {
        let reasons = add(destination, kind).unwrap_err().to_string();
        assert!(reasons.contains("take the volume away"), "{destination}: {reasons}");
    }
}

#[test]
fn the_mounts_of_a_real_container_are_allowed() {
    let (mut frozen, mut spec) = (frozen(), spec());
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.truncate(3);
    for (destination, kind) in
        [("/dev/pts", "devpts"), ("/dev/shm", "tmpfs"), ("/dev/mqueue", "mqueue"), ("/run", "tmpfs")]
    {
        mounts.push(json!({ "destination": destination, "type": kind, "source": kind }));
    }
    mounts.push(json!({ "destination": "/prog.py", "type": "bind", "source": "/p", "options": ["ro"] }));
    // Source: what CRIU 4.2 wrote of a container of runc 1.3.
    frozen.mounts = [
        (328, 400, 5, 0x8c, "/", "/sys/firmware", 0x20_0001, None),
        (326, 395, 5, 0x87, "/null", "/proc/keys", 0x100_0002, Some("/dev/null")),
        (327, 395, 5, 0x87, "/null", "/proc/kcore", 0x100_0002, Some("/dev/null")),
        (325, 395, 5, 0x8c, "/", "/proc/scsi", 0x20_0001, None),
        (324, 395, 1, 0x86, "/sys", "/proc/sys", 0x20_000f, None),
        (300, 395, 1, 0x86, "/bus", "/proc/bus", 0x20_000f, None),
        (402, 393, 5, 0x4d, "/prog.py", "/prog.py", 0x28_0001, Some("/prog.py")),
        (401, 393, 5, 0x8b, "/", "/run", 0x100_0002, None),
        (400, 393, 2, 0x8a, "/", "/sys", 0x20_000f, None),
        (399, 396, 14, 0x83, "/", "/dev/mqueue", 0x20_000e, None),
        (398, 396, 5, 0x89, "/", "/dev/shm", 0x20_000e, None),
        (397, 396, 6, 0x88, "/", "/dev/pts", 0x20_000a, None),
        (396, 393, 5, 0x87, "/", "/dev", 0x100_0002, None),
        (395, 393, 1, 0x86, "/", "/proc", 0x20_000e, None),
        (393, 298, 17, 0x68, "/", "/", 0x20_0000, None),
    ]
    .map(|(id, parent, fstype, root_dev, root, mountpoint, flags, key)| FrozenMount {
        parent,
        root_dev,
        root: root.into(),
        ..mount(id, mountpoint, fstype, flags, key)
    })
    .into();
    assert_eq!(run(&frozen, &spec, &host()).map(|plan| plan.external_mounts.len()), Ok(2));
}

#[test]
fn a_mount_that_passes_mounts_on_to_the_node_is_refused() {
    refused("Bidirectional", |_, spec| spec["mounts"][3]["options"] = json!(["rbind", "rshared", "rw"]));
    allowed(|_, spec| spec["mounts"][3]["options"] = json!(["rbind", "rslave", "rw"]));
}

#[test]
fn hooks_are_refused_and_empty_lists_of_them_are_not() {
    refused("OCI hooks (prestart, poststop)", |_, spec| {
        let hook = json!([{ "path": "/bin/true" }]);
        spec["hooks"] = json!({ "prestart": hook, "poststop": hook, "poststart": [] });
    });
    allowed(|_, spec| spec["hooks"] = json!({ "createRuntime": [] }));
}

/// The hooks that `nvidia-ctk cdi generate` of version 1.19 writes into a specification.
fn nvidias_hooks(path: &str) -> Value {
    let hook = |args: &[&str]| json!({ "path": path, "args": args });
    json!([
        hook(&["nvidia-cdi-hook", "create-symlinks", "--link", "libcuda.so.1::/usr/lib/libcuda.so"]),
        hook(&["nvidia-cdi-hook", "enable-cuda-compat", "--host-driver-version=580.65.06"]),
        hook(&["nvidia-cdi-hook", "update-ldcache", "--folder", "/usr/lib"]),
        hook(&["nvidia-cdi-hook", "disable-device-node-modification"]),
    ])
}

#[test]
fn hooks_of_nvidias_toolkit_are_left_out_and_others_beside_them_are_not() {
    let hooks = || nvidias_hooks("/usr/local/nvidia/toolkit/nvidia-cdi-hook");
    allowed(|_, spec| spec["hooks"] = json!({ "createContainer": hooks() }));
    allowed(|_, spec| {
        let args = ["nvidia-ctk", "hook", "update-ldcache"];
        spec["hooks"] = json!({ "createContainer": [{ "path": "/usr/bin/nvidia-ctk", "args": args }] });
    });
    for (list, hooks) in [
        ("createRuntime", hooks()),
        ("prestart", hooks()),
        ("createContainer", nvidias_hooks("/bin/sh")),
        (
            "createContainer",
            json!([{ "path": "/usr/bin/nvidia-cdi-hook", "args": ["nvidia-cdi-hook", "other"] }]),
        ),
        ("createContainer", json!([{ "path": "/usr/bin/nvidia-cdi-hook" }])),
    ] {
        refused(&format!("OCI hooks ({list})"), |_, spec| spec["hooks"] = json!({ list: hooks }));
    }
}

#[test]
fn the_file_over_nvidias_parameters_comes_back_where_the_new_spec_has_it_too() {
    let scratch = FrozenMount { root_dev: 300, ..mount(20, "/run/nvidia-ctk-hook0a1b-2c", 5, 0, None) };
    let parameters = FrozenMount {
        parent: 2,
        root: "/nvct-params".into(),
        root_dev: 300,
        ..mount(21, "/proc/driver/nvidia/params", 5, 0, None)
    };
    let with = |frozen: &mut Frozen| frozen.mounts.extend([scratch.clone(), parameters.clone()]);
    let hook = || json!({ "createContainer": nvidias_hooks("/usr/bin/nvidia-cdi-hook") });
    allowed(|frozen, spec| {
        with(frozen);
        spec["hooks"] = hook();
    });
    let without = reasons(|frozen, _| with(frozen));
    assert!(
        without.len() == 2 && without.iter().all(|reason| reason.contains("new one has none")),
        "{without:?}"
    );
    // Other places and other files of it are none of the hook's.
    for (id, place, root) in [
        (0, "/run/nvidia-ctk-hook../x", "/"),
        (0, "/etc", "/"),
        (1, "/proc/kcore", "/nvct-params"),
        (1, "/proc/driver/nvidia/params", "/x"),
    ] {
        let all = reasons(|frozen, spec| {
            with(frozen);
            let at = frozen.mounts.len() - 2 + id;
            frozen.mounts[at].mountpoint = place.into();
            frozen.mounts[at].root = root.into();
            spec["hooks"] = hook();
        });
        assert!(!all.is_empty(), "{place} {root}");
    }
}

fn gpu(minor: u32, driver: &str) -> gpu::NodeGpu {
    let card = gpu::Card { uuid: format!("GPU-{minor}"), model: "H200".into(), driver: driver.into() };
    gpu::NodeGpu { major: 195, minor, card }
}

/// A container that had the GPU 0 and gets those of these numbers, the first of them under the old path too.
fn moved(cuda: bool, minors: &[u32], driver: &str) -> Result<Vec<(String, String)>, Vec<String>> {
    let (mut frozen, mut spec) = (frozen(), spec());
    let path = PathBuf::from("/dev/nvidia0");
    frozen.devices =
        vec![Device { path: path.clone(), block: false, major: 195, minor: 0, mode: 0o666, uid: 0, gid: 0 }];
    frozen.gpus = vec![Gpu { path, card: gpu(0, "nvidia 580.1").card }];
    frozen.cuda = cuda;
    let node = |path: String, minor: u32| json!({ "path": path, "type": "c", "major": 195, "minor": minor });
    let own = minors.iter().map(|minor| node(format!("/dev/nvidia{minor}"), *minor));
    let alias = minors.first().filter(|minor| **minor != 0).map(|minor| node("/dev/nvidia0".into(), *minor));
    spec["linux"]["devices"] = own.chain(alias).collect();
    let gpus = (0..4).map(|minor| gpu(minor, driver)).collect();
    let planned = run(&frozen, &spec, &Host { gpus, ..host() });
    planned.map(|plan| plan.gpu_map).map_err(|refused| refused.0.iter().map(ToString::to_string).collect())
}

#[test]
fn what_was_on_one_gpu_goes_to_the_one_in_its_place() {
    let pair = |old: &str, new: &str| (old.to_owned(), new.to_owned());
    assert_eq!(moved(true, &[3], "nvidia 580.1"), Ok(vec![pair("GPU-0", "GPU-3")]));
    assert_eq!(moved(true, &[0], "nvidia 580.1"), Ok(vec![]), "the same one needs no map");
    assert_eq!(moved(false, &[3], "nvidia 580.1"), Ok(vec![]), "nothing was on it");
    let other = moved(true, &[3], "nvidia 580.2").unwrap_err();
    assert!(
        other.len() == 1 && other[0].contains("was nvidia 580.1 when frozen and is nvidia 580.2"),
        "{other:?}"
    );
}

#[test]
fn a_driver_that_cannot_move_it_is_named() {
    let (mut frozen, mut spec) = (frozen(), spec());
    let path = PathBuf::from("/dev/nvidia0");
    frozen.devices =
        vec![Device { path: path.clone(), block: false, major: 195, minor: 0, mode: 0o666, uid: 0, gid: 0 }];
    frozen.gpus = vec![Gpu { path, card: gpu(0, "nvidia 570.124").card }];
    frozen.cuda = true;
    spec["linux"]["devices"] = json!([{ "path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 2 }]);
    let host = Host { gpus: vec![gpu(2, "nvidia 570.124")], ..host() };
    let error = run(&frozen, &spec, &host).unwrap_err().to_string();
    assert!(error.contains("GPU-0 is GPU-2 now") && error.contains("use driver 580 or later"), "{error}");
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
