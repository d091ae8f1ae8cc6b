// SPDX-License-Identifier: Apache-2.0
//! Generates the Rust types of `proto/rpc.proto`, without `protoc`.

fn main() {
    protobuf_codegen::Codegen::new()
        .pure()
        .includes(["proto"])
        .input("proto/rpc.proto")
        .customize(protobuf_codegen::Customize::default().lite_runtime(true))
        .cargo_out_dir("proto")
        .run_from_script();
}
