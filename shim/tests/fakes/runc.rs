// SPDX-License-Identifier: Apache-2.0
//! Stands in for runc in tests: plain processes instead of containers, the same command line, files and exit status.
//!
//! Link it to `DIR/runc`. Beside it lie `runc.calls`, one line for each call (its command and the words after it),
//! and `runc.script`, whose lines change what a command does:
//!
//! ```text
//! fail COMMAND TEXT            log TEXT as runc logs an error, and fail
//! mute COMMAND                 fail and log nothing
//! slow COMMAND MILLISECONDS    take so long after the work is done
//! hold COMMAND FILE            end only when the file is there
//! ```
//!
//! A container's init waits for `start` on a fifo, as runc's does. The processes of a container are those of the
//! init's process group, its execs, and those in the cgroups that its state file names. A sandbox, by the annotation
//! of containerd's CRI, gets network, IPC and UTS namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test's program may stop

use std::collections::BTreeSet;
use std::fs;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// What takes a value; all other words with a dash take none.
const WITH_VALUE: [&str; 8] = [
    "--root",
    "--log",
    "--log-format",
    "--bundle",
    "--pid-file",
    "--console-socket",
    "--process",
    "--resources",
];

struct Call {
    options: Vec<(String, String)>,
    command: String,
    words: Vec<String>,
    program: PathBuf,
}

fn main() {
    let call = Call::parse();
    call.note();
    call.fail_as_told();
    match call.command.as_str() {
        "features" => println!("{}", json!({ "ociVersionMin": "1.0.0", "ociVersionMax": "1.2.0" })),
        "create" => call.create(),
        "start" => fs::write(call.state_dir().join("exec.fifo"), "go\n").unwrap(),
        "exec" => call.exec(),
        "kill" => call.kill(),
        "delete" => call.delete(),
        "pause" => call.signal_all(Signal::STOP),
        "resume" => call.signal_all(Signal::CONT),
        "update" => {
            let resources = fs::read(call.option("--resources").unwrap()).unwrap();
            fs::write(call.state_dir().join("resources.json"), resources).unwrap();
        }
        "ps" => println!("{}", json!(call.pids())),
        other => call.fail(&format!("unknown command {other}")),
    }
    call.be_slow_as_told();
}

