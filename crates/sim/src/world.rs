//! State of the simulated cloud: enrolments, devices, modules, faults and counts. Values
//! only; no I/O, no clock.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::faults::Faults;
use crate::proof::{OneProof, Proof};
use crate::token::Key;

/// Most enrolments, and most devices.
const PRINCIPAL_LIMIT: usize = 1024;
/// Most modules of one device: the real hub's number.
pub const MODULE_LIMIT: usize = 50;
/// Most registrations remembered; the oldest is forgotten first.
const OPERATION_LIMIT: usize = 1024;
/// Most refusals remembered; the oldest is forgotten first.
const REFUSAL_LIMIT: usize = 64;

/// A device that may register itself at the provisioning service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "SentEnrolment")]
pub struct Enrolment {
    /// The registration id.
    pub registration_id: String,
    /// The proof of the device. A key becomes the device's key at the hub too. Of a
    /// certificate the hub is told the thumbprint of the one that was shown.
    #[serde(flatten)]
    pub proof: Proof,
    /// The device id to assign; the registration id unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// The hub name to assign; this simulator's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// JSON that the assignment carries to the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
    /// Policy by which certificates are issued with a registration; none are without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_policy_name: Option<String>,
}

impl Enrolment {
    /// The plain case: assigned to this simulator's hub under its registration id.
    #[must_use]
    pub fn new(registration_id: impl Into<String>, key: Key) -> Self {
        Self {
            registration_id: registration_id.into(),
            proof: Proof::Key(key),
            device_id: None,
            hub: None,
            payload: None,
            certificate_policy_name: None,
        }
    }
}

/// [`Enrolment`] as it is sent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SentEnrolment {
    registration_id: String,
    key: Option<Key>,
    thumbprints: Option<Vec<String>>,
    authorities: Option<String>,
    endorsement_key: Option<String>,
    device_id: Option<String>,
    hub: Option<String>,
    payload: Option<Value>,
    certificate_policy_name: Option<String>,
}

impl TryFrom<SentEnrolment> for Enrolment {
    type Error = &'static str;

    fn try_from(sent: SentEnrolment) -> Result<Self, Self::Error> {
        let SentEnrolment { key, thumbprints, authorities, endorsement_key, .. } = sent;
        Ok(Self {
            registration_id: sent.registration_id,
            proof: OneProof { key, thumbprints, authorities, endorsement_key }.try_into()?,
            device_id: sent.device_id,
            hub: sent.hub,
            payload: sent.payload,
            certificate_policy_name: sent.certificate_policy_name,
        })
    }
}

/// Many devices that may register themselves under any registration id. With a key each
/// has the key that is derived of the group's (HMAC-SHA256 of the registration id in
/// lower case); with CAs each shows a certificate of one of them whose common name is the
/// registration id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "SentGroup")]
pub struct EnrolmentGroup {
    /// The group's name.
    pub group_id: String,
    /// The proof of the group.
    #[serde(flatten)]
    pub proof: Proof,
    /// The hub name to assign; this simulator's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// Policy by which certificates are issued with a registration; none are without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_policy_name: Option<String>,
}

/// [`EnrolmentGroup`] as it is sent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SentGroup {
    group_id: String,
    key: Option<Key>,
    authorities: Option<String>,
    hub: Option<String>,
    certificate_policy_name: Option<String>,
}

impl TryFrom<SentGroup> for EnrolmentGroup {
    type Error = &'static str;

    fn try_from(sent: SentGroup) -> Result<Self, Self::Error> {
        let SentGroup { group_id, key, authorities, hub, certificate_policy_name } = sent;
        let proof =
            OneProof { key, thumbprints: None, authorities, endorsement_key: None }.try_into()?;
        Ok(Self { group_id, proof, hub, certificate_policy_name })
    }
}

/// A device that the hub knows before any registration (manual provisioning).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "SentDevice")]
pub struct PresetDevice {
    /// The device id.
    pub device_id: String,
    /// The proof of the device.
    #[serde(flatten)]
    pub proof: Proof,
    /// True if the hub accepts the device.
    pub enabled: bool,
}

/// [`PresetDevice`] as it is sent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SentDevice {
    device_id: String,
    key: Option<Key>,
    thumbprints: Option<Vec<String>>,
    authorities: Option<String>,
    #[serde(default = "enabled")]
    enabled: bool,
}

impl TryFrom<SentDevice> for PresetDevice {
    type Error = &'static str;

    fn try_from(sent: SentDevice) -> Result<Self, Self::Error> {
        let SentDevice { device_id, key, thumbprints, authorities, enabled } = sent;
        let proof = OneProof { key, thumbprints, authorities, endorsement_key: None }.try_into()?;
        Ok(Self { device_id, proof, enabled })
    }
}

