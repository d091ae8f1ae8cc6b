// SPDX-License-Identifier: Apache-2.0
//! Draws lines and bars as SVG. The background is transparent, and all colours are readable on white and on black.

use std::fmt::Write as _;

/// Text, axes and grid.
const GREY: &str = "#7d8590";
/// One for each line, or each bar of a row; ours come first.
const COLOURS: [&str; 10] = [
    "#2f81f7", "#12a594", "#e5711d", "#a45ee5", "#d6477f", "#8f8b16", "#a0693a", "#2e9e4f", "#d64545",
    "#7d8590",
];
/// Pixels.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
/// Right of it are the names of the lines.
const RIGHT: f64 = 580.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 390.0;
/// Between the names of two lines.
const LINE_HEIGHT: f64 = 17.0;
/// One bar.
const BAR: f64 = 15.0;

/// A line of points with positive coordinates: others are left out, for both axes are logarithmic.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Lines over marks of the x axis, which are numbers with names.
pub(crate) fn lines(title: &str, y_name: &str, marks: &[(f64, String)], lines: &[Line]) -> String {
    let lines: Vec<Line> = lines.iter().map(positive).filter(|line| !line.points.is_empty()).collect();
    let values = lines.iter().flat_map(|line| &line.points);
    let (xs, ys): (Vec<f64>, Vec<f64>) = values.copied().unzip();
    let x = Axis::new(&xs, (LEFT, RIGHT));
    let y = Axis::new(&ys, (BOTTOM, TOP)).rounded();
    let mut svg = Svg::new(HEIGHT, title);
    svg.text((LEFT - 56.0, TOP - 14.0), "start", GREY, y_name);
    for value in y.round_numbers() {
        let at = y.at(value);
        svg.line((LEFT, at), (RIGHT, at), GREY, "0.3");
        svg.text((LEFT - 8.0, at + 4.0), "end", GREY, &short(value));
    }
    for (value, name) in marks {
        svg.line((x.at(*value), BOTTOM), (x.at(*value), BOTTOM + 5.0), GREY, "1");
        svg.text((x.at(*value), BOTTOM + 22.0), "middle", GREY, name);
    }
    let ends = lines.iter().map(|line| line.points.last().map_or(BOTTOM, |(_, value)| y.at(*value)));
    let names_at = apart(&ends.collect::<Vec<_>>());
    for (number, (line, name_at)) in lines.iter().zip(names_at).enumerate() {
        let colour = colour(number);
        let points: Vec<_> = line.points.iter().map(|(a, b)| (x.at(*a), y.at(*b))).collect();
        svg.polyline(&points, colour);
        for ((at_x, at_y), (_, value)) in points.iter().zip(&line.points) {
            let _ = writeln!(
                svg.0,
                r#"<circle cx="{at_x:.1}" cy="{at_y:.1}" r="3.5" fill="{colour}"><title>{}: {}</title></circle>"#,
                escaped(&line.name),
                short(*value)
            );
        }
        if let Some(end) = points.last() {
            svg.line(*end, (RIGHT + 10.0, name_at), colour, "0.4");
        }
        svg.text((RIGHT + 14.0, name_at + 4.0), "start", colour, &line.name);
    }
    svg.end()
}

/// Rows of horizontal bars, one for each of `names`; a value that was not measured has no bar.
pub(crate) fn bars(title: &str, unit: &str, names: &[&str], rows: &[(String, Vec<Option<f64>>)]) -> String {
    const LABELS: f64 = 190.0;
    const END: f64 = 690.0;
    let largest =
        rows.iter().flat_map(|(_, values)| values).flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    let bars_in_row = u32::try_from(names.len()).map_or(1.0, f64::from);
    let row = BAR * bars_in_row + 10.0;
    let count = u32::try_from(rows.len()).map_or(0.0, f64::from);
    let mut svg = Svg::new(TOP + row * count + 16.0, title);
    if names.len() > 1 {
        let mut at = LABELS;
        for (number, name) in names.iter().enumerate() {
            let _ = writeln!(
                svg.0,
                r#"<rect x="{at:.1}" y="{:.1}" width="10" height="10" fill="{}"/>"#,
                TOP - 19.0,
                colour(number)
            );
            svg.text((at + 15.0, TOP - 10.0), "start", GREY, name);
            at += 40.0 + 7.0 * u32::try_from(name.len()).map_or(0.0, f64::from);
        }
    }
    let mut top = TOP;
    for (name, values) in rows {
        svg.text((LABELS - 10.0, top + BAR * bars_in_row / 2.0 + 4.0), "end", GREY, name);
        for (number, value) in values.iter().enumerate() {
            let at = top + BAR * u32::try_from(number).map_or(0.0, f64::from);
            let Some(value) = value else { continue };
            let width = (END - LABELS) * value / largest;
            let _ = writeln!(
                svg.0,
                r#"<rect x="{LABELS}" y="{at:.1}" width="{width:.1}" height="{:.1}" fill="{}"/>"#,
                BAR - 2.0,
                colour(number)
            );
            svg.text(
                (LABELS + width + 6.0, at + BAR - 4.0),
                "start",
                GREY,
                &format!("{} {unit}", short(*value)),
            );
        }
        top += row;
    }
    svg.end()
}

/// A picture in the making.
struct Svg(String);

