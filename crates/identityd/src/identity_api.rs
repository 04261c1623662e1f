//! The identity API (wire facts 5.2): who asks, what for, and the answer from what is
//! known.

use std::sync::Arc;
use std::time::Duration;

use edgekeep_api::client::ClientError;
use edgekeep_api::identityd::{
    API_VERSIONS, Authentication, AuthenticationKind, AziotIdentity, CreateModuleIdentity,
    Identities, Identity, OperationalStand, ProvisioningFailure, ProvisioningInfo,
    ProvisioningStand,
};
use edgekeep_api::keyd::KeyHandle;
use edgekeep_api::{ErrorCode, Recipient, is_worth_a_fresh_handle};
use edgekeep_cloud::{CloudError, EnsureError};
use edgekeep_core::id::{GenerationId, ModuleId};
use edgekeep_core::names::{self, OPERATIONAL};
use edgekeep_core::provisioning::{DeviceIdentity, Requester};
use edgekeep_core::settings::{
    CredentialKind, DeviceCredential, IdentityKind, IdentitydSettings, Provisioning,
};
use edgekeep_daemon::audit::{Audit, Entry};
use edgekeep_daemon::server::{HttpError, Request, Response, Router};
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::certificates::{CertStoreError, CertificateError, Certificates, span_of};
use crate::device::{Device, Wish};
use crate::keys::{DeviceKeys, KeysError};
use crate::local_identity;
use crate::modules::Modules;
use crate::refresh::{HubError, Refresh, Registry, chain};
use edgekeep_core::access::{Access, Role};

/// Longest time that a caller waits for the hub where there is an answer without the hub.
const PATIENCE: Duration = Duration::from_secs(3);
/// Certificates that are trusted by this device's modules; the name is what other
/// implementations use.
const TRUST_BUNDLE: &str = names::TRUST_BUNDLE.as_str();

/// The state behind the identity API.
#[derive(Debug)]
pub(crate) struct IdentityApi {
    pub(crate) settings: IdentitydSettings,
    pub(crate) access: Access,
    pub(crate) device: Arc<Device>,
    pub(crate) keys: Arc<DeviceKeys>,
    pub(crate) modules: Arc<Modules>,
    pub(crate) refresh: Arc<Refresh>,
    /// For calls that somebody waits for: with a shorter limit than those in the
    /// background.
    pub(crate) registry: Registry,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) audit: Arc<Audit>,
}

/// The routes.
pub(crate) fn router(api: Arc<IdentityApi>) -> Router<IdentityApi> {
    const FIRST: &str = "2020-09-01";
    Router::new(api, API_VERSIONS)
        .named("identity")
        .route(Method::GET, "/identities/identity", FIRST, own_identity)
        .route(Method::POST, "/identities/device", FIRST, device_identity)
        .route(Method::GET, "/identities/modules", FIRST, list_modules)
        .route(Method::POST, "/identities/modules", FIRST, create_module)
        .route(Method::GET, "/identities/modules/{id}", FIRST, get_module)
        .route(Method::PUT, "/identities/modules/{id}", FIRST, update_module)
        .route(Method::DELETE, "/identities/modules/{id}", FIRST, delete_module)
        .route(Method::POST, "/identities/device/reprovision", FIRST, reprovision)
        .route(Method::GET, "/trust-bundle", FIRST, trust_bundle)
        .route(Method::GET, "/identities/provisioning", "2021-12-01", provisioning)
        .route(Method::GET, "/identities/provisioning/stand", "2026-11-01", stand)
        .on_sender_changed(|api, caller, what| {
            let pid = caller.pid().unwrap_or(0);
            api.audit.refused(&Entry {
                uid: caller.uid(),
                pid,
                action: &what,
                object: "",
                reason: "sender-changed",
            });
            std::future::ready(())
        })
}

/// Kind of the module identity that a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Aziot,
    Local,
}

impl Kind {
    fn of(text: Option<&str>) -> Result<Self, HttpError> {
        match text {
            None => Err(HttpError::bad_request("missing parameter: type")),
            Some("aziot") => Ok(Self::Aziot),
            Some("local") => Ok(Self::Local),
            Some(_) => Err(HttpError::bad_request("invalid parameter: type")),
        }
    }

    /// The type of a request that is only possible for identities at the hub.
    fn aziot(text: Option<&str>) -> Result<(), HttpError> {
        match Self::of(text)? {
            Self::Aziot => Ok(()),
            Self::Local => Err(HttpError::bad_request("invalid parameter: type")),
        }
    }
}

