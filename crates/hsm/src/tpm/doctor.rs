//! Examination of a TPM and our rights to it, with remedies. Changes nothing in the TPM.

use std::time::Duration;

use edgekeep_tpm::{Tcti, Tpm, TpmError, TpmOptions, TpmReport};

use crate::pkcs11::doctor::{Finding, Verdict};

/// Longest wait for one answer of swtpm. swtpm serves one program at a time, and another
/// program may be using it.
const PATIENCE: Duration = Duration::from_secs(10);
const SHA256: u16 = 0x0b;

/// Hierarchies whose auth values the configuration has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KnownAuth {
    /// True if the configuration has the owner hierarchy's auth value.
    pub owner: bool,
    /// True if the configuration has the endorsement hierarchy's auth value.
    pub endorsement: bool,
}

/// Examines the TPM.
#[must_use]
pub fn examine(tcti: Tcti, known: KnownAuth) -> Vec<Finding> {
    let options = TpmOptions { timeout: PATIENCE, ..TpmOptions::new(tcti) };
    let places = (options.storage_root, options.endorsement_key);
    match Tpm::open(options).and_then(|tpm| tpm.report()) {
        Ok(report) => judge(&report, known, places),
        Err(error) => {
            let fix = match &error {
                TpmError::Unreachable { .. } => Some(
                    "start the TPM, correct tcti in [tpm], or end the program that has it open"
                        .to_owned(),
                ),
                // The others say it themselves.
                _ => None,
            };
            let cause = std::error::Error::source(&error)
                .map_or_else(String::new, |cause| format!(": {cause}"));
            vec![Finding {
                check: "TPM",
                verdict: Verdict::Bad,
                text: format!("{error}{cause}"),
                fix,
            }]
        }
    }
}

fn judge(
    report: &TpmReport,
    known: KnownAuth,
    (storage_root, endorsement_key): (u32, u32),
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |check, verdict, text: String, fix: Option<String>| {
        findings.push(Finding { check, verdict, text, fix });
    };
    let (major, minor) = report.firmware;
    let name = format!("{} {}", report.manufacturer, report.model);
    let text = format!("TPM 2.0 at {}: {}, firmware {major}.{minor}", report.tcti, name.trim());
    add("TPM", Verdict::Good, text, None);

    let [owner_set, endorsement_set, lockout_set] = report.auth_set;
    let count =
        format!("{} of {} wrong auth values", report.failed_attempts, report.attempts_limit);
    let clear = if lockout_set {
        "run `tpm2_dictionarylockout --clear-lockout --auth=LOCKOUT_AUTH_VALUE`"
    } else {
        "run `tpm2_dictionarylockout --clear-lockout`"
    };
    if report.in_lockout {
        let fix = format!("{clear}, or wait: one is forgiven every {} s", report.forgiven_after);
        add(
            "lockout",
            Verdict::Bad,
            format!("the TPM is locked against guessing after {count}"),
            Some(fix),
        );
    } else if report.failed_attempts > 0 {
        let fix = format!("look for the program that has the wrong auth value, then {clear}");
        add("lockout", Verdict::Warning, format!("not locked, {count} so far"), Some(fix));
    } else {
        add("lockout", Verdict::Good, format!("not locked, {count}"), None);
    }

    for (check, hierarchy, set, known) in [
        ("owner auth", "owner", owner_set, known.owner),
        ("endorsement auth", "endorsement", endorsement_set, known.endorsement),
    ] {
        match (set, known) {
            (true, false) => {
                let text = format!(
                    "the {hierarchy} hierarchy has an auth value, and the configuration has none"
                );
                let fix = format!("set `{hierarchy}` in [tpm.hierarchy_authorization]");
                add(check, Verdict::Warning, text, Some(fix));
            }
            (false, true) => {
                let text = format!(
                    "the {hierarchy} hierarchy has no auth value, and the configuration has one"
                );
                let fix = format!(
                    "remove `{hierarchy}` from [tpm.hierarchy_authorization], or set it: `tpm2_changeauth -c {hierarchy} VALUE`"
                );
                add(check, Verdict::Warning, text, Some(fix));
            }
            (true, true) => add(
                check,
                Verdict::Good,
                format!("the {hierarchy} hierarchy has an auth value"),
                None,
            ),
            (false, false) => add(
                check,
                Verdict::Good,
                format!("the {hierarchy} hierarchy has no auth value"),
                None,
            ),
        }
    }

    let handles: Vec<String> =
        report.persistent.iter().map(|handle| format!("{handle:#010x}")).collect();
    let list = if handles.is_empty() { "none".to_owned() } else { handles.join(", ") };
    add("persistent handles", Verdict::Good, list, None);
    for (what, handle) in [("storage root", storage_root), ("endorsement key", endorsement_key)] {
        let text = if report.persistent.contains(&handle) {
            format!("the {what} is at {handle:#010x}")
        } else {
            format!("the {what} is made at {handle:#010x} at first use")
        };
        add("persistent handles", Verdict::Good, text, None);
    }

    let banks: Vec<String> = report.banks.iter().map(|bank| bank_name(*bank)).collect();
    if report.banks.contains(&SHA256) {
        add("PCR banks", Verdict::Good, banks.join(", "), None);
    } else {
        let found = if banks.is_empty() { "none".to_owned() } else { banks.join(", ") };
        let fix = "run `tpm2_pcrallocate sha256:all` and restart the device".to_owned();
        let text =
            format!("{found}: there is no sha256, so nothing can be sealed to the measured state");
        add("PCR banks", Verdict::Warning, text, Some(fix));
    }
    findings
}

