// SPDX-License-Identifier: Apache-2.0
//! What a run has to say: the table for people and the JSON for programs, which the page is made from.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::goals::{self, Goal};
use super::machine::Machine;
use super::measured::{Measured, Summary};
use super::record::{Unit, written_metric};
use super::{ratios, shim};

/// The JSON, as every benchmark of this project writes it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// What was run, and how long it took.
    pub(crate) command: String,
    pub(crate) minutes: f64,
    #[serde(rename = "results")]
    pub(crate) measured: Measured,
    pub(crate) ratios: BTreeMap<String, f64>,
    pub(crate) goals: Vec<Goal>,
    pub(crate) failed: Vec<Left>,
    pub(crate) skipped: Vec<Left>,
}

/// A case without a number, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    pub(crate) case: String,
    pub(crate) reason: String,
}

impl Report {
    pub(crate) fn new(
        machine: Machine,
        command: &str,
        minutes: f64,
        measured: Measured,
        (failed, skipped): (Vec<Left>, Vec<Left>),
    ) -> Self {
        let ratios = ratios::all(&measured);
        let goals = goals::judge(&ratios);
        Self { machine, command: command.to_owned(), minutes, measured, ratios, goals, failed, skipped }
    }

    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not of a benchmark", file.display()))
    }

    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
    }

    /// Every series in seconds as a line, with the bytes that were written meanwhile; then bytes, ratios, goals, and
    /// what has no number.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("{}\n", self.machine.line());
        for case in self.measured.cases().into_iter().filter(|case| !shim::is_shim(case)) {
            let _ = writeln!(
                text,
                "\n{case:<28} {:>8}  {:<17} {:>3} {:>12}",
                "median s", "(min - max)", "n", "MB written"
            );
            for summary in self.measured.all().iter().filter(|summary| summary.case == case) {
                self.line(&mut text, summary);
            }
        }
        text.push_str(&shim::table(&self.measured));
        text.push_str("\nratio of medians\n");
        for (name, ratio) in &self.ratios {
            let _ = writeln!(text, "  {name:<42} {ratio:>8.4}");
        }
        text.push_str("\ngoal\n");
        for goal in self.goals.iter().filter(|goal| goal.ratio.is_some()) {
            let (name, at_most, verdict) = (&goal.name, goal.at_most, goal.verdict());
            let ratio = goal.ratio.unwrap_or_default();
            let _ = writeln!(text, "  {name:<42} {ratio:>8.4}, at most {at_most}: {verdict}");
        }
        for (what, left) in [("failed", &self.failed), ("skipped", &self.skipped)] {
            for Left { case, reason } in left {
                let _ = writeln!(text, "{what}: {case}: {reason}");
            }
        }
        text
    }

    fn line(&self, text: &mut String, summary: &Summary) {
        let Summary { metric, median, min, max, n, .. } = summary;
        let _ = match summary.unit {
            Unit::S => {
                let written = self.measured.median(&summary.case, &written_metric(metric));
                let written = written.map(|bytes| format!("{:.1}", bytes / 1e6)).unwrap_or_default();
                let spread = format!("({min:.3} - {max:.3})");
                writeln!(text, "  {metric:<26} {median:>8.3}  {spread:<17} {n:>3} {written:>12}")
            }
            Unit::Bytes if !metric.ends_with(".written") => {
                writeln!(text, "  {metric:<48} {median:>9.0} bytes")
            }
            Unit::Bytes | Unit::Count => Ok(()),
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::record::{Record, Results};
    use super::*;

    fn report() -> Report {
        let mut record = Record::default();
        record.seconds("thaw.running", 0.5);
        record.seconds("criu.running", 0.25);
        let mut results = Results::default();
        results.add("restore.64", record);
        let failed = vec![Left { case: "restore.64.runc".to_owned(), reason: "no runc".to_owned() }];
        Report::new(Machine::look(), "scripts/bench all", 1.0, results.measured(), (failed, Vec::new()))
    }

    #[test]
    fn the_json_has_what_every_benchmark_writes_and_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("results.json");
        report().write(&file).unwrap();
        let json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(
            json.pointer("/results/0"),
            Some(&json!({
                "case": "restore.64", "metric": "thaw.running", "unit": "s", "median": 0.5, "min": 0.5,
                "max": 0.5, "n": 1,
            }))
        );
        assert!(json.pointer("/machine/kernel").is_some() && json.pointer("/goals/0/met").is_some());
        assert_eq!(json.pointer("/ratios"), Some(&json!({"restore.64.vs_criu": 2.0})));
        let read = Report::read(&file).unwrap();
        assert_eq!((read.measured, read.failed), (report().measured, report().failed));
    }

    #[test]
    fn the_table_says_what_failed_and_why() {
        assert!(report().table().ends_with("failed: restore.64.runc: no runc\n"), "{}", report().table());
    }
}
