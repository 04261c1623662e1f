//! Settings of each daemon, as values. `edgekeep config apply` makes them out of the one
//! `config.toml` (crate `edgekeep-config`) and writes one file for each daemon, so that
//! no daemon ever reads another's secrets.
//!
//! Files: `etc/edgekeep/{keyd,identityd,moduled}.json` under the root, mode 0600. Unknown
//! members are refused: these files are made by a program of the same version.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::attestation::Policy;
use crate::create_options::{Grant, OwnState, PublishedPorts};
use crate::digest::Sha256Digest;
use crate::hardware::{
    KeyPlace, PassOn, SandboxSettings, Seal, SecretText, TokenSettings, TpmSettings,
};
use crate::host::{HostModule, HostService, IdRange, ScopeUse};
use crate::id::{CertId, DeviceId, KeyId, ModuleId};
use crate::image_policy::ImagePolicy;
use crate::key_use::Purpose;
use crate::layout::Daemon;
use crate::names;

/// keyd's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeydSettings {
    /// The keys that each user may use. Several entries for one uid add up; uid 0 may use
    /// all keys.
    pub principals: Vec<KeyPrincipal>,
    /// Keys that exist outside the store: key id to `file:`, `pkcs11:` or `tpm:` URI.
    pub preloaded_keys: BTreeMap<KeyId, SecretText>,
    /// Certificates that are objects on a token: certificate id to `pkcs11:` URI.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub preloaded_certs: BTreeMap<CertId, SecretText>,
    /// Open connections one uid may hold on one socket.
    pub connections_per_uid: Option<u32>,
    /// The purposes of keys, where the built-in rules do not name them. The first rule
    /// that fits counts.
    pub purposes: Vec<PurposeRule>,
    /// True if whoever has a handle may use the handle, for ever. Existing services work
    /// this way; the setting is for installations that mix them.
    pub handles_any_uid: bool,
    /// Seconds for which a handle is good; a day if absent.
    pub handle_lifetime_sec: Option<u64>,
    /// The uids that may read the audit log, besides uid 0.
    pub auditors: Vec<u32>,
    /// Tokens, if there are any.
    pub pkcs11: Option<TokenSettings>,
    /// The TPM, if one is used.
    pub tpm: Option<TpmSettings>,
    /// The places in which keys are looked for and made, first place first. Empty: the
    /// token, if there is one, then files.
    pub places: Vec<KeyPlace>,
    /// The keys that are made in the next place if one place cannot make them.
    pub pass_on: PassOn,
    /// Keys that are in one place, and looked for nowhere else.
    pub assigned: BTreeMap<KeyId, KeyPlace>,
    /// The protection of the store key of the files. Absent: the protection that it has
    /// now; the store key of a new store is in a file.
    pub seal: Option<Seal>,
    /// Keys that one uid may make. Does not bind uid 0.
    pub keys_per_uid: Option<u32>,
    /// Bounds of the audit log.
    pub audit_log: AuditLogSettings,
    /// The rights that keyd keeps once it serves.
    pub sandbox: SandboxSettings,
}

impl KeydSettings {
    /// Returns true if keys may be in hardware, which takes its time.
    #[must_use]
    pub fn has_hardware(&self) -> bool {
        self.pkcs11.is_some() || self.tpm.is_some()
    }
}

/// Bounds of keyd's audit log. What is absent has keyd's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditLogSettings {
    /// Size above which its oldest part is dropped, in MiB.
    pub size_mib: Option<u32>,
    /// Longest time before an entry is on the disk, in milliseconds: what a power cut can
    /// take.
    pub sync_ms: Option<u32>,
    /// Longest time between an entry and a signed checkpoint that covers it, in seconds.
    pub checkpoint_sec: Option<u32>,
    /// Entries that one uid may write in an hour; beyond them equal uses are counted
    /// together.
    pub entries_per_uid_hour: Option<u32>,
}

