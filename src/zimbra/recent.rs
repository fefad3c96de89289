//! A map of what was used lately: it forgets what several analyses in a row did not use.

use std::collections::HashMap;
use std::hash::Hash;

/// Analyses after which an unused entry is forgotten. Two snapshots that are compared may have two trees each.
const KEPT_FOR: u32 = 4;

/// A map of which old entries are forgotten.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    entries: HashMap<K, Entry<V>>,
    now: u32,
}

#[derive(Debug)]
struct Entry<V> {
    /// The analysis that used it last.
    used: u32,
    /// How many runs of the program ago it was of use; 0 is this run.
    age: u32,
    value: V,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Recent<K, V> {
        Recent { entries: HashMap::new(), now: 0 }
    }
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// Begins another analysis.
    pub(super) fn age(&mut self) {
        self.now += 1;
        let now = self.now;
        self.entries.retain(|_, entry| now - entry.used <= KEPT_FOR);
    }

    /// Returns what is known under a key, which is of use now.
    pub(super) fn get(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.get_mut(key)?;
        (entry.used, entry.age) = (self.now, 0);
        Some(entry.value.clone())
    }

    /// Remembers something that was of use in an earlier run, so many runs ago.
    pub(super) fn remember(&mut self, key: K, value: V, age: u32) {
        self.entries.insert(key, Entry { used: self.now, age: age.saturating_add(1), value });
    }

    /// Returns all that is remembered, with how many runs ago it was of use.
    pub(super) fn all(&self) -> impl Iterator<Item = (&K, u32, &V)> {
        self.entries.iter().map(|(key, entry)| (key, entry.age, &entry.value))
    }

    /// Remembers something.
    pub(super) fn insert(&mut self, key: K, value: V) {
        self.entries.insert(key, Entry { used: self.now, age: 0, value });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_used_is_forgotten() {
        let mut map = Recent::default();
        map.insert(1, "kept");
        map.insert(2, "forgotten");
        for _ in 0..=KEPT_FOR {
            map.age();
            assert_eq!(map.get(&1), Some("kept"));
        }
        assert_eq!(map.get(&2), None);
    }
}
