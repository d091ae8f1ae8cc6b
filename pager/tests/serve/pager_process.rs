// SPDX-License-Identifier: Apache-2.0
//! A pager as its keeper starts it: its standard input is the socket to the keeper.
#![allow(missing_docs)]

use std::os::fd::AsFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(keeper) => pager::run(keeper),
        Err(_) => ExitCode::FAILURE,
    }
}
