// SPDX-License-Identifier: Apache-2.0
//! `containerd-shim-thaw-v1`: one process per pod, between containerd and the OCI runtime.
//!
//! Ordinary containers are run by the OCI runtime (runc). A container whose pod names a checkpoint is not
//! started: it is restored from the checkpoint directory by CRIU, over its RPC, as this process's own child.
//!
//! Invariant: a container without `thaw.dev/` annotations gets what `containerd-shim-runc-v2` would give it.

use std::time::Duration;

mod abandoned;
mod adopt;
mod ahead;
mod any;
mod asker;
#[allow(unsafe_code)] // bpf(2)
mod bpf;
mod cgroup;
mod cgroup2;
mod checkpoint;
mod checkpoint_pod;
mod console;
mod container;
mod create;
mod cuda;
mod delete;
mod device_filter;
mod error;
mod events;
mod exec;
mod external;
mod figures;
mod filling;
mod freezer;
mod frozen;
#[allow(unsafe_code)] // perf_event_open
mod hasten;
#[allow(unsafe_code)] // mount_setattr, and a child in a user namespace
mod idmap;
mod implied;
mod inotify;
mod kill;
mod last_pid;
mod limits;
mod linked;
mod logging;
mod members;
#[allow(unsafe_code)] // the allocator's and madvise's calls, and the environment before there are threads
mod memory;
mod mountpoints;
mod network;
mod nodes;
mod notes;
mod oci;
mod old_log;
mod oom;
mod options;
mod overlay;
mod pod;
mod prepared;
mod process;
mod reaper;
mod reopen;
mod restore;
mod restoring;
mod rewrite;
mod rootfs;
mod running_log;
mod sandbox;
mod service;
#[allow(unsafe_code)] // a real-time signal from its number
mod signal;
mod source;
mod stand_in;
mod start;
mod state;
mod stats;
mod stats_v1;
mod stdio;
mod stopwatch;
#[allow(unsafe_code)] // shmctl, for which no library has a call
mod sysv_ipc;
mod task;
mod threads;
mod together;
mod unfreezable;
mod untar;
mod vfork;
mod volumes;
mod waiting_pager;

/// The name that containerd knows this runtime by in `-info` and in logs.
const RUNTIME_ID: &str = "io.containerd.thaw.v1";

/// How long an idle thread of the blocking pool lives: for ever. CRIU is forked by one of them, which is so the
/// parent of the restored init, and the kernel sends `PR_SET_PDEATHSIG` when a parent's *thread* ends.
const KEEP: Duration = Duration::from_secs(u32::MAX as u64);

/// How many verbs may block at a time; further ones wait for their turn. Each takes a thread, which then stays.
const BLOCKING: usize = 16;

/// One thread runs everything: a shim is idle nearly all its life and there is one per pod. What blocks
/// (mount, CRIU, image parsing) goes to the blocking pool.
fn main() -> std::process::ExitCode {
    if stand_in::is_called(cuda::PROGRAM) {
        eprintln!("{}: {}", cuda::PROGRAM, cuda::run());
        return std::process::ExitCode::FAILURE;
    }
    if stand_in::is_called(untar::PROGRAM) {
        return untar::run().map_or_else(
            |e| {
                eprintln!("{}: {e}", untar::PROGRAM);
                std::process::ExitCode::FAILURE
            },
            |()| std::process::ExitCode::SUCCESS,
        );
    }
    let first = std::env::args_os().nth(1);
    if first.as_ref().is_some_and(|argument| argument == idmap::HOLD) {
        idmap::hold();
        return std::process::ExitCode::SUCCESS;
    }
    if first.as_ref().is_some_and(|argument| argument == waiting_pager::COMMAND) {
        return filling::pager();
    }
    if first.as_ref().is_some_and(|argument| argument == ahead::COMMAND) {
        return ahead::read();
    }
    if first.as_ref().is_some_and(|argument| argument == last_pid::COMMAND) {
        return last_pid::run(std::env::args().nth(2).as_deref());
    }
    match supervise() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{RUNTIME_ID}: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Between containerd and the pod's containers, until the last is gone.
fn supervise() -> std::io::Result<()> {
    memory::clear_environment();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(KEEP)
        .max_blocking_threads(BLOCKING)
        .thread_stack_size(memory::STACK)
        .build()?;
    // Exits are reaped in `reaper`.
    let config = containerd_shim::Config { no_reaper: true, ..Default::default() };
    runtime.block_on(containerd_shim::asynchronous::run::<service::Service>(RUNTIME_ID, Some(config)));
    Ok(())
}
