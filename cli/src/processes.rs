// SPDX-License-Identifier: Apache-2.0
//! What the images of a container say of its processes, for a person to look at.

use std::ffi::OsStr;
use std::net::IpAddr;

use checkpoint::ContainerDir;
use checkpoint::plan::capability_names;
use criu_rpc::image::{Core, Files, Ids, ImagesDir, InetSocket, LoadError, Mountpoints, Pstree, Task, Utsns};
use serde::Serialize;

use crate::memory::Memory;

/// `IPPROTO_TCP`.
const TCP: u32 = 6;
/// `IPPROTO_UDP`.
const UDP: u32 = 17;
/// `TCP_LISTEN`.
const LISTEN: u32 = 10;
/// `TCP_ESTABLISHED`.
const ESTABLISHED: u32 = 1;

/// The processes of one container, and what they held.
#[derive(Debug, Serialize)]
pub(crate) struct Processes {
    pub(crate) hostname: Option<String>,
    pub(crate) memory: Memory,
    pub(crate) processes: Vec<Process>,
    /// Where volumes and files of the pod were mounted.
    pub(crate) external_mounts: Vec<String>,
    /// Sockets that wait for somebody: `tcp 0.0.0.0:8080`.
    pub(crate) listening: Vec<String>,
    /// Established TCP connections: `10.0.0.7:80 - 10.0.0.9:33000`.
    pub(crate) connections: Vec<String>,
}

/// One process.
#[derive(Debug, Serialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
    pub(crate) threads: usize,
    #[serde(flatten)]
    pub(crate) claims: Option<Claims>,
}

/// What its main thread is and may do; a zombie has none.
#[derive(Debug, Serialize)]
pub(crate) struct Claims {
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) capabilities: String,
    pub(crate) no_new_privs: bool,
    pub(crate) seccomp: bool,
}

impl Processes {
    /// Reads the small images of the container.
    pub(crate) fn of(container: &ContainerDir) -> Result<Self, LoadError> {
        let images = container.images_dir().try_clone_to_owned();
        let images = images.map_err(|source| LoadError::Open { name: "checkpoint".into(), source })?;
        let dir = ImagesDir::open(images);
        let pstree: Pstree = dir.load("pstree.img")?;
        let ids: Option<Ids> = match pstree.tasks.first() {
            Some(task) if has(container, &format!("ids-{}.img", task.pid)) => {
                Some(dir.load(&format!("ids-{}.img", task.pid))?)
            }
            _ => None,
        };
        let image = |stem: &str, id: Option<u32>| {
            id.map(|id| format!("{stem}-{id}.img")).filter(|name| has(container, name))
        };
        let uts = image("utsns", ids.as_ref().and_then(|ids| ids.uts_ns));
        let mounts = image("mountpoints", ids.as_ref().and_then(|ids| ids.mnt_ns));
        let mounts = mounts.map(|name| dir.load::<Mountpoints>(&name)).transpose()?;
        let external = mounts.iter().flat_map(Mountpoints::mounts).filter(|mount| mount.ext_key.is_some());
        let files = has(container, "files.img").then(|| dir.load::<Files>("files.img")).transpose()?;
        let sockets: Vec<&InetSocket> = files.iter().flat_map(Files::inet_sockets).collect();
        let uts = uts.map(|name| dir.load::<Utsns>(&name)).transpose()?;
        Ok(Self {
            memory: Memory::of(container, &dir)?,
            hostname: uts.map(|uts| plain(uts.nodename())),
            processes: pstree.tasks.iter().map(|task| process(&dir, task)).collect::<Result<_, _>>()?,
            external_mounts: external.map(|mount| plain(mount.mountpoint.as_os_str())).collect(),
            listening: sockets.iter().filter_map(|socket| listening(socket)).collect(),
            connections: sockets.iter().filter_map(|socket| connection(socket)).collect(),
        })
    }
}

fn has(container: &ContainerDir, name: &str) -> bool {
    container.images().iter().any(|image| image.name == name)
}

fn process(dir: &ImagesDir, task: &Task) -> Result<Process, LoadError> {
    let core: Core = dir.load(&format!("core-{}.img", task.pid))?;
    let claims = core.creds.map(|creds| Claims {
        user: creds.euid,
        group: creds.egid,
        capabilities: capability_names(creds.cap_eff),
        no_new_privs: creds.no_new_privs,
        seccomp: core.seccomp_mode != 0,
    });
    Ok(Process { pid: task.pid, name: plain(&core.comm), threads: task.threads.len(), claims })
}

/// A name that a container chose, without anything that a terminal would obey.
fn plain(text: &OsStr) -> String {
    text.to_string_lossy().escape_debug().to_string()
}

fn listening(socket: &InetSocket) -> Option<String> {
    let address = address(socket.src, socket.src_port);
    match (socket.proto, socket.state) {
        (TCP, LISTEN) => Some(format!("tcp {address}")),
        (UDP, state) if state != ESTABLISHED => Some(format!("udp {address}")),
        _ => None,
    }
}

fn connection(socket: &InetSocket) -> Option<String> {
    let ends =
        || format!("{} - {}", address(socket.src, socket.src_port), address(socket.dst, socket.dst_port));
    (socket.proto == TCP && socket.state == ESTABLISHED).then(ends)
}

fn address(ip: IpAddr, port: u32) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}
