//! Who is who: what nearly every event asks about nodes, kept apart from the nodes, which are large and far apart in memory.

use sinew_crdt_state::ids::NodeId;

use crate::lookup::Lookup;
use crate::queue::{Index, Life};

#[derive(Debug, Default)]
pub(crate) struct Roll {
    ids: Vec<NodeId>,
    /// Counts up with every start and every end of a node's process.
    incarnations: Vec<u64>,
    /// By the first eight bytes of the id.
    by_id: Lookup<Index>,
}

impl Roll {
    /// The next node.
    ///
    /// # Panics
    /// When an id begins as another one's does, which chance does not bring about.
    pub(crate) fn add(&mut self, id: NodeId) -> Index {
        let node = self.ids.len();
        let taken = self.by_id.insert(short(id), node);
        assert!(taken.is_none(), "two nodes with ids that begin with the same eight bytes");
        self.ids.push(id);
        self.incarnations.push(0);
        node
    }

    pub(crate) fn id(&self, node: Index) -> NodeId {
        self.ids[node]
    }

    pub(crate) fn index_of(&self, id: NodeId) -> Option<Index> {
        self.by_id.get(&short(id)).copied().filter(|node| self.ids[*node] == id)
    }

    pub(crate) fn life(&self, node: Index) -> Life {
        Life { node, incarnation: self.incarnations[node] }
    }

    pub(crate) fn is_current(&self, life: Life) -> bool {
        self.incarnations[life.node] == life.incarnation
    }

    /// What is meant for the node as it was is void from here on.
    pub(crate) fn begin_life(&mut self, node: Index) -> u64 {
        self.incarnations[node] += 1;
        self.incarnations[node]
    }
}

fn short(id: NodeId) -> u64 {
    id.0.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
