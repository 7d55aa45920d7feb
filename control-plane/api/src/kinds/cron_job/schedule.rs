//! Whether a text is a schedule: five fields of cron, or a word for one.
//! (The grammar of `robfig/cron`'s standard parser, which upstream uses.)

/// Why the text is no schedule.
pub(super) fn fault(text: &str) -> Option<String> {
    let text = text.trim();
    if text.is_empty() {
        return Some("empty spec string".to_owned());
    }
    let zone = ["TZ=", "CRON_TZ="].iter().any(|prefix| text.starts_with(prefix));
    let text = if zone { text.split_once(' ').map_or("", |(_, rest)| rest.trim()) } else { text };
    if text.starts_with('@') {
        return descriptor(text);
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 5 {
        return Some(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let bounds: [(u32, u32, &[&str]); 5] = [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, MONTHS), (0, 6, DAYS)];
    let faults = fields.iter().zip(bounds).flat_map(|(field, (least, most, names))| {
        field.split(',').filter(|part| !part.is_empty()).find_map(move |part| range(part, least, most, names))
    });
    faults.into_iter().next()
}

fn descriptor(text: &str) -> Option<String> {
    const KNOWN: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if KNOWN.contains(&text) {
        return None;
    }
    match text.strip_prefix("@every ") {
        Some(duration) if is_duration(duration) => None,
        Some(_) => Some(format!("failed to parse duration {text}")),
        None => Some(format!("unrecognized descriptor: {text}")),
    }
}

/// A duration as Go writes it, such as `1h30m`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut any = false;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let unit = ["ns", "us", "µs", "ms", "s", "m", "h"]
            .into_iter()
            .filter(|u| rest[digits..].starts_with(u))
            .max_by_key(|u| u.len());
        let Some(unit) = unit.filter(|_| digits > 0) else { return false };
        rest = &rest[digits + unit.len()..];
        any = true;
    }
    any
}

/// `*`, `5`, `1-5`, each with an optional `/step`.
fn range(part: &str, least: u32, most: u32, names: &[&str]) -> Option<String> {
    let pieces: Vec<&str> = part.split('/').collect();
    if pieces.len() > 2 {
        return Some(format!("too many slashes: {part}"));
    }
    let ends: Vec<&str> = pieces[0].split('-').collect();
    if ends.len() > 2 {
        return Some(format!("too many hyphens: {part}"));
    }
    let number = |text: &str| -> Result<u32, String> {
        if let Some(at) = names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return Ok(at as u32 + least);
        }
        match text.parse::<i64>() {
            Ok(number) if number < 0 => Err(format!("negative number ({number}) not allowed: {text}")),
            Ok(number) => Ok(number as u32),
            Err(_) => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")),
        }
    };
    let check = || -> Result<(), String> {
        let (first, last) = match ends[..] {
            ["*" | "?"] => (least, most),
            [one] => (number(one)?, if pieces.len() == 2 { most } else { number(one)? }),
            [first, last] => (number(first)?, number(last)?),
            _ => return Err(format!("too many hyphens: {part}")),
        };
        let step = pieces.get(1).map_or(Ok(1), |step| number(step))?;
        match () {
            () if first < least => Err(format!("beginning of range ({first}) below minimum ({least}): {part}")),
            () if last > most => Err(format!("end of range ({last}) above maximum ({most}): {part}")),
            () if first > last => Err(format!("beginning of range ({first}) beyond end of range ({last}): {part}")),
            () if step == 0 => Err(format!("step of range should be a positive number: {part}")),
            () => Ok(()),
        }
    };
    check().err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-6 1,15 JAN-mar sun", "@hourly", "@every 1h30m", "0 0 ? * 5/2"] {
            assert_eq!(fault(good), None, "{good}");
        }
        for bad in
            ["", "* * * *", "60 * * * *", "a * * * *", "*/0 * * * *", "5-1 * * * *", "@often", "@every x", "* * 0 * *"]
        {
            assert!(fault(bad).is_some(), "{bad}");
        }
    }
}
