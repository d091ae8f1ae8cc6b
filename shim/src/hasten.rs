// SPDX-License-Identifier: Apache-2.0
//! What the kernel waits for all processors for, waited for while there is other work. Each such wait takes some 10 ms, and
//! CRIU and nobody else would wait.
//!
//! - A process is moved into a cgroup. The kernel waits at the first move in a while, not at those that follow it closely.
//!   Source: linux `kernel/cgroup/cgroup.c`, `cgroup_attach_lock`; `kernel/rcu/sync.c`.
//! - CRIU stops what it has restored at a hardware breakpoint. The kernel waits at the first event of a process that anybody
//!   on the node observes, not at the next while there is one.
//!   Source: linux `kernel/events/core.c`, `account_event`.
//!
//! It is only a matter of time: what fails here changes nothing.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use log::debug;

use crate::cgroup;

/// Source: linux `include/uapi/linux/perf_event.h`: `PERF_TYPE_SOFTWARE`, `PERF_ATTR_SIZE_VER0`, `PERF_COUNT_SW_DUMMY`, the
/// bit `disabled`, `PERF_FLAG_FD_CLOEXEC`.
const SOFTWARE: u32 = 1;
const SIZE: u32 = 64;
const DUMMY: u64 = 9;
const DISABLED: u64 = 1;
const CLOEXEC: libc::c_ulong = 8;

/// An event that counts nothing; the kernel does not wait for the next one as long as this is there.
#[derive(Debug)]
pub(crate) struct Hastened(#[expect(dead_code)] std::thread::JoinHandle<Option<OwnedFd>>);

impl Hastened {
    /// Begins; `None` where there is no thread for it.
    pub(crate) fn begin() -> Option<Self> {
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        drop(named("cgroup").spawn(|| {
            if let Err(e) = cgroup::stay() {
                debug!("the cgroup is not made ready: {e}");
            }
        }));
        let event = || {
            let event = dummy_event();
            event.inspect_err(|e| debug!("breakpoints are not made ready: {e}")).ok()
        };
        named("breakpoints").spawn(event).ok().map(Self)
    }
}

/// An event of this thread that never comes.
fn dummy_event() -> std::io::Result<OwnedFd> {
    let mut attributes = [0_u64; SIZE as usize / 8];
    let kind = u64::from_ne_bytes(
        [SOFTWARE.to_ne_bytes(), SIZE.to_ne_bytes()].concat().try_into().unwrap_or_default(),
    );
    // type and size, config, ..., flags
    (attributes[0], attributes[1], attributes[5]) = (kind, DUMMY, DISABLED);
    let (this_thread, any_processor, no_group) = (0, -1, -1);
    // SAFETY: the kernel reads the structure, whose length is in it, and makes a descriptor.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw mut attributes,
            this_thread,
            any_processor,
            no_group,
            CLOEXEC,
        )
    };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made it, for nobody else.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_had_or_refused_and_never_misunderstood() {
        // EINVAL or E2BIG would say that the structure is wrong.
        match dummy_event() {
            Ok(_) => {}
            Err(e) => {
                assert!(matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::ENOSYS)), "{e}");
            }
        }
    }
}