impl Svg {
    fn new(height: f64, title: &str) -> Self {
        Self(format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" width="{WIDTH}" height="{height:.0}" font-family="system-ui, sans-serif" font-size="13">
<title>{0}</title>
<text x="14" y="20" font-size="15" font-weight="600" fill="{GREY}">{0}</text>
"#,
            escaped(title)
        ))
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, colour: &str, text: &str) {
        let _ = writeln!(
            self.0,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{colour}">{}</text>"#,
            escaped(text)
        );
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, opacity: &str) {
        let _ = writeln!(
            self.0,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-opacity="{opacity}"/>"#
        );
    }

    fn polyline(&mut self, points: &[(f64, f64)], colour: &str) {
        let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.0,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2.5"/>"#,
            points.join(" ")
        );
    }

    fn end(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

/// A logarithmic axis: values from `low` to `high` lie between two pixels.
#[derive(Debug, Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    pixels: (f64, f64),
}

impl Axis {
    fn new(values: &[f64], pixels: (f64, f64)) -> Self {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        if low.is_finite() && low < high {
            Self { low, high, pixels }
        } else {
            // Nothing, or one value: any axis that has it.
            let low = if low.is_finite() { low } else { 1.0 };
            Self { low: low / 2.0, high: low * 2.0, pixels }
        }
    }

    /// From round number to round number.
    fn rounded(self) -> Self {
        let numbers = round_numbers();
        let low = numbers.iter().rev().find(|number| **number <= self.low).copied().unwrap_or(self.low);
        let high = numbers.iter().find(|number| **number >= self.high).copied().unwrap_or(self.high);
        Self { low, high, ..self }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        self.pixels.0 + part * (self.pixels.1 - self.pixels.0)
    }

    fn round_numbers(&self) -> Vec<f64> {
        let inside = |number: &f64| (self.low..=self.high).contains(number);
        round_numbers().into_iter().filter(inside).collect()
    }
}

/// 1, 2 and 5 times all powers of ten that anything here can be.
fn round_numbers() -> Vec<f64> {
    (-6..9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power))).collect()
}

/// Moves what is too near to another apart, in the order of the values, and none below the bottom.
fn apart(wanted: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = wanted.iter().copied().enumerate().collect();
    order.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    let mut free = f64::NEG_INFINITY;
    for (_, at) in &mut order {
        *at = at.max(free);
        free = *at + LINE_HEIGHT;
    }
    let mut free = BOTTOM + LINE_HEIGHT;
    for (_, at) in order.iter_mut().rev() {
        *at = at.min(free);
        free = *at - LINE_HEIGHT;
    }
    order.sort_by_key(|(number, _)| *number);
    order.into_iter().map(|(_, at)| at).collect()
}

fn positive(line: &Line) -> Line {
    let points = line.points.iter().copied().filter(|(x, y)| *x > 0.0 && *y > 0.0);
    Line { name: line.name.clone(), points: points.collect() }
}

fn colour(number: usize) -> &'static str {
    COLOURS.get(number % COLOURS.len()).copied().unwrap_or(GREY)
}

/// A number with as many digits as one wants to read.
pub(crate) fn short(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 10.0 || size == 0.0 => 0,
        size if size >= 1.0 => 1,
        size if size >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element is closed in its turn, and no text has a sign of its own.
    fn assert_well_formed(svg: &str) {
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, text) = tag.split_once('>').expect("a tag ends");
            assert!(!text.contains('>') && text.split('&').skip(1).all(|rest| rest.contains(';')), "{text}");
            let name = tag.split([' ', '\n']).next().unwrap();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if tag.ends_with('/') => assert_eq!(tag.matches('"').count() % 2, 0, "{tag}"),
                None => open.push(name),
            }
        }
        assert!(open.is_empty() && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    fn line(name: &str, points: &[(f64, f64)]) -> Line {
        Line { name: name.to_owned(), points: points.to_vec() }
    }

    #[test]
    fn lines_are_well_formed_whatever_was_measured() {
        let marks = [(64.0, "64 MB".to_owned()), (2048.0, "2 GB".to_owned())];
        let full = line("a & <b>", &[(64.0, 0.1), (2048.0, 1.0)]);
        for given in
            [vec![], vec![line("one", &[(64.0, 3.0)])], vec![full.clone(), line("none", &[(64.0, 0.0)])]]
        {
            assert_well_formed(&lines("time", "s", &marks, &given));
        }
        let drawn = lines("time", "s", &marks, &[full, line("none", &[(64.0, 0.0)])]);
        assert!(drawn.contains("a &amp; &lt;b&gt;") && !drawn.contains(">none<"), "{drawn}");
    }

    #[test]
    fn bars_are_well_formed_and_what_was_not_measured_has_none() {
        let rows =
            [("r".to_owned(), vec![Some(2.0), None]), ("nginx".to_owned(), vec![Some(1.0), Some(4.0)])];
        let drawn = bars("programs", "s", &["fresh", "restore"], &rows);
        assert_well_formed(&drawn);
        assert_eq!(drawn.matches("<rect").count(), 2 + 3);
        assert_well_formed(&bars("nothing", "s", &["fresh"], &[]));
    }

    #[test]
    fn names_of_lines_that_end_together_stand_apart_and_in_order() {
        let placed = apart(&[BOTTOM, 100.0, 101.0, BOTTOM]);
        assert!(placed[2] - placed[1] >= LINE_HEIGHT && placed[3] - placed[0] >= LINE_HEIGHT, "{placed:?}");
        assert!(placed.iter().all(|at| *at <= BOTTOM + LINE_HEIGHT), "{placed:?}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 0.0472, 0.11, 1.402, 16.35, 500.0].map(short),
            ["0", "0.047", "0.11", "1.4", "16", "500"]
        );
    }
}
