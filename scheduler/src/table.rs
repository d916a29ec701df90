//! Tables by node that nearly every input asks: one look at memory instead of the several that a tree takes, with its keys of 32
//! bytes side by side. In a mesh of thousands that is what a core spends its time with.

use std::hash::{BuildHasherDefault, Hasher};

use indexmap::IndexMap;
use sinew_crdt_state::ids::NodeId;

/// A table by node. Goes through its nodes in the order in which they came, whatever their hashes are.
pub(crate) type Table<V> = IndexMap<NodeId, V, BuildHasherDefault<Prefix>>;

/// The first bytes of an id, which is a public key: they are spread evenly without our help, unless whoever made the keys took care
/// that they are not. Only verified members are in tables, so that one would have to be an admin.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Prefix(u64);

impl Hasher for Prefix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.first_chunk().map_or(self.0, |first| u64::from_le_bytes(*first));
    }

    /// Arrays say how long they are; all are 32 bytes.
    fn write_usize(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_begin_alike_are_told_apart_and_all_go_by_their_order_of_arrival() {
        let id = |first: u8, last: u8| {
            let mut bytes = [first; 32];
            bytes[31] = last;
            NodeId(bytes)
        };
        let ids = [id(9, 1), id(9, 2), id(1, 1), id(200, 0)];
        let mut table: Table<usize> = ids.iter().copied().zip(0..).collect();
        assert!(ids.iter().enumerate().all(|(number, id)| table.get(id) == Some(&number)));
        assert_eq!(table.get(&id(9, 3)), None);
        assert!(table.keys().eq(ids.iter()));
        assert_eq!(table.shift_remove(&id(9, 2)), Some(1));
        assert!(table.keys().eq([ids[0], ids[2], ids[3]].iter()));
    }
}
