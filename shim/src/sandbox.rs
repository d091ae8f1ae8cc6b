// SPDX-License-Identifier: Apache-2.0
//! What is looked up in the sandbox's namespaces.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `look` in the namespace of `kind` at `path`, in a thread that enters it and ends with it.
///
/// # Errors
/// Those of entering, and those of `look`.
pub(crate) fn within<T: Send + 'static>(
    path: &Path,
    kind: LinkNameSpaceType,
    look: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let thread = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(kind))?;
        look()
    });
    thread.join().map_err(|_| io::Error::other("the thread in the sandbox's namespace panicked"))?
}

/// Host and domain name of a UTS namespace.
///
/// # Errors
/// When it cannot be entered.
pub(crate) fn hostname(namespace: &Path) -> io::Result<(String, String)> {
    within(namespace, LinkNameSpaceType::HostNameAndNISDomainName, || {
        let uname = rustix::system::uname();
        let text = |name: &std::ffi::CStr| {
            std::ffi::OsStr::from_bytes(name.to_bytes()).to_string_lossy().into_owned()
        };
        Ok((text(uname.nodename()), text(uname.domainname())))
    })
}