impl IdentityApi {
    fn role(&self, request: &Request) -> Role<'_> {
        self.access.role(request.caller.uid())
    }

    fn refuse(&self, request: &Request) -> HttpError {
        let action = format!("{} {}", request.method(), request.route);
        let (uid, pid) = (request.caller.uid(), request.caller.pid().unwrap_or(0));
        // What a stranger sent is cut: the trail is bounded by lines of bounded length.
        let object: String = request.param(0).chars().take(128).collect();
        self.audit.refused(&Entry {
            uid,
            pid,
            action: &action,
            object: &object,
            reason: "not-a-principal",
        });
        HttpError::unauthorized()
    }

    fn daemon_only(&self, request: &Request) -> Result<(), HttpError> {
        if self.role(request).is_daemon() { Ok(()) } else { Err(self.refuse(request)) }
    }

    fn identity(&self) -> Result<Arc<DeviceIdentity>, HttpError> {
        if matches!(self.settings.provisioning, Provisioning::None) {
            return Err(HttpError::bad_request(
                "this device has local identities only: provisioning is \"none\"",
            ));
        }
        let view = self.device.view();
        view.identity.ok_or_else(|| {
            let why = view.remark.unwrap_or_else(|| "provisioning is under way".to_owned());
            HttpError::bad_request(format!("the device is not provisioned yet: {why}"))
        })
    }

    fn answer(
        &self,
        of: &DeviceIdentity,
        module: Option<(&ModuleId, &GenerationId)>,
        auth: Option<Authentication>,
    ) -> Identity {
        let gateway = self.settings.parent_hostname.as_ref().unwrap_or(&of.hub);
        Identity::Aziot(AziotIdentity {
            hub_name: of.hub.clone(),
            gateway_host: gateway.clone(),
            device_id: of.device_id.to_string(),
            module_id: module.map(|(id, _)| id.to_string()),
            gen_id: module.map(|(_, generation)| generation.to_string()),
            auth,
            assurance: None,
        })
    }

    /// The device's own identity, with what keyd tells of the device.
    async fn own_answer(&self, of: &DeviceIdentity, auth: Authentication) -> Response {
        let mut answer = self.answer(of, None, Some(auth));
        if let Identity::Aziot(identity) = &mut answer {
            identity.assurance = self.keys.assurance().await;
        }
        Response::ok(&answer)
    }

    async fn device_answer(&self) -> Result<Response, HttpError> {
        let identity = self.identity()?;
        if self.registry.prover.is_operational() {
            let key = self.keys.operational().await.map_err(|error| keys_failed(&error))?;
            let (kind, cert_id) = (AuthenticationKind::X509, Some(OPERATIONAL.as_str().to_owned()));
            let auth = Authentication { kind, key_handle: Some(key), cert_id };
            return Ok(Response::ok(&self.answer(&identity, None, Some(auth))));
        }
        if self.registry.prover.tpm().is_some() {
            let kind = AuthenticationKind::Tpm;
            let auth = Authentication { kind, key_handle: None, cert_id: None };
            return Ok(self.own_answer(&identity, auth).await);
        }
        let key = self.keys.device().await.map_err(|error| keys_failed(&error))?;
        let cert_id = match &self.settings.provisioning {
            Provisioning::Manual { credential: DeviceCredential::X509 { cert, .. }, .. }
            | Provisioning::Dps { credential: DeviceCredential::X509 { cert, .. }, .. } => {
                Some(cert.to_string())
            }
            _ => None,
        };
        let kind = match cert_id {
            Some(_) => AuthenticationKind::X509,
            None => AuthenticationKind::Sas,
        };
        let auth = Authentication { kind, key_handle: Some(key), cert_id };
        Ok(self.own_answer(&identity, auth).await)
    }

    async fn module_answer(
        &self,
        identity: &DeviceIdentity,
        module: &ModuleId,
        generation: &GenerationId,
    ) -> Result<Response, HttpError> {
        let key =
            self.keys.module(module, generation).await.map_err(|error| keys_failed(&error))?;
        // Modules sign tokens, whatever the device shows.
        Ok(Response::ok(&self.answer(identity, Some((module, generation)), Some(by_token(key)))))
    }

    /// A module from what is known; if it is not, the hub is asked in the background and
    /// given a moment.
    async fn known_module(&self, module: &ModuleId) -> Result<Response, HttpError> {
        let identity = self.identity()?;
        let mut known = self.modules.get(&identity, module);
        let is_fresh = self.refresh.is_fresh() && self.modules.is_complete(&identity);
        if known.is_none() && !is_fresh && !self.refresh.is_offline() {
            self.refresh.wait_for_round(PATIENCE).await;
            known = self.modules.get(&identity, module);
        }
        match known {
            Some(known) => self.module_answer(&identity, module, &known.generation).await,
            None if self.modules.is_complete(&identity) => {
                let text = format!("module \"{module}\" has no identity at the hub");
                Err(HttpError::not_found(text).with_code(ErrorCode::Absent))
            }
            None => Err(HttpError::not_found(format!(
                "module \"{module}\" is not known, and the hub has not been reached to ask for it"
            ))),
        }
    }

    /// Makes sure of a module at the hub. Where the hub cannot be asked in time and the
    /// module is known, what is known is the answer and the rest is done later.
    async fn ensured_module(&self, module: &ModuleId, create: bool) -> Result<Response, HttpError> {
        let identity = self.identity()?;
        let known = self.modules.get(&identity, module);
        if let Some(known) = known.as_ref().filter(|_| self.refresh.is_offline()) {
            self.refresh.repair_later(module);
            return self.module_answer(&identity, module, &known.generation).await;
        }
        let call = {
            let (registry, identity, module) =
                (self.registry.clone(), Arc::clone(&identity), module.clone());
            // Goes on when the caller has been answered or is gone. Its end is bounded by
            // the transport's limit.
            tokio::spawn(async move { registry.ensure(&identity, &module, create).await })
        };
        let outcome = match &known {
            Some(_) => tokio::time::timeout(PATIENCE, call).await.ok(),
            None => Some(call.await),
        };
        match (outcome, known) {
            (Some(Ok(Ok(record))), _) => {
                self.module_answer(&identity, module, &record.generation_id).await
            }
            (Some(Ok(Err(EnsureError::Cloud(error)))), Some(known)) if error.is_network_down() => {
                self.refresh.repair_later(module);
                self.module_answer(&identity, module, &known.generation).await
            }
            (Some(Ok(Err(error))), _) => Err(hub_failed(&error)),
            (Some(Err(error)), _) => Err(HttpError::hidden(&error)),
            (None, Some(known)) => self.module_answer(&identity, module, &known.generation).await,
            (None, None) => Err(HttpError::not_found("the hub did not answer in time")),
        }
    }

    async fn local_answer(&self, module: &ModuleId, server: bool) -> Result<Response, HttpError> {
        let issued =
            local_identity::issue(&self.certificates, &self.settings, module, server).await;
        let identity = issued.map_err(|error| match error {
            local_identity::LocalIdentityError::Certificate(error) => certificate_failed(&error),
            error => HttpError::bad_request(error.to_string()),
        })?;
        Ok(Response::ok(&Identity::Local(identity)))
    }
}

