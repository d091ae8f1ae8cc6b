// SPDX-License-Identifier: Apache-2.0
//! The pages, and the blocks of code on them.

use std::path::{Path, PathBuf};

pub(crate) fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// All files in a folder and those below it whose names end so.
pub(crate) fn files(folder: &Path, suffix: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, suffix, found);
        } else if path.to_str().unwrap().ends_with(suffix) {
            found.push(path);
        }
    }
}

/// README.md and all pages below docs/.
pub(crate) fn pages() -> Vec<PathBuf> {
    let mut pages = vec![tree().join("README.md")];
    files(&tree().join("docs"), ".md", &mut pages);
    pages.sort();
    pages
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// A block of code.
pub(crate) struct Block {
    /// Its page's path in this tree.
    pub(crate) page: String,
    /// What stands behind the marks at its beginning.
    pub(crate) language: String,
    pub(crate) text: String,
}

/// All blocks of all pages.
pub(crate) fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for path in pages() {
        let page = path.strip_prefix(tree()).unwrap().to_str().unwrap().to_owned();
        let mut block: Option<Block> = None;
        for line in read(&path).lines() {
            match (line.strip_prefix("```"), &mut block) {
                (Some(_), Some(_)) => blocks.extend(block.take()),
                (Some(language), None) => {
                    block = Some(Block {
                        page: page.clone(),
                        language: language.to_owned(),
                        text: String::new(),
                    });
                }
                (None, Some(block)) => block.text += &format!("{line}\n"),
                (None, None) => {}
            }
        }
        assert!(block.is_none(), "{page}: a block does not end");
    }
    blocks
}
