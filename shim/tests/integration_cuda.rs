// SPDX-License-Identifier: Apache-2.0
//! The program under the name `cuda-checkpoint`, as CRIU's plugin finds it where GPUs are mapped.

#![allow(clippy::unwrap_used, clippy::tests_outside_test_module)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

const NAME: &str = "cuda-checkpoint";

fn run(own: &Path, path: &[&Path], arguments: &str) -> Output {
    let mut command = Command::new(own.join(NAME));
    command.env_clear().env("PATH", std::env::join_paths(path).unwrap());
    command.env("THAW_CUDA_DEVICE_MAP", "GPU-a=GPU-b,GPU-c=GPU-c");
    command.args(arguments.split(' ')).output().unwrap()
}

#[test]
fn the_real_one_is_told_of_other_gpus_where_it_restores_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let [own, empty, real] = ["own", "empty", "real"].map(|name| dir.path().join(name));
    for folder in [&own, &empty, &real] {
        fs::create_dir(folder).unwrap();
    }
    symlink(env!("CARGO_BIN_EXE_containerd-shim-thaw-v1"), own.join(NAME)).unwrap();
    fs::write(real.join(NAME), "#!/bin/sh\necho \"$@\"\nexit 3\n").unwrap();
    fs::set_permissions(real.join(NAME), fs::Permissions::from_mode(0o755)).unwrap();

    for (arguments, added) in [
        ("--action restore --pid 7", " --device-map GPU-a=GPU-b,GPU-c=GPU-c"),
        ("--action unlock --pid 7", ""),
        ("--get-restore-tid --pid 7", ""),
    ] {
        let output = run(&own, &[&own, &empty, &real], arguments);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{arguments}{added}\n"));
        assert_eq!(output.status.code(), Some(3), "what it ends with is what the plugin sees");
    }
    let output = run(&own, &[&own, &empty], "-h");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("there is no program cuda-checkpoint"), "{said}");
}
