// SPDX-License-Identifier: Apache-2.0
//! What a release says of the libraries in its programs.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::path::Path;
use std::process::Command;

fn run(script: &str) -> String {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(tree.join(script)).current_dir(tree).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_bill_of_materials_has_every_library_with_its_licence_and_checksum() {
    let bill: serde_json::Value = serde_json::from_str(&run("scripts/package.d/sbom")).unwrap();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let components = bill["components"].as_array().unwrap();
    for component in components {
        let name = component["name"].as_str().unwrap();
        assert!(component["licenses"][0]["expression"].is_string(), "{name} has no licence");
        assert_eq!(
            component["hashes"][0]["content"].as_str().map(str::len),
            Some(64),
            "{name} has no checksum"
        );
    }
    let has = |name: &str| components.iter().any(|component| component["name"] == name);
    assert!(has("rustix") && has("protobuf") && has("zstd"));
    // What only builds or tests is not in the programs, and neither are our own crates libraries of others.
    assert!(!has("tonic") && !has("proptest") && !has("checkpoint"));
}

#[test]
fn the_notices_of_every_library_are_packed() {
    let notices = run("scripts/package.d/third-party");
    let libraries = notices.lines().filter(|line| line.starts_with("=== ")).count();
    let bill: serde_json::Value = serde_json::from_str(&run("scripts/package.d/sbom")).unwrap();
    assert_eq!(libraries, bill["components"].as_array().unwrap().len());
    assert!(notices.contains("Permission is hereby granted") && notices.contains("Apache License"));
}

/// Every library of the workspace that comes from somewhere, whatever it is for, on the platforms that `deny.toml` names.
fn libraries() -> Vec<serde_json::Value> {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let deny: toml::Table = std::fs::read_to_string(tree.join("deny.toml")).unwrap().parse().unwrap();
    let targets = deny["graph"]["targets"].as_array().unwrap().iter().map(|target| target.as_str().unwrap());
    let arguments = ["metadata", "--format-version", "1", "--locked"].into_iter();
    let arguments = arguments.chain(targets.flat_map(|target| ["--filter-platform", target]));
    let output = Command::new("cargo").args(arguments).current_dir(tree).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = all["packages"].as_array().unwrap().iter();
    packages.filter(|package| !package["source"].is_null()).cloned().collect()
}

/// What cargo-deny checks before a release, by the same list: here for every change.
#[test]
fn every_library_has_a_licence_of_the_list_and_comes_from_the_registry() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let deny: toml::Table = std::fs::read_to_string(tree.join("deny.toml")).unwrap().parse().unwrap();
    let licensees = |names: &toml::Value| -> Vec<spdx::Licensee> {
        let names = names.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        names.map(|name| spdx::Licensee::parse(name).unwrap()).collect()
    };
    let allowed = licensees(&deny["licenses"]["allow"]);
    let exceptions = deny["licenses"]["exceptions"].as_array().unwrap();
    let mut faults = Vec::new();
    let libraries = libraries();
    for library in &libraries {
        let name = format!("{} {}", library["name"], library["version"]);
        let licence = library["license"].as_str().unwrap_or_default();
        let own =
            exceptions.iter().filter(|exception| exception["crate"].as_str() == library["name"].as_str());
        let own: Vec<_> = own.flat_map(|exception| licensees(&exception["allow"])).collect();
        let fits = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX).is_ok_and(|wanted| {
            wanted.evaluate(|one| allowed.iter().chain(&own).any(|licensee| licensee.satisfies(one)))
        });
        if !fits {
            faults.push(format!("{name}: {licence:?}"));
        }
        if library["source"] != "registry+https://github.com/rust-lang/crates.io-index" {
            faults.push(format!("{name}: from {}", library["source"]));
        }
    }
    assert!(libraries.len() > 100 && faults.is_empty(), "{faults:#?}");
}
