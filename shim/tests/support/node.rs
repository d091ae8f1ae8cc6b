// SPDX-License-Identifier: Apache-2.0
//! The directory, the programs in it, and what a containerd does to get a shim.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use protobuf::Message;
use protobuf::well_known_types::any::Any;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::bundle::Bundle;
use super::events::{EventServer, Log};
use super::shim::Shim;
use super::traces;

/// How containerd and a shim talk at `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// containerd 2.0 to 2.2: the runtime options on stdin, JSON back.
    Options,
    /// containerd 2.3: BootstrapParams on stdin, BootstrapResult back.
    Bootstrap,
}

/// A node with nothing on it but what the test puts there.
pub(crate) struct Node {
    dir: TempDir,
    pub(crate) namespace: String,
    pub(crate) events: Log,
    server: Option<EventServer>,
    /// Pids and sockets.
    shims: Mutex<Vec<(u32, String)>>,
}

static NODES: AtomicU32 = AtomicU32::new(0);

impl Node {
    /// A fresh node; `None` without root, and then the test is to return.
    pub(crate) async fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP needs root");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("thaw-it-").tempdir().unwrap();
        let namespace = format!("thaw-test-{}-{}", std::process::id(), NODES.fetch_add(1, Ordering::Relaxed));
        let events = Log::default();
        let mut node = Self { dir, namespace, events, server: None, shims: Mutex::default() };
        node.start_containerd();
        for directory in [node.bundles(), node.path("bin")] {
            fs::create_dir_all(directory).unwrap();
        }
        symlink(example("fake_runc", "tests/fakes/runc.rs"), node.path("bin/runc")).unwrap();
        let criu = example("fake_criu_for_shim", "../criu-rpc/examples/fake_criu.rs");
        symlink(criu, node.path("bin/criu")).unwrap();
        node.use_criu("bin/criu");
        Some(node)
    }

    /// A path on the node.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where containerd keeps the bundles of its namespace.
    pub(crate) fn bundles(&self) -> PathBuf {
        self.path("bundles").join(&self.namespace)
    }

    /// The cgroup of the node's pod, as the spec names it.
    pub(crate) fn cgroup(&self) -> String {
        format!("/{}", self.namespace)
    }

    /// Writes the administrator's configuration, with the program that is CRIU.
    pub(crate) fn use_criu(&self, name: &str) {
        let text = format!("roots = [{:?}]\ncriu = {:?}\n", self.path("store"), self.path(name));
        fs::write(self.path("config.toml"), text).unwrap();
    }

    /// Tells the OCI runtime what to do beside its work; see its own page.
    pub(crate) fn runc(&self, script: &str) {
        fs::write(self.path("bin/runc.script"), script).unwrap();
    }

    /// The calls of the OCI runtime so far.
    pub(crate) fn runc_calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("bin/runc.calls")).unwrap_or_default();
        calls.lines().map(ToOwned::to_owned).collect()
    }

    /// Tells CRIU what to do; see its own page.
    pub(crate) fn criu(&self, script: &str) {
        fs::write(self.path("bin/criu.script"), script).unwrap();
    }

    /// The runtime options that containerd sends, spelled out: `containerd.runc.v1.Options` with the runtime's
    /// program (6) and state directory (7).
    pub(crate) fn options(&self) -> Any {
        let text = |name: &str| self.path(name).display().to_string();
        let value = [field(6, text("bin/runc").as_bytes()), field(7, text("runc-root").as_bytes())].concat();
        Any { type_url: "containerd.runc.v1.Options".into(), value, ..Default::default() }
    }

    /// The directory of the OCI runtime's state.
    pub(crate) fn runc_root(&self) -> PathBuf {
        self.path("runc-root").join(&self.namespace)
    }

    fn socket(&self) -> PathBuf {
        self.path("containerd.sock.ttrpc")
    }

    /// Listens for events, again after [`Self::stop_containerd`].
    pub(crate) fn start_containerd(&mut self) {
        self.server = Some(self.events.serve(&self.socket()));
    }

    /// As when containerd is restarted: its connections break.
    pub(crate) fn stop_containerd(&mut self) {
        drop(self.server.take());
        fs::remove_file(self.socket()).unwrap();
    }

    /// The shim's program with the arguments and the environment that containerd gives it.
    pub(crate) fn command(&self, id: &str, action: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-thaw-v1"));
        command
            .args(["-namespace", &self.namespace, "-address"])
            .arg(self.path("containerd.sock"))
            .args(["-publish-binary", "containerd", "-id", id, "-bundle"])
            .arg(self.bundles().join(id))
            .arg("-debug")
            .arg(action)
            .current_dir(self.bundles().join(id))
            .env_clear()
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display()))
            .env("THAW_CONFIG", self.path("config.toml"))
            .env("MAX_SHIM_VERSION", "2");
        command
    }

    /// What containerd writes to the shim's stdin at `start`.
    pub(crate) fn start_input(&self, id: &str, protocol: Protocol) -> Vec<u8> {
        let options = self.options().write_to_bytes().unwrap();
        let text = |name: &str| self.path(name).display().to_string();
        match protocol {
            Protocol::Options => options,
            Protocol::Bootstrap => [
                field(1, id.as_bytes()),
                field(2, self.namespace.as_bytes()),
                field(4, b"v2.3.0"),
                field(5, text("containerd.sock.ttrpc").as_bytes()),
                field(6, text("containerd.sock").as_bytes()),
                field(7, b"/usr/bin/containerd"),
                field(8, &field(1, &options)),
                field(9, text("s").as_bytes()),
            ]
            .concat(),
        }
    }

    /// Runs `start`.
    pub(crate) fn start(&self, bundle: &Bundle, protocol: Protocol) -> Output {
        bundle.write();
        let mut command = self.command(&bundle.id, "start");
        if protocol == Protocol::Options {
            command.env("TTRPC_ADDRESS", self.socket()).env("GRPC_ADDRESS", self.path("containerd.sock"));
        }
        feed(command, &self.start_input(&bundle.id, protocol))
    }

    /// Starts a shim in `bundle` and connects to it.
    pub(crate) async fn shim(&self, bundle: &Bundle) -> Shim<'_> {
        let output = self.start(bundle, Protocol::Bootstrap);
        assert!(output.status.success(), "{output:?}");
        // BootstrapResult: version (1), address (2), protocol (3).
        let start = output.stdout.windows(7).position(|window| window == b"unix://").unwrap();
        let end = output.stdout.windows(2).position(|window| window == [0x1a, 5]).unwrap();
        let address = String::from_utf8(output.stdout[start..end].to_vec()).unwrap();
        self.connect(&address).await
    }

    /// Connects to a shim as containerd does.
    pub(crate) async fn connect(&self, address: &str) -> Shim<'_> {
        let shim = Shim::connect(self, address).await;
        self.shims.lock().unwrap().push((shim.pid, address.to_owned()));
        shim
    }

    /// Runs `delete` for a container whose shim is dead.
    pub(crate) fn delete(&self, id: &str) -> Output {
        feed(self.command(id, "delete"), b"")
    }
}

