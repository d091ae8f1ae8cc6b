// SPDX-License-Identifier: Apache-2.0
//! What is measured: series of values, and their medians.

use std::future::Future;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::heartbeat::Heartbeat;
use super::measured::{Measured, Summary};
use super::written::Written;

/// The unit of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    /// Seconds.
    S,
    /// Bytes.
    Bytes,
    /// A number of things.
    Count,
}

/// The repetitions of one measurement.
#[derive(Debug, Clone)]
struct Series {
    case: String,
    metric: String,
    unit: Unit,
    values: Vec<f64>,
}

impl Series {
    /// The middle value, or the mean of the two in the middle.
    fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.wrapping_sub(1)), at(middle)) }
    }

    fn summary(&self) -> Summary {
        Summary {
            case: self.case.clone(),
            metric: self.metric.clone(),
            unit: self.unit,
            median: self.median(),
            min: self.values.iter().copied().fold(f64::INFINITY, f64::min),
            max: self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            n: self.values.len(),
        }
    }
}

/// All series, in the order in which they were first seen.
#[derive(Debug, Default)]
pub(crate) struct Results(Vec<Series>);

impl Results {
    /// Adds what one repetition of `case` measured.
    pub(crate) fn add(&mut self, case: &str, record: Record) {
        for (metric, unit, value) in record.0 {
            match self.0.iter_mut().find(|series| series.case == case && series.metric == metric) {
                Some(series) => series.values.push(value),
                None => self.0.push(Series { case: case.to_owned(), metric, unit, values: vec![value] }),
            }
        }
    }

    /// Their medians.
    pub(crate) fn measured(&self) -> Measured {
        Measured(self.0.iter().map(Series::summary).collect())
    }
}

/// What one repetition measured.
#[derive(Debug, Default)]
pub(crate) struct Record(Vec<(String, Unit, f64)>);

impl Record {
    /// Measures one step: `work` says how long it took, and the bytes are counted around it. What was written
    /// before is on the disk by then, so that no step pays for another.
    pub(crate) async fn step<T>(
        &mut self,
        metric: &str,
        work: impl Future<Output = anyhow::Result<(T, Duration)>>,
    ) -> anyhow::Result<T> {
        rustix::fs::sync();
        let before = Written::now()?;
        let (value, took) = work.await?;
        let written = Written::now()?.disk_since(before);
        self.seconds(metric, took.as_secs_f64());
        self.bytes(&written_metric(metric), written);
        Ok(value)
    }

    /// Measures from the beginning of `work` until the program's first beat.
    pub(crate) async fn until_beat<T>(
        &mut self,
        metric: &str,
        heartbeat: &Heartbeat,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        self.step(metric, async {
            let watch = heartbeat.watch()?;
            let began = Instant::now();
            match work.await {
                Ok(value) => Ok((value, watch.beat()?.duration_since(began))),
                Err(error) => {
                    watch.end();
                    Err(error)
                }
            }
        })
        .await
    }

    /// Adds the sum of some steps as a metric of its own.
    pub(crate) fn sum(&mut self, metric: &str, steps: &[&str]) {
        let sum = |suffix: fn(&str) -> String| -> f64 {
            let wanted: Vec<_> = steps.iter().map(|step| suffix(step)).collect();
            let found = self.0.iter().filter(|(metric, _, _)| wanted.contains(metric));
            found.map(|(_, _, value)| value).sum()
        };
        let (seconds, bytes) = (sum(str::to_owned), sum(written_metric));
        self.seconds(metric, seconds);
        self.0.push((written_metric(metric), Unit::Bytes, bytes));
    }

    pub(crate) fn seconds(&mut self, metric: &str, value: f64) {
        self.0.push((metric.to_owned(), Unit::S, value));
    }

    #[allow(clippy::cast_precision_loss, reason = "no disk has 2^53 bytes")]
    pub(crate) fn bytes(&mut self, metric: &str, value: u64) {
        self.0.push((metric.to_owned(), Unit::Bytes, value as f64));
    }

    #[allow(clippy::cast_precision_loss, reason = "no process has 2^53 of anything")]
    pub(crate) fn count(&mut self, metric: &str, value: usize) {
        self.0.push((metric.to_owned(), Unit::Count, value as f64));
    }
}

/// The metric of the bytes that were written during the step of this metric.
pub(crate) fn written_metric(metric: &str) -> String {
    format!("{metric}.written")
}

/// How long `work` takes.
pub(crate) async fn timed<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(T, Duration)> {
    let began = Instant::now();
    let value = work.await?;
    Ok((value, began.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        Series { case: "c".into(), metric: "m".into(), unit: Unit::S, values: values.to_vec() }
    }

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        assert!((series(&[9.0, 1.0, 2.0]).median() - 2.0).abs() < 1e-9);
        assert!((series(&[9.0, 1.0, 2.0, 3.0]).median() - 2.5).abs() < 1e-9);
        assert!(series(&[]).median().is_nan());
    }

    #[test]
    fn a_sum_adds_seconds_and_bytes_of_its_steps_only() {
        let mut record = Record::default();
        for (step, seconds, bytes) in [("a", 1.0, 10), ("b", 2.0, 20), ("c", 4.0, 40)] {
            record.seconds(step, seconds);
            record.bytes(&written_metric(step), bytes);
        }
        record.sum("all", &["a", "c"]);
        let mut results = Results::default();
        results.add("case", record);
        let measured = results.measured();
        assert!((measured.median("case", "all").unwrap() - 5.0).abs() < 1e-9);
        assert!((measured.median("case", "all.written").unwrap() - 50.0).abs() < 1e-9);
        assert!((measured.ratio("case", "b", "a").unwrap() - 2.0).abs() < 1e-9);
        assert!(measured.ratio("case", "b", "never measured").is_none());
    }
}
