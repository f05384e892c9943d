//! One line of a log file: `{"log":"text\n","stream":"stdout","time":"2006-01-02T15:04:05.999999999Z"}`. A line of the container that
//! is cut at 16 KiB, or that ends without a newline, shows by the missing `\n` in `log`, as with Docker.

use std::borrow::Cow;

use serde::Deserialize;

use super::Stream;

/// A line as it was logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was read from the container, ns since 1970.
    pub time: i64,
    /// From where.
    pub stream: Stream,
    /// The text, with its newline unless it is a piece of a longer line.
    pub text: String,
}

impl LogLine {
    /// A piece of a longer line: the rest follows in the next entry of the same stream.
    pub fn is_partial(&self) -> bool {
        !self.text.ends_with('\n')
    }
}

/// Appends one entry to `out`. Bytes that are no UTF-8 become U+FFFD, as with Docker: JSON holds nothing else.
pub fn encode(out: &mut Vec<u8>, time: i64, stream: Stream, text: &[u8]) {
    out.extend_from_slice(b"{\"log\":\"");
    for chunk in text.utf8_chunks() {
        escape(out, chunk.valid().as_bytes());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    write_time(out, time);
    out.extend_from_slice(b"\"}\n");
}

fn escape(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&b| b < 0x20 || b == b'"' || b == b'\\') {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let (high, low) = (HEX[usize::from(control >> 4)], HEX[usize::from(control & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// Reads one entry, without its newline. `None` when it is not one: a reader goes on with the next.
pub fn decode(line: &[u8]) -> Option<LogLine> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        #[serde(borrow)]
        log: Cow<'a, str>,
        #[serde(borrow)]
        stream: Cow<'a, str>,
        #[serde(borrow)]
        time: Cow<'a, str>,
    }
    let raw: Raw<'_> = serde_json::from_slice(line).ok()?;
    let stream = match &*raw.stream {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    Some(LogLine { time: parse_time(&raw.time)?, stream, text: raw.log.into_owned() })
}

const NANOS: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

/// A time in ns since 1970 as RFC 3339 with nine digits and `Z`: it sorts as text.
pub fn format_time(time: i64) -> String {
    let mut out = Vec::with_capacity(30);
    write_time(&mut out, time);
    String::from_utf8(out).expect("only ASCII is written")
}

fn write_time(out: &mut Vec<u8>, time: i64) {
    use std::io::Write;
    let (seconds, nanos) = (time.div_euclid(NANOS), time.rem_euclid(NANOS));
    let (year, month, day) = civil(seconds.div_euclid(DAY));
    let clock = seconds.rem_euclid(DAY);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
        .expect("writing to memory cannot fail");
}

/// Year, month and day of a day counted from 1970-01-01, proleptic Gregorian. Years start in March, so that the leap day is the last.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil`].
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Reads an RFC 3339 time in UTC with up to nine digits of a fraction, as this module and Docker write it.
pub fn parse_time(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z')?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let (date, clock) = whole.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) || !(1..=12).contains(&month) {
        return None;
    }
    let mut nanos: i64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    for _ in fraction.len()..9 {
        nanos *= 10;
    }
    let seconds = days(year, month, day).checked_mul(DAY)? + hour * 3600 + minute * 60 + second;
    seconds.checked_mul(NANOS)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_as_it_was_written() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_709_251_199_999_999_999, "2024-02-29T23:59:59.999999999Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(format_time(time), text);
            assert_eq!(parse_time(text), Some(time));
        }
        assert_eq!(parse_time("2006-01-02T15:04:05.9Z"), Some(1_136_214_245_900_000_000));
        assert_eq!(parse_time("2006-01-02T15:04:05Z"), Some(1_136_214_245_000_000_000));
        assert_eq!(parse_time("yesterday"), None);
    }

    #[test]
    fn every_text_survives_and_other_bytes_become_the_replacement_character() {
        let all: String = (0..0x300).filter_map(char::from_u32).chain("€😀\u{2028}\n".chars()).collect();
        let mut out = Vec::new();
        encode(&mut out, 5, Stream::Stderr, all.as_bytes());
        assert_eq!(out.iter().filter(|&&b| b == b'\n').count(), 1, "one entry is one line");
        let line = decode(&out[..out.len() - 1]).unwrap();
        assert_eq!((line.time, line.stream, line.text.as_str()), (5, Stream::Stderr, all.as_str()));

        out.clear();
        encode(&mut out, 5, Stream::Stdout, b"a\xff\xfeb\n");
        assert_eq!(decode(&out[..out.len() - 1]).unwrap().text, "a\u{fffd}\u{fffd}b\n");
    }
}