impl Drop for Node {
    /// Only what a failed test has left is still there.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for bundle in fs::read_dir(self.bundles()).unwrap().flatten().map(|entry| entry.path()) {
                let log = fs::read_to_string(bundle.join("log")).unwrap_or_default();
                eprintln!("--- log of {}\n{log}", bundle.display());
            }
        }
        for (shim, address) in self.shims.lock().unwrap().iter() {
            for pid in traces::family(*shim, self.dir.path(), &self.namespace) {
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
            let _ = fs::remove_file(address.trim_start_matches("unix://"));
        }
        traces::clean(self.dir.path(), &self.namespace);
    }
}

/// A length-delimited protobuf field, by hand: what containerd sends must not be made by what reads it.
pub(crate) fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut encoded = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        encoded.push(0x80 | u8::try_from(length & 0x7f).unwrap());
        length >>= 7;
    }
    encoded.push(u8::try_from(length).unwrap());
    encoded.extend_from_slice(bytes);
    encoded
}

/// Runs a command with `input` on its stdin.
pub(crate) fn feed(mut command: Command, input: &[u8]) -> Output {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.as_ref().unwrap(), input).unwrap();
    child.wait_with_output().unwrap()
}

/// A program that cargo builds with this package's tests, unless only some of them were asked for.
fn example(name: &str, source: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if changed(&program) < changed(&crate_dir.join(source)) {
        BUILT.get_or_init(|| {
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--quiet", "--examples"]).current_dir(crate_dir);
            assert!(build.status().unwrap().success(), "cannot build {name}");
        });
    }
    program
}
