//! The Merkle tree of RFC 6962: heads, and proofs about them. Pure.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Hash of a leaf, of an inner node or of a whole tree. Its text form is base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Wraps the 32 bytes that SHA-256 returned.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads standard base64 with padding.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Hash(bytes)
}

/// Hash of an entry as a leaf.
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Hash {
    sha256(&[&[0], entry])
}

/// Hash of an inner node.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], &left.0, &right.0])
}

/// The right edge of a tree: the roots of the complete subtrees that it is made of,
/// largest first. All that is needed to add leaves, and to prove anything about leaves
/// that come behind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    nodes: Vec<Hash>,
}

impl Frontier {
    /// The edge of the tree with `size` leaves; `None` if another number of nodes belongs
    /// to that size.
    #[must_use]
    pub fn from_parts(size: u64, nodes: Vec<Hash>) -> Option<Self> {
        (nodes.len() == size.count_ones() as usize).then_some(Self { size, nodes })
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The subtree roots, largest subtree first.
    #[must_use]
    pub fn nodes(&self) -> &[Hash] {
        &self.nodes
    }

    /// Adds a leaf.
    pub fn append(&mut self, leaf: Hash) {
        let mut node = leaf;
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.nodes.pop() else { break };
            node = node_hash(&left, &node);
        }
        self.nodes.push(node);
        self.size += 1;
    }

    /// The tree's head.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut nodes = self.nodes.iter().rev();
        let Some(last) = nodes.next() else { return sha256(&[]) };
        nodes.fold(*last, |right, left| node_hash(left, &right))
    }

    /// Root of the complete subtree over exactly the leaves `from..to`, if it is one of
    /// the nodes.
    fn node(&self, from: u64, to: u64) -> Option<Hash> {
        let mut start = 0;
        let bits =
            (0..u64::BITS).rev().map(|bit| 1_u64 << bit).filter(|width| self.size & width != 0);
        for (width, node) in bits.zip(&self.nodes) {
            if (start, start + width) == (from, to) {
                return Some(*node);
            }
            start += width;
        }
        None
    }
}

/// The part of a tree that is still there: the edge of what came before, and the leaves
/// behind it.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    base: Frontier,
    leaves: Vec<Hash>,
}

impl Tree {
    /// A tree of which everything up to `base` is gone.
    #[must_use]
    pub fn new(base: Frontier) -> Self {
        Self { base, leaves: Vec::new() }
    }

    /// Adds a leaf.
    pub fn append(&mut self, leaf: Hash) {
        self.leaves.push(leaf);
    }

    /// Number of leaves, those that are gone included.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.base.size + self.leaves.len() as u64
    }

    /// Head of the tree when it had `size` leaves; `None` if that is not known any more,
    /// or not yet.
    #[must_use]
    pub fn root(&self, size: u64) -> Option<Hash> {
        match size {
            0 => Some(Frontier::default().root()),
            _ if size <= self.size() => self.range(0, size),
            _ => None,
        }
    }

    /// Proof that leaf `index` is in the tree of `size` leaves: the sibling hashes from
    /// the leaf up. `None` if the leaf is not there, or gone.
    #[must_use]
    pub fn inclusion(&self, index: u64, size: u64) -> Option<Vec<Hash>> {
        if index < self.base.size || index >= size || size > self.size() {
            return None;
        }
        let (mut from, mut to) = (0, size);
        let mut proof = Vec::new();
        while to - from > 1 {
            let middle = from + split(to - from);
            if index < middle {
                proof.push(self.range(middle, to)?);
                to = middle;
            } else {
                proof.push(self.range(from, middle)?);
                from = middle;
            }
        }
        proof.reverse();
        Some(proof)
    }

    /// Proof that the tree of `old` leaves is a prefix of that of `new`. `None` if either
    /// is not known.
    #[must_use]
    pub fn consistency(&self, old: u64, new: u64) -> Option<Vec<Hash>> {
        if old > new || new > self.size() || (old != 0 && old < self.base.size) {
            return None;
        }
        let mut proof = Vec::new();
        if old == 0 || old == new {
            return Some(proof);
        }
        let (mut from, mut to) = (0, new);
        // Whether the old tree's own head is among what the verifier has already.
        let mut known = true;
        while old != to {
            let middle = from + split(to - from);
            if old <= middle {
                proof.push(self.range(middle, to)?);
                to = middle;
            } else {
                proof.push(self.range(from, middle)?);
                from = middle;
                known = false;
            }
        }
        if !known {
            proof.push(self.range(from, to)?);
        }
        proof.reverse();
        Some(proof)
    }

    fn range(&self, from: u64, to: u64) -> Option<Hash> {
        if to <= self.base.size
            && let Some(node) = self.base.node(from, to)
        {
            return Some(node);
        }
        if to - from == 1 {
            let place = usize::try_from(from.checked_sub(self.base.size)?).ok()?;
            return self.leaves.get(place).copied();
        }
        let middle = from + split(to - from);
        Some(node_hash(&self.range(from, middle)?, &self.range(middle, to)?))
    }
}

