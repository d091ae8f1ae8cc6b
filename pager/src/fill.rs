// SPDX-License-Identifier: Apache-2.0
//! The threads that copy what nobody has waited for yet, segment by segment, from all processes in turns.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::buffer::Buffer;
use crate::pages::Pages;
use crate::task::{CopyError, Step, Stopped, Task};

/// What one copy moves where somebody has just waited, bytes. A fault waits for the copies under way: this takes some
/// 30 µs.
const SEGMENT: u64 = 64 << 10;
/// How long after CRIU's mark the processors and the processes are left to CRIU's last steps and to the program's first:
/// copies would only be in their way, even with the lowest priority, but for those of pages that are known to be waited for.
const GRACE: Duration = Duration::from_millis(2);
/// How long a process is left alone that changes its mappings.
const BUSY: Duration = Duration::from_micros(50);
/// How long a process is left alone whose container has no memory left: the kernel kills something meanwhile.
const STARVED: Duration = Duration::from_millis(10);

/// What the fill threads have to do, and what came of it.
#[derive(Debug)]
pub(crate) struct Fill {
    pages: Arc<Pages>,
    work: Mutex<Work>,
    more: Condvar,
    /// Readable when something is in `done` or `failed`.
    pub(crate) news: rustix::fd::OwnedFd,
}

#[derive(Debug, Default)]
struct Work {
    tasks: VecDeque<(u32, Arc<Task>)>,
    done: Vec<u32>,
    failed: Option<CopyError>,
}

impl Fill {
    pub(crate) fn new(pages: Arc<Pages>) -> Result<Self, Errno> {
        let news = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { pages, work: Mutex::default(), more: Condvar::new(), news })
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `threads` threads. They end with the process.
    pub(crate) fn start(self: &Arc<Self>, threads: usize) -> std::io::Result<()> {
        let grace = Instant::now() + GRACE;
        for _ in 0..threads.max(1) {
            let (fill, mut buffer) = (self.clone(), Buffer::new()?);
            std::thread::Builder::new().name("fill".into()).spawn(move || fill.run(grace, &mut buffer))?;
        }
        Ok(())
    }

    /// Adds a process whose mappings are all registered.
    pub(crate) fn add(&self, id: u32, task: Arc<Task>) {
        self.work().tasks.push_back((id, task));
        self.more.notify_all();
    }

    /// Which processes have all their memory, or have ended.
    ///
    /// # Errors
    /// When one cannot be filled.
    pub(crate) fn done(&self) -> Result<Vec<u32>, CopyError> {
        let _ = rustix::io::read(&self.news, &mut [0; 8]);
        let mut work = self.work();
        match work.failed.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut work.done)),
        }
    }

    /// The next process in turn; in the time of grace the next that is owed something known to be waited for.
    fn next(&self, grace: Instant) -> (u32, Arc<Task>) {
        let mut work = self.work();
        loop {
            let early = grace.saturating_duration_since(Instant::now());
            let wanted = |(_, task): &(u32, Arc<Task>)| early.is_zero() || task.owes_known();
            let at = work.tasks.iter().position(wanted);
            if let Some((id, task)) = at.and_then(|at| work.tasks.remove(at)) {
                work.tasks.push_back((id, task.clone()));
                return (id, task);
            }
            work = if early.is_zero() {
                self.more.wait(work).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.more.wait_timeout(work, early).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    fn run(&self, grace: Instant, buffer: &mut Buffer) {
        loop {
            let (id, task) = self.next(grace);
            match task.fill(&self.pages, buffer, SEGMENT) {
                Step::Filled => {}
                Step::Complete | Step::Stopped(Stopped::Ended) => self.finish(id, None),
                Step::Stopped(Stopped::Busy) => std::thread::sleep(BUSY),
                Step::Stopped(Stopped::Starved) => std::thread::sleep(STARVED),
                Step::Stopped(Stopped::Failed(error)) => self.finish(id, Some(error)),
            }
        }
    }

    /// Takes a process off the list.
    fn finish(&self, id: u32, error: Option<CopyError>) {
        let mut work = self.work();
        work.tasks.retain(|(other, _)| *other != id);
        work.done.push(id);
        work.failed = work.failed.take().or(error);
        drop(work);
        // It can only fail when the counter is full, and then it is readable.
        let _ = rustix::io::write(&self.news, &1u64.to_ne_bytes());
    }
}
