//! When a schedule is due: five fields of cron or a word for them, in a time zone. Pure.
//! (`robfig/cron` v3, which upstream uses.)

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

/// A schedule that has no instant within so many years has none at all, such as one for 31 February.
const YEARS_MAX: i16 = 5;

/// A schedule.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Schedule {
    /// Sets of minutes, hours, days and months, one bit each.
    Fields(Box<Fields>),
    /// `@every` so long.
    Every(SignedDuration),
}

/// The five fields.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether both kinds of days restrict: then either is enough.
    either_day: bool,
    zone: TimeZone,
}

impl Schedule {
    /// Reads a schedule; its hours are those of `zone`.
    pub(super) fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        let text = text.trim();
        if let Some(duration) = text.strip_prefix("@every ") {
            let parsed: SignedDuration = duration.parse().map_err(|error| format!("{text}: {error}"))?;
            // Finer than a second is rounded, as upstream does.
            return Ok(Self::Every(SignedDuration::from_secs(parsed.as_secs().max(1))));
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: {text}", fields.len()));
        };
        const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
        const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
        let (days, any_day) = field(days, 1, 31, &[])?;
        let (weekdays, any_weekday) = field(weekdays, 0, 6, DAYS)?;
        Ok(Self::Fields(Box::new(Fields {
            minutes: field(minutes, 0, 59, &[])?.0,
            hours: field(hours, 0, 23, &[])?.0,
            days,
            months: field(months, 1, 12, MONTHS)?.0,
            weekdays,
            either_day: !any_day && !any_weekday,
            zone,
        })))
    }

    /// The first instant after `time` at which the schedule is due; none when there never is one.
    pub(super) fn next(&self, time: Timestamp) -> Option<Timestamp> {
        let whole = Timestamp::from_second(time.as_second()).ok()?;
        match self {
            Self::Every(wait) => whole.checked_add(*wait).ok(),
            Self::Fields(fields) => fields.next(whole),
        }
    }
}

impl Fields {
    /// Walks real time, so that an hour that the clocks skip is never due and one that they repeat is due twice.
    fn next(&self, whole: Timestamp) -> Option<Timestamp> {
        let mut at = whole.to_zoned(self.zone.clone()).checked_add(1.second()).ok()?;
        if at.second() != 0 {
            at = at.checked_add((60 - i64::from(at.second())).seconds()).ok()?;
        }
        let last_year = at.year() + YEARS_MAX;
        let has = |set: u64, value: i8| set & (1 << value) != 0;
        while at.year() <= last_year {
            at = if !has(self.months, at.month()) {
                at.first_of_month().ok()?.start_of_day().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()?
            } else if !self.has_day(at.day(), at.weekday().to_sunday_zero_offset()) {
                at.start_of_day().ok()?.checked_add(1.day()).ok()?.start_of_day().ok()?
            } else if !has(self.hours, at.hour()) {
                at.checked_add((60 - i64::from(at.minute())).minutes()).ok()?
            } else if !has(self.minutes, at.minute()) {
                at.checked_add(1.minute()).ok()?
            } else {
                return Some(at.timestamp());
            };
        }
        None
    }

    fn has_day(&self, day: i8, weekday: i8) -> bool {
        let (month, week) = (self.days & (1 << day) != 0, self.weekdays & (1 << weekday) != 0);
        if self.either_day { month || week } else { month && week }
    }
}

/// A field's values as bits, and whether it restricts nothing (`*` or `?`).
fn field(text: &str, least: u32, most: u32, names: &[&str]) -> Result<(u64, bool), String> {
    let (mut bits, mut any) = (0, false);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step, least, &[])?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (least, most),
            Some((first, last)) => (number(first, least, names)?, number(last, least, names)?),
            // With a step, one number is where it starts.
            None => (number(range, least, names)?, if step.is_some() { most } else { number(range, least, names)? }),
        };
        if first < least || last > most || first > last || step == Some(0) {
            return Err(format!("out of range: {part}"));
        }
        any |= matches!(range, "*" | "?") && step.is_none_or(|step| step == 1);
        bits |= (first..=last).step_by(step.unwrap_or(1) as usize).fold(0u64, |bits, value| bits | 1 << value);
    }
    Ok((bits, any))
}

