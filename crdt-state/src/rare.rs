//! What few of very many things have: one pointer where it is not there, and read as if it were, but empty.

use std::ops::{Deref, DerefMut};

/// A value with an empty form that takes no memory of its own.
pub trait Empty: Default + 'static {
    /// The empty form.
    const EMPTY: &'static Self;
}

/// A value that is made when it is first changed.
#[derive(Debug, Clone)]
pub struct Rare<T>(Option<Box<T>>);

impl<T> Rare<T> {
    /// Not there.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// What was changed, if anything was: for changes that are none where nothing is.
    pub fn there(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }

    /// Lets go of it where it is as good as not there.
    pub fn drop_if(&mut self, empty: impl FnOnce(&T) -> bool) {
        if self.0.as_deref().is_some_and(empty) {
            self.0 = None;
        }
    }
}

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Empty> Deref for Rare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::EMPTY)
    }
}

impl<T: Empty> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct List(Vec<u8>);

    impl Empty for List {
        const EMPTY: &'static Self = &Self(Vec::new());
    }

    #[test]
    fn reads_make_nothing_and_changes_do() {
        let mut rare = Rare::<List>::new();
        assert!(rare.deref().0.is_empty() && rare.there().is_none());
        rare.deref_mut().0.push(1);
        assert_eq!(rare.there().map(|list| list.0.len()), Some(1));
        rare.drop_if(|list| list.0.is_empty());
        assert!(rare.there().is_some(), "something is in it");
        rare.drop_if(|list| !list.0.is_empty());
        assert!(rare.there().is_none());
        rare.deref_mut().0.push(2);
        assert_eq!(rare.deref().0, [2]);
    }
}
