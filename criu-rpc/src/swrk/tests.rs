// SPDX-License-Identifier: Apache-2.0
//! Starts real processes. The tests are their reaper.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsFd,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{WaitOptions, waitpid},
};

use super::*;

const SHOW: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/show-process.sh");

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer)
}

/// Reaps the process; its exit status, or what killed it, below 0.
fn reap(pid: i32) -> i32 {
    let (_, status) = waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap();
    status.exit_status().or_else(|| Some(-status.terminating_signal()?)).unwrap()
}

fn text(mut reader: File) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_process_has_what_it_was_given_and_nothing_else() {
    let leaked = fcntl_dupfd_cloexec(File::open("/dev/null").unwrap(), 200).unwrap();
    fcntl_setfd(&leaked, FdFlags::empty()).unwrap();
    let (reader, writer) = pipe();

    let mut swrk = Swrk::new(SHOW);
    assert_eq!(swrk.inherit(writer), 4);
    assert_eq!(swrk.inherit(File::open("/dev/zero").unwrap().into()), 5);
    let session = swrk.spawn().unwrap();

    let text = text(reader);
    assert_eq!(reap(session.pid()), 0);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "arguments: --no-default-config swrk 3");
    assert_eq!(lines[1], "environment: PATH");
    assert_eq!(lines[2], "descriptor 0: /dev/null");
    assert_eq!(lines[4], "descriptor 2: /dev/null");
    assert!(lines[5].starts_with("descriptor 3: socket:"), "{text}");
    assert_eq!(lines[6], "descriptor 5: /dev/zero");
    assert_eq!(lines[7], "descriptor 200: ", "a descriptor leaked");
    assert_eq!(lines[9], "blocked: 0000000000000000");
}

#[test]
fn a_folder_comes_before_all_others_and_variables_are_set() {
    let (reader, writer) = pipe();
    let mut swrk = Swrk::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/show-variables.sh"));
    swrk.search_first("/first".into()).env("MAP", "a=b,c=d");
    swrk.inherit(writer);
    let session = swrk.spawn().unwrap();
    assert_eq!((text(reader).as_str(), reap(session.pid())), ("/first a=b,c=d\n", 0));
}

#[test]
fn given_stdio_becomes_0_1_and_2_in_this_order() {
    let (reader, writer) = pipe();
    let open = |path| OwnedFd::from(File::open(path).unwrap());
    let mut swrk = Swrk::new(SHOW);
    swrk.stdio([open("/dev/zero"), open("/dev/urandom"), open("/dev/full")]);
    swrk.inherit(writer);
    let session = swrk.spawn().unwrap();
    let text = text(reader);
    assert_eq!(reap(session.pid()), 0);
    assert!(text.contains("descriptor 0: /dev/zero\n"), "{text}");
    assert!(text.contains("descriptor 2: /dev/full\n"), "{text}");
}

#[test]
fn a_criu_that_is_still_at_work_at_its_deadline_has_ended_when_that_is_told() {
    let session = Swrk::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/stay.sh")).spawn().unwrap();
    let (pid, work) = (session.pid(), tempfile::tempdir().unwrap());
    let work = File::open(work.path()).unwrap();
    let result = session.check(work.as_fd(), std::time::Duration::from_millis(100));
    assert!(matches!(result, Err(crate::RequestError::Deadline { .. })), "{result:?}");
    let ended = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG).unwrap();
    assert_eq!(ended.and_then(|(_, status)| status.terminating_signal()), Some(9));
}

#[test]
fn the_process_is_placed_before_it_has_a_cgroup_namespace_and_runs() {
    let mut seen = String::new();
    let place = |pid: i32| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
        seen = program.display().to_string();
        Ok(())
    };
    let mut swrk = Swrk::new("/bin/true");
    swrk.unshare_cgroup_namespace(true);
    let session = swrk.spawn_placed(place).unwrap();
    assert_ne!(seen, "/bin/true");
    assert_eq!(seen, std::env::current_exe().unwrap().display().to_string());
    reap(session.pid());
}

