//! A tree as a decoder sees it.
//!
//! A key can be repeated, as a block or as a value, and what each occurrence holds goes into the same
//! target one after the other: scalars are replaced, structs and maps filled field by field, lists
//! appended to. So a decoder works on a *sequence* of [`View`]s.

use super::error::{HclError, Position};
use super::number;
use super::tree::{Body, Item, Key, Literal, LiteralKind, Node};

/// Something that can be decoded.
#[derive(Clone, Debug)]
pub(crate) enum View<'a> {
    /// Items that belong together: a file, the insides of an object, blocks of one key.
    Items(Vec<Entry<'a>>),
    /// One item of a list of blocks.
    Entry(Entry<'a>),
    /// An object.
    Object(&'a Body, Option<Position>),
    /// A list.
    List(&'a [Node], Option<Position>),
    /// A value that holds no others.
    Literal(&'a Literal),
}

/// An item, maybe with keys taken off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) keys: &'a [Key],
    pub(crate) item: &'a Item,
}

impl<'a> View<'a> {
    /// The items of a body.
    pub(crate) fn body(body: &'a Body) -> Self {
        Self::Items(entries(body))
    }

    /// A value.
    pub(crate) fn node(node: &'a Node) -> Self {
        match node {
            Node::Object { at, body } => Self::Object(body, *at),
            Node::List { at, nodes } => Self::List(nodes, *at),
            Node::Literal(literal) => Self::Literal(literal),
        }
    }

    /// The value of a field: an object there is its items.
    fn field(node: &'a Node) -> Self {
        match node {
            Node::Object { body, .. } => Self::body(body),
            Node::List { .. } | Node::Literal(_) => Self::node(node),
        }
    }

    /// Where it is.
    pub(crate) fn at(&self) -> Option<Position> {
        match self {
            Self::Items(entries) => entries.first().and_then(Entry::at),
            Self::Entry(entry) => entry.at(),
            Self::Object(_, at) | Self::List(_, at) => *at,
            Self::Literal(literal) => literal.at,
        }
    }

    /// What error texts call it.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Items(_) => "*ast.ObjectList",
            Self::Entry(_) => "*ast.ObjectItem",
            Self::Object(..) => "*ast.ObjectType",
            Self::List(..) => "*ast.ListType",
            Self::Literal(_) => "*ast.LiteralType",
        }
    }

    /// An error at this place.
    pub(crate) fn error(&self, text: impl std::fmt::Display) -> HclError {
        HclError::at(self.at(), text)
    }

    /// The items to fill a struct with.
    pub(crate) fn struct_items(&self, path: &str) -> Result<Vec<Entry<'a>>, HclError> {
        let entry = match self {
            Self::Items(entries) => return Ok(entries.clone()),
            Self::Object(body, _) => return Ok(entries(body)),
            Self::Entry(entry) => entry,
            Self::List(..) | Self::Literal(_) => return Err(self.no_struct(path)),
        };
        match &entry.item.value {
            // An item of JSON that was taken for a block with a label gets its key back.
            _ if entry.keys.len() == 2 => Ok(vec![entry.below(1)]),
            Node::Object { body, .. } => Ok(entries(body)),
            Node::Literal(_) => Ok(vec![*entry]),
            node @ Node::List { .. } => Err(Self::node(node).no_struct(path)),
        }
    }

    /// The items to fill a map with.
    pub(crate) fn map_items(&self, path: &str) -> Result<Vec<Entry<'a>>, HclError> {
        match self {
            Self::Items(entries) => Ok(entries.clone()),
            Self::Object(body, _) => Ok(entries(body)),
            Self::Entry(entry) => Ok(vec![*entry]),
            Self::List(..) | Self::Literal(_) => {
                Err(self.error(format_args!("{path}: not an object type for map ({})", self.kind())))
            }
        }
    }

    /// What to append to a list.
    pub(crate) fn list_items(&self) -> Result<Vec<Self>, HclError> {
        match self {
            Self::Items(entries) => Ok(entries.iter().copied().map(Self::Entry).collect()),
            Self::Object(..) => Ok(vec![self.clone()]),
            Self::List(nodes, _) => Ok(nodes.iter().map(Self::node).collect()),
            Self::Entry(_) | Self::Literal(_) => {
                Err(self.error(format_args!("unknown slice type: {}", self.kind())))
            }
        }
    }

    /// A truth value: a bare word.
    pub(crate) fn bool(&self, path: &str) -> Result<bool, HclError> {
        match self.literal(&[LiteralKind::Bool]) {
            Some(value) => Ok(value == "true"),
            None => Err(self.unknown_type(path)),
        }
    }

    /// A whole number, or a string that holds one.
    pub(crate) fn integer(&self, path: &str) -> Result<i64, HclError> {
        match self.literal(&[LiteralKind::Number, LiteralKind::Text]) {
            Some(value) => number::integer(value),
            None => Err(self.unknown_type(path)),
        }
    }

    /// A number.
    pub(crate) fn float(&self, path: &str) -> Result<f64, HclError> {
        match self.literal(&[LiteralKind::Number, LiteralKind::Float]) {
            Some(value) => number::float(value),
            None => Err(self.unknown_type(path)),
        }
    }

    /// A string, or a whole number as it is written.
    pub(crate) fn text(&self, path: &str) -> Result<&'a str, HclError> {
        let kinds = [LiteralKind::Text, LiteralKind::Heredoc, LiteralKind::Number];
        self.literal(&kinds)
            .ok_or_else(|| self.error(format_args!("{path}: unknown type for string {}", self.kind())))
    }

    fn literal(&self, kinds: &[LiteralKind]) -> Option<&'a str> {
        let Self::Literal(literal) = self else { return None };
        kinds.contains(&literal.kind).then_some(literal.value.as_str())
    }

    fn unknown_type(&self, path: &str) -> HclError {
        self.error(format_args!("{path}: unknown type {}", self.kind()))
    }

    fn no_struct(&self, path: &str) -> HclError {
        self.error(format_args!("{path}: not an object type for struct ({})", self.kind()))
    }
}