fn bank_name(bank: u16) -> String {
    match bank {
        0x04 => "sha1".to_owned(),
        SHA256 => "sha256".to_owned(),
        0x0c => "sha384".to_owned(),
        0x0d => "sha512".to_owned(),
        other => format!("{other:#06x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> TpmReport {
        TpmReport {
            tcti: "device:/dev/tpmrm0".to_owned(),
            manufacturer: "IBM".to_owned(),
            model: "SW TPM".to_owned(),
            firmware: (1, 2),
            resets: (0, 0),
            auth_set: [false; 3],
            in_lockout: false,
            failed_attempts: 0,
            attempts_limit: 32,
            forgiven_after: 600,
            persistent: vec![0x8100_0001],
            banks: vec![SHA256],
        }
    }

    fn judged(report: &TpmReport) -> Vec<Finding> {
        judge(report, KnownAuth::default(), (0x8100_0001, 0x8101_0001))
    }

    #[test]
    fn a_tpm_as_it_should_be_has_good_findings_only() {
        let findings = judged(&report());
        assert!(
            findings
                .iter()
                .all(|finding| finding.verdict == Verdict::Good && finding.fix.is_none())
        );
        let text: Vec<&str> = findings.iter().map(|finding| finding.text.as_str()).collect();
        assert!(text.contains(&"the storage root is at 0x81000001"), "{text:?}");
        assert!(
            text.contains(&"the endorsement key is made at 0x81010001 at first use"),
            "{text:?}"
        );
    }

    #[test]
    fn what_is_wrong_comes_with_its_fix() {
        let locked = TpmReport { in_lockout: true, auth_set: [false, false, true], ..report() };
        let owned = TpmReport { auth_set: [true, false, false], ..report() };
        let old = TpmReport { banks: vec![0x04], ..report() };
        let attempted = TpmReport { failed_attempts: 3, ..report() };
        for (report, check, verdict, fix) in [
            (
                locked,
                "lockout",
                Verdict::Bad,
                "--clear-lockout --auth=LOCKOUT_AUTH_VALUE`, or wait",
            ),
            (owned, "owner auth", Verdict::Warning, "set `owner` in [tpm.hierarchy_authorization]"),
            (old, "PCR banks", Verdict::Warning, "tpm2_pcrallocate sha256:all"),
            (attempted, "lockout", Verdict::Warning, "look for the program"),
        ] {
            let findings = judged(&report);
            let wrong: Vec<&Finding> =
                findings.iter().filter(|finding| finding.verdict != Verdict::Good).collect();
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            assert_eq!((wrong[0].check, wrong[0].verdict), (check, verdict));
            assert!(wrong[0].fix.as_ref().unwrap().contains(fix), "{wrong:?}");
        }
    }
}
