// SPDX-License-Identifier: Apache-2.0
//! Links the shim to fixed addresses. In a position-independent program the loader writes the address of every table
//! entry (of trait objects, of protobuf's descriptions) into memory of each process: half a megabyte for each pod.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-no-pie");
}
