// SPDX-License-Identifier: Apache-2.0
//! Runs a command in a container.

use super::Kubelet;
use super::cri::api::ExecSyncRequest;
use super::error::KubeletError;
use super::patience::time_scale;
use super::state::PodState;

/// What a command left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code.
    pub exit_code: i32,
    /// What it wrote to stdout; not UTF-8 is replaced.
    pub stdout: String,
    /// What it wrote to stderr; not UTF-8 is replaced.
    pub stderr: String,
}

impl Kubelet {
    /// Runs `command` in a container and waits, at most `timeout` seconds where it is not 0. An empty container
    /// name means the only one.
    ///
    /// # Errors
    /// [`KubeletError::NoContainer`]; [`KubeletError::Cri`], also when the time is over.
    pub async fn exec(
        &self,
        state: &PodState,
        container: &str,
        command: &[String],
        timeout: i64,
    ) -> Result<Output, KubeletError> {
        let container_id = state.container(container)?.id.clone();
        let timeout = timeout.saturating_mul(time_scale().into());
        let answer =
            self.cri.exec_sync(ExecSyncRequest { container_id, cmd: command.to_vec(), timeout }).await?;
        Ok(Output {
            exit_code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }
}
