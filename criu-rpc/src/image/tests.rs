// SPDX-License-Identifier: Apache-2.0
//! The views on images of the real CRIU, and on those images after damage of every kind.

use std::{fs, fs::File, path::Path};

use proptest::prelude::*;

use super::*;

const CHECKPOINT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/checkpoint");

fn checkpoint() -> ImagesDir {
    ImagesDir::open(File::open(CHECKPOINT).unwrap().into())
}

#[test]
fn every_image_of_criu_is_written_back_as_it_was() {
    let images = checkpoint();
    let names = images.names().unwrap();
    assert!(names.len() > 10);
    for name in names {
        let bytes = fs::read(Path::new(CHECKPOINT).join(&name)).unwrap();
        assert_eq!(images.read(&name).unwrap().to_bytes(), bytes, "{name}");
    }
}

#[test]
fn the_processes_of_a_checkpoint_are_read() {
    let images = checkpoint();
    let tree: Pstree = images.load("pstree.img").unwrap();
    let [task] = &tree.tasks[..] else { panic!("{tree:?}") };
    assert_eq!((task.pid, task.ppid, &task.threads[..]), (1, 0, &[1, 8][..]));

    // CAP_SYS_CHROOT (18) was dropped from containerd's defaults.
    let seccomp: Seccomp = images.load("seccomp.img").unwrap();
    let main: Core = images.load("core-1.img").unwrap();
    let defaults = 0xa804_25fb;
    for tid in &task.threads {
        let core: Core = images.load(&format!("core-{tid}.img")).unwrap();
        assert!(seccomp.confines(&main, &core), "{tid}");
        let creds = core.creds.unwrap();
        assert_eq!((creds.uid, creds.fsgid), (0, 0));
        assert_eq!(creds.cap_bnd, defaults & !(1 << 18));
        assert_eq!((creds.cap_eff, creds.cap_prm, creds.cap_amb), (creds.cap_bnd, creds.cap_bnd, 0));
        assert!(creds.no_new_privs);
    }
    assert_eq!((main.comm, main.oom_score_adj), ("python3".into(), Some(1)));
}

#[test]
fn the_namespaces_of_a_checkpoint_are_read() {
    let images = checkpoint();
    let ids: Ids = images.load("ids-1.img").unwrap();
    assert_eq!((ids.net_ns, ids.uts_ns, ids.mnt_ns), (Some(10), Some(12), Some(13)));
    assert_eq!(images.load::<Netns>("netns-10.img").unwrap().ext_key, Some("extRootNetNS".into()));
    assert_eq!(images.load::<Utsns>("utsns-12.img").unwrap().nodename(), "pod-old");
    assert!(images.load::<Timens>("timens-0.img").unwrap().boottime.as_secs() > 0);
    let inventory: Inventory = images.load("inventory.img").unwrap();
    assert!(!inventory.tcp_close() && !inventory.skips_network_lock());
    assert_eq!((inventory.lsm(), inventory.plugins()), (Lsm::None, Some(&[][..])));
}

#[test]
fn the_mounts_of_a_checkpoint_are_read_and_changed() {
    let mut mounts: Mountpoints = checkpoint().load("mountpoints-13.img").unwrap();
    let find = |mounts: &Mountpoints, path: &str| {
        mounts.mounts().iter().find(|mount| mount.mountpoint == Path::new(path)).unwrap().clone()
    };
    assert_eq!(find(&mounts, "/prog.py").ext_key, Some("/prog.py".into()));
    assert_eq!((find(&mounts, "/proc").fstype, find(&mounts, "/dev").fstype), (1, 5));
    let dev = find(&mounts, "/dev");
    let added = mounts.add_external(Path::new("/dev/nvidia0"), 0).unwrap();
    assert_eq!(find(&mounts, "/dev/nvidia0").parent_mnt_id, dev.mnt_id);
    let before = mounts.mounts().len();
    let removed = mounts.remove(dev.mnt_id);
    assert!(removed >= 4, "/dev, pts, shm, mqueue, nvidia0");
    assert!(mounts.mounts().iter().all(|mount| mount.mnt_id != added));
    let again = Mountpoints::from_image(mounts.into_image()).unwrap();
    assert_eq!(again.mounts().len(), before - removed);
}

