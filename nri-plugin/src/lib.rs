// SPDX-License-Identifier: Apache-2.0
//! The library under `thaw-nri`: the Node Resource Interface (NRI) for plugins in Rust.
//!
//! It knows nothing of thaw; what `thaw-nri` does with it is in the program.

pub mod nri;
