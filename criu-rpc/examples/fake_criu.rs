// SPDX-License-Identifier: Apache-2.0
//! Stands in for `criu swrk` in tests: does what a script says, well or badly.
//!
//! The script is the file beside the program whose name has `.script` appended (the environment of a real
//! CRIU is empty, so none is read): link the program to `DIR/criu` and write `DIR/criu.script`. Requests
//! for the version and the features are answered before the script begins; it begins when another
//! request has come. One command a line; `#` begins a comment:
//!
//! ```text
//! version 4.2.1                the version that it claims to be (anywhere)
//! log TEXT                     append a line to the log that the request names
//! image NAME TEXT              write a file into the images directory
//! init COMMAND                 run a shell command as restored init: a child of CRIU's parent
//! notify NAME                  notify, with init's pid where CRIU sends it; wait for the answer. When it is a
//!                              refusal: reply with an error and exit, as CRIU does
//! sleep MILLISECONDS
//! reply ok                     the request succeeded
//! reply error ERRNO TEXT       it failed
//! garbage                      send bytes that are no message
//! truncate                     send a reply without its last byte
//! oversize                     send two megabytes
//! hang                         do nothing until the client is gone
//! exit STATUS
//! ```
//!
//! At the end of the script it exits with 0. A mistake in the script ends it with 99.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test's program may stop

use std::{
    env, fs,
    io::Write,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Command, exit},
    thread,
    time::Duration,
};

use criu_rpc::image::{Message, Tag};
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

/// A number that can be in one byte of the wire; the fields are those of CRIU 4.2 images/rpc.proto.
const fn tag(number: u32) -> Tag {
    Tag::new(number, "field")
}

const RESTORE: u64 = 2;
const NOTIFY: u64 = 6;
const FEATURE_CHECK: u64 = 9;
const VERSION: u64 = 10;

struct Fake {
    socket: OwnedFd,
    request: Message,
    /// The restored init; 0 before there is one.
    init: i32,
}

fn main() {
    let mut arguments = env::args();
    let program = arguments.next().unwrap();
    let rest: Vec<String> = arguments.collect();
    let [.., mode, fd] = &rest[..] else { stop("usage: fake_criu swrk FD") };
    if mode != "swrk" {
        stop("usage: fake_criu swrk FD");
    }
    let script =
        fs::read_to_string(format!("{program}.script")).unwrap_or_else(|error| stop(&error.to_string()));
    let commands: Vec<&str> =
        script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let version = commands.iter().find_map(|line| line.strip_prefix("version ")).unwrap_or("4.2.1");
    let socket = inherited(fd.parse().unwrap());
    let request = first_request(&socket, version);
    let mut fake = Fake { socket, request, init: 0 };
    for command in commands {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        fake.run(verb, rest.trim());
    }
}

impl Fake {
    fn run(&mut self, verb: &str, rest: &str) {
        let (first, text) = rest.split_once(' ').unwrap_or((rest, ""));
        match verb {
            "version" => {}
            "log" => self.log(rest),
            "image" => fs::write(self.client_file(1).join(first), text).unwrap(),
            "init" => self.init = sibling(rest),
            "notify" => self.notify(rest),
            "sleep" => thread::sleep(Duration::from_millis(rest.parse().unwrap())),
            "reply" if first == "ok" => self.send(self.reply(true).as_bytes()),
            "reply" if first == "error" => {
                let (errno, message) = text.split_once(' ').unwrap_or((text, ""));
                self.fail(errno.parse().unwrap(), message);
            }
            "garbage" => self.send(b"\xff\xff\xffgarbage"),
            "truncate" => {
                let reply = self.reply(true);
                self.send(reply.as_bytes().split_last().unwrap().1);
            }
            "oversize" => {
                sockopt::set_socket_send_buffer_size_force(&self.socket, 4 << 20).unwrap();
                self.send(&vec![0; 2 << 20]);
            }
            "hang" => while receive(&self.socket).is_some() {},
            "exit" => exit(rest.parse().unwrap()),
            _ => stop(&format!("unknown command: {verb} {rest}")),
        }
    }

    /// A directory of the client's that the request names by descriptor, as CRIU opens it.
    fn client_file(&self, number: u32) -> PathBuf {
        let opts = self.request.message(tag(2)).unwrap().unwrap();
        let fd = opts.u64(tag(number)).unwrap().unwrap();
        let peer = sockopt::socket_peercred(&self.socket).unwrap().pid;
        format!("/proc/{}/fd/{fd}", peer.as_raw_nonzero()).into()
    }

