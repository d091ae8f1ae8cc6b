// SPDX-License-Identifier: Apache-2.0
//! Makes the result part of docs/benchmarks.md, and its plots, of kept results.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::chart::short;
use super::measured::Measured;
use super::plots::{self, CROWD, FIRST_ANSWER, RESIDENCY, WRITES};
use super::record::written_metric;
use super::report::Report;
use super::shim;

/// The results are between these lines of the page.
const BEGIN: &str = "<!-- results: made by `scripts/bench page`, not by hand -->";
const END: &str = "<!-- end of results -->";
/// The page, and the folder beside it with plots and results.
const PAGE: &str = "benchmarks.md";
const FOLDER: &str = "benchmarks";
const RESULTS: &str = "results.json";

/// Of what, and where to.
#[derive(Debug, Args)]
pub struct PageArgs {
    /// The results, as --json wrote them.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The folder of benchmarks.md, which is made where there is none. Plots and results go into benchmarks/ in it.
    #[arg(long, value_name = "DIR")]
    report: PathBuf,
}

/// Makes it.
///
/// # Errors
/// When the results cannot be read, or a file cannot be written.
pub fn page(args: &PageArgs) -> anyhow::Result<()> {
    let report = Report::read(&args.from)?;
    let (page, folder) = (args.report.join(PAGE), args.report.join(FOLDER));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let old = fs::read_to_string(&page).unwrap_or_else(|_| format!("# Benchmarks\n\n{BEGIN}\n{END}\n"));
    let new = replaced(&old, &results(&report)).with_context(|| page.display().to_string())?;
    // A plot of what is not measured any more would be of another run.
    for entry in fs::read_dir(&folder)?.flatten().filter(|entry| is_plot(&entry.path())) {
        fs::remove_file(entry.path())?;
    }
    for plot in plots::all(&report.measured) {
        fs::write(folder.join(format!("{}.svg", plot.name)), plot.svg)?;
    }
    report.write(&folder.join(RESULTS))?;
    fs::write(&page, new).with_context(|| format!("cannot write {}", page.display()))
}

fn is_plot(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "svg")
}

/// The page with other results.
fn replaced(page: &str, results: &str) -> anyhow::Result<String> {
    let Some((before, rest)) = page.split_once(BEGIN) else { bail!("it has no line {BEGIN}") };
    let Some((_, after)) = rest.split_once(END) else { bail!("it has no line {END}") };
    Ok(format!("{before}{BEGIN}\n{results}{END}{after}"))
}

/// The part between the two lines.
fn results(report: &Report) -> String {
    let measured = &report.measured;
    let sizes = measured.numbers("restore");
    let size_names: Vec<_> = sizes.iter().map(|size| size_name(*size)).collect();
    let plots: Vec<_> = plots::all(measured).into_iter().map(|plot| plot.name).collect();
    let mut page = format!("\n`{}` took {:.0} min on\n", report.command, report.minutes);
    let _ = writeln!(page, "{}.\n", report.machine.line());
    page.push_str(&goals(report));
    let mut section = |title: &str, plot: &str, text: &str, table: String| {
        if !table.is_empty() {
            let _ = write!(page, "\n### {title}\n\n{text}");
            if plots.contains(&plot) {
                let _ = write!(page, "![{title}]({FOLDER}/{plot}.svg)\n\n");
            }
            page.push_str(&table);
        }
    };
    let by_size = |metrics: &[(&str, &str)]| over(measured, "restore", &sizes, metrics, seconds);
    section(
        "Time to the first answer",
        "first-answer",
        "Seconds, median (minimum - maximum).\n\n",
        table("", &size_names, &by_size(&FIRST_ANSWER)),
    );
    section(
        "Time until all memory is there",
        "residency",
        "Seconds, and below what this machine needs for the same bytes at best. An eager restore has all when it runs.\n\n",
        table("", &size_names, &by_size(&RESIDENCY)),
    );
    section("How close to the machine", "rates", "", closeness(report, &sizes, &size_names));
    let written = WRITES.map(|(name, metric)| (name, written_metric(metric)));
    let mut written: Vec<_> = written.iter().map(|(name, metric)| (*name, metric.as_str())).collect();
    written.extend([("thaw: copies of the checkpoint", "checkpoint_bytes_written")]);
    written.extend([("thaw: its private directory", "thaw.private_directory_bytes")]);
    section(
        "Bytes written",
        "written",
        "MB, on disks, until the program runs.\n\n",
        table("", &size_names, &over(measured, "restore", &sizes, &written, megabytes)),
    );
    let once = [("checkpoint", "checkpoint"), ("`thaw import`", "import")];
    section("Once for each checkpoint", "", "Seconds.\n\n", table("", &size_names, &by_size(&once)));
    let pods = measured.numbers("crowd");
    let pod_names: Vec<_> = pods.iter().map(u64::to_string).collect();
    section(
        "Many at once",
        "crowd",
        "Seconds from the first call until all run.\n\n",
        table("pods", &pod_names, &over(measured, "crowd", &pods, &CROWD, seconds)),
    );
    section("Programs", "apps", "", apps(report));
    section("Writable layers", "", "", rootfs(report));
    section("The shim", "shim", "", shims(measured));
    section("All ratios", "", "", ratios(report));
    for (what, left) in [("Failed", &report.failed), ("Not measured", &report.skipped)] {
        let lines: String =
            left.iter().map(|left| format!("- `{}`: {}\n", left.case, one_line(&left.reason))).collect();
        section(what, "", "", lines);
    }
    page.push('\n');
    page
}

