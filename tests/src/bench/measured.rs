// SPDX-License-Identifier: Apache-2.0
//! Medians of what was measured: tables, ratios, plots and the JSON are made from them.

use serde::{Deserialize, Serialize};

use super::record::Unit;

/// The repetitions of one measurement, summed up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// `restore.64`.
    pub(crate) case: String,
    /// `thaw.running`.
    pub(crate) metric: String,
    pub(crate) unit: Unit,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// How many repetitions there were.
    pub(crate) n: usize,
}

/// All of them, in the order in which they were first measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Measured(pub(crate) Vec<Summary>);

impl Measured {
    pub(crate) fn all(&self) -> &[Summary] {
        &self.0
    }

    /// The names of the cases, each once.
    pub(crate) fn cases(&self) -> Vec<&str> {
        let mut cases = Vec::new();
        for summary in &self.0 {
            if !cases.contains(&summary.case.as_str()) {
                cases.push(summary.case.as_str());
            }
        }
        cases
    }

    pub(crate) fn find(&self, case: &str, metric: &str) -> Option<&Summary> {
        self.0.iter().find(|summary| summary.case == case && summary.metric == metric)
    }

    pub(crate) fn median(&self, case: &str, metric: &str) -> Option<f64> {
        Some(self.find(case, metric)?.median)
    }

    /// Median over median, where both were measured.
    pub(crate) fn ratio(&self, case: &str, metric: &str, to: &str) -> Option<f64> {
        Some(self.median(case, metric)? / self.median(case, to)?)
    }

    /// The numbers N of the cases `PREFIX.N`, the smallest first: sizes in MB, or how many.
    pub(crate) fn numbers(&self, prefix: &str) -> Vec<u64> {
        let number = |case: &&str| case.strip_prefix(prefix)?.strip_prefix('.')?.parse().ok();
        let mut numbers: Vec<u64> = self.cases().iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    }
}
