// SPDX-License-Identifier: Apache-2.0
//! What the images of a frozen container say, as the restore plan wants it. Reads through `criu-rpc`, and refuses
//! images of what the plan does not know; whether the rest fits the new container is the plan's matter.

use std::net::{IpAddr, SocketAddr};

use ::checkpoint::container_dir::ContainerDir;
use ::checkpoint::devices;
use ::checkpoint::plan::{
    Capabilities, Claims, Frozen, FrozenMount, FrozenNetwork, FrozenVolumes, Lsm, OwnNamespaces,
    PacketSocket, SHM, Socket, volume_of,
};
use criu_rpc::image::{
    Core, Files, Ids, ImagesDir, InetSocket, Inventory, LoadError, Mountpoints, Netns, Pidns, Pstree,
    Seccomp, Task,
};

/// The images of one container, read once.
#[derive(Debug)]
pub(crate) struct Images {
    /// What the plan judges.
    pub(crate) frozen: Frozen,
    /// `utsns-N.img`, when the container had a UTS namespace of its own or its pod's.
    pub(crate) utsns: Option<String>,
    /// `mountpoints-N.img`.
    pub(crate) mountpoints: String,
    /// The directory.
    pub(crate) dir: ImagesDir,
}

impl Images {
    /// Lets go of what only the plan needed: the source lives as long as the container. Where /dev is and what lies in
    /// it says which nodes are to be replaced; in mounts from outside files are looked for again at the start.
    pub(crate) fn forget_judged(&mut self) {
        self.frozen.mounts.retain(|mount| {
            mount.ext_key.is_some() || mount.mountpoint == "/dev" || mount.mountpoint.starts_with("/dev/")
        });
        self.frozen.mounts.shrink_to_fit();
        (self.frozen.threads, self.frozen.seccomp) = (Vec::new(), None);
    }
}

/// Images of things that CRIU would restore with its own rights and nothing here judges: a security policy,
/// credentials of old versions that override those judged, binary formats of the host.
const FOREIGN: [&str; 3] = ["apparmor.", "creds-", "binfmt-misc"];

/// Why the images cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImagesError {
    /// One of them does not read.
    #[error("its images cannot be read: {0}; the checkpoint is damaged: make it again")]
    Load(#[from] LoadError),
    /// The images directory itself.
    #[error("its images cannot be opened: {0}")]
    Open(#[from] std::io::Error),
    /// A file beside the images.
    #[error("{0}")]
    Dump(String),
    /// One that CRIU would act on, and that no container of this runtime has.
    #[error("its images hold {0}, which a pod's container never has; it cannot be restored")]
    Foreign(String),
    /// Users of its own: CRIU would map them, and cannot put them into the new pod's network namespace.
    #[error("it was frozen in a user namespace, which cannot be restored: leave out `hostUsers: false`")]
    UserNamespace,
    /// CRIU would restore into the mount namespace of the host.
    #[error("its images give it no mount namespace of its own; it cannot be restored")]
    NoMountNamespace,
    /// A process in other namespaces than the first one.
    #[error(
        "its process {pid} was in namespaces of its own, which cannot be restored: the container must not run programs that make namespaces (containers in it, sandboxes of browsers)"
    )]
    Nested {
        /// The process, in the container's PID namespace.
        pid: u32,
    },
    /// The images hold no process.
    #[error("its images hold no process; the checkpoint is damaged: make it again")]
    NoProcess,
}

