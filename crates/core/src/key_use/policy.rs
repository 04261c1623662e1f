//! The policy of key use: settings, a uid, a handle's content and the time come in, a
//! decision comes out.
//!
//! Three things have to agree. The **grant**: a uid names keys by the patterns it was
//! given. The **handle**: it was made for one uid; another may use it, and only use it,
//! if it may name the key or was granted this use. The **purpose**: what the key is for
//! decides which operations there are at all.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Binding, Named, Operation, Purpose, Reason, Target};
use crate::clock::{Deadline, Moment};
use crate::grants::{Grants, Pattern, RESERVED_KEY_IDS};
use crate::id::KeyId;
use crate::layout::Daemon;
use crate::names::{self, WellKnown};
use crate::settings::{KeyPrincipal, KeydSettings};

/// The time for which a handle is good if the settings do not say. Clients ask for a new
/// handle when theirs is refused.
const HANDLE_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The purposes of the keys of the known ids, where the settings say nothing else. Keys
/// of other ids may do what their kind can: they belong to clients that this program
/// knows nothing of.
const PURPOSES: &[(WellKnown, Purpose)] = &[
    (names::EDGE_CA, Purpose::Ca),
    (names::EDGE_CA_NEXT, Purpose::Ca),
    (names::LOCAL_CA, Purpose::Ca),
    (names::LOCAL_CA_NEXT, Purpose::Ca),
    (names::IDENTITY_MASTER_KEY, Purpose::Identity),
    (names::DEVICE_KEY, Purpose::Identity),
    (names::OPERATIONAL, Purpose::Identity),
    (names::OPERATIONAL_NEXT, Purpose::Identity),
    (names::DEVICE_DATA_KEY, Purpose::Seal),
    (names::MODULE_DATA_KEY, Purpose::Seal),
];

/// The rules of one keyd.
#[derive(Debug, Clone)]
pub struct Policy {
    naming: Grants,
    use_only: Grants,
    use_derived: Grants,
    export: Grants,
    /// Keys of which some uid may export derived ones.
    exported: Vec<Pattern>,
    certificates: BTreeSet<u32>,
    auditors: BTreeSet<u32>,
    attestors: BTreeSet<u32>,
    daemons: BTreeSet<(u32, Daemon)>,
    purposes: Vec<(Pattern, Purpose)>,
    handles_any_uid: bool,
    handle_lifetime: Duration,
    root_is_unrestricted: bool,
}

impl Policy {
    /// The rules in the settings. uid 0 may use every key that is not reserved, but
    /// exports like everybody else.
    #[must_use]
    pub fn new(settings: &KeydSettings) -> Self {
        let grants = |patterns: fn(&KeyPrincipal) -> &Vec<String>| {
            Grants::new(
                settings.principals.iter().map(|principal| (principal.uid, patterns(principal))),
            )
            .reserving(RESERVED_KEY_IDS.iter().map(|id| id.as_str()))
        };
        let own = settings.purposes.iter().map(|rule| (Pattern::new(&rule.keys), rule.purpose));
        let built_in =
            PURPOSES.iter().map(|(keys, purpose)| (Pattern::new(keys.as_str()), *purpose));
        let signers = settings.principals.iter().filter(|principal| principal.certificates);
        Self {
            naming: grants(|principal| &principal.keys),
            use_only: grants(|principal| &principal.use_only),
            use_derived: grants(|principal| &principal.use_derived),
            export: grants(|principal| &principal.export).with_root_restricted(),
            exported: settings
                .principals
                .iter()
                .flat_map(|it| &it.export)
                .map(|text| Pattern::new(text))
                .collect(),
            certificates: signers.map(|principal| principal.uid).collect(),
            auditors: settings.auditors.iter().copied().collect(),
            attestors: settings
                .principals
                .iter()
                .filter(|it| it.attestor)
                .map(|it| it.uid)
                .collect(),
            daemons: settings
                .principals
                .iter()
                .flat_map(|it| it.daemons.iter().map(|daemon| (it.uid, *daemon)))
                .collect(),
            purposes: own.chain(built_in).collect(),
            handles_any_uid: settings.handles_any_uid,
            handle_lifetime: settings
                .handle_lifetime_sec
                .map_or(HANDLE_LIFETIME, Duration::from_secs),
            root_is_unrestricted: true,
        }
    }

