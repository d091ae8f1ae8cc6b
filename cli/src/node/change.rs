// SPDX-License-Identifier: Apache-2.0
//! Changes to a node's files: planned, shown as a diff, made, and undone if one fails.

use std::io::{self, Write};
use std::path::PathBuf;

use similar::TextDiff;

use super::record::{Kept, Recorded};
use super::tree::{Tree, TreeError};

/// One file as it is and as it shall be; `None`: it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) path: PathBuf,
    pub(crate) before: Option<String>,
    pub(crate) after: Option<String>,
}

/// A file is not as it was left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("{path} was changed after thaw wrote it; take your changes out or move them to another file, then try again",
        path = path.display())]
    Changed { path: PathBuf },
    #[error("{path} has `{text}` more than once, and thaw put it there once; take the others out, then try again",
        path = path.display(), text = text.trim_end())]
    Several { path: PathBuf, text: String },
    #[error("{path} is there and thaw did not write it; move it away, then try again", path = path.display())]
    Foreign { path: PathBuf },
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl Change {
    pub(crate) fn is_none(&self) -> bool {
        self.before == self.after
    }

    /// Prints the change as `diff -u` does.
    pub(crate) fn show(&self, out: &mut dyn Write) -> io::Result<()> {
        let name = |there: &Option<String>| match there {
            Some(_) => self.path.display().to_string(),
            None => "/dev/null".to_owned(),
        };
        let (before, after) = (self.before.as_deref().unwrap_or(""), self.after.as_deref().unwrap_or(""));
        let diff = TextDiff::from_lines(before, after);
        write!(out, "{}", diff.unified_diff().header(&name(&self.before), &name(&self.after)))
    }

    fn make(&self, tree: &Tree) -> Result<(), TreeError> {
        match &self.after {
            Some(text) => tree.write(&self.path, text),
            None => tree.remove(&self.path),
        }
    }
}

/// The change that undoes what a record says. A file or a line of ours that somebody has removed is undone already.
pub(crate) fn undo(tree: &Tree, recorded: &Recorded) -> Result<Change, ChangeError> {
    let path = recorded.path.clone();
    let before = tree.read(&path)?;
    let after = match (&recorded.change, &before) {
        (_, None) => None,
        (Kept::Created(text), Some(now)) if now == text => None,
        (Kept::Created(_), Some(_)) => return Err(ChangeError::Changed { path }),
        (Kept::Inserted(text), Some(now)) => {
            match now.match_indices(text.as_str()).collect::<Vec<_>>().as_slice() {
                [] => before.clone(),
                [_] => Some(now.replacen(text.as_str(), "", 1)),
                _ => return Err(ChangeError::Several { path, text: text.clone() }),
            }
        }
    };
    Ok(Change { path, before, after })
}

/// Makes all changes, or none.
pub(crate) fn make_all(tree: &Tree, changes: &[Change]) -> Result<(), TreeError> {
    for (index, change) in changes.iter().enumerate() {
        if let Err(error) = change.make(tree) {
            for done in changes.iter().take(index).rev() {
                let back = Change { after: done.before.clone(), ..done.clone() };
                // The first error is the one to tell; the record still names what could not be put back.
                let _ = back.make(tree);
            }
            return Err(error);
        }
    }
    Ok(())
}
