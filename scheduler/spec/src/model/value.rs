//! Small values with a unit: durations, byte sizes, processor shares, ratios, opaque bytes and free-form data.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A text that is not the value it should be; the message says what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub String);

/// A length of time in whole nanoseconds, written the way Compose writes it (`1m30s`, `500ms`, `0s`).
///
/// Serialises as that text, so that JSON shows what a person would write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(i64);

const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];
const WEEK: i64 = 7 * 86_400_000_000_000;

impl Duration {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// A duration of so many nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// A duration of so many milliseconds; the longest duration when that does not fit.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// A duration of so many seconds; the longest duration when that does not fit.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// The whole of it in nanoseconds.
    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// The whole of it in milliseconds, rounded towards zero.
    pub const fn as_millis(self) -> i64 {
        self.0 / 1_000_000
    }

    /// The standard library's duration; a negative one becomes zero.
    pub fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<Duration> for std::time::Duration {
    fn from(value: Duration) -> Self {
        value.to_std()
    }
}

impl FromStr for Duration {
    type Err = ValueError;

    /// Go's duration text (`us ms s m h`, concatenated, fractions allowed) plus Compose's `d` and `w`.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError(format!("`{text}` is not a duration; write for example `500ms`, `10s` or `1m30s`"));
        let (negative, mut rest) = match text.trim().strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.trim().trim_start_matches('+')),
        };
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(bad());
        }
        let mut total: f64 = 0.0;
        let mut exact: i64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(|| {
                ValueError(format!("`{text}` is not a duration: the unit is missing; write `{text}s` for seconds"))
            })?;
            let (number, tail) = rest.split_at(digits);
            let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_len);
            let scale =
                if unit == "w" { WEEK } else { UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1 };
            match number.parse::<i64>() {
                Ok(whole) => {
                    exact = whole.checked_mul(scale).and_then(|n| exact.checked_add(n)).ok_or_else(bad)?;
                }
                Err(_) => {
                    let fraction: f64 = number.parse().map_err(|_| bad())?;
                    total += fraction * to_f64(scale);
                }
            }
            rest = tail;
        }
        let nanos = exact.checked_add(to_i64(total).ok_or_else(bad)?).ok_or_else(bad)?;
        Ok(Self(if negative { -nanos } else { nanos }))
    }
}

/// Every unit scale and every number a person writes is far below 2^53, where this is exact.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
fn to_f64(value: i64) -> f64 {
    value as f64
}

/// Rounds; `None` for what an `i64` cannot hold.
#[expect(clippy::cast_possible_truncation, reason = "the range is checked first")]
fn to_i64(value: f64) -> Option<i64> {
    let rounded = value.round();
    (rounded.abs() < 9.2e18).then_some(rounded as i64)
}

impl fmt::Display for Duration {
    /// Go's own text for a duration, as `docker compose config` prints it: hours, minutes and seconds, or one small unit.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            out.write_str("-")?;
        }
        let fraction = |out: &mut fmt::Formatter<'_>, value: u64, unit: u64, name: &str| {
            let (whole, part) = (value / unit, value % unit);
            if part == 0 {
                return write!(out, "{whole}{name}");
            }
            let width = unit.ilog10() as usize;
            let digits = format!("{part:0width$}");
            write!(out, "{whole}.{}{name}", digits.trim_end_matches('0'))
        };
        match nanos {
            0 => out.write_str("0s"),
            1..1_000 => write!(out, "{nanos}ns"),
            1_000..1_000_000 => fraction(out, nanos, 1_000, "µs"),
            1_000_000..1_000_000_000 => fraction(out, nanos, 1_000_000, "ms"),
            _ => {
                let minutes = nanos / 60_000_000_000;
                if minutes >= 60 {
                    write!(out, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(out, "{}m", minutes % 60)?;
                }
                fraction(out, nanos % 60_000_000_000, 1_000_000_000, "s")
            }
        }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A number of bytes; [`ByteSize::UNLIMITED`] (-1) where the specification allows "no limit" to be said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub i64);

impl ByteSize {
    /// The `-1` of the specification.
    pub const UNLIMITED: Self = Self(-1);

    /// The number of bytes, or nothing for "unlimited".
    pub fn limit(self) -> Option<u64> {
        u64::try_from(self.0).ok()
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;

    /// A number with an optional 1024-based unit, upper or lower case: `512`, `64k`, `1.5gb`, `10 MiB`, `-1`.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError(format!("`{text}` is not a size; write bytes or for example `64m`, `1.5gb`"));
        let text = text.trim();
        if text == "-1" {
            return Ok(Self::UNLIMITED);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" | "ki" => 10,
            "m" | "mb" | "mib" | "mi" => 20,
            "g" | "gb" | "gib" | "gi" => 30,
            "t" | "tb" | "tib" | "ti" => 40,
            "p" | "pb" | "pib" | "pi" => 50,
            _ => return Err(bad()),
        };
        if let Ok(whole) = number.parse::<i64>() {
            return whole.checked_mul(1 << shift).map(Self).ok_or_else(bad);
        }
        let number: f64 = number.parse().map_err(|_| bad())?;
        to_i64((number * to_f64(1 << shift)).floor()).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// An amount of processor time in billionths of one processor: `1.5` processors are 1 500 000 000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NanoCpus(pub u64);

impl FromStr for NanoCpus {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError(format!("`{text}` is not a number of processors; write for example `0.5` or `2`"));
        let number: f64 = text.trim().parse().map_err(|_| bad())?;
        to_i64(number * 1e9).and_then(|n| u64::try_from(n).ok()).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for NanoCpus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        if part == 0 {
            return write!(out, "{whole}");
        }
        write!(out, "{whole}.{}", format!("{part:09}").trim_end_matches('0'))
    }
}

/// A share between nothing and everything in millionths: `0.25` is 250 000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ratio(pub u32);

impl FromStr for Ratio {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = || ValueError(format!("`{text}` is not a ratio between 0 and 1"));
        let number: f64 = text.trim().parse().map_err(|_| bad())?;
        if !(0.0..=1.0).contains(&number) {
            return Err(bad());
        }
        to_i64(number * 1e6).and_then(|n| u32::try_from(n).ok()).map(Self).ok_or_else(bad)
    }
}

impl Ratio {
    /// The share as a floating-point number between 0 and 1.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

/// Content of a secret or config. Base64 text in JSON, plain bytes in binary formats, never shown by `Debug`.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentBytes(pub Vec<u8>);

impl fmt::Debug for ContentBytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ContentBytes({} bytes, not shown)", self.0.len())
    }
}

impl Serialize for ContentBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&base64::display::Base64Display::new(&self.0, &BASE64))
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ContentBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            BASE64.decode(text).map(Self).map_err(D::Error::custom)
        } else {
            Vec::deserialize(deserializer).map(Self)
        }
    }
}

/// Free-form data, for the parts that orch passes through: `x-*` keys, `build`, `develop`.
///
/// An enumeration of its own because the spec travels in a binary format that does not describe itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// `null`, or nothing written after the colon.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Text(String),
    /// A sequence.
    List(Vec<Data>),
    /// A mapping.
    Map(BTreeMap<String, Data>),
}

impl Data {
    /// The value under `key` when this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Data> {
        match self {
            Self::Map(map) => map.get(key),
            _ => None,
        }
    }

    /// The text when this is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Free-form data by name.
pub type DataMap = BTreeMap<String, Data>;