/// One uid's grant of keys. Several entries for one uid add up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPrincipal {
    /// Unix user id, as `SO_PEERCRED` reports it.
    pub uid: u32,
    /// Patterns with `*` and `?` of the key ids that it may name: make, load, replace,
    /// delete, and use.
    pub keys: Vec<String>,
    /// Patterns of keys that it may use, but not name, with a handle that another uid was
    /// given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub use_only: Vec<String>,
    /// Patterns of keys of which it may use derived ones, and only those, with a handle
    /// that another uid was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub use_derived: Vec<String>,
    /// Patterns of keys of which it may take derived ones out of keyd.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<String>,
    /// True if CA keys sign for this uid.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub certificates: bool,
    /// True if this uid's statement about the party that it asks for is written into the
    /// audit log.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attestor: bool,
    /// The daemons that run as this uid: what they say that they measured is recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub daemons: Vec<Daemon>,
}

/// The purpose of the keys of some ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurposeRule {
    /// Key id pattern with `*` and `?`.
    pub keys: String,
    /// Their purpose.
    pub purpose: Purpose,
}

/// identityd's settings: identity and certificates API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentitydSettings {
    /// The device's name in its network.
    pub hostname: String,
    /// The parent device, in a nested installation.
    #[serde(default)]
    pub parent_hostname: Option<String>,
    /// The source of the device's identity.
    pub provisioning: Provisioning,
    /// The occasions on which the device is provisioned anew.
    #[serde(default)]
    pub reprovisioning: ReprovisioningMode,
    /// Limits and trust for calls to the cloud.
    #[serde(default)]
    pub cloud: CloudSettings,
    /// The users that may call the identity API.
    #[serde(default)]
    pub principals: Vec<IdentityPrincipal>,
    /// Suffix of local identities' names.
    #[serde(default)]
    pub localid_domain: Option<String>,
    /// The users that may write certificates, and the certificates of each.
    #[serde(default)]
    pub cert_principals: Vec<CertPrincipal>,
    /// The issuance of certificates that are asked for without an issuer, by certificate
    /// id.
    #[serde(default)]
    pub cert_issuance: BTreeMap<CertId, Issuance>,
    /// The device's own CA, for `method = "local_ca"`.
    #[serde(default)]
    pub local_ca: Option<LocalCa>,
    /// The EST servers, for `method = "est"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub est: Option<EstSettings>,
    /// Certificates that exist outside the store.
    #[serde(default)]
    pub preloaded_certs: BTreeMap<CertId, PreloadedCert>,
    /// Open connections one uid may hold on one socket.
    #[serde(default)]
    pub connections_per_uid: Option<u32>,
    /// True if identityd gives up the rights that it does not need.
    #[serde(default = "yes")]
    pub sandbox: bool,
}

/// The source of the device's identity. No secret is in here: keys are named by their id
/// in keyd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "source", deny_unknown_fields)]
pub enum Provisioning {
    /// Hub and device id are given.
    Manual {
        /// Host name of the hub.
        hub: String,
        /// Id of the device there.
        device_id: DeviceId,
        /// The proof of the device.
        #[serde(alias = "key", deserialize_with = "credential")]
        credential: DeviceCredential,
    },
    /// The provisioning service assigns hub and device id.
    Dps {
        /// Base URL of the service.
        endpoint: String,
        /// The tenant's scope.
        scope_id: String,
        /// The registration's name. Absent: the common name of the device's certificate.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registration_id: Option<String>,
        /// The proof of the device.
        #[serde(alias = "key", deserialize_with = "credential")]
        credential: DeviceCredential,
        /// JSON that is passed to the allocation policy.
        #[serde(default)]
        payload: Option<serde_json::Value>,
        /// The certificate for the hub that the service issues; absent: the hub knows the
        /// device by the same proof as the service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operational: Option<OperationalCertificate>,
    },
    /// Local identities only.
    None,
}

