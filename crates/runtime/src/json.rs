//! The little JSON that logs and health replies are made of, written as Go's encoder writes it, and the
//! names of members as its decoder reads them.

/// The name under which a member is looked for that is called `name`: the case of letters does not matter.
#[must_use]
pub fn folded(name: &str) -> String {
    let fold = |letter: char| match letter {
        // The two that are letters of this alphabet in other guises.
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        _ => letter.to_ascii_lowercase(),
    };
    name.chars().map(fold).collect()
}

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
    fn names_are_found_in_any_case() {
        assert_eq!(folded("Bootstrap_USE"), "bootstrap_use");
        assert_eq!(folded("\u{212a}ey\u{17f}"), "keys");
        assert_ne!(folded("\u{c9}"), folded("\u{e9}"));
    }

    #[test]
    fn strings_are_escaped_as_go_does() {
        let mut out = String::new();

        string(&mut out, "a\"b\\c\n\t\u{1}<&>\u{7f}\u{2028}ü");

        assert_eq!(out, "\"a\\\"b\\\\c\\n\\t\\u0001\\u003c\\u0026\\u003e\u{7f}\\u2028ü\"");
    }
}
