// SPDX-License-Identifier: Apache-2.0
//! What the end-to-end tests of thaw need: a small kubelet, and a harness for tests against a real node; and
//! benchmarks on such a node.
//!
//! Nothing here is part of what thaw installs. The kubelet drives containerd over CRI as the real one does,
//! so that what passes here passes under Kubernetes.

pub mod bench;
pub mod harness;
pub mod kubelet;
