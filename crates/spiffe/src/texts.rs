//! Texts that many entries have in common, held once.
//!
//! A million entries name few parents, and few types and values of selectors. Who reads many entries
//! makes their ids and selectors here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::{IdError, Selector, SpiffeId};

/// The texts seen so far. Drop it when all is read: what was made from it stays.
#[derive(Debug, Default)]
pub struct Texts {
    words: HashSet<Arc<str>>,
    /// The type of the last selector: the next is likely to be of the same.
    kind: Option<Arc<str>>,
    ids: HashMap<Arc<str>, SpiffeId>,
}

impl Texts {
    /// A selector, as [`Selector::new`].
    pub fn selector(&mut self, kind: &str, value: &str) -> Selector {
        let kind = match &self.kind {
            Some(last) if **last == *kind => Arc::clone(last),
            _ => {
                let kind = self.word(kind);
                Arc::clone(self.kind.insert(kind))
            }
        };
        Selector::shared(kind, self.word(value))
    }

    /// A SPIFFE ID that is likely to come again.
    ///
    /// # Errors
    /// As [`SpiffeId::parse`].
    pub fn id(&mut self, text: &str) -> Result<SpiffeId, IdError> {
        if let Some(known) = self.ids.get(text) {
            return Ok(known.clone());
        }
        let id = SpiffeId::parse(text)?;
        self.ids.insert(id.text(), id.clone());
        Ok(id)
    }

    fn word(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.words.get(text) {
            return Arc::clone(known);
        }
        let word: Arc<str> = text.into();
        self.words.insert(Arc::clone(&word));
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one() {
        let mut texts = Texts::default();

        let selector = texts.selector("unix", "uid:1");
        let again = texts.selector("unix", "uid:1");
        assert_eq!(selector, Selector::new("unix", "uid:1"));
        assert!(std::ptr::eq(selector.value(), again.value()));

        let id = texts.id("spiffe://example.org/a");
        assert_eq!(id, SpiffeId::parse("spiffe://example.org/a"));
        let again = texts.id("spiffe://example.org/a");
        assert!(std::ptr::eq(id.unwrap().as_str(), again.unwrap().as_str()));
        assert_eq!(texts.id("spiffe://example.org/"), Err(IdError::TrailingSlash));
    }
}
