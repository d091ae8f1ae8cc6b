// SPDX-License-Identifier: Apache-2.0
//! Tests of the annotation grammar.

use super::*;
use proptest::prelude::*;

const ID: &str = "20261122T181500.123Z-7f3a";

fn parse(annotations: &[(&str, &str)]) -> Result<PodOptions, AnnotationErrors> {
    PodOptions::parse(annotations.iter().copied())
}

fn error(key: &str, value: &str) -> String {
    parse(&[(key, value)]).unwrap_err().to_string()
}

#[test]
fn a_pod_without_annotations_starts_normally() {
    let options = parse(&[("io.kubernetes.cri.container-name", "main"), ("thaw.devx/restore", "x")]).unwrap();
    assert_eq!(options.for_container("main"), None);
    assert_eq!(options.lineage("trainer-0").unwrap().as_str(), "trainer-0");
}

#[test]
fn latest_starts_where_nothing_exists_and_an_id_does_not() {
    let latest = parse(&[("thaw.dev/restore", "latest")]).unwrap().for_container("main").unwrap();
    assert_eq!((latest.if_missing, latest.if_failed), (Otherwise::Start, Otherwise::Fail));
    assert_eq!(latest.scope, Scope::Pod);
    let id = parse(&[("thaw.dev/restore", ID)]).unwrap().for_container("main").unwrap();
    assert_eq!((id.if_missing, id.if_failed), (Otherwise::Fail, Otherwise::Fail));
}

#[test]
fn explicit_choices_win_over_the_defaults() {
    let options =
        [("thaw.dev/restore", "latest"), ("thaw.dev/if-missing", "fail"), ("thaw.dev/if-failed", "start")];
    let request = parse(&options).unwrap().for_container("main").unwrap();
    assert_eq!((request.if_missing, request.if_failed), (Otherwise::Fail, Otherwise::Start));
}

#[test]
fn a_container_annotation_wins_over_the_pod_annotation() {
    let other = format!("other/{ID}");
    let options = parse(&[("thaw.dev/restore", "latest"), ("thaw.dev/restore.web", other.as_str())]).unwrap();
    let web = options.for_container("web").unwrap();
    assert_eq!((web.reference.to_string(), web.scope), (other, Scope::Container));
    assert_eq!(options.for_container("side").unwrap().reference, Reference::Latest);
}

#[test]
fn the_lineage_annotation_wins_over_the_pod_name() {
    let options = parse(&[("thaw.dev/lineage", "training")]).unwrap();
    assert_eq!(options.lineage("trainer-x7k2p").unwrap().as_str(), "training");
    assert_eq!(options.for_container("main"), None);
}

#[test]
fn an_unknown_key_is_refused_and_the_known_ones_are_listed() {
    for key in ["thaw.dev/Restore", "thaw.dev/", "thaw.dev/checkpoint-on", "thaw.dev/restored"] {
        let error = error(key, "latest");
        assert!(error.contains(key) && error.contains("thaw.dev/if-missing"), "{error}");
    }
}

#[test]
fn a_reserved_key_is_refused() {
    assert!(error("thaw.dev/internal.plan", "{}").contains("reserved"));
}

#[test]
fn every_bad_value_is_refused_with_key_value_and_what_is_allowed() {
    for (key, value, allowed) in [
        ("thaw.dev/restore", "/var/lib/x", "never gives a path"),
        ("thaw.dev/restore", "", "latest"),
        ("thaw.dev/restore", "yes", "latest"),
        ("thaw.dev/restore", " latest", "latest"),
        ("thaw.dev/restore.main", "../x", "never gives a path"),
        ("thaw.dev/lineage", "", "DNS label"),
        ("thaw.dev/lineage", "a/b", "DNS label"),
        ("thaw.dev/lineage", "a.b", "DNS label"),
        ("thaw.dev/lineage", "-a", "DNS label"),
        ("thaw.dev/if-missing", "ignore", "start or fail"),
        ("thaw.dev/if-missing", "", "start or fail"),
        ("thaw.dev/if-failed", "Start", "start or fail"),
        ("thaw.dev/address", "move", "rewrite or keep"),
        ("thaw.dev/tcp", "established", "auto, keep or close"),
        ("thaw.dev/memory", "soon", "eager or lazy"),
        ("thaw.dev/log", "old", "new or continue"),
        ("thaw.dev/volumes", "a/b", "separated by commas"),
        ("thaw.dev/volumes", "Scratch", "emptyDir"),
    ] {
        let error = error(key, value);
        assert!(error.contains(key) && error.contains(value) && error.contains(allowed), "{error}");
    }
}

#[test]
fn sockets_connections_and_volumes_have_defaults_and_are_read() {
    let options = parse(&[("thaw.dev/restore", "latest")]).unwrap();
    assert_eq!((options.address(), options.tcp()), (Address::Rewrite, TcpConnections::Auto));
    assert_eq!((options.memory(), options.log()), (None, Log::New));
    assert!(options.volumes().is_empty());
    let options = parse(&[
        ("thaw.dev/address", "keep"),
        ("thaw.dev/tcp", "keep"),
        ("thaw.dev/memory", "lazy"),
        ("thaw.dev/log", "continue"),
        ("thaw.dev/volumes", "scratch, cache,scratch"),
    ])
    .unwrap();
    assert_eq!((options.address(), options.tcp()), (Address::Keep, TcpConnections::Keep));
    assert_eq!((options.memory(), options.log()), (Some(Memory::Lazy), Log::Continue));
    assert_eq!(options.volumes().iter().collect::<Vec<_>>(), ["cache", "scratch"]);
    assert_eq!(parse(&[("thaw.dev/tcp", "close")]).unwrap().tcp(), TcpConnections::Close);
    assert!(parse(&[("thaw.dev/volumes", " ")]).unwrap().volumes().is_empty());
    assert!(parse(&[("thaw.dev/volumes", "a,,b")]).is_err());
}

#[test]
fn a_key_for_an_impossible_container_is_refused() {
    for key in ["thaw.dev/restore.", "thaw.dev/restore.Main", "thaw.dev/restore.a/b", "thaw.dev/restore..."] {
        assert!(error(key, "latest").contains("does not name a container"), "{key}");
    }
}

#[test]
fn all_errors_come_at_once() {
    let errors =
        parse(&[("thaw.dev/restor", "x"), ("thaw.dev/restore", "x/y/z"), ("thaw.dev/if-failed", "maybe")])
            .unwrap_err();
    assert_eq!(errors.0.len(), 3);
    let shown = errors.to_string();
    assert!(
        shown.contains("restor\"") && shown.contains("too many parts") && shown.contains("maybe"),
        "{shown}"
    );
}

proptest! {
    #[test]
    fn any_annotation_is_parsed_without_panic(key in "(thaw\\.dev/)?[a-z.-]{0,20}", value: String) {
        let _ = parse(&[(&key, &value)]);
    }

    #[test]
    fn a_foreign_key_never_matters(key in "[a-z]{1,8}\\.io/[a-z]{1,8}", value: String) {
        prop_assert_eq!(parse(&[(&key, &value)]).unwrap(), PodOptions::default());
    }
}
