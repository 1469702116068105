//! A tree without a type: what a decoder makes of a text when nobody says what it should be.

use std::collections::BTreeMap;

use super::error::HclError;
use super::tree::{Body, LiteralKind};
use super::view::{self, View};

/// A value of any type.
///
/// Blocks and objects are lists of maps, for they can be repeated.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number with point or exponent.
    Float(f64),
    /// A string or a heredoc.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// Blocks of one key.
    Blocks(Vec<BTreeMap<String, Self>>),
    /// An object in a list.
    Map(BTreeMap<String, Self>),
}

impl Value {
    /// Reads everything that `body` holds.
    ///
    /// # Errors
    ///
    /// A number that does not fit, or a key that is repeated with values that do not go together.
    pub fn of(body: &Body) -> Result<BTreeMap<String, Self>, HclError> {
        map("root", &View::body(body), BTreeMap::new())
    }
}

/// What the value stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Map,
    List,
}

fn map(
    path: &str,
    view: &View<'_>,
    mut into: BTreeMap<String, Value>,
) -> Result<BTreeMap<String, Value>, HclError> {
    for (key, views) in view::by_key(std::slice::from_ref(view), path)? {
        let path = format!("{path}.{key}");
        for view in views {
            let old = into.remove(key);
            into.insert(key.to_owned(), value(&path, &view, old, Within::Map)?);
        }
    }
    Ok(into)
}

/// Decodes into what an earlier value of the same key left, if there was one.
fn value(path: &str, view: &View<'_>, old: Option<Value>, within: Within) -> Result<Value, HclError> {
    let old = match old {
        Some(old) => old,
        None => fresh(path, view, within)?,
    };
    match old {
        Value::Bool(_) => view.bool(path).map(Value::Bool),
        Value::Integer(_) => view.integer(path).map(Value::Integer),
        Value::Float(_) => view.float(path).map(Value::Float),
        Value::Text(_) => view.text(path).map(|text| Value::Text(text.to_owned())),
        Value::List(mut values) => {
            for (index, item) in view.list_items()?.iter().enumerate() {
                values.push(value(&format!("{path}[{index}]"), item, None, Within::List)?);
            }
            Ok(Value::List(values))
        }
        Value::Blocks(mut blocks) => {
            for (index, item) in view.list_items()?.iter().enumerate() {
                blocks.push(map(&format!("{path}[{index}]"), item, BTreeMap::new())?);
            }
            Ok(Value::Blocks(blocks))
        }
        Value::Map(into) => map(path, view, into).map(Value::Map),
    }
}

/// An empty value of the type that `view` looks like.
fn fresh(path: &str, view: &View<'_>, within: Within) -> Result<Value, HclError> {
    match view {
        View::Items(_) | View::Object(..) if within == Within::List => Ok(Value::Map(BTreeMap::new())),
        View::Items(_) | View::Object(..) => Ok(Value::Blocks(Vec::new())),
        View::List(..) => Ok(Value::List(Vec::new())),
        View::Literal(literal) => Ok(match literal.kind {
            LiteralKind::Bool => Value::Bool(false),
            LiteralKind::Float => Value::Float(0.0),
            LiteralKind::Number => Value::Integer(0),
            LiteralKind::Text | LiteralKind::Heredoc => Value::Text(String::new()),
        }),
        View::Entry(_) => {
            Err(HclError::bare(format!("{path}: cannot decode into interface: {}", view.kind())))
        }
    }
}
