// SPDX-License-Identifier: Apache-2.0
//! Which events a runtime can be subscribed to.
//!
//! A runtime drops a plugin that names an event it does not know, and takes "none" for "all".

use protobuf::Enum;

use super::api::{ConfigureRequest, Event};

/// Every event. Those from `UPDATE_POD_SANDBOX` on exist since NRI 0.10.
pub const ALL: [Event; 14] = [
    Event::RUN_POD_SANDBOX,
    Event::STOP_POD_SANDBOX,
    Event::REMOVE_POD_SANDBOX,
    Event::CREATE_CONTAINER,
    Event::POST_CREATE_CONTAINER,
    Event::START_CONTAINER,
    Event::POST_START_CONTAINER,
    Event::UPDATE_CONTAINER,
    Event::POST_UPDATE_CONTAINER,
    Event::STOP_CONTAINER,
    Event::REMOVE_CONTAINER,
    Event::UPDATE_POD_SANDBOX,
    Event::POST_UPDATE_POD_SANDBOX,
    Event::VALIDATE_CONTAINER_ADJUSTMENT,
];

/// The mask that subscribes to those of the wanted events that this runtime knows. It is never 0.
///
/// Source: containerd/nri pkg/adaptation/plugin.go (configure), pkg/api/event.go.
#[must_use]
pub fn mask(wanted: &[Event], runtime: &ConfigureRequest) -> i32 {
    let last =
        if knows_nri_0_10(runtime) { Event::VALIDATE_CONTAINER_ADJUSTMENT } else { Event::REMOVE_CONTAINER };
    match wanted
        .iter()
        .filter(|event| event.value() <= last.value())
        .fold(0, |mask, event| mask | bit(*event))
    {
        // 0 would subscribe to everything. This one is rare, and not waited for.
        0 => bit(Event::REMOVE_POD_SANDBOX),
        mask => mask,
    }
}

fn bit(event: Event) -> i32 {
    1 << (event.value() - 1)
}

/// Whether the runtime has NRI 0.10 or later. Only NRI 0.12 says so itself; containerd has had 0.10 since 2.2.
/// Others are taken for old: they know no event that is not known to all.
fn knows_nri_0_10(runtime: &ConfigureRequest) -> bool {
    match version(&runtime.nri_version) {
        Some(nri) => nri >= (0, 10),
        None => runtime.runtime_name == "containerd" && version(&runtime.runtime_version) >= Some((2, 2)),
    }
}

/// The first two numbers of `v2.1.4-k3s1`, `2.2.7~ds1` and the like.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.strip_prefix('v').unwrap_or(text).split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(name: &str, version: &str, nri: &str) -> ConfigureRequest {
        ConfigureRequest {
            runtime_name: name.into(),
            runtime_version: version.into(),
            nri_version: nri.into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_mask_has_only_what_the_runtime_knows() {
        for (name, version, nri, expected) in [
            ("containerd", "v2.0.11", "", 0x7FF),
            ("containerd", "2.1.4~ds1", "", 0x7FF),
            ("containerd", "v2.1.4-k3s1", "", 0x7FF),
            ("containerd", "v2.2.7", "", 0x3FFF),
            ("containerd", "v2.3.4-k3s1.36", "v0.12.0", 0x3FFF),
            ("containerd", "v2.10.0", "", 0x3FFF),
            ("containerd", "v2.3.0", "v0.8.0", 0x7FF),
            ("containerd", "v2.3.0", "(devel)", 0x3FFF),
            ("containerd", "", "", 0x7FF),
            ("containerd", "v3", "", 0x7FF),
            ("cri-o", "1.34.0", "", 0x7FF),
            ("cri-o", "1.36.0", "v0.12.2", 0x3FFF),
        ] {
            assert_eq!(mask(&ALL, &runtime(name, version, nri)), expected, "{name} {version} {nri}");
        }
    }

    #[test]
    fn the_mask_is_never_that_of_everything_by_accident() {
        let old = runtime("containerd", "v2.0.0", "");
        assert_eq!(mask(&[], &old), 0b100);
        assert_eq!(mask(&[Event::VALIDATE_CONTAINER_ADJUSTMENT], &old), 0b100);
        assert_eq!(mask(&[Event::CREATE_CONTAINER], &old), 0b1000);
    }
}
