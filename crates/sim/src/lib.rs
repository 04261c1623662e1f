//! A simulated cloud for development and tests: provisioning service, hub registry, a
//! check of modules' tokens, and an EST server.
//!
//! It listens on loopback unless told otherwise, speaks HTTPS (and MQTT when asked) with
//! a certificate of its own CA, and keeps everything in memory: nothing is written to
//! disk except by the caller who asks for a [`Snapshot`]. It opens no outgoing
//! connection. It judges as the real services do (tokens, entity tags, generations), so
//! that a client that works here is likely to work there; it is never part of a device.
//!
//! | method, path | answers |
//! |---|---|
//! | PUT `/{scope}/registrations/{id}/register` | 202, `Retry-After`; needs a token with `skn=registration` |
//! | GET `/{scope}/registrations/{id}/operations/{operation}` | 202 `assigning`; 200 `assigned` or `failed` |
//! | GET `/devices/{d}/modules` | 200, a list; this and the next three need the device's token |
//! | GET `/devices/{d}/modules/{m}` | 200 with `ETag`; 304 for `If-None-Match`; 404 |
//! | PUT `/devices/{d}/modules/{m}` | 200; creates, or with `If-Match` updates; 409, 412, 404 |
//! | DELETE `/devices/{d}/modules/{m}` | 204 with `If-Match`; 412, 404 |
//! | POST `/devices/{d}/modules/{m}/messages/events` | 204; needs the module's token |
//! | GET `/.well-known/est[/{label}]/cacerts`, `.../csrattrs` | 200, base64 of DER |
//! | POST `/.well-known/est[/{label}]/simpleenroll`, `.../simplereenroll` | 200; 202 with `Retry-After`; 401 without a name and password or a certificate that it takes |
//! | `/admin/...` | faults, state, enrolments: table in `admin.rs`; loopback only, not subject to faults |
//!
//! Requests for the cloud need `api-version=<date>`. The assigned hub name carries the
//! port (`localhost:8443`), and tokens name it so.
#![forbid(unsafe_code)]

mod admin;
mod body;
mod dps;
mod est;
mod exchange;
mod faults;
mod hub;
mod issuance;
mod mqtt;
mod proof;
mod server;
mod tls;
pub mod token;
mod tpm;
mod world;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

pub use est::EstOptions;
pub use faults::{
    DELAY_LIMIT_MS, EstAnswer, EstFaults, Faults, FaultsError, IssuedFault, RouteFaults,
};
pub use proof::Proof;
pub use tls::{Authority, ServerCertificate, TlsError};
pub use world::{
    Calls, DeviceState, Enrolment, EnrolmentGroup, Keys, MODULE_LIMIT, ModuleState, PresetDevice,
    PresetError, Snapshot, State,
};

use crate::server::{Protocol, Shared, accept};
use crate::world::World;

/// Options with which a [`Simulator`] starts.
#[derive(Debug)]
pub struct SimulatorOptions {
    /// Address that listens for HTTPS; port 0 takes a free port.
    pub listen: SocketAddr,
    /// The name under which clients reach it; part of the hub's name. The certificate
    /// also names `localhost`, 127.0.0.1 and ::1.
    pub host_name: String,
    /// The provisioning service's scope.
    pub scope_id: String,
    /// Devices that may register.
    pub enrolments: Vec<Enrolment>,
    /// Devices that the hub knows from the start.
    pub devices: Vec<PresetDevice>,
    /// The CA to use; a new one unless given.
    pub authority: Option<Authority>,
    /// State to start from; `enrolments` and `devices` are added to it.
    pub snapshot: Snapshot,
    /// Most modules of one device: [`MODULE_LIMIT`] as at the real hub, or another number
    /// to see what that brings.
    pub module_limit: usize,
    /// MQTT over TLS; off unless given.
    pub mqtt: Option<MqttOptions>,
    /// Clients that get certificates from the EST server, and its CAs.
    pub est: EstOptions,
}

/// The MQTT listener's options.
#[derive(Debug)]
pub struct MqttOptions {
    /// Address that listens; port 0 takes a free port. The SDKs have 8883 built in.
    pub listen: SocketAddr,
    /// Its certificate, for clients that trust only their device's bundle; the
    /// simulator's own unless given.
    pub certificate: Option<ServerCertificate>,
}

