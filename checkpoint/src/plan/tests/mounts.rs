// SPDX-License-Identifier: Apache-2.0
//! Mounts: what must be the same, what is set apart, and what is added.

use super::*;

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
