// SPDX-License-Identifier: Apache-2.0
//! What a CRIU that was killed in the middle of a dump leaves behind: processes run again as soon as nobody traces
//! them, but the pod's network stays locked, and a container that was paused is so no more.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use log::warn;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::freezer::Freezer;

/// Takes back the lock that CRIU puts on a network with `iptables-restore`. As a whole it changes nothing where there
/// is none.
///
/// Source: CRIU 4.2 criu/net.c, `iptables_network_unlock_internal`.
const UNLOCK: &str = "*filter\n:CRIU - [0:0]\n-D INPUT -j CRIU\n-D OUTPUT -j CRIU\n-X CRIU\nCOMMIT\n";

/// Puts right what a dump of the container with this init left behind. What fails is logged: the dump's own error is
/// told.
pub(crate) fn put_right(init: i32, paused: bool) {
    if let Some(freezer) = Freezer::of_process(init).filter(|_| paused)
        && let Err(e) = freezer.freeze()
    {
        warn!("cannot freeze process {init} again after a failed dump: {e}");
    }
    let namespace = PathBuf::from(format!("/proc/{init}/ns/net"));
    // CRIU locks no network that is the node's.
    if !is_the_nodes(&namespace)
        && let Err(e) = unlock(&namespace)
    {
        warn!("cannot look for a lock on the pod's network after a failed dump: {e}");
    }
}

fn is_the_nodes(namespace: &Path) -> bool {
    let number = |path: &Path| std::fs::metadata(path).map(|found| found.ino()).ok();
    number(namespace) == number(Path::new("/proc/self/ns/net"))
}

/// Runs the programs in the network namespace; the thread that enters it ends with it.
fn unlock(namespace: &Path) -> std::io::Result<()> {
    let namespace = rustix::fs::open(namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let done = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        ["iptables-restore", "ip6tables-restore"].into_iter().try_for_each(restore_rules)
    });
    done.join().map_err(|_| std::io::Error::other("the thread that does it panicked"))?
}

/// Feeds [`UNLOCK`] to `program` and returns when that has ended: it says on its output that there is no lock, which
/// is the ordinary case.
fn restore_rules(program: &str) -> std::io::Result<()> {
    let mut command = Command::new(program);
    command.args(["--wait", "--noflush"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut rules) = child.stdin.take() {
        rules.write_all(UNLOCK.as_bytes())?;
    }
    // The reaper has its exit; the end of its output is enough.
    if let Some(said) = child.stderr.take() {
        said.take(4096).read_to_end(&mut Vec::new())?;
    }
    Ok(())
}
