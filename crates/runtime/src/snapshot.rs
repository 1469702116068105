//! State that many read and one replaces.
//!
//! Readers take the current value without a lock and keep it as long as they like; the one
//! [`Publisher`] puts the next in its place. Do not hold a loaded value across a slow await: it keeps
//! the old state alive.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

/// The reading side. Cheap to clone.
pub struct Snapshot<T> {
    value: Arc<ArcSwap<T>>,
    version: watch::Receiver<u64>,
}

impl<T> Snapshot<T> {
    /// A value that nobody will replace.
    #[must_use]
    pub fn fixed(value: T) -> Self {
        Publisher::new(value).snapshot()
    }

    /// The current value.
    #[must_use]
    pub fn load(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Changes with every value that is published from now on.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        let mut version = self.version.clone();
        version.mark_unchanged();
        version
    }
}

impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), version: self.version.clone() }
    }
}

/// The writing side. There is one.
pub struct Publisher<T> {
    value: Arc<ArcSwap<T>>,
    version: watch::Sender<u64>,
}

impl<T> Publisher<T> {
    /// A publisher whose first value is `value`.
    #[must_use]
    pub fn new(value: T) -> Self {
        let (version, _) = watch::channel(0);
        Self { value: Arc::new(ArcSwap::from_pointee(value)), version }
    }

    /// The current value.
    #[must_use]
    pub fn load(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Replaces the value and tells whoever waits.
    pub fn publish(&self, value: Arc<T>) {
        self.value.store(value);
        self.version.send_modify(|version| *version += 1);
    }

    /// A reader.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<T> {
        Snapshot { value: Arc::clone(&self.value), version: self.version.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_see_the_last_value_and_wake() {
        let publisher = Publisher::new(1);
        let snapshot = publisher.snapshot();
        let before = snapshot.load();
        let mut changed = snapshot.changed();
        assert!(!changed.has_changed().unwrap());

        publisher.publish(Arc::new(2));

        changed.changed().await.unwrap();
        assert_eq!((*before, *snapshot.load()), (1, 2));
    }

    #[tokio::test]
    async fn the_last_value_outlives_its_publisher() {
        let snapshot = Snapshot::fixed("last");

        snapshot.changed().changed().await.unwrap_err();

        assert_eq!(*snapshot.load(), "last");
    }
}