impl Provisioning {
    /// Returns the settings of the certificate for the hub that the provisioning service
    /// issues, where it does.
    #[must_use]
    pub const fn operational(&self) -> Option<&OperationalCertificate> {
        match self {
            Self::Dps { operational, .. } => operational.as_ref(),
            Self::Manual { .. } | Self::None => None,
        }
    }
}

/// Certificate that the provisioning service issues with a registration, for the hub.
/// Its id and its key's are [`names::OPERATIONAL`]; its renewal is among the issuances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationalCertificate {
    /// Version of the service's interface, which must know certificate requests.
    pub api_version: String,
}

/// Proof by which the provisioning service and the hub know the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "method", deny_unknown_fields)]
pub enum DeviceCredential {
    /// A symmetric key, which signs tokens.
    SymmetricKey {
        /// Id of the key in keyd.
        key: KeyId,
    },
    /// A certificate, which is shown in the TLS handshake.
    X509 {
        /// Id of the certificate.
        cert: CertId,
        /// Id of its key pair in keyd.
        key: KeyId,
    },
    /// The TPM, by its endorsement key, and tokens that it signs.
    Tpm,
}

/// Reads a proof. A text is the id of a symmetric key: settings of earlier versions have
/// that, as `key`. A device that is upgraded must start before it is configured anew.
fn credential<'de, D: Deserializer<'de>>(input: D) -> Result<DeviceCredential, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Key(KeyId),
        Whole(DeviceCredential),
    }
    Ok(match Written::deserialize(input)? {
        Written::Key(key) => DeviceCredential::SymmetricKey { key },
        Written::Whole(credential) => credential,
    })
}

impl DeviceCredential {
    /// Returns the kind of the proof.
    #[must_use]
    pub fn kind(&self) -> CredentialKind {
        match self {
            Self::SymmetricKey { .. } => CredentialKind::SymmetricKey,
            Self::X509 { .. } => CredentialKind::X509,
            Self::Tpm => CredentialKind::Tpm,
        }
    }
}

/// Kind of the proof by which the provisioning service and the hub know the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// A symmetric key.
    #[default]
    SymmetricKey,
    /// A certificate.
    X509,
    /// The TPM.
    Tpm,
}

impl CredentialKind {
    /// Returns the word for the kind as the identity API has it for a registration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SymmetricKey => "symmetric_key",
            Self::X509 => "x509",
            Self::Tpm => "tpm",
        }
    }
}

/// The occasions on which a device that has an identity asks for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ReprovisioningMode {
    /// On refusal of the identity by the hub, or on request.
    #[default]
    Dynamic,
    /// At each start.
    AlwaysOnStartup,
    /// On request only.
    OnErrorOnly,
}

/// Limits and trust for calls to hub and provisioning service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CloudSettings {
    /// Seconds one call may take.
    pub timeout_sec: u64,
    /// Attempts after the first.
    pub retries: u32,
    /// PEM files of roots to trust *instead of* the system's, as absolute paths. Empty:
    /// the system's.
    pub trusted_certs: Vec<String>,
}

impl Default for CloudSettings {
    fn default() -> Self {
        Self { timeout_sec: 70, retries: 1, trusted_certs: Vec::new() }
    }
}

/// One uid's right at the identity API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityPrincipal {
    /// Unix user id.
    pub uid: u32,
    /// The principal's name; for module and local identities their id.
    pub name: String,
    /// The kinds of identity that the principal may have. Empty: every kind (a daemon).
    #[serde(default)]
    pub kinds: Vec<IdentityKind>,
}

/// Kinds of identity a principal may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityKind {
    /// The device's own identity.
    Device,
    /// Its own module identity at the hub.
    Module,
    /// Its own local identity.
    Local,
}

