// SPDX-License-Identifier: Apache-2.0
//! A PID namespace that the containers of a pod share. What runs in it already must not take a number that a container
//! still to be restored had: CRIU could not make that process again.
//!
//! The kernel gives the number after the last one that it gave, which `/proc/sys/kernel/ns_last_pid` says and sets, for
//! the PID namespace of whoever opens it. So before the first container is restored it is set to the highest number that
//! any container of the checkpoint holds; a process of ours in that namespace does it.
//!
//! Source: Linux Documentation/admin-guide/sysctl/kernel.rst, ns_last_pid.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use ::checkpoint::store::CheckpointDir;
use criu_rpc::image::{ImagesDir, Pstree};
use log::{debug, warn};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The first argument of the process that does it; the second is the number.
pub(crate) const COMMAND: &str = "raise-last-pid";
const FILE: &str = "/proc/sys/kernel/ns_last_pid";

/// Keeps the numbers that the containers of `checkpoint` hold from being given to others in `namespace`. A restore that
/// fails for want of this says so in CRIU's words, so what fails here is logged.
pub(crate) fn keep_free(checkpoint: &CheckpointDir, namespace: &Path) {
    let highest = checkpoint.manifest().containers.keys().filter_map(|name| highest(checkpoint, name)).max();
    if let Some(highest) = highest
        && let Err(e) = raise(namespace, highest)
    {
        warn!("cannot keep the numbers of processes up to {highest} free in {}: {e}", namespace.display());
    }
}

/// The highest number of a container's processes, threads, groups and sessions.
fn highest(checkpoint: &CheckpointDir, name: &str) -> Option<u32> {
    let load = || {
        let dir = checkpoint.container(name)?;
        let images = ImagesDir::open(dir.images_dir().try_clone_to_owned()?);
        Ok::<Pstree, Box<dyn std::error::Error>>(images.load("pstree.img")?)
    };
    match load() {
        Ok(pstree) => {
            let numbers = pstree.tasks.iter().flat_map(|task| {
                [task.pid, task.pgid, task.sid].into_iter().chain(task.threads.iter().copied())
            });
            numbers.max()
        }
        Err(e) => {
            // Its own restore will say it.
            debug!("container {name} of the checkpoint is not looked at: {e}");
            None
        }
    }
}

/// Runs [`run`] in the namespace and returns when that has ended; the thread that enters it ends with it.
fn raise(namespace: &Path, number: u32) -> io::Result<()> {
    let namespace = rustix::fs::open(namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let done = std::thread::spawn(move || {
        // Children of this thread are made there.
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
        let mut command = Command::new("/proc/self/exe");
        command.args([COMMAND, &number.to_string()]).env_clear();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut said = String::new();
        // The reaper has its exit; the end of its output is enough.
        if let Some(stderr) = child.stderr.take() {
            stderr.take(4096).read_to_string(&mut said)?;
        }
        if said.is_empty() { Ok(()) } else { Err(io::Error::other(said.trim().to_owned())) }
    });
    done.join().map_err(|_| io::Error::other("the thread that does it panicked"))?
}

/// The life of that process: raises the last number to `number`, if it is not above that already.
pub(crate) fn run(number: Option<&str>) -> ExitCode {
    let raised = || {
        let number: u32 = number.unwrap_or_default().parse().map_err(io::Error::other)?;
        let last: u32 = std::fs::read_to_string(FILE)?.trim().parse().map_err(io::Error::other)?;
        if last < number { std::fs::write(FILE, number.to_string()) } else { Ok(()) }
    };
    match raised() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{FILE}: {e}");
            ExitCode::FAILURE
        }
    }
}