const fn enabled() -> bool {
    true
}

impl PresetDevice {
    /// A device whose tokens are accepted.
    #[must_use]
    pub fn new(device_id: impl Into<String>, key: Key) -> Self {
        Self::with_proof(device_id, Proof::Key(key))
    }

    /// A device that is known by another proof.
    #[must_use]
    pub fn with_proof(device_id: impl Into<String>, proof: Proof) -> Self {
        Self { device_id: device_id.into(), proof, enabled: true }
    }
}

/// Failure to take an enrolment or a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PresetError {
    /// The id has characters that the hub does not allow.
    #[error("the id is not one that the hub allows")]
    Id(#[source] edgekeep_core::id::IdError),
    /// A group whose devices cannot be told apart.
    #[error("the devices of a group are known by a key or by CAs")]
    Group,
    /// There are too many already.
    #[error("there are {PRINCIPAL_LIMIT} already; remove some")]
    Full,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) hub: String,
    pub(crate) proof: Proof,
    pub(crate) enabled: bool,
    #[serde(default)]
    pub(crate) modules: BTreeMap<String, Module>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Module {
    pub(crate) generation: String,
    pub(crate) etag: String,
    pub(crate) managed_by: Option<String>,
    pub(crate) credential: Credential,
    #[serde(default)]
    pub(crate) accepted_messages: u64,
}

/// Credential with which a module proves itself to the hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Credential {
    None,
    Keys { primary: Key, secondary: Key, given: bool },
    X509 { kind: String, thumbprint: Value },
}

impl Credential {
    pub(crate) fn keys(&self) -> Vec<&Key> {
        match self {
            Self::Keys { primary, secondary, .. } => vec![primary, secondary],
            Self::None | Self::X509 { .. } => Vec::new(),
        }
    }
}

/// A TPM that was asked to prove itself.
#[derive(Debug, Clone)]
pub(crate) struct Attested {
    /// Storage root key, as the TPM marshals it.
    pub(crate) storage_root: Vec<u8>,
    /// The key that only the TPM can unwrap.
    pub(crate) key: Key,
}

/// A registration under way or done.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) id: String,
    pub(crate) registration: String,
    pub(crate) polls: u32,
    /// Request for a certificate, DER.
    pub(crate) csr: Option<Vec<u8>>,
}

/// Calls received since the start or since they were cleared, faults included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Calls {
    /// Registrations asked for.
    pub dps_register: u64,
    /// Polls of a registration.
    pub dps_operation: u64,
    /// Module lists.
    pub hub_list: u64,
    /// Single modules read.
    pub hub_get: u64,
    /// Modules created or updated.
    pub hub_put: u64,
    /// Modules deleted.
    pub hub_delete: u64,
    /// Messages sent over HTTP.
    pub hub_message: u64,
    /// MQTT sessions asked for.
    pub mqtt_connect: u64,
    /// CA certificates asked for.
    #[serde(default)]
    pub est_cacerts: u64,
    /// First certificates asked for.
    #[serde(default)]
    pub est_enroll: u64,
    /// Successors of certificates asked for.
    #[serde(default)]
    pub est_reenroll: u64,
    /// Requests that no route matched.
    pub unknown: u64,
}

impl Calls {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.dps_register
            + self.dps_operation
            + self.hub_list
            + self.hub_get
            + self.hub_put
            + self.hub_delete
            + self.hub_message
            + self.mqtt_connect
            + self.est_cacerts
            + self.est_enroll
            + self.est_reenroll
            + self.unknown
    }
}

/// State that a test or an operator may see: everything but the keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The hub's name, with its port.
    pub hub: String,
    /// The provisioning service's scope.
    pub scope_id: String,
    /// Registration ids that may register.
    pub enrolments: Vec<String>,
    /// Groups whose devices may register.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Devices by id.
    pub devices: BTreeMap<String, DeviceState>,
    /// Calls by route.
    pub calls: Calls,
    /// The last refused tokens: who and why. At most 64.
    pub refusals: Vec<String>,
    /// The faults in force.
    pub faults: Faults,
}

/// A device as [`State`] shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceState {
    /// The hub name that it was assigned to.
    pub hub: String,
    /// True if the hub accepts the device.
    pub enabled: bool,
    /// SHA-256 thumbprints of the certificates that the hub accepts, in hexadecimal.
    /// Empty if the hub knows the device by something else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thumbprints: Vec<String>,
    /// Its modules by id.
    pub modules: BTreeMap<String, ModuleState>,
}

