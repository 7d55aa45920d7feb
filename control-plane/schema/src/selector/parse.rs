//! The string form of a label selector: `app=web,tier in (a,b),!old,size>3`.
//!
//! Words and order of complaints follow `apimachinery/pkg/labels/selector.go`. Values of a set come out sorted
//! and once each. Nothing here matches anything.

use std::collections::BTreeSet;

use crate::field::{FieldError, Path, aggregate};
use crate::names;

use super::{Operator, Requirement, SelectorError};

/// All requirements of the text, in its order.
pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser { tokens: lex(text), at: 0 };
    parser.all().map_err(SelectorError)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    End,
    Word(&'a str),
    In,
    NotIn,
    Symbol(&'a str),
    Wrong(String),
}

impl Token<'_> {
    /// As error texts quote it.
    fn literal(&self) -> &str {
        match self {
            Self::End => "",
            Self::Word(word) | Self::Symbol(word) => word,
            Self::In => "in",
            Self::NotIn => "notin",
            Self::Wrong(text) => text,
        }
    }

    /// `in` and `notin` are words wherever a value or key is due.
    fn word(&self) -> Option<&str> {
        matches!(self, Self::Word(_) | Self::In | Self::NotIn).then(|| self.literal())
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self, Self::Symbol(own) if *own == symbol)
    }
}

const SYMBOLS: [&str; 9] = [")", ",", "!", "==", "=", ">", "<", "!=", "("];

fn lex(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let bytes = text.as_bytes();
    let special = |byte: u8| b"=!(),><".contains(&byte);
    let space = |byte: u8| b" \t\r\n".contains(&byte);
    let mut at = 0;
    while at < bytes.len() && bytes[at] != 0 {
        let start = at;
        if space(bytes[at]) {
            at += 1;
        } else if special(bytes[at]) {
            let mut found = None;
            while at < bytes.len() && special(bytes[at]) {
                at += 1;
                if SYMBOLS.contains(&&text[start..at]) {
                    found = Some(at);
                } else if found.is_some() {
                    break;
                }
            }
            tokens.push(match found {
                Some(end) => {
                    at = end;
                    Token::Symbol(&text[start..end])
                }
                None => Token::Wrong(format!("error expected: keyword found '{}'", &text[start..at])),
            });
        } else {
            while at < bytes.len() && bytes[at] != 0 && !special(bytes[at]) && !space(bytes[at]) {
                at += 1;
            }
            tokens.push(match &text[start..at] {
                "in" => Token::In,
                "notin" => Token::NotIn,
                word => Token::Word(word),
            });
        }
    }
    tokens.push(Token::End);
    tokens
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &Token<'a> {
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn all(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            let token = self.peek();
            if *token == Token::End {
                return Ok(requirements);
            }
            if token.word().is_none() && !token.is("!") {
                return Err(format!("found '{}', expected: !, identifier, or 'end of string'", token.literal()));
            }
            let requirement = self.requirement().map_err(|error| format!("unable to parse requirement: {error}"))?;
            requirements.push(requirement);
            let token = self.next();
            if token == Token::End {
                return Ok(requirements);
            }
            if !token.is(",") {
                return Err(format!("found '{}', expected: ',' or 'end of string'", token.literal()));
            }
            let token = self.peek();
            if token.word().is_none() && !token.is("!") {
                return Err(format!("found '{}', expected: identifier after ','", token.literal()));
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.next();
        let negated = token.is("!");
        if negated {
            token = self.next();
        }
        let Some(key) = token.word() else { return Err(format!("found '{}', expected: identifier", token.literal())) };
        let reasons = names::label_key(key);
        if !reasons.is_empty() {
            return Err(FieldError::invalid(&Path::root(), key, reasons.join("; ")).to_string());
        }
        let (operator, values) = if negated {
            (Operator::DoesNotExist, BTreeSet::new())
        } else if *self.peek() == Token::End || self.peek().is(",") {
            (Operator::Exists, BTreeSet::new())
        } else {
            self.operator_and_values()?
        };
        Requirement::new(key, operator, values.into_iter().collect()).map_err(|errors| aggregate(&errors))
    }

    fn operator_and_values(&mut self) -> Result<(Operator, BTreeSet<String>), String> {
        let token = self.next();
        let operator = match &token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Symbol("=") => Operator::Equals,
            Token::Symbol("==") => Operator::DoubleEquals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            other => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.literal())),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.set()?,
            _ => self.exact_value()?,
        };
        Ok((operator, values))
    }

    fn exact_value(&mut self) -> Result<BTreeSet<String>, String> {
        if *self.peek() == Token::End || self.peek().is(",") {
            return Ok(BTreeSet::from([String::new()]));
        }
        let token = self.next();
        match token.word() {
            Some(word) => Ok(BTreeSet::from([word.to_owned()])),
            None => Err(format!("found '{}', expected: identifier", token.literal())),
        }
    }

    fn set(&mut self) -> Result<BTreeSet<String>, String> {
        let token = self.next();
        if !token.is("(") {
            return Err(format!("found '{}' expected: '('", token.literal()));
        }
        let first = self.peek().clone();
        if first.is(")") {
            self.next();
            return Ok(BTreeSet::from([String::new()]));
        }
        if first.word().is_none() && !first.is(",") {
            return Err(format!("found '{}', expected: ',', ')' or identifier", first.literal()));
        }
        let values = self.set_items()?;
        if !self.next().is(")") {
            return Err(format!("found '{}', expected: ')'", first.literal()));
        }
        Ok(values)
    }

    /// Items up to the closing parenthesis; an omitted item is the empty text.
    fn set_items(&mut self) -> Result<BTreeSet<String>, String> {
        let mut values = BTreeSet::new();
        loop {
            let token = self.next();
            if let Some(word) = token.word() {
                values.insert(word.to_owned());
                let next = self.peek();
                if next.is(")") {
                    return Ok(values);
                }
                if !next.is(",") {
                    return Err(format!("found '{}', expected: ',' or ')'", next.literal()));
                }
            } else if token.is(",") {
                if values.is_empty() || self.peek().is(",") {
                    values.insert(String::new());
                }
                if self.peek().is(")") {
                    values.insert(String::new());
                    return Ok(values);
                }
            } else {
                return Err(format!("found '{}', expected: ',', or identifier", token.literal()));
            }
        }
    }
}
