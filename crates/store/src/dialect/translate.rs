//! SQL as it is written here, in the words of `SQLite`, for the other databases.
//!
//! Five things differ and are used: placeholders (`?`, `?N`), `unixepoch(column)` around instants, which
//! only `SQLite` holds as text, lists, which each database is given in its own way, and text that must be
//! the same byte by byte, `column == ?`: for MySQL's `=` two texts are equal that differ in case, accents
//! or blanks at their end. Literals stay as they are.

use super::{Dialect, Value};

/// Between a column and a parameter that must be the same byte by byte.
const SAME: &str = "== ?";

/// A list among the parameters.
const LIST: &str = "IN (SELECT value FROM json_each(?";

/// Where a parameter of the translated statement comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Index of the parameter.
    pub(crate) param: usize,
    /// Index within it, if it is a list that was taken apart.
    pub(crate) item: Option<usize>,
}

/// The statement in the words of `dialect`, and its parameters in order.
pub(crate) fn translate(sql: &str, params: &[Value<'_>], dialect: Dialect) -> (String, Vec<Source>) {
    let mut translated = Translated { text: String::with_capacity(sql.len() + 16), sources: Vec::new() };
    let mut rest = sql;
    let mut unnumbered = 0;
    while let Some(at) = rest.find(['\'', '?', 'I', 'u', '=']) {
        let (before, from) = rest.split_at(at);
        translated.text.push_str(before);
        rest = if let Some(list) = from.strip_prefix(LIST) {
            let (number, after) = number(list);
            translated.list(number.unwrap_or_default(), params, dialect);
            after.strip_prefix("))").unwrap_or(after)
        } else if let Some(after) = from.strip_prefix(SAME) {
            let (number, after) = number(after);
            let param = number.unwrap_or(unnumbered);
            unnumbered = param + 1;
            translated.same(Source { param, item: None }, dialect);
            after
        } else if let Some(after) = from.strip_prefix("unixepoch(") {
            translated.text.push('(');
            after
        } else if let Some(literal) = from.strip_prefix('\'') {
            let end = literal.find('\'').map_or(literal.len(), |end| end + 1);
            let (literal, after) = literal.split_at(end);
            translated.text.push('\'');
            translated.text.push_str(literal);
            after
        } else if let Some(after) = from.strip_prefix('?') {
            let (number, after) = number(after);
            let param = number.unwrap_or(unnumbered);
            unnumbered = param + 1;
            translated.placeholder(Source { param, item: None }, dialect);
            after
        } else {
            let (letter, after) = from.split_at(1);
            translated.text.push_str(letter);
            after
        };
    }
    translated.text.push_str(rest);
    (translated.text, translated.sources)
}

struct Translated {
    text: String,
    sources: Vec<Source>,
}

impl Translated {
    fn placeholder(&mut self, source: Source, dialect: Dialect) {
        if dialect == Dialect::MySql {
            self.text.push('?');
            self.sources.push(source);
            return;
        }
        let known = self.sources.iter().position(|other| *other == source);
        let place = known.unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        });
        self.text.push('$');
        self.text.push_str(&(place + 1).to_string());
    }

    /// Completes a comparison whose column was written last. MySQL finds the row by its index first, and
    /// looks at the bytes then.
    fn same(&mut self, source: Source, dialect: Dialect) {
        self.text.push_str("= ");
        self.placeholder(source, dialect);
        if dialect == Dialect::MySql {
            let before = self.text.trim_end_matches("= ?").trim_end();
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
            let begin = before.trim_end_matches(is_name).len();
            let column = before.get(begin..).unwrap_or_default();
            let bytes = format!(" AND CAST(CONVERT({column} USING utf8mb4) AS BINARY) = ");
            self.text.push_str(&bytes);
            self.placeholder(source, dialect);
        }
    }

    fn list(&mut self, param: usize, params: &[Value<'_>], dialect: Dialect) {
        if dialect != Dialect::MySql {
            self.text.push_str("= ANY(");
            self.placeholder(Source { param, item: None }, dialect);
            self.text.push(')');
            return;
        }
        let length = match params.get(param) {
            Some(Value::Ids(ids)) => ids.len(),
            Some(Value::Texts(texts)) => texts.len(),
            _ => 0,
        };
        if length == 0 {
            self.text.push_str("IN (NULL)");
            return;
        }
        // Lists of similar lengths share one prepared statement: the last item fills up.
        self.text.push_str("IN (");
        for place in 0..length.next_power_of_two() {
            if place > 0 {
                self.text.push(',');
            }
            self.placeholder(Source { param, item: Some(place.min(length - 1)) }, dialect);
        }
        self.text.push(')');
    }
}

