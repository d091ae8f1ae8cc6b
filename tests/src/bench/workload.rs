// SPDX-License-Identifier: Apache-2.0
//! The pod that is frozen and restored, and asking it for the checksum of its memory.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;

use crate::kubelet::http;
use crate::kubelet::pod_spec::Pod;

/// The program: see its head.
const PROGRAM: &str = include_str!("workload.py");
/// The container's name.
pub(crate) const CONTAINER: &str = "main";
/// Where it answers.
const PORT: u16 = 8080;
/// How long the checksum of the largest memory may take.
const ANSWER: Duration = Duration::from_secs(60);

/// Its command, with so many megabytes.
pub(crate) fn command(megabytes: u64) -> [String; 4] {
    ["python3", "-c", PROGRAM, &megabytes.to_string()].map(str::to_owned)
}

/// The pod `name`, run by `handler`.
pub(crate) fn pod(
    name: &str,
    handler: &str,
    image: &str,
    megabytes: u64,
    heartbeat: &Path,
) -> anyhow::Result<Pod> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "runtimeClassName": handler,
            "containers": [{
                "name": CONTAINER,
                "image": image,
                "command": command(megabytes),
                "volumeMounts": [{"name": "heartbeat", "mountPath": "/heartbeat"}],
            }],
            "volumes": [{"name": "heartbeat", "hostPath": {"path": heartbeat}}],
        },
    });
    Ok(Pod::parse(&pod.to_string())?)
}

/// Asks the program at `address` for the checksum of all its memory.
pub(crate) async fn checksum(address: &str) -> anyhow::Result<String> {
    let address = SocketAddr::new(address.parse().context("the pod has no address")?, PORT);
    Ok(http::get(address, "/", ANSWER).await?.body)
}

/// Fails when the program's memory is not what it was when it was frozen.
pub(crate) async fn verify(address: &str, frozen: &str) -> anyhow::Result<()> {
    let now = checksum(address).await?;
    if now != frozen {
        bail!("the memory differs after the restore: checksum {now}, was {frozen}");
    }
    Ok(())
}
