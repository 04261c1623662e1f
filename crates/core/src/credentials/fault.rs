//! Faults of files of certificates and keys, with place and remedy.

use std::fmt;

/// The use that a file is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Certificates alone.
    Certificates,
    /// A key.
    Key,
    /// A public key.
    PublicKey,
}

/// One thing that cannot be used as what the file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// There is nothing in the file.
    Empty,
    /// There is nothing in the file of which the form is known.
    Nothing,
    /// The file is longer than is read.
    Long {
        /// Bytes that are read.
        limit: usize,
    },
    /// The file has more blocks than are looked at.
    ManyBlocks {
        /// Blocks that are looked at.
        limit: usize,
    },
    /// The file has more certificates than are taken.
    ManyCertificates {
        /// Certificates that are taken.
        limit: usize,
    },
    /// The block's BEGIN line does not end as such a line does.
    BeginLine,
    /// The block has no END line.
    Unfinished,
    /// The block's END line has another label than its BEGIN line.
    OtherEnd,
    /// The block's content is not base64.
    Base64,
    /// The block's content is not what its label says.
    Damaged,
    /// DER that the file does not hold to its end.
    CutOff,
    /// More bytes follow, inside the block or behind DER.
    Trailing,
    /// A private key among certificates.
    PrivateKey,
    /// A private key where a public key is asked for.
    Key,
    /// A second key where one is asked for.
    SecondKey,
    /// A private key under a password.
    Encrypted,
    /// A private key of a kind that is not used here.
    OtherKey,
    /// A private key in OpenSSH's own form.
    OpenSsh,
    /// A private key that only its TPM can use.
    TpmKey,
    /// A key in the form of JSON Web Keys.
    Jwk,
    /// A certificate that is marked as not to be trusted.
    Rejected,
    /// A certificate where a key is asked for.
    Certificate,
    /// A certificate request.
    Request,
    /// A public key.
    PublicKey,
    /// A list of revoked certificates.
    RevocationList,
    /// Parameters of keys.
    Parameters,
    /// PKCS#7 (`.p7b`).
    Pkcs7,
    /// PKCS#12 (`.p12`, `.pfx`).
    Pkcs12,
    /// A block with a label that is not known here.
    Label,
}

impl Fault {
    /// Returns true if something is lost by it that somebody meant to have. Other faults
    /// are leftovers beside what is wanted.
    #[must_use]
    pub const fn is_grave(self) -> bool {
        !matches!(
            self,
            Self::Request
                | Self::PublicKey
                | Self::RevocationList
                | Self::Parameters
                | Self::Label
                | Self::Trailing
                | Self::Rejected
        )
    }

    /// Returns true if a file with it has no key that could be used without a guess.
    /// Other faults stand beside the key.
    pub(super) const fn spoils_a_key(self) -> bool {
        matches!(
            self,
            Self::BeginLine
                | Self::Unfinished
                | Self::OtherEnd
                | Self::Base64
                | Self::Damaged
                | Self::CutOff
                | Self::Trailing
                | Self::Encrypted
                | Self::OtherKey
                | Self::OpenSsh
                | Self::TpmKey
                | Self::Pkcs12
                | Self::Jwk
        )
    }

