// SPDX-License-Identifier: Apache-2.0
//! A node in miniature for the real shim: a containerd that keeps the events, an OCI runtime and a CRIU that do as
//! they are told, a store of checkpoints. Everything lies in a directory of its own and is gone after the test.
//!
//! Tests need root, because the shim mounts and makes cgroups: without it they say so and pass.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test may stop
#![allow(dead_code)] // each test program uses a part

pub(crate) mod bundle;
pub(crate) mod checkpoint;
pub(crate) mod events;
pub(crate) mod node;
pub(crate) mod shim;
pub(crate) mod stdio;
pub(crate) mod traces;

/// Waits, but not for ever.
pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(std::time::Duration::from_secs(10), work).await;
    waited.unwrap_or_else(|_| panic!("nothing happened for 10 s: {what}"))
}

/// Asks again and again until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
}