impl Images {
    /// Reads the small images of `container`, whose pod had these addresses; the pages are not touched.
    ///
    /// # Errors
    /// When one is missing, damaged or beyond its bounds.
    pub(crate) fn read(container: &ContainerDir, addresses: &[IpAddr]) -> Result<Self, ImagesError> {
        let dir = ImagesDir::open(container.images_dir().try_clone_to_owned()?);
        let names = dir.names()?;
        if names.iter().any(|name| name.starts_with("userns-")) {
            return Err(ImagesError::UserNamespace);
        }
        if let Some(foreign) = names.iter().find(|name| FOREIGN.iter().any(|stem| name.starts_with(stem))) {
            return Err(ImagesError::Foreign(foreign.clone()));
        }
        let inventory: Inventory = dir.load("inventory.img")?;
        let pstree: Pstree = dir.load("pstree.img")?;
        let root = pstree.tasks.first().ok_or(ImagesError::NoProcess)?;
        let ids: Ids = dir.load(&format!("ids-{}.img", root.pid))?;
        own_mount_namespace(&ids, inventory.root_ids().as_ref())?;
        one_set_of_namespaces(&dir, &names, &ids, &pstree.tasks)?;
        if let Some(foreign) = names.iter().find(|name| is_of_other_namespace(name, &ids)) {
            return Err(ImagesError::Foreign(foreign.clone()));
        }
        let of_namespace = |stem: &str, id: Option<u32>| {
            id.map(|id| format!("{stem}-{id}.img")).filter(|name| names.contains(name))
        };

        let mountpoints = of_namespace("mountpoints", ids.mnt_ns).unwrap_or_default();
        let mounts: Mountpoints = dir.load(&mountpoints)?;
        let key = |key: Option<std::ffi::OsString>| key.and_then(|key| key.into_string().ok());
        let network_key = match of_namespace("netns", ids.net_ns) {
            Some(name) => key(dir.load::<Netns>(&name)?.ext_key),
            None => None,
        };
        let pid_key = match of_namespace("pidns", ids.pid_ns) {
            Some(name) => key(dir.load::<Pidns>(&name)?.ext_key),
            None => None,
        };
        let spec = container.spec().map_err(|e| ImagesError::Dump(crate::error::full(&e)))?;
        let terminal =
            spec.process().as_ref().and_then(oci_spec::runtime::Process::terminal).unwrap_or(false);
        let frozen = Frozen {
            image: container.record().image.name.clone(),
            mounts: mounts.mounts().iter().map(frozen_mount).collect::<Result<_, _>>()?,
            network: network(container, &dir, addresses)?,
            gpus: container.gpus().map_err(|e| ImagesError::Dump(crate::error::full(&e)))?,
            cuda: inventory.plugins().is_some_and(|plugins| plugins.iter().any(|plugin| plugin == CUDA)),
            volumes: FrozenVolumes {
                shm: names.iter().any(|name| name == SHM),
                volumes: names.iter().filter_map(|name| volume_of(name)).map(str::to_owned).collect(),
            },
            devices: devices::of_spec(&spec),
            network_key,
            pid_key,
            own: own_namespaces(&ids, inventory.root_ids().as_ref()),
            seccomp: spec.linux().as_ref().and_then(|linux| linux.seccomp().clone()),
            threads: claims(&dir, &pstree.tasks, &names)?,
            stdio: container.stdio().map_err(|e| ImagesError::Dump(crate::error::full(&e)))?,
            terminal,
            lsm: match inventory.lsm() {
                criu_rpc::image::Lsm::None => Lsm::None,
                criu_rpc::image::Lsm::Selinux => Lsm::Selinux,
                criu_rpc::image::Lsm::Apparmor => Lsm::Apparmor,
            },
        };
        Ok(Self { frozen, utsns: of_namespace("utsns", ids.uts_ns), mountpoints, dir })
    }
}

/// CRIU makes a mount namespace only where that of the first process differs from the host's; otherwise its root
/// goes unused. Source: CRIU 4.2 criu/pstree.c, prepare_pstree_kobj_ids.
fn own_mount_namespace(ids: &Ids, host: Option<&Ids>) -> Result<(), ImagesError> {
    match (ids.mnt_ns, host.and_then(|host| host.mnt_ns)) {
        (Some(own), Some(host)) if own != host => Ok(()),
        _ => Err(ImagesError::NoMountNamespace),
    }
}

/// Only the namespaces of the first process are judged, so all must be in these. A task without an image (a dead one)
/// inherits them. Source: as above.
fn one_set_of_namespaces(
    dir: &ImagesDir,
    names: &[String],
    ids: &Ids,
    tasks: &[Task],
) -> Result<(), ImagesError> {
    for task in tasks {
        let name = format!("ids-{}.img", task.pid);
        if names.binary_search(&name).is_ok() && dir.load::<Ids>(&name)? != *ids {
            return Err(ImagesError::Nested { pid: task.pid });
        }
    }
    Ok(())
}

/// Whether it is the image of a namespace that is not the first process's. Source: CRIU 4.2 criu/image-desc.c.
fn is_of_other_namespace(name: &str, ids: &Ids) -> bool {
    let stems = [
        ("mountpoints-", ids.mnt_ns),
        ("netns-", ids.net_ns),
        ("utsns-", ids.uts_ns),
        ("ipcns-", ids.ipc_ns),
        ("pidns-", ids.pid_ns),
        ("timens-", ids.time_ns),
    ];
    let Some((stem, id)) = stems.into_iter().find(|(stem, _)| name.starts_with(stem)) else { return false };
    // `ipcns-shm-11.img`, `netns-ct-10.img`
    let number = name.strip_suffix(".img").and_then(|name| name.rsplit('-').next());
    let number = number.and_then(|number| number.parse::<u32>().ok());
    // The clocks of a container without a time namespace.
    let clocks = stem == "timens-" && number == Some(0);
    !clocks && (number.is_none() || number != id)
}

