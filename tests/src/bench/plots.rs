// SPDX-License-Identifier: Apache-2.0
//! Which pictures a report has.

use super::chart::{Line, bars, lines};
use super::measured::Measured;
use super::page::size_name;
use super::record::written_metric;

/// Until a restored program runs: what people call it, and its metric.
pub(crate) const FIRST_ANSWER: [(&str, &str); 10] = [
    ("thaw, lazy", "lazy.running"),
    ("thaw", "thaw.running"),
    ("CRIU", "criu.running"),
    ("criu lazy-pages", "criu_lazy.running"),
    ("runc restore", "runc.running"),
    ("Podman", "podman.running"),
    ("containerd, archive", "archive.pod"),
    ("image, pulled", "image.from_registry"),
    ("image, made and pulled", "image.all"),
    ("start of `sleep`", "fresh.running"),
];
/// Until all of its memory is there; and what the machine needs for as many bytes.
pub(crate) const RESIDENCY: [(&str, &str); 8] = [
    ("thaw, lazy", "lazy.filled"),
    ("thaw", "thaw.running"),
    ("CRIU", "criu.running"),
    ("criu lazy-pages", "criu_lazy.filled"),
    ("UFFDIO_COPY, 2 threads", "limit.uffd_copy"),
    ("pread, fresh memory", "limit.pread"),
    ("memcpy", "limit.memcpy"),
    ("read from disk", "limit.disk"),
];
/// What writes bytes until the program runs.
pub(crate) const WRITES: [(&str, &str); 7] = [
    ("thaw, lazy", "lazy.pod"),
    ("thaw", "thaw.pod"),
    ("runc restore", "runc.running"),
    ("Podman", "podman.running"),
    ("containerd, archive", "archive.pod"),
    ("image, pulled", "image.from_registry"),
    ("image, made and pulled", "image.all"),
];
/// What starts at once.
pub(crate) const CROWD: [(&str, &str); 3] =
    [("thaw, lazy", "lazy.running"), ("thaw", "thaw.running"), ("start of `sleep`", "fresh.running")];
/// The pods among whose shims the memory is shown.
pub(crate) const SHIM: &str = "shim.10";

/// A picture.
#[derive(Debug)]
pub(crate) struct Plot {
    /// Its name, without `.svg`.
    pub(crate) name: &'static str,
    pub(crate) svg: String,
}

/// The pictures of everything that was measured.
pub(crate) fn all(measured: &Measured) -> Vec<Plot> {
    let sizes: Vec<_> = mark(measured, "restore", size_name);
    let pods: Vec<_> = mark(measured, "crowd", |pods| pods.to_string());
    let restore = |metrics: &[(&str, &str)]| series(measured, "restore", metrics);
    let written: Vec<_> = WRITES.map(|(name, metric)| (name, written_metric(metric))).to_vec();
    let written: Vec<_> = written.iter().map(|(name, metric)| (*name, metric.as_str())).collect();
    let mut megabytes = restore(&written);
    for (_, value) in megabytes.iter_mut().flat_map(|line| &mut line.points) {
        *value /= 1e6;
    }
    let mut plots = Vec::new();
    let mut add = |name, there: bool, svg: String| plots.extend(there.then_some(Plot { name, svg }));
    let restored = !sizes.is_empty();
    let title = "Time until the restored program runs";
    add("first-answer", restored, lines(title, "seconds", &sizes, &restore(&FIRST_ANSWER)));
    let title = "Time until all of its memory is there";
    add("residency", restored, lines(title, "seconds", &sizes, &restore(&RESIDENCY)));
    let title = "Bytes written to disks until it runs";
    add("written", restored, lines(title, "MB", &sizes, &megabytes));
    let title = "Programs of 64 MB that start at once: time until all run";
    let crowd = series(measured, "crowd", &CROWD);
    add("crowd", !pods.is_empty(), lines(title, "seconds", &pods, &crowd));
    let rows = rates(measured);
    let title = "How fast memory gets there, beside what the machine can do";
    add("rates", !rows.is_empty(), bars(title, "GB/s", &["2048 MB"], &rows));
    let rows = apps(measured);
    let title = "Real programs: time until the first useful answer";
    add("apps", !rows.is_empty(), bars(title, "s", &["restored", "restored, lazy", "started afresh"], &rows));
    let rows = shims(measured);
    let title = "Memory of a pod's shim, 10 pods";
    add("shim", !rows.is_empty(), bars(title, "KiB", &["thaw", "containerd-shim-runc-v2"], &rows));
    plots
}

/// The marks of the x axis: all N of the cases `GROUP.N`.
fn mark(measured: &Measured, group: &str, name: impl Fn(u64) -> String) -> Vec<(f64, String)> {
    measured.numbers(group).into_iter().map(|number| (float(number), name(number))).collect()
}

/// A line for each metric over all N of the cases `GROUP.N`.
fn series(measured: &Measured, group: &str, metrics: &[(&str, &str)]) -> Vec<Line> {
    let numbers = measured.numbers(group);
    let line = |(name, metric): &(&str, &str)| {
        let point =
            |number: &u64| Some((float(*number), measured.median(&format!("{group}.{number}"), metric)?));
        Line { name: (*name).replace('`', ""), points: numbers.iter().filter_map(point).collect() }
    };
    metrics.iter().map(line).collect()
}

/// Gigabytes in a second, at 2048 MB.
fn rates(measured: &Measured) -> Vec<(String, Vec<Option<f64>>)> {
    const CASE: &str = "restore.2048";
    let Some(bytes) = measured.median(CASE, "limit.bytes") else { return Vec::new() };
    let rate = |(name, metric): (&str, &str)| {
        Some((name.to_owned(), vec![Some(bytes / measured.median(CASE, metric)? / 1e9)]))
    };
    RESIDENCY.into_iter().filter_map(rate).collect()
}

fn apps(measured: &Measured) -> Vec<(String, Vec<Option<f64>>)> {
    let cases = measured.cases().into_iter().filter(|case| case.starts_with("apps."));
    let row = |case: &str| {
        let values = ["restore", "lazy", "fresh"].map(|metric| measured.median(case, metric));
        (case.trim_start_matches("apps.").to_owned(), values.to_vec())
    };
    cases.map(row).filter(|(_, values)| values.iter().any(Option::is_some)).collect()
}

fn shims(measured: &Measured) -> Vec<(String, Vec<Option<f64>>)> {
    let row = |(name, metric): (&str, &str)| {
        let kibibytes = |handler| Some(measured.median(SHIM, &format!("{handler}.{metric}"))? / 1024.0);
        let values = vec![kibibytes("thaw"), kibibytes("runc")];
        values.iter().any(Option::is_some).then(|| (name.to_owned(), values))
    };
    let rows = [("resident", "rss"), ("proportional", "pss"), ("one more pod", "private_dirty")];
    rows.into_iter().filter_map(row).collect()
}

fn float(number: u64) -> f64 {
    u32::try_from(number).map_or(0.0, f64::from)
}
