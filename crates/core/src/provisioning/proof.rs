//! Verdict on an attempt to use, at the assigned hub, the certificate that came with the
//! assignment.

/// Outcome of the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The hub answered the device as one that it knows.
    Accepted,
    /// The hub was reached, and does not take the certificate.
    Refused,
    /// The hub could not be asked, or is in trouble itself.
    Unknown,
}

/// Returns true if the new certificate takes the place of the old one.
///
/// `has_valid` is true if an old one is there that is valid now. That one stays until the
/// hub was seen to take the new one. Without it there is nothing to lose by a new one
/// that nobody has refused: a device whose certificate is over gets going although its
/// hub cannot be reached at this moment.
#[must_use]
pub fn judge(proof: Proof, has_valid: bool) -> bool {
    match proof {
        Proof::Accepted => true,
        Proof::Refused => false,
        Proof::Unknown => !has_valid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hub_that_takes_the_new_certificate_retires_a_valid_one() {
        for (proof, with_old, without) in [
            (Proof::Accepted, true, true),
            (Proof::Refused, false, false),
            (Proof::Unknown, false, true),
        ] {
            assert_eq!(judge(proof, true), with_old, "{proof:?}");
            assert_eq!(judge(proof, false), without, "{proof:?}");
        }
    }
}