#[test]
fn a_process_without_a_cgroup_namespace_becomes_criu_while_it_is_placed() {
    let place = |pid: i32| {
        let exe = format!("/proc/{pid}/exe");
        while std::fs::read_link(&exe)? == std::env::current_exe()? {
            std::thread::yield_now();
        }
        Ok(())
    };
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/end-with-socket.sh");
    let session = Swrk::new(program).spawn_placed(place).unwrap();
    let pid = session.pid();
    drop(session);
    assert_eq!(reap(pid), 0);
}

#[test]
fn a_process_that_cannot_be_placed_is_killed_and_left_to_the_reaper() {
    for early in [true, false] {
        let mut swrk = Swrk::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/stay.sh"));
        swrk.unshare_cgroup_namespace(!early);
        let error = swrk.spawn_placed(|_| Err("no such cgroup".into())).unwrap_err();
        let SpawnError::Place { pid, source } = error else { panic!("{error}") };
        assert_eq!(source.to_string(), "no such cgroup");
        // The end of the gate may be quicker than the signal.
        assert!(matches!(reap(pid), 127 | -9), "{early}");
    }
}

#[test]
fn what_ended_a_process_is_the_reason_and_not_that_it_cannot_be_placed_then() {
    let place = |pid: i32| {
        while std::fs::read_to_string(format!("/proc/{pid}/stat"))?.split(' ').nth(2) != Some("Z") {
            std::thread::yield_now();
        }
        Err("no such process".into())
    };
    let error = Swrk::new("/dev/null").spawn_placed(place).unwrap_err();
    let SpawnError::Child { pid, step, .. } = error else { panic!("{error}") };
    assert_eq!(step, "run CRIU");
    assert_eq!(reap(pid), 127);
}

#[test]
fn a_program_that_is_not_executable_is_an_error() {
    let error = Swrk::new("/dev/null").spawn().unwrap_err();
    let SpawnError::Child { pid, step, source } = error else { panic!("{error}") };
    assert_eq!(step, "run CRIU");
    assert_eq!(source.raw_os_error(), Some(libc::EACCES));
    assert_eq!(reap(pid), 127);
}

#[test]
fn a_program_that_does_not_exist_is_named_with_the_places_where_it_was_looked_for() {
    let error = Swrk::new("no-such-criu").spawn().unwrap_err().to_string();
    assert!(error.starts_with("there is no program no-such-criu in "), "{error}");
    assert!(error.contains("/usr/sbin"), "{error}");
}

#[test]
fn the_end_of_the_process_is_the_end_of_the_socket() {
    let mut session = Swrk::new("/bin/true").spawn().unwrap();
    let error = session.version(std::time::Duration::from_secs(10)).unwrap_err();
    assert!(matches!(error, crate::RequestError::Closed { .. }), "{error}");
    reap(session.pid());
}

#[test]
fn our_own_path_is_searched_before_the_usual_directories() {
    assert_eq!(search_path(None).to_bytes(), format!("PATH={SEARCH}").as_bytes());
    assert_eq!(search_path(Some("/a:/b".into())).to_bytes(), format!("PATH=/a:/b:{SEARCH}").as_bytes());
}

#[test]
fn reports_of_every_step_are_told_apart() {
    let steps = [
        Step::Place,
        Step::CgroupNamespace,
        Step::Keyring,
        Step::Groups,
        Step::Descriptors,
        Step::Signals,
        Step::Exec,
    ];
    for step in steps {
        let (reader, writer) = pipe();
        let report = [(step as i32).to_ne_bytes(), libc::EPERM.to_ne_bytes()].concat();
        File::from(writer).write_all(&report).unwrap();
        let error = reported(1, reader.into(), &START).unwrap_err();
        let SpawnError::Child { step: told, source, .. } = error else { panic!("{error}") };
        assert_eq!(told, Step::describe(step as i32));
        assert_eq!(source.raw_os_error(), Some(libc::EPERM));
    }
}
