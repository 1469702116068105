//! The little JSON that logs and health replies are made of, written as Go's encoder writes it.

/// Appends a string in quotes. Like Go's encoder it escapes what could end a script element in HTML.
pub(crate) fn string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_go_does() {
        let mut out = String::new();

        string(&mut out, "a\"b\\c\n\t\u{1}<&>\u{7f}\u{2028}ü");

        assert_eq!(out, "\"a\\\"b\\\\c\\n\\t\\u0001\\u003c\\u0026\\u003e\u{7f}\\u2028ü\"");
    }
}
