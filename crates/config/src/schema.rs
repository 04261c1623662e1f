//! Every key that the file may hold, where, and of what type. The tables are data, so
//! that a key in the wrong place can be looked up in all the others.

use std::sync::LazyLock;

/// The form of the value that a key takes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A string.
    Text,
    /// An integer.
    Integer,
    /// An integer, or a word.
    IntegerOrText,
    /// True or false.
    Boolean,
    /// A list of strings.
    Texts,
    /// A list of strings and integers.
    TextsOrIntegers,
    /// A string or a list of strings.
    TextOrTexts,
    /// A table with these keys.
    Table(&'static [Key]),
    /// A list of tables with these keys.
    Tables(&'static [Key]),
    /// A string, or a table with these keys.
    TextOrTable(&'static [Key]),
    /// A table with free keys, all of one type.
    MapOf(&'static Kind),
    /// A table with free content.
    Free,
}

impl Kind {
    /// The type in words, with an article.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Integer => "an integer",
            Self::IntegerOrText => "an integer or a string",
            Self::Boolean => "true or false",
            Self::Texts => "a list of strings",
            Self::TextsOrIntegers => "a list of names and numbers",
            Self::TextOrTexts => "a string or a list of strings",
            Self::Table(_) | Self::MapOf(_) | Self::Free => "a table",
            Self::Tables(_) => "a list of tables",
            Self::TextOrTable(_) => "a string or a table",
        }
    }
}

/// The use that this version has for a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum State {
    /// This version uses the key.
    Used,
    /// This version does not use the key, and going on without it would not be what the
    /// reader asked for. Holds what is lacking, in words.
    NotYet(&'static str),
    /// This version goes on without the key. Holds the reason, in words.
    NoEffect(&'static str),
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// Other spellings that are accepted.
    pub(crate) aliases: &'static [&'static str],
    pub(crate) kind: Kind,
    pub(crate) state: State,
    /// True if the texts of the key are never shown.
    pub(crate) secret: bool,
}

impl Key {
    const fn alias(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn not_yet(mut self, what: &'static str) -> Self {
        self.state = State::NotYet(what);
        self
    }

    const fn no_effect(mut self, why: &'static str) -> Self {
        self.state = State::NoEffect(why);
        self
    }

    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// Returns true if the key may be written as `name`.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }

    /// The keys of the tables it takes, if it takes any.
    pub(crate) const fn keys(&self) -> Option<&'static [Key]> {
        match self.kind {
            Kind::Table(keys) | Kind::Tables(keys) | Kind::TextOrTable(keys) => Some(keys),
            Kind::MapOf(Kind::Table(keys)) => Some(*keys),
            _ => None,
        }
    }
}

const fn key(name: &'static str, kind: Kind) -> Key {
    Key { name, aliases: &[], kind, state: State::Used, secret: false }
}

const fn text(name: &'static str) -> Key {
    key(name, Kind::Text)
}

const fn integer(name: &'static str) -> Key {
    key(name, Kind::Integer)
}

const fn table(name: &'static str, keys: &'static [Key]) -> Key {
    key(name, Kind::Table(keys))
}

/// The top level.
pub(crate) static ROOT: &[Key] = &[
    text("hostname"),
    text("parent_hostname").alias(&["local_gateway_hostname"]),
    integer("cloud_timeout_sec"),
    integer("cloud_retries"),
    key("prefer_module_identity_cache", Kind::Boolean)
        .no_effect("module identities are always cached"),
    text("trust_bundle_cert"),
    text("manifest_trust_bundle_cert").no_effect("nothing uses a manifest trust bundle any more"),
    key("allow_elevated_docker_permissions", Kind::Boolean),
    text("published_ports"),
    text("own_state_in_mounts"),
    text("auto_reprovisioning_mode"),
    text("additional_info"),
    text("imported_master_encryption_key"),
    text("module_encryption"),
    table("aziot_max_requests", AZIOT_MAX_REQUESTS),
    table("iotedge_max_requests", IOTEDGE_MAX_REQUESTS),
    table("provisioning", PROVISIONING),
    table("cert_issuance", CERT_ISSUANCE),
    table("aziot_keys", AZIOT_KEYS),
    key("preloaded_keys", Kind::MapOf(&Kind::Text)),
    key("preloaded_certs", Kind::MapOf(&Kind::TextOrTexts)),
    table("tpm", TPM),
    table("localid", LOCALID),
    table("agent", AGENT),
    table("connect", SOCKETS),
    table("listen", SOCKETS),
    table("watchdog", WATCHDOG),
    table("edge_ca", EDGE_CA),
    table("moby_runtime", MOBY_RUNTIME),
    table("image_garbage_collection", IMAGE_GARBAGE_COLLECTION),
    table("endpoints", ENDPOINTS)
        .no_effect("the daemons' sockets have fixed places under the root folder"),
    table("cloud", CLOUD),
    table("identityd", DAEMON),
    table("moduled", DAEMON),
    key("host_modules", Kind::MapOf(&Kind::Table(HOST_MODULE))),
    key("host_services", Kind::MapOf(&Kind::Table(HOST_SERVICE))),
    key("allow_root_host_modules", Kind::Boolean),
    text("host_module_scopes"),
    text("host_module_ids"),
    key("module_policies", Kind::MapOf(&Kind::Text)),
    table("image_policy", IMAGE_POLICY),
    key("modules", Kind::MapOf(&Kind::Table(MODULE))),
];

static AZIOT_MAX_REQUESTS: &[Key] =
    &[integer("keyd"), integer("certd"), integer("identityd"), integer("tpmd")];

static IOTEDGE_MAX_REQUESTS: &[Key] = &[integer("management"), integer("workload")];

static PROVISIONING: &[Key] = &[
    text("source"),
    text("connection_string").secret(),
    text("iothub_hostname"),
    text("device_id"),
    table("authentication", AUTHENTICATION),
    text("global_endpoint"),
    text("id_scope").alias(&["scope_id"]),
    table("payload", FILE_REFERENCE),
    table("attestation", ATTESTATION),
    table("operational_certificate", OPERATIONAL_CERTIFICATE),
];

static FILE_REFERENCE: &[Key] = &[text("uri")];

static SYMMETRIC_KEY: &[Key] = &[text("value").secret(), text("uri")];

static AUTHENTICATION: &[Key] = &[
    text("method"),
    table("device_id_pk", SYMMETRIC_KEY).secret(),
    key("identity_cert", Kind::TextOrTable(ISSUANCE)),
    text("identity_pk"),
];

static ATTESTATION: &[Key] = &[
    text("method"),
    text("registration_id"),
    table("symmetric_key", SYMMETRIC_KEY).secret(),
    key("identity_cert", Kind::TextOrTable(ISSUANCE)),
    text("identity_pk"),
];

static OPERATIONAL_CERTIFICATE: &[Key] =
    &[text("method"), text("api_version"), table("auto_renew", AUTO_RENEW)];

static ISSUANCE: &[Key] = &[
    text("method"),
    text("url"),
    text("username"),
    text("password").secret(),
    text("bootstrap_identity_cert"),
    text("bootstrap_identity_pk"),
    text("identity_cert"),
    text("identity_pk"),
    text("common_name"),
    key("subject", Kind::MapOf(&Kind::Text)),
    integer("expiry_days"),
    table("auto_renew", AUTO_RENEW),
];

static AUTO_RENEW: &[Key] = &[
    key("rotate_key", Kind::Boolean),
    text("threshold"),
    text("retry"),
    key("enabled", Kind::Boolean),
    text("window"),
];

static CERT_ISSUANCE: &[Key] = &[table("est", EST), table("local_ca", LOCAL_CA)];

static EST: &[Key] = &[
    key("trusted_certs", Kind::Texts),
    table("auth", EST_AUTH),
    key("urls", Kind::MapOf(&Kind::Text)),
    table("identity_auto_renew", AUTO_RENEW),
];

static EST_AUTH: &[Key] = &[
    text("username"),
    text("password").secret(),
    text("bootstrap_identity_cert"),
    text("bootstrap_identity_pk"),
    text("identity_cert"),
    text("identity_pk"),
];

static LOCAL_CA: &[Key] = &[key("cert", Kind::TextOrTable(ISSUANCE)), text("pk")];

static AZIOT_KEYS: &[Key] = &[
    text("homedir_path").no_effect("keys have a fixed place under the root folder"),
    text("pkcs11_lib_path"),
    text("pkcs11_base_slot").secret(),
    key("places", Kind::Texts),
    text("pass_on"),
    text("seal"),
    key("purpose", Kind::Tables(PURPOSE)),
    key("auditors", Kind::TextsOrIntegers),
    text("compat"),
    text("handle_lifetime"),
    integer("keys_per_uid"),
    table("audit_log", AUDIT_LOG),
    key("sandbox", Kind::Boolean),
    key("sandbox_paths", Kind::Texts),
    key("sandbox_network", Kind::Boolean),
];

static PURPOSE: &[Key] = &[text("keys"), text("purpose")];

static AUDIT_LOG: &[Key] = &[
    integer("size_mib"),
    integer("sync_ms"),
    integer("checkpoint_sec"),
    integer("entries_per_uid_hour"),
];

static TPM: &[Key] = &[
    text("tcti"),
    integer("auth_key_index"),
    key("audit_counter", Kind::Boolean),
    integer("audit_counter_index"),
    integer("audit_counter_interval_sec"),
    key("measure", Kind::Boolean),
    integer("measure_pcr"),
    integer("measure_index"),
    key("hierarchy_authorization", Kind::Table(HIERARCHY_AUTHORIZATION)).secret(),
];

static HIERARCHY_AUTHORIZATION: &[Key] = &[
    key("endorsement", Kind::TextOrTable(AUTH_SOURCE)).secret(),
    key("owner", Kind::TextOrTable(AUTH_SOURCE)).secret(),
];

static AUTH_SOURCE: &[Key] = &[text("file"), text("credential")];

static LOCALID: &[Key] = &[text("domain")];

static AGENT: &[Key] = &[
    text("name"),
    text("type"),
    text("imagePullPolicy"),
    key("env", Kind::MapOf(&Kind::Text)).secret(),
    table("config", AGENT_CONFIG),
];

static AGENT_CONFIG: &[Key] = &[
    text("image"),
    text("imageHash"),
    key("createOptions", Kind::Free).secret(),
    text("digest"),
    key("auth", Kind::Free).secret(),
    key("allowElevatedDockerPermissions", Kind::Boolean),
];

static SOCKETS: &[Key] = &[text("workload_uri"), text("management_uri")];

static WATCHDOG: &[Key] = &[key("max_retries", Kind::IntegerOrText)];

static EDGE_CA: &[Key] = &[
    text("method"),
    text("url"),
    text("username"),
    text("password").secret(),
    text("bootstrap_identity_cert"),
    text("bootstrap_identity_pk"),
    text("identity_cert"),
    text("identity_pk"),
    text("common_name"),
    key("subject", Kind::MapOf(&Kind::Text)),
    integer("expiry_days"),
    table("auto_renew", AUTO_RENEW),
    text("cert"),
    text("pk"),
    integer("auto_generated_edge_ca_expiry_days"),
    text("module_keys"),
    text("algorithms"),
    text("on_new_key"),
];

static MOBY_RUNTIME: &[Key] = &[
    text("uri"),
    key("network", Kind::TextOrTable(NETWORK)),
    table("content_trust", CONTENT_TRUST).not_yet("check of image signatures"),
];

static NETWORK: &[Key] = &[text("name"), key("ipv6", Kind::Boolean), table("ipam", IPAM)];

static IPAM: &[Key] = &[key("config", Kind::Tables(IPAM_CONFIG))];

static IPAM_CONFIG: &[Key] = &[text("gateway"), text("subnet"), text("ip_range")];

static CONTENT_TRUST: &[Key] = &[key("ca_certs", Kind::MapOf(&Kind::Text))];

static IMAGE_GARBAGE_COLLECTION: &[Key] = &[
    key("enabled", Kind::Boolean),
    text("cleanup_recurrence"),
    text("image_age_cleanup_threshold"),
    text("cleanup_time"),
    integer("disk_high_percent"),
    integer("disk_low_percent"),
];

static ENDPOINTS: &[Key] =
    &[text("aziot_certd"), text("aziot_identityd"), text("aziot_keyd"), text("aziot_tpmd")];

static DAEMON: &[Key] = &[key("sandbox", Kind::Boolean)];

static CLOUD: &[Key] = &[key("trusted_certs", Kind::Texts)];

static IMAGE_POLICY: &[Key] =
    &[text("signatures"), text("unmatched"), key("images", Kind::MapOf(&Kind::Table(IMAGE_RULE)))];

static IMAGE_RULE: &[Key] = &[key("keys", Kind::Texts), key("signed", Kind::Boolean)];

static MODULE: &[Key] = &[table("grant", GRANT)];

static GRANT: &[Key] = &[
    key("privileged", Kind::Boolean),
    key("capabilities", Kind::Texts),
    key("binds", Kind::Texts),
    key("volumes", Kind::Texts),
    key("devices", Kind::Texts),
    key("namespaces", Kind::Texts),
    key("ports", Kind::Texts),
    key("ulimits", Kind::Texts),
    key("sysctls", Kind::Texts),
    key("runtimes", Kind::Texts),
    key("options", Kind::Texts),
];

static HOST_MODULE: &[Key] = &[
    text("executable"),
    text("sha256"),
    key("args", Kind::Texts),
    key("env", Kind::MapOf(&Kind::Text)).secret(),
    text("working_dir"),
    key("user", Kind::IntegerOrText),
    key("group", Kind::IntegerOrText),
    key("capabilities", Kind::Texts),
    key("read", Kind::Texts),
    key("write", Kind::Texts),
    text("seccomp"),
    key("memory_max", Kind::IntegerOrText),
    key("cpu_quota", Kind::IntegerOrText),
    integer("pids_max"),
    integer("nofile"),
    text("limits"),
    text("restart"),
    key("management", Kind::Boolean),
    key("approves", Kind::Texts),
];

static HOST_SERVICE: &[Key] = &[
    text("unit"),
    key("user", Kind::IntegerOrText),
    text("executable"),
    text("sha256"),
    key("management", Kind::Boolean),
    key("approves", Kind::Texts),
];

/// Every table of the schema with its path, the top level first.
pub(crate) fn tables() -> &'static [(String, &'static [Key])] {
    static TABLES: LazyLock<Vec<(String, &'static [Key])>> = LazyLock::new(all_tables);
    &TABLES
}

fn all_tables() -> Vec<(String, &'static [Key])> {
    fn walk(path: &str, keys: &'static [Key], found: &mut Vec<(String, &'static [Key])>) {
        found.push((path.to_owned(), keys));
        for key in keys {
            if let Some(inner) = key.keys() {
                let path = if path.is_empty() {
                    key.name.to_owned()
                } else {
                    format!("{path}.{}", key.name)
                };
                let path = if matches!(key.kind, Kind::MapOf(_)) {
                    format!("{path}.\"<name>\"")
                } else {
                    path
                };
                walk(&path, inner, found);
            }
        }
    }
    let mut found = Vec::new();
    walk("", ROOT, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_table_has_two_keys_of_one_name() {
        for (path, keys) in tables() {
            let mut names = BTreeSet::new();
            for key in *keys {
                for name in std::iter::once(&key.name).chain(key.aliases) {
                    assert!(names.insert(*name), "{name} twice in [{path}]");
                }
            }
        }
    }
}
