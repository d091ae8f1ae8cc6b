// SPDX-License-Identifier: Apache-2.0
//! Stats: the metrics of the container's cgroup, in the version that the host has.

use std::collections::BTreeMap;

use containerd_shim::cgroup::collect_metrics_v2;
use protobuf::well_known_types::any::Any;

use crate::any::{METRICS_V1, METRICS_V2, any};
use crate::container::Container;
use crate::error::TaskError;

/// The metrics as containerd's CRI wants them.
///
/// # Errors
/// [`TaskError::NotFound`] before the start.
pub(crate) fn stats(container: &Container) -> Result<Any, TaskError> {
    let cgroup = container
        .cgroup()
        .ok_or_else(|| TaskError::NotFound(format!("cgroup of container {}", container.id)))?;
    let failed = |e| TaskError::shim("read the cgroup's metrics", e);
    let metrics = if cgroup.v2() {
        any(METRICS_V2, &collect_metrics_v2(&cgroup).map_err(failed)?)
    } else {
        any(METRICS_V1, &crate::stats_v1::metrics(container.cgroups.get().unwrap_or(&BTreeMap::new())))
    };
    metrics.map_err(|e| failed(e.into()))
}
