//! A tree to any type, by serde, with the format's weak typing.
//!
//! A number may be given as a string and a string as a number; a single object does for a list of
//! them; blocks with labels are maps; names of fields match in any case; what is repeated is merged.
//! Truth values must be bare words.

use serde::de::value::{SeqDeserializer, StringDeserializer};
use serde::de::{
    DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

use super::error::HclError;
use super::render;
use super::tree::LiteralKind;
use super::view::{self, Entry, View};

/// The field that gets the keys nobody asked for; see [`UnusedKeys`].
const UNUSED: &str = "$unused";
/// The name that marks a value to be kept as text; see [`Kept`].
const KEPT: &str = "$kept";

/// The keys of a struct's part of the file that the struct does not know, sorted.
///
/// A field of this type is named by `#[serde(rename = "$unused", default)]`. Where a block is repeated,
/// only the last block that has any counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct UnusedKeys(pub Vec<String>);

/// A part of the file that is decoded later, as HCL text. Where the key is repeated, the first counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The items of an object or of blocks with labels: how many, and their text.
    Items(usize, String),
    /// Any other value.
    Other(String),
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = Kept;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a part of a configuration")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Kept, D::Error> {
                let (count, text) = <(Option<usize>, String)>::deserialize(deserializer)?;
                Ok(match count {
                    Some(count) => Kept::Items(count, text),
                    None => Kept::Other(text),
                })
            }
        }

        deserializer.deserialize_newtype_struct(KEPT, Texts)
    }
}

/// Decodes a sequence of views into one value.
#[derive(Debug)]
pub(crate) struct TreeDeserializer<'a> {
    views: Vec<View<'a>>,
    path: String,
}

impl<'a> TreeDeserializer<'a> {
    /// The fields of a struct that knows these: apart, as all structs have this in common.
    fn fields(self, known: &[&str]) -> Result<Fields<'a>, HclError> {
        let mut blocks: Vec<Vec<Entry<'_>>> = Vec::with_capacity(self.views.len());
        for view in &self.views {
            blocks.push(view.struct_items(&self.path)?);
        }
        let mut fields = Vec::new();
        for name in known {
            let views: Vec<_> = blocks.iter().flat_map(|items| view::field(items, name)).collect();
            if !views.is_empty() {
                fields.push(((*name).to_owned(), Field::Views(views)));
            }
        }
        if known.contains(&UNUSED) {
            let unused = blocks.iter().map(|items| view::unused(items, known)).rfind(|keys| !keys.is_empty());
            fields.push((UNUSED.to_owned(), Field::Names(unused.unwrap_or_default())));
        }
        Ok(Fields::new(fields, self.path))
    }

    pub(crate) const fn new(views: Vec<View<'a>>, path: String) -> Self {
        Self { views, path }
    }

    /// Reads every view as a scalar; the last counts.
    fn scalar<T>(&self, read: impl Fn(&str, &View<'a>) -> Result<T, HclError>) -> Result<T, HclError> {
        let mut value = Err(HclError::bare(format!("{}: nothing to decode", self.path)));
        for view in &self.views {
            value = Ok(read(&self.path, view)?);
        }
        value
    }

    fn text(&self) -> Result<&'a str, HclError> {
        self.scalar(|path, view| view.text(path))
    }

    fn kept(&self) -> Result<Kept, HclError> {
        for view in self.views.iter().skip(1) {
            view.struct_items(&self.path)?;
        }
        Ok(match self.views.first() {
            None => Kept::Items(0, String::new()),
            Some(View::Items(entries)) => Kept::Items(entries.len(), render::entries(entries)),
            Some(View::Entry(entry)) => Kept::Items(1, render::entries(std::slice::from_ref(entry))),
            Some(View::Object(body, _)) => Kept::Items(body.items.len(), render::body(body)),
            Some(View::List(nodes, at)) => Kept::Other(render::list(*at, nodes)),
            Some(View::Literal(literal)) => Kept::Other(literal.written.clone()),
        })
    }
}

