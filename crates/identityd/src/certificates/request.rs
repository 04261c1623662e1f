//! Requests for certificates (PKCS#10, RFC 2986), read into values.

use der::asn1::{AnyRef, BitStringRef, SetOfVec};
use der::oid::{AssociatedOid as _, ObjectIdentifier};
use der::{Decode, Encode as _, Sequence};
use edgekeep_core::issuance::{
    AlternativeName, Asked, Constraints, KeyUsage, NameError, Purpose, Refusal, Rights, grant,
};
use x509_cert::attr::Attribute;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage as KeyUsageExtension,
    SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::name::{Name, RdnSequence};
use x509_cert::request::ExtensionReq;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::issuer::Certificate;
use super::public_key::PublicKey;
use super::{IssueError, subject};

/// Most extensions in a request.
const EXTENSIONS: usize = 32;

/// A request, as it was parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) subject: RdnSequence,
    pub(super) key: PublicKey,
    /// Identifier of the key, where certificates that exist name it by another one than
    /// ours.
    pub(super) key_id: Option<Vec<u8>>,
    pub(super) asked: Asked,
}

/// A request whose signed part is still in its bytes.
#[derive(Sequence)]
struct Signed<'a> {
    info: AnyRef<'a>,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitStringRef<'a>,
}

/// The signed part of a request (RFC 2986, section 4.1). There are programs that count
/// its version like a certificate's, and some that leave the attributes out: neither has
/// a place in a certificate.
#[derive(Sequence)]
struct Info {
    version: u8,
    subject: Name,
    key: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", optional = "true")]
    attributes: Option<SetOfVec<Attribute>>,
}

/// Returns the refusal of a request.
pub(super) fn refuse(what: impl Into<String>) -> IssueError {
    IssueError::Request { what: what.into() }
}

impl Request {
    /// Reads a request, and checks that whoever made it has the key.
    pub(super) fn read(der: &[u8]) -> Result<Self, IssueError> {
        let unreadable = |_| refuse("it is not PKCS#10 in DER");
        let signed = Signed::from_der(der).map_err(unreadable)?;
        let bytes = signed.info.to_der().map_err(unreadable)?;
        let info = Info::from_der(&bytes).map_err(unreadable)?;
        let key = PublicKey::read(&info.key).map_err(refuse)?;
        let signature = signed.signature.as_bytes().unwrap_or_default();
        if !key.verifies(signed.algorithm.oid, &bytes, signature) {
            return Err(refuse("its signature does not verify with its own key"));
        }
        let subject = subject::rebuilt(&info.subject).map_err(refuse)?;
        Ok(Self { subject, key, key_id: None, asked: asked(&extensions(&info)?)? })
    }

    /// Returns a request of our own, for a key that we made: a plain end entity.
    pub(super) fn for_local_identity(
        common_name: &str,
        spki: &[u8],
        server: bool,
    ) -> Result<Self, IssueError> {
        let info = SubjectPublicKeyInfoOwned::from_der(spki)
            .map_err(|_| refuse("its key cannot be read"))?;
        let usage =
            KeyUsage::DIGITAL_SIGNATURE | KeyUsage::NON_REPUDIATION | KeyUsage::KEY_ENCIPHERMENT;
        let purposes = if server {
            &[Purpose::ClientAuth, Purpose::ServerAuth][..]
        } else {
            &[Purpose::ClientAuth]
        };
        let asked = Asked {
            names: None,
            usage: Some(KeyUsage(usage)),
            purposes: Some((purposes.to_vec(), true)),
            constraints: Some(Constraints { ca: false, path_len: None }),
        };
        let subject =
            subject::of_common_name(common_name).map_err(|_| refuse("its name is not usable"))?;
        Ok(Self { subject, key: PublicKey::read(&info).map_err(refuse)?, key_id: None, asked })
    }
}

impl Request {
    /// Returns a request of our own for the successor of a certificate: of the same name,
    /// with the same rights, for the same key or another. Rights are decided anew.
    pub(super) fn renewed(der: &[u8], key: PublicKey) -> Result<Self, IssueError> {
        let unreadable = |_| refuse("the certificate to be renewed cannot be read");
        let tbs = Certificate::from_der(der).map_err(unreadable)?.tbs;
        let subject = tbs.subject.to_der().and_then(|der| Name::from_der(&der));
        let subject = subject::rebuilt(&subject.map_err(unreadable)?).map_err(refuse)?;
        let mut extensions = tbs.extensions.unwrap_or_default();
        // What was issued before names the issuer by it.
        let same_key = PublicKey::read(&tbs.key).is_ok_and(|old| old == key);
        let key_id = extensions
            .iter()
            .find(|extension| same_key && extension.extn_id == SubjectKeyIdentifier::OID)
            .and_then(|it| SubjectKeyIdentifier::from_der(it.extn_value.as_bytes()).ok())
            .map(|id| id.0.as_bytes().to_vec());
        // Of these each certificate has its own.
        let own = [SubjectKeyIdentifier::OID, AuthorityKeyIdentifier::OID];
        extensions.retain(|extension| !own.contains(&extension.extn_id));
        Ok(Self { subject, key, key_id, asked: asked(&extensions)? })
    }

    /// Refuses a request that asks for more than a certificate with these rights may
    /// have, whoever issues it.
    pub(super) fn expect_granted(&self, rights: Rights) -> Result<(), IssueError> {
        let has_subject = !self.subject.is_empty();
        grant(&self.asked, rights, None, has_subject).map_err(|refusal| refused(&refusal))?;
        Ok(())
    }

