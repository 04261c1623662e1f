//! `edgekeep keys`: examines what keys are kept in, moves the store key, and backs keys
//! up.

mod accept_loss;
mod backup;
mod migrate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use edgekeep_base::file::{self, Rules};
use edgekeep_core::hardware::SandboxSettings;
use edgekeep_core::layout::Daemon;
use edgekeep_core::settings::KeydSettings;
use edgekeep_hsm::pkcs11::doctor::{self, Finding, Verdict};
use edgekeep_hsm::tpm::doctor::{self as tpm_doctor, KnownAuth};
use edgekeep_hsm::uri::{KeyUri, PinSource, Pkcs11Uri};
use edgekeep_tpm::Tcti;
use serde::Serialize;

use crate::arguments::Context;
use crate::output::{self, Hue, Style, printable};

/// Largest settings file that is read, in bytes.
const SETTINGS_LIMIT: u64 = 16 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum KeysVerb {
    /// Examine tokens and TPM, and say how to fix what is wrong; fails if something is
    Doctor(DoctorOptions),
    /// Protect the key store by the TPM, a token or its file's rights; keyd has to be
    /// stopped
    Migrate(migrate::MigrateOptions),
    /// Write the keys that are in files, encrypted to a public key; keyd may run
    Backup(backup::BackupOptions),
    /// Take keys out of a backup; keyd has to be stopped
    Restore(backup::RestoreOptions),
    /// Accept that a key is gone and all that was made with it void, so that it may be
    /// made anew; then restart keyd
    AcceptLoss(accept_loss::AcceptLossOptions),
}

/// Without options, what keyd's settings name is examined.
#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    /// PKCS#11 library; without --token its tokens are listed and none is logged in to
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,
    /// Token to log in to and make, use and delete test keys on, as a pkcs11: URI
    #[arg(long, value_name = "URI")]
    token: Option<String>,
    /// TPM, as in device:/dev/tpmrm0
    #[arg(long, value_name = "TCTI")]
    tpm: Option<Tcti>,
}

/// A token's URI. What is wrong with one is said without its PIN.
#[derive(Debug, Clone)]
struct Token(Pkcs11Uri);

impl std::str::FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(KeyUri::Pkcs11(uri)) => Ok(Self(*uri)),
            Ok(_) => Err("expected a URI that begins with pkcs11:".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Hardware that is examined.
#[derive(Default)]
struct Patients {
    tokens: Vec<(Option<PathBuf>, Option<Pkcs11Uri>)>,
    tpm: Option<(Tcti, KnownAuth)>,
    /// The sandbox that the library has to work in, if it is keyd's.
    sandbox: Option<SandboxSettings>,
}

/// Returns a warning if it is not known which files `library` needs inside keyd's
/// sandbox. The examination runs outside of that sandbox: a library that works here may
/// not work there.
fn sandbox_finding(library: &Path, sandbox: &SandboxSettings) -> Option<Finding> {
    let fix = sandbox.missing_for(library)?;
    let text =
        format!("inside keyd's sandbox it is not known which files {} needs", library.display());
    Some(Finding { check: "sandbox", verdict: Verdict::Warning, text, fix: Some(fix.to_owned()) })
}

#[derive(Serialize)]
struct Examined {
    part: &'static str,
    #[serde(flatten)]
    finding: Finding,
}

/// Keeps keys that pass through this process out of core dumps and from tracers of the
/// same user.
fn hide_memory() -> anyhow::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .context("cannot switch off core dumps")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot keep tracers away")
}

pub(crate) fn run(context: &Context, verb: KeysVerb) -> anyhow::Result<ExitCode> {
    hide_memory()?;
    match verb {
        KeysVerb::Doctor(options) => examine(context, options),
        KeysVerb::Migrate(options) => migrate::run(context, options),
        KeysVerb::Backup(options) => backup::backup(context, &options),
        KeysVerb::Restore(options) => backup::restore(context, &options),
        KeysVerb::AcceptLoss(options) => accept_loss::run(context, &options),
    }
}