fn goals(report: &Report) -> String {
    let row = |goal: &super::goals::Goal| {
        let ratio = goal.ratio.map(|ratio| format!("{ratio:.4}")).unwrap_or_default();
        let cells = vec![goal.meaning.clone(), ratio, goal.at_most.to_string(), goal.verdict().to_owned()];
        (format!("`{}`", goal.name), cells)
    };
    let columns = ["", "ratio", "at most", ""].map(str::to_owned);
    table("goal", &columns, &report.goals.iter().map(row).collect::<Vec<_>>())
}

/// The time that each takes, over the time that the machine needs for the same bytes.
fn closeness(report: &Report, sizes: &[u64], size_names: &[String]) -> String {
    let compared = [
        ("thaw, lazy, over UFFDIO_COPY", "lazy.filled", "limit.uffd_copy"),
        ("thaw, lazy, over memcpy", "lazy.filled", "limit.memcpy"),
        ("thaw over pread into fresh memory", "thaw.running", "limit.pread"),
        ("CRIU over pread into fresh memory", "criu.running", "limit.pread"),
    ];
    let rows = compared.map(|(name, ours, limit)| {
        let ratio = |size: &u64| report.measured.ratio(&format!("restore.{size}"), ours, limit);
        (name.to_owned(), sizes.iter().map(|size| ratio(size).map(two).unwrap_or_default()).collect())
    });
    table("", size_names, &rows)
}

fn apps(report: &Report) -> String {
    let measured = &report.measured;
    let cases = measured.cases().into_iter().filter(|case| case.starts_with("apps."));
    let row = |case: &str| {
        let name = case.trim_start_matches("apps.");
        let ratio = report.ratios.get(&format!("{case}.restore_vs_fresh")).map(|ratio| two(*ratio));
        let cells = [
            cell(measured, case, "fresh", seconds),
            cell(measured, case, "restore", seconds),
            ratio.unwrap_or_default(),
            cell(measured, case, "lazy", seconds),
            cell(measured, case, "images_bytes", megabytes),
            cell(measured, case, "memory_bytes", megabytes),
            cell(measured, case, "at_once_bytes", megabytes),
        ];
        (name.to_owned(), cells.to_vec())
    };
    let columns = [
        "fresh",
        "restore",
        "`apps.NAME.restore_vs_fresh`",
        "restore, lazy",
        "checkpoint, MB",
        "memory, MB",
        "of it never lazy, MB",
    ];
    table("", &columns.map(str::to_owned), &cases.map(row).collect::<Vec<_>>())
}

fn rootfs(report: &Report) -> String {
    let measured = &report.measured;
    let cases = measured.cases().into_iter().filter(|case| case.starts_with("rootfs."));
    let row = |case: &str| {
        let ratio = report.ratios.get(&format!("{case}.vs_0")).map(|ratio| two(*ratio));
        let cells = [
            cell(measured, case, "restore", seconds),
            cell(measured, case, "restore.written", megabytes),
            ratio.unwrap_or_default(),
        ];
        (format!("`{case}`"), cells.to_vec())
    };
    let columns = ["restore, s", "MB written", "to the empty layer"].map(str::to_owned);
    table("", &columns, &cases.map(row).collect::<Vec<_>>())
}

fn shims(measured: &Measured) -> String {
    let columns = ["`containerd-shim-runc-v2`", "thaw", "ratio"].map(str::to_owned);
    let mut tables = Vec::new();
    for case in measured.cases().into_iter().filter(|case| shim::is_shim(case)) {
        let rows =
            shim::rows(measured, case).into_iter().map(|[metric, cells @ ..]| (metric, Vec::from(cells)));
        tables.push(table(&shim::title(case), &columns, &rows.collect::<Vec<_>>()));
    }
    tables.join("\n")
}

fn ratios(report: &Report) -> String {
    let rows: Vec<_> = report
        .ratios
        .iter()
        .map(|(name, ratio)| (format!("`{name}`"), vec![format!("{ratio:.4}")]))
        .collect();
    table("", &["median over median".to_owned()], &rows)
}

/// A row for each metric over the cases `GROUP.N`.
fn over(
    measured: &Measured,
    group: &str,
    numbers: &[u64],
    metrics: &[(&str, &str)],
    show: fn([f64; 3]) -> String,
) -> Vec<(String, Vec<String>)> {
    let row = |(name, metric): &(&str, &str)| {
        let cells = numbers.iter().map(|number| cell(measured, &format!("{group}.{number}"), metric, show));
        ((*name).to_owned(), cells.collect())
    };
    metrics.iter().map(row).collect()
}

