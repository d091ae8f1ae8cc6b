// SPDX-License-Identifier: Apache-2.0
//! What a test on a real node stands on: the node, pods to freeze, the `thaw` command, and the proof that
//! nothing is left behind.
//!
//! A test enters the node, does its work, removes its pods and leaves; leaving fails when the node is not as
//! it was. Tests take turns: what one leaves behind must be its own.

pub mod api_server;
pub mod apps;
pub mod archive;
pub mod checks;
pub mod containerd;
pub mod counter;
pub mod error;
pub mod examples;
pub mod fidelity_page;
pub mod leaks;
pub mod needs;
pub mod node;
pub mod nri;
pub mod nvidia;
pub mod parity;
pub mod pods;
pub mod process;
pub mod process_state;
pub mod rows;
pub mod shim;
pub mod thaw;
pub mod until;

pub use self::error::HarnessError;
pub use self::needs::Need;
pub use self::node::Node;
pub use self::until::until;

/// What a test returns.
pub type Tested = Result<(), HarnessError>;
