// SPDX-License-Identifier: Apache-2.0
//! A client for CRIU's RPC and an editor for its image files.
//!
//! One [`Swrk`] starts one `criu swrk` process; the [`Session`] it gives serves any number of
//! [`version`](Session::version) and [`features`](Session::features) requests, then one
//! [`restore`](Session::restore), [`dump`](Session::dump), [`pre_dump`](Session::pre_dump) or
//! [`check`](Session::check). The [`image`] module reads and edits CRIU's image files.
//!
//! This crate is synchronous, knows no async runtime, and knows nothing of containers or pods.
//!
//! Invariants:
//! - It never waits for a process: whoever calls it owns `waitpid`.
//! - What CRIU sends and what an image holds is bounded, and cannot make this crate panic.
//! - Only `swrk::child` has unsafe code.
//! - Where CRIU could understand an image in another way than this crate, the image is refused.

mod error;
pub mod image;
pub mod log;
mod notify;
mod options;
mod session;
mod swrk;
mod transport;
mod version;

#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub
)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/proto/mod.rs"));
}

pub use error::{BoxError, LogLines, RequestError};
pub use notify::Event;
pub use options::{DumpOptions, ManageCgroups, Namespace, NetworkLock, RestoreOptions, Tcp};
pub use session::{Restored, Session};
pub use swrk::{SpawnError, Swrk};
pub use version::{Features, Version};
