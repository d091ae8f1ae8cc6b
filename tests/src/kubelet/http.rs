// SPDX-License-Identifier: Apache-2.0
//! One HTTP/1.1 GET over a connection of its own: enough for a probe.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The most of an answer that is read, bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body; not UTF-8 is replaced.
    pub body: String,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// No connection, or it broke.
    #[error("GET http://{address}{path}: {source}")]
    Io {
        /// Where to.
        address: SocketAddr,
        /// Which path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("GET http://{address}{path}: no answer within {limit:?}")]
    Late {
        /// Where to.
        address: SocketAddr,
        /// Which path.
        path: String,
        /// The time that was given.
        limit: Duration,
    },
    /// The answer is not HTTP.
    #[error("GET http://{address}{path}: the answer is not HTTP")]
    NotHttp {
        /// Where to.
        address: SocketAddr,
        /// Which path.
        path: String,
    },
}

/// Fetches `path` from `address` and reads the answer to its end, at most `limit` long.
///
/// # Errors
/// [`GetError`].
pub async fn get(address: SocketAddr, path: &str, limit: Duration) -> Result<Answer, GetError> {
    let path = path.to_owned();
    match tokio::time::timeout(limit, exchange(address, &path)).await {
        Err(_) => Err(GetError::Late { address, path, limit }),
        Ok(Err(source)) => Err(GetError::Io { address, path, source }),
        Ok(Ok(raw)) => parse(&raw).ok_or(GetError::NotHttp { address, path }),
    }
}

async fn exchange(address: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/1.36\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut raw = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut raw).await?;
    Ok(raw)
}

fn parse(raw: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(raw);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    if !words.next()?.starts_with("HTTP/1.") {
        return None;
    }
    Some(Answer { status: words.next()?.parse().ok()?, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_read() {
        let answer = parse(b"HTTP/1.0 204 No Content\r\nServer: x\r\n\r\nbody").unwrap();
        assert_eq!(answer, Answer { status: 204, body: "body".into() });
    }

    #[test]
    fn what_is_not_http_is_no_answer() {
        for raw in ["", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\n"] {
            assert_eq!(parse(raw.as_bytes()), None, "{raw:?}");
        }
    }
}
