//! The order in which certificates are handed out.

use super::certificate::Certificate;

/// Puts certificates in the order in which a peer wants them: each chain from its leaf
/// up, those of end entities first. What belongs to no chain keeps its place among the
/// others.
#[must_use]
pub fn ordered(certificates: Vec<Certificate>) -> Vec<Certificate> {
    let count = certificates.len();
    // For each certificate, the one that it says to be signed by.
    let issuer: Vec<Option<usize>> = certificates
        .iter()
        .map(|certificate| {
            if certificate.is_self_issued() {
                return None;
            }
            certificates.iter().position(|other| certificate.says_issued_by(other))
        })
        .collect();
    let mut issues = vec![false; count];
    for (at, above) in issuer.iter().enumerate() {
        if let Some(above) = above.filter(|above| *above != at) {
            issues[above] = true;
        }
    }
    let mut heads: Vec<usize> = (0..count).filter(|at| !issues[*at]).collect();
    // Stable: otherwise in the order of the file.
    heads.sort_by_key(|at| certificates[*at].is_ca());
    let mut order = Vec::with_capacity(count);
    let mut placed = vec![false; count];
    // Behind the heads: certificates that sign each other in a circle.
    for head in heads.into_iter().chain(0..count) {
        let mut next = Some(head);
        while let Some(at) = next.filter(|at| !placed[*at]) {
            placed[at] = true;
            order.push(at);
            next = issuer[at];
        }
    }
    let mut slots: Vec<Option<Certificate>> = certificates.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| slots[at].take()).collect()
}
