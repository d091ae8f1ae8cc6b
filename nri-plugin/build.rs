// SPDX-License-Identifier: Apache-2.0
//! Generates the Rust types and services of `proto/nri.proto`, without `protoc`.

use std::path::PathBuf;

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    Codegen::new()
        .include("proto")
        .input("proto/nri.proto")
        .out_dir(&out)
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().lite_runtime(true))
        .customize(Customize { async_all: true, ..Default::default() })
        .run()?;
    // The generated files begin with inner attributes, so they must be modules of their own; and the `mod.rs` that
    // the generator can write cannot be included, for it begins with one as well.
    std::fs::write(out.join("mod.rs"), "pub mod nri;\npub mod nri_ttrpc;\n")
}
