// SPDX-License-Identifier: Apache-2.0
//! Everything about a node that the verbs decide by.

use std::path::{Path, PathBuf};

use clap::Args;

use super::containerd::{Configuration, ConfigurationError, NriOff};
use super::distribution::{Distribution, DistributionError, Kind};
use super::handler::{HEAD, Handler, NAME};
use super::place::{Place, PlaceError, place};
use super::record::{Record, RecordError};
use super::tree::{Tree, TreeError};

/// Where the packages and the tarball put the shim.
const SHIMS: [&str; 2] = ["/usr/bin/containerd-shim-thaw-v1", "/usr/local/bin/containerd-shim-thaw-v1"];

/// Which node is meant.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeArguments {
    /// Work on the node's files below this directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) root: PathBuf,
    /// What the node runs, where it cannot be told from its files
    #[arg(long, value_name = "NAME")]
    pub(crate) distribution: Option<Kind>,
    /// Where RKE2 or k3s keeps its data, where its configuration does not say so
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The shim that containerd starts [default: the one in /usr/bin or /usr/local/bin]
    #[arg(long, value_name = "FILE")]
    pub(crate) shim: Option<PathBuf>,
}

/// A node as it is.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) distribution: Distribution,
    pub(crate) configuration: Configuration,
    pub(crate) record: Record,
    pub(crate) shim: PathBuf,
    pub(crate) containerd: Option<PathBuf>,
    pub(crate) nri_off: Option<NriOff>,
    /// Whether our file is merged over the configuration, and can so change what it says.
    pub(crate) drops_in: bool,
    /// Whether a file that is not ours has the handler.
    pub(crate) by_hand: Option<PathBuf>,
}

/// The node cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SurveyError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Distribution(#[from] DistributionError),
    #[error("containerd's configuration cannot be understood")]
    Configuration(#[from] ConfigurationError),
    #[error("what was installed before cannot be understood")]
    Record(#[from] RecordError),
}

impl NodeArguments {
    /// Opens the node's files.
    pub(crate) fn tree(&self) -> Result<Tree, TreeError> {
        Tree::open(&self.root)
    }

    /// Looks at the node.
    pub(crate) fn survey(&self, tree: &Tree) -> Result<Survey, SurveyError> {
        let distribution = Distribution::find(tree, self.distribution, self.data_dir.as_deref())?;
        let record = Record::load(tree)?;
        let configuration = Configuration::load(tree, &distribution.config(), &record.own_files())?;
        let shim = self.shim.clone().unwrap_or_else(|| {
            let found = SHIMS.iter().map(Path::new).find(|shim| tree.exists(shim));
            found.unwrap_or_else(|| Path::new(SHIMS[0])).to_owned()
        });
        let by_hand = by_hand(tree, &distribution, &configuration, &record)?;
        let mut survey = Survey {
            containerd: distribution.containerd(tree)?,
            nri_off: configuration.nri_off(),
            distribution,
            configuration,
            record,
            shim,
            drops_in: false,
            by_hand,
        };
        survey.drops_in = matches!(survey.place(tree), Ok(Place::DropIn { .. } | Place::Import { .. }));
        Ok(survey)
    }
}

impl Survey {
    /// Where the handler goes.
    pub(crate) fn place(&self, tree: &Tree) -> Result<Place, PlaceError> {
        place(tree, &self.distribution, &self.configuration, &self.record)
    }

    /// The text of our file at `place`.
    pub(crate) fn file(&self, place: &Place) -> String {
        match place {
            Place::DropIn { .. } | Place::Import { .. } => {
                let nri = self.nri_off == Some(NriOff::Setting);
                format!("{HEAD}version = {}\n{}", self.configuration.version, self.tables(nri))
            }
            Place::Template { .. } => format!("{HEAD}{{{{ template \"base\" . }}}}\n{}", self.tables(false)),
        }
    }

    /// The handler's tables, and NRI's where it must be switched on.
    pub(crate) fn tables(&self, nri: bool) -> String {
        let runc = self.configuration.handler("runc");
        let plugin = self.configuration.runtime_plugin();
        Handler { plugin, runc: runc.as_ref(), shim: &self.shim, nri }.text()
    }
}

/// The file of somebody else's that has the handler already. A generated file may still show what a template of ours
/// once said; the template counts.
fn by_hand(
    tree: &Tree,
    distribution: &Distribution,
    configuration: &Configuration,
    record: &Record,
) -> Result<Option<PathBuf>, TreeError> {
    if configuration.imports_handler(NAME) {
        return Ok(configuration.imports.first().cloned());
    }
    if !distribution.generates() {
        return Ok(configuration.handler(NAME).map(|_| configuration.path.clone()));
    }
    for name in ["config-v3.toml.tmpl", "config.toml.tmpl"] {
        let template = distribution.config_file(name);
        let text = if record.created(&template) { None } else { tree.read(&template)? };
        let ours = |line: &str| line.trim_start().starts_with('[') && line.contains(".runtimes.thaw]");
        if text.is_some_and(|text| text.lines().any(ours)) {
            return Ok(Some(template));
        }
    }
    Ok(None)
}
