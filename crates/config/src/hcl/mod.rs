//! HCL, version 1, and JSON as its reader takes it.
//!
//! This is the language of SPIRE's configuration files, read as the library `hashicorp/hcl` of major
//! version 1 reads it: same trees, same weak typing, same refusals at the same places. It is not HCL 2:
//! there are no expressions, and `${..}` in a string is text. [`parse()`] gives a [`Body`] with places,
//! [`from_str`] decodes a text into any type that serde knows, [`Value`] into none in particular.
//!
//! Reading is bounded: texts of more than [`MAX_SIZE`] bytes and values nested more than [`MAX_DEPTH`]
//! deep are refused. Unlike the library, no text makes it panic.

mod cursor;
mod de;
mod env;
mod error;
mod json;
mod number;
mod order;
mod parse;
mod quote;
mod render;
mod scan;
mod token;
mod tree;
mod value;
pub(crate) mod view;

use serde::de::DeserializeOwned;

pub use self::de::{Kept, UnusedKeys};
pub use self::env::expand_env;
pub use self::error::{HclError, Position};
pub use self::tree::Body;
pub(crate) use self::tree::Node;
pub use self::value::Value;

/// The longest text that is read.
pub const MAX_SIZE: usize = 16 << 20;
/// How deep values may be nested.
pub const MAX_DEPTH: usize = 200;

/// Parses a text: JSON where its first character is a brace, else HCL.
///
/// # Errors
///
/// What is wrong and where, in the reference library's words.
pub fn parse(text: &[u8]) -> Result<Body, HclError> {
    if text.len() > MAX_SIZE {
        return Err(HclError::bare(format!("text is longer than {MAX_SIZE} bytes")));
    }
    // Damaged text is read by the HCL scanner, which says where the damage is.
    let start = text.utf8_chunks().next().map_or("", |chunk| chunk.valid()).trim_start();
    if start.starts_with('{') { json::parse(text) } else { parse::parse(text) }
}

/// Parses a text and decodes it.
///
/// # Errors
///
/// A text that does not parse, or a value of the wrong type.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, HclError> {
    from_body(&parse(text.as_bytes())?)
}

/// Decodes what [`parse()`] gave.
///
/// # Errors
///
/// A value of the wrong type.
pub fn from_body<T: DeserializeOwned>(body: &Body) -> Result<T, HclError> {
    let decode = |body: &Body| from_view(view::View::body(body));
    decode(body).map_err(|error| order::first_told(body, error, &|body| decode(body).map(|_: T| ())))
}

/// Decodes a part of what [`parse()`] gave.
pub(crate) fn from_view<T: DeserializeOwned>(view: view::View<'_>) -> Result<T, HclError> {
    T::deserialize(de::TreeDeserializer::new(vec![view], "root".to_owned()))
}

impl Body {
    /// The body as HCL text, without its comments.
    #[must_use]
    pub fn to_hcl(&self) -> String {
        render::text(self)
    }
}

fn too_deep(at: Option<Position>) -> HclError {
    HclError::at(at, format_args!("values are nested more than {MAX_DEPTH} deep"))
}
