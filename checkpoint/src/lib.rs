// SPDX-License-Identifier: Apache-2.0
//! The domain of thaw: what a pod may ask for, where checkpoints lie, what one holds, and whether it may run here.
//!
//! This crate owns the annotation keys, the names of checkpoints, the store with its manifest, the form in which a
//! writable layer is kept, and the restore plan. It knows no CRIU, no containerd and no async runtime.
//!
//! Invariants: a name resolves beneath a root and a namespace and never through a link; a checkpoint without a
//! manifest does not exist; a published checkpoint is never written to; the plan only takes from the images what
//! the new pod's spec allows.
#![forbid(unsafe_code)]

pub mod annotation;
pub mod ask;
mod beneath;
pub mod config;
pub mod container_dir;
pub mod container_log;
pub mod devices;
mod digest;
pub mod dump;
pub mod fault_orders;
mod faults;
pub mod gpu;
pub mod id;
pub mod layer;
pub mod manifest;
pub mod plan;
pub mod record;
pub mod reference;
pub mod store;
pub mod trace;

pub use annotation::{Otherwise, PodOptions, RestoreRequest, Scope};
pub use config::Config;
pub use container_dir::ContainerDir;
pub use id::CheckpointId;
pub use manifest::Manifest;
pub use reference::{Lineage, Reference};
pub use store::{CheckpointDir, Store};
