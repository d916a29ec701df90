//! The facts of one entry, in the order of their ids. Most entries have few, and there are many entries: those take the room of
//! what they hold, where a tree would keep room for a dozen.

use std::collections::BTreeMap;

use crate::envelope::Envelope;
use crate::ids::FactId;

/// Above this a list costs more than a tree: it moves half of what it holds for each fact that comes.
const FEW: usize = 16;

/// Facts by id.
#[derive(Debug, Clone)]
pub struct Facts(Held);

#[derive(Debug, Clone)]
enum Held {
    /// Sorted.
    Few(Vec<(FactId, Envelope)>),
    Many(BTreeMap<FactId, Envelope>),
}

impl Default for Facts {
    fn default() -> Self {
        Self(Held::Few(Vec::new()))
    }
}

impl Facts {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Held::Few(list) => list.len(),
            Held::Many(tree) => tree.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One fact.
    #[must_use]
    pub fn get(&self, id: &FactId) -> Option<&Envelope> {
        match &self.0 {
            Held::Few(list) => list.binary_search_by_key(id, |(id, _)| *id).ok().map(|at| &list[at].1),
            Held::Many(tree) => tree.get(id),
        }
    }

    /// One fact, to be replaced by another form of itself.
    pub fn get_mut(&mut self, id: &FactId) -> Option<&mut Envelope> {
        match &mut self.0 {
            Held::Few(list) => list.binary_search_by_key(id, |(id, _)| *id).ok().map(|at| &mut list[at].1),
            Held::Many(tree) => tree.get_mut(id),
        }
    }

    /// Whether it is there.
    #[must_use]
    pub fn contains_key(&self, id: &FactId) -> bool {
        self.get(id).is_some()
    }

    /// Adds a fact, or replaces it.
    pub fn insert(&mut self, id: FactId, envelope: Envelope) {
        match &mut self.0 {
            Held::Few(list) => match list.binary_search_by_key(&id, |(id, _)| *id) {
                Ok(at) => list[at].1 = envelope,
                Err(at) if list.len() < FEW => {
                    list.reserve_exact(1);
                    list.insert(at, (id, envelope));
                }
                Err(_) => {
                    let mut tree: BTreeMap<FactId, Envelope> = std::mem::take(list).into_iter().collect();
                    tree.insert(id, envelope);
                    self.0 = Held::Many(tree);
                }
            },
            Held::Many(tree) => _ = tree.insert(id, envelope),
        }
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&FactId, &Envelope)> {
        let (list, tree) = match &self.0 {
            Held::Few(list) => (Some(list), None),
            Held::Many(tree) => (None, Some(tree)),
        };
        let listed = list.into_iter().flatten().map(|(id, envelope)| (id, envelope));
        listed.chain(tree.into_iter().flatten())
    }

    /// The envelopes, in the order of their ids.
    pub fn values(&self) -> impl Iterator<Item = &Envelope> {
        self.iter().map(|(_, envelope)| envelope)
    }

    /// Their ids, in order.
    pub fn keys(&self) -> impl Iterator<Item = &FactId> {
        self.iter().map(|(id, _)| id)
    }
}

impl Extend<(FactId, Envelope)> for Facts {
    fn extend<I: IntoIterator<Item = (FactId, Envelope)>>(&mut self, facts: I) {
        facts.into_iter().for_each(|(id, envelope)| self.insert(id, envelope));
    }
}

impl FromIterator<(FactId, Envelope)> for Facts {
    fn from_iter<I: IntoIterator<Item = (FactId, Envelope)>>(facts: I) -> Self {
        let mut all = Self::default();
        all.extend(facts);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Signature;
    use crate::ids::{JobId, NodeId};

    #[test]
    fn few_and_many_are_found_in_the_order_of_their_ids() {
        let id = |n: u8| FactId([n; 32]);
        let envelope = |n: u8| Envelope {
            entry: JobId([0; 32]),
            author: NodeId([n; 32]),
            payload: vec![n],
            sides: 0,
            path: Vec::new(),
            signature: Signature([0; 64]),
        };
        let mut facts = Facts::default();
        assert!(facts.is_empty());
        for count in 1..=40_u8 {
            let n = count.wrapping_mul(101);
            facts.insert(id(n), envelope(n));
            facts.insert(id(n), envelope(n));
            assert_eq!(facts.len(), usize::from(count), "twice the same is once");
            assert!(facts.contains_key(&id(n)) && !facts.contains_key(&id(0)));
            assert!(facts.keys().is_sorted());
        }
        facts.get_mut(&id(101)).unwrap().payload = vec![7, 7];
        assert_eq!(facts.get(&id(101)).unwrap().payload, [7, 7]);
        assert!(facts.iter().all(|(id, envelope)| id.0[0] == envelope.author.0[0]));
    }
}
