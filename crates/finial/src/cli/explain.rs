//! What `agent explain` and `server explain` have in common: the selectors they take, the blocks they
//! print.

use std::fmt::Write as _;

use proto::finial::explain::Candidate;
use proto::spire::types;

use super::duration::format_time;
use super::flags::{Flag, Kind, flag};
use super::print::id_text;

/// The flag with the selectors of a workload.
pub(crate) const SELECTORS: Flag = flag(
    "selectors",
    Kind::Texts,
    "Selectors of a workload as type:value,type:value. Can be used more than once",
);

/// The selectors of the flag. A part without a type belongs to the value before it.
pub(crate) fn selectors(texts: &[String]) -> Result<Vec<types::Selector>, String> {
    let mut selectors: Vec<types::Selector> = Vec::new();
    for text in texts {
        for (index, part) in text.split(',').enumerate() {
            match (part.split_once(':'), selectors.last_mut()) {
                (Some((kind, value)), _) => {
                    selectors.push(types::Selector { r#type: kind.to_owned(), value: value.to_owned() });
                }
                (None, Some(last)) if index > 0 => {
                    last.value.push(',');
                    last.value.push_str(part);
                }
                (None, _) => return Err(format!("selector {part:?} must be formatted as type:value")),
            }
        }
    }
    Ok(selectors)
}

/// A block of lines below a title; nothing for no lines.
pub(crate) fn block(text: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    // Writing to a string cannot fail.
    let _written = writeln!(text, "\n{title}:");
    for line in lines {
        let _written = writeln!(text, "  {line}");
    }
}

/// Selectors, one a line.
pub(crate) fn lines_of(selectors: &[types::Selector]) -> Vec<String> {
    selectors.iter().map(shown).collect()
}

/// Entries with what is to be said of each.
pub(crate) fn candidates(candidates: &[Candidate], has: &[types::Selector], now: i64) -> Vec<String> {
    let mut lines = Vec::new();
    for candidate in candidates {
        let Some(entry) = &candidate.entry else { continue };
        lines.push(format!("{}  (entry {})", id_text(entry.spiffe_id.as_ref()), entry.id));
        for missing in &candidate.missing {
            let instead = instead_of(missing, has);
            lines.push(format!("    lacks {}{instead}", shown(missing)));
        }
        if candidate.missing.is_empty() {
            lines.push(format!("    asks for {}", lines_of(&entry.selectors).join(", ")));
        }
        if !candidate.parents.is_empty() {
            lines.push(format!("    below {}", candidate.parents.join(", below ")));
        }
        if candidate.svid_expires_at != 0 {
            let left = candidate.svid_expires_at - now;
            lines.push(format!(
                "    X.509-SVID for {left} s, until {}",
                format_time(candidate.svid_expires_at)
            ));
        }
        if entry.expires_at != 0 {
            lines.push(format!("    the entry expires {}", format_time(entry.expires_at)));
        }
        if !candidate.reason.is_empty() && candidate.missing.is_empty() {
            lines.push(format!("    {}", candidate.reason));
        }
    }
    lines
}

/// What a workload has in the place of a selector that it lacks.
fn instead_of(missing: &types::Selector, has: &[types::Selector]) -> String {
    let key = |selector: &types::Selector| {
        let value = selector.value.as_str();
        value.split_once(':').map_or_else(|| value.to_owned(), |(key, _)| key.to_owned())
    };
    let same =
        |selector: &&types::Selector| selector.r#type == missing.r#type && key(selector) == key(missing);
    let others: Vec<String> = has.iter().filter(same).map(shown).collect();
    if others.is_empty() { String::new() } else { format!(", has {}", others.join(", ")) }
}

/// The command that would grant an identity.
pub(crate) fn grant(text: &mut String, words: &[String]) {
    if words.is_empty() {
        return;
    }
    let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    let _written =
        writeln!(text, "\nTo give it an identity:\n  finial server entry create {}", quoted.join(" "));
}

/// A word as shells take it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Selectors as the flag takes them.
pub(crate) fn flag_of(selectors: &[types::Selector]) -> String {
    if selectors.is_empty() {
        return String::new();
    }
    format!(" -selectors {}", quoted(&lines_of(selectors).join(",")))
}

fn shown(selector: &types::Selector) -> String {
    format!("{}:{}", selector.r#type, selector.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(texts: &[&str]) -> Result<Vec<String>, String> {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        Ok(lines_of(&selectors(&texts)?))
    }

    #[test]
    fn selectors_stand_between_commas() {
        assert_eq!(
            parsed(&["unix:uid:1,k8s:ns:a", "docker:label:b:c"]).unwrap(),
            ["unix:uid:1", "k8s:ns:a", "docker:label:b:c"]
        );
        assert_eq!(parsed(&["x:a,b,y:c"]).unwrap(), ["x:a,b", "y:c"]);
        assert!(parsed(&["uid"]).is_err() && parsed(&["x:a", "uid"]).is_err());
    }

    #[test]
    fn what_a_workload_has_instead_is_told() {
        let of = |text: &str| selectors(&[text.to_owned()]).unwrap();
        let has = of("unix:uid:0,unix:path:/a,k8s:uid:9");

        assert_eq!(instead_of(&of("unix:uid:7")[0], &has), ", has unix:uid:0");
        assert_eq!(instead_of(&of("unix:gid:7")[0], &has), "");
        assert_eq!(quoted("unix:path:/a b'c"), r"'unix:path:/a b'\''c'");
        assert_eq!(quoted("spiffe://a/b"), "spiffe://a/b");
    }
}
