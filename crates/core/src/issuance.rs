//! Content of issued certificates, decided over values that were parsed from a request
//! (RFC 5280).
//!
//! A request asks; [`grant`] says which part of that a certificate gets. What was not
//! understood has no value here, so that it cannot get into a certificate.

mod names;
mod subtrees;
mod validity;

pub use names::{AlternativeName, NameError};
pub use subtrees::{Base, OutsideSubtrees, Subtrees};
pub use validity::{IssuerValidity, SLACK, Term, validity};

/// Most alternative names in one certificate.
pub const NAMES: usize = 100;

/// Bits of a key usage (RFC 5280, section 4.2.1.3), bit 0 first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUsage(pub u16);

impl KeyUsage {
    /// Signatures other than on certificates and revocation lists.
    pub const DIGITAL_SIGNATURE: u16 = 1 << 0;
    /// Signatures that commit to content.
    pub const NON_REPUDIATION: u16 = 1 << 1;
    /// Encryption of keys.
    pub const KEY_ENCIPHERMENT: u16 = 1 << 2;
    /// Signatures on certificates.
    pub const KEY_CERT_SIGN: u16 = 1 << 5;
    /// Signatures on revocation lists.
    pub const CRL_SIGN: u16 = 1 << 6;
    /// All bits that are defined.
    pub const ALL: u16 = (1 << 9) - 1;

    fn has(self, bit: u16) -> bool {
        self.0 & bit != 0
    }
}

/// Purposes that a certificate may be for (RFC 5280, section 4.2.1.12).
///
/// `anyExtendedKeyUsage` is none of them: it would undo the meaning of the extension.
/// Neither is signing answers about the state of certificates (OCSP), which is the
/// issuer's own right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are those of the standard")]
pub enum Purpose {
    ServerAuth,
    ClientAuth,
    CodeSigning,
    EmailProtection,
    TimeStamping,
    IpsecIke,
}

impl Purpose {
    /// All purposes.
    pub const ALL: [Self; 6] = [
        Self::ServerAuth,
        Self::ClientAuth,
        Self::CodeSigning,
        Self::EmailProtection,
        Self::TimeStamping,
        Self::IpsecIke,
    ];

    /// Object identifier, with dots.
    #[must_use]
    pub fn oid(self) -> &'static str {
        match self {
            Self::ServerAuth => "1.3.6.1.5.5.7.3.1",
            Self::ClientAuth => "1.3.6.1.5.5.7.3.2",
            Self::CodeSigning => "1.3.6.1.5.5.7.3.3",
            Self::EmailProtection => "1.3.6.1.5.5.7.3.4",
            Self::TimeStamping => "1.3.6.1.5.5.7.3.8",
            Self::IpsecIke => "1.3.6.1.5.5.7.3.17",
        }
    }

    /// Returns the purpose with this object identifier.
    ///
    /// # Errors
    /// If it is none that is issued.
    pub fn from_oid(oid: &str) -> Result<Self, Refusal> {
        let found = Self::ALL.into_iter().find(|purpose| purpose.oid() == oid);
        found.ok_or_else(|| Refusal::Purpose { oid: oid.to_owned() })
    }
}

/// Basic constraints (RFC 5280, section 4.2.1.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Constraints {
    /// True if the certificate's key signs certificates.
    pub ca: bool,
    /// Most CAs in a chain below.
    pub path_len: Option<u8>,
}

/// Extensions of a request, as they were parsed; each at most once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Alternative names.
    pub names: Option<Vec<AlternativeName>>,
    /// Key usage.
    pub usage: Option<KeyUsage>,
    /// Purposes, and whether they bind every reader.
    pub purposes: Option<(Vec<Purpose>, bool)>,
    /// Basic constraints.
    pub constraints: Option<Constraints>,
}

/// Rights that a certificate of this id may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// True if the certificate may be a CA's. Only ids whose issuance the operator
    /// configured have this right.
    pub ca: bool,
    /// True if the certificate is a module's. Such a certificate is for TLS, and its
    /// names have no wildcards.
    pub module: bool,
}

/// Prefix of the ids under which modules' certificates are issued.
const OF_MODULES: &str = "aziot-edged/module/";