fn by_token(key: KeyHandle) -> Authentication {
    Authentication { kind: AuthenticationKind::Sas, key_handle: Some(key), cert_id: None }
}

fn keys_failed(error: &KeysError) -> HttpError {
    HttpError::not_found(chain(error))
}

fn hub_failed(error: &HubError) -> HttpError {
    match error {
        EnsureError::Keys(error) => keys_failed(error),
        EnsureError::Cloud(error) => cloud_failed(error),
    }
}

/// Failed calls to the hub are 404 here, whatever the hub said (wire facts 1.5).
fn cloud_failed(error: &CloudError) -> HttpError {
    HttpError::not_found(error.chain())
}

/// Returns the HTTP error that a caller gets for an error of the certificates service.
pub(crate) fn certificate_failed(error: &CertificateError) -> HttpError {
    match error {
        CertificateError::Store(CertStoreError::NotFound { .. }) => {
            HttpError::bad_request(chain(error)).with_code(ErrorCode::Absent)
        }
        CertificateError::Issue(_)
        | CertificateError::NotConfigured { .. }
        | CertificateError::Est { .. }
        | CertificateError::NoLocalCa { .. }
        | CertificateError::WithRegistration { .. }
        | CertificateError::Store(
            CertStoreError::Preloaded { .. }
            | CertStoreError::Unusable { .. }
            | CertStoreError::OnToken { .. },
        ) => HttpError::bad_request(chain(error)).with_code(ErrorCode::Request),
        // keyd's own refusal (an unknown key, a handle that it does not take) is the
        // caller's mistake. Its cause is passed on, so that the caller need not guess it
        // from the text.
        CertificateError::Key(cause)
            if cause.status().is_some_and(|status| status.is_client_error()) =>
        {
            let refused = HttpError::bad_request(chain(error));
            match cause {
                ClientError::Status { code: Some(code), .. } => refused.with_code(*code),
                cause if is_worth_a_fresh_handle(cause, Recipient::Keys) => refused,
                _ => refused.with_code(ErrorCode::Request),
            }
        }
        _ => HttpError::hidden(error),
    }
}

