// SPDX-License-Identifier: Apache-2.0
//! Stays with the runtime over its restarts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};
use nri_plugin::nri::{self, Identity, Plugin, Session};

use crate::logger::chain;

/// Grows from try to try. Containers that are created meanwhile are not seen, so it stays short.
#[derive(Debug)]
struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(2);

    fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(Self::LONGEST);
        wait
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

/// Serves one runtime after the other on this socket, for ever; `gone` is called whenever one has gone.
pub(crate) async fn serve<P: Plugin>(socket: &Path, identity: &Identity, plugin: &Arc<P>, gone: impl Fn()) {
    let mut backoff = Backoff::default();
    let mut last = String::new();
    loop {
        let ended = attempt(socket, identity, plugin).await;
        gone();
        match ended {
            Ok(ended) => {
                warn!("the runtime hung up: {ended}; connecting again");
                backoff = Backoff::default();
                last.clear();
            }
            // The same reason again says nothing new.
            Err(reason) if reason == last => {}
            Err(reason) => {
                warn!("waiting for the runtime: {reason}");
                last = reason;
            }
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// One connection: `Ok` if it got as far as being told what runs here, with how it ended; else why it did not.
async fn attempt<P: Plugin>(socket: &Path, identity: &Identity, plugin: &Arc<P>) -> Result<String, String> {
    let trunk = nri::connect(socket).await.map_err(|error| chain(&error))?;
    let mut session =
        Session::register(trunk, identity, Arc::clone(plugin)).await.map_err(|error| chain(&error))?;
    info!(plugin:% = identity, socket:? = socket; "registered");
    let ended = match session.closed().await {
        Ok(()) => "it closed the connection".to_owned(),
        Err(error) => chain(&error),
    };
    if session.synchronized() { Ok(ended) } else { Err(format!("{ended} before it had accepted the plugin")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000, 2000]);
    }
}
