// SPDX-License-Identifier: Apache-2.0
//! Task.Checkpoint: freezes a container into CRIU images, over CRIU's RPC, for ordinary and restored containers
//! alike. The directory stays flat: containerd's archive takes plain files only.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::checkpoint::dump::{self, NetworkDump};
use ::checkpoint::layer;
use ::checkpoint::record::Verb;
use ::checkpoint::{devices, gpu};
use containerd_shim_protos::events::task::TaskCheckpointed;
use criu_rpc::{DumpOptions, Event, ManageCgroups, Swrk, Tcp};
use log::info;
use procfs::process::{MountInfo, Process as ProcFs};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::container::Container;
use crate::create::blocking;
use crate::error::{TaskError, full};
use crate::freezer::{Freezer, FreezerError, Thawed};
use crate::network::interfaces;
use crate::pod::Pod;
use crate::reaper::Exits;
use crate::rewrite::open_dir;
use crate::rootfs::Way;
use crate::source::identity;
use crate::state::State;
use crate::volumes::Saved;
use crate::{cgroup2, external, figures};
use containerd_shim_protos::shim::oci::CheckpointOptions;

/// How long a dump may take. This only bounds a hang; it is bound by the disk, some 10 s per 1 GB on slow ones.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// The largest deleted file that goes into the images, bytes: as large as CRIU's option can say. Its default of 1 MiB
/// refuses programs that keep scratch data in deleted files.
const DELETED_LIMIT: u32 = u32::MAX;

/// Freezes `container` into `path` (or the options' image path); it goes on unless the options say exit.
///
/// # Errors
/// [`TaskError::Checkpoint`] with the last lines of CRIU's log; the container goes on then.
pub(crate) async fn checkpoint(
    pod: &Pod,
    container: &Arc<Container>,
    path: &str,
    options: Option<&Any>,
) -> Result<(), TaskError> {
    let _verb = container.verb.lock().await;
    container.init.state().checkpoint()?;
    if let Some(filling) = container.filling() {
        // CRIU dumps what is there. It is paused meanwhile.
        filling.filled().await.map_err(|e| TaskError::Checkpoint {
            container: name(container),
            step: "waiting for its memory",
            reason: full(&e),
        })?;
    }
    let options = decode(options)?;
    let images = if options.image_path.is_empty() { path } else { &options.image_path };
    let work = if options.work_path.is_empty() { images } else { &options.work_path };
    let (images, work) = (PathBuf::from(images), PathBuf::from(work));
    let exits = Exits::subscribe().await.map_err(|e| TaskError::shim("watch for exits", e))?;
    let (dumped, exit) = (container.clone(), options.exit);
    let frozen = blocking(move || {
        let dump = Dump { container: &dumped, images: &images, work: &work, exit, settled: false };
        freeze(&dump).inspect_err(|_| {
            crate::abandoned::put_right(dumped.init.pid(), dumped.init.state() == State::Paused);
        })
    })
    .await;
    let criu = frozen.inspect_err(|e| figures::failed(Verb::Checkpoint, &container.spec, e))?;
    exits.of(criu).await;
    pod.events
        .publish(TaskCheckpointed {
            container_id: container.id.clone(),
            checkpoint: path.to_owned(),
            ..Default::default()
        })
        .await;
    Ok(())
}

/// No options at all is what containerd sends for a runtime that it does not take for runc.
fn decode(options: Option<&Any>) -> Result<CheckpointOptions, TaskError> {
    let Some(any) = options.filter(|any| any.type_url.ends_with("containerd.runc.v1.CheckpointOptions"))
    else {
        return Ok(CheckpointOptions::default());
    };
    let options = CheckpointOptions::parse_from_bytes(&any.value)
        .map_err(|e| TaskError::InvalidRequest(format!("checkpoint options do not decode: {e}")))?;
    // The crate's messages do not know the field. Source: containerd `api/types/runc/options/oci.proto`.
    let parent_path = options.special_fields.unknown_fields().get(10).is_some();
    if parent_path || !options.empty_namespaces.is_empty() {
        let unsupported = "a checkpoint on top of another one (parent_path), or without the contents of namespaces \
                           (empty_namespaces), cannot be made: leave these options out";
        return Err(TaskError::InvalidRequest(unsupported.into()));
    }
    Ok(options)
}

/// The blocking part; returns CRIU's pid.
fn freeze(dump: &Dump<'_>) -> Result<i32, TaskError> {
    let Dump { container, images, .. } = dump;
    let started = Instant::now();
    layers(container, images).map_err(failed(container, "saving the writable layer"))?;
    let criu = dump.run(&mut Saved::default())?;
    let steps = [("freezing", started.elapsed())];
    figures::done(Verb::Checkpoint, &container.spec, "frozen into a checkpoint", size(images), &steps);
    Ok(criu)
}