async fn own_identity(api: Arc<IdentityApi>, request: Request) -> Result<Response, HttpError> {
    let role = api.role(&request);
    if role.may_have_device() {
        return api.device_answer().await;
    }
    let Role::Principal(principal) = role else { return Err(api.refuse(&request)) };
    let module: ModuleId = principal.name.parse().map_err(|error| HttpError::hidden(&error))?;
    if principal.kinds.contains(&IdentityKind::Module) {
        api.known_module(&module).await
    } else {
        api.local_answer(&module, false).await
    }
}

async fn device_identity(
    api: Arc<IdentityApi>,
    mut request: Request,
) -> Result<Response, HttpError> {
    if !api.role(&request).may_have_device() {
        return Err(api.refuse(&request));
    }
    let _: Value = request.json().await?;
    api.device_answer().await
}

async fn list_modules(api: Arc<IdentityApi>, request: Request) -> Result<Response, HttpError> {
    api.daemon_only(&request)?;
    Kind::aziot(request.query("type"))?;
    let identity = api.identity()?;
    if !api.modules.is_complete(&identity) && !api.refresh.is_offline() {
        api.refresh.wait_for_round(PATIENCE).await;
    }
    let identities = api
        .modules
        .all(&identity)
        .iter()
        .map(|(id, module)| api.answer(&identity, Some((id, &module.generation)), None))
        .collect();
    Ok(Response::ok(&Identities { identities }))
}

async fn create_module(api: Arc<IdentityApi>, mut request: Request) -> Result<Response, HttpError> {
    api.daemon_only(&request)?;
    let body: CreateModuleIdentity = request.json().await?;
    let kind = Kind::of(Some(&body.kind))?;
    let module: ModuleId = body.module_id.parse().map_err(|error| bad_id(&error))?;
    match kind {
        Kind::Aziot => api.ensured_module(&module, true).await,
        Kind::Local => {
            if api.access.named(module.as_str(), IdentityKind::Local).is_some() {
                return Err(HttpError::bad_request(
                    "the identity belongs to a configured principal; use GET",
                ));
            }
            let attributes =
                body.local_id_opts.as_ref().and_then(|options| options.get("attributes")?.as_str());
            api.local_answer(&module, attributes == Some("server")).await
        }
    }
}

async fn get_module(api: Arc<IdentityApi>, request: Request) -> Result<Response, HttpError> {
    let kind = match Kind::of(request.query("type")) {
        Ok(Kind::Local) => IdentityKind::Local,
        Ok(Kind::Aziot) => IdentityKind::Module,
        // Strangers are refused before they are told what was wrong.
        Err(error) if api.role(&request) != Role::Nobody => return Err(error),
        Err(_) => return Err(api.refuse(&request)),
    };
    if !api.role(&request).may_have(request.param(0), kind) {
        return Err(api.refuse(&request));
    }
    let module: ModuleId = request.id(0)?;
    if kind == IdentityKind::Module {
        return api.known_module(&module).await;
    }
    if api.access.named(module.as_str(), kind).is_none() {
        return Err(HttpError::bad_request(format!(
            "no principal \"{module}\" with a local identity is configured"
        )));
    }
    api.local_answer(&module, false).await
}

async fn update_module(api: Arc<IdentityApi>, mut request: Request) -> Result<Response, HttpError> {
    api.daemon_only(&request)?;
    Kind::aziot(request.query("type"))?;
    let module: ModuleId = request.id(0)?;
    let _: Value = request.json().await?;
    api.ensured_module(&module, false).await
}

async fn delete_module(api: Arc<IdentityApi>, request: Request) -> Result<Response, HttpError> {
    api.daemon_only(&request)?;
    Kind::aziot(request.query("type"))?;
    let module: ModuleId = request.id(0)?;
    let identity = api.identity()?;
    api.registry.delete(&identity, &module).await.map_err(|error| cloud_failed(&error))?;
    Ok(Response::no_content())
}

