// SPDX-License-Identifier: Apache-2.0
//! How a checkpoint is named on the command line: `<namespace>/<lineage>/<id>`, as `import` and `list` print it;
//! `latest` in place of the id, or the id alone where only one checkpoint has it.

use checkpoint::reference::{LineageError, ReferenceError, is_dns_label};
use checkpoint::store::{CheckpointDir, Filter, ListError, ResolveError, Store};
use checkpoint::{CheckpointId, Lineage, Reference};
use clap::Args;

use crate::store::StoreArguments;

/// Which checkpoint is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) namespace: String,
    pub(crate) lineage: Lineage,
    pub(crate) reference: Reference,
}

/// One checkpoint of a store, as the command line names it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NameArguments {
    /// NAMESPACE/LINEAGE/ID or NAMESPACE/LINEAGE/latest, or an id alone
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint: String,
    #[command(flatten)]
    pub(crate) store: StoreArguments,
}

/// No checkpoint is meant.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NameError {
    #[error(
        "{text:?} does not name a checkpoint: write NAMESPACE/LINEAGE/ID as `thaw list` prints it, or an id alone"
    )]
    Form { text: String },
    #[error(transparent)]
    Lineage(#[from] LineageError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("there is no checkpoint {id}; `thaw list` shows what this node has")]
    None { id: CheckpointId },
    #[error("several checkpoints have the id {id}: write one of {names}")]
    Several { id: CheckpointId, names: String },
    #[error("cannot look for checkpoint {id}")]
    List { id: CheckpointId, source: ListError },
}

impl Name {
    pub(crate) fn find(text: &str, store: &Store) -> Result<Self, NameError> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [namespace, lineage, reference] if is_dns_label(namespace) => Ok(Self {
                namespace: (*namespace).to_owned(),
                lineage: lineage.parse()?,
                reference: reference.parse()?,
            }),
            [id] => match id.parse::<CheckpointId>() {
                Ok(id) => Self::with_id(id, store),
                Err(_) => Err(NameError::Form { text: text.to_owned() }),
            },
            _ => Err(NameError::Form { text: text.to_owned() }),
        }
    }

    fn with_id(id: CheckpointId, store: &Store) -> Result<Self, NameError> {
        let filter = Filter { id: Some(id.clone()), ..Filter::default() };
        let mut found =
            store.list(&filter).map_err(|source| NameError::List { id: id.clone(), source })?.into_iter();
        match (found.next(), found.next()) {
            (None, _) => Err(NameError::None { id }),
            (Some(one), None) => {
                Ok(Self { namespace: one.namespace, lineage: one.lineage, reference: Reference::Id(id) })
            }
            (Some(one), Some(two)) => {
                let name = |listed: &checkpoint::store::Listed| {
                    format!("{}/{}/{id}", listed.namespace, listed.lineage)
                };
                let names = [name(&one), name(&two)].into_iter().chain(found.map(|listed| name(&listed)));
                Err(NameError::Several { names: names.collect::<Vec<_>>().join(", "), id })
            }
        }
    }

    /// Opens it.
    pub(crate) fn open(&self, store: &Store) -> Result<CheckpointDir, ResolveError> {
        store.resolve(&self.namespace, &self.lineage, &self.reference)
    }
}