/// One uid's right to write certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertPrincipal {
    /// Unix user id.
    pub uid: u32,
    /// Certificate id patterns with `*` and `?`.
    pub certs: Vec<String>,
    /// True if this uid's statement about the party that it asks for is passed on to
    /// keyd, which writes it down.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attestor: bool,
}

/// The issuance of one certificate when its request names no issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuance {
    /// The signer of the certificate.
    pub method: IssuanceMethod,
    /// Common name that replaces the request's subject.
    #[serde(default)]
    pub common_name: Option<String>,
    /// Days of validity; 30 if absent.
    #[serde(default)]
    pub expiry_days: Option<u32>,
    /// Renewal by identityd; `None`: it is renewed by whoever asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal: Option<crate::renewal::Policy>,
}

/// The signer of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IssuanceMethod {
    /// Its own key; the key pair's id equals the certificate's.
    SelfSigned,
    /// The device's own CA.
    LocalCa,
    /// An EST server.
    Est,
    /// The provisioning service, with a registration.
    Dps,
}

/// The device's own CA: certificate and key pair by their ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalCa {
    /// Certificate id.
    pub cert: CertId,
    /// Key pair id.
    pub key: KeyId,
}

/// EST servers (RFC 7030). The device proves who it is by the certificates `est-id` and
/// `est-bootstrap-id`, by name and password, or by both.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EstSettings {
    /// PEM files of roots to trust *instead of* the system's, as absolute paths. Empty:
    /// the system's.
    pub trusted_certs: Vec<String>,
    /// Base URLs by the id of the certificate; `default` for all others.
    pub urls: BTreeMap<String, String>,
    /// Name and password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic: Option<EstBasic>,
}

/// Name and password for EST servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EstBasic {
    /// Name.
    pub username: String,
    /// Password.
    pub password: SecretText,
}

/// A certificate from outside the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PreloadedCert {
    /// A PEM file's `file://` URI.
    File(String),
    /// An object on a token, which keyd reads.
    Token {
        /// Its `pkcs11:` URI without a PIN, for people.
        token: String,
    },
    /// Other certificates, concatenated; missing ones are skipped.
    List(Vec<CertId>),
}

/// moduled's settings: management and workload API, module runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuledSettings {
    /// The device's name in its network; modules see it as `IOTEDGE_GATEWAYHOSTNAME`.
    pub hostname: String,
    /// The parent device, in a nested installation.
    #[serde(default)]
    pub parent_hostname: Option<String>,
    /// The module that holds the deployment.
    #[serde(default)]
    pub agent: AgentSettings,
    /// Container engine, if containers are used.
    #[serde(default)]
    pub engine: Option<EngineSettings>,
    /// Host executables that modules of type `process` may name as their image.
    #[serde(default)]
    pub host_modules: BTreeMap<String, HostModule>,
    /// Services of the host that something else starts and that have a module's identity.
    #[serde(default)]
    pub host_services: BTreeMap<ModuleId, HostService>,
    /// True if host modules may run as uid 0.
    #[serde(default = "yes")]
    pub allow_root_host_modules: bool,
    /// Ids of which each host module without a `user` gets one for itself. `None`: it
    /// runs as moduled does.
    #[serde(default)]
    pub host_module_ids: Option<IdRange>,
    /// The use of systemd scopes for host modules.
    #[serde(default)]
    pub host_module_scopes: ScopeUse,
    /// Attestation policy by module, where it differs from the default.
    #[serde(default)]
    pub policies: BTreeMap<ModuleId, Policy>,
    /// The CA that signs module certificates.
    #[serde(default)]
    pub edge_ca: EdgeCaSettings,
    /// Errors in a row after which the watchdog gives up; `None`: never.
    #[serde(default)]
    pub watchdog_max_retries: Option<u32>,
    /// True if create options may ask for whatever the engine can do. False: only for
    /// what concerns the container alone and what is granted.
    #[serde(default = "yes")]
    pub allow_elevated_permissions: bool,
    /// The ports of the host that modules may publish without elevated permissions.
    #[serde(default)]
    pub published_ports: PublishedPorts,
    /// The treatment of the daemons' own sockets and state in a module's mount of a
    /// folder above them.
    #[serde(default)]
    pub own_state_in_mounts: OwnState,
    /// Grants by module: what its create options may ask for besides.
    #[serde(default)]
    pub grants: BTreeMap<ModuleId, Grant>,
    /// The images that containers may be made from, beyond what deployments pin. Absent:
    /// any.
    #[serde(default)]
    pub image_policy: Option<ImagePolicy>,
    /// The removal of images of former modules: which are removed, and when.
    #[serde(default)]
    pub image_collection: ImageCollectionSettings,
    /// The key under which modules' data is encrypted, and the ciphertexts that are read.
    #[serde(default)]
    pub module_encryption: ModuleEncryption,
    /// Strings added to systeminfo.
    #[serde(default)]
    pub additional_info: BTreeMap<String, String>,
    /// Open connections one uid may hold on the management socket (50 if absent).
    #[serde(default)]
    pub management_connections_per_uid: Option<u32>,
    /// Open connections one uid may hold on one workload socket (64 if absent).
    #[serde(default)]
    pub workload_connections_per_uid: Option<u32>,
    /// True if moduled, its gauge and its launcher give up the rights that they do not
    /// need.
    #[serde(default = "yes")]
    pub sandbox: bool,
}

