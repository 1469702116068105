//! Texts in quotes as SPIRE's error texts show them (Go's `%q`).

/// `text` in double quotes, with what cannot be printed escaped.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
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
    quoted.push('"');
    quoted
}

/// The texts in quotes, with a space between them.
pub fn quoted_all<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    texts.into_iter().map(|text| quoted(text.as_ref())).collect::<Vec<_>>().join(" ")
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
}