impl Default for SimulatorOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            host_name: "localhost".to_owned(),
            scope_id: "0ne00000001".to_owned(),
            enrolments: Vec::new(),
            devices: Vec::new(),
            authority: None,
            snapshot: Snapshot::default(),
            module_limit: MODULE_LIMIT,
            mqtt: None,
            est: EstOptions::default(),
        }
    }
}

/// Failure to start the simulator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken or not ours.
    #[error("cannot listen on {address}; choose another address, or port 0 for a free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The certificates.
    #[error("cannot prepare TLS")]
    Tls(#[from] TlsError),
    /// An enrolment or device.
    #[error("cannot add \"{id}\"")]
    Preset {
        /// Its id.
        id: String,
        /// The reason.
        #[source]
        source: PresetError,
    },
}

/// A wait for a state that did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("the simulator did not reach the awaited state within {waited:?}; it is: {state:?}")]
pub struct NotReached {
    /// Time that was waited.
    pub waited: Duration,
    /// The state at the end.
    pub state: Box<State>,
}

/// A running simulated cloud. Dropping it stops it and ends all its connections.
#[derive(Debug)]
pub struct Simulator {
    shared: Arc<Shared>,
    authority: Authority,
    address: SocketAddr,
    host_name: String,
    mqtt_address: Option<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
}

impl Simulator {
    /// Starts one, with its tasks on the current tokio runtime.
    ///
    /// # Errors
    /// An address that cannot be bound, an id that the hub does not allow, certificates
    /// that cannot be made.
    pub async fn start(options: SimulatorOptions) -> Result<Self, StartError> {
        let authority = options.authority.map_or_else(Authority::new, Ok)?;
        let mut names = vec![options.host_name.clone()];
        names.extend(
            ["localhost", "127.0.0.1", "::1"]
                .map(str::to_owned)
                .into_iter()
                .filter(|n| *n != options.host_name),
        );
        let certificate = authority.issue(&names)?;
        let tls = TlsAcceptor::from(tls::server_config(&certificate)?);
        let (listener, address) = bind(options.listen).await?;

        let hub = hub_name(&options.host_name, address.port());
        let mut world = World::new(hub, options.scope_id, options.snapshot);
        world.module_limit = options.module_limit;
        world.est.open(options.est)?;
        for enrolment in options.enrolments {
            let id = enrolment.registration_id.clone();
            world.enrol(enrolment).map_err(|source| StartError::Preset { id, source })?;
        }
        for device in options.devices {
            let id = device.device_id.clone();
            world.add_device(device).map_err(|source| StartError::Preset { id, source })?;
        }
        let shared = Arc::new(Shared::new(world));
        let mut tasks =
            vec![tokio::spawn(accept(listener, tls, Arc::clone(&shared), Protocol::Http))];

        let mut mqtt_address = None;
        if let Some(mqtt) = options.mqtt {
            let tls = TlsAcceptor::from(tls::server_config(
                mqtt.certificate.as_ref().unwrap_or(&certificate),
            )?);
            let (listener, address) = bind(mqtt.listen).await?;
            mqtt_address = Some(address);
            tasks.push(tokio::spawn(accept(listener, tls, Arc::clone(&shared), Protocol::Mqtt)));
        }
        Ok(Self { shared, authority, address, host_name: options.host_name, mqtt_address, tasks })
    }

    /// The HTTPS port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns the address of the MQTT listener, if there is one.
    #[must_use]
    pub fn mqtt_address(&self) -> Option<SocketAddr> {
        self.mqtt_address
    }

    /// The CA certificate that clients must trust, as PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// The CA, to start another simulator with later.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The provisioning service's URL, for example `https://localhost:8443`.
    #[must_use]
    pub fn dps_endpoint(&self) -> String {
        format!("https://{}:{}", self.host_name, self.port())
    }

    /// The EST server's base URL, for example `https://localhost:8443/.well-known/est`; a
    /// CA's label follows behind a slash.
    #[must_use]
    pub fn est_url(&self) -> String {
        format!("{}/.well-known/est", self.dps_endpoint())
    }

