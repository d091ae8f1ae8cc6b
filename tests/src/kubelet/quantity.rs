// SPDX-License-Identifier: Apache-2.0
//! Kubernetes quantities: `500m`, `1.5`, `64Mi`.

use serde::{Deserialize, Serialize};

/// A quantity as it was written, a number or text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "String")]
pub struct Quantity(String);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Whole(i64),
    Decimal(f64),
    Text(String),
}

impl From<Written> for Quantity {
    fn from(written: Written) -> Self {
        Self(match written {
            Written::Whole(number) => number.to_string(),
            Written::Decimal(number) => number.to_string(),
            Written::Text(text) => text,
        })
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> Self {
        quantity.0
    }
}

/// Digits after the point that are kept.
const SCALE: u32 = 9;

impl Quantity {
    /// The value in units, rounded up; `None` when it is not a quantity, is negative or does not fit.
    #[must_use]
    pub fn units(&self) -> Option<i64> {
        self.in_parts_of(1)
    }

    /// The value in thousandths, rounded up; `None` as for [`Quantity::units`].
    #[must_use]
    pub fn millis(&self) -> Option<i64> {
        self.in_parts_of(1000)
    }

    /// The text as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    fn in_parts_of(&self, parts: i128) -> Option<i64> {
        let end = self.0.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(self.0.len());
        let (number, suffix) = self.0.split_at(end);
        let (multiply, divide): (i128, i128) = match suffix {
            "" => (1, 1),
            "m" => (1, 1000),
            "k" => (1000, 1),
            "M" => (1000_i128.pow(2), 1),
            "G" => (1000_i128.pow(3), 1),
            "T" => (1000_i128.pow(4), 1),
            "Ki" => (1024, 1),
            "Mi" => (1024_i128.pow(2), 1),
            "Gi" => (1024_i128.pow(3), 1),
            "Ti" => (1024_i128.pow(4), 1),
            _ => return None,
        };
        let one = 10_i128.pow(SCALE);
        let scaled = nano(number)?.checked_mul(multiply)?.checked_mul(parts)?;
        let whole = one * divide;
        i64::try_from((scaled + whole - 1) / whole).ok()
    }
}

/// A decimal number in units of 10^-9.
fn nano(number: &str) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits = u32::try_from(fraction.len()).ok()?;
    let padding = 10_i128.checked_pow(SCALE.checked_sub(digits)?)?;
    let parse = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
    parse(whole)?.checked_mul(10_i128.pow(SCALE))?.checked_add(parse(fraction)?.checked_mul(padding)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Quantity {
        serde_yaml_ng::from_str(text).unwrap()
    }

    #[test]
    fn cpu_counts_in_thousandths_and_memory_in_bytes() {
        assert_eq!(of("500m").millis(), Some(500));
        assert_eq!(of("2").millis(), Some(2000));
        assert_eq!(of("0.1").millis(), Some(100));
        assert_eq!(of("1.5Gi").units(), Some(1_610_612_736));
        assert_eq!(of("64M").units(), Some(64_000_000));
        assert_eq!(of("\"1\"").units(), Some(1));
    }

    #[test]
    fn a_fraction_of_the_unit_rounds_up() {
        assert_eq!(of("1m").units(), Some(1));
        assert_eq!(of("0.0001").millis(), Some(1));
    }

    #[test]
    fn what_is_no_quantity_has_no_value() {
        for text in ["\"\"", "Mi", "1X", "-1", "1.2.3", "\".\"", "99999999999999999999Ti", "1.0123456789"] {
            assert_eq!(of(text).units(), None, "{text}");
        }
    }
}
