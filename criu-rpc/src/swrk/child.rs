// SPDX-License-Identifier: Apache-2.0
//! What happens between fork and exec.
//!
//! Invariant: after the fork nothing is allocated and no lock is taken; there are only system calls.

use std::{io, os::fd::RawFd, ptr};

use libc::c_char;

use super::SpawnError;

/// What the child does, in this order, and what it reports if it fails there.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Parent = 1,
    Place,
    CgroupNamespace,
    Keyring,
    Groups,
    Descriptors,
    Signals,
    Exec,
}

impl Step {
    pub(super) fn describe(number: i32) -> &'static str {
        match number {
            1 => "ask to end with its parent",
            2 => "be placed",
            3 => "make a cgroup namespace",
            4 => "make a session keyring",
            5 => "drop its supplementary groups",
            6 => "arrange its descriptors",
            7 => "unblock signals",
            _ => "run CRIU",
        }
    }
}

/// Everything that the child needs, made before the fork: after it nothing may allocate.
pub(super) struct Child<'a> {
    pub(super) arguments: &'a [*const c_char],
    pub(super) environment: &'a [*const c_char],
    /// What becomes 0, 1, 2, ...; each number is above all targets.
    pub(super) sources: &'a [RawFd],
    pub(super) unshare_cgroup_namespace: bool,
    /// Where the parent's word comes that it may go on; its end means that it is not to run.
    pub(super) waits: RawFd,
    /// The parent's end of that, closed here so that its end can be seen.
    pub(super) gate: RawFd,
    pub(super) report: RawFd,
}

type Failure = (Step, Option<i32>);

impl Child<'_> {
    /// The child's pid; the child itself does not return from here.
    pub(super) fn fork(&self) -> Result<i32, SpawnError> {
        // SAFETY: the child only makes system calls through `become_criu` and then ends; it takes no
        // lock and allocates nothing, so the state of this process's other threads does not matter.
        match unsafe { libc::fork() } {
            -1 => Err(SpawnError::Fork { source: io::Error::last_os_error() }),
            0 => self.become_criu(),
            pid => Ok(pid),
        }
    }

    /// Only async-signal-safe calls from here on.
    fn become_criu(&self) -> ! {
        let (step, errno) = self.prepare().map_or_else(|failure| failure, |()| self.exec());
        let mut report = [0u8; 8];
        let (first, second) = report.split_at_mut(4);
        first.copy_from_slice(&(step as i32).to_ne_bytes());
        second.copy_from_slice(&errno.unwrap_or_default().to_ne_bytes());
        // SAFETY: `report` is 8 bytes long. Should the write fail, the parent takes the exit for CRIU's.
        unsafe { libc::write(self.report, report.as_ptr().cast(), report.len()) };
        // SAFETY: ends the process without running anything of the parent's.
        unsafe { libc::_exit(127) }
    }

    fn prepare(&self) -> Result<(), Failure> {
        Self::end_with_parent()?;
        self.wait_for_word()?;
        if self.unshare_cgroup_namespace {
            // SAFETY: no memory is passed; the child has one thread.
            check(Step::CgroupNamespace, unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } == 0)?;
        }
        Self::leave_keyring()?;
        Self::drop_groups()?;
        self.arrange_descriptors()?;
        Self::unblock_signals()
    }

    /// A CRIU whose parent was killed would go on with processes that are killed as well, and may wait for ever for one that
    /// it has seized. A parent that has ended before this says no word. What CRIU forks does not inherit it.
    fn end_with_parent() -> Result<(), Failure> {
        // SAFETY: no memory is passed.
        check(Step::Parent, unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == 0)
    }

    fn wait_for_word(&self) -> Result<(), Failure> {
        // SAFETY: no memory is passed; the child has no use for this end.
        unsafe { libc::close(self.gate) };
        let mut word = 0u8;
        loop {
            // SAFETY: the buffer is one byte long.
            let read = unsafe { libc::read(self.waits, ptr::from_mut(&mut word).cast(), 1) };
            if read != -1 || errno() != Some(libc::EINTR) {
                return check(Step::Place, read == 1);
            }
        }
    }

    /// CRIU restores no keyrings: what it has, the restored processes have. Where the kernel has none, or
    /// a filter forbids them, they have none either.
    fn leave_keyring() -> Result<(), Failure> {
        let anonymous = ptr::null::<c_char>();
        let join = libc::c_long::from(libc::KEYCTL_JOIN_SESSION_KEYRING);
        // SAFETY: a null name asks for an anonymous keyring.
        let result = unsafe { libc::syscall(libc::SYS_keyctl, join, anonymous) };
        check(Step::Keyring, result != -1 || matches!(errno(), Some(libc::ENOSYS | libc::EPERM)))
    }

    /// CRIU calls setgroups only for images that hold groups (CRIU 4.2 criu/cr-restore.c,
    /// `rst_prep_creds_args`): without this the restored processes could have ours.
    fn drop_groups() -> Result<(), Failure> {
        let none = ptr::null::<libc::gid_t>();
        // SAFETY: no group is read. The plain system call, because the C library's function wants to
        // change all threads.
        let result = unsafe { libc::syscall(libc::SYS_setgroups, 0, none) };
        check(Step::Groups, result == 0 || errno() == Some(libc::EPERM))
    }

    fn arrange_descriptors(&self) -> Result<(), Failure> {
        for (target, source) in (0..).zip(self.sources) {
            // SAFETY: no memory is passed. The target belongs to nobody in the child: what it was is
            // either moved above the targets or not meant for CRIU.
            check(Step::Descriptors, unsafe { libc::dup2(*source, target) } == target)?;
        }
        let first = libc::c_long::try_from(self.sources.len()).unwrap_or(libc::c_long::MAX);
        let last = libc::c_long::from(u32::MAX);
        let flags = libc::c_long::from(libc::CLOSE_RANGE_CLOEXEC);
        // SAFETY: no memory is passed; nothing is closed before CRIU runs.
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
        check(Step::Descriptors, result == 0)
    }

    fn unblock_signals() -> Result<(), Failure> {
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: initialises the set.
        unsafe { libc::sigemptyset(none.as_mut_ptr()) };
        // SAFETY: the set is initialised; the old one is not asked for.
        let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
        check(Step::Signals, result == 0)
    }

    /// Returns only if it failed.
    fn exec(&self) -> Failure {
        if let Some(program) = self.arguments.first() {
            let (arguments, environment) = (self.arguments.as_ptr(), self.environment.as_ptr());
            // SAFETY: all three point to strings and lists that end in null and live in `spawn`.
            unsafe { libc::execve(*program, arguments, environment) };
        }
        (Step::Exec, errno())
    }
}

fn check(step: Step, success: bool) -> Result<(), Failure> {
    if success { Ok(()) } else { Err((step, errno())) }
}

fn errno() -> Option<i32> {
    io::Error::last_os_error().raw_os_error()
}
