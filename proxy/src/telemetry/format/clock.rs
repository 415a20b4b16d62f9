//! `%START_TIME%` and its `strftime` forms.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, UtcDateTime};

use super::output::Output;

/// A compiled time format, always UTC.
#[derive(Clone, Debug)]
pub(super) enum TimeFormat {
    /// `2021-10-25T11:06:13.553Z`.
    Default,
    /// The given `strftime` fields.
    Custom(Box<[Item]>),
}

/// One part of a custom format.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Text(Box<str>),
    Number(Number),
    /// `%f` and `%1f` to `%9f`: so many digits of the fraction of the second.
    Fraction(usize),
    MonthName {
        short: bool,
    },
    WeekdayName {
        short: bool,
    },
    AmPm,
}

/// Numeric fields.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Year,
    YearOfCentury,
    Century,
    Month,
    Day,
    DayBlankPadded,
    DayOfYear,
    Hour,
    Hour12,
    Minute,
    Second,
    Epoch,
    /// Monday is 1.
    WeekdayFromMonday,
    /// Sunday is 0.
    WeekdayFromSunday,
}

impl TimeFormat {
    /// Compiles the specifiers of `put_time`, and Envoy's `%s`, `%f`, `%Nf`.
    pub(super) fn compile(source: &str) -> Result<Self, String> {
        let mut items = Vec::new();
        let mut rest = source;
        while let Some(at) = rest.find('%') {
            push_text(&mut items, &rest[..at]);
            let mut specifier = rest[at + 1..].chars();
            let (item, consumed) = match (specifier.next(), specifier.next()) {
                (Some(digits @ '1'..='9'), Some('f')) => (Item::Fraction(digits as usize - '0' as usize), 2),
                (Some(letter), _) => {
                    if let Some(expanded) = composite(letter) {
                        if let Self::Custom(more) = Self::compile(expanded)? {
                            items.extend(more);
                        }
                        rest = &rest[at + 2..];
                        continue;
                    }
                    (field(letter).ok_or_else(|| format!("time specifier %{letter} is not supported"))?, letter.len_utf8())
                }
                (None, _) => return Err("time format ends with a lone %".to_owned()),
            };
            items.push(item);
            rest = &rest[at + 1 + consumed..];
        }
        push_text(&mut items, rest);
        Ok(Self::Custom(items.into()))
    }

    /// Appends `time`.
    pub(super) fn write(&self, time: SystemTime, out: &mut Output<'_>) -> bool {
        // Clocks before 1970 are broken clocks.
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        match self {
            Self::Default => write_default(since_epoch, out),
            Self::Custom(items) => {
                let date = date_of(since_epoch);
                for item in items {
                    item.write(since_epoch, date, out);
                }
            }
        }
        true
    }
}

fn push_text(items: &mut Vec<Item>, text: &str) {
    match items.last_mut() {
        _ if text.is_empty() => {}
        Some(Item::Text(last)) => *last = format!("{last}{text}").into(),
        _ => items.push(Item::Text(text.into())),
    }
}

/// Specifiers that stand for several.
fn composite(letter: char) -> Option<&'static str> {
    Some(match letter {
        'F' => "%Y-%m-%d",
        'T' => "%H:%M:%S",
        'R' => "%H:%M",
        'D' => "%m/%d/%y",
        'r' => "%I:%M:%S %p",
        'c' => "%a %b %e %H:%M:%S %Y",
        _ => return None,
    })
}

fn field(letter: char) -> Option<Item> {
    Some(match letter {
        'Y' => Item::Number(Number::Year),
        'y' => Item::Number(Number::YearOfCentury),
        'C' => Item::Number(Number::Century),
        'm' => Item::Number(Number::Month),
        'd' => Item::Number(Number::Day),
        'e' => Item::Number(Number::DayBlankPadded),
        'j' => Item::Number(Number::DayOfYear),
        'H' => Item::Number(Number::Hour),
        'I' => Item::Number(Number::Hour12),
        'M' => Item::Number(Number::Minute),
        'S' => Item::Number(Number::Second),
        's' => Item::Number(Number::Epoch),
        'u' => Item::Number(Number::WeekdayFromMonday),
        'w' => Item::Number(Number::WeekdayFromSunday),
        'f' => Item::Fraction(9),
        'B' => Item::MonthName { short: false },
        'b' | 'h' => Item::MonthName { short: true },
        'A' => Item::WeekdayName { short: false },
        'a' => Item::WeekdayName { short: true },
        'p' => Item::AmPm,
        'z' => Item::Text("+0000".into()),
        'Z' => Item::Text("UTC".into()),
        't' => Item::Text("\t".into()),
        '%' => Item::Text("%".into()),
        _ => return None,
    })
}

