//! A text read one character at a time, with the place of each.
//!
//! The two syntaxes read alike and differ in what they do with odd characters. Places are counted as
//! the format's reference library counts them: at the end of the text, each further read moves one
//! column on, and error positions show that.

use super::error::{HclError, Position};

/// What reading at the end of the text gives, and in HCL a NUL.
pub(super) const END: char = '\0';

/// Which syntax is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// HCL proper.
    Hcl,
    /// JSON.
    Json,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    offset: usize,
    line: usize,
    column: usize,
}

/// A text being read.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    source: &'a [u8],
    syntax: Syntax,
    now: Mark,
    before: Mark,
    last_width: usize,
    last_line_length: usize,
    can_step_back: bool,
    fault: Option<HclError>,
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(source: &'a [u8], syntax: Syntax) -> Self {
        let start = Mark { offset: 0, line: 1, column: 0 };
        Self {
            source,
            syntax,
            now: start,
            before: start,
            last_width: 0,
            last_line_length: 0,
            can_step_back: false,
            fault: None,
        }
    }

    /// Reads a character.
    pub(super) fn next(&mut self) -> char {
        let Some((character, width, valid)) = self.decode() else {
            self.now.column += 1;
            self.last_width = 0;
            self.can_step_back = false;
            return END;
        };
        // In JSON the place before a damaged character is not remembered: who steps back from it is where
        // the read before began.
        self.before = match self.syntax {
            Syntax::Json if !valid => Mark { offset: self.now.offset, ..self.before },
            Syntax::Json | Syntax::Hcl => self.now,
        };
        self.now.column += 1;
        self.now.offset += width;
        self.last_width = width;
        self.can_step_back = true;
        if !valid {
            self.fail("illegal UTF-8 encoding");
            return char::REPLACEMENT_CHARACTER;
        }
        if character == '\n' {
            self.now.line += 1;
            self.last_line_length = self.now.column;
            self.now.column = 0;
        }
        if self.syntax == Syntax::Hcl {
            if character == END {
                self.fail("unexpected null character (0x00)");
            }
            if character == '\u{E123}' {
                self.fail("unicode code point U+E123 reserved for internal use");
                return char::REPLACEMENT_CHARACTER;
            }
        }
        character
    }

    /// Takes the last read back; after a read at the end there is nothing to take back.
    pub(super) fn step_back(&mut self) {
        if self.can_step_back {
            self.now = self.before;
            self.can_step_back = false;
        } else {
            self.fail("unexpected end of text");
        }
    }

    /// The next character, without reading it.
    pub(super) fn peek(&mut self) -> char {
        self.can_step_back = false;
        self.decode().map_or(END, |(character, _, _)| character)
    }

    /// Where the next read starts, in bytes.
    pub(super) const fn offset(&self) -> usize {
        self.now.offset
    }

    /// Where the last read started, in bytes.
    pub(super) const fn last_offset(&self) -> usize {
        self.now.offset.saturating_sub(self.last_width)
    }

    /// The place of the last read.
    pub(super) const fn place(&self) -> Position {
        if self.now.column > 0 {
            Position { line: self.now.line, column: self.now.column }
        } else if self.last_line_length > 0 {
            Position { line: self.now.line.saturating_sub(1), column: self.last_line_length }
        } else {
            Position { line: 1, column: 1 }
        }
    }

    /// The bytes from `start` to `end`.
    pub(super) fn slice(&self, start: usize, end: usize) -> &'a [u8] {
        self.source.get(start..end).unwrap_or_default()
    }

    /// Notes what is wrong at the last read. The last note is the one that counts.
    pub(super) fn fail(&mut self, text: &str) {
        let place = self.place();
        self.fault = Some(match self.syntax {
            Syntax::Hcl => HclError::at(Some(place), text),
            Syntax::Json => HclError::in_json(place, text),
        });
    }

    /// What was noted.
    pub(super) fn take_fault(&mut self) -> Option<HclError> {
        self.fault.take()
    }

    /// The character at the current place, its width, and whether it is well formed.
    fn decode(&self) -> Option<(char, usize, bool)> {
        let rest = self.source.get(self.now.offset..)?;
        let head = rest.get(..rest.len().min(4))?;
        let text = match std::str::from_utf8(head) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(head.get(..error.valid_up_to())?).ok()?,
        };
        match text.chars().next() {
            Some(character) => Some((character, character.len_utf8(), true)),
            None if head.is_empty() => None,
            None => Some((char::REPLACEMENT_CHARACTER, 1, false)),
        }
    }
}

