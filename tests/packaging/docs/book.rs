// SPDX-License-Identifier: Apache-2.0
//! The site that mdBook makes of docs/.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mdbook_driver::MDBook;

use super::pages::{files, pages, read, tree};

/// The values of an attribute in a page.
fn values<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    let start = format!(" {attribute}=\"");
    html.split(start.as_str()).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// A path without `.` and `..`; `None` where it leads out.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path {
        match part.to_str()? {
            "." => {}
            ".." => {
                if !normal.pop() {
                    return None;
                }
            }
            name => normal.push(name),
        }
    }
    Some(normal)
}

#[test]
fn it_renders_and_every_link_leads_to_a_page_or_a_place_on_one() {
    let site = tempfile::tempdir().unwrap();
    let mut book = MDBook::load(tree()).unwrap();
    book.config.build.build_dir = site.path().to_owned();
    book.build().unwrap();

    let mut found = Vec::new();
    files(site.path(), ".html", &mut found);
    let html: BTreeMap<PathBuf, String> = found
        .into_iter()
        .map(|path| (path.strip_prefix(site.path()).unwrap().to_owned(), read(&path)))
        .filter(|(path, _)| path != Path::new("404.html"))
        .collect();
    let places: BTreeMap<&PathBuf, BTreeSet<&str>> =
        html.iter().map(|(path, text)| (path, values(text, "id").into_iter().collect())).collect();
    let (mut broken, mut seen) = (Vec::new(), 0);
    for (path, text) in &html {
        for link in values(text, "href").into_iter().filter(|link| !link.contains("://")) {
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let to =
                if file.is_empty() { Some(path.clone()) } else { normal(&path.parent().unwrap().join(file)) };
            let leads = to.is_some_and(|to| {
                site.path().join(&to).is_file()
                    && (place.is_empty() || places.get(&to).is_some_and(|places| places.contains(place)))
            });
            seen += 1;
            if !leads {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(seen > 300 && broken.is_empty(), "of {seen}: {broken:#?}");
    for page in pages().iter().filter_map(|page| page.strip_prefix(tree().join("docs")).ok()) {
        let made = page.with_extension("html");
        assert!(
            page == Path::new("SUMMARY.md") || html.contains_key(&made),
            "{} is not in SUMMARY.md",
            page.display()
        );
    }
}

#[test]
fn every_link_of_the_readme_leads_to_a_file() {
    let readme = read(&tree().join("README.md"));
    let links = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files = links.filter(|link| !link.contains("://")).map(|link| link.split('#').next().unwrap());
    let broken: Vec<_> = files.filter(|file| !tree().join(file).exists()).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}
