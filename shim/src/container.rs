// SPDX-License-Identifier: Apache-2.0
//! One container: its bundle, its init, its execs. One verb at a time; state and exits can always be read.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cgroups_rs::fs::Cgroup;
use containerd_shim_protos::types::mount::Mount;
use oci_spec::runtime::{LinuxNamespaceType, Process as OciProcess, Spec};

use crate::error::TaskError;
use crate::filling::Filling;
use crate::oci::Oci;
use crate::oom::Kills;
use crate::prepared::Prepared;
use crate::process::Process;
use crate::restoring::Restoring;
use crate::rootfs::{Rootfs, Way};

/// A container of this pod.
pub(crate) struct Container {
    /// containerd's id.
    pub(crate) id: String,
    /// containerd's bundle directory.
    pub(crate) bundle: PathBuf,
    /// The OCI spec as containerd wrote it.
    pub(crate) spec: Spec,
    /// The OCI runtime, for this container.
    pub(crate) oci: Oci,
    /// Owner of stdio pipes: uid, gid.
    pub(crate) io_owner: (u32, u32),
    /// The mounts of the snapshot, as containerd gave them.
    pub(crate) snapshot: Vec<Mount>,
    /// The first process.
    pub(crate) init: Process,
    /// Held while a verb changes the container; reading state does not need it.
    pub(crate) verb: tokio::sync::Mutex<()>,
    /// The restore that Create has found to hold.
    pub(crate) prepared: Option<Arc<Prepared>>,
    /// What the kernel killed for memory.
    pub(crate) kills: Kills,
    /// CRIU while it restores.
    pub(crate) restoring: Restoring,
    /// The pager of a container that was restored lazily.
    pub(crate) filling: Mutex<Option<Arc<Filling>>>,
    /// The mounted root file system; unmounted at delete.
    pub(crate) rootfs: Mutex<Option<Rootfs>>,
    /// Execs that containerd has not deleted.
    pub(crate) execs: Mutex<HashMap<String, Arc<Exec>>>,
    /// Kept from the start on, because the pid cannot be asked once it is gone.
    pub(crate) cgroup: Mutex<Option<Cgroup>>,
    /// Its directories, see [`crate::cgroup::paths`]; kept for the same reason.
    pub(crate) cgroups: OnceLock<BTreeMap<String, PathBuf>>,
}

impl Container {
    /// The init, or the exec named `exec_id`.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub(crate) fn process(self: &Arc<Self>, exec_id: &str) -> Result<ProcessRef, TaskError> {
        if exec_id.is_empty() {
            return Ok(ProcessRef::Init(self.clone()));
        }
        self.exec(exec_id).map(ProcessRef::Exec)
    }

    /// The exec named `exec_id`.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub(crate) fn exec(&self, exec_id: &str) -> Result<Arc<Exec>, TaskError> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        let exec = execs.get(exec_id).cloned();
        exec.ok_or_else(|| TaskError::NotFound(format!("exec {exec_id} of container {}", self.id)))
    }

    /// Adds an exec.
    ///
    /// # Errors
    /// [`TaskError::AlreadyExists`].
    pub(crate) fn add_exec(&self, exec: Exec) -> Result<(), TaskError> {
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        let id = exec.process.exec_id.clone();
        if execs.contains_key(&id) {
            return Err(TaskError::AlreadyExists(format!("exec {id} of container {}", self.id)));
        }
        execs.insert(id, Arc::new(exec));
        Ok(())
    }

    /// Forgets an exec.
    pub(crate) fn remove_exec(&self, exec_id: &str) {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(exec_id);
    }

    /// All execs that containerd has not deleted.
    pub(crate) fn execs(&self) -> Vec<Arc<Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Whether the spec gives it a pid namespace of its own, so that the kernel ends all with the init.
    pub(crate) fn owns_pid_namespace(&self) -> bool {
        let namespaces = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        namespaces.is_some_and(|all| {
            all.iter().any(|ns| ns.typ() == LinuxNamespaceType::Pid && ns.path().is_none())
        })
    }

    /// Remembers the cgroup of the running init for stats after its exit.
    pub(crate) fn set_cgroup(&self, cgroup: Cgroup) {
        *self.cgroup.lock().unwrap_or_else(PoisonError::into_inner) = Some(cgroup);
    }

    /// The cgroup, once the container has been started.
    pub(crate) fn cgroup(&self) -> Option<Cgroup> {
        self.cgroup.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A process that containerd added to the container.
pub(crate) struct Exec {
    /// What to run.
    pub(crate) spec: OciProcess,
    /// Its life.
    pub(crate) process: Process,
}

/// The init or an exec of a container.
pub(crate) enum ProcessRef {
    /// The container's first process.
    Init(Arc<Container>),
    /// An exec.
    Exec(Arc<Exec>),
}

impl std::ops::Deref for ProcessRef {
    type Target = Process;

    fn deref(&self) -> &Process {
        match self {
            Self::Init(container) => &container.init,
            Self::Exec(exec) => &exec.process,
        }
    }
}

impl Container {
    /// Unmounts the root file system and mounts it as containerd gave it, without a checkpoint's layer.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub(crate) async fn remount(&self) -> Result<(), TaskError> {
        self.unmount().await;
        let fresh = Rootfs::mount(&self.snapshot, self.bundle.join("rootfs"), None).await?;
        *self.rootfs.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
        Ok(())
    }

    /// The restore that it lives on; none for one that was to be restored and started normally instead.
    pub(crate) fn restored(&self) -> Option<&Arc<Prepared>> {
        self.prepared.as_ref().filter(|_| self.layer().is_some())
    }

    /// How the checkpoint's writable layer came into its root file system, if there is one.
    pub(crate) fn layer(&self) -> Option<Way> {
        self.rootfs.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Rootfs::layer)
    }

    /// Leaves the layer there: the restore holds.
    pub(crate) fn keep_layer(&self) {
        if let Some(rootfs) = self.rootfs.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            rootfs.keep_layer();
        }
    }

    /// Notes the pager of a restore that holds.
    pub(crate) fn set_filling(&self, filling: Option<Arc<Filling>>) {
        *self.filling.lock().unwrap_or_else(PoisonError::into_inner) = filling;
    }

    /// The pager, also when it has done its work.
    pub(crate) fn filling(&self) -> Option<Arc<Filling>> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Unmounts the root file system. The kernel writes all of its file system to the disk first, and everybody else in
    /// the pod is served meanwhile.
    pub(crate) async fn unmount(&self) {
        let rootfs = self.rootfs.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(e) = tokio::task::spawn_blocking(move || drop(rootfs)).await {
            log::warn!("the root file system of {} is not unmounted: {e}", self.id);
        }
    }
}
