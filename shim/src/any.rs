// SPDX-License-Identifier: Apache-2.0
//! Messages in `Any`, under the names that their `.proto` files give them.
//!
//! protobuf's own descriptions of messages know these names too, but to ask them once takes half a megabyte of memory
//! for the rest of the shim's life. So nothing here may ask them.

use protobuf::Message;
use protobuf::well_known_types::any::Any;

/// The package of containerd's task events. Source: containerd, `api/events/task.proto`.
pub(crate) const EVENTS: &str = "containerd.events";
/// The package of the metrics of cgroup v1. Source: containerd/cgroups, `cgroup1/stats/metrics.proto`.
pub(crate) const METRICS_V1: &str = "io.containerd.cgroups.v1";
/// The package of the metrics of cgroup v2. Source: containerd/cgroups, `cgroup2/stats/metrics.proto`.
pub(crate) const METRICS_V2: &str = "io.containerd.cgroups.v2";

/// A message of `package` with its type.
///
/// # Errors
/// When it does not encode.
pub(crate) fn any<M: Message>(package: &str, message: &M) -> protobuf::Result<Any> {
    Ok(Any {
        type_url: format!("{package}.{}", M::NAME),
        value: message.write_to_bytes()?,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::cgroups::metrics::Metrics as MetricsV1;
    use containerd_shim_protos::cgroups_v2::metrics::Metrics as MetricsV2;
    use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
    use protobuf::MessageFull;

    use super::*;

    fn described<M: MessageFull>() -> String {
        M::descriptor().full_name().to_owned()
    }

    #[test]
    fn types_are_named_as_protobuf_describes_them() {
        let named = |any: Any| any.type_url;
        assert_eq!(named(any(EVENTS, &TaskExit::new()).unwrap()), described::<TaskExit>());
        assert_eq!(named(any(EVENTS, &TaskOOM::new()).unwrap()), described::<TaskOOM>());
        assert_eq!(named(any(METRICS_V1, &MetricsV1::new()).unwrap()), described::<MetricsV1>());
        assert_eq!(named(any(METRICS_V2, &MetricsV2::new()).unwrap()), described::<MetricsV2>());
    }
}
