// SPDX-License-Identifier: Apache-2.0
//! Exec, attach and port-forward with streams, as `kubectl` has them through kubelet: the runtime names an address,
//! and there several streams share one WebSocket.
//!
//! Source: Kubernetes `k8s.io/apimachinery/pkg/util/remotecommand` (channels) and
//! `k8s.io/kubelet/pkg/cri/streaming/portforward` (`v4.channel.k8s.io`).

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::patience::patient;

/// The process's input.
pub const STDIN: u8 = 0;
/// The process's output.
pub const STDOUT: u8 = 1;
/// The process's other output.
pub const STDERR: u8 = 2;
/// How the process ended, as JSON.
pub const ENDED: u8 = 3;
/// The terminal's size, as JSON.
const RESIZE: u8 = 4;

/// The channels of exec and attach, which have no end of their own; and of port-forward: two for each port, data and
/// errors.
const PROTOCOL: &str = "v4.channel.k8s.io";

/// How long nothing may come before that is an error.
const SILENCE: Duration = Duration::from_secs(60);

/// Why there are no streams.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The runtime's address is none.
    #[error("{0} is no address of a stream")]
    Address(String),
    /// Nothing listens there.
    #[error("cannot connect to the stream")]
    Connect(#[from] std::io::Error),
    /// The protocol failed.
    #[error("the stream broke: {0}")]
    Broke(#[from] Box<Error>),
    /// Nothing came for a minute.
    #[error("nothing came from the stream; it had said {0:?}")]
    Silent(String),
}

/// Several streams over one connection.
#[derive(Debug)]
pub struct Streams {
    socket: WebSocketStream<TcpStream>,
    heard: Vec<(u8, Vec<u8>)>,
}

impl Streams {
    /// Connects to the address that the runtime gave.
    ///
    /// # Errors
    /// When nothing answers in this protocol.
    pub async fn open(url: &str) -> Result<Self, StreamError> {
        let rest = url.strip_prefix("http://").ok_or_else(|| StreamError::Address(url.to_owned()))?;
        let host = rest.split('/').next().unwrap_or_default();
        let mut request = format!("ws://{rest}").into_client_request().map_err(Box::new)?;
        let protocol = HeaderValue::from_static(PROTOCOL);
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        let (socket, _) = client_async(request, TcpStream::connect(host).await?).await.map_err(Box::new)?;
        Ok(Self { socket, heard: Vec::new() })
    }

    /// Writes to a channel.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn send(&mut self, channel: u8, data: &[u8]) -> Result<(), StreamError> {
        let message = Message::binary([&[channel], data].concat());
        Ok(self.socket.send(message).await.map_err(Box::new)?)
    }

    /// Sets the terminal's size in characters.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), StreamError> {
        self.send(RESIZE, format!(r#"{{"Width":{columns},"Height":{rows}}}"#).as_bytes()).await
    }

    /// Everything that came on a channel so far.
    #[must_use]
    pub fn heard(&self, channel: u8) -> String {
        let parts = self.heard.iter().filter(|(from, _)| *from == channel);
        let all: Vec<u8> = parts.flat_map(|(_, data)| data.clone()).collect();
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Listens until `text` has come on a channel.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn expect(&mut self, channel: u8, text: &str) -> Result<(), StreamError> {
        while !self.heard(channel).contains(text) {
            if !self.listen().await? {
                return Err(StreamError::Silent(self.heard(channel)));
            }
        }
        Ok(())
    }

    /// Listens until the other side has closed the connection.
    ///
    /// # Errors
    /// When it does not.
    pub async fn end(&mut self) -> Result<(), StreamError> {
        while self.listen().await? {}
        Ok(())
    }

    /// Takes what comes next; whether there was anything.
    async fn listen(&mut self) -> Result<bool, StreamError> {
        let next = tokio::time::timeout(patient(SILENCE), self.socket.next()).await;
        match next.map_err(|_| StreamError::Silent(self.heard(STDOUT)))? {
            Some(Ok(Message::Binary(data))) => {
                if let Some((channel, data)) = data.split_first() {
                    self.heard.push((*channel, data.to_vec()));
                }
                Ok(true)
            }
            Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(true),
            Some(
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::Protocol(_) | Error::Io(_)),
            )
            | None => Ok(false),
            Some(Err(error)) => Err(Box::new(error).into()),
        }
    }
}
