// SPDX-License-Identifier: Apache-2.0
//! The memory of a container that was restored lazily, while it is still on its way: the pager, a process of its own,
//! and its keeper, a thread here that ends with it.
//!
//! ```text
//!  Filling ── all memory is there, or nobody is left to want it ──▶ Filled
//!     ├────── the pager has died, or given up ──▶ Died: the container is killed
//!     └────── CRIU has failed before anything ran ──▶ Abandoned
//! ```
//!
//! The keeper has copies of the processes' userfaultfds: as long as it has, a process that waits for a page goes on
//! waiting, whatever becomes of the pager. It lets go only when the container is dead.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::checkpoint::fault_orders::FaultOrders;
use ::pager::{SOCKET, Told, hear, send_setup};
use log::{debug, error, info, warn};
use rustix::fs::{MemfdFlags, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::container::Container;
use crate::error::TaskError;
use crate::source::Source;
use crate::state::State;
use crate::waiting_pager::WaitingPager;

/// How long a pager may take to see that nobody is left to want memory.
const END: Duration = Duration::from_secs(2);

/// How long a killed container may take to be dead.
const DEATH: Duration = Duration::from_secs(10);

/// Where the memory of a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Some of it is on its way.
    Filling,
    /// All is there.
    Filled,
    /// It will never come; why.
    Died(String),
    /// Nor will it, because the restore has failed for another reason.
    Abandoned,
}

/// A container's pager.
#[derive(Debug)]
pub(crate) struct Filling {
    memory: watch::Sender<Memory>,
    /// Its process.
    pidfd: OwnedFd,
    /// Its restore has failed: nobody needs to be told of its end.
    unwanted: AtomicBool,
}

/// A pager's life.
pub(crate) fn pager() -> ExitCode {
    std::io::stdin().as_fd().try_clone_to_owned().map_or(ExitCode::FAILURE, ::pager::run)
}

/// A pager whose restore is not known to hold yet; ended on drop unless kept.
pub(crate) struct Started {
    filling: Arc<Filling>,
    kept: bool,
}

impl Started {
    /// Has `pager` begin with `threads` threads; CRIU will find it in its work directory `work`.
    ///
    /// # Errors
    /// When the socket or a process cannot be made.
    pub(crate) fn start(
        container: &Arc<Container>,
        source: &Source,
        pager: WaitingPager,
        work: &OwnedFd,
        threads: usize,
    ) -> Result<Self, TaskError> {
        let listener =
            listener(work).map_err(TaskError::io::<rustix::io::Errno>("make the socket for lazy pages"))?;
        let begin = |pager: WaitingPager| {
            let record = Record::of(source, &pager);
            let wanted = record.wanted.as_ref().map(AsFd::as_fd);
            send_setup(&pager.socket, listener.as_fd(), source.checkpoint.lock(), threads, wanted)
                .map(|()| (pager, record))
        };
        let (pager, record) = match begin(pager) {
            Ok(begun) => begun,
            Err(e) => {
                warn!("the pager died before it was needed ({e}); another one is started");
                begin(source.pager()?).map_err(TaskError::io("set the pager up"))?
            }
        };
        let WaitingPager { socket: ours, pidfd, .. } = pager;
        let filling = Arc::new(Filling {
            memory: watch::Sender::new(Memory::Filling),
            pidfd,
            unwanted: AtomicBool::new(false),
        });
        let started = Self { filling: filling.clone(), kept: false };
        let (container, runtime) = (container.clone(), Handle::current());
        let keeper = std::thread::Builder::new().name("keeper".into());
        let kept = keeper.spawn(move || {
            if keep(&filling, &container, &ours, &runtime) {
                record.keep();
            }
        });
        kept.map_err(TaskError::io("start the pager's keeper"))?;
        Ok(started)
    }

    /// The restore holds: the pager works until all memory is there.
    ///
    /// # Errors
    /// When it has died already.
    pub(crate) fn keep(mut self, container: &Container) -> Result<(), Lost> {
        // First, so that a pager that dies just now finds whom to kill.
        container.set_filling(Some(self.filling.clone()));
        if let Some(lost) = self.lost() {
            container.set_filling(None);
            return Err(lost);
        }
        self.kept = true;
        Ok(())
    }

