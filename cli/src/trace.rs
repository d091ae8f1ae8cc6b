// SPDX-License-Identifier: Apache-2.0
//! `thaw trace`: where the time of a restore went.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use checkpoint::trace::Trace as Restored;
use clap::Args;

use crate::bundles::{Ambiguous, PodArguments};

/// Show where the time of a pod's restore went, step by step
///
/// The clock begins when containerd asks the shim for the task, and ends when containerd has its answer that the
/// container runs. A pod has a trace as long as it exists and one of its containers was restored.
#[derive(Debug, Clone, Args)]
pub(crate) struct Trace {
    #[command(flatten)]
    pub(crate) pod: PodArguments,
    /// Print JSON
    #[arg(long, conflicts_with = "svg")]
    pub(crate) json: bool,
    /// Draw the timeline into this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

/// There is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error(
        "no container of pod {0} on this node was restored: look with `crictl pods` whether the pod is here, and whether it \
         has the annotation thaw.dev/restore"
    )]
    None(String),
    #[error(transparent)]
    Several(#[from] Ambiguous),
    #[error("cannot read the trace in {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot write {}", .0.display())]
    Svg(PathBuf, #[source] io::Error),
    #[error("cannot print the trace")]
    Print(#[from] io::Error),
}

impl Trace {
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), TraceError> {
        let found = self.find()?;
        if let Some(path) = &self.svg {
            return std::fs::write(path, drawn(&found)).map_err(|e| TraceError::Svg(path.clone(), e));
        }
        if self.json {
            serde_json::to_writer_pretty(&mut *out, &found).map_err(io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        for trace in &found {
            print(out, trace)?;
        }
        Ok(())
    }

    /// Those of the pod's containers that were restored.
    fn find(&self) -> Result<Vec<Restored>, TraceError> {
        let mut found = Vec::new();
        for bundle in self.pod.bundles() {
            // One that goes away meanwhile has none.
            let trace = Restored::read(&bundle).map_err(|e| TraceError::Read(bundle, e))?;
            found.extend(trace.filter(|trace| self.pod.names(&trace.namespace, &trace.pod)));
        }
        self.pod.one(found.iter().map(|trace| trace.namespace.as_str()))?;
        if found.is_empty() {
            return Err(TraceError::None(self.pod.pod.clone()));
        }
        found.sort_by(|a, b| a.container.cmp(&b.container));
        Ok(found)
    }
}

#[expect(clippy::cast_precision_loss, reason = "nobody reads so many digits")]
fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

fn print(out: &mut dyn Write, trace: &Restored) -> io::Result<()> {
    let Restored { namespace, pod, container, checkpoint, .. } = trace;
    writeln!(out, "{namespace}/{pod} {container} from {checkpoint}: {:.1} ms", ms(trace.total_us()))?;
    writeln!(out, "{:>8}  {:>8}  STEP", "AT ms", "TOOK ms")?;
    for step in &trace.steps {
        writeln!(out, "{:8.1}  {:8.1}  {}", ms(step.begin_us), ms(step.took_us), step.name)?;
    }
    Ok(())
}

/// Pixels: of the timeline, of all with the words at its end, of a line.
const WIDTH: f64 = 600.0;
const ALL: f64 = 1000.0;
const LINE: usize = 20;

/// One line for each step, as long as it took.
fn drawn(traces: &[Restored]) -> String {
    let lines = traces.iter().map(|trace| trace.steps.len().saturating_add(2)).sum::<usize>();
    let longest = traces.iter().map(Restored::total_us).max().unwrap_or(0).max(1);
    let scale = WIDTH / ms(longest);
    let height = lines.saturating_mul(LINE);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{ALL}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n"
    );
    let mut y = 0usize;
    let mut text = |svg: &mut String, bar: Option<(f64, f64)>, words: &str| {
        y = y.saturating_add(LINE);
        if let Some((x, width)) = bar {
            let top = y.saturating_sub(12);
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"14\" fill=\"#4477aa\"/>",
                x * scale,
                (width * scale).max(0.5)
            );
        }
        let x = bar.map_or(0.0, |(x, width)| (x + width) * scale + 5.0);
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\">{}</text>", escaped(words));
    };
    for trace in traces {
        let Restored { namespace, pod, container, checkpoint, .. } = trace;
        let title =
            format!("{namespace}/{pod} {container} from {checkpoint}: {:.1} ms", ms(trace.total_us()));
        text(&mut svg, None, &title);
        for step in &trace.steps {
            let words = format!("{} {:.1} ms", step.name, ms(step.took_us));
            text(&mut svg, Some((ms(step.begin_us), ms(step.took_us))), &words);
        }
        text(&mut svg, None, "");
    }
    svg.push_str("</svg>\n");
    svg
}

