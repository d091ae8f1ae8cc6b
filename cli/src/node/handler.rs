// SPDX-License-Identifier: Apache-2.0
//! The text that makes containerd know the runtime handler `thaw`.
//!
//! The handler is the node's `runc` handler with another shim: cgroup driver, base spec and whatever else an
//! administrator has set there count for pods under thaw as well.

use std::fmt::Write;
use std::path::Path;

use toml::{Table, Value};

use super::containerd::NRI;

/// The name of the handler, which the RuntimeClass names.
pub(crate) const NAME: &str = "thaw";

/// First lines of every file that is written.
pub(crate) const HEAD: &str = "# Written by `thaw node install`; `thaw node uninstall` takes it away. Put changes of yours into another file.\n";

/// The tables of one file.
#[derive(Debug, Clone)]
pub(crate) struct Handler<'a> {
    /// The plugin that holds handlers in this configuration version.
    pub(crate) plugin: &'a str,
    /// The table of the handler `runc`, where there is one.
    pub(crate) runc: Option<&'a Table>,
    pub(crate) shim: &'a Path,
    /// Whether NRI must be switched on.
    pub(crate) nri: bool,
}

impl Handler<'_> {
    /// The tables as text, without a version.
    pub(crate) fn text(&self) -> String {
        let mut table = self.runc.cloned().unwrap_or_default();
        // runtime_type stays runc's, with another program: so containerd passes runc's options and the CRI checkpoint
        // options on.
        table.insert("runtime_type".into(), "io.containerd.runc.v2".into());
        table.insert("runtime_path".into(), self.shim.to_string_lossy().into_owned().into());
        for (key, patterns) in [
            ("pod_annotations", &["thaw.dev/*"][..]),
            // The shim sees the restart count.
            ("container_annotations", &["thaw.dev/*", "io.kubernetes.container.*"]),
        ] {
            let list = table.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                let missing =
                    patterns.iter().filter(|pattern| !list.iter().any(|old| old.as_str() == Some(**pattern)));
                let missing: Vec<Value> = missing.map(|pattern| (*pattern).into()).collect();
                list.extend(missing);
            }
        }
        // Said outright, for it must be what the kubelet uses.
        let options = table.entry("options").or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(options) = options {
            options.entry("SystemdCgroup").or_insert(false.into());
        }
        let mut text = String::new();
        print(&mut text, &format!("plugins.'{}'.containerd.runtimes.{NAME}", self.plugin), &table);
        if self.nri {
            print(
                &mut text,
                &format!("plugins.'{NRI}'"),
                &Table::from_iter([("disable".into(), false.into())]),
            );
        }
        text
    }
}

/// Prints a table and those in it, without opening one that holds only others: it may be open elsewhere already.
fn print(text: &mut String, name: &str, table: &Table) {
    let (tables, values): (Vec<_>, Vec<_>) = table.iter().partition(|(_, value)| value.is_table());
    if !values.is_empty() || tables.is_empty() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n[{name}]");
    }
    for (key, value) in values {
        let _ = writeln!(text, "  {} = {value}", toml_key(key));
    }
    for (key, value) in tables {
        if let Value::Table(table) = value {
            print(text, &format!("{name}.{}", toml_key(key)), table);
        }
    }
}

/// A key, quoted where TOML wants it.
fn toml_key(key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if bare { key.to_owned() } else { Value::String(key.to_owned()).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(runc: Option<&str>) -> Table {
        let runc: Option<Table> = runc.map(|text| text.parse().unwrap());
        let handler =
            Handler { plugin: "p.v1", runc: runc.as_ref(), shim: Path::new("/usr/bin/shim"), nri: true };
        let all: Table = handler.text().parse().unwrap();
        assert_eq!(all["plugins"][NRI]["disable"].as_bool(), Some(false));
        all["plugins"]["p.v1"]["containerd"]["runtimes"]["thaw"].as_table().unwrap().clone()
    }

    #[test]
    fn the_handler_is_the_nodes_runc_with_another_shim() {
        let thaw = table(Some(
            "runtime_type = 'other'\nbase_runtime_spec = '/b.json'\npod_annotations = ['a/*', 'thaw.dev/*']\n\
             [options]\nSystemdCgroup = true\nBinaryName = '/r'\n[options.'a b']\nx = 1",
        ));
        assert_eq!(thaw["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
        assert_eq!(thaw["runtime_path"].as_str(), Some("/usr/bin/shim"));
        assert_eq!(thaw["base_runtime_spec"].as_str(), Some("/b.json"));
        assert_eq!(thaw["pod_annotations"].as_array().unwrap().len(), 2);
        assert_eq!(thaw["options"]["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(thaw["options"]["BinaryName"].as_str(), Some("/r"));
        assert_eq!(thaw["options"]["a b"]["x"].as_integer(), Some(1));
    }

    #[test]
    fn without_a_runc_handler_the_cgroup_driver_is_cgroupfs_as_in_containerd() {
        assert_eq!(table(None)["options"]["SystemdCgroup"].as_bool(), Some(false));
    }
}
