// SPDX-License-Identifier: Apache-2.0
//! containerd's configuration as it is, with all that it imports.
//!
//! Source: containerd 2.3 `cmd/containerd/server/config/config.go`: files are merged table by table in the order in which
//! they are imported, and a relative import is meant beside the file that names it.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::tree::{Tree, TreeError};

/// Where the runtime handlers are from configuration version 3 on.
/// Source: containerd 2.0 `docs/cri/config.md`.
const RUNTIME_V3: &str = "io.containerd.cri.v1.runtime";
/// Where they are in version 2, which containerd 2 still reads.
const RUNTIME_V2: &str = "io.containerd.grpc.v1.cri";
pub(crate) const NRI: &str = "io.containerd.nri.v1.nri";

/// A configuration and what it imports.
#[derive(Debug, Clone)]
pub(crate) struct Configuration {
    pub(crate) path: PathBuf,
    /// The main file as it is; empty where there is none.
    pub(crate) text: String,
    /// 2, 3 or 4.
    pub(crate) version: i64,
    /// What the main file imports, as absolute paths; their last part may have a `*`.
    pub(crate) imports: Vec<PathBuf>,
    /// All tables of the main file.
    main: Table,
    /// Tables of imported files, except those that were left out.
    imported: Table,
}

/// The configuration makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigurationError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{path} is not TOML; containerd cannot start with it", path = path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error(
        "{path} has configuration version {version} and thaw knows 2, 3 and 4; \
         `containerd config migrate` writes a newer one", path = path.display()
    )]
    Version { path: PathBuf, version: i64 },
}

/// The keys that matter before the plugins' tables.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    version: i64,
    #[serde(default)]
    imports: Vec<String>,
}

impl Configuration {
    /// Reads the configuration at `path`, leaving out the files in `except`. One that does not exist is an empty one
    /// of version 3: containerd starts without.
    pub(crate) fn load(tree: &Tree, path: &Path, except: &[PathBuf]) -> Result<Self, ConfigurationError> {
        let text = tree.read(path)?;
        let main = text.as_deref().map(|text| parse(path, text)).transpose()?.unwrap_or_default();
        let top = if text.is_some() { head(path, &main)? } else { Head { version: 3, imports: vec![] } };
        if !(2..=4).contains(&top.version) {
            return Err(ConfigurationError::Version { path: path.to_owned(), version: top.version });
        }
        let imports = absolute(path, &top.imports);
        let mut imported = Table::new();
        let mut seen: HashSet<PathBuf> = except.iter().cloned().chain([path.to_owned()]).collect();
        let mut pending: VecDeque<PathBuf> = imports.clone().into();
        while let Some(pattern) = pending.pop_front() {
            for file in matching(tree, &pattern)? {
                if !seen.insert(file.clone()) {
                    continue;
                }
                let Some(text) = tree.read(&file)? else { continue };
                let table = parse(&file, &text)?;
                pending.extend(absolute(&file, &head(&file, &table)?.imports));
                merge(&mut imported, table);
            }
        }
        let text = text.unwrap_or_default();
        Ok(Self { path: path.to_owned(), text, version: top.version, imports, main, imported })
    }

    /// The name of the plugin whose table holds the runtime handlers.
    pub(crate) fn runtime_plugin(&self) -> &'static str {
        if self.version == 2 { RUNTIME_V2 } else { RUNTIME_V3 }
    }

    /// The table of a runtime handler, with what imports change in it.
    pub(crate) fn handler(&self, name: &str) -> Option<Table> {
        let mut all = self.main.clone();
        merge(&mut all, self.imported.clone());
        self.handler_in(&all, name).cloned()
    }

    /// Whether a file that is imported has the runtime handler.
    pub(crate) fn imports_handler(&self, name: &str) -> bool {
        self.handler_in(&self.imported, name).is_some()
    }

    fn handler_in<'a>(&self, tables: &'a Table, name: &str) -> Option<&'a Table> {
        plugin(tables, self.runtime_plugin())?
            .get("containerd")?
            .as_table()?
            .get("runtimes")?
            .as_table()?
            .get(name)?
            .as_table()
    }

    /// What switches NRI off, if anything does. Without a word of it containerd 2 has it on.
    pub(crate) fn nri_off(&self) -> Option<NriOff> {
        let listed = |tables: &Table| {
            let list = tables.get("disabled_plugins").and_then(Value::as_array);
            list.is_some_and(|list| list.iter().any(|name| name.as_str() == Some(NRI)))
        };
        let disable = |tables: &Table| plugin(tables, NRI)?.get("disable")?.as_bool();
        if listed(&self.main) || listed(&self.imported) {
            return Some(NriOff::Plugin);
        }
        let off = disable(&self.imported).or_else(|| disable(&self.main)).unwrap_or(false);
        off.then_some(NriOff::Setting)
    }
}