impl Rights {
    /// Returns the rights of an id. `configured`: the operator configured how it is
    /// issued, and the caller left the issuer to that.
    #[must_use]
    pub fn of(id: &str, configured: bool) -> Self {
        let module = id.starts_with(OF_MODULES);
        Self { ca: configured && !module, module }
    }
}

/// Extensions that a certificate gets, besides the identifiers of its keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// Alternative names, each once.
    pub names: Vec<AlternativeName>,
    /// Key usage.
    pub usage: Option<KeyUsage>,
    /// Purposes, each once, and whether they bind every reader.
    pub purposes: Option<(Vec<Purpose>, bool)>,
    /// Basic constraints.
    pub constraints: Option<Constraints>,
}

/// Reason why a request is not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A CA under an id that may have none.
    #[error("it asks for a CA's rights, which only ids with a configured issuance may have")]
    Ca,
    /// A usage that only CAs have, without being one.
    #[error(
        "it asks to sign certificates without being a CA: set both in the basic constraints and the key usage"
    )]
    UsageOfCa,
    /// A CA below one that allows none.
    #[error("the issuer's path length does not allow CAs below it")]
    PathLength,
    /// A path length without a CA.
    #[error("it has a path length and is no CA")]
    PathLengthWithoutCa,
    /// A purpose that is not issued.
    #[error(
        "purpose {oid} is not issued: serverAuth, clientAuth, codeSigning, emailProtection, timeStamping and \
         ipsecIKE are, and for modules the first two"
    )]
    Purpose {
        /// Object identifier, with dots.
        oid: String,
    },
    /// An alternative name.
    #[error("alternative name {index}: {error}")]
    Name {
        /// Place in the list, from 1.
        index: usize,
        /// The mistake in the name.
        #[source]
        error: NameError,
    },
    /// An extension without content.
    #[error("its {extension} extension is empty")]
    Empty {
        /// The name of the extension.
        extension: &'static str,
    },
    /// Too many names.
    #[error("it has more than {NAMES} alternative names")]
    TooManyNames,
    /// Nothing that the certificate would be of.
    #[error("it has neither a subject nor an alternative name")]
    Nameless,
}

/// Decides which extensions a certificate gets.
///
/// `issuer_path_len` is that of the CA that signs, if it has one. `has_subject`: the
/// certificate has a name besides alternative ones.
///
/// # Errors
/// If anything is asked for that is not granted. Nothing is left out silently.
pub fn grant(
    asked: &Asked,
    rights: Rights,
    issuer_path_len: Option<u8>,
    has_subject: bool,
) -> Result<Granted, Refusal> {
    let names = granted_names(asked, rights)?;
    if names.is_empty() && !has_subject {
        return Err(Refusal::Nameless);
    }
    let is_ca = asked.constraints.is_some_and(|constraints| constraints.ca);
    let usage_of_ca =
        asked.usage.is_some_and(|usage| usage.has(KeyUsage::KEY_CERT_SIGN | KeyUsage::CRL_SIGN));
    if (is_ca || usage_of_ca) && !rights.ca {
        return Err(Refusal::Ca);
    }
    if usage_of_ca && !is_ca {
        return Err(Refusal::UsageOfCa);
    }
    if asked.usage.is_some_and(|usage| usage.0 & KeyUsage::ALL == 0) {
        return Err(Refusal::Empty { extension: "key usage" });
    }
    Ok(Granted {
        names,
        usage: asked.usage.map(|usage| KeyUsage(usage.0 & KeyUsage::ALL)),
        purposes: granted_purposes(asked, rights)?,
        constraints: asked
            .constraints
            .map(|asked| granted_constraints(asked, issuer_path_len))
            .transpose()?,
    })
}

