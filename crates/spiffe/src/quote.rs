//! Texts in quotes as SPIRE's error texts show them (Go's `%q`).

/// `text` in double quotes, with what cannot be printed escaped.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        push(&mut quoted, character, '"');
    }
    quoted.push('"');
    quoted
}

/// The number of an enumeration that nobody knows, in single quotes as the character it would be.
#[must_use]
pub fn quoted_number(number: i32) -> String {
    let character = u32::try_from(number).ok().and_then(char::from_u32);
    let mut quoted = String::from('\'');
    push(&mut quoted, character.unwrap_or(char::REPLACEMENT_CHARACTER), '\'');
    quoted.push('\'');
    quoted
}

/// The texts in quotes, with a space between them.
pub fn quoted_all<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    texts.into_iter().map(|text| quoted(text.as_ref())).collect::<Vec<_>>().join(" ")
}

fn push(quoted: &mut String, character: char, quote: char) {
    match character {
        '\\' => quoted.push_str("\\\\"),
        _ if character == quote => quoted.extend(['\\', quote]),
        '\u{7}' => quoted.push_str("\\a"),
        '\u{8}' => quoted.push_str("\\b"),
        '\u{c}' => quoted.push_str("\\f"),
        '\n' => quoted.push_str("\\n"),
        '\r' => quoted.push_str("\\r"),
        '\t' => quoted.push_str("\\t"),
        '\u{b}' => quoted.push_str("\\v"),
        _ if is_printable(character) => quoted.push(character),
        _ => quoted.push_str(&escaped(u32::from(character))),
    }
}

fn escaped(code: u32) -> String {
    match code {
        0..=0x7f => format!("\\x{code:02x}"),
        0x80..=0xffff => format!("\\u{code:04x}"),
        _ => format!("\\U{code:08x}"),
    }
}

fn is_printable(character: char) -> bool {
    match character {
        ' '..='~' => true,
        '\0'..='\u{7f}' => false,
        // Behind another character the library does not escape combining marks, as Go does not.
        _ => !format!("a{character}").escape_debug().to_string().contains("\\u{"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_go_does() {
        let cases = [
            ("aud", r#""aud""#),
            ("a\0", r#""a\x00""#),
            ("a\"\\'", r#""a\"\\'""#),
            ("\u{7f}\u{7}\n\u{1b}", r#""\x7f\a\n\x1b""#),
            ("é\u{a0}\u{200b}\u{301}", "\"é\\u00a0\\u200b\u{301}\""),
            ("\u{1f600}\u{e0001}", "\"\u{1f600}\\U000e0001\""),
        ];
        for (text, expected) in cases {
            assert_eq!(quoted(text), expected);
        }
    }

    #[test]
    fn numbers_are_quoted_as_the_characters_they_would_be() {
        let cases = [
            (4, r"'\x04'"),
            (7, r"'\a'"),
            (34, "'\"'"),
            (39, r"'\''"),
            (92, r"'\\'"),
            (128, r"'\u0080'"),
            (0xe9, "'é'"),
            (0xd800, "'\u{fffd}'"),
            (-1, "'\u{fffd}'"),
        ];
        for (number, expected) in cases {
            assert_eq!(quoted_number(number), expected);
        }
    }
}
