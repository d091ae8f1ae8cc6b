// SPDX-License-Identifier: Apache-2.0
//! Sessions with a scripted peer in CRIU's place.

use std::{
    fs::{self, File},
    io::{IoSlice, Read},
    mem::MaybeUninit,
    thread,
};

use proptest::prelude::*;
use rustix::{
    cmsg_space,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType, recv, send, sendmsg, socketpair,
    },
};
use tempfile::TempDir;

use super::*;
use crate::proto::rpc::{CriuRestoreResp, CriuVersion};

const LONG: Duration = Duration::from_secs(20);

/// CRIU's side of the socket.
struct Peer(OwnedFd);

impl Peer {
    fn read(&self) -> CriuReq {
        let mut buffer = vec![0; 4096];
        let (_, size) = recv(&self.0, &mut buffer[..], RecvFlags::empty()).unwrap();
        CriuReq::parse_from_bytes(&buffer[..size]).unwrap()
    }

    fn write(&self, response: &CriuResp) {
        self.write_bytes(&response.write_to_bytes().unwrap());
    }

    fn write_bytes(&self, bytes: &[u8]) {
        send(&self.0, bytes, SendFlags::NOSIGNAL).unwrap();
    }

    /// Notifies; the client's answer.
    fn notify(&self, script: &str, pid: Option<i32>) -> bool {
        self.write(&notification(script, pid));
        let answer = self.read();
        assert_eq!(answer.type_(), 6);
        answer.notify_success()
    }

    fn notify_with(&self, script: &str, descriptor: BorrowedFd<'_>) -> bool {
        let bytes = notification(script, None).write_to_bytes().unwrap();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty()).unwrap();
        self.read().notify_success()
    }
}

fn notification(script: &str, pid: Option<i32>) -> CriuResp {
    let notify = CriuNotify { script: Some(script.into()), pid, ..CriuNotify::default() };
    CriuResp { notify: MessageField::some(notify), ..response(6, true) }
}

fn response(kind: u32, success: bool) -> CriuResp {
    CriuResp { type_: Some(kind), success: Some(success), ..CriuResp::default() }
}

fn restored(pid: i32) -> CriuResp {
    let restore = CriuRestoreResp { pid: Some(pid), ..CriuRestoreResp::default() };
    CriuResp { restore: MessageField::some(restore), ..response(2, true) }
}

fn with_peer(script: impl FnOnce(Peer) + Send + 'static) -> (Session, thread::JoinHandle<()>) {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (Session::new(ours, 1, None), thread::spawn(move || script(Peer(theirs))))
}

fn directories() -> (TempDir, RestoreOptions) {
    let dir = tempfile::tempdir().unwrap();
    let open = || OwnedFd::from(File::open(dir.path()).unwrap());
    let options = RestoreOptions::new(open(), open());
    (dir, options)
}

/// A restore with a peer; its result and the names of its events.
fn restore(
    options: &RestoreOptions,
    deadline: Duration,
    refuse: &str,
    script: impl FnOnce(Peer) + Send + 'static,
) -> (Result<Restored, RequestError>, Vec<String>) {
    let (session, peer) = with_peer(script);
    let mut events = Vec::new();
    let result = session.restore(options, deadline, &mut |event| {
        events.push(event.script().to_owned());
        if event.script() == refuse { Err("not today".into()) } else { Ok(()) }
    });
    peer.join().unwrap();
    (result, events)
}

#[test]
fn a_restore_goes_through_its_events_in_order_and_ends_with_the_pid() {
    let (_dir, options) = directories();
    let (result, events) = restore(&options, LONG, "", |peer| {
        let request = peer.read();
        assert_eq!(request.type_(), 2);
        assert!(!request.keep_open());
        assert_eq!(request.opts.log_file(), b"restore.log");
        assert!(peer.notify("pre-restore", None));
        assert!(peer.notify("setup-namespaces", Some(4711)));
        assert!(peer.notify("brand-new", None));
        assert!(peer.notify("post-restore", Some(4711)));
        peer.write(&restored(4711));
    });
    assert_eq!(result.unwrap(), Restored { pid: 4711 });
    assert_eq!(events, ["pre-restore", "setup-namespaces", "brand-new", "post-restore"]);
}

