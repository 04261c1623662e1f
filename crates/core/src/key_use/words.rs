//! Words for uses of keys: what is asked for, what a key is for, and why a use is
//! refused.

use std::fmt;

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word that stands for it in the log.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// Operations that may be asked for.
    Operation {
        /// Make a key or a key pair, or get the one that is there.
        Create = "create",
        /// Store a key that the caller brings.
        Import = "import",
        /// Get a handle to a key that is there.
        Load = "load",
        /// Give a key pair another id.
        Move = "move",
        /// Delete a key.
        Delete = "delete",
        /// Read a public parameter. Written down when refused only.
        Parameters = "parameters",
        /// Get a handle to a derived key.
        Derive = "derive",
        /// Get the bytes of a derived key.
        Export = "export",
        /// Sign, the RSA private-key operation included.
        Sign = "sign",
        /// Encrypt.
        Encrypt = "encrypt",
        /// Decrypt.
        Decrypt = "decrypt",
        /// Read the TPM's endorsement key and storage root, which are public, for
        /// provisioning.
        TpmKeys = "tpm-keys",
        /// Unwrap the TPM's authentication key and keep it there.
        TpmImport = "tpm-import",
        /// HMAC with the TPM's authentication key.
        TpmSign = "tpm-sign",
        /// Read the audit log. Written down when refused only.
        ReadAudit = "read-audit",
        /// Say what was measured, for the log of measurements.
        Measure = "measure",
        /// A request on a connection on which another process sent bytes.
        Connect = "connect",
    }
}

words! {
    /// Purposes of keys: each decides which operations there are with such a key.
    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    Purpose {
        /// Proves who the device or a module is: signs, and others are derived from it.
        Identity = "identity",
        /// Signs certificates, for callers that have to do with certificates.
        Ca = "ca",
        /// Is behind a TLS certificate: signs.
        Tls = "tls",
        /// Encrypts data at rest.
        Seal = "seal",
        /// Signs data, and others are derived from it.
        Sign = "sign",
    }
}

words! {
    /// Reasons of refusals.
    Reason {
        /// No grant of this key id.
        NoGrant = "no-grant",
        /// The id is the daemon's own.
        ReservedKey = "reserved-key",
        /// The daemon did not make this handle.
        ForeignHandle = "foreign-handle",
        /// The handle was made for another uid, which does not share the key with this
        /// one.
        HandleOfAnotherUid = "handle-of-another-uid",
        /// The handle is older than handles may be.
        ExpiredHandle = "expired-handle",
        /// The key is for something else.
        Purpose = "purpose",
        /// A CA key, and a uid that has nothing to do with certificates.
        NotForCertificates = "not-for-certificates",
        /// No grant to take derived keys out.
        NoExportGrant = "no-export-grant",
        /// May not read the audit log.
        NotAnAuditor = "not-an-auditor",
        /// The uid is not that of the daemon that it speaks for.
        NotThatDaemon = "not-that-daemon",
        /// Another process than the one that connected sent bytes.
        SenderChanged = "sender-changed",
        /// The uid has made as many keys as it may.
        TooManyKeys = "too-many-keys",
    }
}