/// Largest power of two below `count`, which is at least 2.
fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// Returns true if `proof` shows that `leaf` is leaf `index` of the tree of `size` leaves
/// with this `root`.
#[must_use]
pub fn verify_inclusion(leaf: Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut node) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            node = node_hash(sibling, &node);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            node = node_hash(&node, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && node == *root
}

/// Returns true if `proof` shows that the tree `old` (size and head) is a prefix of the
/// tree `new`.
#[must_use]
pub fn verify_consistency(old: (u64, &Hash), new: (u64, &Hash), proof: &[Hash]) -> bool {
    let ((old_size, old_root), (new_size, new_root)) = (old, new);
    if old_size > new_size {
        return false;
    }
    if old_size == new_size {
        return proof.is_empty() && old_root == new_root;
    }
    if old_size == 0 {
        return proof.is_empty() && *old_root == Frontier::default().root();
    }
    let (mut at, mut last) = (old_size - 1, new_size - 1);
    let shift = at.trailing_ones();
    at >>= shift;
    last >>= shift;
    let mut rest = proof.iter();
    let first = if old_size.is_power_of_two() { Some(old_root) } else { rest.next() };
    let Some(first) = first else { return false };
    let (mut old_node, mut new_node) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            old_node = node_hash(sibling, &old_node);
            new_node = node_hash(sibling, &new_node);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            new_node = node_hash(&new_node, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && old_node == *old_root && new_node == *new_root
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(|number| leaf_hash(&number.to_be_bytes())).collect()
    }

    fn tree(count: u64, gone: u64) -> Tree {
        let mut base = Frontier::default();
        let leaves = leaves(count);
        let (before, after) = leaves.split_at(usize::try_from(gone).unwrap());
        before.iter().for_each(|leaf| base.append(*leaf));
        let mut tree = Tree::new(base);
        after.iter().for_each(|leaf| tree.append(*leaf));
        tree
    }

    /// The definition in RFC 6962, section 2.1, word by word.
    fn defined(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => sha256(&[]),
            [one] => *one,
            _ => {
                let (left, right) =
                    leaves.split_at(usize::try_from(split(leaves.len() as u64)).unwrap());
                node_hash(&defined(left), &defined(right))
            }
        }
    }

    fn hex(hash: Hash) -> String {
        hash.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn heads_are_those_of_the_known_test_trees() {
        // Inputs and heads that Certificate Transparency implementations share.
        let inputs: [&[u8]; 8] = [
            b"",
            &[0],
            &[0x10],
            &[0x20, 0x21],
            &[0x30, 0x31],
            &[0x40, 0x41, 0x42, 0x43],
            &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
            &[
                0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d,
                0x6e, 0x6f,
            ],
        ];
        let mut frontier = Frontier::default();
        assert_eq!(
            hex(frontier.root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let heads = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        for (input, head) in inputs.iter().zip(heads) {
            frontier.append(leaf_hash(input));
            assert_eq!(hex(frontier.root()), head);
        }
    }

    proptest! {
        #[test]
        fn the_head_is_the_defined_one_however_much_is_gone(count in 0..200_u64, gone in 0..200_u64) {
            let gone = gone.min(count);
            let tree = tree(count, gone);
            prop_assert_eq!(tree.size(), count);
            prop_assert_eq!(tree.root(count), Some(defined(&leaves(count))));
        }

        #[test]
        fn inclusion_proofs_verify_for_what_is_there_and_for_nothing_else(
            count in 1..150_u64, index in any::<prop::sample::Index>(), gone in any::<prop::sample::Index>(),
            flip in any::<prop::sample::Index>(), other in 0..150_u64,
        ) {
            let gone = gone.index(usize::try_from(count).unwrap()) as u64;
            let index = gone + index.index(usize::try_from(count - gone).unwrap()) as u64;
            let tree = tree(count, gone);
            let root = tree.root(count).unwrap();
            let leaf = leaf_hash(&index.to_be_bytes());
            let proof = tree.inclusion(index, count).unwrap();
            prop_assert!(verify_inclusion(leaf, index, count, &proof, &root));
            prop_assert!(!verify_inclusion(leaf_hash(b"other"), index, count, &proof, &root));
            prop_assume!(other != index);
            prop_assert!(!verify_inclusion(leaf, other, count, &proof, &root));
            if !proof.is_empty() {
                let mut changed = proof.clone();
                let at = flip.index(changed.len() * 256);
                changed[at / 256].0[at % 256 / 8] ^= 1 << (at % 8);
                prop_assert!(!verify_inclusion(leaf, index, count, &changed, &root));
                prop_assert!(!verify_inclusion(leaf, index, count, &proof[1..], &root));
                changed.push(root);
                prop_assert!(!verify_inclusion(leaf, index, count, &changed, &root));
            }
            if gone > 0 {
                prop_assert_eq!(tree.inclusion(gone - 1, count), None);
            }
        }

        #[test]
        fn consistency_proofs_verify_between_any_two_sizes_and_only_between_them(
            new in 1..150_u64, old in any::<prop::sample::Index>(), gone in any::<prop::sample::Index>(),
            flip in any::<prop::sample::Index>(),
        ) {
            let old = old.index(usize::try_from(new).unwrap() + 1) as u64;
            let gone = gone.index(usize::try_from(old).unwrap() + 1) as u64;
            let tree = tree(new, gone);
            let (old_root, new_root) = (tree.root(old).unwrap(), tree.root(new).unwrap());
            let proof = tree.consistency(old, new).unwrap();
            prop_assert!(verify_consistency((old, &old_root), (new, &new_root), &proof));
            let wrong = leaf_hash(b"wrong");
            prop_assert!(!verify_consistency((old, &wrong), (new, &new_root), &proof));
            if old > 0 {
                prop_assert!(!verify_consistency((old, &old_root), (new, &wrong), &proof));
            }
            if !proof.is_empty() {
                let mut changed = proof.clone();
                let at = flip.index(changed.len() * 256);
                changed[at / 256].0[at % 256 / 8] ^= 1 << (at % 8);
                prop_assert!(!verify_consistency((old, &old_root), (new, &new_root), &changed));
            }
        }

        #[test]
        fn no_proof_makes_a_verifier_panic(
            old in any::<u64>(), new in any::<u64>(), count in 0..70_usize, small in 0..9_u64,
        ) {
            let proof = vec![leaf_hash(b"x"); count];
            let root = leaf_hash(b"y");
            let _ = verify_consistency((old, &root), (new, &root), &proof);
            let _ = verify_consistency((small, &root), (new, &root), &proof);
            prop_assert!(!verify_inclusion(root, old, new, &proof, &root) || new == 1);
        }
    }
}