    /// The same rules, but uid 0 has only what its own entries give it.
    #[must_use]
    pub fn with_root_restricted(mut self) -> Self {
        self.naming = self.naming.with_root_restricted();
        self.use_only = self.use_only.with_root_restricted();
        self.use_derived = self.use_derived.with_root_restricted();
        self.root_is_unrestricted = false;
        self
    }

    /// Returns the purpose of a key, if a rule names one.
    #[must_use]
    pub fn purpose(&self, id: &KeyId) -> Option<Purpose> {
        self.purposes
            .iter()
            .find(|(pattern, _)| pattern.matches(id.as_str()))
            .map(|(_, purpose)| *purpose)
    }

    /// Returns the binding of a handle that is made now for `uid`.
    #[must_use]
    pub fn binding(&self, uid: u32, id: &KeyId, now: Moment) -> Binding {
        Binding {
            uid,
            purpose: self.purpose(id),
            until: Deadline::after(now, self.handle_lifetime),
        }
    }

    /// Checks that `uid` may name the key.
    ///
    /// # Errors
    /// The reason for the refusal.
    pub fn may_name(&self, uid: u32, id: &KeyId) -> Result<(), Reason> {
        if self.naming.allows(uid, id.as_str()) {
            Ok(())
        } else if self.naming.is_reserved(id.as_str()) {
            Err(Reason::ReservedKey)
        } else {
            Err(Reason::NoGrant)
        }
    }

    /// Checks that `uid` may do `what` with the key that a handle names.
    ///
    /// # Errors
    /// The reason for the refusal.
    pub fn may_use(
        &self,
        uid: u32,
        named: &Named,
        what: Operation,
        now: Moment,
    ) -> Result<(), Reason> {
        let id = named.target.key_id();
        let purpose = self.purpose(id);
        if !self.handles_any_uid {
            match &named.binding {
                Some(binding)
                    if binding.until.is_ahead(now, self.handle_lifetime)
                        && binding.purpose == purpose =>
                {
                    if binding.uid != uid && !self.shares(uid, &named.target, what) {
                        return Err(Reason::HandleOfAnotherUid);
                    }
                }
                // Also a handle of another boot, of a time when handles were not bound,
                // or the key was for something else.
                Some(_) | None => return Err(Reason::ExpiredHandle),
            }
        }
        if !purpose.is_none_or(|purpose| allows(purpose, what)) {
            return Err(Reason::Purpose);
        }
        let is_root = self.is_unrestricted(uid);
        if purpose == Some(Purpose::Ca)
            && what == Operation::Sign
            && !is_root
            && !self.certificates.contains(&uid)
        {
            return Err(Reason::NotForCertificates);
        }
        // Signing with the base itself computes a derived key: it is the same HMAC.
        let is_export = match &named.target {
            Target::Derived { .. } => what == Operation::Export,
            Target::Symmetric(id) => {
                what == Operation::Sign
                    && self.exported.iter().any(|pattern| pattern.matches(id.as_str()))
            }
            Target::Pair(_) => false,
        };
        if is_export && !self.export.allows(uid, id.as_str()) {
            return Err(Reason::NoExportGrant);
        }
        Ok(())
    }

