//! Where the last lines of a log begin, found from its end, block by block.

use super::parse;

/// As much of a line as tells a piece from another; its text does not matter here.
const HEAD_BYTES_MAX: usize = 256;

/// Counts lines from the end of a file. A line ends with an `F` piece; the parts before it belong to it.
#[derive(Debug)]
pub(super) struct TailScan {
    count: u64,
    found: u64,
    /// Where the lines that are wanted begin, as far as is known.
    start: u64,
    /// The beginning of the line that the block before (further on in the file) began in the middle of.
    carry: Vec<u8>,
}

impl TailScan {
    /// Looks for the last `count` lines of a file of this length.
    pub(super) fn new(count: u64, length: u64) -> Self {
        Self { count, found: 0, start: length, carry: Vec::new() }
    }

    /// Takes in the block at `offset`, which ends where the one before began; whether that is enough.
    pub(super) fn block(&mut self, offset: u64, block: &[u8]) -> bool {
        let mut bytes = block.to_vec();
        bytes.extend_from_slice(&self.carry);
        // A line that begins in this block begins after an end of line in it, or with the file.
        let mut end = bytes.len();
        while end > 0 {
            let begin = bytes[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if begin == 0 && offset > 0 {
                break;
            }
            let line = bytes[begin..end].strip_suffix(b"\n").unwrap_or(&bytes[begin..end]);
            if parse(line).is_some_and(|piece| !piece.partial) {
                if self.found == self.count {
                    return true;
                }
                self.found += 1;
            }
            self.start = offset + begin as u64;
            end = begin;
        }
        bytes.truncate(end);
        self.carry = shortened(bytes);
        offset == 0
    }

    /// Where the lines begin, and how many there are.
    pub(super) fn result(&self) -> (u64, u64) {
        (self.start, self.found)
    }
}

/// The beginning of a line, with its end if it has one.
fn shortened(mut line: Vec<u8>) -> Vec<u8> {
    if line.len() > HEAD_BYTES_MAX {
        let ends = line.ends_with(b"\n");
        line.truncate(HEAD_BYTES_MAX);
        line.extend(ends.then_some(b'\n'));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"2026-01-01T00:00:01.000000000Z stdout F one\n2026-01-01T00:00:02.000000000Z stderr P tw\n\
                         2026-01-01T00:00:02.000000000Z stderr F o\n2026-01-01T00:00:03.000000000Z stdout F three\n";

    fn scan(log: &[u8], count: u64, block: usize) -> (u64, u64) {
        let mut scan = TailScan::new(count, log.len() as u64);
        let mut end = log.len();
        while end > 0 {
            let begin = end.saturating_sub(block);
            if scan.block(begin as u64, &log[begin..end]) {
                break;
            }
            end = begin;
        }
        scan.result()
    }

    #[test]
    fn whole_lines_are_counted_whatever_the_blocks() {
        let rest = |text: &str| LOG.len() as u64 - text.len() as u64;
        let three = "2026-01-01T00:00:03.000000000Z stdout F three\n";
        let two = "2026-01-01T00:00:02.000000000Z stderr P tw\n2026-01-01T00:00:02.000000000Z stderr F o\n";
        for block in (1..=LOG.len()).chain([1000]) {
            for (count, expected) in [
                (0, (LOG.len() as u64, 0)),
                (1, (rest(three), 1)),
                (2, (rest(&format!("{two}{three}")), 2)),
                (3, (0, 3)),
                (9, (0, 3)),
            ] {
                assert_eq!(scan(LOG, count, block), expected, "the last {count} in blocks of {block}");
            }
        }
        assert_eq!(scan(b"", 1, 10), (0, 0));
    }

    #[test]
    fn a_long_line_is_one_line() {
        let long = format!("2026-01-01T00:00:01.000000000Z stdout F {}\n", "x".repeat(5000));
        let log = long.repeat(3);
        for block in [1, 7, 100, 4096, 6000] {
            assert_eq!(scan(log.as_bytes(), 2, block), (long.len() as u64, 2), "blocks of {block}");
        }
    }
}
