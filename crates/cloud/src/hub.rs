//! The hub's module registry (wire facts 6.3), for the modules of one device.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_core::authority::{Authority, AuthorityError};
use edgekeep_core::foreign_text::cleaned;
use edgekeep_core::id::{DeviceId, GenerationId, ModuleId};
use edgekeep_core::module_list::{Entry, Listing};
use edgekeep_core::provisioning::DeviceIdentity;
use http::Method;
use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use crate::credential::Credential;
use crate::error::CloudError;
use crate::sas::{Audience, Signer, segment};
use crate::transport::{Answer, Call, Session, Transport};

const VERSION: &str = "api-version=2017-11-08-preview";
/// Longest name of who manages a module, in characters.
const MANAGED_BY_LIMIT: usize = 128;

/// A module as the hub has it.
#[derive(Debug, Clone)]
pub struct ModuleRecord {
    /// The module.
    pub module_id: ModuleId,
    /// Generation of the module's identity: another one after the module was deleted and
    /// created again.
    pub generation_id: GenerationId,
    /// Program that manages the identity; `None` if nobody named one.
    pub managed_by: Option<String>,
    /// The entity tag, without quotes.
    pub etag: Option<String>,
    /// The symmetric keys, where the hub shows them.
    pub keys: Option<ModuleKeys>,
}

/// A module as a list of the hub shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedModule {
    /// Generation of the module's identity: another one after the module was deleted and
    /// created again.
    pub generation_id: GenerationId,
    /// Program that manages the identity; `None` if nobody named one.
    pub managed_by: Option<String>,
}

impl From<&ModuleRecord> for ListedModule {
    fn from(record: &ModuleRecord) -> Self {
        Self { generation_id: record.generation_id.clone(), managed_by: record.managed_by.clone() }
    }
}

/// A module's two symmetric keys, in base64 as the hub has them. Wiped on drop and not
/// printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ModuleKeys {
    primary: Zeroizing<String>,
    secondary: Zeroizing<String>,
}

impl ModuleKeys {
    /// The keys with these bytes.
    #[must_use]
    pub fn new(primary: &[u8], secondary: &[u8]) -> Self {
        Self {
            primary: Zeroizing::new(STANDARD.encode(primary)),
            secondary: Zeroizing::new(STANDARD.encode(secondary)),
        }
    }
}

impl fmt::Debug for ModuleKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ModuleKeys(..)")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireModule {
    module_id: String,
    #[serde(default)]
    generation_id: Option<String>,
    #[serde(default)]
    managed_by: Option<String>,
    #[serde(default)]
    etag: Option<String>,
    #[serde(default)]
    authentication: Option<WireAuthentication>,
}

/// One entry of a list, whatever it is: one that is not as it should be takes no other
/// with it.
#[derive(Deserialize)]
#[serde(untagged)]
enum WireListed {
    #[serde(rename_all = "camelCase")]
    Named {
        #[serde(default)]
        module_id: Lenient,
        #[serde(default)]
        generation_id: Lenient,
        #[serde(default)]
        managed_by: Lenient,
    },
    Other(IgnoredAny),
}

/// A text, or anything else.
#[derive(Deserialize)]
#[serde(untagged)]
enum Lenient {
    Text(String),
    Other(IgnoredAny),
}

impl Default for Lenient {
    fn default() -> Self {
        Self::Other(IgnoredAny)
    }
}

impl Lenient {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Other(IgnoredAny) => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireAuthentication {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    symmetric_key: Option<WireKeys>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireKeys {
    #[serde(default)]
    primary_key: Option<String>,
    #[serde(default)]
    secondary_key: Option<String>,
}

/// Client of one device's modules at its hub.
#[derive(Debug)]
pub struct Hub<S> {
    transport: Arc<Transport>,
    /// Host that calls connect to: the hub, or the parent device in a nested
    /// installation.
    to: Authority,
    /// The hub's own name: Host header and audience, also in a nested installation.
    name: String,
    device_id: DeviceId,
    audience: Audience,
    credential: Credential<S>,
}

impl<S: Signer> Hub<S> {
    /// A client for `identity`, through `parent` if there is one. Nothing is opened.
    ///
    /// # Errors
    /// If the hub or the parent is not named by a host name.
    pub fn new(
        transport: Arc<Transport>,
        identity: &DeviceIdentity,
        parent: Option<&str>,
        credential: Credential<S>,
    ) -> Result<Self, AuthorityError> {
        let to = parent.unwrap_or(&identity.hub).parse()?;
        let _: Authority = identity.hub.parse()?;
        let audience = Audience {
            resource: format!("{}/devices/{}", identity.hub, identity.device_id),
            key_name: None,
        };
        Ok(Self {
            transport,
            to,
            name: identity.hub.clone(),
            device_id: identity.device_id.clone(),
            audience,
            credential,
        })
    }

