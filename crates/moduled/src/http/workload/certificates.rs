//! Server and identity certificates for modules: key and request made here, signed by the
//! Edge CA through the certificates API. The key is given to the module and not kept.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use edgekeep_api::certd::{CertificatesClient, CreateCertificate, Issuer};
use edgekeep_api::keyd::OnBehalfOf;
use edgekeep_api::workload::{
    IdentityCertificate, IssuedCertificate, PrivateKey, ServerCertificate,
};
use edgekeep_api::{Recipient, is_worth_a_fresh_handle};
use edgekeep_core::attestation::DenyReason;
use edgekeep_core::id::ModuleId;
use edgekeep_core::settings::ModuleKeys;
use edgekeep_daemon::server::{HttpError, Request, Response};
use http::StatusCode;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, SanType,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::WorkloadDoor;
use crate::http::refuse;
use crate::http::{Rooms, called};
use crate::identity::bundle::written_anew;

/// Upper bound of a common name (RFC 5280, appendix A.1).
const COMMON_NAME_LIMIT: usize = 64;

pub(super) async fn server(
    state: Arc<WorkloadDoor>,
    mut request: Request,
) -> Result<Response, HttpError> {
    let (module, _) = state.admit_generation(&request).await?;
    let body: ServerCertificate = request.json().await?;
    let names = server_names(&body.common_name, &module)?;
    if belongs_to_another(&body.common_name, &module, &state.rooms.modules.registrations.modules())
    {
        return Err(state
            .rooms
            .gate
            .refuse(&called(&request), &module, DenyReason::NameOfAnotherModule)
            .into());
    }
    let not_after = end(&state.rooms, body.expiration.as_deref());
    let cert_id = format!("aziot-edged/module/{}:{}:server", module.name(), request.param(1));
    let wanted = Wanted {
        cert_id,
        common_name: body.common_name,
        names,
        usage: ExtendedKeyUsagePurpose::ServerAuth,
        not_after,
    };
    Ok(Response::json(
        StatusCode::CREATED,
        &issue(&state.rooms, wanted, &state.behalf(&request, &module)).await?,
    ))
}

pub(super) async fn identity(
    state: Arc<WorkloadDoor>,
    mut request: Request,
) -> Result<Response, HttpError> {
    let module = state.admit(&request, None).await?;
    let body: Option<IdentityCertificate> = request.json_opt().await?;
    let not_after = end(&state.rooms, body.and_then(|body| body.expiration).as_deref());
    let identity = state
        .rooms
        .credentials
        .identities
        .module(&module)
        .await
        .map_err(|error| refuse::of_identity(&error))?;
    let uri = identity_uri(&identity.hub, &identity.device, &module);
    let uri = uri
        .as_str()
        .try_into()
        .map_err(|_| HttpError::internal("the identity's URI is not ASCII"))?;
    let wanted = Wanted {
        cert_id: format!("aziot-edged/module/{module}:identity"),
        common_name: module.to_string(),
        names: vec![SanType::URI(uri)],
        usage: ExtendedKeyUsagePurpose::ClientAuth,
        not_after,
    };
    Ok(Response::json(
        StatusCode::CREATED,
        &issue(&state.rooms, wanted, &state.behalf(&request, &module)).await?,
    ))
}

/// Names of a server certificate: the one that is asked for, and the module's own where
/// that can be one: an id may have two dots in a row, or end in one.
fn server_names(common_name: &str, module: &ModuleId) -> Result<Vec<SanType>, HttpError> {
    let mut names = vec![host_name(common_name)?];
    names.extend(host_name(module.name()).ok().filter(|own| !names.contains(own)));
    Ok(names)
}

/// Returns true if a name is that of a neighbour: whoever trusts this device's
/// certificates would take the module for the neighbour. The device's own host name is
/// nobody's: modules that serve the outside have always asked for it.
fn belongs_to_another(name: &str, module: &ModuleId, registered: &[ModuleId]) -> bool {
    let own = module.name();
    let neighbours = registered.iter().map(ModuleId::name).chain(["edgeAgent", "edgeHub"]);
    !name.eq_ignore_ascii_case(own)
        && neighbours
            .filter(|neighbour| *neighbour != own)
            .any(|neighbour| name.eq_ignore_ascii_case(neighbour))
}

