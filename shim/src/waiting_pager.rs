// SPDX-License-Identifier: Apache-2.0
//! A pager before its restore. It is started as soon as there is a sandbox whose pod asks for a lazy restore: until the
//! container starts it has read the images, and mapped what of them is in memory.
//!
//! It ends when nobody holds its [`WaitingPager`] any more.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use ::checkpoint::container_dir::ContainerDir;
use ::checkpoint::fault_orders::FaultOrders;
use ::checkpoint::store::CheckpointDir;
use ::pager::send_saved;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::TaskError;

/// What the shim's program is called with to be a pager.
pub(crate) const COMMAND: &str = "pager";

/// A pager's process that has its images.
#[derive(Debug)]
pub(crate) struct WaitingPager {
    /// The keeper's end.
    pub(crate) socket: OwnedFd,
    pub(crate) pidfd: OwnedFd,
    /// `NAMESPACE/LINEAGE/ID`.
    checkpoint: String,
    /// It knows in which order pages were waited for.
    pub(crate) knows_order: bool,
}

impl WaitingPager {
    /// Starts one over the images of `container`.
    ///
    /// # Errors
    /// When the process cannot be made.
    pub(crate) fn start(
        checkpoint: &CheckpointDir,
        container: &str,
        dir: &ContainerDir,
    ) -> Result<Self, TaskError> {
        let failed = |what: &'static str| TaskError::io::<rustix::io::Errno>(what);
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(failed("make the pager's socket"))?;
        // The program may have been replaced on disk meanwhile: this one is meant. It is reaped like every child.
        let child = Command::new("/proc/self/exe")
            .arg0("thaw-pager")
            .arg(COMMAND)
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(TaskError::io("start the pager"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let pidfd = pidfd.map_err(failed("watch the pager"))?;
        // What CRIU opens may be a descriptor that only names the directory.
        let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let images = rustix::fs::openat(dir.images_dir(), ".", readable, Mode::empty());
        let images = images.map_err(failed("open the images"))?;
        let order = FaultOrders::default().find(&checkpoint.name(), container);
        send_saved(&socket, images.as_fd(), order.as_ref().map(AsFd::as_fd))
            .map_err(TaskError::io("give the pager its images"))?;
        Ok(Self { socket, pidfd, checkpoint: checkpoint.name(), knows_order: order.is_some() })
    }

    /// Whether it has the images of `checkpoint`.
    pub(crate) fn is_of(&self, checkpoint: &str) -> bool {
        self.checkpoint == checkpoint
    }
}

/// The waiting pagers of a pod, by the names of its containers.
#[derive(Debug, Default)]
pub(crate) struct WaitingPagers(Mutex<HashMap<String, Option<WaitingPager>>>);

impl WaitingPagers {
    /// Keeps one until its container is created, unless that has happened already.
    pub(crate) fn put(&self, container: &str, pager: WaitingPager) {
        let mut pagers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pagers.entry(container.to_owned()).or_insert(Some(pager));
    }

    /// The pager of a container that is created; `None` where there is none. It may be of another checkpoint.
    pub(crate) fn take(&self, container: &str) -> Option<WaitingPager> {
        let mut pagers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pagers.insert(container.to_owned(), None).flatten()
    }
}