fn examine(context: &Context, options: DoctorOptions) -> anyhow::Result<ExitCode> {
    let asked = options.library.is_some() || options.token.is_some() || options.tpm.is_some();
    let patients = if asked { asked_for(options)? } else { configured(context)? };
    let mut found = Vec::new();
    found.extend(patients.tokens.iter().find_map(|(_, uri)| exposed_pin(asked, uri.as_ref()?)));
    for (library, uri) in &patients.tokens {
        let findings = doctor::examine(library.as_deref(), uri.as_ref());
        let library =
            uri.as_ref().and_then(|uri| uri.module_path.as_deref()).or(library.as_deref());
        let sandbox = library
            .zip(patients.sandbox.as_ref())
            .and_then(|(path, sandbox)| sandbox_finding(path, sandbox));
        found.extend(
            findings.into_iter().chain(sandbox).map(|finding| Examined { part: "token", finding }),
        );
    }
    if let Some((tcti, known)) = patients.tpm {
        let findings = tpm_doctor::examine(tcti, known);
        found.extend(findings.into_iter().map(|finding| Examined { part: "tpm", finding }));
    }
    if found.is_empty() {
        let text = "keyd's settings name no token and no TPM: keys are in files".to_owned();
        let finding = Finding { check: "settings", verdict: Verdict::Good, text, fix: None };
        found.push(Examined { part: "files", finding });
    }
    let bad = found.iter().any(|one| one.finding.verdict == Verdict::Bad);
    if context.json {
        output::print_json(&serde_json::json!({ "findings": found }))?;
    } else {
        output::print(&render(&found, Style::stdout()))?;
    }
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A PIN among the arguments, which every user of the device can read while this runs.
fn exposed_pin(asked: bool, uri: &Pkcs11Uri) -> Option<Examined> {
    let finding = Finding {
        check: "arguments",
        verdict: Verdict::Warning,
        text:
            "the PIN was given on the command line: other users see it in the list of processes, and the shell keeps it"
                .to_owned(),
        fix: Some("write it to a file of mode 0600 and use pin-source=file:/PATH in the URI".to_owned()),
    };
    (asked && matches!(uri.pin, Some(PinSource::Value(_))))
        .then_some(Examined { part: "token", finding })
}

fn asked_for(options: DoctorOptions) -> anyhow::Result<Patients> {
    // Not by the parser of arguments: it repeats what it refuses.
    let token =
        options.token.map(|text| text.parse::<Token>()).transpose().map_err(anyhow::Error::msg);
    let token = token.context("--token is no URI of a token")?.map(|token| token.0);
    let tokens = if options.library.is_some() || token.is_some() {
        vec![(options.library, token)]
    } else {
        Vec::new()
    };
    Ok(Patients {
        tokens,
        tpm: options.tpm.map(|tcti| (tcti, KnownAuth::default())),
        sandbox: None,
    })
}

/// The settings that `config apply` wrote for keyd.
///
/// They name libraries that this process loads. A file that keyd could write is refused:
/// root would run whatever keyd, or an intruder in keyd, put there.
fn keyd_settings(context: &Context) -> anyhow::Result<KeydSettings> {
    let path = context.root.settings_file(Daemon::Keyd);
    let text = file::read(&path, Rules::obeyed(SETTINGS_LIMIT)).with_context(|| {
        let path = path.display();
        match rustix::process::geteuid().is_root() {
            true => format!("cannot use {path} as root: run `edgekeep config apply` as root"),
            false => format!("cannot use {path}: run `edgekeep config apply`"),
        }
    })?;
    // The error's own text may repeat a part of the file, which has secrets.
    serde_json::from_slice(&text).map_err(|error| {
        anyhow::anyhow!(
            "{} is not keyd's settings (line {}): run `edgekeep config apply`",
            path.display(),
            error.line()
        )
    })
}

/// Reads the hardware that keyd uses from its settings.
fn configured(context: &Context) -> anyhow::Result<Patients> {
    let settings = keyd_settings(context)
        .context("name --library, --token or --tpm to examine what is not configured")?;
    let mut patients = Patients { sandbox: Some(settings.sandbox.clone()), ..Patients::default() };
    if let Some(pkcs11) = &settings.pkcs11 {
        let uri = pkcs11.base_slot.as_ref().map(|uri| uri.expose().parse::<Token>());
        let uri = uri
            .transpose()
            .map_err(anyhow::Error::msg)
            .context("pkcs11_base_slot")?
            .map(|token| token.0);
        patients.tokens.push((pkcs11.library.clone(), uri));
    }
    if let Some(tpm) = &settings.tpm {
        let known =
            KnownAuth { owner: tpm.owner.is_some(), endorsement: tpm.endorsement.is_some() };
        patients.tpm = Some((tpm.tcti.parse().context("tcti of the TPM")?, known));
    }
    Ok(patients)
}

fn render(found: &[Examined], style: Style) -> String {
    let width = found.iter().map(|one| one.finding.check.len()).max().unwrap_or_default();
    let mut out = String::new();
    for Examined { finding, .. } in found {
        let (hue, word) = match finding.verdict {
            Verdict::Good => (Hue::Good, "good   "),
            Verdict::Warning => (Hue::Warning, "warning"),
            Verdict::Bad => (Hue::Bad, "bad    "),
        };
        let (word, text) = (style.paint(hue, word), printable(&finding.text));
        out.push_str(&format!("{word}  {:width$}  {text}\n", finding.check));
        if let Some(fix) = &finding.fix {
            out.push_str(&format!("         {:width$}  fix: {}\n", "", printable(fix)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_lines_with_their_fix_below() {
        let finding = |check, verdict, text: &str, fix: Option<&str>| Examined {
            part: "tpm",
            finding: Finding { check, verdict, text: text.to_owned(), fix: fix.map(str::to_owned) },
        };
        let found = [
            finding("lockout", Verdict::Good, "not locked", None),
            finding("PCR banks", Verdict::Bad, "none\u{1b}[2J", Some("allocate one")),
        ];
        assert_eq!(
            render(&found, Style::plain()),
            "good     lockout    not locked\nbad      PCR banks  none\u{fffd}[2J\n                    fix: allocate one\n"
        );
    }

    #[test]
    fn a_library_whose_files_the_sandbox_does_not_know_comes_with_what_to_add() {
        let (vendor, mut sandbox) =
            (Path::new("/opt/vendor/libhsm.so"), SandboxSettings::default());
        let finding = sandbox_finding(vendor, &sandbox).unwrap();
        assert!(
            finding.fix.is_some_and(|fix| fix.contains("sandbox_paths = [")),
            "{}",
            finding.text
        );
        assert_eq!(sandbox_finding(Path::new("/usr/lib/softhsm/libsofthsm2.so"), &sandbox), None);
        sandbox.paths.push("/opt/vendor/etc".into());
        assert_eq!(sandbox_finding(vendor, &sandbox), None);
        assert_eq!(
            sandbox_finding(
                vendor,
                &SandboxSettings { enabled: false, ..SandboxSettings::default() }
            ),
            None
        );
    }

    #[test]
    fn a_pin_among_the_arguments_is_warned_of_and_not_repeated() {
        let uri = |text: &str| text.parse::<Token>().unwrap().0;
        let finding = exposed_pin(true, &uri("pkcs11:token=a?pin-value=geheim")).unwrap().finding;
        let fix = finding.fix.unwrap();
        assert!(
            fix.contains("pin-source=file:")
                && !format!("{} {fix}", finding.text).contains("geheim"),
            "{fix}"
        );
        assert!(
            exposed_pin(false, &uri("pkcs11:token=a?pin-value=geheim")).is_none(),
            "it is in the settings"
        );
        assert!(exposed_pin(true, &uri("pkcs11:token=a?pin-source=file:/p")).is_none());
    }

    #[test]
    fn a_wrong_token_uri_is_refused_without_its_pin() {
        let error = "pkcs11:tokn=a?pin-value=geheim".parse::<Token>().unwrap_err();
        assert!(error.contains("tokn") && !error.contains("geheim"), "{error}");
    }
}
