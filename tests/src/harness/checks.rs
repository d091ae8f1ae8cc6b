// SPDX-License-Identifier: Apache-2.0
//! Programs that check themselves: asked inside their container, they name every piece of their state and say whether
//! it is as it must be.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{HarnessError, Node};
use crate::kubelet::patience::patient;
use crate::kubelet::pod_spec::Pod;
use crate::kubelet::state::PodState;

/// What one answer may take: some checks wait for what must not come.
const ANSWER_SECONDS: i64 = 180;
/// How long a program may take until it says that it is ready.
const READY: Duration = Duration::from_secs(60);

/// The answer: the name of each check, and `ok` or what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checks(pub BTreeMap<String, String>);

impl Checks {
    /// Panics with everything that is not as it must be.
    ///
    /// # Panics
    /// When a check failed, or there is none.
    pub fn assert_ok(&self) {
        let failed: Vec<_> = self.0.iter().filter(|(_, said)| *said != "ok").collect();
        assert!(!self.0.is_empty() && failed.is_empty(), "{failed:#?}");
    }
}

/// Asks a workload in a pod's only container to check itself: `python3 /workloads/PROGRAM check WHAT`.
///
/// # Errors
/// When it does not answer, or not with JSON.
pub async fn ask(node: &Node, state: &PodState, program: &str, what: &str) -> Result<Checks, HarnessError> {
    let script = format!("/workloads/{program}");
    let command = ["python3", &script, "check", what].map(str::to_owned);
    let output = node.kubelet.exec(state, "", &command, ANSWER_SECONDS).await?;
    let answer = serde_json::from_str(&output.stdout);
    answer
        .map(Checks)
        .map_err(|_| HarnessError::answer(&script, format!("{}{}", output.stdout, output.stderr)))
}

impl Node {
    /// Runs a pod whose program prints `ready` when it has set everything up, and waits for that.
    ///
    /// # Errors
    /// When the pod does not start, or the program does not say so.
    pub async fn run_checked(&self, pod: Pod) -> Result<PodState, HarnessError> {
        let state = self.run(pod).await?;
        let began = Instant::now();
        loop {
            let lines = self.kubelet.logs(&state, "")?;
            if lines.iter().any(|line| line.text == "ready") {
                return Ok(state);
            }
            if began.elapsed() > patient(READY) {
                return Err(HarnessError::answer("the workload", format!("{lines:?}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
