//! Certificates for the hub that come with a registration.

use super::*;

pub(super) fn source() -> Source {
    match dps("0ne1") {
        Source::Dps { endpoint, scope_id, registration_id, credential, .. } => {
            Source::Dps { endpoint, scope_id, registration_id, credential, operational: true }
        }
        other => other,
    }
}

fn kept(certificate: Option<&str>) -> Provisioned {
    Provisioned { operational: certificate.map(Into::into), ..stored("press-04", source()) }
}

/// A device that has an identity with certificate `kept` and found certificate `found` at
/// its start.
fn started(kept_one: Option<&str>, found: Option<&str>) -> (State, Vec<Action>) {
    let mode = ReprovisioningMode::OnErrorOnly;
    let state = State::new(source(), mode, Limits::default(), Some(kept(kept_one)));
    step(state.with_operational(found.map(Into::into)), Event::Started, at(0))
}

fn proven(certificate: &str) -> Event {
    Event::Proven { certificate: certificate.into() }
}

#[test]
fn an_assignment_counts_once_its_certificate_was_tried_at_the_hub_and_both_are_stored() {
    let mode = ReprovisioningMode::Dynamic;
    let state = State::new(source(), mode, Limits::default(), None);
    let (state, actions) = step(state, Event::Started, at(0));
    assert_eq!(actions, [Action::Register]);
    let (state, actions) = step(state, Event::Assigned(identity("press-04")), at(1));
    assert_eq!(actions, [Action::Prove { identity: identity("press-04") }]);
    assert_eq!((state.identity(), state.stand().activity), (None, "proving"));
    let (state, actions) = step(state, proven("a"), at(2));
    assert!(
        matches!(&actions[..], [Action::Store(it)] if it.operational.as_deref() == Some("a")),
        "{actions:?}"
    );
    assert_eq!(state.identity(), None, "not before it is stored");
    let (state, actions) = step(state, Event::Stored, at(2));
    assert_eq!(actions, [Action::Serve { identity: identity("press-04"), replaced: false }]);
    assert_eq!(*state.activity(), Activity::Idle);
}

#[test]
fn a_certificate_that_the_hub_refuses_leaves_the_identity_and_is_tried_again_later() {
    let (state, _) = started(Some("a"), Some("a"));
    let (state, actions) = step(state, Event::CertificateDue, at(9));
    assert_eq!(actions, [Action::Register]);
    let moved = DeviceIdentity { hub: "other.test".into(), ..identity("press-04") };
    let state = step(state, Event::Assigned(moved), at(10)).0;
    let (state, actions) = step(state, refusal("the hub does not take it"), at(11));
    assert!(matches!(&actions[..], [Action::Report(_), Action::WakeAt(_)]), "{actions:?}");
    assert_eq!(state.provisioned(), Some(&kept(Some("a"))));
    assert!(matches!(state.activity(), Activity::Pausing { .. }));
    // What was refused does not come back: an answer that nobody waits for is none.
    assert_eq!(step(state.clone(), proven("b"), at(12)).1, []);
    // The plan makes no pause shorter.
    assert_eq!(step(state, Event::CertificateDue, at(12)).1, []);
}

#[test]
fn a_plan_that_is_due_registers_in_every_mode_and_only_where_the_service_issues() {
    for mode in [
        ReprovisioningMode::Dynamic,
        ReprovisioningMode::AlwaysOnStartup,
        ReprovisioningMode::OnErrorOnly,
    ] {
        let idle = State::new(source(), mode, Limits::default(), Some(kept(Some("a"))));
        assert_eq!(step(idle, Event::CertificateDue, at(1)).1, [Action::Register], "{mode:?}");
        let other = fresh(Some(stored("press-04", dps("0ne1"))), mode);
        assert_eq!(step(other, Event::CertificateDue, at(1)).1, [], "{mode:?}");
    }
}

#[test]
fn a_start_registers_if_the_certificate_is_not_the_one_that_came_with_the_identity() {
    let serve = Action::Serve { identity: identity("press-04"), replaced: false };
    assert_eq!(started(Some("a"), Some("a")).1.as_slice(), std::slice::from_ref(&serve));
    // Lost, replaced by a crash between the two, or never there.
    for (kept_one, found) in [(Some("a"), None), (Some("a"), Some("b")), (None, None)] {
        let actions = started(kept_one, found).1;
        assert_eq!(actions, [serve.clone(), Action::Register], "{kept_one:?} {found:?}");
    }
}

#[test]
fn a_configuration_that_asks_for_a_certificate_is_another_source() {
    let kept = stored("press-04", dps("0ne1"));
    let mode = ReprovisioningMode::OnErrorOnly;
    let state = State::new(source(), mode, Limits::default(), Some(kept.clone()));
    let (state, actions) = step(state, Event::Started, at(0));
    assert_eq!(actions.last(), Some(&Action::Register));
    assert_eq!(state.provisioned(), Some(&kept), "the old identity stays meanwhile");
}

#[test]
fn another_onboarding_certificate_is_not_told_to_the_service_if_the_hub_knows_another() {
    let Source::Dps { endpoint, scope_id, .. } = source() else { panic!() };
    let source = Source::Dps {
        endpoint,
        scope_id,
        registration_id: None,
        credential: CredentialKind::X509,
        operational: true,
    };
    let kept =
        Provisioned { source: source.clone(), certificate: Some("x".into()), ..kept(Some("a")) };
    let state = State::new(source, ReprovisioningMode::Dynamic, Limits::default(), Some(kept));
    let state = state.with_operational(Some("a".into())).with_certificate(Some("x".into()));
    let (state, _) = step(state, Event::Started, at(0));
    assert_eq!(step(state, Event::CertificateChanged(Some("y".into())), at(1)).1, []);
}