impl<'de> Deserializer<'de> for TreeDeserializer<'_> {
    type Error = HclError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        match self.views.last() {
            Some(View::Literal(literal)) => match literal.kind {
                LiteralKind::Bool => self.deserialize_bool(visitor),
                LiteralKind::Number => self.deserialize_i64(visitor),
                LiteralKind::Float => self.deserialize_f64(visitor),
                LiteralKind::Text | LiteralKind::Heredoc => self.deserialize_string(visitor),
            },
            Some(View::List(..)) => self.deserialize_seq(visitor),
            Some(View::Items(_) | View::Entry(_) | View::Object(..)) => self.deserialize_map(visitor),
            None => visitor.visit_unit(),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        visitor.visit_bool(self.scalar(|path, view| view.bool(path))?)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        visitor.visit_i64(self.scalar(|path, view| view.integer(path))?)
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        self.deserialize_i64(visitor)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        visitor.visit_f64(self.scalar(|path, view| view.float(path))?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        visitor.visit_string(self.text()?.to_owned())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, HclError> {
        if name != KEPT {
            return visitor.visit_newtype_struct(self);
        }
        visitor.visit_newtype_struct(KeptDeserializer(self.kept()?))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        let mut items = Vec::new();
        for view in &self.views {
            items.extend(view.list_items()?.into_iter().enumerate());
        }
        visitor.visit_seq(Items { items: items.into_iter(), path: self.path })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, HclError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        let fields = view::by_key(&self.views, &self.path)?
            .into_iter()
            .map(|(key, views)| (key.to_owned(), Field::Views(views)))
            .collect::<Vec<_>>();
        visitor.visit_map(Fields::new(fields, self.path))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, HclError> {
        visitor.visit_map(self.fields(known)?)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, HclError> {
        visitor.visit_enum(Word(self.text()?.to_owned()))
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        char bytes byte_buf unit_struct tuple_struct identifier
    }
}

/// What a field is filled from.
enum Field<'a> {
    Views(Vec<View<'a>>),
    Names(Vec<String>),
}

struct Fields<'a> {
    fields: std::vec::IntoIter<(String, Field<'a>)>,
    path: String,
    value: Option<(String, Field<'a>)>,
}

impl<'a> Fields<'a> {
    fn new(fields: Vec<(String, Field<'a>)>, path: String) -> Self {
        Self { fields: fields.into_iter(), path, value: None }
    }
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = HclError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, HclError> {
        let Some((name, field)) = self.fields.next() else { return Ok(None) };
        let key: StringDeserializer<HclError> = name.clone().into_deserializer();
        self.value = Some((name, field));
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, HclError> {
        match self.value.take() {
            Some((name, Field::Views(views))) => {
                seed.deserialize(TreeDeserializer::new(views, format!("{}.{name}", self.path)))
            }
            Some((_, Field::Names(names))) => seed.deserialize(Names(names)),
            None => Err(HclError::bare("a value was asked for before its key")),
        }
    }
}

/// The keys that nobody knows: a list, and nothing else. A deserializer that could be more would have code
/// for it in each struct.
struct Names(Vec<String>);

impl<'de> Deserializer<'de> for Names {
    type Error = HclError;

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        visitor.visit_seq(SeqDeserializer::new(self.0.into_iter()))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, HclError> {
        Err(HclError::bare("unknown keys are a list"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Items<'a> {
    items: std::vec::IntoIter<(usize, View<'a>)>,
    path: String,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = HclError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, HclError> {
        let Some((index, view)) = self.items.next() else { return Ok(None) };
        seed.deserialize(TreeDeserializer::new(vec![view], format!("{}[{index}]", self.path))).map(Some)
    }
}

/// An enum's variant, as a string.
struct Word(String);

impl<'de> EnumAccess<'de> for Word {
    type Error = HclError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), HclError> {
        let name: StringDeserializer<HclError> = self.0.clone().into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word {
    type Error = HclError;

    fn unit_variant(self) -> Result<(), HclError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, HclError> {
        Err(HclError::bare(format!("{:?} has no value", self.0)))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, HclError> {
        Err(HclError::bare(format!("{:?} has no values", self.0)))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, HclError> {
        Err(HclError::bare(format!("{:?} has no fields", self.0)))
    }
}

/// Hands a [`Kept`] through serde, as a count and a text.
struct KeptDeserializer(Kept);

impl<'de> Deserializer<'de> for KeptDeserializer {
    type Error = HclError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        let (count, text) = match self.0 {
            Kept::Items(count, text) => (Some(count), text),
            Kept::Other(text) => (None, text),
        };
        visitor.visit_seq(KeptParts { count: Some(count), text })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct KeptParts {
    count: Option<Option<usize>>,
    text: String,
}

impl<'de> SeqAccess<'de> for KeptParts {
    type Error = HclError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, HclError> {
        match self.count.take() {
            Some(count) => seed.deserialize(MaybeCount(count)).map(Some),
            None => {
                let text: StringDeserializer<HclError> = std::mem::take(&mut self.text).into_deserializer();
                seed.deserialize(text).map(Some)
            }
        }
    }
}

struct MaybeCount(Option<usize>);

impl<'de> Deserializer<'de> for MaybeCount {
    type Error = HclError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, HclError> {
        match self.0 {
            Some(count) => visitor.visit_some(count.into_deserializer()),
            None => visitor.visit_none(),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
