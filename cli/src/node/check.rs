// SPDX-License-Identifier: Apache-2.0
//! What a node must have, looked at one by one. Each check says what is and, where that is not enough, what to do.

use std::error::Error as _;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use checkpoint::config::Metrics;
use checkpoint::{Config, Store};
use indicatif::HumanBytes;
use serde::Serialize;

use super::containerd::NriOff;
use super::survey::Survey;
use super::tree::Tree;

/// containerd passes runtime options and annotations as the shim wants them from here on.
const CONTAINERD: [u32; 2] = [2, 0];
/// CRIU's RPC has what the shim asks for from here on.
const CRIU: [u32; 2] = [4, 2];
/// The last system call that the shim cannot do without, openat2, came with it. Source: openat2(2), VERSIONS.
const KERNEL: [u32; 2] = [5, 6];
/// Below this a checkpoint of a usual pod may not fit.
const FREE_BYTES: u64 = 10 << 30;
/// How long thaw-nri may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where programs are looked for, as systemd's default PATH has it. Source: systemd.exec(5).
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// The type that container-selinux gives to programs that start containers.
/// Source: container-selinux `container.fc`.
const LABEL: &str = "container_runtime_exec_t";

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Ok,
    /// Pods run and resume, and something could be better.
    Warn,
    /// Pods run, and none can be frozen or resumed.
    Unready,
    /// Nothing runs under thaw like this.
    Fail,
}

/// One thing looked at.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) state: State,
    pub(crate) found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cure: Option<String>,
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, state: State::Ok, found: found.into(), cure: None }
}

