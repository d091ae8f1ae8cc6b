// SPDX-License-Identifier: Apache-2.0
//! What begins as soon as there is a sandbox whose pod asks for a restore, while containerd still makes its network and
//! looks for images: a slow disk reads the checkpoint, or the pager gets ready, and CRIU finds out what the kernel can do if
//! it does not know.
//!
//! All of it is only a matter of time: what fails here is met again, and told, where it is needed.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ::checkpoint::annotation::{Memory, PodOptions};
use ::checkpoint::config::Config;
use ::checkpoint::container_dir::ContainerDir;
use ::checkpoint::store::Store;
use criu_rpc::Swrk;
use log::debug;
use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags};
use rustix::process::getppid;

use crate::error::full;
use crate::notes::Notes;
use crate::pod::Pod;
use crate::source;
use crate::waiting_pager::WaitingPager;

/// What the shim's program is called with to read one container's images ahead: their directory is its standard input.
pub(crate) const COMMAND: &str = "ahead";

/// What CRIU knows of the kernel until the next boot. Source: CRIU 4.2 criu/kerndat.c, KERNDAT_CACHE_FILE.
const CRIU_KNOWS: &str = "/run/criu.kdat";
/// How long CRIU may take to find out; only a hang takes as long.
const DEADLINE: Duration = Duration::from_secs(10);

/// Begins, if `spec` is that of such a sandbox.
pub(crate) fn begin(pod: &Arc<Pod>, spec: &Spec) {
    let annotations = spec.annotations().clone().unwrap_or_default();
    if source::sandbox(&annotations).is_none() {
        return;
    }
    let (_, asked) = Notes::split(&annotations);
    // A pod that asks for something wrong is told so when its container is created.
    let Ok(options) = PodOptions::parse(asked) else { return };
    if options.references().next().is_none() {
        return;
    }
    let pod = pod.clone();
    let run = move || {
        if let Err(e) = prepare(&pod, &annotations, &options) {
            debug!("nothing is read ahead: {e}");
        }
    };
    // Without it everything takes a little longer.
    drop(std::thread::Builder::new().name("ahead".into()).spawn(run));
}

fn prepare(pod: &Pod, annotations: &HashMap<String, String>, options: &PodOptions) -> Result<(), String> {
    let Some((namespace, name)) = source::sandbox(annotations) else { return Ok(()) };
    let config = source::config().map_err(|e| full(&e))?;
    let store = Store::open(&config).map_err(|e| full(&e))?;
    let lineage = options.lineage(name).map_err(|e| full(&e))?;
    let memory = options.memory().unwrap_or(config.memory);
    for (reference, container) in options.references() {
        let checkpoint = store.resolve(namespace, &lineage, reference).map_err(|e| full(&e))?;
        let all = checkpoint.manifest().containers.keys().map(String::as_str);
        let wanted = |name: &&str| container.is_none_or(|only| only == *name);
        for container in all.filter(wanted) {
            let dir = checkpoint.container(container).map_err(|e| full(&e))?;
            match memory {
                Memory::Eager => spawn(&dir)?,
                Memory::Lazy => {
                    let pager = WaitingPager::start(&checkpoint, container, &dir).map_err(|e| full(&e))?;
                    pod.waiting_pagers.put(container, pager);
                }
            }
        }
    }
    teach(config)
}

/// Has CRIU find out what the kernel can do, and keep it.
fn teach(config: Config) -> Result<(), String> {
    if Path::new(CRIU_KNOWS).exists() {
        return Ok(());
    }
    let mut session = Swrk::new(source::program(config)).spawn().map_err(|e| full(&e))?;
    session.features(DEADLINE).map(drop).map_err(|e| full(&e))
}

/// Starts the process that reads the images of one container: a disk that hangs must not hold the shim.
fn spawn(dir: &ContainerDir) -> Result<(), String> {
    let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let images = rustix::fs::openat(dir.images_dir(), ".", readable, Mode::empty()).map_err(|e| full(&e))?;
    // It is reaped like every child.
    let started = Command::new("/proc/self/exe")
        .arg0("thaw-ahead")
        .arg(COMMAND)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(images))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    started.map(drop).map_err(|e| full(&e))
}

/// The life of such a process. It ends with its shim.
pub(crate) fn read() -> ExitCode {
    let shim = getppid();
    let images = std::io::stdin().as_fd().try_clone_to_owned();
    let done = images.ok().map(|images| ::pager::read_ahead(images, || getppid() == shim));
    if matches!(done, Some(Ok(()))) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
