// SPDX-License-Identifier: Apache-2.0
//! Several byte streams over one socket.
//!
//! A frame is the number of its connection and the length of its payload, four bytes each, big endian, and the
//! payload. Connections are not opened or closed: both sides know their numbers. Frames are no messages: a reader
//! sees the payloads of its connection as one stream.
//!
//! The runtime breaks the connection when 256 frames wait for one reader, so a message of more than 1 MiB may not get
//! through to it; no answer of a plugin is nearly as long.
//!
//! Invariants: no frame that is written has more than [`FRAME_MAX`] bytes of payload; what is announced is never
//! allocated ahead of its arrival.
//!
//! Source: containerd/nri v0.12.2, pkg/net/multiplex/mux.go.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::codec::{Decoder, FramedRead};
use tokio_util::task::AbortOnDropHandle;

/// The connection on which the plugin serves.
pub const PLUGIN_SERVICE: u32 = 1;
/// The connection on which the runtime serves.
pub const RUNTIME_SERVICE: u32 = 2;
/// The longest payload that is written, in bytes. The runtime reads through a buffer of this size, and its
/// multiplexer fails a read into a buffer that is smaller than the frame (ENOMEM).
pub const FRAME_MAX: usize = 4096;
/// The longest payload that is accepted, in bytes: the header and the payload of the longest ttrpc message.
pub const PAYLOAD_MAX: u32 = 10 + (4 << 20);

const HEADER: usize = 8;
/// How much of one connection may wait for its reader, in bytes.
const BUFFER: usize = 64 * 1024;

/// The other side does not speak the protocol, or cannot be heard.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed, or ended within a frame's header.
    #[error("cannot read from the socket")]
    Read(#[from] io::Error),
    /// A frame announces more than any message has.
    #[error("a frame of connection {connection} announces {length} bytes, more than {PAYLOAD_MAX}")]
    TooLong {
        /// The frame's connection.
        connection: u32,
        /// What it announces, in bytes.
        length: u32,
    },
}

/// A part of a frame's payload, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The frame's connection.
    pub connection: u32,
    /// Never empty.
    pub bytes: Bytes,
}

/// Reads frames. Payloads come out in the pieces in which they arrive.
#[derive(Debug, Default)]
pub struct Frames {
    connection: u32,
    /// How much of the current frame is still to come, in bytes.
    remaining: usize,
}

impl Decoder for Frames {
    type Item = Chunk;
    type Error = FrameError;

    fn decode(&mut self, arrived: &mut BytesMut) -> Result<Option<Chunk>, FrameError> {
        // A frame without payload says nothing: go on with the next.
        while self.remaining == 0 {
            if arrived.len() < HEADER {
                return Ok(None);
            }
            self.connection = arrived.get_u32();
            let length = arrived.get_u32();
            let too_long = FrameError::TooLong { connection: self.connection, length };
            self.remaining = match usize::try_from(length) {
                Ok(remaining) if length <= PAYLOAD_MAX => remaining,
                _ => return Err(too_long),
            };
        }
        if arrived.is_empty() {
            return Ok(None);
        }
        let bytes = arrived.split_to(self.remaining.min(arrived.len())).freeze();
        self.remaining -= bytes.len();
        Ok(Some(Chunk { connection: self.connection, bytes }))
    }
}

/// The frames for these bytes of a connection, each with its header.
pub fn encode(connection: u32, bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    bytes.chunks(FRAME_MAX).map(move |payload| {
        let length = u32::try_from(payload.len()).unwrap_or(PAYLOAD_MAX);
        [&connection.to_be_bytes(), &length.to_be_bytes(), payload].concat()
    })
}

/// A socket that carries several connections. It is closed when this is dropped.
#[derive(Debug)]
pub struct Mux {
    receiving: AbortOnDropHandle<Result<(), FrameError>>,
    _sending: JoinSet<()>,
}

impl Mux {
    /// Carries one stream for each number over the socket. Frames of other numbers are dropped, as the runtime does.
    ///
    /// A stream whose reader is slow holds up all; one that nobody reads any more holds up none.
    pub fn start<T, const N: usize>(trunk: T, connections: [u32; N]) -> (Self, [DuplexStream; N])
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (from_trunk, to_trunk) = tokio::io::split(trunk);
        let to_trunk = Arc::new(Mutex::new(to_trunk));
        let mut sending = JoinSet::new();
        let mut inboxes = Vec::with_capacity(N);
        let streams = connections.map(|connection| {
            let (near, far) = tokio::io::duplex(BUFFER);
            let (outbox, inbox) = tokio::io::split(far);
            sending.spawn(send(connection, outbox, Arc::clone(&to_trunk)));
            inboxes.push((connection, inbox));
            near
        });
        let receiving = AbortOnDropHandle::new(tokio::spawn(receive(from_trunk, inboxes)));
        (Self { receiving, _sending: sending }, streams)
    }

    /// Waits until the other side has closed the socket. Must not be called again afterwards.
    ///
    /// # Errors
    /// The socket failed, or the other side does not speak the protocol; it is not read from any more.
    pub async fn closed(&mut self) -> Result<(), FrameError> {
        // It is only cancelled with this object, and does not panic.
        (&mut self.receiving).await.unwrap_or(Ok(()))
    }
}