/// Whether a word can start with it: letters, which numerals such as `Ⅷ` and signs such as `Ⓐ` are not,
/// although Unicode calls them alphabetic.
pub(super) fn is_letter(character: char) -> bool {
    match character {
        '_' => true,
        '\u{0345}' | 'Ⓐ'..='ⓩ' | '\u{1f130}'..='\u{1f189}' => false,
        _ => character.is_alphabetic() && !character.is_numeric(),
    }
}

/// Whether a word can go on with it: decimal digits of any script, which `²` and `½` are not.
pub(super) fn is_digit(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_digit();
    }
    let before = ZEROS.partition_point(|zero| *zero <= character);
    let zero = before.checked_sub(1).and_then(|at| ZEROS.get(at));
    zero.is_some_and(|zero| u32::from(character) - u32::from(*zero) < 10)
}

/// The zeros of the scripts that have digits (Unicode 15, general category Nd), each followed by its nine.
#[rustfmt::skip]
const ZEROS: [char; 67] = [
    '\u{660}', '\u{6f0}', '\u{7c0}', '\u{966}', '\u{9e6}', '\u{a66}', '\u{ae6}', '\u{b66}',
    '\u{be6}', '\u{c66}', '\u{ce6}', '\u{d66}', '\u{de6}', '\u{e50}', '\u{ed0}', '\u{f20}',
    '\u{1040}', '\u{1090}', '\u{17e0}', '\u{1810}', '\u{1946}', '\u{19d0}', '\u{1a80}', '\u{1a90}',
    '\u{1b50}', '\u{1bb0}', '\u{1c40}', '\u{1c50}', '\u{a620}', '\u{a8d0}', '\u{a900}', '\u{a9d0}',
    '\u{a9f0}', '\u{aa50}', '\u{abf0}', '\u{ff10}', '\u{104a0}', '\u{10d30}', '\u{11066}', '\u{110f0}',
    '\u{11136}', '\u{111d0}', '\u{112f0}', '\u{11450}', '\u{114d0}', '\u{11650}', '\u{116c0}', '\u{11730}',
    '\u{118e0}', '\u{11950}', '\u{11c50}', '\u{11d50}', '\u{11da0}', '\u{11f50}', '\u{16a60}', '\u{16ac0}',
    '\u{16b50}', '\u{1d7ce}', '\u{1d7d8}', '\u{1d7e2}', '\u{1d7ec}', '\u{1d7f6}', '\u{1e140}', '\u{1e2f0}',
    '\u{1e4f0}', '\u{1e950}', '\u{1fbf0}',
];

/// The parts of numbers and strings that both syntaxes scan alike.
impl Cursor<'_> {
    /// Reads decimal digits from `first` on, which was read or peeked at; gives what follows them.
    pub(super) fn digits(&mut self, first: char) -> char {
        let mut character = first;
        let mut any = false;
        while character.is_ascii_digit() {
            character = self.next();
            any = true;
        }
        if any && character != END {
            self.step_back();
        }
        character
    }

    /// Reads what follows a point that was read.
    pub(super) fn fraction(&mut self) -> char {
        let first = self.peek();
        self.digits(first)
    }

    /// Reads what follows an `e` that was read.
    pub(super) fn exponent(&mut self, letter: char) {
        if !matches!(letter, 'e' | 'E') {
            return;
        }
        let mut character = self.next();
        if matches!(character, '-' | '+') {
            character = self.next();
        }
        self.digits(character);
    }

    /// Reads fraction and exponent after a point that was read.
    pub(super) fn fraction_and_exponent(&mut self) {
        let character = self.fraction();
        if matches!(character, 'e' | 'E') {
            let letter = self.next();
            self.exponent(letter);
        }
    }

    /// Reads the rest of an escape sequence after its backslash.
    pub(super) fn escape(&mut self) {
        match self.next() {
            'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\' | '"' => {}
            digit @ '0'..='7' => self.escape_digits(digit, 8, 3),
            'x' => self.escape_number(2),
            'u' => self.escape_number(4),
            'U' => self.escape_number(8),
            _ => self.fail("illegal char escape"),
        }
    }

    fn escape_number(&mut self, count: usize) {
        let first = self.next();
        self.escape_digits(first, 16, count);
    }

    fn escape_digits(&mut self, first: char, base: u32, count: usize) {
        let mut character = first;
        let mut missing = count;
        while missing > 0 && character.is_digit(base) {
            character = self.next();
            if character == END && self.syntax == Syntax::Hcl {
                break;
            }
            missing -= 1;
        }
        if missing > 0 {
            self.fail("illegal char escape");
        }
        let read_any = missing != count && character != END;
        if read_any || self.syntax == Syntax::Json {
            self.step_back();
        }
    }
}
