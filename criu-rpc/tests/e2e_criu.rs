// SPDX-License-Identifier: Apache-2.0
//! The client against the real CRIU, on the disposable node: `scripts/test criu`. Needs root, CRIU, busybox, and a
//! pid namespace that nobody else minds.

#![allow(clippy::unwrap_used, clippy::tests_outside_test_module)] // nothing here but tests

use std::{
    fs::{self, File},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{
    BoxError, DumpOptions, Event, RequestError, RestoreOptions, Restored, Session, Swrk, Version,
    image::{Files, ImageFile, ImagesDir, Inventory, Mountpoints, Pstree, Utsns},
};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(60);
const BUSYBOX: &str = "/bin/busybox";
const CONTAINER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/container.sh");

/// Whether the test can run; says why not.
fn can_run() -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        "root"
    } else if Command::new("criu").arg("--version").output().is_err() {
        "criu on PATH"
    } else if !Path::new(BUSYBOX).exists() {
        BUSYBOX
    } else {
        return true;
    };
    println!("SKIP the real CRIU is not tested: no {missing}");
    false
}

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn reap(pid: i32) -> WaitStatus {
    waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap().1
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "{what}: not within {LONG:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Folders of one test.
struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["images", "work", "root", "data", "new-data", "added"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("new-data/file"), "data").unwrap();
        fs::write(dir.path().join("added/file"), "added").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A running container; the pids of its init and of init's parent.
    #[allow(clippy::zombie_processes)] // `dump` waits for it
    fn container(&self) -> (i32, i32) {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--pid", "--uts", "--ipc", "--fork", CONTAINER]);
        unshare.args([self.path("root"), self.path("data"), BUSYBOX.into()]);
        let child = unshare.stdin(Stdio::null()).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let init = || fs::read_to_string(&children).unwrap().trim().parse::<i32>().ok();
        wait_until("the container", || {
            let command = init().and_then(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
            command.is_some_and(|command| command.starts_with(b"/busybox\0tail"))
        });
        (init().unwrap(), i32::try_from(child.id()).unwrap())
    }

    /// Dumps a container, which ends it; the events.
    fn dump(&self, (pid, parent): (i32, i32)) -> Vec<String> {
        let mut options = DumpOptions::new(pid, open(&self.path("images")), open(&self.path("work")));
        options.root = Some("/".into());
        options.ext_mounts = vec![("/data".into(), "data-key".into())];
        let session = Swrk::new("criu").spawn().unwrap();
        let criu = session.pid();
        let mut events = Vec::new();
        let result = session.dump(&options, LONG, &mut |event| {
            events.push(event.script().to_owned());
            Ok(())
        });
        reap(criu);
        result.unwrap();
        reap(parent);
        events
    }

    fn restore_options(&self) -> RestoreOptions {
        let mut options = RestoreOptions::new(open(&self.path("images")), open(&self.path("work")));
        options.root = Some(self.path("root"));
        options.rst_sibling = true;
        options.ext_mounts =
            vec![("data-key".into(), self.path("new-data")), ("/added".into(), self.path("added"))];
        options
    }

    fn restore(
        &self,
        session: Session,
        options: &RestoreOptions,
        on_event: &mut dyn FnMut(Event) -> Result<(), BoxError>,
    ) -> Result<Restored, RequestError> {
        let criu = session.pid();
        let result = session.restore(options, LONG, on_event);
        reap(criu);
        result
    }

    /// Changes the images as a restore into another place does.
    fn edit(&self) {
        let images = ImagesDir::open(open(&self.path("images")));
        let write =
            |name: &str, image: ImageFile| fs::write(self.path("images").join(name), image.to_bytes());

        let mut inventory: Inventory = images.load("inventory.img").unwrap();
        inventory.skip_network_lock();
        write("inventory.img", inventory.into_image()).unwrap();

        let ids = images.load::<criu_rpc::image::Ids>("ids-1.img").unwrap();
        let name = format!("utsns-{}.img", ids.uts_ns.unwrap());
        let mut utsns: Utsns = images.load(&name).unwrap();
        assert_eq!(utsns.nodename(), "frozen");
        utsns.set_nodename("thawed");
        write(&name, utsns.into_image()).unwrap();

        let name = format!("mountpoints-{}.img", ids.mnt_ns.unwrap());
        let mut mounts: Mountpoints = images.load(&name).unwrap();
        mounts.add_external(Path::new("/added"), 0).unwrap();
        let tmp = mounts.mounts().iter().find(|mount| mount.mountpoint == Path::new("/tmp")).unwrap();
        assert_eq!(mounts.remove(tmp.mnt_id), 1);
        write(&name, mounts.into_image()).unwrap();
    }
}

/// The mount point that a restore needs as its root.
struct Bound(PathBuf);

impl Bound {
    fn new(path: PathBuf) -> Self {
        let status = Command::new("mount").arg("--bind").args([&path, &path]).status().unwrap();
        assert!(status.success());
        Self(path)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).status().unwrap();
    }
}

