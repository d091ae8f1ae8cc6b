// SPDX-License-Identifier: Apache-2.0
//! Decides where the runtime handler is written.
//!
//! ```text
//!  what the configuration imports        -> a file in that directory
//!  RKE2, k3s: nothing imported           -> config-v3.toml.tmpl with {{ template "base" . }}, if there is none yet
//!  containerd alone: nothing imported    -> /etc/containerd/conf.d, and one import in config.toml
//! ```
//!
//! A generated file is never edited, and a file that somebody else wrote is never replaced.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::containerd::Configuration;
use super::distribution::Distribution;
use super::record::Record;
use super::tree::{Tree, TreeError};

/// The name of our file in a directory of drop-ins: the last of them, so that it can switch NRI on.
const FILE: &str = "99-thaw.toml";
/// What is imported where nothing is: containerd 2.2 and later import it by default.
/// Source: containerd 2.2 release notes.
pub(super) const CONF_D: &str = "/etc/containerd/conf.d/*.toml";

/// Where the handler goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file that is imported.
    DropIn { path: PathBuf },
    /// A file, and an import of its directory at `at` (a byte offset) in the main file.
    Import { path: PathBuf, at: usize, text: String },
    /// A template that RKE2 or k3s renders.
    Template { path: PathBuf },
}

/// There is no place for the handler.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error(
        "{path} is not there: {distribution} writes it when it starts for the first time; start it once, then install",
        path = path.display()
    )]
    NotGenerated { path: PathBuf, distribution: &'static str },
    #[error(
        "{path} is a template of yours, which thaw does not change: add the tables above to it, or this line to its top: \
         imports = [\"{drop_ins}\"]",
        path = path.display(), drop_ins = path.with_extension("d").join("*.toml").display()
    )]
    Template { path: PathBuf },
    #[error(
        "{path} has `imports` in a form that thaw does not change; add {CONF_D:?} to them",
        path = path.display()
    )]
    Imports { path: PathBuf },
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Decides.
pub(crate) fn place(
    tree: &Tree,
    distribution: &Distribution,
    configuration: &Configuration,
    record: &Record,
) -> Result<Place, PlaceError> {
    let directory = configuration.imports.iter().find(|import| import.ends_with("*.toml"));
    if distribution.generates() && !tree.exists(&configuration.path) {
        let path = configuration.path.clone();
        return Err(PlaceError::NotGenerated { path, distribution: distribution.name() });
    }
    let template = template(distribution, configuration);
    if record.created(&template) {
        return Ok(Place::Template { path: template });
    }
    if let Some(pattern) = directory {
        return Ok(Place::DropIn { path: pattern.with_file_name(FILE) });
    }
    if !distribution.generates() {
        return import(configuration);
    }
    // A configuration of version 2 comes from a template as well: RKE2 and k3s with containerd 2 generate version 3.
    if tree.exists(&template) || configuration.version == 2 {
        return Err(PlaceError::Template { path: template });
    }
    Ok(Place::Template { path: template })
}

/// The template that the distribution renders for this configuration version.
fn template(distribution: &Distribution, configuration: &Configuration) -> PathBuf {
    distribution.config_file(if configuration.version == 2 {
        "config.toml.tmpl"
    } else {
        "config-v3.toml.tmpl"
    })
}

/// One more import in the main file, as an insertion, so that everything else stays as it is to the byte.
fn import(configuration: &Configuration) -> Result<Place, PlaceError> {
    #[derive(Deserialize)]
    struct Imports {
        #[serde(default)]
        imports: Option<Spanned<Vec<String>>>,
        version: Option<Spanned<i64>>,
    }
    let path = Path::new(CONF_D).with_file_name(FILE);
    let failed = || PlaceError::Imports { path: configuration.path.clone() };
    let text = &configuration.text;
    let found: Imports = toml::from_str(text).map_err(|_| failed())?;
    let (at, insertion) = match (found.imports, found.version) {
        (Some(list), _) => (list.span().start + 1, format!("{CONF_D:?}, ")),
        // Keys at the top must stand before the first table, and the version does.
        (None, Some(version)) => (line_start(text, version.span()), format!("imports = [{CONF_D:?}]\n")),
        (None, None) => (0, format!("version = {}\nimports = [{CONF_D:?}]\n", configuration.version)),
    };
    // Whether it means what it should is not guessed: the changed text is read again.
    let mut changed = text.clone();
    if !changed.is_char_boundary(at) {
        return Err(failed());
    }
    changed.insert_str(at, &insertion);
    let again: Imports = toml::from_str(&changed).map_err(|_| failed())?;
    let imports = again.imports.map(Spanned::into_inner).unwrap_or_default();
    if !imports.iter().any(|import| import == CONF_D) {
        return Err(failed());
    }
    Ok(Place::Import { path, at, text: insertion })
}

fn line_start(text: &str, span: Range<usize>) -> usize {
    text.get(..span.start).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1)
}
