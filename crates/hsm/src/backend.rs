//! The seam between the keys API and what keeps the keys.
//!
//! Knows no backend: a failure of one is a boxed error behind [`KeyError::Backend`].

mod error;
mod terms;

use std::fmt;

use edgekeep_core::id::KeyId;

pub use self::error::{InputError, KeyError, KeyFileFault};
pub use self::terms::{
    KeyKind, PairAlgorithm, PublicParameter, PublicValue, RsaPadding, SymmetricKey, Usage,
};
use crate::SecretBytes;

/// Writes the seam out of one list of operations: the trait with a refusal as the default
/// of each, [`Operation`], and the forwarding of a [`Delegate`]. An operation that is in
/// the list is in all three.
macro_rules! key_backend {
    (
        $(#[$about:meta])*
        trait KeyBackend {
            $($own:item)*
        }
        operations {$(
            $(#[$doc:meta])*
            $operation:ident = $words:literal:
            fn $method:ident(&self $(, $argument:ident: $kind:ty)* $(,)?) -> $answer:ty;
        )*}
        forwarded {
            $($forwarded:item)*
        }
    ) => {
        $(#[$about])*
        pub trait KeyBackend: Send + Sync {
            $($own)*

            $(
                $(#[$doc])*
                fn $method(&self $(, $argument: $kind)*) -> Result<$answer, KeyError> {
                    $(let _ = $argument;)*
                    Err(self.not_supported(Operation::$operation))
                }
            )*
        }

        // A method with a default that is added to the trait and not written here would
        // answer with the default in place of the delegate's answer.
        #[deny(clippy::missing_trait_methods)]
        impl<D: Delegate> KeyBackend for D {
            $($forwarded)*

            $(
                fn $method(&self $(, $argument: $kind)*) -> Result<$answer, KeyError> {
                    self.delegate()?.$method($($argument),*)
                }
            )*
        }

        /// An operation that a backend may be asked for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "each is named after its method")]
        pub enum Operation {
            $($operation,)*
        }

        impl Operation {
            /// Every operation, in the order of the trait.
            pub const ALL: &[Self] = &[$(Self::$operation,)*];
        }

        impl fmt::Display for Operation {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$operation => $words,)*
                })
            }
        }
    };
}