/// Its name in the pod, or its id where it has none.
pub(crate) fn name(container: &Container) -> String {
    let annotations = container.spec.annotations().as_ref();
    annotations.and_then(identity).map_or_else(|| container.id.clone(), |who| who.container.to_owned())
}

/// For `map_err` of a step that says why in words.
pub(crate) fn failed(container: &Container, step: &'static str) -> impl FnOnce(String) -> TaskError {
    move |reason| TaskError::Checkpoint { container: name(container), step, reason }
}

/// One container to be dumped by CRIU.
pub(crate) struct Dump<'a> {
    pub(crate) container: &'a Container,
    /// The directory of its images.
    pub(crate) images: &'a Path,
    /// The directory of CRIU's log.
    pub(crate) work: &'a Path,
    /// Whether the processes end.
    pub(crate) exit: bool,
    /// Whether it is frozen in a way that CRIU can stop it, and was looked at, see [`look`].
    pub(crate) settled: bool,
}

impl Dump<'_> {
    /// Dumps it, with what there is in its volumes; what is in `saved` is not packed again. Blocks. Returns CRIU's pid.
    ///
    /// # Errors
    /// [`TaskError::Checkpoint`].
    pub(crate) fn run(&self, saved: &mut Saved) -> Result<i32, TaskError> {
        let Self { container, images, .. } = *self;
        let started = Instant::now();
        let failed = |step| failed(container, step);
        let pid = container.init.pid();
        let mounts = ProcFs::new(pid)
            .and_then(|process| process.mountinfo())
            .map_err(|e| failed("reading its mounts")(full(&e)))?;
        let cgroups = crate::cgroup::paths(pid)?;
        let mut options = self.options(&cgroups, &mounts.0)?;
        let thawed = if self.settled {
            None
        } else {
            if let Some(cgroup) = &options.freeze_cgroup {
                look(container, cgroup)?;
            }
            settle(&mut options.freeze_cgroup).map_err(|e| failed("stopping it")(full(&e)))?
        };
        let criu = crate::source::criu().map_err(|e| failed("reading the configuration")(full(&e)))?;
        let _options = cgroup2::Options::keep();
        let session = Swrk::new(criu).spawn().map_err(|e| failed("starting CRIU")(full(&e)))?;
        let criu = session.pid();
        write_network(pid, images).map_err(|e| failed("reading its network")(full(&e)))?;
        write_descriptors(container, images).map_err(|e| failed("writing descriptors.json")(full(&e)))?;
        write_gpus(container, images).map_err(|e| failed("noting its GPUs")(full(&e)))?;
        let on_event = &mut |event: Event| {
            if matches!(event, Event::PostDump) {
                if let Some(thawed) = &thawed {
                    thawed.refreeze()?;
                }
                crate::threads::write(&cgroups, images)
                    .map_err(|e| format!("cannot note its threads: {e}"))?;
                // Now files that have lost the name under which they are open have the one that the images give them.
                if crate::linked::refuse(images)? {
                    crate::volumes::save(&container.spec, images, &mut Saved::default())?;
                } else {
                    crate::volumes::save(&container.spec, images, saved)?;
                }
            }
            Ok(())
        };
        session.dump(&options, DEADLINE, on_event).map_err(|e| failed("CRIU")(full(&e)))?;
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(container = container.id.as_str(), pid = pid, elapsed_ms = ms; "checkpointed");
        Ok(criu)
    }

    fn options(
        &self,
        cgroups: &BTreeMap<String, PathBuf>,
        mounts: &[MountInfo],
    ) -> Result<DumpOptions, TaskError> {
        let container = self.container;
        let failed = |step| failed(container, step);
        let (pid, rootfs) = (container.init.pid(), container.bundle.join("rootfs"));
        let mut options = DumpOptions::new(pid, open_dir(self.images)?, open_dir(self.work)?);
        options.leave_running = !self.exit;
        options.tcp = Tcp::Established;
        // Connections that the program has not accepted yet are its peers' alone; they find out by a reset.
        options.tcp_skip_in_flight = true;
        options.file_locks = true;
        options.link_remap = true;
        options.ghost_limit = Some(DELETED_LIMIT);
        options.ext_unix_sk = true;
        options.shell_job = container.init.stdio.terminal;
        options.orphan_pts_master = true;
        // As runc dumps: what other tools restore from these images needs the properties of the cgroups.
        options.manage_cgroups = ManageCgroups::Soft;
        options.freeze_cgroup = Freezer::directory(cgroups);
        if let Some(cgroup) = &options.freeze_cgroup {
            options.irmap_scan_paths = crate::inotify::folders_to_search(cgroup, &rootfs, mounts)
                .map_err(|e| failed("looking for inotify watches")(full(&e)))?
                .unwrap_or_default();
        }
        options.ext_mounts = external::mounts(&container.spec, &rootfs, mounts)
            .map_err(|e| failed("finding its mounts")(full(&e)))?;
        options.external = external::namespaces(&container.spec, pid)
            .map_err(|e| failed("reading its namespaces")(full(&e)))?;
        options.root = Some(rootfs);
        Ok(options)
    }
}

