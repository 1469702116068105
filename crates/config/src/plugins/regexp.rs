//! The syntax of RE2's regular expressions, as far as a pattern is refused for it.

/// Checks a pattern.
pub(super) fn check(pattern: &str) -> Result<(), String> {
    let mut parser = Parser { pattern, rest: pattern, depth: 0, can_repeat: false, repeated: "" };
    parser.run().map_err(|why| format!("error parsing regexp: {why}"))
}

struct Parser<'a> {
    pattern: &'a str,
    rest: &'a str,
    depth: usize,
    /// Whether there is something that an operator can repeat.
    can_repeat: bool,
    /// The repetition operator just before.
    repeated: &'a str,
}

impl<'a> Parser<'a> {
    fn run(&mut self) -> Result<(), String> {
        while let Some(character) = self.rest.chars().next() {
            let before = self.rest;
            self.take(character.len_utf8());
            match character {
                '(' => self.group(before)?,
                ')' => {
                    self.depth = self
                        .depth
                        .checked_sub(1)
                        .ok_or_else(|| format!("unexpected ): `{}`", self.pattern))?;
                    self.atom();
                }
                '|' => {
                    self.can_repeat = false;
                    self.repeated = "";
                }
                '[' => {
                    self.class(before)?;
                    self.atom();
                }
                '*' | '+' | '?' => self.repeat(before, 1)?,
                '{' => match counts(before) {
                    Some((length, least, most)) => {
                        if least > 1000 || most > 1000 || least > most {
                            return Err(format!("invalid repeat count: `{}`", head(before, length)));
                        }
                        self.take(length - 1);
                        self.repeat(before, length)?;
                    }
                    None => self.atom(),
                },
                '\\' => {
                    self.escape(before)?;
                    self.atom();
                }
                _ => self.atom(),
            }
        }
        if self.depth > 0 {
            return Err(format!("missing closing ): `{}`", self.pattern));
        }
        Ok(())
    }

    fn take(&mut self, length: usize) {
        self.rest = self.rest.get(length..).unwrap_or_default();
    }

    const fn atom(&mut self) {
        self.can_repeat = true;
        self.repeated = "";
    }

    /// An operator of `length` bytes, which may be made lazy.
    fn repeat(&mut self, before: &'a str, mut length: usize) -> Result<(), String> {
        if !self.can_repeat {
            return Err(format!("missing argument to repetition operator: `{}`", head(before, length)));
        }
        if self.rest.starts_with('?') {
            self.take(1);
            length += 1;
        }
        let operator = head(before, length);
        if !self.repeated.is_empty() {
            return Err(format!("invalid nested repetition operator: `{}{operator}`", self.repeated));
        }
        self.repeated = operator;
        Ok(())
    }

