// SPDX-License-Identifier: Apache-2.0
//! What the images of a frozen container say, as the restore plan wants it. Reads through `criu-rpc`, judges
//! nothing.

use ::checkpoint::container_dir::ContainerDir;
use ::checkpoint::plan::{Capabilities, Claims, Frozen, FrozenMount, Lsm, OwnNamespaces};
use criu_rpc::image::{
    Core, Ids, ImagesDir, Inventory, LoadError, Mountpoints, Netns, Pidns, Pstree, Seccomp, Task,
};

/// The images of one container, read once.
#[derive(Debug)]
pub(crate) struct Images {
    /// What the plan judges.
    pub(crate) frozen: Frozen,
    /// `utsns-N.img`, when the container had a UTS namespace of its own or its pod's.
    pub(crate) utsns: Option<String>,
    /// The directory.
    pub(crate) dir: ImagesDir,
}

/// Images of things that CRIU would restore with its own rights and nothing here judges: a security policy,
/// credentials of old versions that override those judged, user namespaces, binary formats of the host.
const FOREIGN: [&str; 4] = ["apparmor.", "creds-", "userns-", "binfmt-misc"];

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
    /// The images hold no process.
    #[error("its images hold no process; the checkpoint is damaged: make it again")]
    NoProcess,
}

impl Images {
    /// Reads the small images of `container`; the pages are not touched.
    ///
    /// # Errors
    /// When one is missing, damaged or beyond its bounds.
    pub(crate) fn read(container: &ContainerDir) -> Result<Self, ImagesError> {
        let dir = ImagesDir::open(container.images_dir().try_clone_to_owned()?);
        let names = dir.names()?;
        if let Some(foreign) = names.iter().find(|name| FOREIGN.iter().any(|stem| name.starts_with(stem))) {
            return Err(ImagesError::Foreign(foreign.clone()));
        }
        let inventory: Inventory = dir.load("inventory.img")?;
        let pstree: Pstree = dir.load("pstree.img")?;
        let root = pstree.tasks.first().ok_or(ImagesError::NoProcess)?;
        let ids: Ids = dir.load(&format!("ids-{}.img", root.pid))?;
        let of_namespace = |stem: &str, id: Option<u32>| {
            id.map(|id| format!("{stem}-{id}.img")).filter(|name| names.contains(name))
        };

        let mountpoints = of_namespace("mountpoints", ids.mnt_ns).unwrap_or_default();
        let mounts: Mountpoints = dir.load(&mountpoints)?;
        if let Some(mount) = mounts.mounts().iter().find(|mount| mount.with_plugin) {
            return Err(ImagesError::Foreign(format!("a plugin's mount at {}", mount.mountpoint.display())));
        }
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
            mounts: mounts.mounts().iter().map(frozen_mount).collect(),
            network_key,
            pid_key,
            own: own_namespaces(&ids, inventory.root_ids().as_ref()),
            threads: claims(&dir, &pstree.tasks, &names)?,
            stdio: container.stdio().map_err(|e| ImagesError::Dump(crate::error::full(&e)))?,
            terminal,
            lsm: match inventory.lsm() {
                criu_rpc::image::Lsm::None => Lsm::None,
                criu_rpc::image::Lsm::Selinux => Lsm::Selinux,
                criu_rpc::image::Lsm::Apparmor => Lsm::Apparmor,
            },
        };
        Ok(Self { frozen, utsns: of_namespace("utsns", ids.uts_ns), dir })
    }
}

fn frozen_mount(mount: &criu_rpc::image::Mount) -> FrozenMount {
    FrozenMount {
        id: mount.mnt_id,
        parent: mount.parent_mnt_id,
        mountpoint: mount.mountpoint.display().to_string(),
        root: mount.root.to_string_lossy().into_owned(),
        fstype: mount.fstype,
        flags: mount.flags,
        ext_key: mount.ext_key.as_ref().map(|key| key.to_string_lossy().into_owned()),
    }
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
        let others = task.threads.iter().filter(|tid| **tid != task.pid);
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
        no_new_privs: creds.no_new_privs,
        seccomp_mode,
        lsm_profile,
    })
}
