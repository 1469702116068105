//! The syntax of `agent_path_template`: Go's templates, with the functions that SPIRE lends them.
//!
//! Only whether a template can be parsed is found out here. What it makes is up to the plugin.

/// Functions of templates themselves.
const OWN: [&str; 18] = [
    "and", "call", "eq", "ge", "gt", "html", "index", "js", "le", "len", "lt", "ne", "not", "or", "print",
    "printf", "println", "urlquery",
];

/// Functions that SPIRE adds.
const LENT: [&str; 113] = [
    "abbrev",
    "abbrevboth",
    "adler32sum",
    "all",
    "any",
    "append",
    "b32dec",
    "b32enc",
    "b64dec",
    "b64enc",
    "base",
    "camelcase",
    "cat",
    "chunk",
    "clean",
    "coalesce",
    "compact",
    "concat",
    "contains",
    "default",
    "dict",
    "dig",
    "dir",
    "empty",
    "ext",
    "fail",
    "first",
    "get",
    "has",
    "hasKey",
    "hasPrefix",
    "hasSuffix",
    "indent",
    "initial",
    "initials",
    "isAbs",
    "join",
    "kebabcase",
    "keys",
    "last",
    "list",
    "lower",
    "merge",
    "mergeOverwrite",
    "mustAppend",
    "mustChunk",
    "mustCompact",
    "mustFirst",
    "mustHas",
    "mustInitial",
    "mustLast",
    "mustMerge",
    "mustMergeOverwrite",
    "mustPrepend",
    "mustPush",
    "mustRegexFind",
    "mustRegexFindAll",
    "mustRegexMatch",
    "mustRegexReplaceAll",
    "mustRegexReplaceAllLiteral",
    "mustRegexSplit",
    "mustRest",
    "mustReverse",
    "mustSlice",
    "mustUniq",
    "mustWithout",
    "nindent",
    "nospace",
    "omit",
    "pick",
    "pluck",
    "plural",
    "prepend",
    "push",
    "quote",
    "regexFind",
    "regexFindAll",
    "regexMatch",
    "regexQuoteMeta",
    "regexReplaceAll",
    "regexReplaceAllLiteral",
    "regexSplit",
    "repeat",
    "replace",
    "rest",
    "reverse",
    "seq",
    "set",
    "sha1sum",
    "sha256sum",
    "slice",
    "snakecase",
    "sortAlpha",
    "splitList",
    "squote",
    "substr",
    "swapcase",
    "ternary",
    "title",
    "toString",
    "toStrings",
    "trim",
    "trimAll",
    "trimPrefix",
    "trimSuffix",
    "trunc",
    "tuple",
    "uniq",
    "unset",
    "untitle",
    "upper",
    "urlJoin",
    "urlParse",
];

/// Functions that SPIRE adds, and that did not fit above.
const MORE: [&str; 5] = ["uuidv4", "values", "without", "wrap", "wrapWith"];

/// Checks a template.
pub(super) fn check(text: &str) -> Result<(), &'static str> {
    let mut open = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("{{") {
        let action = after.strip_prefix("- ").unwrap_or(after);
        let comment = action.trim_start().strip_prefix("/*");
        if let Some(comment) = comment {
            let (_, after) = comment.split_once("*/").ok_or("unclosed comment")?;
            let end = after.trim_start().strip_prefix('-').unwrap_or_else(|| after.trim_start());
            rest = end.strip_prefix("}}").ok_or("comment ends before closing delimiter")?;
            continue;
        }
        let end = action_end(action).ok_or("unclosed action")?;
        let (inside, after) = action.split_at_checked(end).ok_or("unclosed action")?;
        rest = after.strip_prefix("}}").unwrap_or_default();
        check_action(inside.strip_suffix(" -").unwrap_or(inside), &mut open)?;
    }
    if open.is_empty() { Ok(()) } else { Err("unexpected EOF") }
}

/// Where the action's braces are, which are not those in its strings.
fn action_end(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"' | '\'') if character == '\\' => escaped = true,
            Some(open) if character == open => quote = None,
            Some('"' | '\'') if character == '\n' => return None,
            Some(_) => {}
            None if matches!(character, '"' | '\'' | '`') => quote = Some(character),
            None if text.get(at..).is_some_and(|rest| rest.starts_with("}}")) => return Some(at),
            None => {}
        }
    }
    None
}