#[test]
fn the_sockets_of_a_checkpoint_move_to_a_new_address() {
    let mut files: Files = checkpoint().load("files.img").unwrap();
    let own = |files: &Files| {
        let mut own: Vec<String> =
            files.inet_sockets().iter().map(|socket| format!("{} {}", socket.src, socket.src_port)).collect();
        own.retain(|own| !own.ends_with(" 0"));
        own.sort();
        own.dedup();
        own
    };
    assert!(own(&files).contains(&"10.77.0.5 8080".to_owned()));
    let established = files.inet_sockets().iter().filter(|socket| socket.state == 1 && socket.proto == 6);
    assert_eq!(established.filter(|socket| socket.src == socket.dst).count(), 2);
    let map = [("10.77.0.5", "10.77.9.9"), ("fd00:77::5", "fd00:77::9")];
    let map = map.map(|(old, new)| (old.parse().unwrap(), new.parse().unwrap()));
    assert_eq!(files.rewrite_addresses(&map), Ok(6));
    let own = own(&files);
    for want in
        ["0.0.0.0 8081", "10.77.9.9 8080", "10.77.9.9 9090", "::ffff:10.77.9.9 8083", "fd00:77::9 8082"]
    {
        assert!(own.contains(&want.to_owned()), "{want} in {own:?}");
    }
    assert!(files.reg_files().iter().any(|file| file.name == Path::new("/prog.py") && file.size.is_some()));
}

/// Makes every view of the bytes and uses what can be changed; whether one of them took them.
fn view_all(bytes: &[u8]) -> bool {
    let Ok(image) = ImageFile::parse(bytes) else { return false };
    let mut taken = false;
    if let Ok(mut view) = Inventory::from_image(image.clone()) {
        view.skip_network_lock();
        view.remove_plugin("cuda_plugin");
        taken |= Inventory::from_image(view.into_image()).is_ok();
    }
    if let Ok(mut view) = Mountpoints::from_image(image.clone()) {
        let ids: Vec<u32> = view.mounts().iter().map(|mount| mount.mnt_id).collect();
        let _ = view.add_external(std::path::Path::new("/dev/added"), 0);
        for id in ids.into_iter().take(3) {
            view.remove(id);
        }
        taken |= Mountpoints::from_image(view.into_image()).is_ok();
    }
    if let Ok(mut view) = Files::from_image(image.clone()) {
        let map = [("0.0.0.0".parse().unwrap(), "10.0.0.1".parse().unwrap())];
        view.rewrite_addresses(&map).unwrap();
        taken |= Files::from_image(view.into_image()).is_ok();
    }
    if let Ok(mut view) = Utsns::from_image(image.clone()) {
        view.set_nodename("n");
        taken |= Utsns::from_image(view.into_image()).is_ok();
    }
    taken
        | Core::from_image(image.clone()).is_ok()
        | Ids::from_image(image.clone()).is_ok()
        | Netns::from_image(image.clone()).is_ok()
        | Pidns::from_image(image.clone()).is_ok()
        | Pstree::from_image(image.clone()).is_ok()
        | Seccomp::from_image(image.clone()).is_ok()
        | Timens::from_image(image).is_ok()
}

/// The images of a real checkpoint.
fn fixtures() -> Vec<Vec<u8>> {
    let images = checkpoint();
    let names = images.names().unwrap();
    names.iter().map(|name| fs::read(Path::new(CHECKPOINT).join(name)).unwrap()).collect()
}

#[test]
fn every_image_that_is_cut_off_is_refused_or_shorter_by_whole_entries() {
    for bytes in fixtures() {
        let whole = ImageFile::parse(&bytes).unwrap().entries().len();
        for length in 0..bytes.len() {
            let cut = bytes.get(..length).unwrap();
            if let Ok(image) = ImageFile::parse(cut) {
                assert!(image.entries().len() < whole);
            }
            view_all(cut);
        }
    }
}

proptest! {
    #[test]
    fn no_changed_byte_makes_a_view_panic(
        image in prop::sample::select(fixtures()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = image;
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        view_all(&bytes);
    }

    #[test]
    fn no_entry_makes_a_view_panic(
        image in prop::sample::select(fixtures()),
        entries in prop::collection::vec(any::<Vec<u8>>(), 0..3),
    ) {
        let mut bytes = image;
        for entry in entries {
            bytes.extend_from_slice(&u32::try_from(entry.len()).unwrap().to_le_bytes());
            bytes.extend_from_slice(&entry);
        }
        view_all(&bytes);
    }
}