#[test]
fn version_features_and_check() {
    if !can_run() {
        return;
    }
    let mut session = Swrk::new("criu").spawn().unwrap();
    let criu = session.pid();
    assert!(session.version(LONG).unwrap() >= Version::new(4, 1, 0));
    assert!(session.features(LONG).unwrap().lazy_pages);
    assert!(session.version(LONG).is_ok(), "the connection stays open");
    drop(session);
    reap(criu);

    let work = tempfile::tempdir().unwrap();
    let session = Swrk::new("criu").spawn().unwrap();
    let criu = session.pid();
    let result = session.check(open(work.path()).as_fd(), LONG);
    reap(criu);
    assert!(work.path().join("check.log").exists());
    match result {
        Ok(()) => {}
        // A kernel that lacks something is told with what it lacks.
        Err(RequestError::Failed { log, .. }) => assert!(!log.0.is_empty()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_container_is_dumped_and_comes_back_changed() {
    if !can_run() {
        return;
    }
    let scene = Scene::new();
    let events = scene.dump(scene.container());
    assert_eq!(events.first().map(String::as_str), Some("pre-dump"));
    assert_eq!(events.last().map(String::as_str), Some("post-dump"));
    scene.edit();

    let _root = Bound::new(scene.path("root"));
    let (cgroup, parent) = new_cgroup();
    let mut swrk = Swrk::new("criu");
    swrk.unshare_cgroup_namespace(true);
    let place = |pid: i32| Ok(fs::write(cgroup.join("cgroup.procs"), pid.to_string())?);
    let session = swrk.spawn_placed(place).unwrap();
    let mut events = Vec::new();
    let mut pids = Vec::new();
    let restored = scene.restore(session, &scene.restore_options(), &mut |event| {
        events.push(event.script().to_owned());
        if let Event::SetupNamespaces { pid } | Event::PostRestore { pid } = event {
            pids.push(pid);
        }
        Ok(())
    });
    let pid = restored.unwrap().pid;
    assert_eq!(pids, [pid, pid]);
    let wanted = [
        "pre-restore",
        "setup-namespaces",
        "post-setup-namespaces",
        "post-restore",
        "pre-resume",
        "post-resume",
    ];
    assert_eq!(events, wanted);

    let read = |path: &str| fs::read_to_string(format!("/proc/{pid}/{path}"));
    assert_eq!(read("root/data/file").unwrap(), "data");
    assert_eq!(read("root/added/file").unwrap(), "added");
    assert!(read("root/tmp/file").is_err(), "the removed mount is there");
    let hostname = Command::new("nsenter").args(["-u", "-t", &pid.to_string(), "hostname"]).output().unwrap();
    assert_eq!(hostname.stdout, b"thawed\n");
    assert!(read("cgroup").unwrap().contains(cgroup.file_name().unwrap().to_str().unwrap()));
    assert_ne!(
        fs::read_link(format!("/proc/{pid}/ns/cgroup")).unwrap(),
        fs::read_link("/proc/self/ns/cgroup").unwrap()
    );

    // It is a child of this process: its real end can be seen.
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    assert_eq!(reap(pid).terminating_signal(), Some(9));
    wait_until("the cgroup", || fs::remove_dir(parent.join(cgroup.file_name().unwrap())).is_ok());
}

#[test]
fn failures_and_refusals_leave_nothing_and_say_why() {
    if !can_run() {
        return;
    }
    let scene = Scene::new();
    scene.dump(scene.container());
    let _root = Bound::new(scene.path("root"));
    let mut init = None;
    let mut note = |event: Event, refuse: &str| {
        if let Event::SetupNamespaces { pid } = event {
            init = Some(pid);
        }
        if event.script() == refuse { Err("no".into()) } else { Ok(()) }
    };

    let mut options = scene.restore_options();
    let result =
        scene.restore(Swrk::new("criu").spawn().unwrap(), &options, &mut |event| note(event, "post-restore"));
    let Err(RequestError::Refused { script, completed, .. }) = result else { panic!("{result:?}") };
    assert_eq!((script.as_str(), completed), ("post-restore", None));

    options.ext_mounts.clear();
    let result = scene.restore(Swrk::new("criu").spawn().unwrap(), &options, &mut |event| note(event, ""));
    let error = result.unwrap_err();
    assert!(matches!(error, RequestError::Failed { .. }), "{error:?}");
    assert!(error.to_string().contains("No mapping for"), "{error}");

    if let Some(init) = init {
        reap(init);
    }
    let images = ImagesDir::open(open(&scene.path("images")));
    assert!(images.load::<Files>("files.img").unwrap().inet_sockets().is_empty());
    assert_eq!(images.load::<Pstree>("pstree.img").unwrap().tasks.len(), 1);
}

/// A new cgroup, and the one it is in.
fn new_cgroup() -> (PathBuf, PathBuf) {
    let unified = Path::new("/sys/fs/cgroup/cgroup.procs").exists();
    let parent = PathBuf::from(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" });
    let cgroup = parent.join(format!("criu-rpc-test-{}", std::process::id()));
    fs::create_dir(&cgroup).unwrap();
    (cgroup, parent)
}