async fn receive(
    trunk: impl AsyncRead + Unpin,
    mut inboxes: Vec<(u32, WriteHalf<DuplexStream>)>,
) -> Result<(), FrameError> {
    let mut frames = FramedRead::new(trunk, Frames::default());
    let ended = loop {
        match frames.next().await {
            None => break Ok(()),
            Some(Err(error)) => break Err(error),
            Some(Ok(chunk)) => {
                if let Some((_, inbox)) = inboxes.iter_mut().find(|(number, _)| *number == chunk.connection) {
                    // It fails when nobody reads the stream any more; the others live on.
                    inbox.write_all(&chunk.bytes).await.ok();
                }
            }
        }
    };
    for (_, mut inbox) in inboxes {
        inbox.shutdown().await.ok();
    }
    ended
}

/// Ends when the stream's owner drops it, or the socket is closed; the latter is `receive`'s to report.
async fn send(
    connection: u32,
    mut outbox: ReadHalf<DuplexStream>,
    trunk: Arc<Mutex<impl AsyncWrite + Unpin>>,
) {
    let mut bytes = BytesMut::with_capacity(FRAME_MAX);
    while let Ok(1..) = outbox.read_buf(&mut bytes).await {
        // Locked for a frame at a time, so that no connection waits for all of another's.
        for frame in encode(connection, &bytes) {
            if trunk.lock().await.write_all(&frame).await.is_err() {
                return;
            }
        }
        bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything that comes out of the bytes, joined where neighbours belong to one connection.
    fn decode(parts: &[&[u8]]) -> Result<Vec<(u32, Vec<u8>)>, FrameError> {
        let (mut frames, mut arrived) = (Frames::default(), BytesMut::new());
        let mut all: Vec<(u32, Vec<u8>)> = Vec::new();
        for part in parts {
            arrived.extend_from_slice(part);
            while let Some(chunk) = frames.decode(&mut arrived)? {
                match all.last_mut() {
                    Some((connection, bytes)) if *connection == chunk.connection => bytes.extend(chunk.bytes),
                    _ => all.push((chunk.connection, chunk.bytes.to_vec())),
                }
            }
        }
        Ok(all)
    }

    #[test]
    fn a_frame_is_number_length_and_payload() {
        let frames: Vec<_> = encode(2, b"abc").collect();
        assert_eq!(frames, [b"\0\0\0\x02\0\0\0\x03abc"]);
    }

    #[test]
    fn a_frame_that_announces_too_much_is_refused_before_it_arrives() {
        let longest = [1_u32.to_be_bytes(), PAYLOAD_MAX.to_be_bytes()].concat();
        assert_eq!(decode(&[&longest, b"x"]).unwrap(), [(1, b"x".to_vec())]);
        let longer = [1_u32.to_be_bytes(), (PAYLOAD_MAX + 1).to_be_bytes()].concat();
        assert!(
            matches!(decode(&[&longer]), Err(FrameError::TooLong { connection: 1, length }) if length > PAYLOAD_MAX)
        );
    }

    #[test]
    fn an_empty_frame_is_passed_over() {
        let empty = [[0; 8], [0; 8]].concat();
        assert_eq!(decode(&[&empty, b"\0\0\0\x01\0\0\0\x01x"]).unwrap(), [(1, b"x".to_vec())]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            writes in prop::collection::vec((1_u32..4, prop::collection::vec(any::<u8>(), 1..9000)), 1..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let frames: Vec<_> = writes.iter().flat_map(|(number, bytes)| encode(*number, bytes)).collect();
            prop_assert!(frames.iter().all(|frame| frame.len() <= HEADER + FRAME_MAX));
            let wire = frames.concat();
            let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(wire.len())).chain([0, wire.len()]).collect();
            at.sort_unstable();
            let parts: Vec<_> = at.windows(2).map(|pair| &wire[pair[0]..pair[1]]).collect();
            let mut expected: Vec<(u32, Vec<u8>)> = Vec::new();
            for (number, bytes) in writes {
                match expected.last_mut() {
                    Some((last, joined)) if *last == number => joined.extend(bytes),
                    _ => expected.push((number, bytes)),
                }
            }
            prop_assert_eq!(decode(&parts).unwrap(), expected);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..16)) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let sent: usize = parts.iter().map(|part| part.len()).sum();
            if let Ok(all) = decode(&parts) {
                prop_assert!(all.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() <= sent);
            }
        }
    }

    #[tokio::test]
    async fn streams_do_not_mix_and_one_without_a_reader_stops_none() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let (_mux, [mut one, mut two]) = Mux::start(ours, [1, 2]);
        let (_other, [mut their_one, their_two]) = Mux::start(theirs, [1, 2]);
        drop(their_two);
        let long = vec![7; 3 * BUFFER];
        two.write_all(&long).await.unwrap();
        one.write_all(b"hello").await.unwrap();
        let mut read = [0; 5];
        their_one.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
    }

    #[tokio::test]
    async fn readers_see_the_end_of_a_closed_socket() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let (mut mux, [mut stream]) = Mux::start(ours, [1]);
        drop(theirs);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        mux.closed().await.unwrap();
    }
}
