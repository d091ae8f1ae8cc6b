// SPDX-License-Identifier: Apache-2.0
//! Real programs in pods, each with clients of its own inside and, where it serves anybody, one from outside
//! (`workloads/fidelity/servers.py`, `programs.py`, `outside.py`).

use std::time::Duration;

use super::{HarnessError, Node, process, rows};
use crate::kubelet::error::KubeletError;
use crate::kubelet::pod_check::PodError;
use crate::kubelet::pod_spec::Pod;
use crate::kubelet::state::PodState;

/// The image with all of them, which `scripts/test apps` and `scripts/bench apps` make.
pub const IMAGE: &str = "thaw.local/apps:1";
/// How long a program may take to answer: some take many seconds to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
const WORKLOADS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads");

/// A program, by its row's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct App {
    /// `jupyter`.
    pub name: &'static str,
    serves: bool,
}

/// All of them.
pub const ALL: [App; 11] = [
    App { name: "jupyter", serves: true },
    App { name: "postgresql", serves: true },
    App { name: "redis", serves: true },
    App { name: "nginx", serves: true },
    App { name: "java", serves: true },
    App { name: "nodejs", serves: true },
    App { name: "r", serves: false },
    App { name: "training", serves: false },
    App { name: "pool", serves: false },
    App { name: "bash", serves: false },
    App { name: "xserver", serves: false },
];

impl App {
    /// The program with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|app| app.name == name)
    }

    /// A pod that runs it. The runtime's profile forbids io_uring, which cannot be frozen and Node.js would use.
    ///
    /// # Errors
    /// When the name is none.
    pub fn pod(self, name: &str) -> Result<Pod, HarnessError> {
        // Without this right CRIU freezes processes of its own user only.
        let users = if process::may_use(process::CAP_SYS_RESOURCE) { "any" } else { "own" };
        let group = if self.serves { "servers" } else { "programs" };
        let yaml = format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  runtimeClassName: thaw
  securityContext: {{seccompProfile: {{type: RuntimeDefault}}}}
  volumes:
  - {{name: workloads, hostPath: {{path: {WORKLOADS}, type: Directory}}}}
  containers:
  - name: program
    image: {IMAGE}
    command: [python3, -B, /workloads/fidelity/main.py, {group}, {app}]
    env: [{{name: USERS, value: {users}}}]
    volumeMounts:
    - {{name: workloads, mountPath: /workloads, readOnly: true}}
",
            app = self.name
        );
        let pod: Result<Pod, PodError> = Pod::parse(yaml.trim());
        Ok(pod.map_err(KubeletError::from)?)
    }

    /// Waits until it has answered for the first time.
    ///
    /// # Errors
    /// With what went wrong in it.
    pub async fn started(self, state: &PodState) -> Result<(), HarnessError> {
        self.said(state, "/").await
    }

    /// Lets it make its state, or, from the second time on, check that and go on with it.
    ///
    /// # Errors
    /// With what is not as it was.
    pub async fn goes_on(self, state: &PodState) -> Result<(), HarnessError> {
        self.said(state, "/verify").await
    }

    async fn said(self, state: &PodState, path: &str) -> Result<(), HarnessError> {
        let verdicts = rows::ask(state, path, PATIENCE).await?;
        match verdicts.get(self.name) {
            Some(said) if said == rows::OK => Ok(()),
            said => Err(HarnessError::answer(self.name, said.map_or("nothing", String::as_str))),
        }
    }

    /// Asks it from the node, if it serves anybody.
    ///
    /// # Errors
    /// With what the client said.
    pub fn serves_others(self, state: &PodState) -> Result<(), HarnessError> {
        if self.serves {
            let client = format!("{WORKLOADS}/fidelity/outside.py");
            process::output("python3", &["-B", &client, self.name, &state.ip])?;
        }
        Ok(())
    }
}

impl Node {
    /// The pod of a program in the test's namespace.
    ///
    /// # Errors
    /// When the name is none.
    pub fn app_pod(&self, app: App, name: &str) -> Result<Pod, HarnessError> {
        let mut pod = app.pod(name)?;
        pod.metadata.namespace.clone_from(&self.namespace);
        Ok(pod)
    }
}
