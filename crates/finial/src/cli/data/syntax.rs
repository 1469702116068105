//! What JSON may look like, and what is said of text that does not: the words are those of Go's
//! `encoding/json`, which operators of SPIRE know.

use spiffe::quote::quoted;

/// How deep values may be nested.
const MAX_DEPTH: usize = 10_000;

/// What stands at the end of a text that stops too early.
const END: &str = "unexpected end of JSON input";

/// Checks that `text` is one JSON value.
///
/// # Errors
/// Which character is wrong, and what stood around it.
pub(crate) fn check(text: &[u8]) -> Result<(), String> {
    let mut scan = Scan { text, at: 0, open: Vec::new() };
    scan.document()
}

/// What a value stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Object,
    Array,
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    open: Vec<Open>,
}

impl Scan<'_> {
    fn document(&mut self) -> Result<(), String> {
        let mut before_value = true;
        loop {
            self.spaces();
            if before_value {
                before_value = self.value()?;
                continue;
            }
            // A value has ended: what it stands in goes on, ends, or there is nothing around it.
            let Some(open) = self.open.last().copied() else {
                return match self.peek() {
                    None => Ok(()),
                    Some(byte) => Err(invalid(byte, "after top-level value")),
                };
            };
            let (end, place) = match open {
                Open::Object => (b'}', "after object key:value pair"),
                Open::Array => (b']', "after array element"),
            };
            match self.next(END)? {
                b',' if open == Open::Object => {
                    self.spaces();
                    self.key()?;
                    before_value = true;
                }
                b',' => before_value = true,
                byte if byte == end => {
                    self.open.pop();
                }
                byte => return Err(invalid(byte, place)),
            }
        }
    }

    /// Takes a value, or the beginning of one; says whether another one comes next.
    fn value(&mut self) -> Result<bool, String> {
        match self.next(END)? {
            b'{' => {
                self.enter(Open::Object)?;
                self.spaces();
                if self.peek() == Some(b'}') {
                    self.at += 1;
                    self.open.pop();
                    return Ok(false);
                }
                self.key()?;
                return Ok(true);
            }
            b'[' => {
                self.enter(Open::Array)?;
                self.spaces();
                if self.peek() == Some(b']') {
                    self.at += 1;
                    self.open.pop();
                    return Ok(false);
                }
                return Ok(true);
            }
            b'"' => self.string()?,
            b'-' => {
                let first = self.next_or_space()?;
                self.number(first, "in numeric literal")?;
            }
            byte @ b'0'..=b'9' => self.number(byte, "")?,
            b't' => self.word("true")?,
            b'f' => self.word("false")?,
            b'n' => self.word("null")?,
            byte => return Err(invalid(byte, "looking for beginning of value")),
        }
        Ok(false)
    }

    fn enter(&mut self, open: Open) -> Result<(), String> {
        self.open.push(open);
        if self.open.len() > MAX_DEPTH { Err("exceeded max depth".to_owned()) } else { Ok(()) }
    }

    fn key(&mut self) -> Result<(), String> {
        match self.next(END)? {
            b'"' => self.string()?,
            byte => return Err(invalid(byte, "looking for beginning of object key string")),
        }
        self.spaces();
        match self.next(END)? {
            b':' => Ok(()),
            byte => Err(invalid(byte, "after object key")),
        }
    }

    fn string(&mut self) -> Result<(), String> {
        loop {
            match self.next(END)? {
                b'"' => return Ok(()),
                b'\\' => match self.next_or_space()? {
                    b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {}
                    b'u' => {
                        for _ in 0..4 {
                            let digit = self.next_or_space()?;
                            if !digit.is_ascii_hexdigit() {
                                return Err(invalid(digit, "in \\u hexadecimal character escape"));
                            }
                        }
                    }
                    byte => return Err(invalid(byte, "in string escape code")),
                },
                byte @ ..0x20 => return Err(invalid(byte, "in string literal")),
                _ => {}
            }
        }
    }

    /// Takes the rest of a number that begins with `first`.
    fn number(&mut self, first: u8, place: &str) -> Result<(), String> {
        match first {
            b'0' => {}
            b'1'..=b'9' => self.digits(),
            byte => return Err(invalid(byte, place)),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digit("after decimal point in numeric literal")?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digit("in exponent of numeric literal")?;
        }
        Ok(())
    }

    fn digit(&mut self, place: &str) -> Result<(), String> {
        let byte = self.next_or_space()?;
        if !byte.is_ascii_digit() {
            return Err(invalid(byte, place));
        }
        self.digits();
        Ok(())
    }

    fn digits(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }

    /// Takes the rest of a word whose first letter was taken.
    fn word(&mut self, word: &str) -> Result<(), String> {
        for expected in word.bytes().skip(1) {
            let byte = self.next_or_space()?;
            if byte != expected {
                let place = format!("in literal {word} (expecting '{}')", char::from(expected));
                return Err(invalid(byte, &place));
            }
        }
        Ok(())
    }

    fn spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self, missing: &str) -> Result<u8, String> {
        let byte = self.peek().ok_or_else(|| missing.to_owned())?;
        self.at += 1;
        Ok(byte)
    }

    /// The next byte where only some fit: there the end of the text counts as a space.
    fn next_or_space(&mut self) -> Result<u8, String> {
        Ok(self.next("").unwrap_or(b' '))
    }
}

