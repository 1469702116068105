//! Which of several errors is told.
//!
//! The reference library decodes blocks of one key one after the other, each as a whole; here they are
//! decoded together, field by field. Where they hold more than one value of a wrong type, the first
//! error of the first block that has one is looked for afterwards: that of the body without the blocks
//! behind it.

use super::error::HclError;
use super::tree::{Body, Item, Node};

/// How often a body is decoded anew at most. Files that are that wrong are told another of their errors.
const MOST_TRIES: usize = 200;

/// The error that is told first, of a body that came to `error`. `decode` says what a body comes to.
pub(super) fn first_told(
    body: &Body,
    error: HclError,
    decode: &dyn Fn(&Body) -> Result<(), HclError>,
) -> HclError {
    let mut search = Search { whole: body.clone(), error, decode, tries: MOST_TRIES };
    search.level(&mut Vec::new());
    search.error
}

struct Search<'a> {
    whole: Body,
    error: HclError,
    decode: &'a dyn Fn(&Body) -> Result<(), HclError>,
    tries: usize,
}

impl Search<'_> {
    /// Leaves out of the body at `path` what stands behind the first block that is wrong, then looks into
    /// the blocks that are left.
    fn level(&mut self, path: &mut Vec<usize>) {
        let mut index = 0;
        while let Some(item) = self.items(path).get(index) {
            let name = name(item).to_owned();
            let same = |item: &Item| name.eq_ignore_ascii_case(self::name(item));
            let is_first = !self.items(path).iter().take(index).any(same);
            let count = self.items(path).iter().filter(|item| same(item)).count();
            for kept in 1..if is_first { count } else { 0 } {
                let Some(tries) = self.tries.checked_sub(1) else { return };
                self.tries = tries;
                let shorter = self.with(path, &same, kept);
                let Err(error) = (self.decode)(&shorter) else { continue };
                // What is wrong elsewhere is so without the blocks as well.
                if (self.decode)(&self.with(path, &same, 0)).err().as_ref() != Some(&error) {
                    (self.whole, self.error) = (shorter, error);
                    break;
                }
            }
            index += 1;
        }
        for index in 0..self.items(path).len() {
            path.push(index);
            self.level(path);
            path.pop();
        }
    }

    /// The body with no more than `kept` of the items that are the `same`.
    fn with(&self, path: &[usize], same: &dyn Fn(&Item) -> bool, kept: usize) -> Body {
        let mut shorter = self.whole.clone();
        if let Some(body) = below(&mut shorter, path) {
            let mut seen = 0;
            body.items.retain(|item| {
                seen += usize::from(same(item));
                !same(item) || seen <= kept
            });
        }
        shorter
    }

    fn items(&self, path: &[usize]) -> &[Item] {
        let mut body = &self.whole;
        for index in path {
            match body.items.get(*index).map(|item| &item.value) {
                Some(Node::Object { body: inner, .. }) => body = inner,
                Some(Node::List { .. } | Node::Literal(_)) | None => return &[],
            }
        }
        &body.items
    }
}

fn name(item: &Item) -> &str {
    item.keys.first().map_or("", |key| &key.name)
}

fn below<'a>(body: &'a mut Body, path: &[usize]) -> Option<&'a mut Body> {
    let mut body = body;
    for index in path {
        match &mut body.items.get_mut(*index)?.value {
            Node::Object { body: inner, .. } => body = inner,
            Node::List { .. } | Node::Literal(_) => return None,
        }
    }
    Some(body)
}