/// Names come from whoever made the pod.
fn escaped(words: &str) -> String {
    let escape = |c: char| match c {
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '&' => "&amp;".to_owned(),
        other => other.to_string(),
    };
    words.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use checkpoint::trace::Step;

    use super::*;
    use crate::bundles::BUNDLES;

    fn pod(pod: &str, state: &Path) -> PodArguments {
        PodArguments { pod: pod.to_owned(), state: Some(state.to_owned()) }
    }

    fn node(restored: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let state = tempfile::tempdir().unwrap();
        for (number, (namespace, pod, container)) in restored.iter().enumerate() {
            let bundle = state.path().join(BUNDLES).join("k8s.io").join(number.to_string());
            std::fs::create_dir_all(&bundle).unwrap();
            let step = |name: &str, begin_us, took_us| Step { name: name.to_owned(), begin_us, took_us };
            let trace = Restored {
                namespace: (*namespace).to_owned(),
                pod: (*pod).to_owned(),
                container: (*container).to_owned(),
                checkpoint: "n/p/i".to_owned(),
                steps: vec![step("planning", 0, 1500), step("CRIU: <mounts>", 1500, 48_500)],
            };
            trace.write(&bundle).unwrap();
        }
        std::fs::create_dir(state.path().join(BUNDLES).join("k8s.io/other")).unwrap();
        state
    }

    fn run(state: &Path, name: &str, json: bool) -> Result<String, TraceError> {
        let mut out = Vec::new();
        let trace = Trace { pod: pod(name, state), json, svg: None };
        trace.run(&mut out).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_steps_of_a_pods_containers_are_shown_in_order_or_as_json() {
        let state = node(&[("n", "p", "main"), ("n", "p", "also"), ("n", "q", "main")]);
        let shown = run(state.path(), "p", false).unwrap();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "n/p also from n/p/i: 50.0 ms");
        assert_eq!(lines[2], "     0.0       1.5  planning");
        assert_eq!(lines[3], "     1.5      48.5  CRIU: <mounts>");
        assert!(lines[4].starts_with("n/p main"));
        assert_eq!(lines.len(), 8);
        let json: serde_json::Value = serde_json::from_str(&run(state.path(), "n/q", true).unwrap()).unwrap();
        assert_eq!(json[0]["steps"][1]["took_us"], 48_500);
    }

    #[test]
    fn a_pod_that_is_not_there_and_one_that_is_there_twice_are_errors() {
        let state = node(&[("n", "p", "main"), ("m", "p", "main")]);
        let said = run(state.path(), "p", false).unwrap_err().to_string();
        assert!(said.ends_with("name one of m/p, n/p"), "{said}");
        assert!(run(state.path(), "m/p", false).is_ok());
        let said = run(state.path(), "n/none", false).unwrap_err().to_string();
        assert!(said.starts_with("no container of pod n/none on this node was restored"), "{said}");
    }

    #[test]
    fn the_timeline_is_as_long_as_the_restore_and_names_are_no_markup() {
        let state = node(&[("n", "p", "main")]);
        let svg = state.path().join("p.svg");
        let trace = Trace { pod: pod("p", state.path()), json: false, svg: Some(svg.clone()) };
        trace.run(&mut Vec::new()).unwrap();
        let svg = std::fs::read_to_string(svg).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("x=\"18.0\" y=\"48\" width=\"582.0\""), "{svg}");
        assert!(svg.contains("CRIU: &lt;mounts&gt; 48.5 ms") && !svg.contains("<mounts>"), "{svg}");
    }
}