fn number(text: &str, least: u32, names: &[&str]) -> Result<u32, String> {
    match names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
        Some(at) => Ok(at as u32 + least),
        None => text.parse().map_err(|_| format!("no number: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(text: &str, zone: &str, from: &str) -> Option<String> {
        let zone = TimeZone::get(zone).unwrap();
        let schedule = Schedule::parse(text, zone.clone()).unwrap();
        let due = schedule.next(from.parse().unwrap())?;
        Some(due.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S %:z").to_string())
    }

    #[test]
    fn the_next_instant() {
        let check = |text: &str, from: &str, expected: &str| {
            assert_eq!(next(text, "UTC", from).as_deref(), Some(expected), "{text} {from}");
        };
        check("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01 00:01:00 +00:00");
        check("* * * * *", "2026-01-01T00:00:59.9Z", "2026-01-01 00:01:00 +00:00");
        check("*/15 * * * *", "2026-01-01T00:45:00Z", "2026-01-01 01:00:00 +00:00");
        check("20/15 * * * *", "2026-01-01T00:00:00Z", "2026-01-01 00:20:00 +00:00");
        check("0 0 31 * *", "2026-01-31T00:00:00Z", "2026-03-31 00:00:00 +00:00");
        check("30 6-16/4 * * mon-FRI", "2026-01-02T15:00:00Z", "2026-01-05 06:30:00 +00:00");
        // Both kinds of days restrict: either is enough. 2026-01-04 is a Sunday.
        check("0 0 13 * sun", "2026-01-01T00:00:00Z", "2026-01-04 00:00:00 +00:00");
        check("0 0 13 * ?", "2026-01-01T00:00:00Z", "2026-01-13 00:00:00 +00:00");
        // A star with a step restricts.
        check("0 0 */2 * mon", "2026-01-01T00:00:00Z", "2026-01-03 00:00:00 +00:00");
        check("0 0 29 feb *", "2026-01-01T00:00:00Z", "2028-02-29 00:00:00 +00:00");
        check("@hourly", "2026-01-01T00:00:00Z", "2026-01-01 01:00:00 +00:00");
        check("@weekly", "2026-01-01T00:00:00Z", "2026-01-04 00:00:00 +00:00");
        check("@yearly", "2026-01-01T00:00:00Z", "2027-01-01 00:00:00 +00:00");
        check("@every 1h30m", "2026-01-01T00:00:10.5Z", "2026-01-01 01:30:10 +00:00");
        assert_eq!(next("59 23 31 2 *", "UTC", "2026-01-01T00:00:00Z"), None);
    }

    #[test]
    fn clocks_that_change() {
        let check = |text: &str, from: &str, expected: &str| {
            assert_eq!(next(text, "America/New_York", from).as_deref(), Some(expected), "{text} {from}");
        };
        // 02:30 does not exist on 2026-03-08.
        check("30 2 * * *", "2026-03-08T05:00:00Z", "2026-03-09 02:30:00 -04:00");
        // 01:30 happens twice on 2026-11-01.
        check("30 1 * * *", "2026-11-01T04:00:00Z", "2026-11-01 01:30:00 -04:00");
        check("30 1 * * *", "2026-11-01T05:30:00Z", "2026-11-01 01:30:00 -05:00");
        check("0 12 * * *", "2026-07-01T00:00:00Z", "2026-07-01 12:00:00 -04:00");
    }

    #[test]
    fn what_is_no_schedule() {
        for bad in ["", "* * * *", "60 * * * *", "a * * * *", "*/0 * * * *", "5-1 * * * *", "* * 0 * *", "@every x"] {
            assert!(Schedule::parse(bad, TimeZone::UTC).is_err(), "{bad}");
        }
    }
}
