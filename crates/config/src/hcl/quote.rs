//! What quoted strings and heredocs mean.

/// The text that a quoted HCL string stands for; `None` where the escapes make no sense.
///
/// A part `${..}` is kept as it is, escapes and quotes included.
pub(super) fn unquote(quoted: &str) -> Option<String> {
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains(['$', '{']) && inner.contains('\n') {
        return None;
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while !rest.is_empty() {
        if let Some(template) = rest.strip_prefix("${") {
            let end = template_end(template)?;
            let (inside, after) = template.split_at_checked(end)?;
            // The replacement character counts as damage here, wherever it comes from.
            if inside.contains(char::REPLACEMENT_CHARACTER) {
                return None;
            }
            out.extend_from_slice(b"${");
            out.extend_from_slice(inside.as_bytes());
            rest = after;
            continue;
        }
        if rest.starts_with(['\n', '"']) {
            return None;
        }
        rest = character(rest, &mut out)?;
    }
    Some(lossy(out))
}

/// The text that a quoted JSON string stands for.
pub(super) fn unquote_json(quoted: &str) -> Option<String> {
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while !rest.is_empty() {
        if rest.starts_with(['\n', '"']) {
            return None;
        }
        if let Some(digits) = rest.strip_prefix("\\u").and_then(|rest| rest.get(..4)) {
            // Halves of surrogate pairs are refused rather than replaced.
            char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
        }
        rest = character(rest, &mut out)?;
    }
    Some(lossy(out))
}

/// The text of a heredoc, given from `<<` to the end of the line with its anchor.
pub(super) fn heredoc(written: &str) -> Option<String> {
    let (first, rest) = written.split_once('\n')?;
    let anchor = first.strip_prefix("<<")?;
    let (anchor, indented) = match anchor.strip_prefix('-') {
        Some(anchor) => (anchor, true),
        None => (anchor, false),
    };
    let end = rest.len().checked_sub(anchor.trim_end_matches('\r').len() + 1)?;
    let text = rest.get(..end)?;
    if !indented {
        return Some(text.to_owned());
    }
    let margin = text.rsplit('\n').next().unwrap_or_default();
    if !text.split('\n').all(|line| line.starts_with(margin)) {
        // As long as the text is not indented throughout, it stays as it is, but for the margin.
        let mut text = text.to_owned();
        text.pop();
        text.truncate(text.trim_end_matches([' ', '\t']).len());
        return Some(text);
    }
    let mut lines: Vec<&str> =
        text.split('\n').map(|line| line.strip_prefix(margin).unwrap_or(line)).collect();
    if let Some(last) = lines.last_mut() {
        *last = "";
    }
    Some(lines.join("\n"))
}

/// Where the template that starts before `text` ends, its brace included.
fn template_end(text: &str) -> Option<usize> {
    let mut braces = 1_usize;
    for (at, character) in text.char_indices() {
        match character {
            '{' => braces += 1,
            '}' => braces -= 1,
            _ => {}
        }
        if braces == 0 {
            return Some(at + 1);
        }
    }
    None
}

/// Takes one character, escaped or not, off `text`; gives the rest.
fn character<'a>(text: &'a str, out: &mut Vec<u8>) -> Option<&'a str> {
    let mut characters = text.chars();
    let first = characters.next()?;
    if first != '\\' {
        push(first, out);
        return Some(characters.as_str());
    }
    let plain = match characters.next()? {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' => b'\\',
        '"' => b'"',
        'x' => return number(characters.as_str(), 2, 16, out),
        'u' => return number(characters.as_str(), 4, 16, out),
        'U' => return number(characters.as_str(), 8, 16, out),
        '0'..='7' => return number(text.get(1..)?, 3, 8, out),
        _ => return None,
    };
    out.push(plain);
    Some(characters.as_str())
}

/// Takes `count` digits off `text`: a byte where they are two or three, else a code point.
fn number<'a>(text: &'a str, count: usize, base: u32, out: &mut Vec<u8>) -> Option<&'a str> {
    let (digits, rest) = text.split_at_checked(count)?;
    if !digits.chars().all(|digit| digit.is_digit(base)) {
        return None;
    }
    let value = u32::from_str_radix(digits, base).ok()?;
    if count <= 3 {
        out.push(u8::try_from(value).ok()?);
    } else if value > u32::from(char::MAX) {
        return None;
    } else {
        push(char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER), out);
    }
    Some(rest)
}

fn push(character: char, out: &mut Vec<u8>) {
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Escapes can spell bytes that are no text; those are replaced.
fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_mean_what_they_say() {
        assert_eq!(unquote(r#""a\n\t\"\\\x41\101\u00e9\U0001F600""#).as_deref(), Some("a\n\t\"\\AAé😀"));
        assert_eq!(unquote(r#""\q""#), None);
        assert_eq!(unquote(r#""\400""#), None);
        assert_eq!(unquote(r#""\U00110000""#), None);
    }

    #[test]
    fn templates_stay_as_they_are() {
        assert_eq!(unquote(r#""x ${a "b\n" {c}} y\n""#).as_deref(), Some("x ${a \"b\\n\" {c}} y\n"));
        assert_eq!(unquote(r#""${a""#), None);
    }

    #[test]
    fn heredocs_lose_the_margin_of_their_end() {
        assert_eq!(heredoc("<<E\nx\n  y\nE\n").as_deref(), Some("x\n  y\n"));
        assert_eq!(heredoc("<<-E\n  x\n    y\n  E\n").as_deref(), Some("x\n  y\n"));
        assert_eq!(heredoc("<<-E\n x\n  y\n  E\n").as_deref(), Some(" x\n  y\n"));
    }
}
