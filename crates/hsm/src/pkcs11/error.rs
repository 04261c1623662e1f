//! Errors of a token, and the meaning of its library's return values.

use std::fmt;
use std::io;
use std::path::PathBuf;

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};

use crate::backend::{InputError, KeyError};

/// The reason why a token could not be used. Each message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The library could not be loaded.
    #[error("could not load the PKCS#11 library {library:?}: {reason}")]
    Load {
        /// Its path.
        library: PathBuf,
        /// Message of the loader.
        reason: String,
    },
    /// Nothing says which library to load.
    #[error(
        "no PKCS#11 library is named: set pkcs11_lib_path in [aziot_keys], or module-path in the key uri"
    )]
    NoLibrary,
    /// Nothing says which token to use.
    #[error("the PKCS#11 uri names no token: add token=LABEL (or slot-id=, serial=); there are: {}", list(.found))]
    Unspecific {
        /// The tokens that there are.
        found: Vec<String>,
    },
    /// The token is not there.
    #[error("there is no token {wanted:?}: plug it in, initialize it, or correct the uri; there are: {}", list(.found))]
    Absent {
        /// The token that was looked for.
        wanted: String,
        /// The tokens that there are.
        found: Vec<String>,
    },
    /// More than one token is meant.
    #[error("{wanted:?} is more than one token: add serial= to the uri; there are: {}", list(.found))]
    SeveralTokens {
        /// The token that was looked for.
        wanted: String,
        /// The tokens that match.
        found: Vec<String>,
    },
    /// The token wants a PIN and none is configured.
    #[error(
        "token {token:?} needs a PIN: add pin-source=file:/PATH or pin-source=credential:NAME to the uri"
    )]
    PinMissing {
        /// The token.
        token: String,
    },
    /// The PIN could not be read.
    #[error("could not read the PIN of token {token:?} from {path:?}")]
    PinUnreadable {
        /// The token.
        token: String,
        /// The file.
        path: PathBuf,
        /// Error of reading the file.
        #[source]
        source: io::Error,
    },
    /// The token did not take the PIN. It is not tried again: a token locks itself after
    /// a few wrong ones.
    #[error(
        "token {token:?} refused the PIN ({code}); the same PIN is not tried again, because a token locks after a few \
         wrong ones: correct the PIN in the configuration"
    )]
    PinRefused {
        /// The token.
        token: String,
        /// The name of the return value.
        code: String,
    },
    /// The token has locked its user PIN.
    #[error(
        "the user PIN of token {token:?} is locked: set a new one as its security officer (pkcs11-tool --init-pin); if it \
         is in a TPM, end the TPM's lockout (tpm2_dictionarylockout --clear-lockout)"
    )]
    PinLocked {
        /// The token.
        token: String,
    },
    /// One more wrong PIN would lock the token.
    #[error(
        "one more wrong PIN locks token {token:?}, so none is tried: log in by hand with the right PIN once \
         (pkcs11-tool --login --list-objects), which resets the count"
    )]
    PinFinalTry {
        /// The token.
        token: String,
    },
    /// Nobody has set a user PIN.
    #[error(
        "token {token:?} has no user PIN yet: set one (pkcs11-tool --init-pin, softhsm2-util, tpm2_ptool)"
    )]
    PinNotSet {
        /// The token.
        token: String,
    },
    /// More than one key on the token has the name.
    #[error(
        "token {token:?} has {count} keys named {label:?}: delete or rename all but one (pkcs11-tool)"
    )]
    SeveralKeys {
        /// The token.
        token: String,
        /// Their label.
        label: String,
        /// Number of keys with this label.
        count: usize,
    },
    /// A private key without its public half.
    #[error(
        "key pair {label:?} on token {token:?} has no readable public half: store its public key object beside it"
    )]
    NoPublicHalf {
        /// The token.
        token: String,
        /// The private key's label.
        label: String,
    },
    /// A function of the library failed.
    #[error("{function} failed with {code} on token {token:?}{}", hint(.code))]
    Call {
        /// The function's name in PKCS#11.
        function: String,
        /// The return value's name in PKCS#11.
        code: String,
        /// The token.
        token: String,
    },
}

