// SPDX-License-Identifier: Apache-2.0
//! The table for people and the JSON for programs.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::machine::Machine;
use super::record::{Results, Series, Unit, written_metric};

/// `{"machine", "results", "ratios"}`, as every benchmark of this project writes it.
pub(crate) fn json(machine: &Machine, results: &Results, ratios: Vec<(String, f64)>) -> Value {
    let shown: Vec<_> = results
        .all()
        .iter()
        .map(|series| {
            json!({
                "case": series.case, "metric": series.metric, "unit": series.unit, "median": series.median(),
                "min": series.min(), "max": series.max(), "n": series.values.len(),
            })
        })
        .collect();
    let ratios: Map<_, _> = ratios.into_iter().map(|(name, ratio)| (name, Value::from(ratio))).collect();
    json!({"machine": machine, "results": shown, "ratios": ratios})
}

/// thaw over each of the others. Where the other's clock begins before the pod does, thaw's begins with it.
pub(crate) fn ratios(results: &Results) -> Vec<(String, f64)> {
    let compared = [
        ("vs_runc", "thaw.running", "runc.running"),
        ("vs_criu", "thaw.running", "criu.running"),
        ("vs_archive", "thaw.pod", "archive.pod"),
        ("vs_registry", "thaw.pod", "image.from_registry"),
        ("vs_image_path", "thaw.pod", "image.all"),
    ];
    let mut cases: Vec<_> = results.all().iter().map(|series| series.case.as_str()).collect();
    cases.dedup();
    let mut ratios = Vec::new();
    for case in cases {
        for (name, ours, theirs) in compared {
            if let Some(ratio) = results.ratio(case, ours, theirs) {
                ratios.push((format!("{case}.{name}"), ratio));
            }
        }
        let median = |metric| results.find(case, metric).map(Series::median);
        if let (Some(import), Some(pod), Some(image)) =
            (median("import"), median("thaw.pod"), median("image.all"))
        {
            ratios.push((format!("{case}.with_import_vs_image_path"), (import + pod) / image));
        }
        ratios.extend(lazy_ratios(results, case));
    }
    ratios
}

/// The lazy restore of one size against everything that it is to be better than.
fn lazy_ratios(results: &Results, case: &str) -> Vec<(String, f64)> {
    const SMALLEST: &str = "restore.64";
    let size = case.trim_start_matches("restore.");
    let ratio = |name: &str, ours: &str, other: &str, theirs: &str| {
        let median = |case, metric| results.find(case, metric).map(Series::median);
        Some((name.to_owned(), median(case, ours)? / median(other, theirs)?))
    };
    let ratios = [
        ratio(&format!("lazy.{size}.vs_64"), "lazy.running", SMALLEST, "lazy.running"),
        ratio(&format!("lazy.{size}.vs_criu_eager"), "lazy.running", case, "criu.running"),
        ratio(&format!("lazy.{size}.vs_image_path"), "lazy.pod", case, "image.all"),
        ratio(&format!("lazy.{size}.residency_vs_criu_eager"), "lazy.filled", case, "criu.running"),
        ratio(&format!("lazy.{size}.residency_vs_uffd_limit"), "lazy.filled", case, "limit.uffd_copy"),
        ratio(&format!("{case}.vs_fresh_sleep"), "lazy.running", case, "fresh.running"),
    ];
    ratios.into_iter().flatten().filter(|(name, _)| name != "lazy.64.vs_64").collect()
}

/// Every series in seconds as a line, with the bytes that were written meanwhile; then bytes, then ratios.
pub(crate) fn table(machine: &Machine, results: &Results) -> String {
    let mut text = format!("{}\n", machine.line());
    let mut case = "";
    for series in results.all() {
        if series.case != case {
            case = &series.case;
            let _ = writeln!(
                text,
                "\n{case:<28} {:>8}  {:<17} {:>3} {:>12}",
                "median s", "(min - max)", "n", "MB written"
            );
        }
        match series.unit {
            Unit::S => seconds_line(&mut text, series, results),
            Unit::Bytes if !series.metric.ends_with(".written") => {
                let _ = writeln!(text, "  {:<48} {:>9.0} bytes", series.metric, series.median());
            }
            Unit::Bytes | Unit::Count => {}
        }
    }
    let ratios = ratios(results);
    if !ratios.is_empty() {
        text.push_str("\nratio of medians\n");
    }
    for (name, ratio) in ratios {
        let _ = writeln!(text, "  {name:<36} {ratio:>7.3}");
    }
    text
}

fn seconds_line(text: &mut String, series: &Series, results: &Results) {
    let written = results.find(&series.case, &written_metric(&series.metric));
    let written = written.map(|bytes| format!("{:.1}", bytes.median() / 1e6)).unwrap_or_default();
    let spread = format!("({:.3} - {:.3})", series.min(), series.max());
    let _ = writeln!(
        text,
        "  {:<26} {:>8.3}  {spread:<17} {:>3} {written:>12}",
        series.metric,
        series.median(),
        series.values.len()
    );
}

#[cfg(test)]
mod tests {
    use super::super::record::Record;
    use super::*;

    fn results(metrics: &[(&str, f64)]) -> Results {
        let mut results = Results::default();
        let mut record = Record::default();
        for (metric, seconds) in metrics {
            record.seconds(metric, *seconds);
        }
        results.add("restore.64", record);
        results
    }

    #[test]
    fn ratios_are_named_by_their_case_and_only_of_what_was_measured() {
        let results = results(&[("thaw.running", 0.5), ("thaw.pod", 1.0), ("criu.running", 0.25)]);
        assert_eq!(ratios(&results), [("restore.64.vs_criu".to_owned(), 2.0)]);
    }

    #[test]
    fn a_lazy_restore_is_compared_with_the_smallest_and_with_the_machine() {
        let mut results = results(&[("lazy.running", 0.5), ("fresh.running", 1.0)]);
        let mut record = Record::default();
        record.seconds("lazy.running", 0.25);
        record.seconds("lazy.filled", 3.0);
        record.seconds("limit.uffd_copy", 2.0);
        results.add("restore.2048", record);
        let expected = [
            ("restore.64.vs_fresh_sleep", 0.5),
            ("lazy.2048.vs_64", 0.5),
            ("lazy.2048.residency_vs_uffd_limit", 1.5),
        ];
        assert_eq!(ratios(&results), expected.map(|(name, ratio)| (name.to_owned(), ratio)));
    }

    #[test]
    fn the_json_has_what_every_benchmark_writes() {
        let results = results(&[("thaw.running", 0.5)]);
        let json = json(&Machine::look(), &results, ratios(&results));
        assert_eq!(
            json.pointer("/results/0"),
            Some(&json!({
                "case": "restore.64", "metric": "thaw.running", "unit": "s", "median": 0.5, "min": 0.5,
                "max": 0.5, "n": 1,
            }))
        );
        assert!(json.pointer("/machine/kernel").is_some() && json.pointer("/ratios").is_some());
    }
}
