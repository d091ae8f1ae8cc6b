// SPDX-License-Identifier: Apache-2.0
//! How much longer than elsewhere everything may take on this machine.

use std::time::Duration;

/// `THAW_TIME_SCALE`, a whole number: 1 where it is not set, more on an emulated machine.
#[must_use]
pub fn time_scale() -> u32 {
    scale(std::env::var("THAW_TIME_SCALE").ok().as_deref())
}

/// A limit as long as this machine needs. What a test or the kubelet waits for at most goes through here.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    limit.saturating_mul(time_scale())
}

fn scale(value: Option<&str>) -> u32 {
    value.and_then(|value| value.parse().ok()).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_sensible_scale_a_limit_is_what_it_says() {
        assert_eq!([None, Some("0"), Some("x"), Some("10")].map(scale), [1, 1, 1, 10]);
    }
}