    fn group(&mut self, before: &str) -> Result<(), String> {
        self.depth += 1;
        self.can_repeat = false;
        self.repeated = "";
        let Some(flags) = self.rest.strip_prefix('?') else { return Ok(()) };
        let name = flags.strip_prefix("P<").or_else(|| flags.strip_prefix('<'));
        if let Some(name) = name
            && !flags.starts_with("<=")
            && !flags.starts_with("<!")
        {
            let end = name.find('>').ok_or_else(|| format!("invalid named capture: `{before}`"))?;
            let (name, _) = name.split_at_checked(end).unwrap_or((name, ""));
            let length = flags.find('>').map_or(0, |end| end + 2);
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                return Err(format!("invalid named capture: `{}`", head(before, length + 1)));
            }
            self.take(length);
            return Ok(());
        }
        let end = flags.find(|c: char| !"imsU-".contains(c)).unwrap_or(flags.len());
        match flags.get(end..).and_then(|rest| rest.chars().next()) {
            Some(':') => self.take(end + 2),
            Some(')') if end > 0 => {
                self.depth -= 1;
                self.take(end + 2);
            }
            None => return Err(format!("missing closing ): `{}`", self.pattern)),
            Some(other) => {
                let shown = head(before, 2 + end + other.len_utf8());
                return Err(format!("invalid or unsupported Perl syntax: `{shown}`"));
            }
        }
        Ok(())
    }

    fn class(&mut self, before: &str) -> Result<(), String> {
        let open = || format!("missing closing ]: `{before}`");
        if self.rest.starts_with('^') {
            self.take(1);
        }
        let mut first = true;
        loop {
            let start = self.rest;
            let from = self.rest.chars().next().ok_or_else(open)?;
            if from == ']' && !first {
                self.take(1);
                return Ok(());
            }
            first = false;
            if let Some(named) = self.rest.strip_prefix("[:")
                && let Some(end) = named.find(":]")
            {
                let name = head(named, end).trim_start_matches('^');
                if !NAMED.contains(&name) {
                    return Err(format!("invalid character class range: `{}`", head(start, end + 4)));
                }
                self.take(end + 4);
                continue;
            }
            self.take(from.len_utf8());
            if from == '\\' {
                self.escape(start)?;
            }
            let after = self.rest.strip_prefix('-').and_then(|rest| rest.chars().next());
            if let Some(to) = after.filter(|to| *to != ']') {
                self.take(1 + to.len_utf8());
                if to == '\\' {
                    self.escape("\\")?;
                } else if from != '\\' && to < from {
                    let length = from.len_utf8() + 1 + to.len_utf8();
                    return Err(format!("invalid character class range: `{}`", head(start, length)));
                }
            }
        }
    }

    /// What follows a backslash, which was taken.
    fn escape(&mut self, before: &str) -> Result<(), String> {
        let Some(character) = self.rest.chars().next() else {
            return Err("trailing backslash at end of expression: ``".into());
        };
        self.take(character.len_utf8());
        let is_known = match character {
            'Q' => {
                let end = self.rest.find("\\E").map_or(self.rest.len(), |end| end + 2);
                self.take(end);
                true
            }
            'p' | 'P' => {
                let length = match self.rest.strip_prefix('{') {
                    Some(name) => name.find('}').map(|end| end + 2),
                    None => self.rest.chars().next().map(char::len_utf8),
                };
                length.map(|length| self.take(length)).is_some()
            }
            'x' => {
                let length = match self.rest.strip_prefix('{') {
                    Some(digits) => digits.find('}').filter(|end| *end > 0).map(|end| end + 2),
                    None => self.rest.get(..2).filter(|digits| is_hexadecimal(digits)).map(|_| 2),
                };
                length.map(|length| self.take(length)).is_some()
            }
            _ => !character.is_alphanumeric() || "aftnrvAbBzdDsSwWC01234567".contains(character),
        };
        if is_known {
            return Ok(());
        }
        Err(format!("invalid escape sequence: `{}`", head(before, 1 + character.len_utf8())))
    }
}

const NAMED: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Length, least and most of `{n}`, `{n,}` or `{n,m}`; anything else is plain text.
fn counts(text: &str) -> Option<(usize, u32, u32)> {
    let end = text.find('}')?;
    let inner = text.get(1..end)?;
    let number = |text: &str| {
        let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        fits.then(|| text.parse().unwrap_or(u32::MAX))
    };
    let (least, most) = match inner.split_once(',') {
        None => (number(inner)?, number(inner)?),
        Some((least, "")) => (number(least)?, number(least)?),
        Some((least, most)) => (number(least)?, number(most)?),
    };
    Some((end + 1, least, most))
}

fn head(text: &str, length: usize) -> &str {
    text.get(..length).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(pattern: &str, why: &str) {
        assert_eq!(check(pattern), Err(format!("error parsing regexp: {why}")), "{pattern}");
    }

    #[test]
    fn good_patterns() {
        for pattern in [
            "",
            r"^a\.b$",
            "(?i:x)+?",
            "[a-z]{2,3}",
            "[]a]",
            "[^]]",
            r"\d+\x41\x{1F600}\pL\p{Greek}",
            "a{,2}",
            "(?P<name>x)",
            "(?<name>x)",
            "(a|b)*",
            "[[:alpha:]_-]",
            r"\Q(\E",
            "(?i)x",
        ] {
            assert_eq!(check(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn broken_patterns() {
        refused("(", "missing closing ): `(`");
        refused("a)", "unexpected ): `a)`");
        refused("[a", "missing closing ]: `[a`");
        refused("*", "missing argument to repetition operator: `*`");
        refused("a**", "invalid nested repetition operator: `**`");
        refused("a\\", "trailing backslash at end of expression: ``");
        refused(r"\y", r"invalid escape sequence: `\y`");
        refused("[z-a]", "invalid character class range: `z-a`");
        refused("a{2000}", "invalid repeat count: `{2000}`");
        refused("(?=a)", "invalid or unsupported Perl syntax: `(?=`");
    }
}
