// SPDX-License-Identifier: Apache-2.0
//! One restore: the loop that listens to CRIU, to all processes and to the fill threads.
//!
//! ```text
//! waiting for CRIU ──▶ collecting userfaultfds ── mark ──▶ filling ──▶ filled
//!        └──────────────────────┴── CRIU or the keeper is gone: abandoned
//! ```
//!
//! Faults are served in every state, and before anything else.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use criu_rpc::image::ImagesDir;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::fault_order::FaultOrder;
use crate::fill::Fill;
use crate::image::{Images, ImagesError};
use crate::keeper::{Figures, Told, tell};
use crate::pages::Pages;
use crate::protocol::{ProtocolError, Said, listen};
use crate::setup::{Saved, Setup};
use crate::space::AddressSpace;
use crate::task::{CopyError, Stopped, Task};

/// What epoll calls the sources that are no process; those are [`FIRST`] and up.
const CRIU: u32 = 0;
const NEWS: u32 = 1;
const KEEPER: u32 = 2;
const FIRST: u32 = 3;

/// How long a fault waits that could not be served because its process changes its mappings.
const AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000 };

/// Why the memory could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The images are of no use.
    #[error("the images cannot be read")]
    Images(#[from] ImagesError),
    /// CRIU does not keep to the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// CRIU names a process that is not in the images.
    #[error("CRIU restores process {0}, which is not in the images")]
    Stranger(u32),
    /// CRIU is gone before all mappings were there, or the keeper is.
    #[error("the restore was given up")]
    Abandoned,
    /// A page cannot be put where it belongs.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The kernel refuses something that it never should.
    #[error("cannot {what}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn kernel<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ServeError {
    move |source| ServeError::Kernel { what, source: source.into() }
}

/// A pager that knows its images and has no restore yet. While it waits it maps what is in the page cache.
#[derive(Debug)]
pub struct Ready {
    images: Images,
    pages: Arc<Pages>,
    /// The restore has begun: the processors are no longer idle.
    begun: Arc<AtomicBool>,
}

impl Ready {
    /// Reads the images, and begins to read ahead.
    ///
    /// # Errors
    /// When the images are of no use, or the kernel has no thread.
    pub fn new(saved: Saved) -> Result<Self, ServeError> {
        let dir = ImagesDir::open(saved.images);
        crate::ahead::ask_for_small(&dir)?;
        let mut images = Images::read(&dir)?;
        if let Some(file) = &saved.order {
            FaultOrder::read(file).apply(&mut images.spaces);
        }
        let pages = Arc::new(std::mem::take(&mut images.pages));
        let begun = Arc::new(AtomicBool::new(false));
        let busy = begun.clone();
        let busy = move || busy.load(Ordering::Relaxed);
        crate::ahead::start(pages.clone(), &images.at_once, images.spaces.values(), busy)
            .map_err(kernel("start reading ahead"))?;
        Ok(Self { images, pages, begun })
    }

    /// Serves one restore until all memory is there, or all processes have ended.
    ///
    /// # Errors
    /// Why not. The processes must be killed then: what they still wait for will not come.
    pub fn serve(self, setup: Setup) -> Result<Figures, ServeError> {
        self.begun.store(true, Ordering::Relaxed);
        let bytes = self.images.spaces.values().map(AddressSpace::owed).sum();
        let mut server = Server {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(kernel("make an epoll"))?,
            keeper: setup.keeper,
            fill: Arc::new(Fill::new(self.pages.clone()).map_err(kernel("make an eventfd"))?),
            pages: self.pages,
            spaces: self.images.spaces,
            connection: None,
            restored: None,
            tasks: HashMap::new(),
            again: HashMap::new(),
            next: FIRST,
            order: FaultOrder::default(),
            figures: Figures { bytes, ..Figures::default() },
        };
        let figures = server.run(&setup.listener, setup.threads)?;
        if let Some(file) = &setup.wanted {
            // All memory is there; the next restore goes without.
            let _ = server.order.write(file);
        }
        Ok(figures)
    }
}

struct Server {
    epoll: OwnedFd,
    keeper: OwnedFd,
    fill: Arc<Fill>,
    pages: Arc<Pages>,
    /// Of processes that CRIU has not named yet.
    spaces: HashMap<u32, AddressSpace>,
    connection: Option<OwnedFd>,
    /// When CRIU has set its mark.
    restored: Option<Instant>,
    tasks: HashMap<u32, Arc<Task>>,
    /// Faults that could not be served yet.
    again: HashMap<u32, Vec<u64>>,
    next: u32,
    /// In which order pages were waited for.
    order: FaultOrder,
    figures: Figures,
}