fn warn(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Check {
    Check { name, state: State::Warn, found: found.into(), cure: Some(cure.into()) }
}

fn unready(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Check {
    Check { state: State::Unready, ..warn(name, found, cure) }
}

fn fail(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Check {
    Check { state: State::Fail, ..warn(name, found, cure) }
}

/// Looks at all that is needed before anything is installed.
pub(crate) fn all(tree: &Tree, survey: &Survey) -> Vec<Check> {
    let mut checks = vec![shim(tree, survey), containerd(tree, survey), nri(survey)];
    checks.extend(settings(tree));
    if tree.is_this_machine() {
        checks.extend([kernel(), cgroup()]);
    }
    checks.extend(selinux(tree, survey));
    checks
}

fn shim(tree: &Tree, survey: &Survey) -> Check {
    if tree.exists(&survey.shim) {
        return ok("shim", survey.shim.display().to_string());
    }
    fail(
        "shim",
        format!("{} is not there", survey.shim.display()),
        "install thaw's package, or name it with --shim",
    )
}

fn containerd(tree: &Tree, survey: &Survey) -> Check {
    let name = "containerd";
    let Some(program) = &survey.containerd else {
        return warn(name, "no containerd program found", "make sure that it is 2.0 or later");
    };
    let printed = tree.run(program, &["--version"]).unwrap_or_else(|error| error.to_string());
    match numbers(&printed) {
        Some(version) if version < CONTAINERD => fail(
            name,
            format!("{} is {}.{}", program.display(), version[0], version[1]),
            format!("thaw needs 2.0 or later; {}", upgrade(survey)),
        ),
        Some([major, minor]) => ok(name, format!("{major}.{minor} ({})", program.display())),
        None => warn(
            name,
            format!("{} --version says {:?}", program.display(), printed.trim()),
            "make sure that it is 2.0 or later",
        ),
    }
}

fn upgrade(survey: &Survey) -> &'static str {
    if survey.distribution.generates() {
        "RKE2 and k3s bring it from 1.31.6 and 1.32.2 on"
    } else {
        "upgrade it"
    }
}

fn nri(survey: &Survey) -> Check {
    match survey.nri_off {
        None => ok("nri", "on"),
        Some(NriOff::Setting) if survey.drops_in => ok("nri", "off; the drop-in switches it on"),
        Some(NriOff::Setting) => unready(
            "nri",
            "off, in the configuration that a template of thaw's cannot change",
            "take `disable = true` out of the template or drop-in that sets it; \
             until then restores do not get what the checkpoint needs",
        ),
        Some(NriOff::Plugin) => unready(
            "nri",
            "off: it is in disabled_plugins",
            "take io.containerd.nri.v1.nri out of disabled_plugins in containerd's configuration",
        ),
    }
}

/// CRIU, the store and room in it: where they are is in thaw's own configuration.
fn settings(tree: &Tree) -> Vec<Check> {
    let config = match Config::load(&tree.real(Path::new(Config::PATH))) {
        Ok(config) => config,
        Err(error) => {
            return vec![fail(
                "configuration",
                error.to_string(),
                "mend it: no container would start under thaw",
            )];
        }
    };
    let mut checks = vec![criu(tree, config.criu.clone())];
    if tree.is_this_machine() {
        checks.push(store(&config));
    }
    if let Some(root) = config.roots.first() {
        checks.push(room(tree, root));
    }
    checks
}

fn criu(tree: &Tree, configured: Option<PathBuf>) -> Check {
    let found =
        configured.or_else(|| PATH.iter().map(|f| Path::new(f).join("criu")).find(|file| tree.exists(file)));
    let Some(program) = found else {
        return unready(
            "criu",
            "not found",
            "install CRIU 4.2 or later: without it pods run, and cannot be frozen or resumed",
        );
    };
    let printed = tree.run(&program, &["--version"]).unwrap_or_else(|error| error.to_string());
    match numbers(&printed) {
        Some([major, minor]) if [major, minor] >= CRIU => {
            ok("criu", format!("{major}.{minor} ({})", program.display()))
        }
        _ => unready(
            "criu",
            format!("{} --version says {:?}", program.display(), printed.lines().next().unwrap_or_default()),
            "install CRIU 4.2 or later, or name another one as `criu` in /etc/thaw/config.toml",
        ),
    }
}

/// Whether the roots can be used. One that is missing holds nothing: that is right before the first checkpoint, and wrong
/// where a file system should be mounted.
fn store(config: &Config) -> Check {
    let name = "store";
    let absent: Vec<_> = config.roots.iter().filter(|root| !root.exists()).collect();
    match (Store::open(config), absent.first()) {
        (Err(error), _) => {
            let reason = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            unready(name, format!("{error}{reason}"), "no pod can be resumed until it is mended")
        }
        (Ok(_), Some(root)) if config.roots != Config::default().roots => warn(
            name,
            format!("{} is not there", root.display()),
            "mount its file system; the first root is made with the first checkpoint otherwise",
        ),
        (Ok(_), _) => {
            let roots: Vec<_> = config.roots.iter().map(|root| root.display().to_string()).collect();
            ok(name, roots.join(", "))
        }
    }
}

fn room(tree: &Tree, root: &Path) -> Check {
    let name = "disk";
    match tree.free_bytes(root) {
        Some(free) if free < FREE_BYTES => warn(
            name,
            format!("{} free for {}", HumanBytes(free), root.display()),
            "make room, or put `roots` in /etc/thaw/config.toml on a larger file system",
        ),
        Some(free) => ok(name, format!("{} free for {}", HumanBytes(free), root.display())),
        None => {
            warn(name, format!("cannot tell what is free for {}", root.display()), "look at the file system")
        }
    }
}

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match numbers(&release) {
        Some(version) if version < KERNEL => fail("kernel", release, "thaw needs Linux 5.6 or later"),
        Some(_) | None => ok("kernel", release),
    }
}

/// Which cgroup hierarchy pods are put into. Source: cgroups(7).
fn cgroup() -> Check {
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    ok("cgroup", if v2 { "v2" } else { "v1" })
}

/// Nothing where SELinux is off.
fn selinux(tree: &Tree, survey: &Survey) -> Option<Check> {
    if tree.is_this_machine() && !Path::new("/sys/fs/selinux/enforce").exists() {
        return None;
    }
    let label = tree.label(&survey.shim)?;
    Some(if label.contains(LABEL) {
        ok("selinux", label)
    } else {
        warn("selinux", format!("{} is labelled {label}", survey.shim.display()), "run `restorecon` on it")
    })
}

/// Whether the containerd that runs has read what was installed: it is younger than the files.
pub(crate) fn running(survey: &Survey, newest: Option<std::time::SystemTime>) -> Check {
    let name = "running";
    let restart = format!("systemctl restart {}", survey.distribution.service());
    let Some(started) = started(survey.distribution.socket()) else {
        let socket = survey.distribution.socket().display();
        return unready(
            name,
            format!("containerd does not answer at {socket}"),
            format!("start it: `{restart}`"),
        );
    };
    match newest {
        Some(newest) if newest > started => fail(
            name,
            "containerd has not read the handler yet",
            format!("restart it: `{restart}`; pods go on running"),
        ),
        Some(_) | None => ok(name, "containerd has read the handler"),
    }
}

/// Whether thaw-nri is at work, where its configuration says that it answers; nothing when that cannot be read, which
/// another check tells.
pub(crate) fn plugin() -> Option<Check> {
    let name = "thaw-nri";
    let metrics = Config::load(Path::new(Config::PATH)).ok()?.metrics;
    Some(match healthy(&metrics) {
        Ok(true) => ok(name, "containerd has taken the plugin"),
        Ok(false) => unready(
            name,
            "it runs, and containerd has not taken it as a plugin",
            "`journalctl -u thaw-nri` says why; restart containerd if NRI was switched on since it started",
        ),
        Err(error) => {
            let at = match &metrics {
                Metrics::Socket(path) => path.display().to_string(),
                Metrics::Port(address) => address.to_string(),
            };
            unready(name, format!("does not answer at {at}: {error}"), "`systemctl enable --now thaw-nri`")
        }
    })
}

/// What `/healthz` says.
fn healthy(metrics: &Metrics) -> io::Result<bool> {
    match metrics {
        Metrics::Socket(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            ask(stream)
        }
        Metrics::Port(address) => {
            let stream = TcpStream::connect_timeout(address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            ask(stream)
        }
    }
}

fn ask(mut stream: impl Read + Write) -> io::Result<bool> {
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
    // "HTTP/1.0 200"
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status.ends_with(b" 200"))
}

/// When the process that listens at a socket was started.
fn started(socket: &Path) -> Option<std::time::SystemTime> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    // The directory of a process carries the time at which it was first looked at; its `stat` tells the start.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", peer.pid.as_raw_nonzero())).ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    // Field 22, in ticks of 1/100 s since the boot; the name before it may hold anything. Source: proc_pid_stat(5).
    let ticks: f64 = stat.rsplit_once(") ")?.1.split_whitespace().nth(19)?.parse().ok()?;
    let age = std::time::Duration::try_from_secs_f64(uptime - ticks / 100.0).ok()?;
    std::time::SystemTime::now().checked_sub(age)
}

/// The first `major.minor` in a text: `containerd github.com/k3s-io/containerd v2.1.5-k3s1 ...`, `Version: 4.2`.
fn numbers(text: &str) -> Option<[u32; 2]> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').split(['.', '-', '+', '~']);
        Some([parts.next()?.parse().ok()?, parts.next()?.parse().ok()?])
    })
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        for (text, version) in [
            ("containerd github.com/containerd/containerd/v2 v2.1.9 1234\n", [2, 1]),
            ("containerd github.com/k3s-io/containerd v1.7.23-k3s2 57482", [1, 7]),
            ("containerd github.com/containerd/containerd 2.1.9~ds1 2.1.9~ds1-1", [2, 1]),
            ("Version: 4.2\n", [4, 2]),
            ("6.18.5-cloud-amd64", [6, 18]),
        ] {
            assert_eq!(numbers(text), Some(version), "{text}");
        }
        assert_eq!(numbers("criu: not found"), None);
    }
}
