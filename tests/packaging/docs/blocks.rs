// SPDX-License-Identifier: Apache-2.0
//! Examples of files: settings are ones that thaw reads, pods have annotations that it knows.

use std::collections::BTreeSet;

use checkpoint::config::ConfigError;
use checkpoint::{Config, PodOptions};
use serde_yaml_ng::Value;

use super::pages::{blocks, read, tree};

/// What the pages have besides pictures. Commands and Python have tests of their own (`commands`, `hub`).
const LANGUAGES: [&str; 5] = ["sh", "yaml", "toml", "python", "text"];

#[test]
fn every_block_is_of_a_language_that_is_tested() {
    for block in blocks() {
        assert!(LANGUAGES.contains(&block.language.as_str()), "{}: {:?}", block.page, block.language);
    }
}

fn settings(text: &str) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::load(file.path())
}

#[test]
fn settings_of_the_pages_and_of_the_packages_are_ones_that_thaw_reads() {
    let packaged = read(&tree().join("packaging/config.toml"));
    assert_eq!(settings(&packaged).unwrap(), Config::default(), "as it comes, it changes nothing");
    let is_setting = |line: &&str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    let shown: Vec<_> =
        packaged.lines().filter_map(|line| line.strip_prefix("# ")).filter(is_setting).collect();
    let mut all = vec![("packaging/config.toml".to_owned(), shown.join("\n"))];
    for block in blocks().into_iter().filter(|block| block.language == "toml") {
        all.push((block.page, block.text));
    }
    assert!(all.len() > 3);
    for (page, text) in &all {
        if let Err(error) = settings(text) {
            panic!("{page}: {error}");
        }
    }
    // Each key is explained to who installs the package, and to who reads the page.
    let keys = |text: &str| text.parse::<toml::Table>().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let page = all.iter().find(|(page, _)| page == "docs/operate/configure.md").unwrap();
    let known = settings("no_key = 1").unwrap_err().to_string();
    let known = known.split("known keys: ").nth(1).unwrap().split(')').next().unwrap();
    let known: BTreeSet<String> = known.split(", ").map(str::to_owned).collect();
    assert_eq!(keys(&all[0].1), known);
    assert_eq!(keys(&page.1), known);
}

/// Calls `found` with every `metadata.annotations` in it.
fn annotations(value: &Value, found: &mut Vec<Vec<(String, String)>>) {
    if let Some(pairs) = value.get("annotations").and_then(Value::as_mapping) {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        found.push(pairs.iter().map(|(key, value)| (text(key), text(value))).collect());
    }
    match value {
        Value::Mapping(map) => map.values().for_each(|value| annotations(value, found)),
        Value::Sequence(list) => list.iter().for_each(|value| annotations(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Tagged(_) => {}
    }
}

#[test]
fn annotations_of_the_examples_are_ones_that_thaw_knows() {
    let mut found = Vec::new();
    for block in blocks().into_iter().filter(|block| block.language == "yaml") {
        let example: Value =
            serde_yaml_ng::from_str(&block.text).unwrap_or_else(|e| panic!("{}: {e}", block.page));
        annotations(&example, &mut found);
    }
    assert!(found.len() > 4);
    for pairs in found {
        let given = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        assert!(PodOptions::parse(given).is_ok(), "{pairs:?}");
    }
}
