// SPDX-License-Identifier: Apache-2.0
//! containerd itself, ended and started under running pods.

use std::time::{Duration, Instant};

use super::{HarnessError, Tested, process};
use crate::kubelet::Kubelet;
use crate::kubelet::cri::api::VersionRequest;

/// As the node starts it.
const START: &str = "TMPDIR=/var/tmp setsid --fork containerd --config /etc/containerd/config.toml \
                     >>/var/log/containerd.log 2>&1 </dev/null";
/// How long it may take to end or to answer.
const SOON: Duration = Duration::from_secs(60);

/// How its command line begins.
pub(crate) const COMMAND: &str = "containerd --config";

fn pid() -> Option<u32> {
    let is = |pid: &u32| {
        process::read(*pid, "cmdline").is_ok_and(|line| line.replace('\0', " ").starts_with(COMMAND))
    };
    process::all().into_iter().find(is)
}

/// Kills containerd at once; pods run on.
///
/// # Errors
/// When it does not run, or does not end.
pub async fn kill() -> Tested {
    let running = pid().ok_or_else(|| HarnessError::answer("containerd", "it does not run"))?;
    process::output("kill", &["-KILL", &running.to_string()])?;
    let began = Instant::now();
    while pid().is_some() {
        if began.elapsed() > SOON {
            return Err(HarnessError::answer("containerd", "it does not end"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Starts containerd and waits until it answers.
///
/// # Errors
/// When it does not.
pub async fn start(kubelet: &Kubelet) -> Tested {
    process::output("sh", &["-c", START])?;
    let began = Instant::now();
    loop {
        match kubelet.cri.version(VersionRequest { version: String::new() }).await {
            Ok(_) => return Ok(()),
            Err(error) if began.elapsed() > SOON => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
