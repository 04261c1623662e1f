//! Requests for certificates (PKCS#10, RFC 2986), signed by a key in the keys service.

use der::asn1::{Any, BitString, Ia5String, OctetString, SetOfVec, Utf8StringRef};
use der::oid::{AssociatedOid, ObjectIdentifier};
use der::{Decode, Encode, Sequence};
use edgekeep_core::credentials::Certificate;
use edgekeep_core::issuance::{AlternativeName, Constraints, KeyUsage, Purpose};
use edgekeep_tls::{RemoteKey, RemoteKeyError};
use x509_cert::attr::{Attribute, AttributeTypeAndValue};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage as KeyUsageExtension, SubjectAltName,
};
use x509_cert::name::{RdnSequence, RelativeDistinguishedName};
use x509_cert::request::ExtensionReq;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// Longest common name, in characters (RFC 5280, appendix A.1).
const COMMON_NAME_LIMIT: usize = 64;

/// Failure to make a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// The key.
    #[error("the certificate request was not signed")]
    Key(#[from] RemoteKeyError),
    /// A value that has no place in a request.
    #[error("the certificate request cannot be encoded")]
    Encoding(#[from] der::Error),
}

/// Content of the certificate that a request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// The subject's Name, DER, as it is in the certificate that is to be renewed; it
    /// counts before `common_name`.
    pub subject: Option<Vec<u8>>,
    /// The subject's common name, cut to 64 characters.
    pub common_name: String,
    /// Alternative names.
    pub names: Vec<AlternativeName>,
    /// Key usage.
    pub usage: Option<KeyUsage>,
    /// Extended key usage.
    pub purposes: Vec<Purpose>,
    /// Basic constraints.
    pub constraints: Option<Constraints>,
}

impl Profile {
    /// A TLS client of this name: a device at its cloud, or at its EST server.
    #[must_use]
    pub fn client(common_name: &str) -> Self {
        Self {
            common_name: common_name.to_owned(),
            usage: Some(KeyUsage(KeyUsage::DIGITAL_SIGNATURE)),
            purposes: vec![Purpose::ClientAuth],
            ..Self::default()
        }
    }

    /// A CA of this name that issues end entities alone.
    #[must_use]
    pub fn edge_ca(common_name: &str) -> Self {
        Self {
            common_name: common_name.to_owned(),
            usage: Some(KeyUsage(KeyUsage::DIGITAL_SIGNATURE | KeyUsage::KEY_CERT_SIGN)),
            constraints: Some(Constraints { ca: true, path_len: Some(0) }),
            ..Self::default()
        }
    }

    /// The same for what is issued already: with its subject, byte for byte, and its
    /// alternative names, as a renewal must have them (RFC 7030, section 4.2.2).
    #[must_use]
    pub fn renewing(self, certificate: &Certificate) -> Self {
        let names = names_of(certificate).unwrap_or_default();
        Self { subject: Some(certificate.subject().to_vec()), names, ..self }
    }

    fn subject(&self) -> der::Result<Any> {
        if let Some(subject) = &self.subject {
            return Any::from_der(subject);
        }
        let name: String = self.common_name.chars().take(COMMON_NAME_LIMIT).collect();
        let value = Any::encode_from(&Utf8StringRef::new(&name)?)?;
        let pair = AttributeTypeAndValue { oid: COMMON_NAME, value };
        let part = RelativeDistinguishedName::from(SetOfVec::try_from([pair])?);
        Any::encode_from(&RdnSequence::from(vec![part]))
    }

    fn extensions(&self) -> der::Result<Vec<Extension>> {
        let mut extensions = Vec::new();
        if let Some(Constraints { ca, path_len }) = self.constraints {
            let value = BasicConstraints { ca, path_len_constraint: path_len };
            extensions.push(extension(true, &value)?);
        }
        if let Some(KeyUsage(bits)) = self.usage {
            let value = KeyUsageExtension(der::flagset::FlagSet::new_truncated(bits));
            extensions.push(extension(true, &value)?);
        }
        if !self.purposes.is_empty() {
            let oids = self.purposes.iter().map(|purpose| ObjectIdentifier::new(purpose.oid()));
            let oids = oids.collect::<Result<_, _>>()?;
            extensions.push(extension(false, &ExtendedKeyUsage(oids))?);
        }
        if !self.names.is_empty() {
            let names = self.names.iter().map(written).collect::<Result<_, _>>()?;
            extensions.push(extension(false, &SubjectAltName(names))?);
        }
        Ok(extensions)
    }
}