key_backend! {
    /// Keeps keys under ids and uses them.
    ///
    /// Symmetric keys and key pairs share one name space. Every method may be called from
    /// several threads at once. Methods that a backend does not have answer
    /// [`KeyError::NotSupported`].
    trait KeyBackend {
        /// The backend's name in errors and reports.
        fn name(&self) -> &'static str;

        /// The kind of the key named `id`; `None` if there is none.
        ///
        /// # Errors
        /// If the key is there but cannot be loaded.
        fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError>;

        /// The same keys, for a thread that must not wait: uses of a key that would take
        /// more than this process's memory are answered with [`KeyError::WouldWait`].
        /// `None` if that is all of them.
        fn without_waiting(&self) -> Option<Box<dyn KeyBackend + '_>> {
            None
        }

        /// The name of the backend that is known to keep the key named `id`, without
        /// looking for it; `None` if none is known.
        fn keeper(&self, id: &KeyId) -> Option<&'static str> {
            let _ = id;
            Some(self.name())
        }

        /// The typed answer for an operation that this backend does not have.
        fn not_supported(&self, operation: Operation) -> KeyError {
            KeyError::NotSupported { backend: self.name(), operation }
        }
    }
    operations {
        /// Makes a random symmetric key, unless there is one under this id.
        ///
        /// # Errors
        /// If a key pair has this id, or the key cannot be stored.
        CreateKey = "making a symmetric key":
        fn create_key(&self, id: &KeyId, usage: Usage) -> ();

        /// Stores a symmetric key, over one that has this id.
        ///
        /// # Errors
        /// If the key is empty or too long, a key pair has this id, or the key cannot be
        /// stored.
        ImportKey = "importing a symmetric key":
        fn import_key(&self, id: &KeyId, bytes: SecretBytes, usage: Usage) -> ();

        /// Makes a key pair with the first of `preferred` that the backend can do, unless
        /// there is one under this id.
        ///
        /// # Errors
        /// If a symmetric key has this id, none of the algorithms can be done, or the key
        /// cannot be stored.
        CreateKeyPair = "making a key pair of these algorithms":
        fn create_key_pair(&self, id: &KeyId, preferred: &[PairAlgorithm]) -> ();

        /// Gives the key pair `from` the id `to`, over one that has it. At no time is
        /// neither there.
        ///
        /// # Errors
        /// If `from` is not there, a symmetric key has the id `to`, both are the same, or
        /// the store fails.
        MoveKeyPair = "moving a key pair":
        fn move_key_pair(&self, from: &KeyId, to: &KeyId) -> ();

        /// Deletes a key for good.
        ///
        /// # Errors
        /// If there is no key of this kind under this id, or the store fails.
        Delete = "deleting a key":
        fn delete(&self, id: &KeyId, kind: KeyKind) -> ();

        /// One parameter of a key pair's public half.
        ///
        /// # Errors
        /// If there is no such key pair, or its algorithm has no such parameter.
        PublicParameter = "reading a public parameter":
        fn public_parameter(&self, id: &KeyId, parameter: PublicParameter) -> PublicValue;

        /// ECDSA over a digest that the caller computed. The signature is the DER
        /// sequence of r and s.
        ///
        /// # Errors
        /// If there is no such key pair, it is not an EC one, or the digest has no
        /// digest's length.
        SignEcdsa = "signing with ECDSA":
        fn sign_ecdsa(&self, id: &KeyId, digest: &[u8]) -> Vec<u8>;

        /// The RSA private-key operation: what a signature is made with. As long as the
        /// modulus.
        ///
        /// # Errors
        /// If there is no such key pair, it is not an RSA one, or the block does not fit
        /// the padding.
        RsaPrivateOperation = "the RSA private-key operation":
        fn rsa_private_operation(&self, id: &KeyId, padding: RsaPadding, block: &[u8]) -> Vec<u8>;

        /// HMAC-SHA256 of a message.
        ///
        /// # Errors
        /// If there is no such symmetric key, or its usage does not cover signing.
        HmacSha256 = "signing with HMAC-SHA256":
        fn hmac_sha256(&self, key: SymmetricKey<'_>, message: &[u8]) -> [u8; 32];

        /// Encrypts with AES-256-GCM into the versioned layout of existing ciphertexts
        /// (wire facts 5.5).
        ///
        /// # Errors
        /// If there is no such symmetric key, its usage does not cover encryption, it has
        /// not 32 bytes, or `iv` is empty.
        Encrypt = "encrypting":
        fn encrypt(
            &self,
            key: SymmetricKey<'_>,
            iv: &[u8],
            aad: &[u8],
            plaintext: &[u8],
        ) -> Vec<u8>;

        /// Decrypts what [`KeyBackend::encrypt`] returned, and the older layout.
        ///
        /// # Errors
        /// As for encryption; also if the ciphertext is not authentic.
        Decrypt = "decrypting":
        fn decrypt(
            &self,
            key: SymmetricKey<'_>,
            iv: &[u8],
            aad: &[u8],
            ciphertext: &[u8],
        ) -> SecretBytes;

        /// The key derived from a symmetric key: HMAC-SHA256 of the derivation data, 32
        /// bytes.
        ///
        /// # Errors
        /// If there is no such symmetric key, or its usage does not cover derivation.
        ExportDerived = "exporting a derived key":
        fn export_derived(&self, base: &KeyId, derivation_data: &[u8]) -> SecretBytes;
    }
    forwarded {
        fn name(&self) -> &'static str {
            self.delegate_name()
        }

        fn kind(&self, id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
            self.delegate()?.kind(id)
        }

        // To have the delegate may take waiting.
        fn without_waiting(&self) -> Option<Box<dyn KeyBackend + '_>> {
            None
        }

        fn keeper(&self, _id: &KeyId) -> Option<&'static str> {
            Some(self.name())
        }

        fn not_supported(&self, operation: Operation) -> KeyError {
            KeyError::NotSupported { backend: self.name(), operation }
        }
    }
}

/// A backend that is another one, under a name of its own, once that one can be had.
pub trait Delegate: Send + Sync {
    /// The backend that does the work.
    type To: KeyBackend;

    /// See [`KeyBackend::name`].
    fn delegate_name(&self) -> &'static str;

