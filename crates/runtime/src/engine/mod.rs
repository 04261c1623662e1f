//! Client of the container engine's API (Docker, Podman's compatible service) over its
//! Unix socket.
//!
//! A module is addressed by its [`ModuleId`], resolved to one container object by its
//! exact name and owner label; what is then called carries the container's id. So no id
//! prefix, no other container of the host and no path trick reaches the engine (wire
//! facts, W1 and W2). Paths carry no API version, so each engine answers in its own.

mod container;
mod create;
mod http;
mod standing;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use edgekeep_core::create_options::{MadeMount, Volume, volumes_from};
use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::id::{ContainerId, ModuleId};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::evidence::ImageLayers;
use crate::gauge::GaugeError;
use crate::logs::{LogQuery, LogStream};

pub use container::Container;
pub(crate) use container::Listed;
pub use create::{
    ContainerSpec, CreateBody, CreateOptionsError, NETWORKS_LABEL, OPTIONS_LABEL,
    ORIGINAL_IMAGE_LABEL, OWNER, OWNER_LABEL, create_body, wanted_networks,
};

use http::{ANSWER_LIMIT, Call, Connector, JsonLines, Target};

/// A pull that reports nothing for so long has stalled.
const PULL_SILENCE: Duration = Duration::from_secs(300);

/// Number of times that a failed list is asked for again. A list can fail because a
/// listed container or image is being removed.
const LIST_TRIES: u32 = 5;

/// Failure of a call to the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The URI of the settings is not usable.
    #[error("the engine's URI must be unix:///PATH")]
    Uri,
    /// Nobody answers.
    #[error("cannot reach the container engine at {}; is it running, and may this user open its socket?", socket.display())]
    Connect {
        /// The engine's socket.
        socket: PathBuf,
        /// Error of the connection.
        #[source]
        source: io::Error,
    },
    /// The request could not be formed.
    #[error("cannot form a request to the container engine")]
    Request {
        /// The fault of the request.
        #[source]
        source: ::http::Error,
    },
    /// The connection broke.
    #[error("the connection to the container engine broke")]
    Transport(#[from] hyper::Error),
    /// No answer in time.
    #[error("the container engine did not answer within {limit:?}")]
    Timeout {
        /// Length of the wait.
        limit: Duration,
    },
    /// The engine refused.
    #[error("the container engine answered {status}: {message}")]
    Answer {
        /// HTTP status.
        status: u16,
        /// The engine's own words.
        message: String,
    },
    /// More than is held in memory.
    #[error("the container engine's answer is longer than {limit} bytes")]
    TooLong {
        /// Longest answer that is taken, in bytes.
        limit: usize,
    },
    /// The answer is not JSON, or not of the documented form.
    #[error("the container engine's answer has an unknown form")]
    NotJson,
    /// The first process of a container was not looked at.
    #[error(transparent)]
    Gauge(#[from] GaugeError),
    /// The image's name is not one.
    #[error("an image name holds letters, digits and . _ - / : @ only, and no dot segments")]
    ImageName,
    /// The module has no container.
    #[error("module {module} has no container")]
    NoContainer {
        /// Id of the module.
        module: ModuleId,
    },
    /// A container of the module's name exists that is not a module.
    #[error("container {module} was not made as a module; rename or remove it")]
    NotAModule {
        /// Module id that has the same name.
        module: ModuleId,
    },
    /// Create options that cannot be used.
    #[error(transparent)]
    Options(#[from] CreateOptionsError),
    /// The engine made the container from another image than was asked for.
    #[error("the engine used image {used} instead of {wanted}; the container was removed")]
    OtherImage {
        /// The image that was asked for.
        wanted: Sha256Digest,
        /// The image that the container has.
        used: Sha256Digest,
    },
}

impl EngineError {
    /// The status to pass on to a client of the management API, where the engine or its
    /// state gave one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Answer { status, .. } => Some(*status),
            Self::NoContainer { .. } => Some(404),
            Self::NotAModule { .. } => Some(409),
            Self::Options(_) | Self::ImageName => Some(400),
            _ => None,
        }
    }

    fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }
}

/// A created container: the part of a registration that the engine knows, and the
/// properties that are still to be judged.
#[derive(Clone, PartialEq, Eq)]
pub struct Created {
    /// The container.
    pub container: ContainerId,
    /// The image that it runs.
    pub image: Sha256Digest,
    /// Digest of the create options.
    pub options: Sha256Digest,
    /// The body that it was made from. It holds the environment.
    pub body: Map<String, Value>,
    /// Mounts of the container.
    pub mounts: Vec<MadeMount>,
}

