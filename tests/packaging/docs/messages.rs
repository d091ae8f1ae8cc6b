// SPDX-License-Identifier: Apache-2.0
//! Every message of thaw's is listed with its cure.

use std::collections::BTreeSet;

use super::pages::{files, read, tree};

/// `{name:?}` and the like become `…`, as the page has them.
fn normal(text: &str) -> String {
    let (mut out, mut depth) = (String::new(), 0);
    for c in text.replace("{{", "").replace("}}", "").chars() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                out.push('…');
            }
            c if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out
}

/// The texts of `#[error("...")]` in a source file.
fn messages(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in source.split("#[error(").skip(1) {
        let Some(text) = rest.trim_start().strip_prefix('"') else { continue };
        let (mut message, mut chars) = (String::new(), text.chars());
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => match chars.next() {
                    // A line that goes on: the next one begins with its first word.
                    Some('\n') => chars = chars.as_str().trim_start().chars(),
                    Some(escaped) => message.push(escaped),
                    None => break,
                },
                c => message.push(c),
            }
        }
        found.push(normal(&message));
    }
    found
}

/// The message of an entry: `- `...``, or with two marks and blanks where the message has marks itself.
fn entry(line: &str) -> Option<&str> {
    let code = line.strip_prefix("- ")?;
    let double = code.strip_prefix("`` ").and_then(|code| code.strip_suffix(" ``"));
    double.or_else(|| code.strip_prefix('`')?.strip_suffix('`'))
}

#[test]
fn every_message_is_listed_with_its_cure_and_none_that_is_no_more() {
    let mut sources = Vec::new();
    for folder in ["checkpoint/src", "criu-rpc/src", "shim/src", "nri-plugin/src", "cli/src"] {
        files(&tree().join(folder), ".rs", &mut sources);
    }
    let ours: BTreeSet<String> = sources
        .iter()
        .flat_map(|source| messages(&read(source)))
        .filter(|message| message.chars().any(char::is_alphabetic))
        .collect();
    assert!(ours.len() > 100);
    let page = read(&tree().join("docs/operate/errors.md"));
    let listed: BTreeSet<String> = page.lines().filter_map(entry).map(str::to_owned).collect();
    let missing: Vec<_> = ours.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&ours).collect();
    assert!(missing.is_empty() && gone.is_empty(), "not listed: {missing:#?}\nno more: {gone:#?}");
}