/// A module as [`State`] shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleState {
    /// Its generation: another one after it was deleted and created again.
    pub generation_id: String,
    /// Its entity tag, without quotes.
    pub etag: String,
    /// Program that manages the module, as the client named it.
    pub managed_by: Option<String>,
    /// Origin of its keys.
    pub keys: Keys,
    /// Messages accepted from it, over HTTP and MQTT.
    pub accepted_messages: u64,
}

/// Origin of a module's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Keys {
    /// It has none.
    None,
    /// The hub made them up because the client sent none.
    Generated,
    /// The client registered them.
    Given,
}

/// State that outlives a restart if the caller keeps it: enrolments, devices and modules
/// **with their keys**.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Snapshot {
    pub(crate) enrolments: BTreeMap<String, Enrolment>,
    #[serde(default)]
    pub(crate) groups: BTreeMap<String, EnrolmentGroup>,
    pub(crate) devices: BTreeMap<String, Device>,
    pub(crate) serial: u64,
    #[serde(default)]
    pub(crate) est: BTreeMap<String, crate::est::Ca>,
    #[serde(default)]
    pub(crate) issuance: Option<crate::est::Ca>,
}

/// Everything, behind one lock that is never held over an await.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) hub: String,
    pub(crate) scope_id: String,
    pub(crate) enrolments: BTreeMap<String, Enrolment>,
    pub(crate) groups: BTreeMap<String, EnrolmentGroup>,
    pub(crate) devices: BTreeMap<String, Device>,
    pub(crate) operations: VecDeque<Operation>,
    /// Keys of TPMs that were asked to prove themselves, by registration id.
    pub(crate) attested: BTreeMap<String, Attested>,
    pub(crate) faults: Faults,
    pub(crate) calls: Calls,
    refusals: VecDeque<String>,
    serial: u64,
    /// Most modules of one device.
    pub(crate) module_limit: usize,
    pub(crate) est: crate::est::Est,
    /// The CA of certificates that come with a registration, made when it is needed.
    pub(crate) issuance: Option<crate::est::Ca>,
    /// The last request for such a certificate, DER.
    pub(crate) last_csr: Option<Vec<u8>>,
}

impl World {
    pub(crate) fn new(hub: String, scope_id: String, snapshot: Snapshot) -> Self {
        Self {
            hub,
            scope_id,
            enrolments: snapshot.enrolments,
            groups: snapshot.groups,
            devices: snapshot.devices,
            operations: VecDeque::new(),
            attested: BTreeMap::new(),
            faults: Faults::default(),
            calls: Calls::default(),
            refusals: VecDeque::new(),
            serial: snapshot.serial,
            module_limit: MODULE_LIMIT,
            est: crate::est::Est::new(snapshot.est),
            issuance: snapshot.issuance,
            last_csr: None,
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            enrolments: self.enrolments.clone(),
            groups: self.groups.clone(),
            devices: self.devices.clone(),
            serial: self.serial,
            est: self.est.cas().clone(),
            issuance: self.issuance.clone(),
        }
    }

    /// A number that was not used before.
    pub(crate) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(crate) fn enrol(&mut self, enrolment: Enrolment) -> Result<(), PresetError> {
        for id in
            [Some(&enrolment.registration_id), enrolment.device_id.as_ref()].into_iter().flatten()
        {
            check_id(id)?;
        }
        if self.enrolments.len() >= PRINCIPAL_LIMIT
            && !self.enrolments.contains_key(&enrolment.registration_id)
        {
            return Err(PresetError::Full);
        }
        self.enrolments.insert(enrolment.registration_id.clone(), enrolment);
        Ok(())
    }

    pub(crate) fn enrol_group(&mut self, group: EnrolmentGroup) -> Result<(), PresetError> {
        check_id(&group.group_id)?;
        if matches!(group.proof, Proof::Thumbprints(_) | Proof::EndorsementKey(_)) {
            return Err(PresetError::Group);
        }
        if self.groups.len() >= PRINCIPAL_LIMIT && !self.groups.contains_key(&group.group_id) {
            return Err(PresetError::Full);
        }
        self.groups.insert(group.group_id.clone(), group);
        Ok(())
    }

    /// Adds a device, or gives a known one another proof; its modules stay.
    pub(crate) fn add_device(&mut self, preset: PresetDevice) -> Result<(), PresetError> {
        check_id(&preset.device_id)?;
        self.put_device(preset, self.hub.clone())
    }

