// SPDX-License-Identifier: Apache-2.0
//! Serves the memory of a restored container while it runs already.
//!
//! CRIU restores with `lazy_pages`: it maps the memory and leaves it empty, and hands this library a userfaultfd of
//! each process. Whoever touches a page that is not there waits until it has been copied; behind that, fill threads
//! copy everything else.
//!
//! ```text
//!  CRIU ── pid + userfaultfd ──▶ serve ──▶ task (owed memory, gate) ◀── fill threads
//!                                  │            │
//!                               keeper       UFFDIO_COPY out of the mapped pages files
//! ```
//!
//! One pager serves one restore, in a process of its own: [`run`] is that process's life.

#[allow(unsafe_code)] // the priority at the disk, for which no library has a call
mod ahead;
#[allow(unsafe_code)] // mmap of a buffer
mod buffer;
mod fault_order;
mod fill;
mod image;
mod keeper;
mod late;
#[allow(unsafe_code)] // mmap of pages files
mod pages;
mod protocol;
mod serve;
mod setup;
mod space;
mod task;
#[allow(unsafe_code)] // ioctls
mod uffd;

pub use self::ahead::read_ahead;
pub use self::fault_order::FaultOrder;
pub use self::image::{Images, ImagesError};
pub use self::keeper::{Figures, Told, hear};
pub use self::pages::{Pages, PagesError};
pub use self::protocol::{ProtocolError, Said, listen};
pub use self::serve::{Ready, ServeError};
pub use self::setup::{Saved, Setup, send_saved, send_setup};
pub use self::space::{AddressSpace, Piece, Source};
pub use self::task::CopyError;

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use rustix::process::{Resource, getrlimit, setrlimit};

/// The name of the socket in CRIU's work directory. Source: CRIU 4.2 criu/uffd.c, LAZY_PAGES_SOCK_NAME.
pub const SOCKET: &str = "lazy-pages.socket";

/// Receives the images from `keeper`, then a setup; serves it, and tells the keeper what came of it. Ends as well when the
/// keeper goes away.
#[must_use]
pub fn run(keeper: OwnedFd) -> ExitCode {
    allow_many_descriptors();
    let Ok(told) = rustix::io::dup(&keeper) else { return ExitCode::FAILURE };
    // Who is told of images that are of no use comes with the setup.
    let ready = Saved::receive(&keeper).map(Ready::new);
    let served = ready.and_then(|ready| Ok((ready, Setup::receive(keeper)?)));
    let (message, code) = match served.map(|(ready, setup)| ready.and_then(|ready| ready.serve(setup))) {
        Ok(Ok(figures)) => (Told::Filled(figures), ExitCode::SUCCESS),
        Ok(Err(ServeError::Abandoned)) => (Told::Abandoned, ExitCode::FAILURE),
        Ok(Err(error)) => (Told::Failed(in_full(&error)), ExitCode::FAILURE),
        Err(error) => (Told::Failed(error.to_string()), ExitCode::FAILURE),
    };
    // Nobody is left to be told.
    let _ = keeper::tell(told, &message);
    code
}

/// A process that forks often while it is filled needs one for each child.
fn allow_many_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Then it is as many as there are.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