impl From<TokenError> for KeyError {
    fn from(error: TokenError) -> Self {
        Self::backend("token", error)
    }
}

fn list(found: &[String]) -> String {
    if found.is_empty() { "none".to_owned() } else { found.join(", ") }
}

/// Returns the remedy for a return value; empty if there is no single remedy.
fn hint(code: &str) -> &'static str {
    match code {
        "CKR_DEVICE_MEMORY" => ": the token is full, delete keys that are not needed",
        "CKR_TOKEN_WRITE_PROTECTED" => ": the token is write-protected",
        "CKR_SESSION_COUNT" => ": other programs use all of the token's sessions, end them",
        "CKR_DEVICE_REMOVED" | "CKR_TOKEN_NOT_PRESENT" => ": plug the token in",
        "CKR_DEVICE_ERROR" | "CKR_GENERAL_ERROR" | "CKR_FUNCTION_FAILED" => {
            ": look at the library's own log, and run the key doctor"
        }
        "CKR_USER_PIN_NOT_INITIALIZED" => ": set a user PIN",
        _ => "",
    }
}

/// Failure of an operation on a session, before the token is known.
pub(super) enum Failed {
    /// The library failed.
    Ck(Error),
    /// Our own code failed.
    Key(KeyError),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Ck(error)
    }
}

impl From<KeyError> for Failed {
    fn from(error: KeyError) -> Self {
        Self::Key(error)
    }
}

impl From<InputError> for Failed {
    fn from(error: InputError) -> Self {
        Self::Key(error.into())
    }
}

impl From<TokenError> for Failed {
    fn from(error: TokenError) -> Self {
        Self::Key(error.into())
    }
}

/// The error of a call, named as in PKCS#11.
pub(super) fn call_error(error: &Error, token: &str) -> TokenError {
    let (function, code) = match error {
        Error::Pkcs11(code, function) => (function_name(*function), code_name(*code)),
        // The binding's own errors: values that the library returned and that make no
        // sense.
        other => ("the PKCS#11 library".to_owned(), other.to_string()),
    };
    TokenError::Call { function, code, token: token.to_owned() }
}

fn function_name(function: Function) -> String {
    format!("C_{function:?}")
}

/// A return value's name in PKCS#11: the binding has its parts, in another case.
pub(super) fn code_name(code: RvError) -> String {
    match code {
        RvError::VendorDefined(number) => format!("CKR_VENDOR_DEFINED+{:#x}", number & 0x7fff_ffff),
        RvError::UnknownErrorCode(number) => format!("CKR {number:#x}"),
        known => {
            let mut name = "CKR".to_owned();
            for character in format!("{known:?}").chars() {
                if character.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(character.to_ascii_uppercase());
            }
            name
        }
    }
}

/// The return value of an error.
pub(super) fn code(error: &Error) -> Option<RvError> {
    match error {
        Error::Pkcs11(code, _) => Some(*code),
        _ => None,
    }
}

/// The state of the connection to the token, by a return value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    /// The connection stands.
    Stands,
    /// The connection is gone: the token was pulled out, or somebody logged out or closed
    /// our sessions.
    Lost,
    /// The library does not say; whoever wants to know has to ask the token for something
    /// else.
    Unclear,
}

/// Tells the state of the connection after this error.
pub(super) fn connection_after(error: &Error) -> Connection {
    match code(error) {
        Some(
            RvError::SessionHandleInvalid
            | RvError::SessionClosed
            | RvError::UserNotLoggedIn
            | RvError::DeviceRemoved
            | RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::CryptokiNotInitialized
            | RvError::SlotIdInvalid,
        ) => Connection::Lost,
        Some(RvError::GeneralError | RvError::DeviceError | RvError::FunctionFailed) => {
            Connection::Unclear
        }
        _ => Connection::Stands,
    }
}

