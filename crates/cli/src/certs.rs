//! `certs`: the device's certificates, and what is planned for them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use edgekeep_api::certd::{CertificateLine, CertificatesClient};

use crate::arguments::Context;
use crate::failure;
use crate::output::{self, printable};

#[derive(Debug, Subcommand)]
pub(crate) enum CertsVerb {
    /// List the certificates: days left, next renewal, last error
    List,
    /// Show one certificate and what is planned for it
    Show {
        /// The certificate's id
        id: String,
    },
    /// Renew a certificate now, whatever is planned for it
    Renew {
        /// The certificate's id
        id: String,
    },
    /// Write a certificate and those above it as PEM; no key is in it
    Export {
        /// The certificate's id
        id: String,
        /// The file to write [default: standard output]
        #[arg(short = 'o', long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

pub(crate) async fn run(context: &Context, verb: CertsVerb) -> anyhow::Result<ExitCode> {
    let client = CertificatesClient::new(context.root.certd_socket());
    match verb {
        CertsVerb::List => {
            let list = failure::of_our_own_route(client.list().await)?;
            if context.json {
                output::print_json(&list)?;
            } else {
                output::print(&table(&list.certificates))?;
            }
        }
        CertsVerb::Show { id } => {
            let list = failure::of_our_own_route(client.list().await)?;
            let line = list.certificates.into_iter().find(|line| line.id == id);
            let line = line.with_context(|| {
                format!(
                    "there is no certificate {id:?}; `edgekeep certs list` shows those there are"
                )
            })?;
            if context.json {
                output::print_json(&line)?;
            } else {
                output::print(&shown(&line))?;
            }
        }
        CertsVerb::Renew { id } => {
            let renewed = client.renew(&id).await;
            renewed.with_context(|| format!("certificate {id:?} was not renewed"))?;
            if context.json {
                output::print_json(&serde_json::json!({ "renewed": id }))?;
            } else {
                output::print(&format!("{} renewed\n", printable(&id)))?;
            }
        }
        CertsVerb::Export { id, output: file } => {
            let pem = client.load(&id).await;
            let pem = pem.with_context(|| format!("certificate {id:?} cannot be read"))?;
            match file {
                Some(file) => std::fs::write(&file, &pem)
                    .with_context(|| format!("cannot write {}", file.display()))?,
                None if context.json => {
                    output::print_json(&serde_json::json!({ "id": id, "pem": pem }))?;
                }
                None => output::print(&pem)?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns one line a certificate, and a second one below a failed renewal.
fn table(lines: &[CertificateLine]) -> String {
    if lines.is_empty() {
        return "no certificates yet\n".to_owned();
    }
    let width = |of: fn(&CertificateLine) -> &str, heading: &str| {
        lines.iter().map(|line| of(line).chars().count()).max().unwrap_or(0).max(heading.len())
    };
    let id = width(|line| &line.id, "ID");
    let subject = width(|line| &line.subject, "SUBJECT").min(40);
    let issuer = width(|line| &line.issuer, "ISSUER").min(40);
    let key = width(|line| &line.key, "KEY");
    let mut text = format!(
        "{:<id$}  {:<subject$}  {:<issuer$}  {:<key$}  {:<10}  {:>9}  NEXT RENEWAL\n",
        "ID", "SUBJECT", "ISSUER", "KEY", "NOT AFTER", "DAYS LEFT"
    );
    for line in lines {
        text.push_str(&format!(
            "{:<id$}  {:<subject$}  {:<issuer$}  {:<key$}  {:<10}  {:>9.1}  {}\n",
            printable(&line.id),
            cut(&printable(&line.subject), subject),
            cut(&printable(&line.issuer), issuer),
            printable(&line.key),
            day(&line.not_after),
            line.days_left,
            plan(line),
        ));
        if let Some(error) = &line.last_error {
            text.push_str(&format!("{:<id$}  ! {}\n", "", printable(error)));
        }
    }
    text
}

fn shown(line: &CertificateLine) -> String {
    let mut text = String::new();
    let pairs = [
        ("id", line.id.clone()),
        ("method", line.method.clone()),
        ("place", line.place.clone().unwrap_or_else(|| "identityd".to_owned())),
        ("subject", line.subject.clone()),
        ("issuer", line.issuer.clone()),
        ("key", line.key.clone()),
        ("not before", line.not_before.clone()),
        ("not after", line.not_after.clone()),
        ("days left", format!("{:.1}", line.days_left)),
        ("next renewal", plan(line)),
        ("last error", line.last_error.clone().unwrap_or_else(|| "none".to_owned())),
    ];
    for (name, value) in pairs {
        text.push_str(&format!("{name:<12}  {}\n", printable(&value)));
    }
    text
}

fn plan(line: &CertificateLine) -> String {
    let at = line.next_renewal.as_deref().map_or("", |at| at.get(..16).unwrap_or(at));
    let at = at.replace('T', " ");
    match line.renewal.as_str() {
        "planned" => at,
        "window" => format!("{at}, in the window"),
        "retry" => format!("{at}, after a failure"),
        "clock-implausible" => "on hold: the clock cannot be right".to_owned(),
        "under-way" => "now".to_owned(),
        "off" => "off".to_owned(),
        "none" => match &line.place {
            Some(place) => format!("not renewed here: {}", printable(place)),
            None => "not renewed here".to_owned(),
        },
        other => printable(other),
    }
}

fn day(moment: &str) -> String {
    printable(moment.get(..10).unwrap_or(moment))
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(2)).collect();
    short.push_str("..");
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(renewal: &str, next: Option<&str>, error: Option<&str>) -> CertificateLine {
        CertificateLine {
            id: "aziot-edged-ca".to_owned(),
            method: "local_ca".to_owned(),
            place: None,
            subject: "CN=edge".to_owned(),
            issuer: "CN=plant\u{1b}[31m".to_owned(),
            key: "keyd:aziot-edged-ca".to_owned(),
            not_before: "2026-01-01T00:00:00Z".to_owned(),
            not_after: "2026-04-01T00:00:00Z".to_owned(),
            days_left: 12.34,
            renewal: renewal.to_owned(),
            next_renewal: next.map(str::to_owned),
            last_error: error.map(str::to_owned),
        }
    }

    #[test]
    fn each_certificate_has_a_line_and_a_failure_one_of_its_own() {
        let lines = [
            line("planned", Some("2026-03-15T10:20:30Z"), None),
            line("retry", Some("2026-03-15T10:20:30Z"), Some("the issuer\u{7} is away")),
        ];
        let text = table(&lines);
        let rows: Vec<_> = text.lines().collect();
        assert_eq!(rows.len(), 4, "{text}");
        assert!(rows[1].ends_with("2026-04-01       12.3  2026-03-15 10:20"), "{text}");
        assert!(rows[2].ends_with("2026-03-15 10:20, after a failure"), "{text}");
        assert!(rows[3].contains("! the issuer"), "{text}");
        assert!(!text.contains(['\u{1b}', '\u{7}']), "{text}");
        assert_eq!(table(&[]), "no certificates yet\n");
    }

    #[test]
    fn a_stand_is_told_in_words() {
        for (stand, words) in [
            ("clock-implausible", "on hold: the clock cannot be right"),
            ("off", "off"),
            ("none", "not renewed here"),
        ] {
            assert_eq!(plan(&line(stand, None, None)), words);
        }
        assert!(shown(&line("off", None, None)).contains("last error    none\n"));
        let place = Some("pkcs11:token=edge;object=ca\u{7}".to_owned());
        let on_token = CertificateLine { place, ..line("none", None, None) };
        assert!(plan(&on_token).starts_with("not renewed here: pkcs11:token=edge;object=ca"));
        assert!(!plan(&on_token).contains('\u{7}'));
        assert!(shown(&on_token).contains("place         pkcs11:token=edge"));
    }
}
