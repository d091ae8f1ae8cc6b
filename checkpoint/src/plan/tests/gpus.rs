// SPDX-License-Identifier: Apache-2.0
//! Hooks, and what they do for GPUs; GPUs that became others.

use super::*;

#[test]
fn hooks_are_refused_and_empty_lists_of_them_are_not() {
    refused("OCI hooks (prestart, poststop)", |_, spec| {
        let hook = json!([{ "path": "/bin/true" }]);
        spec["hooks"] = json!({ "prestart": hook, "poststop": hook, "poststart": [] });
    });
    allowed(|_, spec| spec["hooks"] = json!({ "createRuntime": [] }));
}

/// The hooks that `nvidia-ctk cdi generate` of version 1.19 writes into a specification.
fn nvidias_hooks(path: &str) -> Value {
    let hook = |args: &[&str]| json!({ "path": path, "args": args });
    json!([
        hook(&["nvidia-cdi-hook", "create-symlinks", "--link", "libcuda.so.1::/usr/lib/libcuda.so"]),
        hook(&["nvidia-cdi-hook", "enable-cuda-compat", "--host-driver-version=580.65.06"]),
        hook(&["nvidia-cdi-hook", "update-ldcache", "--folder", "/usr/lib"]),
        hook(&["nvidia-cdi-hook", "disable-device-node-modification"]),
    ])
}

#[test]
fn hooks_of_nvidias_toolkit_are_left_out_and_others_beside_them_are_not() {
    let hooks = || nvidias_hooks("/usr/local/nvidia/toolkit/nvidia-cdi-hook");
    allowed(|_, spec| spec["hooks"] = json!({ "createContainer": hooks() }));
    allowed(|_, spec| {
        let args = ["nvidia-ctk", "hook", "update-ldcache"];
        spec["hooks"] = json!({ "createContainer": [{ "path": "/usr/bin/nvidia-ctk", "args": args }] });
    });
    for (list, hooks) in [
        ("createRuntime", hooks()),
        ("prestart", hooks()),
        ("createContainer", nvidias_hooks("/bin/sh")),
        (
            "createContainer",
            json!([{ "path": "/usr/bin/nvidia-cdi-hook", "args": ["nvidia-cdi-hook", "other"] }]),
        ),
        ("createContainer", json!([{ "path": "/usr/bin/nvidia-cdi-hook" }])),
    ] {
        refused(&format!("OCI hooks ({list})"), |_, spec| spec["hooks"] = json!({ list: hooks }));
    }
}

#[test]
fn the_file_over_nvidias_parameters_comes_back_where_the_new_spec_has_it_too() {
    let scratch = FrozenMount { root_dev: 300, ..mount(20, "/run/nvidia-ctk-hook0a1b-2c", 5, 0, None) };
    let parameters = FrozenMount {
        parent: 2,
        root: "/nvct-params".into(),
        root_dev: 300,
        ..mount(21, "/proc/driver/nvidia/params", 5, 0, None)
    };
    let with = |frozen: &mut Frozen| frozen.mounts.extend([scratch.clone(), parameters.clone()]);
    let hook = || json!({ "createContainer": nvidias_hooks("/usr/bin/nvidia-cdi-hook") });
    allowed(|frozen, spec| {
        with(frozen);
        spec["hooks"] = hook();
    });
    let without = reasons(|frozen, _| with(frozen));
    assert!(
        without.len() == 2 && without.iter().all(|reason| reason.contains("new one has none")),
        "{without:?}"
    );
    // Other places and other files of it are none of the hook's.
    for (id, place, root) in [
        (0, "/run/nvidia-ctk-hook../x", "/"),
        (0, "/etc", "/"),
        (1, "/proc/kcore", "/nvct-params"),
        (1, "/proc/driver/nvidia/params", "/x"),
    ] {
        let all = reasons(|frozen, spec| {
            with(frozen);
            let at = frozen.mounts.len() - 2 + id;
            frozen.mounts[at].mountpoint = place.into();
            frozen.mounts[at].root = root.into();
            spec["hooks"] = hook();
        });
        assert!(!all.is_empty(), "{place} {root}");
    }
}

fn gpu(minor: u32, driver: &str) -> gpu::NodeGpu {
    let card = gpu::Card { uuid: format!("GPU-{minor}"), model: "H200".into(), driver: driver.into() };
    gpu::NodeGpu { major: 195, minor, card }
}

/// A container that had the GPU 0 and gets those of these numbers, the first of them under the old path too.
fn moved(cuda: bool, minors: &[u32], driver: &str) -> Result<Vec<(String, String)>, Vec<String>> {
    let (mut frozen, mut spec) = (frozen(), spec());
    let path = PathBuf::from("/dev/nvidia0");
    frozen.devices =
        vec![Device { path: path.clone(), block: false, major: 195, minor: 0, mode: 0o666, uid: 0, gid: 0 }];
    frozen.gpus = vec![Gpu { path, card: gpu(0, "nvidia 580.1").card }];
    frozen.cuda = cuda;
    let node = |path: String, minor: u32| json!({ "path": path, "type": "c", "major": 195, "minor": minor });
    let own = minors.iter().map(|minor| node(format!("/dev/nvidia{minor}"), *minor));
    let alias = minors.first().filter(|minor| **minor != 0).map(|minor| node("/dev/nvidia0".into(), *minor));
    spec["linux"]["devices"] = own.chain(alias).collect();
    let gpus = (0..4).map(|minor| gpu(minor, driver)).collect();
    let planned = run(&frozen, &spec, &Host { gpus, ..host() });
    planned.map(|plan| plan.gpu_map).map_err(|refused| refused.0.iter().map(ToString::to_string).collect())
}

#[test]
fn what_was_on_one_gpu_goes_to_the_one_in_its_place() {
    let pair = |old: &str, new: &str| (old.to_owned(), new.to_owned());
    assert_eq!(moved(true, &[3], "nvidia 580.1"), Ok(vec![pair("GPU-0", "GPU-3")]));
    assert_eq!(moved(true, &[0], "nvidia 580.1"), Ok(vec![]), "the same one needs no map");
    assert_eq!(moved(false, &[3], "nvidia 580.1"), Ok(vec![]), "nothing was on it");
    let other = moved(true, &[3], "nvidia 580.2").unwrap_err();
    assert!(
        other.len() == 1 && other[0].contains("was nvidia 580.1 when frozen and is nvidia 580.2"),
        "{other:?}"
    );
}

#[test]
fn a_driver_that_cannot_move_it_is_named() {
    let (mut frozen, mut spec) = (frozen(), spec());
    let path = PathBuf::from("/dev/nvidia0");
    frozen.devices =
        vec![Device { path: path.clone(), block: false, major: 195, minor: 0, mode: 0o666, uid: 0, gid: 0 }];
    frozen.gpus = vec![Gpu { path, card: gpu(0, "nvidia 570.124").card }];
    frozen.cuda = true;
    spec["linux"]["devices"] = json!([{ "path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 2 }]);
    let host = Host { gpus: vec![gpu(2, "nvidia 570.124")], ..host() };
    let error = run(&frozen, &spec, &host).unwrap_err().to_string();
    assert!(error.contains("GPU-0 is GPU-2 now") && error.contains("use driver 580 or later"), "{error}");
}
