//! HCL text to tokens.

use super::cursor::{Cursor, END, Syntax, is_digit, is_letter};
use super::error::HclError;
use super::token::{Kind, Token};

/// A text being cut into tokens.
pub(super) struct Scanner<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Scanner<'a> {
    pub(super) const fn new(source: &'a [u8]) -> Self {
        Self { cursor: Cursor::new(source, Syntax::Hcl) }
    }

    /// What the scanner found wrong last. It goes on after errors, so that this is the last of them.
    pub(super) fn take_fault(&mut self) -> Option<HclError> {
        self.cursor.take_fault()
    }

    /// The next token, comments included.
    pub(super) fn token(&mut self) -> Token {
        let cursor = &mut self.cursor;
        let mut character = cursor.next();
        while matches!(character, ' ' | '\t' | '\n' | '\r') {
            character = cursor.next();
        }
        let start = cursor.last_offset();
        let at = cursor.place();
        let kind = if is_letter(character) {
            self.word(start)
        } else if character.is_ascii_digit() {
            self.number(character)
        } else {
            self.sign(character)
        };
        let text = String::from_utf8_lossy(self.cursor.slice(start, self.cursor.offset())).into_owned();
        Token { kind, at, text }
    }

    fn sign(&mut self, character: char) -> Kind {
        match character {
            END => Kind::End,
            '"' => {
                self.string();
                Kind::Text
            }
            '#' | '/' => {
                self.comment(character);
                Kind::Comment
            }
            '.' => {
                let first = self.cursor.peek();
                if !first.is_ascii_digit() {
                    return Kind::Point;
                }
                let letter = self.cursor.digits(first);
                self.cursor.exponent(letter);
                Kind::Float
            }
            '<' => {
                self.heredoc();
                Kind::Heredoc
            }
            '[' => Kind::ListStart,
            ']' => Kind::ListEnd,
            '{' => Kind::ObjectStart,
            '}' => Kind::ObjectEnd,
            ',' => Kind::Comma,
            '=' => Kind::Assign,
            '+' => Kind::Plus,
            '-' => {
                if !self.cursor.peek().is_ascii_digit() {
                    return Kind::Minus;
                }
                let first = self.cursor.next();
                self.number(first)
            }
            _ => {
                self.cursor.fail("illegal char");
                Kind::Illegal
            }
        }
    }

    fn word(&mut self, start: usize) -> Kind {
        let cursor = &mut self.cursor;
        let mut character = cursor.next();
        while is_letter(character) || is_digit(character) || matches!(character, '-' | '.') {
            character = cursor.next();
        }
        if character != END {
            cursor.step_back();
        }
        match cursor.slice(start, cursor.offset()) {
            b"true" | b"false" => Kind::Bool,
            _ => Kind::Word,
        }
    }

    fn number(&mut self, first: char) -> Kind {
        let cursor = &mut self.cursor;
        let mut impossible_octal = false;
        let character = if first == '0' {
            let mut character = cursor.next();
            if matches!(character, 'x' | 'X') {
                return self.hexadecimal();
            }
            while character.is_ascii_digit() {
                character = cursor.next();
                // Only a possibility: 0159 is no number, 0159.23 is.
                impossible_octal |= matches!(character, '8' | '9');
            }
            character
        } else {
            cursor.digits(first);
            cursor.next()
        };
        match character {
            'e' | 'E' => {
                cursor.exponent(character);
                return Kind::Float;
            }
            '.' => {
                cursor.fraction_and_exponent();
                return Kind::Float;
            }
            _ => {}
        }
        if impossible_octal {
            cursor.fail("illegal octal number");
        }
        if character != END {
            cursor.step_back();
        }
        Kind::Number
    }

    fn hexadecimal(&mut self) -> Kind {
        let cursor = &mut self.cursor;
        let mut character = cursor.next();
        let mut any = false;
        while character.is_ascii_hexdigit() {
            character = cursor.next();
            any = true;
        }
        if !any {
            cursor.fail("illegal hexadecimal number");
        }
        if character != END {
            cursor.step_back();
        }
        Kind::Number
    }

    /// Reads a comment to the end of its line, or to its `*/`.
    fn comment(&mut self, first: char) {
        let cursor = &mut self.cursor;
        if first == '#' || cursor.peek() != '*' {
            if first == '/' && cursor.peek() != '/' {
                cursor.fail("expected '/' for comment");
                return;
            }
            let mut character = cursor.next();
            while !matches!(character, '\n' | END) {
                character = cursor.next();
            }
            if character != END {
                cursor.step_back();
            }
            return;
        }
        cursor.next();
        let mut character = cursor.next();
        loop {
            if character == END {
                cursor.fail("comment not terminated");
                return;
            }
            let last = character;
            character = cursor.next();
            if last == '*' && character == '/' {
                return;
            }
        }
    }

    /// Reads a string after its opening quote. Within `${..}` quotes and newlines are text.
    fn string(&mut self) {
        let cursor = &mut self.cursor;
        let mut braces = 0_usize;
        loop {
            let character = cursor.next();
            if (character == '\n' && braces == 0) || character == END {
                cursor.fail("literal not terminated");
                return;
            }
            if character == '"' && braces == 0 {
                return;
            }
            if braces == 0 && character == '$' && cursor.peek() == '{' {
                braces = 1;
                cursor.next();
            } else if braces > 0 && character == '{' {
                braces += 1;
            }
            if braces > 0 && character == '}' {
                braces -= 1;
            }
            if character == '\\' {
                cursor.escape();
            }
        }
    }

    /// Reads a heredoc after its first `<`, up to the end of the line with the anchor.
    fn heredoc(&mut self) {
        let cursor = &mut self.cursor;
        if cursor.next() != '<' {
            cursor.fail("heredoc expected second '<', didn't see it");
            return;
        }
        let start = cursor.offset();
        let mut character = cursor.next();
        if character == '-' {
            character = cursor.next();
        }
        while is_letter(character) || is_digit(character) {
            character = cursor.next();
        }
        if character == END {
            cursor.fail("heredoc not terminated");
            return;
        }
        if character == '\r' && cursor.peek() == '\n' {
            character = cursor.next();
        }
        if character != '\n' {
            cursor.fail("invalid characters in heredoc anchor");
            return;
        }
        let written = cursor.slice(start, cursor.last_offset());
        let anchor = written.strip_prefix(b"-").unwrap_or(written);
        if anchor.is_empty() {
            cursor.fail("zero-length heredoc anchor");
            return;
        }
        let mut line_start = cursor.offset();
        loop {
            match cursor.next() {
                '\n' => {
                    let line = cursor.slice(line_start, cursor.last_offset());
                    // The dash counts as part of what a line must at least hold, so that the end of
                    // `<<-EOF` has to be indented.
                    if line.len() >= written.len() && is_anchor(line, anchor) {
                        return;
                    }
                    line_start = cursor.offset();
                }
                END => {
                    cursor.fail("heredoc not terminated");
                    return;
                }
                _ => {}
            }
        }
    }
}

/// Whether a line is blanks and then the anchor.
fn is_anchor(line: &[u8], anchor: &[u8]) -> bool {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c);
    let blanks = line.iter().take_while(|byte| is_blank(byte)).count();
    let Some(rest) = line.get(blanks..).and_then(|rest| rest.strip_prefix(anchor)) else { return false };
    rest.iter().all(|byte| *byte == b'\r')
}
