// SPDX-License-Identifier: Apache-2.0
//! `thaw node` on trees that are laid out as RKE2, k3s and a containerd of its own lay out a node.
//!
//! Only the programs in the trees are fakes: they print a version.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole program is tests"
)]

mod containerd;
mod rke2;
mod status;
mod tree;