/// The index that a placeholder names, counted from 0, and what follows it.
fn number(text: &str) -> (Option<usize>, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, after) = text.split_at(digits);
    (digits.parse::<usize>().ok().map(|number| number.saturating_sub(1)), after)
}

#[cfg(test)]
mod tests {
    use super::super::value::values;
    use super::*;

    fn check(sql: &str, params: &[Value<'_>], postgres: (&str, &[usize]), mysql: (&str, &[usize])) {
        for (dialect, (text, order)) in [(Dialect::Postgres, postgres), (Dialect::MySql, mysql)] {
            let (translated, sources) = translate(sql, params, dialect);

            assert_eq!(translated, text);
            assert_eq!(sources.iter().map(|source| source.param).collect::<Vec<_>>(), order, "{sql}");
        }
    }

    #[test]
    fn placeholders() {
        check("SELECT 1", &[], ("SELECT 1", &[]), ("SELECT 1", &[]));
        check("a = ? AND b = ?", &[], ("a = $1 AND b = $2", &[0, 1]), ("a = ? AND b = ?", &[0, 1]));
        check("VALUES (?1, ?1, ?2)", &[], ("VALUES ($1, $1, $2)", &[0, 1]), ("VALUES (?, ?, ?)", &[0, 0, 1]));
        check("a = ?2 OR b = ?1", &[], ("a = $1 OR b = $2", &[1, 0]), ("a = ? OR b = ?", &[1, 0]));
        check("a = '?' AND b = ?", &[], ("a = '?' AND b = $1", &[0]), ("a = '?' AND b = ?", &[0]));
    }

    #[test]
    fn texts_that_must_be_the_same_are_compared_by_their_bytes() {
        check(
            "a = ?1 AND t.name == ?2 AND b <= ?1",
            &[],
            ("a = $1 AND t.name = $2 AND b <= $1", &[0, 1]),
            (
                "a = ? AND t.name = ? AND CAST(CONVERT(t.name USING utf8mb4) AS BINARY) = ? AND b <= ?",
                &[0, 1, 1, 0],
            ),
        );
        check(
            "+p == ?",
            &[],
            ("+p = $1", &[0]),
            ("+p = ? AND CAST(CONVERT(p USING utf8mb4) AS BINARY) = ?", &[0, 0]),
        );
    }

    #[test]
    fn instants_are_compared_as_what_they_are() {
        let sql = "unixepoch(n.expires_at) < ? AND unique_thing = 1";
        let expected = "(n.expires_at) < $1 AND unique_thing = 1";
        check(sql, &[], (expected, &[0]), (&expected.replace("$1", "?"), &[0]));
    }

    #[test]
    fn lists_are_passed_whole_or_taken_apart() {
        let ids = [7_i64, 8, 9];
        let params = values![&ids[..], 5_i64];
        let sql = "id IN (SELECT value FROM json_each(?1)) AND x > ?2";
        check(
            sql,
            params,
            ("id = ANY($1) AND x > $2", &[0, 1]),
            ("id IN (?,?,?,?) AND x > ?", &[0, 0, 0, 0, 1]),
        );
        let (_, sources) = translate(sql, params, Dialect::MySql);
        let items: Vec<_> = sources.iter().map(|source| source.item).collect();
        assert_eq!(items, [Some(0), Some(1), Some(2), Some(2), None]);
        check(
            "id IN (SELECT value FROM json_each(?))",
            values![&[0_i64; 0][..]],
            ("id = ANY($1)", &[0]),
            ("id IN (NULL)", &[]),
        );
    }
}