fn cell(measured: &Measured, case: &str, metric: &str, show: fn([f64; 3]) -> String) -> String {
    measured.find(case, metric).map(|found| show([found.median, found.min, found.max])).unwrap_or_default()
}

/// Empty where no row has anything; rows without anything are left out.
fn table(corner: &str, columns: &[String], rows: &[(String, Vec<String>)]) -> String {
    let rows: Vec<_> = rows.iter().filter(|(_, cells)| cells.iter().any(|cell| !cell.is_empty())).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut table =
        format!("| {corner} | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    for (name, cells) in rows {
        let _ = writeln!(table, "| {name} | {} |", cells.join(" | "));
    }
    table
}

fn seconds([median, min, max]: [f64; 3]) -> String {
    format!("{median:.3} ({min:.3} - {max:.3})")
}

fn megabytes([median, ..]: [f64; 3]) -> String {
    short(median / 1e6)
}

fn two(ratio: f64) -> String {
    format!("{ratio:.2}")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "/")
}

/// `64 MB`, `2 GB`.
pub(crate) fn size_name(megabytes: u64) -> String {
    if megabytes >= 1024 && megabytes.is_multiple_of(1024) {
        format!("{} GB", megabytes / 1024)
    } else {
        format!("{megabytes} MB")
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::super::record::{Record, Results};
    use super::super::report::Left;
    use super::*;

    fn report() -> Report {
        let mut results = Results::default();
        for (case, metric, value) in [
            ("restore.64", "lazy.running", 0.1),
            ("restore.2048", "lazy.running", 0.11),
            ("restore.2048", "lazy.filled", 0.8),
            ("restore.2048", "criu.running", 1.4),
            ("restore.2048", "limit.uffd_copy", 0.7),
            ("apps.nginx", "fresh", 0.8),
            ("apps.nginx", "restore", 0.4),
            ("rootfs.0", "restore", 0.2),
            ("crowd.50", "lazy.running", 3.0),
        ] {
            let mut record = Record::default();
            record.seconds(metric, value);
            results.add(case, record);
        }
        let failed = vec![Left { case: "restore.64.runc".to_owned(), reason: "a |\nb".to_owned() }];
        let skipped = vec![Left { case: "restore.64.podman".to_owned(), reason: "no podman".to_owned() }];
        Report::new(Machine::look(), "scripts/bench all", 3.0, results.measured(), (failed, skipped))
    }

    #[test]
    fn the_page_has_goals_tables_and_what_has_no_number() {
        let page = results(&report());
        for line in [
            "| 64 MB | 2 GB |",
            "| thaw, lazy | 0.100 (0.100 - 0.100) | 0.110 (0.110 - 0.110) |",
            "| 0.0786 | 0.12 | met |",
            "|  | 0.005 | not measured |",
            "| nginx | 0.800 (0.800 - 0.800) | 0.400 (0.400 - 0.400) | 0.50 |  |  |  |  |",
            "| thaw, lazy, over UFFDIO_COPY |  | 1.14 |",
            "- `restore.64.runc`: a / b",
            "- `restore.64.podman`: no podman",
            "![Many at once](benchmarks/crowd.svg)",
        ] {
            assert!(page.contains(line), "no {line:?} in {page}");
        }
        assert!(!page.contains("runc restore"), "what was not measured has a row: {page}");
    }

    #[test]
    fn only_the_part_between_the_two_lines_is_made() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        assert_eq!(replaced(&page, "new\n").unwrap(), format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert!(replaced("nothing", "new\n").is_err());
    }

    #[test]
    fn a_report_is_a_page_with_plots_and_the_results_that_make_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("kept.json");
        report().write(&from).unwrap();
        page(&PageArgs { from, report: dir.path().to_owned() }).unwrap();
        let first = fs::read_to_string(dir.path().join(PAGE)).unwrap();
        let folder = dir.path().join(FOLDER);
        for link in first.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            assert!(dir.path().join(link).is_file(), "no {link}");
        }
        page(&PageArgs { from: folder.join(RESULTS), report: dir.path().to_owned() }).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(PAGE)).unwrap(), first);
    }

    #[test]
    fn the_documentation_shows_the_results_that_are_kept_with_it() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let kept = docs.join(FOLDER).join(RESULTS);
        if !kept.exists() {
            println!("SKIP there is no docs/{FOLDER}/{RESULTS}");
            return;
        }
        let (page, report) = (fs::read_to_string(docs.join(PAGE)).unwrap(), Report::read(&kept).unwrap());
        assert_eq!(replaced(&page, &results(&report)).unwrap(), page, "run scripts/bench page");
        for plot in plots::all(&report.measured) {
            let drawn = fs::read_to_string(docs.join(FOLDER).join(format!("{}.svg", plot.name))).unwrap();
            assert_eq!(drawn, plot.svg, "run scripts/bench page");
        }
    }
}
