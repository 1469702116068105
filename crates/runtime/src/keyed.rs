//! Values by key, each for as long as somebody holds it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// When there are so many, those that nobody holds any more are cleared away.
const MANY: usize = 64;

/// One value for each key, made for the first who asks and shared with all who ask while it is held.
#[derive(Debug)]
pub struct Keyed<K, V>(Mutex<Held<K, V>>);

#[derive(Debug)]
struct Held<K, V> {
    values: HashMap<K, Weak<V>>,
    /// How many there may be before it is looked for those that are gone.
    room: usize,
}

impl<K: Eq + Hash, V> Keyed<K, V> {
    /// The value of this key, or a new one if nobody holds one.
    pub fn get_or_insert_with(&self, key: K, new: impl FnOnce() -> V) -> Arc<V> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = held.values.get(&key).and_then(Weak::upgrade) {
            return value;
        }
        if held.values.len() >= held.room {
            held.values.retain(|_, value| value.strong_count() > 0);
            held.room = MANY.max(2 * held.values.len());
        }
        let value = Arc::new(new());
        held.values.insert(key, Arc::downgrade(&value));
        value
    }
}

impl<K, V> Default for Keyed<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Held { values: HashMap::new(), room: MANY }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_shared_while_it_is_held_and_made_anew_afterwards() {
        let keyed = Keyed::default();
        let first = keyed.get_or_insert_with(7, || "first");

        assert_eq!(*keyed.get_or_insert_with(7, || "second"), "first");
        assert_eq!(*keyed.get_or_insert_with(8, || "other"), "other");

        drop(first);
        assert_eq!(*keyed.get_or_insert_with(7, || "second"), "second");
    }

    #[test]
    fn values_that_nobody_holds_make_room() {
        let keyed = Keyed::default();
        let held: Vec<_> = (0..10).map(|key| keyed.get_or_insert_with(key, || key)).collect();

        for key in 10..10_000 {
            keyed.get_or_insert_with(key, || key);
        }

        assert!(keyed.0.lock().unwrap().values.len() <= MANY);
        assert!(held.iter().all(|value| Arc::ptr_eq(value, &keyed.get_or_insert_with(**value, || 0))));
    }
}