    /// All modules of the device, as far as the list can be read.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub async fn list(&self) -> Result<Listing<ListedModule>, CloudError> {
        let mut session = self.transport.session(&self.to, &self.credential)?;
        let answer = self.send(&mut session, Method::GET, None, None, None).await?;
        let found: Vec<WireListed> = serde_json::from_slice(&answer.body)
            .map_err(|error| session.unexpected(&error.to_string()))?;
        Ok(found.into_iter().map(listed).collect())
    }

    /// One module.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub async fn get(&self, module: &ModuleId) -> Result<ModuleRecord, CloudError> {
        let mut session = self.transport.session(&self.to, &self.credential)?;
        self.get_in(&mut session, module).await
    }

    /// Makes sure that the module exists and that the hub has the keys that belong to its
    /// generation.
    ///
    /// With `create`, a missing module is created; one that exists already (a second
    /// attempt after an answer was lost, or somebody else was first) is taken over.
    /// `keys` gives the keys for a generation.
    ///
    /// # Errors
    /// See [`CloudError`]; [`CloudError::NotFound`] without `create` if there is no such
    /// module.
    pub async fn ensure<F, E>(
        &self,
        module: &ModuleId,
        create: bool,
        keys: impl Fn(GenerationId) -> F,
    ) -> Result<ModuleRecord, EnsureError<E>>
    where
        F: Future<Output = Result<ModuleKeys, E>>,
    {
        let mut session = self.transport.session(&self.to, &self.credential)?;
        let mut found = if create {
            match self.put(&mut session, module, None, None).await {
                Err(CloudError::Conflict { .. }) => self.get_in(&mut session, module).await?,
                other => other?,
            }
        } else {
            self.get_in(&mut session, module).await?
        };
        // Twice: somebody may change the module between our reading and our writing, but
        // not for ever.
        for last in [false, true] {
            let wanted = keys(found.generation_id.clone()).await.map_err(EnsureError::Keys)?;
            if found.keys.as_ref() == Some(&wanted) {
                return Ok(found);
            }
            let tag =
                found.etag.as_ref().map_or_else(|| "*".to_owned(), |tag| format!("\"{tag}\""));
            match self.put(&mut session, module, Some(tag), Some(&wanted)).await {
                Err(CloudError::Conflict { .. }) if !last => {
                    found = self.get_in(&mut session, module).await?;
                }
                Err(error) => return Err(error.into()),
                Ok(written) => return Ok(written),
            }
        }
        Ok(found)
    }

    /// Deletes a module.
    ///
    /// # Errors
    /// See [`CloudError`]; [`CloudError::NotFound`] if there is none.
    pub async fn delete(&self, module: &ModuleId) -> Result<(), CloudError> {
        let mut session = self.transport.session(&self.to, &self.credential)?;
        self.send(&mut session, Method::DELETE, Some(module), Some("*".to_owned()), None)
            .await
            .map(drop)
    }

    async fn get_in(
        &self,
        session: &mut Session<'_>,
        module: &ModuleId,
    ) -> Result<ModuleRecord, CloudError> {
        let answer = self.send(session, Method::GET, Some(module), None, None).await?;
        parse(session, module, &answer)
    }

    async fn put(
        &self,
        session: &mut Session<'_>,
        module: &ModuleId,
        if_match: Option<String>,
        keys: Option<&ModuleKeys>,
    ) -> Result<ModuleRecord, CloudError> {
        // Assembled by hand so that the keys are only ever in memory that is wiped.
        // Neither ids nor base64 need escaping beyond what the string serializer does.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let mut body = Zeroizing::new(Vec::with_capacity(512));
        body.extend_from_slice(
            format!(
                "{{\"moduleId\":{},\"deviceId\":{}",
                quoted(module.as_str()),
                quoted(self.device_id.as_str())
            )
            .as_bytes(),
        );
        if let Some(keys) = keys {
            body.extend_from_slice(
                b",\"authentication\":{\"type\":\"sas\",\"symmetricKey\":{\"primaryKey\":\"",
            );
            body.extend_from_slice(keys.primary.as_bytes());
            body.extend_from_slice(b"\",\"secondaryKey\":\"");
            body.extend_from_slice(keys.secondary.as_bytes());
            body.extend_from_slice(b"\"}}");
        }
        body.push(b'}');
        let answer = self.send(session, Method::PUT, Some(module), if_match, Some(body)).await?;
        parse(session, module, &answer)
    }