impl<'a> Entry<'a> {
    fn at(&self) -> Option<Position> {
        self.keys.first().and_then(|key| key.at)
    }

    /// The same item without its first keys.
    fn below(&self, count: usize) -> Self {
        Self { keys: self.keys.get(count..).unwrap_or_default(), item: self.item }
    }
}

/// The items of a body.
pub(crate) fn entries(body: &Body) -> Vec<Entry<'_>> {
    body.items.iter().map(|item| Entry { keys: &item.keys, item }).collect()
}

/// What goes into field `name`: first the blocks with labels, then each value. Case is no matter.
pub(crate) fn field<'a>(items: &[Entry<'a>], name: &str) -> Vec<View<'a>> {
    let matching =
        || items.iter().filter(|entry| entry.keys.first().is_some_and(|key| same(&key.name, name)));
    let labelled: Vec<_> =
        matching().map(|entry| entry.below(1)).filter(|entry| !entry.keys.is_empty()).collect();
    let values = matching().filter(|entry| entry.keys.len() == 1).map(|entry| View::field(&entry.item.value));
    let labelled = (!labelled.is_empty()).then_some(View::Items(labelled));
    labelled.into_iter().chain(values).collect()
}

/// Every key and what goes into it, in the order of first appearance. Case matters.
pub(crate) fn by_key<'a>(views: &[View<'a>], path: &str) -> Result<Vec<(&'a str, Vec<View<'a>>)>, HclError> {
    let mut found: Vec<(&str, Vec<View<'_>>)> = Vec::new();
    for view in views {
        let items = view.map_items(path)?;
        let mut done: Vec<&str> = Vec::new();
        for entry in &items {
            let Some(key) = entry.keys.first() else {
                let place = items.first().and_then(Entry::at);
                return Err(HclError::at(place, format_args!("{path}: map must have string keys")));
            };
            if done.contains(&key.name.as_str()) {
                continue;
            }
            let value = if entry.keys.len() > 1 {
                done.push(&key.name);
                let same_key =
                    items.iter().filter(|other| other.keys.first().is_some_and(|k| same(&k.name, &key.name)));
                View::Items(same_key.map(|other| other.below(1)).collect())
            } else {
                View::node(&entry.item.value)
            };
            match found.iter_mut().find(|(name, _)| *name == key.name) {
                Some((_, values)) => values.push(value),
                None => found.push((&key.name, vec![value])),
            }
        }
    }
    Ok(found)
}

/// The keys of `items` that are none of `known`, each once, sorted.
pub(crate) fn unused(items: &[Entry<'_>], known: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (index, entry) in items.iter().enumerate() {
        // Labels count only on the first item: that is what the reference library does.
        if index > 0 && entry.keys.len() > 1 {
            continue;
        }
        let keys = entry.keys.iter().filter(|key| key.noticed);
        names.extend(
            keys.map(|key| key.name.clone()).filter(|name| !known.iter().any(|known| same(name, known))),
        );
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether two names differ in nothing but case.
pub(crate) fn same(left: &str, right: &str) -> bool {
    left == right || left.chars().map(fold).eq(right.chars().map(fold))
}

fn fold(character: char) -> char {
    match character {
        // The two letters beyond ASCII that fold to ASCII.
        '\u{212A}' => 'k',
        '\u{017F}' => 's',
        _ => character.to_lowercase().next().unwrap_or(character),
    }
}
