// SPDX-License-Identifier: Apache-2.0
//! `thaw inspect`: what one checkpoint is, and whether it is whole.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

use checkpoint::container_dir::ContainerDirError;
use checkpoint::manifest::Container;
use checkpoint::store::{CheckpointDir, ResolveError};
use checkpoint::{ContainerDir, Manifest};
use clap::Args;
use criu_rpc::image::LoadError;
use indicatif::HumanBytes;
use serde::Serialize;
use time::format_description::well_known::Rfc3339;

use crate::memory::Memory;
use crate::name::{Name, NameArguments, NameError};
use crate::processes::{Process, Processes};
use crate::store::StoreError;

/// Show what a checkpoint holds: pod, containers, images, processes and what they claim
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Inspect {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) name: NameArguments,
}

/// The checkpoint cannot be shown, or not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InspectError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Container(#[from] ContainerDirError),
    #[error("the images of container {container} cannot be understood; import its archive again")]
    Images { container: String, source: LoadError },
    #[error("cannot print the checkpoint")]
    Print(#[from] io::Error),
}

/// A whole checkpoint, as JSON has it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: String,
    path: &'a Path,
    bytes: u64,
    manifest: &'a Manifest,
    containers: BTreeMap<&'a str, Processes>,
}

impl Inspect {
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), InspectError> {
        let store = self.name.store.open()?;
        let checkpoint = Name::find(&self.name.checkpoint, &store)?.open(&store)?;
        if self.json {
            return json(&checkpoint, out);
        }
        head(&checkpoint, out)?;
        // A damaged container does not keep the others from being shown.
        let mut first_error = Ok(());
        for (name, record) in &checkpoint.manifest().containers {
            writeln!(out, "\ncontainer {name}")?;
            body(record, out)?;
            match read(&checkpoint, name) {
                Ok((dir, processes)) => show(&dir, &processes, out)?,
                Err(error) => {
                    line(out, "state", "NOT USABLE, see the error below")?;
                    first_error = first_error.and(Err(error));
                }
            }
        }
        out.flush()?;
        first_error
    }
}