fn granted_names(asked: &Asked, rights: Rights) -> Result<Vec<AlternativeName>, Refusal> {
    let Some(asked) = &asked.names else { return Ok(Vec::new()) };
    if asked.is_empty() {
        return Err(Refusal::Empty { extension: "alternative name" });
    }
    if asked.len() > NAMES {
        return Err(Refusal::TooManyNames);
    }
    let mut names = Vec::with_capacity(asked.len());
    for (at, name) in asked.iter().enumerate() {
        if rights.module && name.is_wildcard() {
            return Err(Refusal::Name { index: at + 1, error: NameError::Wildcard });
        }
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    Ok(names)
}

fn granted_purposes(
    asked: &Asked,
    rights: Rights,
) -> Result<Option<(Vec<Purpose>, bool)>, Refusal> {
    let Some((asked, critical)) = &asked.purposes else { return Ok(None) };
    if asked.is_empty() {
        return Err(Refusal::Empty { extension: "extended key usage" });
    }
    let mut purposes = Vec::new();
    for purpose in asked {
        if rights.module && !matches!(purpose, Purpose::ServerAuth | Purpose::ClientAuth) {
            return Err(Refusal::Purpose { oid: purpose.oid().to_owned() });
        }
        if !purposes.contains(purpose) {
            purposes.push(*purpose);
        }
    }
    Ok(Some((purposes, *critical)))
}

/// A CA below one with a path length gets a shorter one: a longer one would promise what
/// no chain keeps.
fn granted_constraints(
    asked: Constraints,
    issuer_path_len: Option<u8>,
) -> Result<Constraints, Refusal> {
    if !asked.ca {
        return if asked.path_len.is_some() {
            Err(Refusal::PathLengthWithoutCa)
        } else {
            Ok(asked)
        };
    }
    let Some(above) = issuer_path_len else { return Ok(asked) };
    let below = above.checked_sub(1).ok_or(Refusal::PathLength)?;
    Ok(Constraints {
        ca: true,
        path_len: Some(asked.path_len.map_or(below, |asked| asked.min(below))),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANY: Rights = Rights { ca: true, module: false };

    fn asked() -> impl Strategy<Value = Asked> {
        let name = prop_oneof![
            "[a-z*.]{1,8}"
                .prop_filter_map("a name", |text| AlternativeName::dns(text.as_bytes()).ok()),
            any::<[u8; 4]>().prop_map(|bytes| AlternativeName::Address(bytes.into())),
        ];
        let names = proptest::option::of(proptest::collection::vec(name, 0..5));
        let usage = proptest::option::of(any::<u16>().prop_map(KeyUsage));
        let purpose = proptest::sample::select(Purpose::ALL.to_vec());
        let purposes =
            proptest::option::of((proptest::collection::vec(purpose, 0..4), any::<bool>()));
        let constraints = (any::<bool>(), any::<Option<u8>>())
            .prop_map(|(ca, path_len)| Constraints { ca, path_len });
        (names, usage, purposes, proptest::option::of(constraints)).prop_map(
            |(names, usage, purposes, constraints)| Asked { names, usage, purposes, constraints },
        )
    }

    proptest! {
        #[test]
        fn nothing_is_granted_that_was_not_asked_for_or_is_beyond_the_ids_rights(
            asked in asked(), ca: bool, module: bool, above: Option<u8>, has_subject: bool,
        ) {
            let rights = Rights { ca, module };
            let Ok(granted) = grant(&asked, rights, above, has_subject) else { return Ok(()) };
            let asked_names = asked.names.clone().unwrap_or_default();
            prop_assert!(granted.names.iter().all(|name| asked_names.contains(name)));
            prop_assert!(has_subject || !granted.names.is_empty());
            let is_ca = granted.constraints.is_some_and(|it| it.ca);
            let signs = granted.usage.is_some_and(|it| it.has(KeyUsage::KEY_CERT_SIGN | KeyUsage::CRL_SIGN));
            prop_assert!(ca || !(is_ca || signs));
            prop_assert!(is_ca || !signs);
            prop_assert!(granted.usage.is_none_or(|it| it.0 != 0 && it.0 & !KeyUsage::ALL == 0));
            if let Some(constraints) = granted.constraints {
                prop_assert!(constraints.path_len.is_none() || constraints.ca);
                if let (true, Some(above)) = (constraints.ca, above) {
                    prop_assert!(constraints.path_len.is_some_and(|below| below < above));
                }
            }
            if module {
                prop_assert!(!granted.names.iter().any(AlternativeName::is_wildcard));
                let purposes = granted.purposes.map(|(purposes, _)| purposes).unwrap_or_default();
                prop_assert!(purposes.iter().all(|it| *it <= Purpose::ClientAuth));
            }
        }
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let dns = |text: &str| AlternativeName::dns(text.as_bytes()).unwrap();
        let constraints = |ca, path_len| Some(Constraints { ca, path_len });
        let usage = |bits| Some(KeyUsage(bits));
        let module = Rights { ca: false, module: true };
        let none = Asked::default();
        for (asked, rights, above, reason) in [
            (
                Asked { constraints: constraints(true, None), ..none.clone() },
                module,
                None,
                Refusal::Ca,
            ),
            (Asked { usage: usage(KeyUsage::CRL_SIGN), ..none.clone() }, module, None, Refusal::Ca),
            (
                Asked { usage: usage(KeyUsage::KEY_CERT_SIGN), ..none.clone() },
                ANY,
                None,
                Refusal::UsageOfCa,
            ),
            (
                Asked { constraints: constraints(true, None), ..none.clone() },
                ANY,
                Some(0),
                Refusal::PathLength,
            ),
            (
                Asked { constraints: constraints(false, Some(1)), ..none.clone() },
                ANY,
                None,
                Refusal::PathLengthWithoutCa,
            ),
            (
                Asked { usage: usage(0), ..none.clone() },
                ANY,
                None,
                Refusal::Empty { extension: "key usage" },
            ),
            (
                Asked { names: Some(vec![]), ..none.clone() },
                ANY,
                None,
                Refusal::Empty { extension: "alternative name" },
            ),
            (
                Asked { purposes: Some((vec![], false)), ..none.clone() },
                ANY,
                None,
                Refusal::Empty { extension: "extended key usage" },
            ),
            (
                Asked { purposes: Some((vec![Purpose::CodeSigning], false)), ..none.clone() },
                module,
                None,
                Refusal::Purpose { oid: "1.3.6.1.5.5.7.3.3".to_owned() },
            ),
            (
                Asked { names: Some(vec![dns("a.b"), dns("*.a.b")]), ..none.clone() },
                module,
                None,
                Refusal::Name { index: 2, error: NameError::Wildcard },
            ),
            (
                Asked { names: Some(vec![dns("a"); NAMES + 1]), ..none },
                ANY,
                None,
                Refusal::TooManyNames,
            ),
        ] {
            assert_eq!(grant(&asked, rights, above, true), Err(reason), "{asked:?}");
        }
        assert_eq!(grant(&Asked::default(), ANY, None, false), Err(Refusal::Nameless));
    }

    #[test]
    fn the_edge_ca_gets_what_it_asks_for_and_a_ca_below_another_a_shorter_path() {
        let asked = Asked {
            usage: Some(KeyUsage(KeyUsage::DIGITAL_SIGNATURE | KeyUsage::KEY_CERT_SIGN)),
            constraints: Some(Constraints { ca: true, path_len: Some(0) }),
            ..Asked::default()
        };
        let granted = grant(&asked, Rights::of("aziot-edged-ca", true), None, true).unwrap();
        assert_eq!((granted.usage, granted.constraints), (asked.usage, asked.constraints));
        let unbound = Asked {
            constraints: Some(Constraints { ca: true, path_len: None }),
            ..Asked::default()
        };
        let granted = grant(&unbound, ANY, Some(3), true).unwrap();
        assert_eq!(granted.constraints, Some(Constraints { ca: true, path_len: Some(2) }));
    }

    #[test]
    fn a_name_or_purpose_that_is_there_twice_is_issued_once() {
        let name = AlternativeName::dns(b"press-04").unwrap();
        let asked = Asked {
            names: Some(vec![name.clone(), name.clone()]),
            purposes: Some((vec![Purpose::ServerAuth, Purpose::ServerAuth], false)),
            ..Asked::default()
        };
        let granted = grant(&asked, ANY, None, true).unwrap();
        assert_eq!(
            (granted.names, granted.purposes),
            (vec![name], Some((vec![Purpose::ServerAuth], false)))
        );
    }

    #[test]
    fn a_modules_id_never_has_a_cas_rights_and_any_purpose_is_none() {
        assert_eq!(
            Rights::of("aziot-edged/module/a:1:server", true),
            Rights { ca: false, module: true }
        );
        assert_eq!(Rights::of("aziot-edged-ca-temp", true), ANY);
        assert!(!Rights::of("aziot-edged-ca-temp", false).ca);
        for oid in ["2.5.29.37.0", "1.3.6.1.5.5.7.3.9", "1.2.3"] {
            let error = Purpose::from_oid(oid).unwrap_err().to_string();
            assert!(error.contains(oid), "{error}");
        }
        for purpose in Purpose::ALL {
            assert_eq!(Purpose::from_oid(purpose.oid()), Ok(purpose));
        }
    }
}
