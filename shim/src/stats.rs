// SPDX-License-Identifier: Apache-2.0
//! Stats: the metrics of the container's cgroup, in the version that the host has.

use containerd_shim::cgroup::{collect_metrics, collect_metrics_v2};
use containerd_shim::util::convert_to_any;
use protobuf::well_known_types::any::Any;

use crate::container::Container;
use crate::error::Error;

/// The metrics as containerd's CRI wants them.
///
/// # Errors
/// [`Error::NotFound`] before the start.
pub(crate) fn stats(container: &Container) -> Result<Any, Error> {
    let cgroup = container
        .cgroup()
        .ok_or_else(|| Error::NotFound(format!("cgroup of container {}", container.id)))?;
    let failed = |e| Error::shim("read the cgroup's metrics", e);
    if cgroup.v2() {
        convert_to_any(Box::new(collect_metrics_v2(&cgroup).map_err(failed)?)).map_err(failed)
    } else {
        convert_to_any(Box::new(collect_metrics(&cgroup).map_err(failed)?)).map_err(failed)
    }
}
