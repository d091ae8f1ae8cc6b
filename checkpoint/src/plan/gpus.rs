// SPDX-License-Identifier: Apache-2.0
//! The GPUs that the container had against those that the new one was given.

use oci_spec::runtime::Spec;

use super::{Frozen, Host, Plan, Reason};
use crate::devices;
use crate::gpu::{self, Gpu};

/// The first driver whose `cuda-checkpoint` can put what one GPU held on another one (`--device-map`).
/// Source: CUDA Toolkit 13.0 release notes; cuda-checkpoint 580.65.06, `--help`.
const MAPS_SINCE: u32 = 580;

/// Adds what is against them, and the map of those that are not the same where CRIU's plugin needs it: that for AMD's
/// finds the GPUs by itself.
pub(super) fn plan(frozen: &Frozen, new: &Spec, host: &Host, plan: &mut Plan, reasons: &mut Vec<Reason>) {
    let here = gpu::of_devices(&plan.devices, &host.gpus);
    let pairs = if devices::allows_all(new) {
        let same =
            |gpu: &Gpu| Some((gpu.path.clone(), here.iter().find(|it| it.path == gpu.path)?.path.clone()));
        frozen.gpus.iter().filter_map(same).collect()
    } else {
        let pairs = devices::fit(&frozen.devices, &plan.devices).pairs;
        pairs.into_iter().map(|(was, is)| (was.path, is.path)).collect::<Vec<_>>()
    };
    let (map, problems) = gpu::compare(&pairs, &frozen.gpus, &here);
    reasons.extend(problems.into_iter().map(|problem| Reason::Gpu { problem }));
    let moved = |(old, new): &&(String, String)| old != new;
    if !frozen.cuda || !map.iter().any(|pair| moved(&pair)) {
        return;
    }
    let drivers = here.iter().filter_map(|gpu| nvidia_version(&gpu.card.driver));
    match drivers.min().filter(|version| *version < MAPS_SINCE) {
        Some(version) => {
            let names = map.iter().filter(moved).map(|(old, new)| format!("{old} is {new} now"));
            let moved = names.collect::<Vec<_>>().join(", ");
            reasons.push(Reason::GpuMoved { moved, version, since: MAPS_SINCE });
        }
        None => plan.gpu_map = map,
    }
}

/// The first number of NVIDIA's driver.
fn nvidia_version(driver: &str) -> Option<u32> {
    driver.strip_prefix("nvidia ")?.split('.').next()?.parse().ok()
}