struct Wanted {
    cert_id: String,
    common_name: String,
    names: Vec<SanType>,
    usage: ExtendedKeyUsagePurpose,
    not_after: OffsetDateTime,
}

fn identity_uri(hub: &str, device: &str, module: &ModuleId) -> String {
    let device = edgekeep_api::path_segment(device);
    let module = edgekeep_api::path_segment(module.as_str());
    format!("azureiot://{hub}/devices/{device}/modules/{module}")
}

/// A host name or address as an alternative name. Anything else is refused: it would be a
/// name that no client can match.
fn host_name(text: &str) -> Result<SanType, HttpError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let wrong =
        || HttpError::bad_request("invalid commonName: expected a host name or an IP address");
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
    };
    if text.len() > 253 || !text.split('.').all(label) {
        return Err(wrong());
    }
    text.try_into().map(SanType::DnsName).map_err(|_| wrong())
}

async fn issue(
    rooms: &Rooms,
    wanted: Wanted,
    behalf: &OnBehalfOf,
) -> Result<IssuedCertificate, HttpError> {
    let certificates = rooms.credentials.certificates.on_behalf_of(behalf);
    let internal = |error: rcgen::Error| {
        HttpError::internal(format!("cannot make a certificate request: {error}"))
    };
    let key = match rooms.modules.settings.edge_ca.module_keys {
        ModuleKeys::EcP256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(internal)?,
        // Hundreds of milliseconds of arithmetic: not on a thread that others wait for.
        ModuleKeys::Rsa2048 => tokio::task::spawn_blocking(|| {
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
        })
        .await
        .map_err(|error| HttpError::internal(error.to_string()))?
        .map_err(internal)?,
    };
    let csr = request_for(&wanted, &key).map_err(internal)?;
    let certificate = sign(rooms, &certificates, &wanted, csr).await?;
    let certificate = written_anew("certificate", &certificate).unwrap_or_default();
    rooms.credentials.trust_bundle.note(&certificate);
    let end = end_of(certificate.as_bytes())
        .ok_or_else(|| HttpError::internal("the certificates API answered no certificate"))?;
    Ok(IssuedCertificate {
        private_key: PrivateKey { kind: "key".into(), bytes: key.serialize_pem() },
        certificate,
        expiration: rfc3339_with_offset(end),
    })
}

/// Most looks at the Edge CA's certificate for one request: the clock may be moved again
/// meanwhile.
const LOOKS: u32 = 3;

/// Has the request signed with the Edge CA's key. Two faults are put right: a handle that
/// keyd does not take any more, and a certificate of the Edge CA that is gone or not
/// valid by the clock.
async fn sign(
    rooms: &Rooms,
    certificates: &CertificatesClient,
    wanted: &Wanted,
    csr: String,
) -> Result<String, HttpError> {
    rooms.credentials.edge_ca_keeper.ready(&rooms.credentials).await;
    let mut request = CreateCertificate {
        cert_id: wanted.cert_id.clone(),
        csr,
        issuer: Some(Issuer {
            cert_id: rooms.modules.settings.edge_ca.cert.to_string(),
            private_key_handle: rooms
                .credentials
                .edge_ca_key
                .get(&rooms.credentials.keys)
                .await
                .map_err(|error| refuse::of_service(&error))?,
        }),
        not_after: wanted.not_after.format(&Rfc3339).ok(),
    };
    let (mut may_renew, mut looks) = (true, LOOKS);
    loop {
        let (begun, before) = (Instant::now(), rooms.credentials.edge_ca_keeper.known());
        let error = match certificates.create(&request).await {
            Ok(certificate) => return Ok(certificate),
            Err(error) => error,
        };
        if may_renew && is_worth_a_fresh_handle(&error, Recipient::Certificates) {
            may_renew = false;
            if let Some(issuer) = &mut request.issuer {
                let old = &issuer.private_key_handle;
                let fresh = rooms.credentials.edge_ca_key.renew(&rooms.credentials.keys, old).await;
                issuer.private_key_handle = fresh.map_err(|error| refuse::of_service(&error))?;
            }
        } else if looks > 0
            && error.status().is_some_and(|status| status.is_client_error())
            && rooms.credentials.edge_ca_keeper.look(&rooms.credentials, begun).await.is_ok()
        {
            // With the same certificate as before the fault is another one; but the clock
            // may have gone there and back.
            looks = if rooms.credentials.edge_ca_keeper.known() == before { 0 } else { looks - 1 };
        } else {
            // The module's own part of it was checked before.
            return Err(refuse::of_service(&error).of_device());
        }
    }
}

