// SPDX-License-Identifier: Apache-2.0
//! containerd itself, killed and started again under running pods.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{HarnessError, Tested, process, until};
use crate::kubelet::Kubelet;
use crate::kubelet::cri::api::VersionRequest;

/// Keeps systemd from starting it again by itself.
const STAY_DEAD: &str = "/run/systemd/system/containerd.service.d/stay-dead.conf";

/// A containerd that was killed; it is started again as it was.
#[derive(Debug)]
#[must_use]
pub struct Dead {
    /// Its command line and environment, and where its words went; systemd knows of its own.
    command: Option<(Vec<String>, Vec<String>, PathBuf)>,
}

/// Its process, if it runs.
#[must_use]
pub fn pid() -> Option<u32> {
    process::all()
        .into_iter()
        .find(|pid| process::read(*pid, "comm").is_ok_and(|comm| comm == "containerd\n"))
}

/// Kills containerd at once, and returns when it is dead; pods run on.
///
/// # Errors
/// When it does not run, or does not end.
pub async fn kill() -> Result<Dead, HarnessError> {
    let running = pid().ok_or_else(|| HarnessError::answer("containerd", "it does not run"))?;
    let command = if Path::new("/run/systemd/system").exists() {
        let file = Path::new(STAY_DEAD);
        let written = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = written.and_then(|()| std::fs::write(file, "[Service]\nRestart=no\n"));
        written.map_err(|source| HarnessError::file("write", file, source))?;
        process::output("systemctl", &["daemon-reload"])?;
        None
    } else {
        let list = |file| -> Result<Vec<String>, HarnessError> {
            Ok(process::read(running, file)?.split_terminator('\0').map(str::to_owned).collect())
        };
        let log = format!("/proc/{running}/fd/1");
        let log = std::fs::read_link(&log).map_err(|source| HarnessError::file("read", &log, source))?;
        Some((list("cmdline")?, list("environ")?, log))
    };
    process::output("kill", &["-KILL", &running.to_string()])?;
    until("the end of containerd", async || Ok(pid().is_none().then_some(()))).await?;
    Ok(Dead { command })
}

impl Dead {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn start(self, kubelet: &Kubelet) -> Tested {
        match self.command {
            None => {
                process::output("systemctl", &["reset-failed", "containerd"])?;
                process::output("systemctl", &["start", "containerd"]).map(drop)?;
            }
            Some((command, environment, log)) => {
                let to = |log: &Path| OpenOptions::new().append(true).open(log).map(Stdio::from);
                let run = || {
                    let variables = environment.iter().filter_map(|variable| variable.split_once('='));
                    let mut fork = Command::new("setsid");
                    fork.arg("--fork").args(&command).env_clear().envs(variables);
                    fork.stdin(Stdio::null()).stdout(to(&log)?).stderr(to(&log)?).status()
                };
                run().map_err(|source| HarnessError::file("run", "containerd", source))?;
            }
        }
        let answers = async || {
            let asked = kubelet.cri.version(VersionRequest { version: String::new() }).await;
            Ok(asked.is_ok().then_some(()))
        };
        until("an answer of containerd", answers).await
    }
}