    async fn send(
        &self,
        session: &mut Session<'_>,
        method: Method,
        module: Option<&ModuleId>,
        if_match: Option<String>,
        body: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Answer, CloudError> {
        let device = self.device_id.as_str();
        if device.bytes().all(|c| c == b'.') {
            return Err(CloudError::Request {
                what: "a device id of dots cannot stand in a URL".to_owned(),
            });
        }
        let mut path = format!("/devices/{}/modules", segment(device));
        if let Some(module) = module {
            path.push('/');
            path.push_str(&segment(module.as_str()));
        }
        path.push('?');
        path.push_str(VERSION);
        let subject = if module.is_some() { "module" } else { "device" };
        let call = Call {
            method,
            path,
            host: &self.name,
            if_match,
            body,
            audience: &self.audience,
            is_anonymous: false,
            subject,
        };
        session.call(&call, &self.credential).await
    }
}

/// Failure of [`Hub::ensure`].
#[derive(Debug, thiserror::Error)]
pub enum EnsureError<E> {
    /// The hub.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// The keys could not be made.
    #[error("the module's keys could not be made")]
    Keys(#[source] E),
}

fn parse(
    session: &Session<'_>,
    module: &ModuleId,
    answer: &Answer,
) -> Result<ModuleRecord, CloudError> {
    let found: WireModule = serde_json::from_slice(&answer.body)
        .map_err(|error| session.unexpected(&error.to_string()))?;
    let found = record(found, answer.etag.clone()).map_err(|what| session.unexpected(what))?;
    if found.module_id != *module {
        return Err(session.unexpected("it is about another module than was asked for"));
    }
    Ok(found)
}

/// An entry of the list that cannot be read may still say which module it is about.
fn listed(found: WireListed) -> Entry<ListedModule> {
    let WireListed::Named { module_id, generation_id, managed_by } = found else {
        return Entry::Nameless;
    };
    let Some(module_id) = module_id.text().and_then(|id| id.parse().ok()) else {
        return Entry::Nameless;
    };
    let Some(generation_id) = generation_id.text().and_then(|id| id.parse().ok()) else {
        return Entry::Unreadable(module_id);
    };
    let managed_by = managed_by.text().map(|name| cleaned(&name, MANAGED_BY_LIMIT));
    Entry::Readable(module_id, ListedModule { generation_id, managed_by })
}

fn record(module: WireModule, etag: Option<String>) -> Result<ModuleRecord, &'static str> {
    let keys =
        module.authentication.filter(|it| it.kind.as_deref() == Some("sas")).and_then(|it| {
            let keys = it.symmetric_key?;
            let (primary, secondary) =
                (keys.primary_key.map(Zeroizing::new), keys.secondary_key.map(Zeroizing::new));
            Some(ModuleKeys { primary: primary?, secondary: secondary? })
        });
    // A tag goes into a header of ours: nothing but plain characters.
    let etag = etag.or(module.etag).filter(|tag| {
        !tag.is_empty()
            && tag.len() <= 128
            && tag.bytes().all(|c| c.is_ascii_graphic() && c != b'"')
    });
    Ok(ModuleRecord {
        module_id: module.module_id.parse().map_err(|_| "a module id that is none")?,
        generation_id: module
            .generation_id
            .ok_or("a module without a generation")?
            .parse()
            .map_err(|_| "a generation that is none")?,
        managed_by: module.managed_by.map(|name| cleaned(&name, MANAGED_BY_LIMIT)),
        etag,
        keys,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_takes_the_tag_of_the_header_before_that_of_the_body_and_no_dangerous_one() {
        let module = || {
            serde_json::from_str(r#"{"moduleId":"m","generationId":"1","etag":"AAA="}"#).unwrap()
        };
        assert_eq!(record(module(), Some("BBB=".into())).unwrap().etag.as_deref(), Some("BBB="));
        assert_eq!(record(module(), None).unwrap().etag.as_deref(), Some("AAA="));
        assert_eq!(record(module(), Some("a\"\r\nb".into())).unwrap().etag, None);
    }

    #[test]
    fn a_record_with_an_id_that_could_steer_a_path_is_refused() {
        let module = serde_json::from_str(r#"{"moduleId":"../x","generationId":"1"}"#).unwrap();
        assert_eq!(record(module, None).unwrap_err(), "a module id that is none");
    }

    #[test]
    fn an_entry_with_an_unusable_generation_still_says_which_module_it_is_about() {
        let read = |text: &str| listed(serde_json::from_str(text).unwrap());
        for text in [
            r#"{"moduleId":"m"}"#,
            r#"{"moduleId":"m","generationId":""}"#,
            r#"{"moduleId":"m","generationId":"a b"}"#,
            r#"{"moduleId":"m","generationId":7}"#,
        ] {
            assert_eq!(read(text), Entry::Unreadable("m".parse().unwrap()), "{text}");
        }
        for text in [
            "7",
            "null",
            "[]",
            "{}",
            r#"{"moduleId":"../x","generationId":"1"}"#,
            r#"{"moduleId":7}"#,
        ] {
            assert_eq!(read(text), Entry::Nameless, "{text}");
        }
        let entry =
            read(r#"{"moduleId":"m","generationId":"1","managedBy":"a\u202e","authentication":7}"#);
        let Entry::Readable(id, module) = entry else { panic!("{entry:?}") };
        assert_eq!((id.as_str(), module.managed_by.as_deref()), ("m", Some("a\u{fffd}")));
    }

    #[test]
    fn keys_do_not_print_themselves() {
        let keys = ModuleKeys::new(b"primary", b"secondary");
        assert_eq!(format!("{keys:?}"), "ModuleKeys(..)");
    }
}