    /// Why the pager has ended, if it has.
    pub(crate) fn lost(&self) -> Option<Lost> {
        match &*self.filling.memory.borrow() {
            Memory::Died(reason) => Some(Lost(reason.clone())),
            Memory::Filling | Memory::Filled | Memory::Abandoned => None,
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.kept {
            self.filling.unwanted.store(true, Ordering::SeqCst);
            self.filling.kill();
        }
    }
}

/// A container's memory will never come.
#[derive(Debug, thiserror::Error)]
#[error("{0}; not all memory of the container was there yet, so it was killed")]
pub(crate) struct Lost(String);

impl Filling {
    fn kill(&self) {
        // Gone already is as good.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits until all memory is there.
    ///
    /// # Errors
    /// When it never will be.
    pub(crate) async fn filled(&self) -> Result<(), Lost> {
        let mut memory = self.memory.subscribe();
        // The sender lives in `self`.
        match memory.wait_for(|memory| *memory != Memory::Filling).await.as_deref() {
            Ok(Memory::Died(reason)) => Err(Lost(reason.clone())),
            Ok(Memory::Filling | Memory::Filled | Memory::Abandoned) | Err(_) => Ok(()),
        }
    }

    /// The container is dead: waits for the pager's end, and helps it along when it does not come.
    pub(crate) async fn end(&self) {
        self.unwanted.store(true, Ordering::SeqCst);
        if tokio::time::timeout(END, self.filled()).await.is_err() {
            warn!("the pager goes on though nobody is left to want memory; it is killed");
            self.kill();
        }
    }
}

/// The order in which the pages of a checkpoint are waited for, where it is not known from an earlier restore: to be written
/// into memory, for the pager has no time for a disk.
struct Record {
    checkpoint: String,
    container: String,
    wanted: Option<File>,
}

impl Record {
    fn of(source: &Source, pager: &WaitingPager) -> Self {
        let file = || rustix::fs::memfd_create("fault-order", MemfdFlags::CLOEXEC).ok();
        let wanted = if pager.knows_order { None } else { file().map(File::from) };
        Self { checkpoint: source.name(), container: source.container.clone(), wanted }
    }

    /// The pager has written what there was to write.
    fn keep(self) {
        let Some(mut file) = self.wanted else { return };
        let mut order = Vec::new();
        let kept =
            file.rewind().and_then(|()| file.read_to_end(&mut order)).and_then(|length| match length {
                0 => Ok(()),
                _ => FaultOrders::default().keep(&self.checkpoint, &self.container, &order),
            });
        if let Err(e) = kept {
            debug!("the order of faults is not kept: {e}");
        }
    }
}

/// `lazy-pages.socket` in `work`, listening: CRIU may connect before the pager is ready. By descriptor, for paths of
/// bundles are longer than the name of a socket may be.
fn listener(work: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", work.as_raw_fd());
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    listen(&listener, 1)?;
    Ok(listener)
}

/// The keeper's life; whether all memory came.
fn keep(filling: &Arc<Filling>, container: &Arc<Container>, pager: &OwnedFd, runtime: &Handle) -> bool {
    let mut held = HashMap::new();
    let mut reason = "the pager, which brings the container's memory, has died".to_owned();
    loop {
        match hear(pager) {
            Ok(Some(Told::Hold(id, uffd))) => drop(held.insert(id, uffd)),
            Ok(Some(Told::Release(id))) => drop(held.remove(&id)),
            Ok(Some(Told::Filled(figures))) => {
                info!(
                    container = container.id.as_str(), bytes = figures.bytes, faults = figures.faults,
                    fill_ms = figures.micros / 1000;
                    "all memory is there"
                );
                filling.memory.send_replace(Memory::Filled);
                return true;
            }
            // CRIU has failed, and its error is the one to tell.
            Ok(Some(Told::Abandoned)) => {
                filling.memory.send_replace(Memory::Abandoned);
                return false;
            }
            Ok(Some(Told::Failed(why))) => {
                reason = format!("the pager, which brings the container's memory, has given up: {why}");
                // Its end may take as long as the disk that failed.
                break;
            }
            Ok(None) => break,
            Err(e) => {
                reason = format!("the pager, which brings the container's memory, cannot be heard: {e}");
                break;
            }
        }
    }
    filling.memory.send_replace(Memory::Died(reason.clone()));
    if !filling.unwanted.load(Ordering::SeqCst) {
        runtime.block_on(kill(filling, container, &Lost(reason)));
    }
    // Only now, when nobody can go on.
    drop(held);
    false
}

/// Ends a container that cannot go on, and says why where its user looks. One whose restore fails is not ended by this:
/// it may start normally.
async fn kill(filling: &Arc<Filling>, container: &Container, lost: &Lost) {
    container.restoring.abort();
    let is_its_own = || container.filling().is_some_and(|its| Arc::ptr_eq(&its, filling));
    let killed = is_its_own() && container.init.signal(Signal::KILL).is_ok();
    {
        let _verb = container.verb.lock().await;
        if !is_its_own() || (!killed && container.init.signal(Signal::KILL).is_err()) {
            return;
        }
        error!("container {} is killed: {lost}", container.id);
        say(&container.init.stdio.stderr, &container.init.stdio.stdout, lost);
        if let Err(e) = container.oci.kill_all(9).await {
            debug!("nothing left to kill in container {}: {e}", container.id);
        }
        if container.init.state() == State::Paused
            && let Err(e) = container.oci.resume().await
        {
            warn!("container {} stays frozen and cannot die: {e}", container.id);
        }
    }
    if tokio::time::timeout(DEATH, container.init.wait()).await.is_err() {
        warn!("container {} does not die", container.id);
    }
}

/// A line in the container's own log.
fn say(stderr: &str, stdout: &str, lost: &Lost) {
    let fifo = if stderr.is_empty() { stdout } else { stderr };
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(fifo) = rustix::fs::open(Path::new(fifo), flags, rustix::fs::Mode::empty()) else { return };
    // Nobody reads it, or it is full.
    let _ = writeln!(File::from(fifo), "thaw: {lost}");
}
