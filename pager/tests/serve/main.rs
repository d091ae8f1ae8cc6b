// SPDX-License-Identifier: Apache-2.0
//! The pager with real userfaultfds, and a fake of CRIU's end.
#![allow(missing_docs)]
#![cfg(test)]
#![allow(clippy::disallowed_methods)] // the tests wait for their own children

mod layout;
mod life;
mod process_model;
#[allow(unsafe_code)] // a userfaultfd
mod protocol;
mod support;