/// Refuses a container whose processes hold what CRIU cannot dump.
///
/// # Errors
/// With all of it.
pub(crate) fn look(container: &Container, cgroup: &Path) -> Result<(), TaskError> {
    let failed = |e| failed(container, "looking at its files")(e);
    match crate::unfreezable::find(cgroup).map_err(|e| failed(full(&e)))? {
        Some(held) => Err(failed(full(&held))),
        None => Ok(()),
    }
}

/// Bytes of all files of a directory.
fn size(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.len())).fold(0, u64::saturating_add)
}

/// The GPUs that the container has, for the plan of its restore. Nothing where it has none.
fn write_gpus(container: &Container, images: &Path) -> std::io::Result<()> {
    let gpus = gpu::of_devices(&devices::of_spec(&container.spec), &gpu::of_node(Path::new("/")));
    if gpus.is_empty() {
        return Ok(());
    }
    std::fs::write(images.join(gpu::FILE), serde_json::to_vec(&gpus)?)
}

/// Lets a container come to where CRIU can stop it: by the freezer's `cgroup`, or, where that is taken away, one process
/// after the other.
fn settle(cgroup: &mut Option<PathBuf>) -> Result<Option<Thawed>, FreezerError> {
    let Some(path) = cgroup.take() else { return Ok(None) };
    let freezer = Freezer::of(&path);
    if let Some(stopped) = freezer.with_stopped().map_err(|e| FreezerError::Io(path.clone(), e))? {
        return Ok(stopped);
    }
    freezer.past_vfork()?;
    *cgroup = Some(path);
    Ok(None)
}

/// `descriptors.json`: what descriptors 0, 1, 2 were at the start, for the restore's `inherit_fd`.
fn write_descriptors(container: &Container, images: &Path) -> std::io::Result<()> {
    let state = std::fs::read(container.oci.state_file())?;
    let state: serde_json::Value = serde_json::from_slice(&state)?;
    let descriptors = state.get("external_descriptors").cloned().unwrap_or_default();
    std::fs::write(images.join("descriptors.json"), descriptors.to_string())
}

/// `thaw-network.json`: addresses and interfaces to which sockets may be bound, for the restore to replace them.
fn write_network(pid: i32, images: &Path) -> std::io::Result<()> {
    let found = interfaces(Some(Path::new(&format!("/proc/{pid}/ns/net"))))?;
    let interfaces = found.links.into_values().collect();
    let json = serde_json::to_vec(&NetworkDump { addresses: found.addresses, interfaces })?;
    std::fs::write(images.join(dump::NETWORK), json)
}

/// On an overlay a restored container's snapshot holds only what it wrote since; what it came with goes along as a file,
/// and what it wrote since as another one. Any other snapshot holds all, and containerd compares it with the image.
fn layers(container: &Container, images: &Path) -> Result<(), String> {
    if container.layer() != Some(Way::Attached) {
        return Ok(());
    }
    let Some(prepared) = container.restored() else { return Ok(()) };
    let Some(rootfs) = prepared.source.dir.rootfs() else { return Ok(()) };
    let upper = crate::rootfs::upper_directory(&container.bundle.join("rootfs")).map_err(|e| full(&e))?;
    for (name, layer) in [(layer::INHERITED_LAYER, rootfs), (layer::OWN_LAYER, &upper)] {
        let dir = open_dir(layer).map_err(|e| full(&e))?;
        let file = std::fs::File::create_new(images.join(name)).map_err(|e| full(&e))?;
        layer::write(dir.as_fd(), std::io::BufWriter::new(file)).map_err(|e| full(&e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_would_be_ignored_are_refused() {
        let of = |value: Vec<u8>| {
            let type_url = "containerd.runc.v1.CheckpointOptions".to_owned();
            decode(Some(&Any { type_url, value, ..Default::default() }))
        };
        // Field 10, two bytes long.
        let parent = vec![0x52, 2, b'.', b'.'];
        let empty = CheckpointOptions { empty_namespaces: vec!["network".into()], ..Default::default() };
        for options in [parent, empty.write_to_bytes().unwrap()] {
            assert!(of(options).unwrap_err().to_string().contains("leave these options out"));
        }
        let exit = CheckpointOptions { exit: true, ..Default::default() };
        assert!(of(exit.write_to_bytes().unwrap()).unwrap().exit);
    }

    #[test]
    fn empty_options_mean_the_container_goes_on() {
        assert!(!decode(None).unwrap().exit);
        assert!(!decode(Some(&Any::default())).unwrap().exit);
    }
}