    /// Returns a request of our own for a CA that signs other CAs.
    /// Returns a request of our own for a certificate by which the device proves who it
    /// is.
    pub(super) fn for_client(common_name: &str, key: PublicKey) -> Result<Self, IssueError> {
        let asked = Asked {
            usage: Some(KeyUsage(KeyUsage::DIGITAL_SIGNATURE)),
            purposes: Some((vec![Purpose::ClientAuth], false)),
            constraints: Some(Constraints { ca: false, path_len: None }),
            ..Asked::default()
        };
        Ok(Self { subject: subject::of_common_name(common_name)?, key, key_id: None, asked })
    }

    pub(super) fn for_ca(common_name: &str, key: PublicKey) -> Result<Self, IssueError> {
        let usage = KeyUsage::DIGITAL_SIGNATURE | KeyUsage::KEY_CERT_SIGN | KeyUsage::CRL_SIGN;
        let asked = Asked {
            usage: Some(KeyUsage(usage)),
            constraints: Some(Constraints { ca: true, path_len: None }),
            ..Asked::default()
        };
        Ok(Self { subject: subject::of_common_name(common_name)?, key, key_id: None, asked })
    }
}

/// Returns the extensions that a request asks for. Other attributes (a password for a
/// challenge, remarks of a vendor) say nothing about the certificate.
fn extensions(info: &Info) -> Result<Vec<Extension>, IssueError> {
    let mut lists = info
        .attributes
        .iter()
        .flat_map(SetOfVec::iter)
        .filter(|attribute| attribute.oid == ExtensionReq::OID);
    let Some(attribute) = lists.next() else { return Ok(Vec::new()) };
    if lists.next().is_some() {
        return Err(refuse("it has two lists of extensions"));
    }
    let [list] = attribute.values.as_slice() else {
        return Err(refuse("its list of extensions is not one list"));
    };
    let list = list.to_der().and_then(|der| Vec::<Extension>::from_der(&der));
    let list = list.map_err(|_| refuse("its list of extensions cannot be read"))?;
    if list.len() > EXTENSIONS {
        return Err(refuse("it has more than 32 extensions"));
    }
    for (at, extension) in list.iter().enumerate() {
        if list[..at].iter().any(|before| before.extn_id == extension.extn_id) {
            return Err(refuse(format!("extension {} is there twice", extension.extn_id)));
        }
    }
    Ok(list)
}

/// Parses extensions. One that is not known is left out if the request does not insist on
/// it (key identifiers among them, which are computed here), else refused.
fn asked(extensions: &[Extension]) -> Result<Asked, IssueError> {
    let mut asked = Asked::default();
    for extension in extensions {
        match extension.extn_id {
            SubjectAltName::OID => asked.names = Some(names(&parse::<SubjectAltName>(extension)?)?),
            ExtendedKeyUsage::OID => {
                let purposes = parse::<ExtendedKeyUsage>(extension)?;
                let purposes = purposes.0.iter().map(|oid| Purpose::from_oid(&oid.to_string()));
                let purposes =
                    purposes.collect::<Result<_, _>>().map_err(|refusal| refused(&refusal))?;
                asked.purposes = Some((purposes, extension.critical));
            }
            KeyUsageExtension::OID => asked.usage = Some(usage(extension)?),
            BasicConstraints::OID => {
                let BasicConstraints { ca, path_len_constraint } = parse(extension)?;
                asked.constraints = Some(Constraints { ca, path_len: path_len_constraint });
            }
            unknown if extension.critical => {
                return Err(refuse(format!(
                    "it insists on extension {unknown}, which is not issued"
                )));
            }
            _ => {}
        }
    }
    Ok(asked)
}

/// Parses the whole value of an extension: what is left over behind it makes it
/// unreadable.
fn parse<'a, T: Decode<'a>>(extension: &'a Extension) -> Result<T, IssueError> {
    T::from_der(extension.extn_value.as_bytes()).map_err(|_| unreadable(extension.extn_id))
}

fn unreadable(oid: ObjectIdentifier) -> IssueError {
    refuse(format!("extension {oid} cannot be read, or has something behind its value"))
}

/// Returns the refusal of what was asked for.
pub(super) fn refused(refusal: &Refusal) -> IssueError {
    refuse(refusal.to_string())
}

fn usage(extension: &Extension) -> Result<KeyUsage, IssueError> {
    let bits = parse::<BitStringRef<'_>>(extension)?;
    // The parser passes over bits behind the last that counts.
    let behind = (1 << bits.unused_bits()) - 1;
    if extension.extn_value.as_bytes().last().is_some_and(|last| last & behind != 0) {
        return Err(unreadable(extension.extn_id));
    }
    let mut usage = 0;
    for bit in bits.bits().enumerate().filter_map(|(at, bit)| bit.then_some(at)) {
        let known = u32::try_from(bit)
            .ok()
            .and_then(|bit| 1u16.checked_shl(bit))
            .filter(|bit| KeyUsage::ALL & bit != 0);
        usage |= known.ok_or_else(|| refuse("its key usage has a bit that is not defined"))?;
    }
    Ok(KeyUsage(usage))
}

fn names(asked: &SubjectAltName) -> Result<Vec<AlternativeName>, IssueError> {
    let read = |name: &GeneralName| match name {
        GeneralName::DnsName(text) => AlternativeName::dns(text.as_str().as_bytes()),
        GeneralName::UniformResourceIdentifier(text) => {
            AlternativeName::uri(text.as_str().as_bytes())
        }
        GeneralName::IpAddress(bytes) => AlternativeName::address(bytes.as_bytes()),
        _ => Err(NameError::Kind),
    };
    let one =
        |(at, name)| read(name).map_err(|error| refused(&Refusal::Name { index: at + 1, error }));
    asked.0.iter().enumerate().map(one).collect()
}