/// # Errors
/// When a plugin would mount it, or it does not say which flags its file system has: CRIU would guess them.
fn frozen_mount(mount: &criu_rpc::image::Mount) -> Result<FrozenMount, ImagesError> {
    let foreign = |what| ImagesError::Foreign(format!("{what} at {}", mount.mountpoint.display()));
    if mount.with_plugin {
        return Err(foreign("a plugin's mount"));
    }
    if mount.sb_flags.is_none() {
        return Err(foreign("a mount without the flags of its file system"));
    }
    Ok(FrozenMount {
        id: mount.mnt_id,
        parent: mount.parent_mnt_id,
        mountpoint: mount.mountpoint.display().to_string(),
        root: mount.root.to_string_lossy().into_owned(),
        fstype: mount.fstype,
        flags: mount.flags,
        root_dev: mount.root_dev,
        deleted: mount.deleted,
        ext_key: mount.ext_key.as_ref().map(|key| key.to_string_lossy().into_owned()),
    })
}

/// The image of all files: regular ones, sockets and all others.
pub(crate) const FILES: &str = "files.img";

/// CRIU's plugin for NVIDIA's GPUs, by its name in the inventory. Source: CRIU 4.2 plugins/cuda/cuda_plugin.c.
const CUDA: &str = "cuda_plugin";
/// The kind of a raw socket. Source: Linux include/linux/net.h, SOCK_RAW.
const RAW: u32 = 3;

fn network(
    container: &ContainerDir,
    dir: &ImagesDir,
    addresses: &[IpAddr],
) -> Result<FrozenNetwork, ImagesError> {
    let files: Files = dir.load(FILES)?;
    let noted = container.network().map_err(|e| ImagesError::Dump(crate::error::full(&e)))?;
    let packet = |socket: &criu_rpc::image::PacketSocket| PacketSocket {
        interfaces: socket.interfaces.clone(),
        device: socket.bound_dev.as_deref().map(lossy),
    };
    Ok(FrozenNetwork {
        addresses: addresses.to_vec(),
        sockets: files.inet_sockets().iter().map(socket).collect::<Result<_, _>>()?,
        packets: files.packet_sockets().iter().map(packet).collect(),
        interfaces: noted.interfaces.into_iter().map(|link| (link.index, link.name)).collect(),
    })
}

fn lossy(name: &std::ffi::OsStr) -> String {
    name.to_string_lossy().into_owned()
}

fn socket(socket: &InetSocket) -> Result<Socket, ImagesError> {
    let end = |address: IpAddr, port: u32| match u16::try_from(port) {
        Ok(port) => Ok(SocketAddr::new(address, port)),
        Err(_) => Err(ImagesError::Foreign(format!("a socket with the port {port}"))),
    };
    Ok(Socket {
        id: socket.id,
        proto: socket.proto,
        state: socket.state,
        own: end(socket.src, socket.src_port)?,
        peer: end(socket.dst, socket.dst_port)?,
        interface: socket.ifname.as_deref().map(lossy),
        device: socket.bound_dev.as_deref().map(lossy),
        raw: socket.kind == RAW,
    })
}

/// Which namespaces the container did not share with the host it was frozen on.
fn own_namespaces(ids: &Ids, host: Option<&Ids>) -> OwnNamespaces {
    let own = |id: fn(&Ids) -> Option<u32>| id(ids) != host.and_then(id);
    OwnNamespaces {
        network: own(|ids| ids.net_ns),
        pid: own(|ids| ids.pid_ns),
        ipc: own(|ids| ids.ipc_ns),
        uts: own(|ids| ids.uts_ns),
        user: own(|ids| ids.user_ns),
    }
}

/// What each thread of each task claims to be.
fn claims(dir: &ImagesDir, tasks: &[Task], names: &[String]) -> Result<Vec<Claims>, LoadError> {
    let seccomp = "seccomp.img";
    let seccomp: Option<Seccomp> =
        names.iter().any(|name| name == seccomp).then(|| dir.load(seccomp)).transpose()?;
    let mut all = Vec::new();
    for task in tasks {
        let main: Core = dir.load(&format!("core-{}.img", task.pid))?;
        // A dead one has no image but its own, and CRIU 4.2 notes an arbitrary number as its thread.
        let others = task.threads.iter().filter(|tid| main.creds.is_some() && **tid != task.pid);
        for tid in others {
            let core: Core = dir.load(&format!("core-{tid}.img"))?;
            // A filter that all threads share is noted with the main one only.
            let confined = seccomp.as_ref().is_some_and(|filters| filters.confines(&main, &core));
            let mode = if confined { main.seccomp_mode.max(core.seccomp_mode) } else { core.seccomp_mode };
            all.extend(claim(task.pid, *tid, &core, mode));
        }
        all.extend(claim(task.pid, task.pid, &main, main.seccomp_mode));
    }
    Ok(all)
}

