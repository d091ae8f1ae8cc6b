// SPDX-License-Identifier: Apache-2.0
//! Both handlers side by side, for people; and the ratios, for programs.

use std::fmt::Write as _;

use super::super::machine::Machine;
use super::super::record::{Results, Series, Unit};

/// How many pods run at a time where the ratios of memory are taken, if that was measured.
const TYPICAL: &str = "shim.10";

/// thaw's median over that of containerd's own shim.
pub(super) fn ratios(results: &Results) -> Vec<(String, f64)> {
    let crowd = results.find(TYPICAL, "thaw.rss").or_else(|| {
        results.all().iter().find(|series| series.metric == "thaw.rss" && !is_restored(&series.case))
    });
    let crowd = crowd.map_or("", |series| &series.case);
    let compared = [
        ("rss", crowd, "rss"),
        ("pss", crowd, "pss"),
        ("private_dirty", crowd, "private_dirty"),
        ("start", "shim", "pod"),
        ("exec", "shim", "exec"),
        ("binary", "shim", "binary"),
    ];
    let ratio = |(name, case, metric): (&str, &str, &str)| {
        let ratio = results.ratio(case, &format!("thaw.{metric}"), &format!("runc.{metric}"))?;
        Some((format!("shim.{name}.vs_go"), ratio))
    };
    compared.into_iter().filter_map(ratio).collect()
}

/// A line for each thing that was measured: containerd's own shim, thaw's, and the ratio.
pub(super) fn table(machine: &Machine, results: &Results) -> String {
    let mut text = format!("{}\n", machine.line());
    let mut cases: Vec<_> = results.all().iter().map(|series| series.case.as_str()).collect();
    cases.dedup();
    for case in cases {
        let _ = writeln!(text, "\n{:<28} {:>26} {:>26} {:>7}", title(case), "runc", "thaw", "ratio");
        for series in results.all().iter().filter(|series| series.case == case) {
            let Some(metric) = series.metric.strip_prefix("thaw.") else { continue };
            let theirs = format!("runc.{metric}");
            let ratio = results.ratio(case, &series.metric, &theirs);
            let _ = writeln!(
                text,
                "  {metric:<26} {:>26} {:>26} {:>7}",
                results.find(case, &theirs).map(show).unwrap_or_default(),
                show(series),
                ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default()
            );
        }
    }
    text
}

fn is_restored(case: &str) -> bool {
    case.starts_with("shim.restored")
}

/// What a case is, in words.
fn title(case: &str) -> String {
    let count = case.rsplit('.').next().unwrap_or_default();
    match case {
        "shim" => "one pod at a time".to_owned(),
        _ if is_restored(case) => format!("{count} restored pods"),
        _ => format!("{count} pods"),
    }
}

/// The median with the smallest and the largest value.
fn show(series: &Series) -> String {
    let [median, min, max] = [series.median(), series.min(), series.max()];
    match series.unit {
        Unit::S => format!("{:.1} ({:.1} - {:.1}) ms", median * 1e3, min * 1e3, max * 1e3),
        Unit::Bytes => {
            format!("{:.0} ({:.0} - {:.0}) KiB", median / 1024.0, min / 1024.0, max / 1024.0)
        }
        Unit::Count => format!("{median:.0} ({min:.0} - {max:.0})"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::record::Record;
    use super::*;

    fn results(cases: &[(&str, &str, u64)]) -> Results {
        let mut results = Results::default();
        for (case, metric, bytes) in cases {
            let mut record = Record::default();
            record.bytes(metric, *bytes);
            results.add(case, record);
        }
        results
    }

    #[test]
    fn memory_is_compared_with_ten_pods_where_they_were_measured() {
        let mut cases = vec![("shim.1", "runc.rss", 8), ("shim.1", "thaw.rss", 4)];
        assert_eq!(ratios(&results(&cases)), [("shim.rss.vs_go".to_owned(), 0.5)]);
        cases.extend([("shim.10", "runc.rss", 8), ("shim.10", "thaw.rss", 1)]);
        assert_eq!(ratios(&results(&cases)), [("shim.rss.vs_go".to_owned(), 0.125)]);
    }

    #[test]
    fn restored_pods_are_never_compared_with_ordinary_ones() {
        assert_eq!(ratios(&results(&[("shim.restored.10", "thaw.rss", 4)])), []);
    }

    #[test]
    fn the_table_has_both_handlers_in_a_line() {
        let table =
            table(&Machine::look(), &results(&[("shim.1", "runc.rss", 4096), ("shim.1", "thaw.rss", 1024)]));
        let line = table.lines().find(|line| line.starts_with("  rss")).unwrap();
        assert!(line.contains("4 (4 - 4) KiB") && line.contains("1 (1 - 1) KiB") && line.ends_with("0.250"));
    }
}
