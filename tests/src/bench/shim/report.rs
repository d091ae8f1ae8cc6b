// SPDX-License-Identifier: Apache-2.0
//! Both handlers side by side, for people; and the ratios, for programs.

use std::fmt::Write as _;

use super::super::measured::{Measured, Summary};
use super::super::record::Unit;

/// How many pods run at a time where the ratios of memory are taken, if that was measured.
const TYPICAL: &str = "shim.10";

/// thaw's median over that of containerd's own shim.
pub(crate) fn ratios(measured: &Measured) -> Vec<(String, f64)> {
    let crowd = measured.find(TYPICAL, "thaw.rss").or_else(|| {
        measured.all().iter().find(|summary| summary.metric == "thaw.rss" && !is_restored(&summary.case))
    });
    let crowd = crowd.map_or("", |summary| &summary.case);
    let compared = [
        ("rss", crowd, "rss"),
        ("pss", crowd, "pss"),
        ("private_dirty", crowd, "private_dirty"),
        ("start", "shim", "pod"),
        ("exec", "shim", "exec"),
        ("binary", "shim", "binary"),
    ];
    let ratio = |(name, case, metric): (&str, &str, &str)| {
        let ratio = measured.ratio(case, &format!("thaw.{metric}"), &format!("runc.{metric}"))?;
        Some((format!("shim.{name}.vs_go"), ratio))
    };
    compared.into_iter().filter_map(ratio).collect()
}

/// A line for each thing that was measured: containerd's own shim, thaw's, and the ratio.
pub(crate) fn table(measured: &Measured) -> String {
    let mut text = String::new();
    for case in measured.cases().into_iter().filter(|case| is_shim(case)) {
        let _ = writeln!(text, "\n{:<28} {:>26} {:>26} {:>7}", title(case), "runc", "thaw", "ratio");
        for [metric, theirs, ours, ratio] in rows(measured, case) {
            let _ = writeln!(text, "  {metric:<26} {theirs:>26} {ours:>26} {ratio:>7}");
        }
    }
    text
}

/// What was measured of one case: its name, containerd's own shim, thaw's, and the ratio, as far as there is one.
pub(crate) fn rows(measured: &Measured, case: &str) -> Vec<[String; 4]> {
    let ours = measured.all().iter().filter(|summary| summary.case == case);
    let row = |summary: &Summary| {
        let metric = summary.metric.strip_prefix("thaw.")?;
        let theirs = format!("runc.{metric}");
        let ratio = measured.ratio(case, &summary.metric, &theirs);
        Some([
            metric.to_owned(),
            measured.find(case, &theirs).map(show).unwrap_or_default(),
            show(summary),
            ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default(),
        ])
    };
    ours.filter_map(row).collect()
}

/// Whether a case is of this group.
pub(crate) fn is_shim(case: &str) -> bool {
    case.split('.').next() == Some("shim")
}

fn is_restored(case: &str) -> bool {
    case.starts_with("shim.restored")
}

/// What a case is, in words.
pub(crate) fn title(case: &str) -> String {
    let count = case.rsplit('.').next().unwrap_or_default();
    match case {
        "shim" => "one pod at a time".to_owned(),
        _ if is_restored(case) => format!("{count} restored pods"),
        _ => format!("{count} pods"),
    }
}

/// The median with the smallest and the largest value.
fn show(summary: &Summary) -> String {
    let Summary { median, min, max, .. } = *summary;
    match summary.unit {
        Unit::S => format!("{:.1} ({:.1} - {:.1}) ms", median * 1e3, min * 1e3, max * 1e3),
        Unit::Bytes => {
            format!("{:.0} ({:.0} - {:.0}) KiB", median / 1024.0, min / 1024.0, max / 1024.0)
        }
        Unit::Count => format!("{median:.0} ({min:.0} - {max:.0})"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::record::{Record, Results};
    use super::*;

    fn measured(cases: &[(&str, &str, u64)]) -> Measured {
        let mut results = Results::default();
        for (case, metric, bytes) in cases {
            let mut record = Record::default();
            record.bytes(metric, *bytes);
            results.add(case, record);
        }
        results.measured()
    }

    #[test]
    fn memory_is_compared_with_ten_pods_where_they_were_measured() {
        let mut cases = vec![("shim.1", "runc.rss", 8), ("shim.1", "thaw.rss", 4)];
        assert_eq!(ratios(&measured(&cases)), [("shim.rss.vs_go".to_owned(), 0.5)]);
        cases.extend([("shim.10", "runc.rss", 8), ("shim.10", "thaw.rss", 1)]);
        assert_eq!(ratios(&measured(&cases)), [("shim.rss.vs_go".to_owned(), 0.125)]);
    }

    #[test]
    fn restored_pods_are_never_compared_with_ordinary_ones() {
        assert_eq!(ratios(&measured(&[("shim.restored.10", "thaw.rss", 4)])), []);
    }

    #[test]
    fn the_table_has_both_handlers_in_a_line() {
        let table = table(&measured(&[("shim.1", "runc.rss", 4096), ("shim.1", "thaw.rss", 1024)]));
        let line = table.lines().find(|line| line.starts_with("  rss")).unwrap();
        assert!(line.contains("4 (4 - 4) KiB") && line.contains("1 (1 - 1) KiB") && line.ends_with("0.250"));
    }
}