    pub(crate) fn put_device(
        &mut self,
        preset: PresetDevice,
        hub: String,
    ) -> Result<(), PresetError> {
        let PresetDevice { device_id, proof, enabled } = preset;
        if let Some(device) = self.devices.get_mut(&device_id) {
            (device.proof, device.enabled, device.hub) = (proof, enabled, hub);
            return Ok(());
        }
        if self.devices.len() >= PRINCIPAL_LIMIT {
            return Err(PresetError::Full);
        }
        self.devices.insert(device_id, Device { hub, proof, enabled, modules: BTreeMap::new() });
        Ok(())
    }

    pub(crate) fn remember(&mut self, operation: Operation) {
        if self.operations.len() >= OPERATION_LIMIT {
            self.operations.pop_front();
        }
        self.operations.push_back(operation);
    }

    pub(crate) fn note_refusal(&mut self, text: String) {
        if self.refusals.len() >= REFUSAL_LIMIT {
            self.refusals.pop_front();
        }
        self.refusals.push_back(text);
    }

    pub(crate) fn state(&self) -> State {
        State {
            hub: self.hub.clone(),
            scope_id: self.scope_id.clone(),
            enrolments: self.enrolments.keys().cloned().collect(),
            groups: self.groups.keys().cloned().collect(),
            devices: self.devices.iter().map(|(id, device)| (id.clone(), device.state())).collect(),
            calls: self.calls,
            refusals: self.refusals.iter().cloned().collect(),
            faults: self.faults.clone(),
        }
    }
}

impl Device {
    fn state(&self) -> DeviceState {
        let modules = self.modules.iter().map(|(id, module)| {
            let keys = match module.credential {
                Credential::Keys { given: true, .. } => Keys::Given,
                Credential::Keys { given: false, .. } => Keys::Generated,
                Credential::None | Credential::X509 { .. } => Keys::None,
            };
            let state = ModuleState {
                generation_id: module.generation.clone(),
                etag: module.etag.clone(),
                managed_by: module.managed_by.clone(),
                keys,
                accepted_messages: module.accepted_messages,
            };
            (id.clone(), state)
        });
        let thumbprints = match &self.proof {
            Proof::Thumbprints(known) => known.clone(),
            _ => Vec::new(),
        };
        DeviceState {
            hub: self.hub.clone(),
            enabled: self.enabled,
            thumbprints,
            modules: modules.collect(),
        }
    }
}

/// The hub takes the same characters in device, module and registration ids.
pub(crate) fn check_id(id: &str) -> Result<(), PresetError> {
    id.parse::<edgekeep_core::id::DeviceId>().map(|_| ()).map_err(PresetError::Id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new(vec![7; 32]).unwrap()
    }

    fn world() -> World {
        World::new("localhost:1".to_owned(), "scope".to_owned(), Snapshot::default())
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut world = world();
        for number in 0..2000 {
            world.note_refusal(format!("refusal {number}"));
            world.remember(Operation {
                id: number.to_string(),
                registration: String::new(),
                polls: 0,
                csr: None,
            });
            let added = world.enrol(Enrolment::new(format!("device-{number}"), key()));
            assert_eq!(added.is_ok(), number < 1024, "{number}: {added:?}");
            assert_eq!(
                world.add_device(PresetDevice::new(format!("device-{number}"), key())).is_ok(),
                number < 1024
            );
        }
        assert_eq!(world.operations.len(), 1024);
        let state = world.state();
        assert_eq!(state.refusals.len(), 64);
        assert_eq!(state.refusals.last().map(String::as_str), Some("refusal 1999"));
    }

    #[test]
    fn the_state_that_is_shown_has_no_key() {
        let mut world = world();
        world.enrol(Enrolment::new("press-04", key())).unwrap();
        world.add_device(PresetDevice::new("press-05", key())).unwrap();
        let shown = serde_json::to_string(&world.state()).unwrap();
        assert!(!shown.contains(&key().expose_base64()), "{shown}");
        assert!(shown.contains("press-04") && shown.contains("press-05"));
    }

    #[test]
    fn an_id_that_could_steer_a_path_is_refused() {
        let error = world().enrol(Enrolment::new("a/b", key())).unwrap_err();
        assert!(matches!(error, PresetError::Id(_)), "{error:?}");
    }

    #[test]
    fn a_snapshot_read_back_has_the_same_devices_and_does_not_reuse_serials() {
        let mut first = world();
        first.add_device(PresetDevice::new("press-05", key())).unwrap();
        let serial = first.next_serial();
        let text = serde_json::to_string(&first.snapshot()).unwrap();
        let mut second = World::new(
            "localhost:1".to_owned(),
            "scope".to_owned(),
            serde_json::from_str(&text).unwrap(),
        );
        assert_eq!(second.state(), first.state());
        assert!(second.next_serial() > serial);
    }
}
