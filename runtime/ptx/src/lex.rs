//! Text to tokens: words (names, opcodes with their modifiers, numbers), quoted text, marks.

/// One token and where it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind<'a>,
    pub(crate) line: u32,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind<'a> {
    Word(&'a str),
    Quoted,
    Mark(char),
}

fn in_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.' | b'%')
}

/// All tokens; comments and the lines that carry debug information (`.loc`, `.file`) are left out.
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let mut all = Vec::new();
    let (mut at, mut line) = (0, 1);
    let end_of_line = |from: usize| bytes[from..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| from + n);
    while at < bytes.len() {
        let c = bytes[at];
        let start = at;
        if c == b'\n' {
            line += 1;
            at += 1;
        } else if c.is_ascii_whitespace() || c == 0 {
            at += 1;
        } else if bytes[at..].starts_with(b"//") {
            at = end_of_line(at);
        } else if bytes[at..].starts_with(b"/*") {
            let end = text[at + 2..].find("*/").map_or(bytes.len(), |n| at + 2 + n + 2);
            line += bytes[at..end].iter().filter(|&&b| b == b'\n').count() as u32;
            at = end;
        } else if c == b'"' {
            at = bytes[at + 1..].iter().position(|&b| b == b'"').map_or(bytes.len(), |n| at + n + 2);
            all.push(Token { kind: Kind::Quoted, line, start, end: at });
        } else if in_word(c) {
            // `L2::128B` is part of an opcode; a single colon ends a label.
            // Directives may follow each other without a space: `.reg.b32`.
            let directive = c == b'.';
            while at < bytes.len() && (in_word(bytes[at]) || bytes[at..].starts_with(b"::")) {
                if directive && at > start && bytes[at] == b'.' {
                    break;
                }
                at += if bytes[at] == b':' { 2 } else { 1 };
            }
            let word = &text[start..at];
            if word == ".loc" || word == ".file" {
                at = end_of_line(at);
            } else {
                all.push(Token { kind: Kind::Word(word), line, start, end: at });
            }
        } else {
            let mark = text[at..].chars().next().unwrap_or(' ');
            at += mark.len_utf8();
            all.push(Token { kind: Kind::Mark(mark), line, start, end: at });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_marks_and_lines() {
        let text = "// c\n.loc 1 2 3\n/* \n */ .reg.b32 ld.global.L2::128B.v4 {%r1, _}, [%rd1+-4]; $L: \"a b\"";
        let got: Vec<(Kind, u32)> = tokens(text).iter().map(|t| (t.kind, t.line)).collect();
        let words: Vec<&str> =
            got.iter().filter_map(|(k, _)| if let Kind::Word(w) = k { Some(*w) } else { None }).collect();
        assert_eq!(words, [".reg", ".b32", "ld.global.L2::128B.v4", "%r1", "_", "%rd1", "4", "$L"]);
        assert!(got.iter().all(|(_, line)| *line == 4), "{got:?}");
        assert_eq!(got.last(), Some(&(Kind::Quoted, 4)));
    }
}
