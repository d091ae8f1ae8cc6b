// SPDX-License-Identifier: Apache-2.0
//! `thaw list`: what the store holds.

use std::io::{self, Write};

use checkpoint::Manifest;
use checkpoint::store::{Filter, ListError, Listed};
use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use crate::store::{StoreArguments, StoreError};

/// Show the checkpoints of this node, oldest first within each lineage
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct List {
    /// Only those of this namespace
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) store: StoreArguments,
}

/// There is no list.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListVerbError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    List(#[from] ListError),
    #[error("cannot print the list")]
    Print(#[from] io::Error),
}

/// One checkpoint, as JSON has it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    namespace: &'a str,
    lineage: &'a str,
    id: &'a str,
    path: &'a std::path::Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<&'a Manifest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl List {
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), ListVerbError> {
        let filter = Filter { namespace: self.namespace.clone(), ..Filter::default() };
        let listed = self.store.open()?.list(&filter)?;
        if self.json {
            let rows: Vec<Row<'_>> = listed.iter().map(row).collect();
            serde_json::to_writer_pretty(&mut *out, &rows).map_err(io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        if listed.is_empty() {
            // Not on standard output, where a script counts lines.
            let _ = writeln!(io::stderr(), "no checkpoints");
            return Ok(());
        }
        let mut rows = vec![["CHECKPOINT", "FROZEN", "SIZE", "CONTAINERS", "IMAGES"].map(str::to_owned)];
        rows.extend(listed.iter().map(cells));
        Ok(print(out, &rows)?)
    }
}

fn row(listed: &Listed) -> Row<'_> {
    Row {
        namespace: &listed.namespace,
        lineage: listed.lineage.as_str(),
        id: listed.id.as_str(),
        path: &listed.path,
        manifest: listed.manifest.as_ref().ok(),
        bytes: listed.manifest.as_ref().ok().map(Manifest::bytes),
        error: listed.manifest.as_ref().err().map(ToString::to_string),
    }
}

fn cells(listed: &Listed) -> [String; 5] {
    let name = format!("{}/{}/{}", listed.namespace, listed.lineage, listed.id);
    let time = listed.id.time();
    let frozen = format!("{} {:02}:{:02} UTC", time.date(), time.hour(), time.minute());
    match &listed.manifest {
        Ok(manifest) => {
            let join = |items: Vec<String>| items.join(",");
            let images =
                manifest.containers.values().map(|container| container.image.name.escape_debug().to_string());
            let containers = manifest.containers.keys().cloned();
            let size = HumanBytes(manifest.bytes()).to_string();
            [name, frozen, size, join(containers.collect()), join(images.collect())]
        }
        Err(error) => [name, frozen, "?".into(), "?".into(), error.to_string().escape_debug().to_string()],
    }
}

/// Prints rows as columns; the last one is not filled up.
fn print(out: &mut dyn Write, rows: &[[String; 5]]) -> io::Result<()> {
    let mut widths = [0; 5];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, Tar, containerd, images, plain};

    fn run(fixture: &Fixture, list: List) -> String {
        let mut out = Vec::new();
        List { store: fixture.store(), ..list }.run(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn checkpoints_are_listed_in_columns_or_as_json() {
        let fixture = Fixture::new();
        assert_eq!(run(&fixture, List::default()), "");
        fixture.import(&[&plain()]).unwrap();
        fixture.import(&[&containerd(images(Tar::new(), "x"), "other", "pod", "main").bytes()]).unwrap();
        let text = run(&fixture, List::default());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("CHECKPOINT") && lines[1].starts_with("other/pod/20"), "{text}");
        assert!(lines[2].contains("main") && lines[2].ends_with("docker.io/library/python:3.12"), "{text}");
        let json = run(&fixture, List { json: true, namespace: Some("team".into()), ..List::default() });
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json.as_array().unwrap().len(), 1);
        assert_eq!(json[0]["lineage"], "trainer");
        assert!(json[0]["bytes"].as_u64().unwrap() > 5000);
    }

    #[test]
    fn a_checkpoint_with_a_bad_manifest_is_listed_as_such() {
        let fixture = Fixture::new();
        let imported = fixture.import(&[&plain()]).unwrap();
        std::fs::write(imported.path.join("manifest.json"), r#"{"version":9}"#).unwrap();
        assert!(run(&fixture, List::default()).contains("version 9"));
        assert!(run(&fixture, List { json: true, ..List::default() }).contains("\"error\""));
    }
}