/// How NRI is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NriOff {
    /// `disable = true` in its table: a later file can say otherwise.
    Setting,
    /// It is in `disabled_plugins`, to which later files can only add.
    Plugin,
}

fn plugin<'a>(tables: &'a Table, name: &str) -> Option<&'a Table> {
    tables.get("plugins")?.as_table()?.get(name)?.as_table()
}

fn parse(path: &Path, text: &str) -> Result<Table, ConfigurationError> {
    text.parse()
        .map_err(|source| ConfigurationError::Parse { path: path.to_owned(), source: Box::new(source) })
}

fn head(path: &Path, table: &Table) -> Result<Head, ConfigurationError> {
    let head = table.clone().try_into();
    head.map_err(|source| ConfigurationError::Parse { path: path.to_owned(), source: Box::new(source) })
}

fn absolute(file: &Path, imports: &[String]) -> Vec<PathBuf> {
    let folder = file.parent().unwrap_or_else(|| Path::new("/"));
    imports.iter().map(|import| folder.join(import)).collect()
}

/// The files that an import means; only its last part may be a pattern, with one `*`.
fn matching(tree: &Tree, pattern: &Path) -> Result<Vec<PathBuf>, TreeError> {
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str()))
    else {
        return Ok(Vec::new());
    };
    let Some((before, after)) = name.split_once('*') else { return Ok(vec![pattern.to_owned()]) };
    let fits = |name: &String| {
        name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
    };
    Ok(tree.names(folder)?.iter().filter(|name| fits(name)).map(|name| folder.join(name)).collect())
}

/// Lays `from` over `to`, table by table.
fn merge(to: &mut Table, from: Table) {
    for (key, value) in from {
        match (to.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                to.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)], except: &[&str]) -> Result<Configuration, ConfigurationError> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let except: Vec<PathBuf> = except.iter().map(PathBuf::from).collect();
        Configuration::load(&Tree::open(dir.path()).unwrap(), Path::new("/c/config.toml"), &except)
    }

    #[test]
    fn imports_are_merged_over_the_main_file_table_by_table() {
        let files = [
            (
                "c/config.toml",
                "version = 3\nimports = [\"conf.d/*.toml\"]\n\
                 [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'a'\nsnapshotter = 'x'\n\
                 [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n",
            ),
            (
                "c/conf.d/a.toml",
                "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'b'",
            ),
            ("c/conf.d/b.toml", "imports = ['/c/d.toml']"),
            ("c/conf.d/c.tmp", "not TOML"),
            ("c/d.toml", "[plugins.'io.containerd.nri.v1.nri']\ndisable = false\n"),
        ];
        let all = load(&files, &[]).unwrap();
        let runc = all.handler("runc").unwrap();
        assert_eq!((runc["runtime_type"].as_str(), runc["snapshotter"].as_str()), (Some("b"), Some("x")));
        assert_eq!(all.nri_off(), None);
        let without = load(&files, &["/c/d.toml"]).unwrap();
        assert_eq!(without.nri_off(), Some(NriOff::Setting));
        assert!(all.imports_handler("runc") && !all.imports_handler("thaw"));
    }

    #[test]
    fn a_configuration_that_is_not_there_is_an_empty_one_of_version_3() {
        let none = load(&[], &[]).unwrap();
        assert_eq!((none.version, none.handler("runc"), none.nri_off()), (3, None, None));
    }

    #[test]
    fn a_plugin_that_is_switched_off_by_name_is_off() {
        let off =
            load(&[("c/config.toml", "version = 2\ndisabled_plugins = ['io.containerd.nri.v1.nri']")], &[]);
        assert_eq!(off.unwrap().nri_off(), Some(NriOff::Plugin));
    }

    #[test]
    fn other_versions_are_refused() {
        for text in ["version = 1", "", "version = 5"] {
            let error = load(&[("c/config.toml", text)], &[]).unwrap_err().to_string();
            assert!(error.contains("migrate"), "{error}");
        }
    }

    #[test]
    fn files_that_import_each_other_are_read_once() {
        let files = [
            ("c/config.toml", "version = 3\nimports = ['a.toml']"),
            ("c/a.toml", "imports = ['/c/config.toml', 'a.toml']"),
        ];
        assert!(load(&files, &[]).is_ok());
    }
}