#[test]
fn a_refused_event_tells_criu_and_is_the_source_of_the_error() {
    let (_dir, options) = directories();
    let (result, events) = restore(&options, LONG, "setup-namespaces", |peer| {
        peer.read();
        assert!(peer.notify("pre-restore", None));
        assert!(!peer.notify("setup-namespaces", Some(7)));
        assert!(peer.notify("network-unlock", None));
        peer.write(&CriuResp { cr_errmsg: Some(b"script error".to_vec()), ..response(2, false) });
    });
    let RequestError::Refused { script, completed, source, .. } = result.unwrap_err() else { panic!() };
    assert_eq!(
        (script.as_str(), completed, source.to_string().as_str()),
        ("setup-namespaces", None, "not today")
    );
    assert_eq!(events, ["pre-restore", "setup-namespaces"]);
}

#[test]
fn a_refusal_that_criu_ignores_names_the_process_that_runs() {
    let (_dir, options) = directories();
    let (result, _) = restore(&options, LONG, "pre-resume", |peer| {
        peer.read();
        assert!(!peer.notify("pre-resume", None));
        peer.write(&restored(12));
    });
    assert!(matches!(result, Err(RequestError::Refused { completed: Some(12), .. })));
}

#[test]
fn a_refusal_wins_over_the_death_of_criu_that_follows_it() {
    let (_dir, options) = directories();
    let (result, _) = restore(&options, LONG, "pre-restore", |peer| {
        peer.read();
        peer.notify("pre-restore", None);
    });
    assert!(matches!(result, Err(RequestError::Refused { completed: None, .. })));
}

#[test]
fn a_failure_carries_errno_message_and_the_lines_of_the_log() {
    let (dir, options) = directories();
    fs::write(dir.path().join("restore.log"), "(0.1) x\n(0.2) Error (criu/a.c:1): no y\n").unwrap();
    let (result, _) = restore(&options, LONG, "", |peer| {
        peer.read();
        let failure =
            CriuResp { cr_errno: Some(17), cr_errmsg: Some(b"no \xff y\n".to_vec()), ..response(2, false) };
        peer.write(&failure);
    });
    let RequestError::Failed { errno, message, log, .. } = result.unwrap_err() else { panic!() };
    assert_eq!((errno, message.as_str()), (17, "no \u{fffd} y"));
    assert_eq!(log.0, ["(0.1) x", "(0.2) Error (criu/a.c:1): no y"]);
}

#[test]
fn a_failure_of_no_type_is_a_failure() {
    let (_dir, options) = directories();
    let (result, _) = restore(&options, LONG, "", |peer| {
        peer.read();
        peer.write(&CriuResp { cr_errno: Some(56), ..response(0, false) });
    });
    assert!(matches!(result, Err(RequestError::Failed { errno: 56, .. })));
}

#[test]
fn the_master_of_a_terminal_is_handed_over() {
    let (dir, options) = directories();
    fs::write(dir.path().join("master"), "tty").unwrap();
    let master = File::open(dir.path().join("master")).unwrap();
    let (session, peer) = with_peer(move |peer| {
        peer.read();
        assert!(peer.notify_with("orphan-pts-master", master.as_fd()));
        peer.write(&restored(2));
    });
    let mut got = None;
    let result = session.restore(&options, LONG, &mut |event| {
        if let Event::OrphanPtsMaster(master) = event {
            got = Some(master);
        }
        Ok(())
    });
    peer.join().unwrap();
    result.unwrap();
    let mut text = String::new();
    File::from(got.unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "tty");
}

#[test]
fn an_end_without_an_answer_is_an_error() {
    let (dir, options) = directories();
    fs::write(dir.path().join("restore.log"), "Error (a.c:1): killed\n").unwrap();
    let (result, _) = restore(&options, LONG, "", |peer| drop(peer.read()));
    let RequestError::Closed { log, .. } = result.unwrap_err() else { panic!() };
    assert_eq!(log.0, ["Error (a.c:1): killed"]);
}

#[test]
fn a_criu_that_hangs_meets_the_deadline() {
    let (_dir, options) = directories();
    let (result, events) = restore(&options, Duration::from_millis(100), "", |peer| {
        peer.read();
        assert!(peer.notify("pre-restore", None));
        // Nothing more: returns when the session is dropped.
        let (_, size) = recv(&peer.0, &mut [0u8; 1], RecvFlags::empty()).unwrap();
        assert_eq!(size, 0);
    });
    assert!(matches!(result, Err(RequestError::Deadline { .. })));
    assert_eq!(events, ["pre-restore"]);
}