fn json(checkpoint: &CheckpointDir, out: &mut dyn Write) -> Result<(), InspectError> {
    let manifest = checkpoint.manifest();
    let mut containers = BTreeMap::new();
    for name in manifest.containers.keys() {
        containers.insert(name.as_str(), read(checkpoint, name)?.1);
    }
    let (name, path, bytes) = (checkpoint.name(), checkpoint.path(), manifest.bytes());
    serde_json::to_writer_pretty(&mut *out, &Shown { name, path, bytes, manifest, containers })
        .map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

fn read(checkpoint: &CheckpointDir, name: &str) -> Result<(ContainerDir, Processes), InspectError> {
    let dir = checkpoint.container(name)?;
    let processes =
        Processes::of(&dir).map_err(|source| InspectError::Images { container: name.to_owned(), source })?;
    Ok((dir, processes))
}

fn line(out: &mut dyn Write, key: &str, value: impl Display) -> io::Result<()> {
    writeln!(out, "  {key:10}  {value}")
}

fn head(checkpoint: &CheckpointDir, out: &mut dyn Write) -> io::Result<()> {
    let manifest = checkpoint.manifest();
    let time = |time: time::OffsetDateTime| time.format(&Rfc3339).unwrap_or_default();
    writeln!(out, "checkpoint {}", checkpoint.name())?;
    line(out, "path", checkpoint.path().display())?;
    line(out, "size", HumanBytes(manifest.bytes()))?;
    line(out, "frozen", time(manifest.id.time()))?;
    line(out, "stored", time(manifest.created))?;
    let uid = manifest.pod.uid.as_deref().unwrap_or("unknown").escape_debug();
    line(
        out,
        "pod",
        format_args!("{}/{} (UID {uid})", manifest.pod.namespace, manifest.pod.name.escape_debug()),
    )?;
    for address in &manifest.pod.addresses {
        line(out, "address", address)?;
    }
    Ok(())
}

fn body(record: &Container, out: &mut dyn Write) -> io::Result<()> {
    line(out, "image", record.image.name.escape_debug())?;
    if let Some(reference) = &record.image.reference {
        line(out, "", reference.escape_debug())?;
    }
    line(out, "from", format_args!("{:?}", record.producer))?;
    match &record.rootfs {
        None => line(out, "changes", "none in the root file system"),
        Some(rootfs) => {
            line(out, "changes", format_args!("{} in the root file system", HumanBytes(rootfs.bytes)))
        }
    }
}

fn show(dir: &ContainerDir, processes: &Processes, out: &mut dyn Write) -> io::Result<()> {
    let bytes = dir.images().iter().map(|image| image.bytes).fold(0, u64::saturating_add);
    line(out, "images", format_args!("{} files, {}", dir.images().len(), HumanBytes(bytes)))?;
    let Memory { bytes, at_once, shared } = processes.memory;
    let (all, at_once, shared) = (HumanBytes(bytes), HumanBytes(at_once), HumanBytes(shared));
    let waits = format_args!("{all}; if it follows, the program waits for {at_once}, {shared} of it shared")
        .to_string();
    line(out, "memory", waits)?;
    if let Some(hostname) = &processes.hostname {
        line(out, "hostname", hostname)?;
    }
    let lists = [
        ("mounts", &processes.external_mounts),
        ("listens", &processes.listening),
        ("connected", &processes.connections),
    ];
    for (key, values) in lists {
        for (index, value) in values.iter().enumerate() {
            line(out, if index == 0 { key } else { "" }, value)?;
        }
    }
    for (index, process) in processes.processes.iter().enumerate() {
        line(out, if index == 0 { "processes" } else { "" }, described(process))?;
    }
    Ok(())
}

/// `1 python3, 4 threads, user 1000, group 1000, no_new_privs, seccomp, CAP_NET_RAW`.
fn described(process: &Process) -> String {
    let mut text = format!("{} {}", process.pid, process.name);
    if process.threads > 1 {
        text += &format!(", {} threads", process.threads);
    }
    let Some(claims) = &process.claims else { return text + ", has exited" };
    text += &format!(", user {}, group {}", claims.user, claims.group);
    for (yes, word) in [(claims.no_new_privs, ", no_new_privs"), (claims.seccomp, ", seccomp")] {
        text += if yes { word } else { "" };
    }
    if !claims.capabilities.is_empty() {
        text += &format!(", {}", claims.capabilities);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, plain};

    fn run(fixture: &Fixture, mut inspect: Inspect) -> (String, Result<(), InspectError>) {
        let mut out = Vec::new();
        inspect.name.store = fixture.store();
        let result = inspect.run(&mut out);
        (String::from_utf8(out).unwrap(), result)
    }

    fn named(checkpoint: &str) -> Inspect {
        Inspect {
            name: NameArguments { checkpoint: checkpoint.to_owned(), ..NameArguments::default() },
            ..Inspect::default()
        }
    }

    #[test]
    fn a_checkpoint_is_shown_with_its_processes_and_their_claims() {
        let fixture = Fixture::new();
        let id = fixture.import(&[&plain()]).unwrap().id;
        for name in [format!("team/trainer/{id}"), "team/trainer/latest".to_owned(), id] {
            let (text, result) = run(&fixture, named(&name));
            result.unwrap();
            assert!(
                text.contains("1 python3, user 7, group 7, no_new_privs, seccomp, CAP_DAC_OVERRIDE"),
                "{text}"
            );
            assert!(
                text.contains("docker.io/library/python:3.12") && text.contains("team/trainer (UID 1"),
                "{text}"
            );
        }
        let (json, result) = run(&fixture, Inspect { json: true, ..named("team/trainer/latest") });
        result.unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["containers"]["main"]["processes"][0]["user"], 7);
        let memory = &json["containers"]["main"]["memory"];
        assert!(memory["bytes"].as_u64() >= memory["at_once"].as_u64(), "{memory}");
        assert_eq!(json["manifest"]["version"], 1);
    }

    #[test]
    fn a_damaged_checkpoint_is_shown_and_is_an_error() {
        let fixture = Fixture::new();
        let imported = fixture.import(&[&plain()]).unwrap();
        std::fs::write(imported.path.join("main/checkpoint/pages-1.img"), "short").unwrap();
        let (text, result) = run(&fixture, named(&imported.id));
        assert!(text.contains("NOT USABLE"), "{text}");
        assert!(
            result.unwrap_err().to_string().contains("pages-1.img has 5 bytes and the manifest says 5000")
        );
    }

    #[test]
    fn what_names_no_checkpoint_is_an_error_that_says_what_to_write() {
        let fixture = Fixture::new();
        fixture.import(&[&plain()]).unwrap();
        for name in
            ["", "trainer", "team/trainer", "/team/trainer/latest", "team/trainer/x", "../team/latest"]
        {
            let error = run(&fixture, named(name)).1.unwrap_err().to_string();
            assert!(error.contains("write") || error.contains("lower-case"), "{name}: {error}");
        }
        for name in ["20260101T000000.000Z-0001", "team/trainer/20260101T000000.000Z-0001"] {
            let error = run(&fixture, named(name)).1.unwrap_err().to_string();
            assert!(error.contains("no checkpoint"), "{name}: {error}");
        }
    }
}