    /// The backend that does the work.
    ///
    /// # Errors
    /// If it cannot be had now.
    fn delegate(&self) -> Result<&Self::To, KeyError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl KeyBackend for Nothing {
        fn name(&self) -> &'static str {
            "empty"
        }

        fn kind(&self, _id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
            Ok(None)
        }
    }

    #[test]
    fn what_a_backend_does_not_have_it_refuses_with_a_typed_answer() {
        let id: KeyId = "k".parse().unwrap();
        let error = Nothing.hmac_sha256(SymmetricKey::Stored(&id), b"m").unwrap_err();
        assert!(
            matches!(
                error,
                KeyError::NotSupported { backend: "empty", operation: Operation::HmacSha256 }
            ),
            "{error}"
        );
        assert!(error.is_callers_fault());
    }

    struct Other;

    impl Delegate for Other {
        type To = Nothing;

        fn delegate_name(&self) -> &'static str {
            "other"
        }

        fn delegate(&self) -> Result<&Nothing, KeyError> {
            Ok(&Nothing)
        }
    }

    #[test]
    fn a_delegate_is_asked_for_every_operation_under_its_own_name() {
        let id: KeyId = "k".parse().unwrap();
        let (key, usage) = (SymmetricKey::Stored(&id), Usage::ALL);
        let answers = [
            Other.create_key(&id, usage).err(),
            Other.import_key(&id, SecretBytes::from(vec![1]), usage).err(),
            Other.create_key_pair(&id, &[]).err(),
            Other.move_key_pair(&id, &id).err(),
            Other.delete(&id, KeyKind::Pair).err(),
            Other.public_parameter(&id, PublicParameter::Algorithm).err(),
            Other.sign_ecdsa(&id, &[]).err(),
            Other.rsa_private_operation(&id, RsaPadding::None, &[]).err(),
            Other.hmac_sha256(key, &[]).err(),
            Other.encrypt(key, &[], &[], &[]).err(),
            Other.decrypt(key, &[], &[], &[]).err(),
            Other.export_derived(&id, &[]).err(),
        ];
        let asked: Vec<Operation> = answers
            .into_iter()
            .map(|answer| match answer {
                Some(KeyError::NotSupported { backend: "empty", operation }) => operation,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(asked, Operation::ALL);
        assert_eq!(Other.keeper(&id), Some("other"));
    }

    #[test]
    fn a_backends_own_error_keeps_its_type_and_its_place_in_the_chain() {
        use std::error::Error as _;
        let error = KeyError::backend("TPM", std::io::Error::other("no answer"));
        assert_eq!(error.to_string(), "TPM");
        assert_eq!(error.source().expect("a source").to_string(), "no answer");
        assert!(error.cause::<std::io::Error>().is_some());
        assert!(error.cause::<fmt::Error>().is_none());
        assert!(!error.is_callers_fault());
    }

    #[test]
    fn usage_is_a_comma_list_of_known_words() {
        assert_eq!("derive".parse(), Ok(Usage { derive_or_sign: true, encrypt: false }));
        assert_eq!("sign".parse(), Ok(Usage { derive_or_sign: true, encrypt: false }));
        assert_eq!("encrypt".parse(), Ok(Usage { derive_or_sign: false, encrypt: true }));
        assert_eq!("derive, sign,encrypt".parse(), Ok(Usage::ALL));
        for text in ["", ",", "Sign", "sign,", "sign;encrypt", "wrap"] {
            assert_eq!(text.parse::<Usage>(), Err(InputError::Usage), "{text:?}");
        }
    }

    #[test]
    fn preferred_algorithms_keep_their_order_and_leave_out_unknown_words() {
        use PairAlgorithm::{EcP256, EcP384, Rsa2048, Rsa4096};
        assert_eq!(PairAlgorithm::preferred(None), [EcP256, Rsa2048]);
        assert_eq!(
            PairAlgorithm::preferred(Some("ml-dsa-65:rsa-4096:*")),
            [Rsa4096, EcP256, Rsa2048]
        );
        assert_eq!(PairAlgorithm::preferred(Some("ec-p384:ec-p256")), [EcP384, EcP256]);
        assert_eq!(PairAlgorithm::preferred(Some("ml-dsa-65")), []);
        assert_eq!(PairAlgorithm::preferred(Some("")), []);
    }
}