/// A dead one claims nothing.
fn claim(pid: u32, tid: u32, core: &Core, seccomp_mode: u32) -> Option<Claims> {
    let creds = core.creds.as_ref()?;
    let lsm_profile = creds.lsm_profile.as_ref().map(|profile| profile.to_string_lossy().into_owned());
    Some(Claims {
        pid,
        tid,
        comm: core.comm.to_string_lossy().into_owned(),
        uids: [creds.uid, creds.euid, creds.suid, creds.fsuid],
        gids: [creds.gid, creds.egid, creds.sgid, creds.fsgid],
        groups: creds.groups.clone(),
        capabilities: Capabilities {
            inheritable: creds.cap_inh,
            permitted: creds.cap_prm,
            effective: creds.cap_eff,
            bounding: creds.cap_bnd,
            ambient: creds.cap_amb,
        },
        secure_bits: creds.secbits,
        no_new_privs: creds.no_new_privs,
        seccomp_mode,
        lsm_profile,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../criu-rpc/fixtures/checkpoint");

    fn images(path: &std::path::Path) -> ImagesDir {
        ImagesDir::open(std::fs::File::open(path).unwrap().into())
    }

    #[test]
    fn a_container_in_the_hosts_mount_namespace_is_refused() {
        let dir = images(FIXTURE.as_ref());
        let ids: Ids = dir.load("ids-1.img").unwrap();
        let host = dir.load::<Inventory>("inventory.img").unwrap().root_ids();
        assert!(own_mount_namespace(&ids, host.as_ref()).is_ok());
        let same = Ids { mnt_ns: host.unwrap().mnt_ns, ..ids };
        for (ids, host) in
            [(same, host), (ids, None), (Ids { mnt_ns: None, ..ids }, host), (ids, Some(Ids::default()))]
        {
            let result = own_mount_namespace(&ids, host.as_ref());
            assert!(matches!(result, Err(ImagesError::NoMountNamespace)), "{ids:?} {host:?}");
        }
    }

    #[test]
    fn a_process_in_other_namespaces_is_refused_and_a_dead_one_is_not() {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(format!("{FIXTURE}/ids-1.img"), copy.path().join("ids-7.img")).unwrap();
        let dir = images(copy.path());
        let names = dir.names().unwrap();
        let ids: Ids = dir.load("ids-7.img").unwrap();
        let task = |pid| Task { pid, ppid: 1, pgid: 1, sid: 1, threads: vec![pid] };
        assert!(one_set_of_namespaces(&dir, &names, &ids, &[task(7), task(8)]).is_ok());
        let other = Ids { net_ns: Some(99), ..ids };
        let result = one_set_of_namespaces(&dir, &names, &other, &[task(8), task(7)]);
        assert!(matches!(result, Err(ImagesError::Nested { pid: 7 })), "{result:?}");
    }

    #[test]
    fn images_of_other_namespaces_are_found() {
        let dir = images(FIXTURE.as_ref());
        let ids: Ids = dir.load("ids-1.img").unwrap();
        for name in dir.names().unwrap() {
            assert!(!is_of_other_namespace(&name, &ids), "{name}");
        }
        for name in [
            "mountpoints-99.img",
            "netns-9.img",
            "netns-ct-9.img",
            "utsns-1.img",
            "pidns-.img",
            "ipcns-shm-0.img",
            "timens-1.img",
        ] {
            assert!(is_of_other_namespace(name, &ids), "{name}");
        }
        assert!(is_of_other_namespace("netns-10.img", &Ids { net_ns: None, ..ids }));
    }

    #[test]
    fn a_mount_without_the_flags_of_its_file_system_is_refused() {
        let mounts: Mountpoints = images(FIXTURE.as_ref()).load("mountpoints-13.img").unwrap();
        let mut mount = mounts.mounts()[0].clone();
        assert_eq!(frozen_mount(&mount).unwrap().root_dev, 0x8c);
        mount.sb_flags = None;
        assert!(matches!(frozen_mount(&mount), Err(ImagesError::Foreign(_))));
    }
}
