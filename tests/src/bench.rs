// SPDX-License-Identifier: Apache-2.0
//! Benchmarks on a real node, in one run and in turns, so that all cases meet the same machine: restores ([`restore`]),
//! many of them at once ([`crowd`]), what a pod's shim costs ([`shim`]), writable layers ([`rootfs`]), real programs
//! ([`apps`]), and all of that with a report ([`all`], [`page`]).

mod all;
mod apps;
mod archive;
mod bundle;
mod chart;
mod cold;
mod command;
mod copies;
mod criu;
mod crowd;
mod freeze;
mod fresh;
mod frozen;
mod goals;
mod heartbeat;
mod image;
mod lazy;
#[allow(unsafe_code)] // memory that nobody has touched, userfaultfd
mod limits;
mod machine;
mod measured;
mod page;
mod plots;
mod podman;
mod ratios;
mod record;
mod registry;
mod report;
mod restore;
mod rootfs;
mod run;
mod runc;
mod shim;
mod steps;
mod thaw;
mod workload;
mod written;

pub use self::all::{AllArgs, all};
pub use self::apps::{AppsArgs, apps};
pub use self::crowd::{CrowdArgs, crowd};
pub use self::page::{PageArgs, page};
use self::restore::Bench;
pub use self::restore::{RestoreArgs, restore};
pub use self::rootfs::{RootfsArgs, rootfs};
pub use self::run::Run;
pub use self::shim::{ShimArgs, shim};