/// The key that encrypts the data that modules give to the workload API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModuleEncryption {
    /// A key of each module and generation. What is under the device's one key is read.
    #[default]
    ModuleKey,
    /// The same, and what is under the device's one key is refused.
    ModuleKeyOnly,
    /// The device's one key, as existing services have it, for a way back to them. Both
    /// are read.
    DeviceKey,
}

/// Settings for the removal of images that no module uses any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageCollectionSettings {
    /// True if images are removed at all, unasked.
    pub enabled: bool,
    /// Seconds of operation between two removals by age; whole days keep to the time of
    /// day.
    pub recurrence_sec: u64,
    /// Seconds of operation for which an image must have been unused.
    pub unused_sec: u64,
    /// Minute of the day, UTC, at which images are removed by age.
    pub at_minute: u16,
    /// Percent of the disk from which on images are removed sooner.
    pub high_percent: u8,
    /// Percent of the disk at which that ends.
    pub low_percent: u8,
    /// Seconds for which an image stays after it was fetched or used, whatever else.
    pub grace_sec: u64,
    /// Seconds between two looks at images and disk.
    pub look_sec: u64,
}

impl Default for ImageCollectionSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            recurrence_sec: 86_400,
            unused_sec: 7 * 86_400,
            at_minute: 0,
            high_percent: 85,
            low_percent: 75,
            grace_sec: 600,
            look_sec: 600,
        }
    }
}

fn yes() -> bool {
    true
}

/// The agent module: `edgeAgent`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentSettings {
    /// `docker` or `process`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Image, or name in `host_modules`.
    pub image: String,
    /// The digest that the image's id or one of its manifests must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_hash: Option<Sha256Digest>,
    /// The same; as deployments have both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Sha256Digest>,
    /// The pull policy for a missing image: `on-create` or `never`.
    pub image_pull_policy: String,
    /// Environment, below what moduled sets.
    pub env: BTreeMap<String, String>,
    /// Engine create body, or `Cmd`, `Env`, `WorkingDir` for a process.
    pub create_options: serde_json::Value,
    /// Registry credentials.
    pub auth: Option<serde_json::Value>,
}

impl std::fmt::Debug for AgentSettings {
    /// Environment, options and credentials are not printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentSettings")
            .field("kind", &self.kind)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            kind: "docker".into(),
            image: "mcr.microsoft.com/azureiotedge-agent:1.6".into(),
            image_hash: None,
            digest: None,
            image_pull_policy: "on-create".into(),
            env: BTreeMap::new(),
            create_options: serde_json::Value::Object(serde_json::Map::new()),
            auth: None,
        }
    }
}

