// SPDX-License-Identifier: Apache-2.0
//! Waiting for what comes of itself: for a state, never for a time.

use std::time::{Duration, Instant};

use super::HarnessError;
use crate::kubelet::patience::patient;

/// Nothing that a test waits for takes nearly as long on a machine that is not stuck.
const SOON: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer.
///
/// # Errors
/// When there is none within a minute, with `what` was waited for; what `ask` fails with, at once.
pub async fn until<T>(
    what: &str,
    ask: impl AsyncFn() -> Result<Option<T>, HarnessError>,
) -> Result<T, HarnessError> {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if began.elapsed() > patient(SOON) {
            return Err(HarnessError::answer(what.to_owned(), "nothing, for a minute".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