    /// Checks that `uid` may give the key pair `from` the id `to`. A key takes its
    /// purpose along: under another id it could be used for what it is kept from.
    ///
    /// # Errors
    /// The reason for the refusal, and the one of the two ids that is refused.
    pub fn may_move<'k>(
        &self,
        uid: u32,
        from: &'k KeyId,
        to: &'k KeyId,
    ) -> Result<(), (Reason, &'k KeyId)> {
        for id in [to, from] {
            self.may_name(uid, id).map_err(|reason| (reason, id))?;
        }
        match self.purpose(from) {
            Some(purpose) if self.purpose(to) != Some(purpose) => Err((Reason::Purpose, to)),
            _ => Ok(()),
        }
    }

    /// Returns true if `uid` may do this with a handle that was made for another uid.
    fn shares(&self, uid: u32, target: &Target, what: Operation) -> bool {
        let id = target.key_id().as_str();
        let is_use = matches!(
            what,
            Operation::Sign | Operation::Encrypt | Operation::Decrypt | Operation::Parameters
        );
        let granted = match target {
            Target::Derived { .. } => &self.use_derived,
            Target::Symmetric(_) | Target::Pair(_) => &self.use_only,
        };
        self.naming.allows(uid, id) || (is_use && granted.allows(uid, id))
    }

    /// Returns true if `uid` may make as many keys as it likes.
    #[must_use]
    pub fn is_unrestricted(&self, uid: u32) -> bool {
        uid == 0 && self.root_is_unrestricted
    }

    /// Checks that `uid` may read the audit log.
    ///
    /// # Errors
    /// The reason for the refusal.
    pub fn may_audit(&self, uid: u32) -> Result<(), Reason> {
        if self.is_unrestricted(uid) || self.auditors.contains(&uid) {
            Ok(())
        } else {
            Err(Reason::NotAnAuditor)
        }
    }

    /// Returns true if a statement of `uid` about the party that it asks for is written
    /// into the audit log. Root needs the grant, too: a statement is worth what the
    /// program behind the uid measures.
    #[must_use]
    pub fn may_attest(&self, uid: u32) -> bool {
        self.attestors.contains(&uid)
    }

    /// Checks that `uid` is that of a daemon. Root needs the grant, too.
    ///
    /// # Errors
    /// The reason for the refusal.
    pub fn speaks_for(&self, uid: u32, daemon: Daemon) -> Result<(), Reason> {
        if self.daemons.contains(&(uid, daemon)) { Ok(()) } else { Err(Reason::NotThatDaemon) }
    }
}

