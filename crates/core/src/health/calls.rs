//! Calls of modules that this device is the reason of refusing.

use std::time::Duration;

use crate::attestation::DenyReason;

/// A failed call is shown for so long after the last of its kind.
pub const SHOWN_FOR: Duration = Duration::from_secs(300);

/// Returns true if a refusal shows a problem of the device: the device could not do its
/// task, or is not as it was made. Otherwise the caller did what it may not do, which is
/// what refusing is for.
#[must_use]
pub const fn is_of_device(reason: DenyReason) -> bool {
    match reason {
        DenyReason::FactsUnknown
        | DenyReason::ContainerChanged
        | DenyReason::ImageChanged
        | DenyReason::OptionsChanged
        | DenyReason::ExecutableNotFinal
        | DenyReason::ExecutableUnmeasured
        | DenyReason::ExecutableOfItsChoice
        | DenyReason::PidNotVisible => true,
        DenyReason::SocketOfAnotherModule
        | DenyReason::NotRegistered
        | DenyReason::NotRunning
        | DenyReason::Traced
        | DenyReason::NotInModule
        | DenyReason::NotADescendant
        | DenyReason::AfterExec
        | DenyReason::OtherUser
        | DenyReason::NotOnHost
        | DenyReason::NotInUnit
        | DenyReason::ExecutableNameless
        | DenyReason::ExecutableChanged
        | DenyReason::OtherUserNamespace
        | DenyReason::ForeignFilter
        | DenyReason::ConnectionInheritable
        | DenyReason::ConnectionNotHeld
        | DenyReason::GenerationMismatch
        | DenyReason::NameOfAnotherModule
        | DenyReason::NotGranted
        | DenyReason::NotAnOperator
        | DenyReason::CallerGone
        | DenyReason::CallerChanged
        | DenyReason::SenderChanged => false,
    }
}