    /// The root of the EST server's CA of this label, as PEM; that of the default CA
    /// without one.
    #[must_use]
    pub fn est_root_pem(&self, label: Option<&str>) -> Option<String> {
        let world = self.shared.world();
        world.est.ca(label).map(|ca| ca.root.certificate_pem().to_owned())
    }

    /// The root of the CA of certificates that come with a registration, as PEM, once one
    /// was issued.
    #[must_use]
    pub fn issuance_root_pem(&self) -> Option<String> {
        self.shared.world().issuance.as_ref().map(|ca| ca.root.certificate_pem().to_owned())
    }

    /// The last request for such a certificate that was taken, DER.
    #[must_use]
    pub fn last_csr(&self) -> Option<Vec<u8>> {
        self.shared.world().last_csr.clone()
    }

    /// The hub's name with its port, for example `localhost:8443`.
    #[must_use]
    pub fn hub_host(&self) -> String {
        hub_name(&self.host_name, self.port())
    }

    /// Replaces the faults in force; `Faults::default()` ends them all.
    ///
    /// # Errors
    /// A status that is no error, or a delay that is too long: the faults stay as they
    /// were.
    pub fn faults(&self, faults: Faults) -> Result<(), FaultsError> {
        faults.check()?;
        self.shared.world().faults = faults;
        Ok(())
    }

    /// Returns the state as it is now.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.world().state()
    }

    /// Waits until `reached` says yes; it is asked now and after each call that comes in.
    ///
    /// # Errors
    /// `deadline` passed before.
    pub async fn wait_until(
        &self,
        deadline: Duration,
        reached: impl Fn(&State) -> bool,
    ) -> Result<State, NotReached> {
        let mut changed = self.shared.changed.subscribe();
        let wait = async {
            loop {
                let state = self.state();
                // The sender lives in `shared`, so the wait only ends with a change.
                if reached(&state) || changed.changed().await.is_err() {
                    return state;
                }
            }
        };
        match tokio::time::timeout(deadline, wait).await {
            Ok(state) => Ok(state),
            Err(_) => Err(NotReached { waited: deadline, state: Box::new(self.state()) }),
        }
    }

    /// Says when calls have come in, for example to write a [`Snapshot`] then.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// Everything that can be carried over to another simulator, keys included.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.world().snapshot()
    }

    /// Lets a device register, or replaces what is known under its registration id.
    ///
    /// # Errors
    /// An id that the hub does not allow, or too many enrolments.
    pub fn enrol(&self, enrolment: Enrolment) -> Result<(), PresetError> {
        self.shared.world().enrol(enrolment)
    }

    /// Lets the devices of a group register, or replaces what is known under its name.
    ///
    /// # Errors
    /// A name that the hub does not allow for ids, a group by thumbprints, or too many
    /// groups.
    pub fn enrol_group(&self, group: EnrolmentGroup) -> Result<(), PresetError> {
        self.shared.world().enrol_group(group)
    }

    /// Adds a device, or gives a known one another key or switches it off; its modules
    /// stay.
    ///
    /// # Errors
    /// An id that the hub does not allow, or too many devices.
    pub fn add_device(&self, device: PresetDevice) -> Result<(), PresetError> {
        self.shared.world().add_device(device)
    }

    /// Deletes a device and its modules as an operator would; tells whether there was
    /// one.
    pub fn remove_device(&self, device: &str) -> bool {
        self.shared.world().devices.remove(device).is_some()
    }

    /// Deletes a module as an operator would; tells whether there was one.
    pub fn remove_module(&self, device: &str, module: &str) -> bool {
        self.shared
            .world()
            .devices
            .get_mut(device)
            .is_some_and(|device| device.modules.remove(module).is_some())
    }

    /// Sets all counts of calls to 0.
    pub fn clear_calls(&self) {
        self.shared.world().calls = Calls::default();
    }

    /// Stops, and waits until the ports are free again.
    pub async fn stop(mut self) {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A hub's name as it stands in URLs and tokens: the port only if it is not that of
/// HTTPS.
fn hub_name(host_name: &str, port: u16) -> String {
    if port == 443 { host_name.to_owned() } else { format!("{host_name}:{port}") }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let listen = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    Ok((listener, bound))
}
