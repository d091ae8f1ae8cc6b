// SPDX-License-Identifier: Apache-2.0
//! What `thaw checkpoint` asks the shim of a pod, and what that answers.
//!
//! Both are JSON, and travel in containerd's own call for one container, Task.Checkpoint: the request names [`EVERY`] in
//! the place of a container and has options of the type [`OPTIONS`], which containerd never sends; its path is the root of
//! the store. The answer stands in a field of the response that containerd's message does not have. So it costs no socket
//! of its own, and the shim of another runtime knows no such container.

use serde::{Deserialize, Serialize};

use crate::id::CheckpointId;
use crate::reference::Lineage;

/// All containers of the pod, in the place of one's id, which never has a slash.
///
/// Source: containerd `pkg/identifiers`, Validate.
pub const EVERY: &str = "thaw.dev/every";
/// The type of the options.
pub const OPTIONS: &str = "thaw.dev/ask";
/// The number of the response's field that holds the answer.
pub const ANSWER: u32 = 1;

/// How a pod is to be frozen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The lineage that the checkpoint goes into; otherwise the pod's own.
    pub lineage: Option<Lineage>,
    /// The pod's processes end when the checkpoint exists.
    pub stop: bool,
}

/// The name of the checkpoint that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The pod's namespace.
    pub namespace: String,
    /// The lineage.
    pub lineage: Lineage,
    /// The id.
    pub id: CheckpointId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_this_release_does_not_know_is_not_ignored() {
        let ask = Ask { lineage: Some("trainer".parse().unwrap()), stop: true };
        let json = serde_json::to_string(&ask).unwrap();
        assert_eq!(serde_json::from_str::<Ask>(&json).unwrap(), ask);
        assert!(serde_json::from_str::<Ask>(r#"{"stop": false, "quickly": true}"#).is_err());
    }
}
