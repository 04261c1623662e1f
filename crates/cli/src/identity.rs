//! `identity`: the device's identity, and what keeps it from another one.

mod derive;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use edgekeep_api::identityd::{
    AuthenticationKind, AziotIdentity, Identity, IdentityClient, OperationalStand,
    ProvisioningStand,
};

use crate::arguments::Context;
use crate::failure;
use crate::output::{self, printable};

#[derive(Debug, Subcommand)]
pub(crate) enum IdentityVerb {
    /// Show the identity that the device has
    Show,
    /// Ask the provisioning service for the identity again; the old one serves meanwhile
    Reprovision,
    /// Say how provisioning stands: the state, the last errors, the next attempt
    Why,
    /// Print the key of one device of an enrolment group, in base64
    ///
    /// Reads the group's key, in base64, from standard input. Run it on your own machine:
    /// a group's key is the key of all its devices.
    DeriveKey {
        /// The device's registration id
        registration_id: String,
    },
}

pub(crate) async fn run(context: &Context, verb: IdentityVerb) -> anyhow::Result<ExitCode> {
    let client = IdentityClient::new(context.root.identityd_socket());
    match verb {
        IdentityVerb::Show => {
            let identity = client.device().await.context("there is no identity to show")?;
            let Identity::Aziot(identity) = identity else {
                anyhow::bail!("identityd answered with a local identity");
            };
            if context.json {
                output::print_json(&without_handle(identity))?;
            } else {
                output::print(&shown(&identity))?;
            }
        }
        IdentityVerb::Reprovision => {
            client.reprovision().await.context("no new provisioning was asked for")?;
            if context.json {
                output::print_json(&serde_json::json!({ "asked": true }))?;
            } else {
                output::print("asked for; `edgekeep identity why` shows what comes of it\n")?;
            }
        }
        IdentityVerb::DeriveKey { registration_id } => {
            let key = derive::from_standard_input(&registration_id)?;
            if context.json {
                output::print_json(&serde_json::json!({ "key": *key }))?;
            } else {
                output::print(&format!("{}\n", *key))?;
            }
        }
        IdentityVerb::Why => {
            let stand = failure::of_our_own_route(client.provisioning_stand().await)?;
            if context.json {
                output::print_json(&stand)?;
            } else {
                output::print(&why(&stand))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A handle is of use to programs alone, and to those that asked for it.
fn without_handle(mut identity: AziotIdentity) -> AziotIdentity {
    if let Some(auth) = &mut identity.auth {
        auth.key_handle = None;
    }
    identity
}

fn shown(identity: &AziotIdentity) -> String {
    let mut text = String::new();
    let proof = identity.auth.as_ref().map(|auth| match (auth.kind, &auth.cert_id) {
        (AuthenticationKind::Sas, _) => "a token, signed with a key in keyd".to_owned(),
        (AuthenticationKind::Tpm, _) => "a token, signed with a key in the TPM".to_owned(),
        (AuthenticationKind::X509, id) => {
            format!("certificate {}", printable(id.as_deref().unwrap_or("without an id")))
        }
    });
    let gateway = (identity.gateway_host != identity.hub_name).then_some(&identity.gateway_host);
    for (name, value) in [
        ("device", Some(identity.device_id.as_str())),
        ("hub", Some(identity.hub_name.as_str())),
        ("parent", gateway.map(String::as_str)),
        ("proof", proof.as_deref()),
    ] {
        if let Some(value) = value {
            text.push_str(&format!("{name:<8}{}\n", printable(value)));
        }
    }
    text
}

fn why(stand: &ProvisioningStand) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text.push_str(&format!("{name:<16}{}\n", printable(&value)));
    };
    line(
        "identity",
        match (&stand.device_id, &stand.hub_name) {
            (Some(device), Some(hub)) => format!("{device} at {hub}"),
            _ => "none".to_owned(),
        },
    );
    if let Some(at) = &stand.obtained_at {
        line("obtained", at.clone());
    }
    line("source", source(stand));
    line("state", state(stand));
    if let Some(seconds) = stand.next_attempt_in_sec {
        let firm = if stand.is_firm { "; no request makes it earlier" } else { "" };
        line("next attempt", format!("in {seconds} s{firm}"));
    }
    line(
        "registers anew",
        match stand.mode.as_str() {
            _ if stand.source != "dps" => "when [provisioning] changes".to_owned(),
            "AlwaysOnStartup" => "at each start, if the hub refuses it, on request".to_owned(),
            "OnErrorOnly" => {
                "if the hub refuses it before it has ever answered it, or by hand".to_owned()
            }
            _ => "if the hub refuses it, on request".to_owned(),
        },
    );
    if let Some(thumbprint) = &stand.certificate {
        line("certificate", format!("SHA-256 {thumbprint}"));
    }
    if let Some(operational) = &stand.operational_certificate {
        line("for the hub", for_the_hub(operational));
    }
    if !stand.errors.is_empty() {
        text.push_str("last errors\n");
    }
    for error in &stand.errors {
        text.push_str(&format!("  {}  {}\n", printable(&error.at), printable(&error.reason)));
    }
    text
}

fn for_the_hub(operational: &OperationalStand) -> String {
    match (&operational.thumbprint, &operational.not_after) {
        (Some(thumbprint), Some(end)) => format!(
            "certificate {}, issued with the registration, until {end}, SHA-256 {thumbprint}",
            operational.id
        ),
        _ => format!(
            "certificate {}, which was not issued yet; nothing else is shown to the hub",
            operational.id
        ),
    }
}

fn source(stand: &ProvisioningStand) -> String {
    match stand.source.as_str() {
        "dps" => format!("the provisioning service, by {}", stand.auth),
        "manual" => format!("the configuration, by {}", stand.auth),
        _ => "none: this device has local identities only".to_owned(),
    }
}

fn state(stand: &ProvisioningStand) -> String {
    let failed = match stand.failures {
        0 => String::new(),
        1 => ", after 1 failed attempt".to_owned(),
        failures => format!(", after {failures} failed attempts"),
    };
    let state = match stand.activity.as_str() {
        "asking" => "the provisioning service is being asked",
        "waiting" => "the provisioning service has not decided yet",
        "proving" => "the certificate that was issued is being tried at the hub",
        "storing" => "an identity is being written to the disk",
        "pausing" => "pausing",
        _ if stand.device_id.is_none() => "nothing is under way",
        _ => "in order: nothing is under way",
    };
    format!("{state}{failed}")
}

#[cfg(test)]
mod tests {
    use edgekeep_api::identityd::ProvisioningFailure;

    use super::*;

    fn stand() -> ProvisioningStand {
        ProvisioningStand {
            source: "dps".to_owned(),
            auth: "x509".to_owned(),
            mode: "OnErrorOnly".to_owned(),
            activity: "pausing".to_owned(),
            failures: 3,
            next_attempt_in_sec: Some(40),
            is_firm: true,
            errors: vec![ProvisioningFailure {
                at: "2026-11-29T17:00:00Z".to_owned(),
                reason: "disabled \u{1b}[2J".to_owned(),
            }],
            ..ProvisioningStand::default()
        }
    }

    #[test]
    fn why_tells_of_the_certificate_that_the_service_issues_and_of_one_that_is_missing() {
        let id = "device-operational".to_owned();
        let none = OperationalStand { id, ..OperationalStand::default() };
        let with = |operational| {
            why(&ProvisioningStand { operational_certificate: operational, ..stand() })
        };
        assert!(!with(None).contains("for the hub"));
        assert!(with(Some(none.clone())).contains("nothing else is shown to the hub"));
        let one = OperationalStand {
            thumbprint: Some("ab12".to_owned()),
            not_after: Some("2027-01-01T00:00:00Z".to_owned()),
            ..none
        };
        let text = with(Some(one));
        assert!(text.contains("until 2027-01-01T00:00:00Z, SHA-256 ab12"), "{text}");
    }

    #[test]
    fn why_says_what_keeps_a_device_from_an_identity_and_when_it_is_tried_again() {
        let text = why(&stand());
        for part in [
            "identity        none",
            "registers anew  ",
            "the provisioning service, by x509",
            "pausing, after 3 failed attempts",
            "in 40 s; no request makes it earlier",
            "before it has ever answered it, or by hand",
            "2026-11-29T17:00:00Z  disabled",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}