async fn reprovision(api: Arc<IdentityApi>, mut request: Request) -> Result<Response, HttpError> {
    api.daemon_only(&request)?;
    let _: Option<Value> = request.json_opt().await?;
    if matches!(api.settings.provisioning, Provisioning::None) {
        return Err(HttpError::bad_request(
            "this device has local identities only: provisioning is \"none\"",
        ));
    }
    // As root or as this daemon's own user no module runtime asks, but a person; where
    // all daemons are one user, the two are not told apart.
    let uid = request.caller.uid();
    let is_person = uid == 0 || uid == rustix::process::geteuid().as_raw();
    let by = if is_person { Requester::Operator } else { Requester::Runtime };
    api.device.wish(Wish::Reprovision(by));
    Ok(Response::no_content())
}

#[derive(Serialize)]
struct TrustBundle {
    certificate: String,
}

async fn trust_bundle(api: Arc<IdentityApi>, _: Request) -> Result<Response, HttpError> {
    let id = TRUST_BUNDLE
        .parse()
        .map_err(|error: edgekeep_core::id::IdError| HttpError::hidden(&error))?;
    let certificate = match api.certificates.read(&id) {
        Ok(pem) => pem,
        // What existing clients know from other implementations.
        Err(CertificateError::Store(CertStoreError::NotFound { .. })) => String::new(),
        Err(error) => return Err(HttpError::hidden(&error)),
    };
    Ok(Response::ok(&TrustBundle { certificate }))
}

async fn provisioning(api: Arc<IdentityApi>, _: Request) -> Result<Response, HttpError> {
    let info = match &api.settings.provisioning {
        Provisioning::Manual { credential, .. } => ProvisioningInfo::Manual {
            auth: match credential.kind() {
                CredentialKind::SymmetricKey => "sas".to_owned(),
                kind => kind.as_str().to_owned(),
            },
        },
        Provisioning::Dps { endpoint, scope_id, registration_id, payload, credential, .. } => {
            let name = registration_id.clone().or_else(|| api.registry.prover.common_name());
            ProvisioningInfo::Dps {
                auth: credential.kind().as_str().to_owned(),
                endpoint: endpoint.clone(),
                scope_id: scope_id.clone(),
                registration_id: name.unwrap_or_default(),
                payload: payload.clone(),
            }
        }
        Provisioning::None => ProvisioningInfo::None,
    };
    Ok(Response::json(StatusCode::OK, &info))
}

async fn stand(api: Arc<IdentityApi>, request: Request) -> Result<Response, HttpError> {
    api.daemon_only(&request)?;
    let view = api.device.view();
    let (source, auth) = match &api.settings.provisioning {
        Provisioning::Manual { credential, .. } => ("manual", credential.kind().as_str()),
        Provisioning::Dps { credential, .. } => ("dps", credential.kind().as_str()),
        Provisioning::None => ("none", ""),
    };
    let told = view.stand;
    let answer = ProvisioningStand {
        source: source.to_owned(),
        auth: auth.to_owned(),
        mode: format!("{:?}", api.settings.reprovisioning),
        activity: told.map_or("idle", |stand| stand.activity).to_owned(),
        hub_name: view.identity.as_ref().map(|identity| identity.hub.clone()),
        device_id: view.identity.as_ref().map(|identity| identity.device_id.to_string()),
        obtained_at: view.obtained_at.map(rfc3339),
        certificate: api.registry.prover.thumbprint(),
        operational_certificate: operational(&api),
        failures: told.map_or(0, |stand| stand.failures),
        next_attempt_in_sec: view
            .next
            .map(|at| at.saturating_duration_since(tokio::time::Instant::now()).as_secs()),
        is_firm: told.is_some_and(|stand| stand.is_firm),
        errors: view
            .errors
            .into_iter()
            .map(|(at, reason)| ProvisioningFailure { at: rfc3339(at), reason })
            .collect(),
    };
    Ok(Response::json(StatusCode::OK, &answer))
}

/// Stand of the certificate that the provisioning service issues; `None` where it is
/// asked for none.
fn operational(api: &IdentityApi) -> Option<OperationalStand> {
    let prover = &api.registry.prover;
    prover.is_operational().then(|| {
        let span = prover.operational().as_ref().and_then(span_of);
        OperationalStand {
            id: OPERATIONAL.as_str().to_owned(),
            thumbprint: prover.operational_thumbprint(),
            not_after: span.map(|span| rfc3339(span.end)),
        }
    })
}

/// Seconds since the epoch as RFC 3339.
fn rfc3339(at: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(at).ok();
    moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_default()
}

fn bad_id(error: &edgekeep_core::id::IdError) -> HttpError {
    HttpError::bad_request(error.to_string())
}