/// The address of the container engine, and the network that modules join there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSettings {
    /// `unix:///var/run/docker.sock`.
    pub uri: String,
    /// Name of the network that modules join.
    pub network: String,
    /// The engine's network create body beyond its name (`EnableIPv6`, `IPAM`).
    #[serde(default)]
    pub network_options: serde_json::Map<String, serde_json::Value>,
}

/// The CA that signs module certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdgeCaSettings {
    /// Certificate id.
    pub cert: CertId,
    /// Key pair id.
    pub key: KeyId,
    /// Common name; `aziot-edge CA <deviceId>` if absent.
    pub common_name: Option<String>,
    /// Preferred algorithms of the CA's key, as keyd takes them.
    pub algorithms: String,
    /// Key type of module certificates.
    pub module_keys: ModuleKeys,
    /// Longest validity of a module certificate, in days; beyond 30 the certificates
    /// API's own limit counts.
    pub module_cert_days: u32,
    /// The service that renews the CA's certificate in time.
    pub renewal: EdgeCaRenewal,
    /// Consequence for the modules when the CA gets another key.
    pub on_new_key: OnNewKey,
}

/// Consequence for the modules when the Edge CA gets another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNewKey {
    /// Those that run are restarted, the agent last.
    #[default]
    Restart,
    /// Operators are told.
    Notify,
    /// None.
    None,
}

/// The service that renews the Edge CA's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EdgeCaRenewal {
    /// moduled: the certificates service is one that renews nothing.
    #[default]
    Runtime,
    /// The certificates service. moduled steps in only when the certificate is not valid.
    Service,
    /// None: the operator turned renewal off.
    Off,
    /// None: certificate and key lie in files that the operator replaces.
    Files,
}

impl Default for EdgeCaSettings {
    fn default() -> Self {
        Self {
            cert: names::EDGE_CA.cert(),
            key: names::EDGE_CA.key(),
            common_name: None,
            algorithms: "ec-p256:rsa-2048:*".into(),
            module_keys: ModuleKeys::default(),
            module_cert_days: 30,
            renewal: EdgeCaRenewal::default(),
            on_new_key: OnNewKey::default(),
        }
    }
}

/// Key type of module certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ModuleKeys {
    /// NIST P-256.
    #[default]
    #[serde(rename = "ec-p256")]
    EcP256,
    /// RSA with 2048 bits.
    #[serde(rename = "rsa-2048")]
    Rsa2048,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_of_an_earlier_version_name_the_symmetric_key_alone() {
        let read = |provisioning| serde_json::from_value::<Provisioning>(provisioning);
        let manual = json!({ "source": "manual", "hub": "h", "device_id": "d", "key": "k" });
        let (key, id) = ("k".parse().expect("an id"), "d".parse().expect("an id"));
        let credential = DeviceCredential::SymmetricKey { key };
        let expected = Provisioning::Manual { hub: "h".into(), device_id: id, credential };
        assert_eq!(read(manual).expect("readable"), expected);
        let written = serde_json::to_value(&expected).expect("writable");
        assert_eq!(read(written).expect("readable"), expected, "and as it is written now");
        let dps = json!({ "source": "dps", "endpoint": "https://dps", "scope_id": "s",
            "registration_id": "r", "key": "k", "payload": null });
        let read_dps = read(dps).expect("readable");
        assert!(matches!(
            read_dps,
            Provisioning::Dps { credential: DeviceCredential::SymmetricKey { .. }, .. }
        ));
        let both = json!({ "source": "manual", "hub": "h", "device_id": "d", "key": "k",
            "credential": { "method": "symmetric_key", "key": "k" } });
        assert!(read(both).is_err(), "one of the two");
    }
}