impl Server {
    fn run(&mut self, listener: &OwnedFd, threads: usize) -> Result<Figures, ServeError> {
        self.watch(listener, CRIU)?;
        self.watch(&self.fill.news, NEWS)?;
        self.watch(&self.keeper, KEEPER)?;
        let mut ready = Vec::with_capacity(64);
        loop {
            ready.clear();
            let timeout = if self.again.is_empty() { None } else { Some(&AGAIN) };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(kernel("wait for events")(e)),
            }
            let ids = ready.iter().map(|event| u32::try_from(event.data.u64()).unwrap_or(u32::MAX));
            // Faults first.
            let (processes, others): (Vec<u32>, Vec<u32>) = ids.partition(|id| *id >= FIRST);
            let waiting: Vec<u32> = self.again.keys().copied().filter(|id| !processes.contains(id)).collect();
            for id in processes.into_iter().chain(waiting) {
                self.process(id)?;
            }
            for other in others {
                match other {
                    CRIU => self.criu(listener, threads)?,
                    NEWS => self.fill.done()?.into_iter().for_each(|id| self.release(id)),
                    _ => self.keeper_gone()?,
                }
            }
            if let Some(since) = self.restored.filter(|_| self.tasks.is_empty()) {
                self.figures.micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                return Ok(self.figures);
            }
        }
    }

    fn watch(&self, source: impl AsFd, id: u32) -> Result<(), ServeError> {
        let data = epoll::EventData::new_u64(id.into());
        epoll::add(&self.epoll, source, data, epoll::EventFlags::IN).map_err(kernel("watch a descriptor"))
    }

    /// The keeper never speaks after its setup: it has ended.
    fn keeper_gone(&mut self) -> Result<(), ServeError> {
        let _ = epoll::delete(&self.epoll, &self.keeper);
        // A shim that dies does not take its container along; whoever cleans up behind it does.
        if self.restored.is_some() { Ok(()) } else { Err(ServeError::Abandoned) }
    }

    /// CRIU connects, or says something.
    fn criu(&mut self, listener: &OwnedFd, threads: usize) -> Result<(), ServeError> {
        let Some(connection) = &self.connection else {
            let flags = rustix::net::SocketFlags::CLOEXEC;
            let connection = rustix::net::accept_with(listener, flags).map_err(kernel("accept CRIU"))?;
            let _ = epoll::delete(&self.epoll, listener);
            self.watch(&connection, CRIU)?;
            self.connection = Some(connection);
            return Ok(());
        };
        match listen(connection)? {
            Said::Process { pid, uffd } => {
                let space = self.spaces.remove(&pid).ok_or(ServeError::Stranger(pid))?;
                self.add(Task::new(uffd.into(), space))
            }
            Said::Dead => Ok(()),
            Said::Restored => {
                self.restored = Some(Instant::now());
                for (id, task) in &self.tasks {
                    task.set_registered();
                    self.fill.add(*id, task.clone());
                }
                self.fill.start(threads).map_err(kernel("start the fill threads"))
            }
            Said::Closed => {
                let _ = epoll::delete(&self.epoll, connection);
                if self.restored.is_some() { Ok(()) } else { Err(ServeError::Abandoned) }
            }
        }
    }

    /// Takes a process into care. The keeper has it first.
    fn add(&mut self, task: Task) -> Result<(), ServeError> {
        let id = self.next;
        self.next = self.next.checked_add(1).ok_or_else(|| kernel("count the processes")(Errno::OVERFLOW))?;
        let copy = rustix::io::dup(&task.uffd).map_err(kernel("copy a userfaultfd"))?;
        self.tell(&Told::Hold(id, copy));
        self.watch(&task.uffd, id)?;
        let task = Arc::new(task);
        if self.restored.is_some() {
            self.fill.add(id, task.clone());
        }
        self.tasks.insert(id, task);
        Ok(())
    }

    /// All its memory is there, or it has ended.
    fn release(&mut self, id: u32) {
        let Some(task) = self.tasks.remove(&id) else { return };
        self.again.remove(&id);
        self.figures.faults += task.faults.load(Ordering::Relaxed);
        let _ = epoll::delete(&self.epoll, &task.uffd);
        self.tell(&Told::Release(id));
    }

    /// The keeper may have died, which changes nothing for the processes.
    fn tell(&self, told: &Told) {
        let _ = tell(&self.keeper, told);
    }

    /// Serves a process that has something to say.
    fn process(&mut self, id: u32) -> Result<(), ServeError> {
        let Some(task) = self.tasks.get(&id).cloned() else { return Ok(()) };
        let (pages, again) = (self.pages.clone(), self.again.remove(&id).unwrap_or_default());
        let mut adopted = Ok(());
        let served = task.serve(&pages, again, |child| {
            // Each is tried, whatever has become of the one before: the keeper is to have as many as can be.
            if let Err(error) = self.add(child) {
                adopted = Err(error);
            }
        });
        adopted?;
        match served {
            Ok(served) => {
                if !served.again.is_empty() {
                    self.again.insert(id, served.again);
                }
                served.needed.into_iter().for_each(|source| self.order.note(source));
                Ok(())
            }
            // The fill threads find out likewise.
            Err(Stopped::Ended) => {
                let _ = epoll::delete(&self.epoll, &task.uffd);
                Ok(())
            }
            Err(Stopped::Failed(error)) => Err(error.into()),
            Err(Stopped::Busy | Stopped::Starved) => Ok(()),
        }
    }
}