/// The body holds the environment, and with it secrets.
impl std::fmt::Debug for Created {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Created");
        shown
            .field("container", &self.container)
            .field("image", &self.image)
            .field("options", &self.options);
        shown.field("mounts", &self.mounts).finish_non_exhaustive()
    }
}

/// A container engine. Cheap to clone; holds no connection.
#[derive(Debug, Clone)]
pub struct Engine {
    connector: Connector,
}

impl Engine {
    /// The engine behind a Unix socket.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { connector: Connector::new(socket.into()) }
    }

    /// The engine at `unix:///PATH`.
    ///
    /// # Errors
    /// Any other form of URI.
    pub fn from_uri(uri: &str) -> Result<Self, EngineError> {
        let path = uri
            .strip_prefix("unix://")
            .filter(|path| path.starts_with('/'))
            .ok_or(EngineError::Uri)?;
        Ok(Self::new(path))
    }

    /// Creates the module's container, not started. The image must be present
    /// ([`Self::pull`]); it is taken by its id.
    ///
    /// # Errors
    /// 404 if the image is absent, 409 if the name is taken; unusable create options;
    /// engine away.
    pub async fn create(
        &self,
        module: &ModuleId,
        spec: &ContainerSpec<'_>,
    ) -> Result<Created, EngineError> {
        let wanted = match spec.image_id {
            Some(measured) => measured,
            None => self.image_id(spec.image).await?,
        };
        let CreateBody { body, options } = create_body(spec, Some(&wanted))?;
        let mut call = Call::post(Target::new("/containers/create").query("name", module.name()));
        let sent = body.as_object().cloned().unwrap_or_default();
        call.body = Some(body);
        let answer: Value = self.connector.json(call).await?;
        let container: ContainerId =
            answer["Id"].as_str().and_then(|id| id.parse().ok()).ok_or(EngineError::NotJson)?;
        let looked = self.look_at(&container, wanted).await;
        // What cannot be looked at is not left behind.
        match looked {
            Ok((image, mounts)) => Ok(Created { container, image, options, body: sent, mounts }),
            Err(error) => {
                self.delete_id(&container).await?;
                Err(error)
            }
        }
    }

    async fn look_at(
        &self,
        container: &ContainerId,
        wanted: Sha256Digest,
    ) -> Result<(Sha256Digest, Vec<MadeMount>), EngineError> {
        let answer = self.inspect_id(container).await?;
        let made = Container::from_inspect(&answer).ok_or(EngineError::NotJson)?;
        if made.image != wanted {
            return Err(EngineError::OtherImage { wanted, used: made.image });
        }
        let mounts = container::mounts(&answer).ok_or(EngineError::NotJson)?;
        Ok((made.image, mounts))
    }

    /// Returns the mounts of a container, by its name or id, and the containers from
    /// which it takes over more mounts. `None` if there is no such container.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn mounts(
        &self,
        container: &str,
    ) -> Result<Option<(Vec<MadeMount>, BTreeSet<String>)>, EngineError> {
        let answer: Value = match self
            .connector
            .json(Call::get(Target::new("/containers").segment(container, "/json")))
            .await
        {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        let from = answer.as_object().map(volumes_from).unwrap_or_default();
        container::mounts(&answer).map(|mounts| Some((mounts, from))).ok_or(EngineError::NotJson)
    }

    /// A volume by its name; `None` if there is none.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn volume(&self, name: &str) -> Result<Option<Volume>, EngineError> {
        match self.connector.json(Call::get(Target::new("/volumes").segment(name, ""))).await {
            Ok(answer) => container::volume(&answer).map(Some).ok_or(EngineError::NotJson),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The module's container.
    ///
    /// # Errors
    /// [`EngineError::NoContainer`], [`EngineError::NotAModule`], or the engine is away.
    pub async fn find(&self, module: &ModuleId) -> Result<Container, EngineError> {
        self.find_raw(module).await.map(|(container, _)| container)
    }

    async fn find_raw(&self, module: &ModuleId) -> Result<(Container, Value), EngineError> {
        let absent = || EngineError::NoContainer { module: module.clone() };
        let target = Target::new("/containers").segment(module.name(), "/json");
        let answer = match self.connector.json(Call::get(target)).await {
            Err(error) if error.is_not_found() => return Err(absent()),
            other => other?,
        };
        let container = Container::from_inspect(&answer).ok_or(EngineError::NotJson)?;
        // The engine also takes a prefix of an id for a name.
        if container.name != module.name() {
            return Err(absent());
        }
        if !container.is_module() {
            return Err(EngineError::NotAModule { module: module.clone() });
        }
        Ok((container, answer))
    }

    /// Starts the module's container; one that runs already stays as it is.
    ///
    /// # Errors
    /// As [`Self::find`]; what the engine says.
    pub async fn start(&self, module: &ModuleId) -> Result<(), EngineError> {
        let id = self.find(module).await?.id;
        self.connector
            .status_only(Call::post(Target::new("/containers").segment(id.as_str(), "/start")))
            .await
    }

    /// Stops the module's container: SIGTERM, then SIGKILL after `grace` (`None`: the
    /// engine's or container's default).
    ///
    /// # Errors
    /// As [`Self::find`]; what the engine says.
    pub async fn stop(
        &self,
        module: &ModuleId,
        grace: Option<Duration>,
    ) -> Result<(), EngineError> {
        self.end(module, "/stop", grace).await
    }

    /// Stops and starts the module's container.
    ///
    /// # Errors
    /// As [`Self::find`]; what the engine says.
    pub async fn restart(
        &self,
        module: &ModuleId,
        grace: Option<Duration>,
    ) -> Result<(), EngineError> {
        self.end(module, "/restart", grace).await
    }

    async fn end(
        &self,
        module: &ModuleId,
        action: &'static str,
        grace: Option<Duration>,
    ) -> Result<(), EngineError> {
        let (container, inspect) = self.find_raw(module).await?;
        let mut target = Target::new("/containers").segment(container.id.as_str(), action);
        if let Some(grace) = grace {
            target = target.query("t", &grace.as_secs().to_string());
        }
        let own_default = inspect["Config"]["StopTimeout"].as_u64().unwrap_or(10);
        let mut call = Call::post(target);
        call.limit += grace.unwrap_or(Duration::from_secs(own_default.min(3600)));
        self.connector.status_only(call).await
    }

    /// Removes the module's container, running or not; volumes are kept.
    ///
    /// # Errors
    /// As [`Self::find`]; what the engine says.
    pub async fn delete(&self, module: &ModuleId) -> Result<(), EngineError> {
        let id = self.find(module).await?.id;
        self.delete_id(&id).await
    }

    /// Removes a container by its id, running or not; one that is gone already is no
    /// error.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn remove(&self, id: &ContainerId) -> Result<(), EngineError> {
        match self.delete_id(id).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// 404 if it is gone, 409 if the name is taken; what the engine says.
    pub async fn rename(&self, id: &ContainerId, name: &str) -> Result<(), EngineError> {
        let target = Target::new("/containers").segment(id.as_str(), "/rename").query("name", name);
        self.connector.status_only(Call::post(target)).await
    }

    /// A container by its id, whatever its name; `None` if it is gone.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn container(&self, id: &ContainerId) -> Result<Option<Container>, EngineError> {
        match self.inspect_id(id).await {
            Ok(answer) => Container::from_inspect(&answer).map(Some).ok_or(EngineError::NotJson),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete_id(&self, id: &ContainerId) -> Result<(), EngineError> {
        let target = Target::new("/containers")
            .segment(id.as_str(), "")
            .query("v", "false")
            .query("force", "true");
        self.connector.status_only(Call::new(Method::DELETE, target)).await
    }

    /// The module's container as the engine describes it, in full. It holds the
    /// environment: not for every caller.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub async fn inspect(&self, module: &ModuleId) -> Result<Value, EngineError> {
        self.find_raw(module).await.map(|(_, answer)| answer)
    }

    pub(crate) async fn inspect_id(&self, id: &ContainerId) -> Result<Value, EngineError> {
        self.connector
            .json(Call::get(Target::new("/containers").segment(id.as_str(), "/json")))
            .await
    }

    /// All modules' containers, in any state.
    pub(crate) async fn module_containers(&self) -> Result<Vec<Listed>, EngineError> {
        let filters = json!({ "label": [format!("{OWNER_LABEL}={OWNER}")] }).to_string();
        let target =
            Target::new("/containers/json").query("all", "true").query("filters", &filters);
        self.list(&target).await
    }

    /// A list, which Podman fails to give as a whole when one of what it lists is removed
    /// meanwhile: it is asked again.
    async fn list<T: DeserializeOwned>(&self, target: &Target) -> Result<T, EngineError> {
        let mut tries = 0;
        loop {
            match self.connector.json(Call::get(target.clone())).await {
                Err(error) if matches!(error.status(), Some(404 | 500)) && tries < LIST_TRIES => {
                    tries += 1;
                }
                answered => return answered,
            }
        }
    }

    /// The module's log, framed also where the container has a terminal.
    ///
    /// # Errors
    /// As [`Self::find`]; what the engine says.
    pub async fn logs(
        &self,
        module: &ModuleId,
        query: &LogQuery,
    ) -> Result<LogStream, EngineError> {
        let (container, inspect) = self.find_raw(module).await?;
        let flag = |set: bool| if set { "true" } else { "false" };
        let tail = query.tail.map_or("all".to_owned(), |lines| lines.to_string());
        let mut target = Target::new("/containers")
            .segment(container.id.as_str(), "/logs")
            .query("stdout", "true")
            .query("stderr", "true")
            .query("follow", flag(query.follow))
            .query("timestamps", flag(query.timestamps))
            .query("since", &query.since.to_string())
            .query("tail", &tail);
        if let Some(until) = query.until {
            target = target.query("until", &until.to_string());
        }
        let body = self.connector.send(Call::get(target)).await?.into_body();
        Ok(match inspect["Config"]["Tty"].as_bool() {
            Some(true) => LogStream::from_engine_terminal(body),
            _ => LogStream::from_engine(body),
        })
    }

    /// The engine's statistics of the module's container, once.
    ///
    /// # Errors
    /// As [`Self::find`]; what the engine says.
    pub async fn stats(&self, module: &ModuleId) -> Result<Value, EngineError> {
        let id = self.find(module).await?.id;
        let target =
            Target::new("/containers").segment(id.as_str(), "/stats").query("stream", "false");
        self.connector.json(Call::get(target)).await
    }

    /// Pulls an image; without tag or digest `latest`, not every tag. As long as progress
    /// is reported it may take.
    ///
    /// `auth` is the deployment's `auth` object (`username`, `password`,
    /// `serveraddress`).
    ///
    /// # Errors
    /// What the engine or the registry said; no progress for five minutes.
    pub async fn pull(&self, image: &str, auth: Option<&Value>) -> Result<(), EngineError> {
        let reference = with_tag(image_reference(image)?);
        let mut call = Call::post(Target::new("/images/create").query("fromImage", &reference));
        call.registry_auth =
            auth.filter(|auth| !auth.is_null()).map(|auth| URL_SAFE.encode(auth.to_string()));
        // Some engines send the headers with the first progress only.
        call.limit = PULL_SILENCE;
        let mut progress = JsonLines::new(self.connector.send(call).await?.into_body());
        let mut last = Value::Null;
        loop {
            let next = timeout(PULL_SILENCE, progress.next()).await;
            match next.map_err(|_| EngineError::Timeout { limit: PULL_SILENCE })?? {
                Some(value) => {
                    tell_progress(image, &last, &value);
                    last = value;
                }
                None => return pull_outcome(&last),
            }
        }
    }

    /// The content id of an image.
    ///
    /// # Errors
    /// 404 if it is absent; engine away.
    pub async fn image_id(&self, image: &str) -> Result<Sha256Digest, EngineError> {
        let answer = self.image_inspect(image).await?;
        answer["Id"].as_str().and_then(|id| id.parse().ok()).ok_or(EngineError::NotJson)
    }

    /// An image as the engine describes it, by name or id.
    ///
    /// # Errors
    /// 404 if it is absent; engine away.
    pub async fn image_inspect(&self, image: &str) -> Result<Value, EngineError> {
        let image = image_reference(image)?;
        self.connector.json(Call::get(Target::new("/images").segment(image, "/json"))).await
    }

    /// The folders of an image's layers; `None` if the engine does not keep them as
    /// overlay folders.
    ///
    /// # Errors
    /// As [`Self::image_inspect`].
    pub async fn image_layers(
        &self,
        image: &Sha256Digest,
    ) -> Result<Option<ImageLayers>, EngineError> {
        Ok(ImageLayers::from_image_inspect(&self.image_inspect(&image.to_string()).await?))
    }

    /// All images.
    ///
    /// # Errors
    /// Engine away.
    pub async fn images(&self) -> Result<Value, EngineError> {
        self.list(&Target::new("/images/json")).await
    }

    /// The images of all containers, whoever's and in whatever state.
    ///
    /// # Errors
    /// Engine away.
    pub async fn container_images(&self) -> Result<Vec<Sha256Digest>, EngineError> {
        let answer: Value =
            self.list(&Target::new("/containers/json").query("all", "true")).await?;
        let entries = answer.as_array().ok_or(EngineError::NotJson)?;
        entries
            .iter()
            .map(|entry| entry["ImageID"].as_str()?.parse().ok())
            .collect::<Option<_>>()
            .ok_or(EngineError::NotJson)
    }

    /// Removes an image that no container uses, and its names, which must be all that it
    /// has.
    ///
    /// # Errors
    /// 404 if it is absent, 409 if it is in use; engine away.
    pub async fn delete_image(
        &self,
        image: &Sha256Digest,
        names: &[String],
    ) -> Result<(), EngineError> {
        // By its id the engine removes it only when it has one name at most. The last one
        // is left for that.
        for name in names.iter().skip(1) {
            // A name that means another image by now is not ours to take away.
            if self.image_id(name).await? == *image {
                self.delete_image_reference(name).await?;
            }
        }
        self.delete_image_reference(&image.to_string()).await
    }

    async fn delete_image_reference(&self, reference: &str) -> Result<(), EngineError> {
        let target =
            Target::new("/images").segment(image_reference(reference)?, "").query("force", "false");
        self.connector.status_only(Call::new(Method::DELETE, target)).await
    }

    /// Makes the network if there is none of exactly this name. `options` are further
    /// members of the create body (`EnableIPv6`, `IPAM`).
    ///
    /// # Errors
    /// What the engine says.
    pub async fn ensure_network(
        &self,
        name: &str,
        options: &Map<String, Value>,
    ) -> Result<(), EngineError> {
        if self.networks(Some(name)).await?.iter().any(|network| network["Name"] == name) {
            return Ok(());
        }
        let mut body = options.clone();
        body.insert("Name".into(), name.into());
        body.insert("CheckDuplicate".into(), true.into());
        let mut call = Call::post(Target::new("/networks/create"));
        call.body = Some(Value::Object(body));
        match self.connector.json::<Value>(call).await {
            // Somebody else made it meanwhile.
            Err(error) if error.status() == Some(409) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The engine's networks; with a name also those that contain it, as the engine's
    /// filter works.
    ///
    /// # Errors
    /// Engine away.
    pub async fn networks(&self, name: Option<&str>) -> Result<Vec<Value>, EngineError> {
        let mut target = Target::new("/networks");
        if let Some(name) = name {
            target = target.query("filters", &json!({ "name": { name: true } }).to_string());
        }
        match self.connector.json::<Value>(Call::get(target)).await? {
            Value::Array(networks) => Ok(networks),
            _ => Err(EngineError::NotJson),
        }
    }

    /// The engine's description of itself (`ServerVersion` and more).
    ///
    /// # Errors
    /// Engine away.
    pub async fn info(&self) -> Result<Value, EngineError> {
        self.connector.json(Call::get(Target::new("/info"))).await
    }

    /// The engine's and its API's version.
    ///
    /// # Errors
    /// Engine away.
    pub async fn version(&self) -> Result<Value, EngineError> {
        self.connector.json(Call::get(Target::new("/version"))).await
    }

    /// The engine's events about containers and networks, from now on.
    pub(crate) async fn events(&self) -> Result<Events, EngineError> {
        let filters = json!({ "type": ["container", "network"] }).to_string();
        let mut call = Call::get(Target::new("/events").query("filters", &filters));
        call.limit = ANSWER_LIMIT;
        Ok(Events(JsonLines::new(self.connector.send(call).await?.into_body())))
    }

    /// Goes through what the engine remembers of one container since a moment, in seconds
    /// since the epoch.
    pub(crate) async fn past_events(
        &self,
        id: &ContainerId,
        since: i64,
        mut each: impl FnMut(&Event),
    ) -> Result<(), EngineError> {
        let filters = json!({ "type": ["container"], "container": [id.as_str()] }).to_string();
        // With a moment that has passed as its end the stream ends by itself; whole
        // seconds would cut off the last one.
        let until = OffsetDateTime::now_utc().unix_timestamp_nanos();
        let until = format!("{}.{:09}", until / 1_000_000_000, until % 1_000_000_000);
        let target =
            Target::new("/events").query("filters", &filters).query("since", &since.to_string());
        let mut call = Call::get(target.query("until", &until));
        call.limit = ANSWER_LIMIT;
        let mut stream = Events(JsonLines::new(self.connector.send(call).await?.into_body()));
        while let Some(event) = stream.next().await? {
            each(&event);
        }
        Ok(())
    }
}

/// A stream of events.
#[derive(Debug)]
pub(crate) struct Events(JsonLines);

/// One event, as far as it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Absent if it is about a network.
    pub(crate) container: Option<ContainerId>,
    pub(crate) action: String,
    /// Nanoseconds since the epoch.
    pub(crate) time: Option<i64>,
}

impl Events {
    /// The next event; `None` when the engine closed the stream. Events of an unknown
    /// form are passed over.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, EngineError> {
        while let Some(value) = self.0.next().await? {
            let id = value["Actor"]["ID"]
                .as_str()
                .or(value["id"].as_str())
                .and_then(|id| id.parse().ok());
            let network = value["Type"] == "network";
            let action = value["Action"].as_str().or(value["status"].as_str());
            let (Some(action), true) = (action, network || id.is_some()) else { continue };
            let container = id.filter(|_| !network);
            return Ok(Some(Event {
                container,
                action: action.to_owned(),
                time: value["timeNano"].as_i64(),
            }));
        }
        Ok(None)
    }
}

/// Engines decode an escaped slash before they choose the route, so escaping alone does
/// not keep a name in its place.
fn image_reference(image: &str) -> Result<&str, EngineError> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-/:@".contains(&c);
    let usable = !image.is_empty()
        && image.len() <= 1024
        && image.bytes().all(plain)
        && image.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if usable { Ok(image) } else { Err(EngineError::ImageName) }
}

