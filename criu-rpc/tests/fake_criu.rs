// SPDX-License-Identifier: Apache-2.0
//! The client against the fake CRIU: whole processes, no root, every fault.

#![allow(clippy::unwrap_used, clippy::tests_outside_test_module)] // nothing here but tests

use std::{
    fs::{self, File},
    io::Read,
    os::{fd::OwnedFd, unix::fs::symlink},
    path::PathBuf,
    time::Duration,
};

use criu_rpc::{RequestError, RestoreOptions, Restored, Swrk, Version};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(20);

/// The example of this package, which cargo builds with the tests.
fn fake() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(|deps| deps.parent()).unwrap().join("examples/fake_criu")
}

fn reap(pid: i32) -> WaitStatus {
    waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap().1
}

struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        symlink(fake(), dir.path().join("criu")).unwrap();
        fs::write(dir.path().join("criu.script"), script).unwrap();
        Self { dir }
    }

    fn swrk(&self) -> Swrk {
        Swrk::new(self.dir.path().join("criu"))
    }

    /// A restore; its result, its events, and CRIU's exit status.
    fn restore(
        &self,
        swrk: Swrk,
        refuse: &str,
    ) -> (Result<Restored, RequestError>, Vec<String>, Option<i32>) {
        let open = || OwnedFd::from(File::open(self.dir.path()).unwrap());
        let options = RestoreOptions::new(open(), open());
        let mut session = swrk.spawn().unwrap();
        assert!(session.version(LONG).unwrap() >= Version::new(4, 1, 0));
        let criu = session.pid();
        let mut events = Vec::new();
        let result = session.restore(&options, LONG, &mut |event| {
            events.push(event.script().to_owned());
            if event.script() == refuse { Err("no".into()) } else { Ok(()) }
        });
        (result, events, reap(criu).exit_status())
    }
}

#[test]
fn a_restored_init_is_our_child_and_has_our_stdio() {
    let scene = Scene::new(
        "version 4.3.0\ninit echo hello; exit 7\nnotify pre-restore\nnotify setup-namespaces\nnotify post-restore\nreply ok",
    );
    let (mut reader, writer) = std::io::pipe().unwrap();
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let mut swrk = scene.swrk();
    swrk.stdio([null(), writer.into(), null()]);
    let (result, events, status) = scene.restore(swrk, "");
    assert_eq!(events, ["pre-restore", "setup-namespaces", "post-restore"]);
    assert_eq!(status, Some(0));
    assert_eq!(reap(result.unwrap().pid).exit_status(), Some(7));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
}

#[test]
fn a_refusal_ends_the_restore() {
    let scene = Scene::new("init sleep 100\nnotify setup-namespaces\nreply ok");
    let (result, _, status) = scene.restore(scene.swrk(), "setup-namespaces");
    let Err(RequestError::Refused { completed: None, .. }) = result else { panic!("{result:?}") };
    assert_eq!(status, Some(1));
}

#[test]
fn a_failure_is_told_with_its_log() {
    let scene = Scene::new(
        "log Error (criu/mount.c:1): no such mount\nreply error 2 Error (criu/mount.c:1): no such mount\nexit 1",
    );
    let (result, _, status) = scene.restore(scene.swrk(), "");
    let error = result.unwrap_err().to_string();
    assert!(error.contains("No such file or directory") && error.contains("no such mount"), "{error}");
    assert_eq!(status, Some(1));
}

#[test]
fn every_fault_has_its_own_error() {
    let error = |script: &str| {
        let scene = Scene::new(script);
        scene.restore(scene.swrk(), "").0.unwrap_err()
    };
    assert!(matches!(error("garbage"), RequestError::Decode { .. }));
    assert!(matches!(error("truncate"), RequestError::Decode { .. }));
    assert!(matches!(error("exit 3"), RequestError::Closed { .. }));
    assert!(matches!(error("reply ok"), RequestError::Unexpected { .. }));
}
