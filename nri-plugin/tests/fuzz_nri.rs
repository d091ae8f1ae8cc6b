// SPDX-License-Identifier: Apache-2.0
//! Whatever comes out of the runtime's socket: the plugin survives it, and keeps no more of it than arrived.
//!
//! Each test runs for some seconds on any compiler; docs/develop/test.md says how to run them longer.
// This file is all tests, which clippy does not see.
#![allow(clippy::tests_outside_test_module, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bolero::TypeGenerator;
use bytes::BytesMut;
use nri_plugin::nri::api::{Event, StateChangeEvent};
use nri_plugin::nri::mux::{FRAME_MAX, Frames, PAYLOAD_MAX, PLUGIN_SERVICE, encode};
use nri_plugin::nri::{self, Identity, Plugin, Session};
use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::codec::Decoder;

/// How long one test runs unless it is told otherwise.
const TIME: Duration = Duration::from_secs(4);

/// Waits, but not for ever.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.unwrap()
}

/// The decoder as simple as can be, for a whole stream: the payloads of each connection joined, or a refusal.
fn joined(mut bytes: &[u8]) -> Option<BTreeMap<u32, Vec<u8>>> {
    let mut all = BTreeMap::<u32, Vec<u8>>::new();
    while let Some((header, rest)) = bytes.split_at_checked(8) {
        let (connection, length) = header.split_at(4);
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        let (connection, length) = (number(connection), number(length));
        if length > PAYLOAD_MAX {
            return None;
        }
        let (payload, rest) = rest.split_at(rest.len().min(usize::try_from(length).unwrap()));
        if !payload.is_empty() {
            all.entry(connection).or_default().extend(payload);
        }
        bytes = rest;
    }
    Some(all)
}

#[test]
fn the_decoder_means_the_same_by_any_bytes_in_any_pieces() {
    bolero::check!().with_type::<(Vec<u8>, Vec<u16>)>().with_test_time(TIME).for_each(|(bytes, cuts)| {
        let (mut frames, mut arrived) = (Frames::default(), BytesMut::new());
        let mut all = Some(BTreeMap::<u32, Vec<u8>>::new());
        let mut rest = bytes.as_slice();
        let mut cuts = cuts.iter();
        while !rest.is_empty() && all.is_some() {
            let length = cuts.next().map_or(rest.len(), |cut| usize::from(*cut) % rest.len() + 1);
            let (piece, later) = rest.split_at(length);
            rest = later;
            arrived.extend_from_slice(piece);
            loop {
                match frames.decode(&mut arrived) {
                    Ok(Some(chunk)) => {
                        assert!(!chunk.bytes.is_empty());
                        all.as_mut().unwrap().entry(chunk.connection).or_default().extend(&chunk.bytes);
                    }
                    Ok(None) => break,
                    Err(_) => {
                        all = None;
                        break;
                    }
                }
            }
        }
        assert_eq!(all, joined(bytes));
    });
}

/// What a runtime may send that has lost its mind.
#[derive(Debug, TypeGenerator)]
enum Sent {
    /// Anything at all.
    Bytes(Vec<u8>),
    /// A frame of any connection.
    Frame { connection: u8, payload: Vec<u8> },
    /// A message of ttrpc to the plugin, with any head.
    Ttrpc { stream: u32, kind: u8, flags: u8, payload: Vec<u8> },
    /// A call of one of the plugin's methods, or of none, with any request.
    Call { stream: u16, method: u8, request: Vec<u8> },
}

/// Source: containerd/nri pkg/api/api.proto, service Plugin.
const METHODS: [&str; 17] = [
    "Configure",
    "Synchronize",
    "Shutdown",
    "CreateContainer",
    "UpdateContainer",
    "StopContainer",
    "UpdatePodSandbox",
    "ValidateContainerAdjustment",
    "StateChange",
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "PostCreateContainer",
    "StartContainer",
    "PostStartContainer",
    "RemoveContainer",
    "None",
];

impl Sent {
    fn wire(&self) -> Vec<u8> {
        let to_plugin = |bytes: &[u8]| encode(PLUGIN_SERVICE, bytes).collect::<Vec<_>>().concat();
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Frame { connection, payload } => {
                encode((*connection).into(), payload).collect::<Vec<_>>().concat()
            }
            Self::Ttrpc { stream, kind, flags, payload } => {
                to_plugin(&message(*stream, *kind, *flags, payload))
            }
            Self::Call { stream, method, request } => {
                let method = METHODS.iter().cycle().nth((*method).into()).unwrap();
                to_plugin(&call(u32::from(*stream) * 2 + 1, method, request.clone()))
            }
        }
    }
}

/// Source: containerd/ttrpc PROTOCOL.md.
fn message(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, flags], payload].concat()
}

fn call(stream: u32, method: &str, payload: Vec<u8>) -> Vec<u8> {
    let service = "nri.pkg.api.v1alpha1.Plugin".to_owned();
    let request = ttrpc::Request { service, method: method.to_owned(), payload, ..Default::default() };
    message(stream, 1, 0, &request.write_to_bytes().unwrap())
}

struct Quiet;

#[async_trait]
impl Plugin for Quiet {
    fn events(&self) -> &[Event] {
        &nri::ALL
    }
}

/// Sends it all to a plugin that waits to be registered, then asks it something proper. It has to answer, or to have
/// hung up, as one does that cannot understand; never to be silent.
async fn survives(all: &[Sent]) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let identity = Identity::new("fuzzed", "00").unwrap();
    let plugin =
        tokio::spawn(async move { Session::register(ours, &identity, Arc::new(Quiet)).await.is_ok() });
    let (mut reader, mut writer) = theirs.into_split();
    let question = StateChangeEvent { event: Event::START_CONTAINER.into(), ..Default::default() };
    let question = call(0x7fff_ffff, "StateChange", question.write_to_bytes().unwrap());
    let said = async {
        for sent in all {
            writer.write_all(&sent.wire()).await?;
        }
        writer.write_all(&encode(PLUGIN_SERVICE, &question).collect::<Vec<_>>().concat()).await?;
        // It sees the end of the stream where a frame before has swallowed the question.
        writer.shutdown().await
    };
    let heard = async {
        let (mut all, mut piece) = (0, [0; FRAME_MAX]);
        while let Ok(length @ 1..) = reader.read(&mut piece).await {
            all += length;
        }
        all
    };
    // A write fails where it has hung up.
    let (_, heard) = soon(async { tokio::join!(said, heard) }).await;
    assert!(heard > 0, "it has not even asked to be registered");
    // Nobody answers its registration: it ends with the connection.
    assert!(!soon(plugin).await.unwrap());
}

#[test]
fn the_plugins_service_survives_any_runtime() {
    // What panics in a task of the session ends no test by itself.
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |information| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        before(information);
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    bolero::check!().with_type::<Vec<Sent>>().with_test_time(TIME).for_each(|all| {
        runtime.block_on(survives(all));
        assert_eq!(PANICS.load(Ordering::SeqCst), 0);
    });
}
