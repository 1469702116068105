//! The little JSON that logs and health replies are made of, written as Go's encoder writes it, and objects
//! read as its decoder reads them.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};

/// An object that is read as Go reads it: the names of its members may be in any case, each of several that
/// are called alike is taken, and `null` is an object without any.
pub trait Object: Default {
    /// Takes the value of the member with this name, in lower case, as the next of `members`; the value of
    /// one that is not known is to be passed over, by [`pass_over`].
    ///
    /// # Errors
    /// The value is none of this member's.
    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error>;
}

/// Reads an object.
///
/// # Errors
/// It is none, or one of its members cannot be read.
pub fn object<'de, T: Object, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(Members(PhantomData))
}

/// Passes over the value of a member.
///
/// # Errors
/// It is no value.
pub fn pass_over<'de, A: MapAccess<'de>>(members: &mut A) -> Result<(), A::Error> {
    members.next_value::<IgnoredAny>().map(drop)
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Object> Visitor<'de> for Members<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Ok(T::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<T, A::Error> {
        let mut object = T::default();
        while let Some(name) = members.next_key::<String>()? {
            object.take(&folded(&name), &mut members)?;
        }
        Ok(object)
    }
}

/// The name under which a member is looked for that is called `name`: the case of letters does not matter.
fn folded(name: &str) -> String {
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

    #[derive(Debug, Default, PartialEq)]
    struct Numbers(Vec<u8>);

    impl Object for Numbers {
        fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, members: &mut A) -> Result<(), A::Error> {
            if name != "number" {
                return pass_over(members);
            }
            self.0.push(members.next_value()?);
            Ok(())
        }
    }

    #[test]
    fn members_are_taken_one_by_one_and_nothing_is_an_object_without_any() {
        let read = |text: &str| object::<Numbers, _>(&mut serde_json::Deserializer::from_str(text));

        let text = r#"{"number": 1, "other": {"number": 2}, "NUMBER": 3}"#;
        assert_eq!(read(text).unwrap(), Numbers(vec![1, 3]));
        assert_eq!(read("null").unwrap(), Numbers::default());
        for wrong in ["[]", "1", "{\"number\": null}", "{\"number\": 1"] {
            read(wrong).unwrap_err();
        }
    }

    #[test]
    fn strings_are_escaped_as_go_does() {
        let mut out = String::new();

        string(&mut out, "a\"b\\c\n\t\u{1}<&>\u{7f}\u{2028}ü");

        assert_eq!(out, "\"a\\\"b\\\\c\\n\\t\\u0001\\u003c\\u0026\\u003e\u{7f}\\u2028ü\"");
    }
}
