// SPDX-License-Identifier: Apache-2.0
//! The documentation: its links lead somewhere, its commands exist, and it lists every message with its cure.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn files(folder: &Path, suffix: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, suffix, found);
        } else if path.to_str().unwrap().ends_with(suffix) {
            found.push(path);
        }
    }
}

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![tree().join("README.md")];
    files(&tree().join("docs"), ".md", &mut pages);
    pages
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_link_leads_to_a_file_and_the_summary_has_every_page() {
    let mut broken = Vec::new();
    for page in pages() {
        for link in read(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            if !target.is_empty() && !target.contains("://") && !page.parent().unwrap().join(target).exists()
            {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    let summary = read(&tree().join("docs/SUMMARY.md"));
    for page in pages().iter().filter_map(|page| page.strip_prefix(tree().join("docs")).ok()) {
        let page = page.to_str().unwrap();
        assert!(
            page == "SUMMARY.md" || summary.contains(&format!("({page})")),
            "{page} is not in SUMMARY.md"
        );
    }
}

/// The lines of all blocks of shell commands, with their page.
fn commands() -> Vec<(PathBuf, String)> {
    let mut commands = Vec::new();
    for page in pages() {
        let mut inside = false;
        for line in read(&page).lines() {
            if line.starts_with("```") {
                inside = line == "```sh";
            } else if inside {
                let command = line.split(" # ").next().unwrap().trim();
                commands.push((page.clone(), command.to_owned()));
            }
        }
    }
    assert!(commands.len() > 20);
    commands
}

#[test]
fn every_command_of_ours_is_one_that_the_program_understands() {
    for (page, command) in commands() {
        let words: Vec<&str> = command.split_whitespace().collect();
        let [program, arguments @ ..] = words.as_slice() else { continue };
        let at = format!("{}: {command}", page.display());
        match *program {
            // With --help at the end, the command line is understood and nothing is done.
            "thaw" => {
                let target =
                    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| tree().join("target"), Into::into);
                let thaw = target.join("debug/thaw");
                let output = Command::new(thaw).args(arguments).arg("--help").output().unwrap();
                assert!(output.status.success(), "{at}: {}", String::from_utf8_lossy(&output.stderr));
            }
            script if script.starts_with("scripts/") => {
                assert!(tree().join(script).is_file(), "{at}: no such script");
                let usage = Command::new(tree().join(script)).arg("--help").output().unwrap();
                let usage = String::from_utf8_lossy(&usage.stdout).into_owned()
                    + &String::from_utf8_lossy(&usage.stderr);
                for flag in arguments.iter().filter(|word| word.starts_with("--")) {
                    assert!(usage.contains(flag), "{at}: {flag} is not in its usage");
                }
            }
            "kubectl" | "helm" => {
                for file in
                    arguments.iter().filter(|word| word.contains('/') && !word.starts_with("daemonset/"))
                {
                    assert!(tree().join(file).exists() || file.contains('='), "{at}: there is no {file}");
                }
            }
            // Programs of the distribution, and files that a release brings.
            "apt-get"
            | "dnf"
            | "tar"
            | "systemctl"
            | "journalctl"
            | "curl"
            | "semanage"
            | "restorecon"
            | "thaw-0.1.0-linux-amd64/install.sh" => {}
            other => panic!("{at}: {other} is not checked by this test"),
        }
    }
}

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