/// Returns true if the token failed without a reason. SoftHSM does so when an object is
/// made while other sessions read its store; the same call then succeeds.
pub(super) fn is_unexplained(error: &Error) -> bool {
    matches!(code(error), Some(RvError::GeneralError | RvError::FunctionFailed))
}

/// Returns true if an object that was found earlier is no longer there.
pub(super) fn is_stale_handle(error: &Error) -> bool {
    matches!(code(error), Some(RvError::ObjectHandleInvalid | RvError::KeyHandleInvalid))
}

/// Returns true if the token says that it lacks what was asked for, as opposed to a
/// failure.
pub(super) fn is_missing_capability(error: &Error) -> bool {
    match error {
        Error::NullFunctionPointer | Error::NotSupported => true,
        Error::Pkcs11(code, _) => matches!(
            code,
            RvError::MechanismInvalid
                | RvError::MechanismParamInvalid
                | RvError::FunctionNotSupported
                | RvError::CurveNotSupported
                | RvError::DomainParamsInvalid
                | RvError::KeyTypeInconsistent
                | RvError::KeySizeRange
                | RvError::KeyFunctionNotPermitted
                | RvError::TemplateIncomplete
                | RvError::TemplateInconsistent
                | RvError::AttributeTypeInvalid
                | RvError::AttributeValueInvalid
                | RvError::AttributeReadOnly
                | RvError::ActionProhibited
        ),
        _ => false,
    }
}

/// The token's judgement of a PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PinVerdict {
    /// The PIN is wrong, or cannot be a PIN of this token.
    Refused,
    /// The token takes no PIN any more.
    Locked,
    /// The answer is not about the PIN.
    None,
}

/// Tells the token's judgement of the PIN from an error of `C_Login`.
pub(super) fn pin_verdict(error: &Error) -> PinVerdict {
    match code(error) {
        Some(
            RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired,
        ) => PinVerdict::Refused,
        Some(RvError::PinLocked) => PinVerdict::Locked,
        _ => PinVerdict::None,
    }
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ck(error) => error.fmt(f),
            Self::Key(error) => error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_values_have_their_names_of_the_standard() {
        for (code, name) in [
            (RvError::PinIncorrect, "CKR_PIN_INCORRECT"),
            (RvError::SessionHandleInvalid, "CKR_SESSION_HANDLE_INVALID"),
            (RvError::DeviceRemoved, "CKR_DEVICE_REMOVED"),
            (RvError::UserNotLoggedIn, "CKR_USER_NOT_LOGGED_IN"),
            (RvError::CryptokiAlreadyInitialized, "CKR_CRYPTOKI_ALREADY_INITIALIZED"),
            (RvError::SessionReadWriteSoExists, "CKR_SESSION_READ_WRITE_SO_EXISTS"),
            (RvError::VendorDefined(0x8000_0001), "CKR_VENDOR_DEFINED+0x1"),
            (RvError::UnknownErrorCode(0x7777), "CKR 0x7777"),
        ] {
            assert_eq!(code_name(code), name);
        }
        let error =
            call_error(&Error::Pkcs11(RvError::DeviceMemory, Function::GenerateKeyPair), "edge");
        let text = error.to_string();
        assert!(
            text.starts_with("C_GenerateKeyPair failed with CKR_DEVICE_MEMORY on token \"edge\""),
            "{text}"
        );
        assert!(text.contains("the token is full"), "{text}");
    }

    #[test]
    fn a_wrong_pin_is_told_from_a_lost_token() {
        let login = |code| Error::Pkcs11(code, Function::Login);
        assert_eq!(pin_verdict(&login(RvError::PinIncorrect)), PinVerdict::Refused);
        assert_eq!(pin_verdict(&login(RvError::PinLocked)), PinVerdict::Locked);
        assert_eq!(pin_verdict(&login(RvError::DeviceRemoved)), PinVerdict::None);
        assert_eq!(connection_after(&login(RvError::PinIncorrect)), Connection::Stands);
        assert_eq!(connection_after(&login(RvError::DeviceRemoved)), Connection::Lost);
        assert_eq!(connection_after(&login(RvError::GeneralError)), Connection::Unclear);
    }
}
