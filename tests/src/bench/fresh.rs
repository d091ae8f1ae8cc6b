// SPDX-License-Identifier: Apache-2.0
//! The case `fresh`: the start of `sleep` under the handler `runc`, which needs next to nothing. Its clock begins with
//! the call StartContainer and ends with its answer.

use anyhow::Context;
use serde_json::json;

use super::Bench;
use super::record::{Record, timed};
use super::steps::Steps;
use crate::kubelet::cri::api::StartContainerRequest;
use crate::kubelet::pod_spec::Pod;

/// Starts once.
pub(crate) async fn measure(bench: &Bench, record: &mut Record) -> anyhow::Result<()> {
    let steps = Steps::sandbox(bench, "fresh", pod("bench-fresh", &bench.image)?, record).await?;
    let container_id = steps.create(&bench.image, record).await?;
    let request = StartContainerRequest { container_id };
    let start =
        timed(async { bench.kubelet.cri.start_container(request).await.context("sleep does not start") });
    record.step("fresh.running", start).await.map(drop)
}

/// A pod under the handler `runc` that sleeps.
pub(crate) fn pod(name: &str, image: &str) -> anyhow::Result<Pod> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "runtimeClassName": "runc",
            "containers": [{"name": "main", "image": image, "command": ["sleep", "1000"]}],
        },
    });
    Ok(Pod::parse(&pod.to_string())?)
}