/// Without tag and digest the engine would pull every tag.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// Logs one line for each step of a layer, at level debug, and not one for each block.
fn tell_progress(image: &str, before: &Value, now: &Value) {
    if (&before["status"], &before["id"]) != (&now["status"], &now["id"]) {
        let shown = |member: &str| {
            now[member].as_str().unwrap_or_default().chars().take(120).collect::<String>()
        };
        tracing::debug!(
            image,
            layer = shown("id"),
            total = now["progressDetail"]["total"].as_u64(),
            "{}",
            shown("status")
        );
    }
}

fn pull_outcome(last: &Value) -> Result<(), EngineError> {
    let detail = &last["errorDetail"];
    if detail.is_null() {
        return Ok(());
    }
    let status = detail["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(500);
    let message = detail["message"].as_str().or(last["error"].as_str()).unwrap_or("pull failed");
    Err(EngineError::Answer {
        status,
        message: message.chars().filter(|c| !c.is_control()).take(1024).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_tag_means_latest_and_a_registry_port_is_no_tag() {
        for (image, pulled) in [
            ("app", "app:latest"),
            ("host:5000/app", "host:5000/app:latest"),
            ("host:5000/app:1", "host:5000/app:1"),
            ("app@sha256:00", "app@sha256:00"),
        ] {
            assert_eq!(with_tag(image), pulled);
        }
    }

    #[test]
    fn an_image_name_that_could_steer_the_route_is_refused() {
        for image in ["app:1", "host:5000/a/b@sha256:00", "sha256:00"] {
            assert_eq!(image_reference(image).expect("a name"), image);
        }
        for image in ["", "../containers", "a/../b", "a//b", "/a", "a?b", "a%2f", "a b", "a/./b"] {
            assert_eq!(image_reference(image).expect_err(image).status(), Some(400));
        }
    }

    #[test]
    fn a_pull_ends_as_its_last_line_says() {
        assert!(pull_outcome(&json!({ "status": "Downloaded" })).is_ok());
        assert!(pull_outcome(&Value::Null).is_ok());
        let error = pull_outcome(
            &json!({ "errorDetail": { "code": 401, "message": "denied" }, "error": "denied" }),
        );
        assert_eq!(
            error.expect_err("denied").to_string(),
            "the container engine answered 401: denied"
        );
        assert_eq!(
            pull_outcome(&json!({ "errorDetail": { "message": "x" } })).expect_err("x").status(),
            Some(500)
        );
    }

    #[test]
    fn only_a_unix_uri_names_an_engine() {
        assert!(Engine::from_uri("unix:///var/run/docker.sock").is_ok());
        for uri in ["tcp://127.0.0.1:2375", "unix://relative", "/var/run/docker.sock", ""] {
            assert!(matches!(Engine::from_uri(uri), Err(EngineError::Uri)), "{uri}");
        }
    }
}