impl Item {
    fn write(&self, since_epoch: Duration, date: UtcDateTime, out: &mut Output<'_>) {
        let name = |name: String, short: bool, out: &mut Output<'_>| {
            out.trusted(if short { &name.as_bytes()[..3] } else { name.as_bytes() });
        };
        match self {
            Self::Text(text) => out.literal(text),
            Self::Number(number) => number.write(since_epoch, date, out),
            Self::Fraction(digits) => {
                let mut nanos = [b'0'; 9];
                write_digits(&mut nanos, since_epoch.subsec_nanos().into());
                out.trusted(&nanos[..*digits]);
            }
            Self::MonthName { short } => name(date.month().to_string(), *short, out),
            Self::WeekdayName { short } => name(date.weekday().to_string(), *short, out),
            Self::AmPm => {
                out.trusted(if date.hour() < 12 { b"AM" } else { b"PM" });
            }
        }
    }
}

impl Number {
    fn write(self, since_epoch: Duration, date: UtcDateTime, out: &mut Output<'_>) {
        let (value, width, pad) = match self {
            Self::Epoch => (since_epoch.as_secs(), 1, b'0'),
            Self::Year => (u64::from(date.year().unsigned_abs()), 4, b'0'),
            Self::YearOfCentury => (u64::from(date.year().unsigned_abs() % 100), 2, b'0'),
            Self::Century => (u64::from(date.year().unsigned_abs() / 100), 2, b'0'),
            Self::Month => (u8::from(date.month()).into(), 2, b'0'),
            Self::Day => (date.day().into(), 2, b'0'),
            Self::DayBlankPadded => (date.day().into(), 2, b' '),
            Self::DayOfYear => (date.ordinal().into(), 3, b'0'),
            Self::Hour => (date.hour().into(), 2, b'0'),
            Self::Hour12 => (u64::from((date.hour() + 11) % 12 + 1), 2, b'0'),
            Self::Minute => (date.minute().into(), 2, b'0'),
            Self::Second => (date.second().into(), 2, b'0'),
            Self::WeekdayFromMonday => (date.weekday().number_from_monday().into(), 1, b'0'),
            Self::WeekdayFromSunday => (date.weekday().number_days_from_sunday().into(), 1, b'0'),
        };
        let mut buffer = itoa::Buffer::new();
        let digits = buffer.format(value).as_bytes();
        for _ in digits.len()..width {
            out.trusted(&[pad]);
        }
        out.trusted(digits);
    }
}

/// Out of range only for clocks of the year 10000 and later.
fn date_of(since_epoch: Duration) -> UtcDateTime {
    let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(0);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH).to_utc()
}

fn write_default(since_epoch: Duration, out: &mut Output<'_>) {
    thread_local! {
        /// The second that was rendered last, up to and with the dot: lines of the same second only differ behind it.
        static LAST: Cell<(u64, [u8; 20])> = const { Cell::new((u64::MAX, [b'0'; 20])) };
    }
    let seconds = since_epoch.as_secs();
    let (last, mut prefix) = LAST.get();
    if last != seconds {
        prefix = default_prefix(date_of(since_epoch));
        LAST.set((seconds, prefix));
    }
    let mut fraction = *b"000Z";
    write_digits(&mut fraction[..3], since_epoch.subsec_millis().into());
    out.trusted(&prefix);
    out.trusted(&fraction);
}

fn default_prefix(date: UtcDateTime) -> [u8; 20] {
    let mut text = *b"0000-00-00T00:00:00.";
    write_digits(&mut text[..4], u64::from(date.year().unsigned_abs()));
    for (at, value) in [(5, u8::from(date.month())), (8, date.day()), (11, date.hour()), (14, date.minute()), (17, date.second())]
    {
        write_digits(&mut text[at..at + 2], value.into());
    }
    text
}

/// Fills `digits` from the right.
fn write_digits(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789"[(value % 10) as usize];
        value /= 10;
    }
}
