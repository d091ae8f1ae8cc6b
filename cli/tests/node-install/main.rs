// SPDX-License-Identifier: Apache-2.0
//! `thaw node` on trees that are laid out as RKE2, k3s and a containerd of its own lay out a node.
//!
//! Only the programs in the trees are fakes: they print a version.

mod containerd;
mod rke2;
mod status;
mod tree;
