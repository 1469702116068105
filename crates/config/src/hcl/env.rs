//! Environment variables in a configuration text, put in before it is parsed.
//!
//! `$NAME` and `${NAME}` become the variable's value, or nothing where it is unset; `$$` is a dollar
//! sign. There is no syntax for defaults, values are pasted as they are, comments are no exception.

/// Replaces variables in `text` by what `lookup` says.
///
/// Broken syntax loses its characters: `${}` and an unclosed `${` vanish.
#[must_use]
pub fn expand_env(text: &str, mut lookup: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let (before, from) = rest.split_at(dollar);
        out.push_str(before);
        let after = from.strip_prefix('$').unwrap_or_default();
        if after.is_empty() {
            rest = from;
            break;
        }
        let (name, length) = variable(after);
        match name {
            Some("$") => out.push('$'),
            Some(name) => out.push_str(&lookup(name).unwrap_or_default()),
            // A lone dollar sign stays, broken syntax goes.
            None if length == 0 => out.push('$'),
            None => {}
        }
        rest = after.get(length..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// The name at the start of `text`, which follows a dollar sign, and how many bytes name it.
fn variable(text: &str) -> (Option<&str>, usize) {
    if let Some(braced) = text.strip_prefix('{') {
        let one = braced.get(..1).filter(|name| name.bytes().all(is_special));
        if let Some(name) = one
            && braced.get(1..2) == Some("}")
        {
            return (Some(name), 3);
        }
        return match braced.find('}') {
            Some(0) => (None, 2),
            Some(end) => (braced.get(..end), end + 2),
            None => (None, 1),
        };
    }
    if text.bytes().next().is_some_and(is_special) {
        return (text.get(..1), 1);
    }
    let length = text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
    (text.get(..length).filter(|name| !name.is_empty()), length)
}

/// One-character names, as a shell has them.
fn is_special(byte: u8) -> bool {
    matches!(byte, b'*' | b'#' | b'$' | b'@' | b'!' | b'?' | b'-' | b'0'..=b'9')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let expanded = expand_env(text, |name| match name {
            "NAME" => Some("value".to_owned()),
            "1" => Some("one".to_owned()),
            "X:-y" => Some("no defaults".to_owned()),
            _ => None,
        });

        assert_eq!(expanded, expected, "{text}");
    }

    #[test]
    fn variables_are_replaced_as_a_shell_names_them() {
        check("a $NAME b", "a value b");
        check("a${NAME}b", "avalueb");
        check("$NAME.x", "value.x");
        check("$NAMEX", "");
        check("$1x", "onex");
        check("${1}x", "onex");
        check("${X:-y}", "no defaults");
        check("$NAMÉ", "É");
    }

    #[test]
    fn dollars_without_a_name_stay_and_broken_syntax_goes() {
        check("$$NAME", "$NAME");
        check("$", "$");
        check("a $ b", "a $ b");
        check("$.", "$.");
        check("a${}b", "ab");
        check("a${NAME", "aNAME");
        check("${$}", "$");
        check("é$é", "é$é");
    }
}
