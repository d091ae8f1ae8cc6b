// SPDX-License-Identifier: Apache-2.0
//! The counting program of `workloads/counter.py`, asked from outside.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::HarnessError;
use crate::kubelet::http::{self, Answer, GetError};
use crate::kubelet::patience::patient;
use crate::kubelet::state::PodState;

/// Where it listens unless told otherwise.
pub const PORT: u16 = 8080;
/// How long one answer may take; the checksum over the memory is part of some.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it may take until it answers at all.
const APPEAR: Duration = Duration::from_secs(30);

/// What the program says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct State {
    /// How far it has counted.
    pub count: u64,
    /// The megabytes that it holds.
    pub mb: u64,
    /// Whether the checksum over them was right when it was last taken.
    pub crc_ok: bool,
    /// The host name that it sees now.
    pub hostname: String,
    /// Its process id in its own PID namespace.
    pub pid: u32,
    /// When it started, nanoseconds since 1970: the same for as long as it is the same program.
    pub started: String,
}

/// Asks the program in a pod how it is, and waits until it answers.
///
/// # Errors
/// When it does not answer within half a minute.
pub async fn state(pod: &PodState, port: u16) -> Result<State, HarnessError> {
    parse(&get(pod, port, "/").await?)
}

/// The same after the checksum was taken again.
///
/// # Errors
/// As [`state`].
pub async fn verify(pod: &PodState, port: u16) -> Result<State, HarnessError> {
    parse(&get(pod, port, "/verify").await?)
}

/// Ends the program. It closes the connection without an answer.
///
/// # Errors
/// When the pod has no address.
pub async fn exit(pod: &PodState, port: u16, code: i32) -> Result<(), HarnessError> {
    match http::get(address(pod, port)?, &format!("/exit?code={code}"), patient(ANSWER)).await {
        Ok(_) | Err(GetError::NotHttp { .. } | GetError::Io { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn get(pod: &PodState, port: u16, path: &str) -> Result<Answer, HarnessError> {
    let (address, began) = (address(pod, port)?, Instant::now());
    loop {
        match http::get(address, path, patient(ANSWER)).await {
            Err(GetError::Io { .. }) if began.elapsed() < patient(APPEAR) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            answered => return Ok(answered?),
        }
    }
}

fn address(pod: &PodState, port: u16) -> Result<SocketAddr, HarnessError> {
    let ip =
        pod.ip.parse().map_err(|_| HarnessError::answer("the runtime", format!("address {:?}", pod.ip)))?;
    Ok(SocketAddr::new(ip, port))
}

fn parse(answer: &Answer) -> Result<State, HarnessError> {
    serde_json::from_str(&answer.body).map_err(|_| HarnessError::answer("the counter", answer.body.clone()))
}