#[test]
fn a_message_that_is_not_rpc_is_an_error() {
    let (_dir, options) = directories();
    for bytes in [&b"\xff\xff\xff"[..], b"\x08", b"\x08\x02", b"hello, world"] {
        let (result, _) = restore(&options, LONG, "", move |peer| {
            peer.read();
            peer.write_bytes(bytes);
        });
        assert!(matches!(result, Err(RequestError::Decode { .. })), "{bytes:?}");
    }
}

#[test]
fn a_message_that_is_too_long_is_not_read() {
    let (_dir, options) = directories();
    let (result, _) = restore(&options, LONG, "", |peer| {
        peer.read();
        // Root may have send buffers above the limit; others cannot even send such a message.
        if rustix::net::sockopt::set_socket_send_buffer_size_force(&peer.0, 4 << 20).is_ok() {
            peer.write_bytes(&vec![0; MESSAGE + 1]);
        }
    });
    let error = result.unwrap_err();
    if let RequestError::TooLarge { size, limit, .. } = error {
        assert_eq!((size, limit), (MESSAGE + 1, MESSAGE));
    } else {
        assert!(!rustix::process::geteuid().is_root(), "{error}");
    }
}

#[test]
fn answers_to_another_request_are_refused() {
    let (_dir, options) = directories();
    for answer in [response(1, true), response(2, true), notification("post-restore", None)] {
        let (result, _) = restore(&options, LONG, "", move |peer| {
            peer.read();
            peer.write(&answer);
        });
        assert!(matches!(result, Err(RequestError::Unexpected { .. })));
    }
}

#[test]
fn version_and_features_are_asked_of_one_process() {
    let (mut session, peer) = with_peer(|peer| {
        let request = peer.read();
        assert_eq!((request.type_(), request.keep_open()), (10, true));
        let version = CriuVersion {
            major_number: Some(4),
            minor_number: Some(2),
            sublevel: Some(1),
            ..CriuVersion::default()
        };
        peer.write(&CriuResp { version: MessageField::some(version), ..response(10, true) });
        let request = peer.read();
        assert_eq!((request.type_(), request.keep_open()), (9, true));
        assert!(request.features.mem_track() && request.features.lazy_pages());
        let features = CriuFeatures { lazy_pages: Some(true), ..CriuFeatures::default() };
        peer.write(&CriuResp { features: MessageField::some(features), ..response(9, true) });
    });
    assert_eq!(session.version(LONG).unwrap(), Version::new(4, 2, 1));
    let features = session.features(LONG).unwrap();
    assert_eq!((features.mem_track, features.lazy_pages), (false, true));
    peer.join().unwrap();
}

#[test]
fn a_dump_that_succeeds_with_an_error_text_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let open = || OwnedFd::from(File::open(dir.path()).unwrap());
    let options = DumpOptions::new(5, open(), open());
    let (session, peer) = with_peer(|peer| {
        let request = peer.read();
        assert_eq!((request.type_(), request.opts.pid()), (1, 5));
        peer.write(&CriuResp { cr_errmsg: Some(b"rlimit".to_vec()), ..response(1, true) });
    });
    session.dump(&options, LONG, &mut |_| Ok(())).unwrap();
    peer.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_message_makes_a_restore_panic(messages in prop::collection::vec(any::<Vec<u8>>(), 1..8)) {
        let (_dir, options) = directories();
        restore(&options, LONG, "", move |peer| {
            peer.read();
            for message in messages {
                // The session may have given up already.
                let _ = send(&peer.0, &message, SendFlags::NOSIGNAL);
            }
        }).0.unwrap_err();
    }

    #[test]
    fn no_changed_bit_of_a_real_answer_makes_a_restore_panic(bit in 0usize..128) {
        let (_dir, options) = directories();
        let mut bytes = notification("setup-namespaces", Some(7)).write_to_bytes().unwrap();
        let at = bit / 8 % bytes.len();
        bytes[at] ^= 1 << (bit % 8);
        restore(&options, LONG, "", move |peer| {
            peer.read();
            let _ = send(&peer.0, &bytes, SendFlags::NOSIGNAL);
        }).0.unwrap_err();
    }
}