impl Call {
    fn parse() -> Self {
        let mut arguments = std::env::args();
        let program = PathBuf::from(arguments.next().unwrap());
        let (mut options, mut words) = (Vec::new(), Vec::new());
        while let Some(word) = arguments.next() {
            match word.split_once('=') {
                Some((name, value)) if word.starts_with("--") => options.push((name.into(), value.into())),
                _ if WITH_VALUE.contains(&word.as_str()) => options.push((word, arguments.next().unwrap())),
                _ if word.starts_with('-') => options.push((word, String::new())),
                _ => words.push(word),
            }
        }
        let command = if words.is_empty() { String::new() } else { words.remove(0) };
        Self { options, command, words, program }
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(option, _)| option == name).map(|(_, value)| value.as_str())
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.program.with_extension(suffix)
    }

    fn note(&self) {
        let mut calls = fs::OpenOptions::new().create(true).append(true).open(self.beside("calls")).unwrap();
        writeln!(calls, "{} {}", self.command, self.words.join(" ")).unwrap();
    }

    /// The rest of the script's line that begins so.
    fn told(&self, verb: &str) -> Option<String> {
        let script = fs::read_to_string(self.beside("script")).unwrap_or_default();
        let rest = |line: &str| {
            let mut words = line.splitn(3, ' ');
            let ours = words.next() == Some(verb) && words.next() == Some(&self.command);
            ours.then(|| words.next().unwrap_or_default().to_owned())
        };
        script.lines().find_map(rest)
    }

    fn fail_as_told(&self) {
        if self.told("mute").is_some() {
            exit(1);
        }
        if let Some(text) = self.told("fail") {
            self.fail(&text);
        }
    }

    fn be_slow_as_told(&self) {
        if let Some(milliseconds) = self.told("slow") {
            std::thread::sleep(Duration::from_millis(milliseconds.parse().unwrap()));
        }
        if let Some(file) = self.told("hold") {
            while !Path::new(&file).exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn fail(&self, text: &str) -> ! {
        let line = json!({ "level": "error", "msg": text, "time": "2026-11-22T18:15:00Z" });
        if let Some(log) = self.option("--log") {
            let mut log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
            writeln!(log, "{line}").unwrap();
        }
        exit(1)
    }

    fn id(&self) -> &str {
        &self.words[0]
    }

    fn state_dir(&self) -> PathBuf {
        Path::new(self.option("--root").unwrap()).join(self.id())
    }

    fn state(&self) -> Value {
        match fs::read(self.state_dir().join("state.json")) {
            Ok(json) => serde_json::from_slice(&json).unwrap(),
            Err(_) => self.fail("container does not exist"),
        }
    }

    fn create(&self) {
        let bundle = Path::new(self.option("--bundle").unwrap());
        let spec: Value = serde_json::from_slice(&fs::read(bundle.join("config.json")).unwrap()).unwrap();
        let dir = self.state_dir();
        fs::create_dir_all(&dir).unwrap();
        let fifo = dir.join("exec.fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let sandbox = spec["annotations"]["io.kubernetes.cri.container-type"] == "sandbox";
        let mut init = Command::new(if sandbox { "unshare" } else { "sh" });
        if sandbox {
            init.args(["--net", "--ipc", "--uts", "sh"]);
        }
        init.args(["-c", "read -r _ <\"$0\"; exec \"$@\""]).arg(&fifo).args(words(&spec["process"]["args"]));
        let descriptors: Vec<String> = (0..3)
            .map(|fd| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap().display().to_string())
            .collect();
        let pid = self.spawn(init);
        let state = json!({ "id": self.id(), "init_process_pid": pid, "external_descriptors": descriptors });
        fs::write(dir.join("state.json"), state.to_string()).unwrap();
        self.write_pid(pid);
    }

    fn exec(&self) {
        self.state();
        let process = fs::read(self.option("--process").unwrap()).unwrap();
        let process: Value = serde_json::from_slice(&process).unwrap();
        let args: Vec<&str> = words(&process["args"]).collect();
        let mut command = Command::new(args[0]);
        command.args(&args[1..]);
        let pid = self.spawn(command);
        let execs = self.state_dir().join("execs");
        let mut execs = fs::OpenOptions::new().create(true).append(true).open(execs).unwrap();
        writeln!(execs, "{pid}").unwrap();
        self.write_pid(pid);
    }

    /// Starts a process that outlives this one, as the leader of a group.
    fn spawn(&self, mut command: Command) -> u32 {
        command.process_group(0).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        // So that a test finds what it has started.
        command.env("FAKE_RUNC", &self.program);
        if let Some(socket) = self.option("--console-socket") {
            let (master, terminal) = terminal();
            let ends = [0; 3].map(|_| Stdio::from(terminal.try_clone().unwrap()));
            let [stdin, stdout, stderr] = ends;
            command.stdin(stdin).stdout(stdout).stderr(stderr);
            hand_over(Path::new(socket), &master);
        }
        match command.spawn() {
            Ok(child) => child.id(),
            Err(e) => self.fail(&format!("exec: {:?}: {e}", command.get_program())),
        }
    }

    fn write_pid(&self, pid: u32) {
        fs::write(self.option("--pid-file").unwrap(), pid.to_string()).unwrap();
    }

    /// Everything of the container that is alive.
    fn pids(&self) -> BTreeSet<i32> {
        let state = self.state();
        let init = i32::try_from(state["init_process_pid"].as_i64().unwrap()).unwrap();
        let mut pids: BTreeSet<i32> = [init].into();
        let listed = |path: &Path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()
        };
        pids.extend(listed(&self.state_dir().join("execs")));
        for cgroup in cgroups(&state) {
            pids.extend(listed(&cgroup.join("cgroup.procs")));
        }
        let all =
            procfs::process::all_processes().unwrap().flatten().filter_map(|process| process.stat().ok());
        let all: Vec<_> = all.filter(|stat| stat.state != 'Z').collect();
        let mine = |stat: &&procfs::process::Stat| stat.pgrp == init || pids.contains(&stat.pid);
        all.iter().filter(mine).map(|stat| stat.pid).collect()
    }

    fn signal_all(&self, signal: Signal) {
        for pid in self.pids() {
            // Gone already is as good.
            let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
        }
    }

    fn kill(&self) {
        let signal = &self.words[1];
        if self.option("--all").is_some() {
            return self.signal_all(Signal::from_named_raw(signal.parse().unwrap()).unwrap());
        }
        // The shell knows the real-time signals, too.
        let kill = format!("kill -{signal} {}", self.state()["init_process_pid"]);
        if !Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status().unwrap().success() {
            self.fail("container not running");
        }
    }

    fn delete(&self) {
        let force = self.option("--force").is_some();
        if !self.state_dir().exists() {
            if force { return } else { self.fail("container does not exist") }
        }
        if !force && !self.pids().is_empty() {
            self.fail("cannot delete container that is not stopped");
        }
        for _ in 0..1000 {
            if self.pids().is_empty() {
                break;
            }
            self.signal_all(Signal::KILL);
            std::thread::sleep(Duration::from_millis(2));
        }
        cgroups(&self.state()).iter().for_each(|cgroup| drop(fs::remove_dir(cgroup)));
        fs::remove_dir_all(self.state_dir()).unwrap();
    }
}

fn words(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The cgroups of a container that was restored and made known to runc.
fn cgroups(state: &Value) -> BTreeSet<PathBuf> {
    let paths = state["cgroup_paths"].as_object().into_iter().flatten();
    paths.filter_map(|(_, path)| path.as_str()).map(PathBuf::from).collect()
}

/// A new terminal: its master and the end for the process.
#[allow(unsafe_code)]
fn terminal() -> (OwnedFd, OwnedFd) {
    let open = |path: &str| {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        OwnedFd::from(file)
    };
    let master = open("/dev/ptmx");
    // SAFETY: the descriptor is open; no memory is passed.
    assert_eq!(unsafe { libc::unlockpt(master.as_raw_fd()) }, 0);
    let mut name = [0; 64];
    // SAFETY: the descriptor is open, and the buffer as long as is said.
    assert_eq!(unsafe { libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), name.len()) }, 0);
    let name: Vec<u8> = name.iter().take_while(|c| **c != 0).map(|c| c.cast_unsigned()).collect();
    let terminal = open(std::str::from_utf8(&name).unwrap());
    (master, terminal)
}

/// As runc sends a terminal to its caller.
fn hand_over(socket: &Path, master: &OwnedFd) {
    let socket = UnixStream::connect(socket).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    rustix::net::sendmsg(&socket, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::empty()).unwrap();
}