/// Returns true if a key for `purpose` has this operation. Operations that make, find and
/// remove keys are not the purpose's business.
fn allows(purpose: Purpose, what: Operation) -> bool {
    match what {
        Operation::Sign => purpose != Purpose::Seal,
        Operation::Encrypt | Operation::Decrypt => purpose == Purpose::Seal,
        // What is derived from a key that seals only seals, and stays here.
        Operation::Derive => matches!(purpose, Purpose::Identity | Purpose::Sign | Purpose::Seal),
        Operation::Export => matches!(purpose, Purpose::Identity | Purpose::Sign),
        Operation::Create
        | Operation::Import
        | Operation::Load
        | Operation::Move
        | Operation::Delete
        | Operation::Parameters
        | Operation::TpmKeys
        | Operation::TpmImport
        | Operation::TpmSign
        | Operation::ReadAudit
        | Operation::Measure
        | Operation::Connect => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::BootId;
    use crate::settings::PurposeRule;

    const IDENTITYD: u32 = 12;
    const MODULED: u32 = 13;
    const THIEF: u32 = 14;
    const NOW: Moment = Moment { boot: BootId::from_bytes([7; 16]), seconds: 1_000_000 };

    /// The grants that the configuration of a device gives its daemons.
    fn settings() -> KeydSettings {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let identityd = KeyPrincipal {
            uid: IDENTITYD,
            keys: texts(&["aziot_identityd_master_id", "device-id"]),
            use_only: texts(&["aziot-edged-ca"]),
            export: texts(&["aziot_identityd_master_id"]),
            certificates: true,
            ..KeyPrincipal::default()
        };
        let moduled = KeyPrincipal {
            uid: MODULED,
            keys: texts(&[
                "aziot-edged-ca",
                "iotedge_master_encryption_id",
                "edgekeep-module-data",
            ]),
            use_only: texts(&["device-id"]),
            use_derived: texts(&["aziot_identityd_master_id"]),
            certificates: true,
            ..KeyPrincipal::default()
        };
        KeydSettings { principals: vec![identityd, moduled], ..KeydSettings::default() }
    }

    fn id(text: &str) -> KeyId {
        text.parse().unwrap()
    }

    fn later(seconds: u64) -> Moment {
        Moment { seconds: NOW.seconds + seconds, ..NOW }
    }

    fn named(policy: &Policy, uid: u32, target: Target) -> Named {
        let binding = Some(policy.binding(uid, target.key_id(), NOW));
        Named { target, binding }
    }

    fn derived(base: &str) -> Target {
        Target::Derived { base: id(base), data: vec![1] }
    }

    #[test]
    fn daemons_use_what_they_pass_to_each_other_and_a_thief_uses_nothing() {
        let policy = Policy::new(&settings());
        let module_key = named(&policy, IDENTITYD, derived("aziot_identityd_master_id"));
        let ca = named(&policy, MODULED, Target::Pair(id("aziot-edged-ca")));
        let device = named(&policy, IDENTITYD, Target::Symmetric(id("device-id")));
        for (uid, named) in [
            (IDENTITYD, &module_key),
            (MODULED, &module_key),
            (IDENTITYD, &ca),
            (MODULED, &ca),
            (MODULED, &device),
        ] {
            assert_eq!(policy.may_use(uid, named, Operation::Sign, NOW), Ok(()), "{uid} {named:?}");
        }
        for named in [&module_key, &ca, &device] {
            for what in [
                Operation::Sign,
                Operation::Encrypt,
                Operation::Export,
                Operation::Derive,
                Operation::Parameters,
            ] {
                assert_eq!(
                    policy.may_use(THIEF, named, what, NOW),
                    Err(Reason::HandleOfAnotherUid)
                );
            }
        }
    }

    #[test]
    fn who_may_use_derived_keys_only_may_neither_export_nor_use_their_base() {
        let policy = Policy::new(&settings());
        let module_key = named(&policy, IDENTITYD, derived("aziot_identityd_master_id"));
        let master = named(&policy, IDENTITYD, Target::Symmetric(id("aziot_identityd_master_id")));
        assert_eq!(
            policy.may_use(MODULED, &module_key, Operation::Export, NOW),
            Err(Reason::HandleOfAnotherUid)
        );
        assert_eq!(
            policy.may_use(MODULED, &master, Operation::Sign, NOW),
            Err(Reason::HandleOfAnotherUid)
        );
        assert_eq!(
            policy.may_use(MODULED, &master, Operation::Derive, NOW),
            Err(Reason::HandleOfAnotherUid)
        );
        assert_eq!(policy.may_use(IDENTITYD, &module_key, Operation::Export, NOW), Ok(()));
        assert_eq!(policy.may_use(IDENTITYD, &master, Operation::Derive, NOW), Ok(()));
    }

    #[test]
    fn exporting_needs_its_own_grant_and_signing_with_the_base_counts_as_exporting() {
        let mut settings = settings();
        settings.principals.push(KeyPrincipal {
            uid: 15,
            keys: vec!["*".into()],
            ..KeyPrincipal::default()
        });
        let policy = Policy::new(&settings);
        for uid in [0, 15] {
            let module_key = named(&policy, uid, derived("aziot_identityd_master_id"));
            assert_eq!(
                policy.may_use(uid, &module_key, Operation::Export, NOW),
                Err(Reason::NoExportGrant)
            );
            let master = named(&policy, uid, Target::Symmetric(id("aziot_identityd_master_id")));
            assert_eq!(
                policy.may_use(uid, &master, Operation::Sign, NOW),
                Err(Reason::NoExportGrant)
            );
            let device = named(&policy, uid, Target::Symmetric(id("device-id")));
            assert_eq!(policy.may_use(uid, &device, Operation::Sign, NOW), Ok(()));
        }
    }

    #[test]
    fn a_ca_key_signs_only_for_who_has_to_do_with_certificates() {
        let mut settings = settings();
        settings.principals[1].certificates = false;
        let policy = Policy::new(&settings);
        let ca = named(&policy, MODULED, Target::Pair(id("aziot-edged-ca")));
        assert_eq!(
            policy.may_use(MODULED, &ca, Operation::Sign, NOW),
            Err(Reason::NotForCertificates)
        );
        assert_eq!(policy.may_use(MODULED, &ca, Operation::Parameters, NOW), Ok(()));
        assert_eq!(policy.may_use(IDENTITYD, &ca, Operation::Sign, NOW), Ok(()));
        assert_eq!(policy.may_use(0, &ca, Operation::Sign, NOW), Ok(()));
        assert_eq!(
            policy.with_root_restricted().may_use(0, &ca, Operation::Sign, NOW),
            Err(Reason::HandleOfAnotherUid)
        );
    }

    #[test]
    fn the_purpose_decides_which_operations_there_are() {
        let policy = Policy::new(&settings());
        let seal = named(&policy, MODULED, Target::Symmetric(id("iotedge_master_encryption_id")));
        let identity = named(&policy, IDENTITYD, Target::Symmetric(id("device-id")));
        for what in [Operation::Encrypt, Operation::Decrypt] {
            assert_eq!(policy.may_use(MODULED, &seal, what, NOW), Ok(()));
            assert_eq!(policy.may_use(IDENTITYD, &identity, what, NOW), Err(Reason::Purpose));
        }
        assert_eq!(policy.may_use(MODULED, &seal, Operation::Sign, NOW), Err(Reason::Purpose));
        for what in [Operation::Sign, Operation::Derive] {
            assert_eq!(policy.may_use(IDENTITYD, &identity, what, NOW), Ok(()));
        }
    }

    #[test]
    fn keys_derived_from_one_that_seals_encrypt_and_decrypt_and_nothing_else() {
        let policy = Policy::new(&settings());
        let base = named(&policy, MODULED, Target::Symmetric(id("edgekeep-module-data")));
        let derived = named(&policy, MODULED, derived("edgekeep-module-data"));
        assert_eq!(policy.may_use(MODULED, &base, Operation::Derive, NOW), Ok(()));
        for what in [Operation::Encrypt, Operation::Decrypt] {
            assert_eq!(policy.may_use(MODULED, &derived, what, NOW), Ok(()));
            assert_eq!(
                policy.may_use(IDENTITYD, &derived, what, NOW),
                Err(Reason::HandleOfAnotherUid)
            );
        }
        // Signing with the base would compute a derived key.
        for (named, what) in [
            (&base, Operation::Sign),
            (&base, Operation::Export),
            (&derived, Operation::Sign),
            (&derived, Operation::Export),
        ] {
            assert_eq!(policy.may_use(MODULED, named, what, NOW), Err(Reason::Purpose), "{what}");
        }
    }

    #[test]
    fn rules_of_the_settings_come_before_the_built_in_ones() {
        let mut settings = settings();
        settings.purposes = vec![PurposeRule { keys: "device-*".into(), purpose: Purpose::Seal }];
        let policy = Policy::new(&settings);
        assert_eq!(policy.purpose(&id("device-id")), Some(Purpose::Seal));
        assert_eq!(policy.purpose(&id("local-ca")), Some(Purpose::Ca));
        assert_eq!(policy.purpose(&id("mine")), None);
        // A handle from before the change is as good as expired: its holder asks for a
        // new one.
        let before =
            named(&Policy::new(&self::settings()), IDENTITYD, Target::Symmetric(id("device-id")));
        assert_eq!(
            policy.may_use(IDENTITYD, &before, Operation::Encrypt, NOW),
            Err(Reason::ExpiredHandle)
        );
    }

    #[test]
    fn handles_expire_unless_any_uid_may_use_them() {
        let mut settings = settings();
        settings.handle_lifetime_sec = Some(60);
        let policy = Policy::new(&settings);
        let target = Target::Symmetric(id("device-id"));
        let handle = named(&policy, IDENTITYD, target.clone());
        assert_eq!(policy.may_use(IDENTITYD, &handle, Operation::Sign, later(59)), Ok(()));
        assert_eq!(
            policy.may_use(IDENTITYD, &handle, Operation::Sign, later(60)),
            Err(Reason::ExpiredHandle)
        );
        let unbound = Named { target, binding: None };
        assert_eq!(
            policy.may_use(IDENTITYD, &unbound, Operation::Sign, NOW),
            Err(Reason::ExpiredHandle)
        );
        settings.handles_any_uid = true;
        let policy = Policy::new(&settings);
        for handle in [&handle, &unbound] {
            assert_eq!(policy.may_use(THIEF, handle, Operation::Sign, later(60)), Ok(()));
            assert_eq!(
                policy.may_use(THIEF, handle, Operation::Encrypt, NOW),
                Err(Reason::Purpose)
            );
        }
    }

    #[test]
    fn a_handle_of_another_boot_or_of_a_longer_lifetime_is_not_one_for_ever() {
        let lifetime = |seconds| {
            Policy::new(&KeydSettings { handle_lifetime_sec: Some(seconds), ..settings() })
        };
        let (policy, longer) = (lifetime(60), lifetime(61));
        let target = || Target::Symmetric(id("device-id"));
        let sign = |handle: &Named, now| policy.may_use(IDENTITYD, handle, Operation::Sign, now);
        assert_eq!(sign(&named(&policy, IDENTITYD, target()), NOW), Ok(()));
        assert_eq!(sign(&named(&longer, IDENTITYD, target()), NOW), Err(Reason::ExpiredHandle));
        let other = Moment { boot: BootId::from_bytes([8; 16]), ..NOW };
        assert_eq!(sign(&named(&policy, IDENTITYD, target()), other), Err(Reason::ExpiredHandle));
        let before = Moment { seconds: NOW.seconds - 1, ..NOW };
        assert_eq!(sign(&named(&policy, IDENTITYD, target()), before), Err(Reason::ExpiredHandle));
    }

    #[test]
    fn a_key_is_not_moved_out_of_its_purpose() {
        let mut settings = settings();
        settings.principals.push(KeyPrincipal {
            uid: 15,
            keys: vec!["*".into()],
            ..KeyPrincipal::default()
        });
        let policy = Policy::new(&settings);
        let may_move = |uid, from: &str, to: &str| {
            policy.may_move(uid, &id(from), &id(to)).map_err(|(why, id)| (why, id.to_string()))
        };
        assert_eq!(may_move(15, "aziot-edged-ca-temp", "aziot-edged-ca"), Ok(()));
        assert_eq!(may_move(15, "mine-temp", "mine"), Ok(()));
        // It gains no use by that.
        assert_eq!(may_move(15, "mine", "aziot-edged-ca"), Ok(()));
        for uid in [0, 15] {
            for to in ["mine", "device-id", "iotedge_master_encryption_id"] {
                assert_eq!(
                    may_move(uid, "aziot-edged-ca", to),
                    Err((Reason::Purpose, to.to_owned())),
                    "{uid}"
                );
            }
        }
        assert_eq!(
            may_move(IDENTITYD, "device-id", "mine"),
            Err((Reason::NoGrant, "mine".to_owned()))
        );
        assert_eq!(
            may_move(IDENTITYD, "mine", "device-id"),
            Err((Reason::NoGrant, "mine".to_owned()))
        );
    }

    #[test]
    fn the_audit_log_is_for_root_and_for_who_is_named() {
        let policy = Policy::new(&KeydSettings { auditors: vec![9], ..settings() });
        assert_eq!(policy.may_audit(0), Ok(()));
        assert_eq!(policy.may_audit(9), Ok(()));
        assert_eq!(policy.may_audit(IDENTITYD), Err(Reason::NotAnAuditor));
        assert_eq!(policy.with_root_restricted().may_audit(0), Err(Reason::NotAnAuditor));
    }

    proptest! {
        #[test]
        fn a_uid_without_any_grant_can_do_nothing_with_a_handle_of_another(
            name in "[!-~]{1,40}", kind in 0..3, what in 0..Operation::ALL.len(), owner in 1..13_u32,
        ) {
            let policy = Policy::new(&settings());
            let target = match kind {
                0 => Target::Pair(id(&name)),
                1 => Target::Symmetric(id(&name)),
                _ => derived(&name),
            };
            let handle = named(&policy, owner, target);
            let decision = policy.may_use(THIEF, &handle, Operation::ALL[what], NOW);
            prop_assert_eq!(decision, Err(Reason::HandleOfAnotherUid));
        }
    }
}
