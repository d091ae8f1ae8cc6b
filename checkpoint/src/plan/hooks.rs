// SPDX-License-Identifier: Apache-2.0
//! OCI hooks of the new spec. The restored processes are past the points at which a runtime runs them, so hooks are
//! refused, but for those of NVIDIA's toolkit (`nvidia-cdi-hook`), which every CDI device of it brings along.
//!
//! These only arrange files inside the container before its first process runs: links to libraries, the loader's cache
//! and its configuration, on the writable layer, which was frozen with the container; and one file over
//! /proc/driver/nvidia/params on a tmpfs of its own, which the images hold. A restore leaves them out.
//!
//! Source: NVIDIA container toolkit 1.19, internal/discover/hooks.go and cmd/nvidia-cdi-hook.

use std::path::Path;

use oci_spec::runtime::{Hook, Spec};

use super::{FrozenMount, Reason, mounts::TMPFS};

/// The programs; the second has the hooks below the word `hook`.
const PROGRAMS: [&str; 2] = ["nvidia-cdi-hook", "nvidia-ctk"];
/// What it puts its own version of the driver's parameters over, so that libraries make no device nodes.
const HIDES_PARAMETERS: &str = "disable-device-node-modification";
/// All that it does.
const KNOWN: [&str; 6] = [
    "chmod",
    "create-symlinks",
    HIDES_PARAMETERS,
    "enable-cuda-compat",
    "update-application-profile",
    "update-ldcache",
];
const PARAMETERS: &str = "/proc/driver/nvidia/params";
/// The file on the tmpfs, and how the tmpfs's directory begins. Source: as above,
/// disable-device-node-modification/params_linux.go.
const FILE: &str = "/nvct-params";
const SCRATCH: &str = "/run/nvidia-ctk-hook";

/// A reason where there are hooks that cannot be left out.
pub(super) fn check(spec: &Spec) -> Option<Reason> {
    let hooks = spec.hooks().as_ref()?;
    let lists = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    let may_stay = |name: &str, hook: &Hook| name == "createContainer" && nvidias(hook).is_some();
    let refused = lists.iter().filter(|(name, list)| list.iter().flatten().any(|hook| !may_stay(name, hook)));
    let names: Vec<_> = refused.map(|(name, _)| *name).collect();
    (!names.is_empty()).then(|| Reason::Hooks { lists: names.join(", ") })
}

/// What a hook of NVIDIA's toolkit does.
fn nvidias(hook: &Hook) -> Option<&'static str> {
    let program = hook.path().file_name().filter(|name| PROGRAMS.iter().any(|known| name == known))?;
    let skipped = if program == PROGRAMS[1] { 2 } else { 1 };
    let verb = hook.args().iter().flatten().nth(skipped)?;
    KNOWN.into_iter().find(|known| known == verb)
}

/// Whether the runtime would mount the file over the driver's parameters.
pub(super) fn hides_parameters(spec: &Spec) -> bool {
    let hooks = spec.hooks().iter().filter_map(|hooks| hooks.create_container().as_ref()).flatten();
    hooks.filter_map(nvidias).any(|verb| verb == HIDES_PARAMETERS)
}

/// Whether this is the tmpfs that holds the file.
pub(super) fn is_scratch(mount: &FrozenMount) -> bool {
    let rest = mount.mountpoint.strip_prefix(SCRATCH);
    let named = rest.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_hexdigit() || c == '-'));
    named && is_own_tmpfs(mount) && mount.root == "/"
}

/// Whether this is the file over the parameters.
pub(super) fn is_parameters(mount: &FrozenMount) -> bool {
    Path::new(&mount.mountpoint) == Path::new(PARAMETERS) && is_own_tmpfs(mount) && mount.root == FILE
}

fn is_own_tmpfs(mount: &FrozenMount) -> bool {
    mount.fstype == TMPFS && mount.ext_key.is_none()
}