    fn log(&self, line: &str) {
        let opts = self.request.message(tag(2)).unwrap().unwrap();
        let name = String::from_utf8(opts.bytes(tag(10)).unwrap().unwrap().to_vec()).unwrap();
        let path = self.client_file(17).join(name);
        let mut log = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(log, "(00.000001) {line}").unwrap();
    }

    fn notify(&self, script: &str) {
        let mut notify = Message::default();
        notify.set_bytes(tag(1), script.as_bytes());
        if matches!(script, "setup-namespaces" | "post-restore") {
            notify.set_u64(tag(2), u64::try_from(self.init).unwrap());
        }
        let mut message = response(NOTIFY, true);
        message.set_bytes(tag(5), notify.as_bytes());
        self.send(message.as_bytes());
        let answer = receive(&self.socket).unwrap_or_else(|| exit(1));
        let ignored = matches!(script, "network-unlock" | "pre-resume" | "post-resume");
        if answer.u64(tag(1)) != Ok(Some(NOTIFY)) || answer.bool(tag(3)) != Ok(true) && !ignored {
            self.log("Error (criu/cr-service.c:217): RPC client reported script error");
            self.fail(0, "RPC client reported script error");
            // CRIU takes down what it has restored.
            if let Some(init) = rustix::process::Pid::from_raw(self.init) {
                let _ = rustix::process::kill_process(init, rustix::process::Signal::KILL);
            }
            exit(1);
        }
    }

    fn reply(&self, success: bool) -> Message {
        let kind = self.request.u64(tag(1)).unwrap().unwrap();
        let mut message = response(kind, success);
        if kind == RESTORE {
            let pid = if success { i64::from(self.init) } else { -1 };
            let mut restore = Message::default();
            restore.set_u64(tag(1), pid.cast_unsigned());
            message.set_bytes(tag(4), restore.as_bytes());
        }
        message
    }

    fn fail(&self, errno: u64, text: &str) {
        let mut message = self.reply(false);
        if errno != 0 {
            message.set_u64(tag(7), errno);
        }
        if !text.is_empty() {
            message.set_bytes(tag(9), text.as_bytes());
        }
        self.send(message.as_bytes());
    }

    fn send(&self, bytes: &[u8]) {
        // The client may be gone: then there is nobody to tell.
        let _ = send(&self.socket, bytes, SendFlags::NOSIGNAL);
    }
}

/// The first request that is not for the version or the features; those are answered.
fn first_request(socket: &OwnedFd, version: &str) -> Message {
    loop {
        let request = receive(socket).unwrap_or_else(|| exit(0));
        let kind = request.u64(tag(1)).unwrap().unwrap();
        let mut message = response(kind, true);
        match kind {
            VERSION => message.set_bytes(tag(10), version_of(version).as_bytes()),
            FEATURE_CHECK => {
                let mut features = Message::default();
                [1, 2, 3].into_iter().for_each(|number| features.set_u64(tag(number), 1));
                message.set_bytes(tag(8), features.as_bytes());
            }
            _ => return request,
        }
        let _ = send(socket, message.as_bytes(), SendFlags::NOSIGNAL);
    }
}

fn version_of(text: &str) -> Message {
    let mut version = Message::default();
    for (number, part) in [1, 2, 4].into_iter().zip(text.split('.')) {
        version.set_u64(tag(number), part.trim().parse().unwrap());
    }
    version
}

fn response(kind: u64, success: bool) -> Message {
    let mut message = Message::default();
    message.set_u64(tag(1), kind);
    message.set_u64(tag(2), u64::from(success));
    message
}

/// The next message; `None` when the client is gone.
fn receive(socket: &OwnedFd) -> Option<Message> {
    let mut buffer = vec![0; 1 << 20];
    let (_, size) = recv(socket, &mut buffer[..], RecvFlags::empty()).ok()?;
    (size > 0).then(|| Message::parse(&buffer[..size]).unwrap())
}

fn stop(reason: &str) -> ! {
    eprintln!("fake_criu: {reason}");
    exit(99)
}

#[allow(unsafe_code)]
fn inherited(fd: i32) -> OwnedFd {
    // SAFETY: the number was given by the client, which left this descriptor open for this process.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fd.try_clone_to_owned().unwrap()
}

/// Runs a shell command as a child of this process's parent, with this process's stdin, stdout and stderr.
#[allow(unsafe_code)]
fn sibling(command: &str) -> i32 {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and a stack this is a fork; this process has one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid).unwrap() {
        -1 => stop("cannot clone"),
        0 => {
            let error = Command::new("/bin/sh").args(["-c", command]).exec();
            stop(&error.to_string())
        }
        pid => pid,
    }
}
