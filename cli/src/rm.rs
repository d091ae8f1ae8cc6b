// SPDX-License-Identifier: Apache-2.0
//! `thaw rm`: takes a checkpoint away that nobody uses.

use std::io::{self, Write};

use checkpoint::Reference;
use checkpoint::fault_orders::FaultOrders;
use checkpoint::store::{RemoveError, ResolveError};
use clap::Args;

use crate::name::{Name, NameArguments, NameError};
use crate::store::StoreError;

/// Remove a checkpoint, unless a container lives on it
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Rm {
    #[command(flatten)]
    pub(crate) name: NameArguments,
}

/// The checkpoint is still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RmError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Remove(#[from] RemoveError),
    #[error("cannot print the result")]
    Print(#[from] io::Error),
}

impl Rm {
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), RmError> {
        let store = self.name.store.open()?;
        let name = Name::find(&self.name.checkpoint, &store)?;
        let id = match &name.reference {
            Reference::Id(id) => id.clone(),
            // Our own lock ends with this expression.
            Reference::Latest | Reference::Of { .. } => name.open(&store)?.id().clone(),
        };
        store.remove(&name.namespace, &name.lineage, &id)?;
        let name = format!("{}/{}/{id}", name.namespace, name.lineage);
        // It would go by its age too.
        let _ = FaultOrders::default().remove(&name);
        Ok(writeln!(out, "removed {name}")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, plain};

    fn run(fixture: &Fixture, checkpoint: &str) -> Result<String, String> {
        let mut out = Vec::new();
        let rm = Rm { name: NameArguments { checkpoint: checkpoint.to_owned(), store: fixture.store() } };
        rm.run(&mut out).map(|()| String::from_utf8(out).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_checkpoint_is_removed_by_each_of_its_names() {
        let fixture = Fixture::new();
        for by_id in [true, false] {
            let id = fixture.import(&[&plain()]).unwrap().id;
            let name = if by_id { id.clone() } else { "team/trainer/latest".to_owned() };
            assert_eq!(run(&fixture, &name).unwrap(), format!("removed team/trainer/{id}\n"));
            assert!(fixture.files().is_empty());
        }
        assert!(run(&fixture, "team/trainer/latest").unwrap_err().contains("no checkpoint"));
    }

    #[test]
    fn a_checkpoint_in_use_stays() {
        let fixture = Fixture::new();
        let imported = fixture.import(&[&plain()]).unwrap();
        let store = fixture.store().open().unwrap();
        let user = Name::find(&imported.id, &store).unwrap().open(&store).unwrap();
        assert!(run(&fixture, &imported.id).unwrap_err().contains("in use"));
        assert!(user.container("main").is_ok());
        drop(user);
        assert!(run(&fixture, &imported.id).is_ok());
    }
}