    /// Returns the cause, as it stands behind a place: "line 3, block 2: it is a
    /// certificate request".
    const fn cause(self) -> &'static str {
        match self {
            Self::Empty => "the file is empty",
            Self::Nothing => "nothing in the file is PEM or DER",
            Self::Long { .. } => "the file is too long",
            Self::ManyBlocks { .. } => "the file has too many blocks",
            Self::ManyCertificates { .. } => "the file has too many certificates",
            Self::BeginLine => "the BEGIN line is not complete",
            Self::Unfinished => "the END line is missing: the block is cut off",
            Self::OtherEnd => "the END line has another label than the BEGIN line",
            Self::Base64 => "what stands in it is not base64",
            Self::Damaged => "what stands in it is damaged, or is not what the label says",
            Self::CutOff => "the end is missing, or something else follows",
            Self::Trailing => "more bytes follow, which are left out",
            Self::PrivateKey => "it is a private key, in a file of certificates",
            Self::Key => "it is a private key, and a public key is asked for",
            Self::SecondKey => "it is a second key, and only one is used",
            Self::Encrypted => "it is a private key under a password",
            Self::OtherKey => {
                "it is a private key of a kind that is not used: neither EC P-256, EC P-384 nor RSA"
            }
            Self::OpenSsh => "it is a private key in OpenSSH's own form",
            Self::TpmKey => "it is a private key that only its TPM can use",
            Self::Jwk => "it is a JSON Web Key",
            Self::Rejected => "it is a certificate that is marked as rejected",
            Self::Certificate => "it is a certificate, and a key is asked for",
            Self::Request => "it is a certificate request",
            Self::PublicKey => "it is a public key",
            Self::RevocationList => "it is a list of revoked certificates",
            Self::Parameters => "it holds parameters of a key",
            Self::Pkcs7 => "it is PKCS#7",
            Self::Pkcs12 => "it is PKCS#12",
            Self::Label => "its label is not known",
        }
    }

    /// Returns the remedy. `FILE` in it stands for the file.
    #[must_use]
    pub const fn remedy(self, purpose: Purpose) -> &'static str {
        match (self, purpose) {
            (Self::PrivateKey, _) => {
                "remove the key from the file; if others could read it, have a new key and certificate made"
            }
            (Self::Pkcs12, Purpose::Certificates) => {
                "convert it: openssl pkcs12 -in FILE -nokeys -out NEW.pem"
            }
            (Self::Pkcs12, _) => "convert it: openssl pkcs12 -in FILE -nocerts -nodes -out NEW.pem",
            (Self::Pkcs7, _) => {
                "convert it: openssl pkcs7 -in FILE -print_certs -out NEW.pem (-inform DER for DER)"
            }
            (Self::Encrypted, _) => {
                "take the password off: openssl pkey -in FILE -out NEW.pem (-inform DER for DER)"
            }
            (Self::OpenSsh, _) => "convert a copy of it: ssh-keygen -p -m PKCS8 -N '' -f COPY",
            (Self::TpmKey, _) => "name it as tpm:file=/path/to/file",
            (Self::Jwk, _) => "convert it to PKCS#8 in PEM (-----BEGIN PRIVATE KEY-----)",
            (Self::Key, _) => "take the public half: openssl pkey -in FILE -pubout -out NEW.pem",
            (Self::SecondKey, _) => "leave only the key that is meant in the file",
            (Self::OtherKey, _) => {
                "make a key of such a kind: openssl ecparam -name prime256v1 -genkey -noout -out NEW.pem"
            }
            (Self::Certificate | Self::Request, Purpose::Key) => "name the file of the private key",
            (Self::PublicKey, Purpose::Key) => {
                "name the file of the private key; a public key cannot sign"
            }
            (Self::Certificate, Purpose::PublicKey) => {
                "take the key out: openssl x509 -in FILE -noout -pubkey"
            }
            (Self::Rejected, _) => {
                "take the mark off if it is to be trusted: openssl x509 -in FILE -out NEW.pem"
            }
            (Self::Trailing, Purpose::Certificates) => {
                "write it anew: openssl x509 -in FILE -out NEW.pem"
            }
            (Self::Trailing, _) => {
                "write it anew: openssl pkey -in FILE -out NEW.pem (-inform DER for DER)"
            }
            (
                Self::Request
                | Self::PublicKey
                | Self::RevocationList
                | Self::Parameters
                | Self::Label,
                _,
            ) => "it is left out; remove it from the file",
            (
                Self::Empty
                | Self::BeginLine
                | Self::Unfinished
                | Self::OtherEnd
                | Self::Base64
                | Self::Damaged
                | Self::CutOff,
                _,
            ) => "copy the file again from where it came from",
            (Self::Long { .. } | Self::ManyBlocks { .. } | Self::ManyCertificates { .. }, _) => {
                "leave in the file what is needed on this device"
            }
            (Self::Nothing | Self::Certificate, Purpose::Certificates) => {
                "name a file with certificates in PEM (-----BEGIN CERTIFICATE-----) or DER"
            }
            (Self::Nothing, Purpose::Key) => {
                "name a file with a private key in PKCS#8, SEC1 or PKCS#1, in PEM or DER, without a password"
            }
            (Self::Nothing, Purpose::PublicKey) => {
                "name a file with a public key: openssl pkey -in KEY -pubout"
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cause())?;
        match self {
            Self::Long { limit } => write!(f, ": more than {limit} bytes"),
            Self::ManyBlocks { limit } | Self::ManyCertificates { limit } => {
                write!(f, ": more than {limit}")
            }
            _ => Ok(()),
        }
    }
}

/// The place in a file at which a block begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Line, from 1; none in DER.
    pub line: Option<usize>,
    /// Bytes before it, in the text without byte order mark and as UTF-8.
    pub offset: usize,
    /// Number of the block or DER value, from 1.
    pub block: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}, block {}", self.block),
            None => write!(f, "byte {}, block {}", self.offset, self.block),
        }
    }
}

/// A fault and its place. Its text holds nothing that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Finding {
    /// The place; none if the file as a whole is meant.
    pub place: Option<Place>,
    /// The fault.
    pub fault: Fault,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(place) => write!(f, "{place}: {}", self.fault),
            None => fmt::Display::fmt(&self.fault, f),
        }
    }
}

/// Findings up to a bound; what is above it is counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    list: Vec<Finding>,
    more: usize,
}

impl Findings {
    pub(super) fn add(&mut self, finding: Finding, limit: usize) {
        // What is grave takes the place of a leftover.
        if self.list.len() < limit {
            self.list.push(finding);
            return;
        }
        self.more += 1;
        if finding.fault.is_grave()
            && let Some(leftover) = self.list.iter_mut().rev().find(|kept| !kept.fault.is_grave())
        {
            *leftover = finding;
        }
    }

    /// Returns the findings that are kept, in the order of the file.
    #[must_use]
    pub fn list(&self) -> &[Finding] {
        &self.list
    }

    /// Returns the number of those that are not kept.
    #[must_use]
    pub const fn more(&self) -> usize {
        self.more
    }

    /// Returns true if there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns the gravest finding: the first that is grave, else the first.
    #[must_use]
    pub fn gravest(&self) -> Option<Finding> {
        self.list.iter().find(|finding| finding.fault.is_grave()).or(self.list.first()).copied()
    }
}
