// SPDX-License-Identifier: Apache-2.0
//! Who asked for a checkpoint.
//!
//! containerd freezes the container before and thaws it after. When its deadline has passed, or it has gone meanwhile,
//! it can do so no more, and the container would stay frozen for ever: the shim thaws it then.
//!
//! Source: containerd 2.1 client/task.go, Checkpoint: Resume is called with the context that has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use containerd_shim_protos::events::task::TaskResumed;
use log::{debug, warn};

use crate::container::Container;
use crate::kill;
use crate::pod::Pod;

/// Who waits for a checkpoint of a container.
pub(crate) struct Asker(Option<(Arc<Pod>, Arc<Container>)>);

impl Asker {
    /// One that waits.
    pub(crate) fn new(pod: &Arc<Pod>, container: &Arc<Container>) -> Self {
        Self(Some((pod.clone(), container.clone())))
    }

    /// It has its answer, and takes care itself.
    pub(crate) fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        let Some((pod, container)) = self.0.take() else { return };
        tokio::spawn(async move {
            // This waits for the end of the checkpoint.
            match kill::resume(&container).await {
                Ok(()) => {
                    warn!(
                        "nobody waits for the checkpoint of container {} any more: it goes on",
                        container.id
                    );
                    let container_id = container.id.clone();
                    pod.events.publish(TaskResumed { container_id, ..Default::default() }).await;
                }
                // It was not frozen.
                Err(e) => debug!("container {} is not resumed: {e}", container.id),
            }
        });
    }
}

/// Whoever asks for a checkpoint of the whole pod. That is thawed by whoever froze it, who looks at times whether anybody
/// still waits.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Arc<AtomicBool>);

/// Tells whether nobody waits any more.
#[derive(Debug, Clone)]
pub(crate) struct Gone(Arc<AtomicBool>);

impl Waiting {
    /// What tells of its end.
    pub(crate) fn gone(&self) -> Gone {
        Gone(self.0.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Gone {
    /// Whether nobody waits any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