/// Returns the end of a certificate: as asked, but not later than configured. Existing
/// clients send texts of many kinds here, so a text that cannot be read, or names a time
/// in the past, counts as none.
fn end(rooms: &Rooms, asked: Option<&str>) -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    let longest = now.saturating_add(time::Duration::days(
        rooms.modules.settings.edge_ca.module_cert_days.into(),
    ));
    let asked = asked
        .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok())
        .filter(|asked| *asked > now);
    asked.map_or(longest, |asked| asked.min(longest)).to_offset(time::UtcOffset::UTC)
}

fn request_for(wanted: &Wanted, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    // The names are all in the alternative names; a longer common name would not be a
    // valid certificate.
    let common_name: String = wanted.common_name.chars().take(COMMON_NAME_LIMIT).collect();
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    parameters.subject_alt_names.clone_from(&wanted.names);
    parameters.extended_key_usages = vec![wanted.usage.clone()];
    parameters.serialize_request(key)?.pem()
}

/// Returns the end of the first certificate of a PEM chain; `None` if it cannot be read.
#[must_use]
pub(crate) fn end_of(pem: &[u8]) -> Option<OffsetDateTime> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    Some(pem.parse_x509().ok()?.validity().not_after.to_datetime())
}

/// RFC 3339 with `+00:00` instead of `Z`: how existing clients get certificate ends (wire
/// facts 9.4).
#[must_use]
pub(crate) fn rfc3339_with_offset(time: OffsetDateTime) -> String {
    let utc = time.to_offset(time::UtcOffset::UTC);
    utc.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]+00:00"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_name_is_a_host_name_or_an_address() {
        assert!(matches!(host_name("10.0.0.1"), Ok(SanType::IpAddress(_))));
        assert!(matches!(host_name("fe80::1"), Ok(SanType::IpAddress(_))));
        assert!(matches!(host_name("press-04.plant7.example"), Ok(SanType::DnsName(_))));
        for wrong in ["", "*", "*.example", "a b", "a..b", "a/b", "é", &"a".repeat(64), "x\0y"] {
            assert!(host_name(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_module_whose_id_is_no_host_name_gets_a_certificate_for_the_name_that_it_asks_for() {
        let names = |common_name: &str, module: &str| {
            server_names(common_name, &module.parse().unwrap())
                .map(|names| names.len())
                .map_err(|error| error.status())
        };
        assert_eq!(names("press-04", "thermometer"), Ok(2));
        assert_eq!(names("thermometer", "thermometer"), Ok(1));
        assert_eq!(names("press-04", "a..b"), Ok(1));
        assert_eq!(names("a..b", "a..b"), Err(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn a_neighbours_name_is_nobody_elses() {
        let id = |name: &str| name.parse::<ModuleId>().unwrap();
        let registered = [id("$edgeHub"), id("a"), id("b")];
        assert!(belongs_to_another("B", &id("a"), &registered));
        assert!(belongs_to_another("edgehub", &id("a"), &[]));
        assert!(!belongs_to_another("a", &id("a"), &registered));
        assert!(!belongs_to_another("edgeHub", &id("$edgeHub"), &registered));
        assert!(!belongs_to_another("press-04", &id("a"), &registered));
    }

    #[test]
    fn the_identity_is_named_by_a_uri_whose_parts_are_encoded() {
        let module = "$edgeHub".parse().unwrap();
        assert_eq!(
            identity_uri("hub.example", "a#b", &module),
            "azureiot://hub.example/devices/a%23b/modules/%24edgeHub"
        );
    }

    #[test]
    fn ends_are_written_with_an_offset() {
        let time = OffsetDateTime::from_unix_timestamp(0).unwrap();
        assert_eq!(rfc3339_with_offset(time), "1970-01-01T00:00:00+00:00");
    }
}