/// Checks an action, and keeps track of the blocks that are open.
fn check_action(text: &str, open: &mut Vec<&'static str>) -> Result<(), &'static str> {
    let words = words(text)?;
    let (first, others) = words.split_first().ok_or("missing value for command")?;
    match first.as_str() {
        "end" if others.is_empty() => return open.pop().map(drop).ok_or("unexpected {{end}}"),
        "else" => {
            if open.is_empty() {
                return Err("unexpected {{else}}");
            }
            return match others.split_first() {
                None => Ok(()),
                Some((word, pipeline)) if matches!(word.as_str(), "if" | "with") => check_pipeline(pipeline),
                Some(_) => Err("unexpected word in else"),
            };
        }
        "break" | "continue" if others.is_empty() => {
            return if open.contains(&"range") { Ok(()) } else { Err("outside {{range}}") };
        }
        "if" => open.push("if"),
        "with" => open.push("with"),
        "range" => open.push("range"),
        "block" | "define" => open.push("define"),
        "template" => {}
        _ => return check_pipeline(&words),
    }
    check_pipeline(others)
}

fn check_pipeline(words: &[String]) -> Result<(), &'static str> {
    let mut depth = 0_usize;
    let mut is_empty = true;
    for word in words {
        match word.as_str() {
            "(" => {
                depth += 1;
                is_empty = true;
            }
            ")" => {
                depth = depth.checked_sub(1).ok_or("unexpected right paren")?;
                if is_empty {
                    return Err("missing value for parenthesized pipeline");
                }
            }
            "|" if is_empty => return Err("missing value for command"),
            "|" => is_empty = true,
            "," | ":=" | "=" => {}
            word => {
                let first = word.chars().next().unwrap_or(' ');
                let is_word = first.is_alphabetic() || first == '_';
                let name = word.split('.').next().unwrap_or_default();
                let is_known = ["true", "false", "nil"].contains(&name)
                    || OWN.contains(&name)
                    || LENT.contains(&name)
                    || MORE.contains(&name);
                if is_word && !is_known {
                    return Err("function not defined");
                }
                is_empty = false;
            }
        }
    }
    if depth > 0 {
        return Err("unclosed left paren");
    }
    if is_empty { Err("missing value for command") } else { Ok(()) }
}

/// Cuts an action into words.
fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '(' | ')' | '|' | ',' | '=' => 1,
            ':' if rest.starts_with(":=") => 2,
            '"' | '`' | '\'' => {
                let inner = rest.get(1..).unwrap_or_default();
                quoted_length(inner, first).ok_or("unterminated quoted string")? + 1
            }
            '.' | '$' | '_' | '-' | '+' => word_length(rest),
            _ if first.is_alphanumeric() => word_length(rest),
            _ => return Err("unexpected character"),
        };
        let (word, after) = rest.split_at_checked(length).ok_or("unexpected character")?;
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    Ok(words)
}

/// How long a quoted string is after its opening quote, with the closing one.
fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if character == '\\' && quote != '`' {
            escaped = true;
        } else if character == quote {
            return Some(at + 1);
        }
    }
    None
}

fn word_length(text: &str) -> usize {
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '$' | '-' | '+');
    text.find(|c: char| !inside(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_templates() {
        for text in [
            "",
            "/plain",
            "/{{ .PluginName }}/{{ .Fingerprint }}",
            "{{- .A -}}",
            "{{/* c */}}x",
            "{{ .A | lower | trimSuffix \".x\" }}",
            "{{ if .A }}a{{ else if .B }}b{{ else }}c{{ end }}",
            "{{ index .Tags \"a}}b\" }}",
            "{{ printf `%s` (.A.B) }}",
            "{{ range .L }}{{ . }}{{ end }}",
            "{{ $x := .A }}{{ $x }}",
            "{{ \"a\" }}",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn broken_templates() {
        for text in [
            "{{",
            "{{ .A",
            "{{}}",
            "{{ nosuch .A }}",
            "{{ if .A }}",
            "{{ end }}",
            "{{ .A | }}",
            "{{ (.A }}",
            "{{ .A) }}",
            "{{ \"a }}",
            "{{ else }}",
            "{{ %x }}",
            "{{/* c }}",
        ] {
            assert!(check(text).is_err(), "{text}");
        }
    }
}
