// SPDX-License-Identifier: Apache-2.0
//! Links the shim to fixed addresses. In a position-independent program the loader writes the address of every table
//! entry (of trait objects, of protobuf's descriptions) into memory of each process: half a megabyte for each pod.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-no-pie");
    // Packages hold static programs. rustc asks for a static position-independent one then; without that, the linker has
    // to be told again that it is static, or it asks for a loader that need not be there.
    if std::env::var("CARGO_CFG_TARGET_FEATURE")
        .is_ok_and(|features| features.split(',').any(|f| f == "crt-static"))
    {
        println!("cargo::rustc-link-arg-bins=-static");
    }
}