fn invalid(byte: u8, place: &str) -> String {
    let shown = match byte {
        b'\'' => "'\\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        byte => format!("'{}'", quoted(&char::from(byte).to_string()).trim_matches('"')),
    };
    format!("invalid character {shown} {place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, why: &str) {
        assert_eq!(check(text.as_bytes()), Err(why.to_owned()), "{text}");
    }

    #[test]
    fn values_are_taken() {
        for text in ["{}", " [ ] ", "-0.5e+3", r#"{"a":[1,{"b":null}],"c":"\u00e9\n"}"#, "true\n"] {
            assert_eq!(check(text.as_bytes()), Ok(()), "{text}");
        }
    }

    #[test]
    fn the_wrong_character_is_named_with_its_place() {
        refused("x", "invalid character 'x' looking for beginning of value");
        refused("[1 2]", "invalid character '2' after array element");
        refused("[1,]", "invalid character ']' looking for beginning of value");
        refused("{,}", "invalid character ',' looking for beginning of object key string");
        refused(r#"{"a" 1}"#, "invalid character '1' after object key");
        refused(r#"{"a":1]"#, "invalid character ']' after object key:value pair");
        refused("{} {", "invalid character '{' after top-level value");
        refused("01", "invalid character '1' after top-level value");
        refused("nil", "invalid character 'i' in literal null (expecting 'u')");
        refused("\"\n\"", "invalid character '\\n' in string literal");
        refused(r#""\q""#, "invalid character 'q' in string escape code");
        refused(r#""\u00g""#, "invalid character 'g' in \\u hexadecimal character escape");
        refused("1.x", "invalid character 'x' after decimal point in numeric literal");
        refused("1ex", "invalid character 'x' in exponent of numeric literal");
        refused("-x", "invalid character 'x' in numeric literal");
        refused("é", "invalid character 'Ã' looking for beginning of value");
        refused("'", "invalid character '\\'' looking for beginning of value");
    }

    #[test]
    fn a_text_that_stops_too_early_is_told() {
        for text in ["", " ", "{", "[1", "\"a", "{\"a\"", "{\"a\":"] {
            refused(text, END);
        }
        refused("-", "invalid character ' ' in numeric literal");
        refused("tru", "invalid character ' ' in literal true (expecting 'e')");
        refused(&"[".repeat(MAX_DEPTH + 1), "exceeded max depth");
    }
}
