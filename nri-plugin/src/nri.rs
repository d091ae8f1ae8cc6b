// SPDX-License-Identifier: Apache-2.0
//! The Node Resource Interface (NRI), the plugin's side, for NRI 0.8 to 0.12 (containerd 2.0 to 2.3).
//!
//! ```text
//!             one unix socket
//!  runtime ====================== plugin
//!     |  connection 1: Plugin        |   the runtime calls: Configure, Synchronize, then an event at a time
//!     |----------------------------->|
//!     |  connection 2: Runtime       |   the plugin calls: RegisterPlugin, UpdateContainers
//!     |<-----------------------------|
//! ```
//!
//! A program implements [`Plugin`], opens the socket ([`connect`] or [`launched`]) and hands both to
//! [`Session::register`]. What the runtime asks from then on reaches the plugin's methods, the same for every version.
//!
//! This module owns the protocol. It does not reconnect, and decides nothing about containers.
//!
//! Invariants: the plugin serves before it registers; it never subscribes to an event that the runtime does not know;
//! a plugin that is late answers with an error before the runtime's deadline, for a runtime that waited in vain drops
//! the plugin and creates the container without it.

mod connection;
mod events;
pub mod mux;
mod plugin;
mod service;
mod session;

#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

/// The messages of the protocol, as containerd/nri v0.12.2 names them.
pub use generated::nri as api;

pub use connection::{ConnectError, Identity, IdentityError, LaunchError, SOCKET, connect, launched};
pub use events::{ALL, mask};
pub use plugin::{Plugin, Refused};
pub use session::{RegisterError, Runtime, Session};