/// A signed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csr {
    der: Vec<u8>,
}

/// The signed part of a request (RFC 2986, section 4.1).
#[derive(Sequence)]
struct Info {
    version: u8,
    subject: Any,
    key: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT")]
    attributes: SetOfVec<Attribute>,
}

/// A request.
#[derive(Sequence)]
struct Request {
    info: Any,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

impl Csr {
    /// Makes a request and has it signed by the keys service.
    ///
    /// # Errors
    /// If the keys service does not sign, or a value has no place in a request.
    pub async fn sign(key: &RemoteKey, profile: &Profile) -> Result<Self, CsrError> {
        let extensions = profile.extensions()?;
        let mut attributes = SetOfVec::new();
        if !extensions.is_empty() {
            attributes.insert(Attribute::try_from(ExtensionReq(extensions))?)?;
        }
        let info = Info {
            version: 0,
            subject: profile.subject()?,
            key: SubjectPublicKeyInfoOwned::from_der(key.public().info())?,
            attributes,
        };
        let info = info.to_der()?;
        let signature = key.sign(&info).await?;
        let request = Request {
            info: Any::from_der(&info)?,
            algorithm: key.public().signature_algorithm(),
            signature: BitString::from_bytes(&signature)?,
        };
        Ok(Self { der: request.to_der()? })
    }

    /// The request, DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The request as one PEM block.
    #[must_use]
    pub fn to_pem(&self) -> String {
        edgekeep_core::credentials::encode_pem("CERTIFICATE REQUEST", &self.der)
    }
}

/// Returns the SubjectPublicKeyInfo of a request, DER. Its signature is not looked at.
#[must_use]
pub fn request_key(request: &[u8]) -> Option<Vec<u8>> {
    let request = Vec::<Any>::from_der(request).ok()?;
    let info = Vec::<Any>::from_der(&request.first()?.to_der().ok()?).ok()?;
    // Version, subject, key.
    let key = SubjectPublicKeyInfoOwned::from_der(&info.get(2)?.to_der().ok()?).ok()?;
    key.to_der().ok()
}

/// Returns the alternative names of a certificate, of the kinds that are issued here.
fn names_of(certificate: &Certificate) -> Option<Vec<AlternativeName>> {
    let read = x509_cert::Certificate::from_der(certificate.der()).ok()?;
    let extensions = read.tbs_certificate().extensions()?;
    let names = extensions.iter().find(|it| it.extn_id == SubjectAltName::OID)?;
    let names = SubjectAltName::from_der(names.extn_value.as_bytes()).ok()?;
    let read = |name: &GeneralName| match name {
        GeneralName::DnsName(text) => AlternativeName::dns(text.as_str().as_bytes()).ok(),
        GeneralName::UniformResourceIdentifier(text) => {
            AlternativeName::uri(text.as_str().as_bytes()).ok()
        }
        GeneralName::IpAddress(bytes) => AlternativeName::address(bytes.as_bytes()).ok(),
        _ => None,
    };
    Some(names.0.iter().filter_map(read).collect())
}

fn extension<T: AssociatedOid + Encode>(critical: bool, value: &T) -> der::Result<Extension> {
    Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(value.to_der()?)? })
}

fn written(name: &AlternativeName) -> der::Result<GeneralName> {
    Ok(match name {
        AlternativeName::Host(name) => GeneralName::DnsName(Ia5String::new(name.as_str())?),
        AlternativeName::Address(address) => GeneralName::from(*address),
        AlternativeName::Uri(uri) => {
            GeneralName::UniformResourceIdentifier(Ia5String::new(uri.as_str())?)
        }
    })
}
