//! The metrics of several daemons as one document. Each daemon's series get a label that
//! names it; each family stands once, as OpenMetrics 1.0 wants it.

use std::fmt::Write as _;

use anyhow::{Context as _, ensure};

/// The form of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// OpenMetrics 1.0, as the daemons serve it.
    Openmetrics,
    /// Prometheus' older text format, for node_exporter's folder of text files.
    Prometheus,
}

/// One metric family.
#[derive(Debug, Default)]
struct Family {
    name: String,
    kind: String,
    unit: Option<String>,
    help: Option<String>,
    samples: Vec<String>,
}

/// Families in the order in which they were met.
#[derive(Debug, Default)]
pub(crate) struct Exposition(Vec<Family>);

impl Exposition {
    /// Adds what a daemon serves.
    ///
    /// # Errors
    /// If it is no OpenMetrics document, or has a family that another daemon has as
    /// another kind.
    pub(crate) fn add(&mut self, daemon: &str, text: &str) -> anyhow::Result<()> {
        let mut at = None;
        let mut ended = false;
        for line in text.lines().filter(|line| !line.is_empty()) {
            ensure!(!ended, "there is more behind the end");
            let Some(comment) = line.strip_prefix("# ") else {
                let family: usize = at.context("a sample stands before its family")?;
                self.0[family].samples.push(labelled(line, daemon)?);
                continue;
            };
            let mut words = comment.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("EOF"), None, None) => ended = true,
                (Some("TYPE"), Some(name), Some(kind)) => at = Some(self.family(name, kind)?),
                (Some("UNIT"), Some(_), Some(unit)) => {
                    self.0[at.context("a unit stands before its family")?].unit =
                        Some(unit.to_owned());
                }
                (Some("HELP"), Some(_), Some(help)) => {
                    self.0[at.context("a help stands before its family")?].help =
                        Some(help.to_owned());
                }
                _ => anyhow::bail!("a line is neither sample nor comment"),
            }
        }
        ensure!(ended, "the end is missing");
        Ok(())
    }

    fn family(&mut self, name: &str, kind: &str) -> anyhow::Result<usize> {
        if let Some(at) = self.0.iter().position(|family| family.name == name) {
            ensure!(
                self.0[at].kind == kind,
                "{name} is of two kinds: one daemon is of another version"
            );
            return Ok(at);
        }
        let (name, kind) = (name.to_owned(), kind.to_owned());
        self.0.push(Family { name, kind, ..Family::default() });
        Ok(self.0.len() - 1)
    }

    /// The document.
    pub(crate) fn render(&self, format: Format) -> String {
        let mut out = String::new();
        for family in self.0.iter().filter(|family| !family.samples.is_empty()) {
            let (name, kind) = match format {
                Format::Openmetrics => (family.name.clone(), family.kind.as_str()),
                // The older format has no such kind, and names a counter as its sample.
                Format::Prometheus => match family.kind.as_str() {
                    "counter" => (format!("{}_total", family.name), "counter"),
                    "info" => (format!("{}_info", family.name), "gauge"),
                    "unknown" => (family.name.clone(), "untyped"),
                    kind => (family.name.clone(), kind),
                },
            };
            let _ = writeln!(out, "# TYPE {name} {kind}");
            if let (Format::Openmetrics, Some(unit)) = (format, &family.unit) {
                let _ = writeln!(out, "# UNIT {name} {unit}");
            }
            if let Some(help) = &family.help {
                let _ = writeln!(out, "# HELP {name} {help}");
            }
            for sample in &family.samples {
                let _ = writeln!(out, "{sample}");
            }
        }
        if format == Format::Openmetrics {
            out.push_str("# EOF\n");
        }
        out
    }
}

/// A sample with the label `daemon`, if it has none.
fn labelled(line: &str, daemon: &str) -> anyhow::Result<String> {
    let end = line.find(['{', ' ']).context("a sample has no value")?;
    let (name, rest) = line.split_at(end);
    Ok(match rest.strip_prefix('{') {
        Some(labels) if labels.starts_with("daemon=") || labels.contains(",daemon=\"") => {
            line.to_owned()
        }
        Some(labels) if labels.starts_with('}') => format!("{name}{{daemon=\"{daemon}\"{labels}"),
        Some(labels) => format!("{name}{{daemon=\"{daemon}\",{labels}"),
        None => format!("{name}{{daemon=\"{daemon}\"}}{rest}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYD: &str = "# TYPE a_seconds gauge\n# UNIT a_seconds seconds\n# HELP a_seconds Time.\na_seconds 1\n\
        # TYPE b counter\n# HELP b Calls.\nb_total{route=\"/x{id}\"} 2\n# EOF\n";
    const MODULED: &str = "# TYPE b counter\n# HELP b Calls.\nb_total 3\n# TYPE c info\nc_info{daemon=\"moduled\"} 1\n# EOF\n";

    fn both(format: Format) -> String {
        let mut all = Exposition::default();
        all.add("keyd", KEYD).unwrap();
        all.add("moduled", MODULED).unwrap();
        all.render(format)
    }

    #[test]
    fn a_family_of_two_daemons_stands_once_with_the_samples_of_both() {
        assert_eq!(
            both(Format::Openmetrics),
            "# TYPE a_seconds gauge\n# UNIT a_seconds seconds\n# HELP a_seconds Time.\na_seconds{daemon=\"keyd\"} 1\n\
             # TYPE b counter\n# HELP b Calls.\nb_total{daemon=\"keyd\",route=\"/x{id}\"} 2\nb_total{daemon=\"moduled\"} 3\n\
             # TYPE c info\nc_info{daemon=\"moduled\"} 1\n# EOF\n"
        );
    }

    #[test]
    fn the_older_format_has_no_units_no_end_and_names_counters_as_their_samples() {
        let text = both(Format::Prometheus);
        assert!(text.contains("# TYPE b_total counter\n# HELP b_total Calls.\nb_total{"), "{text}");
        assert!(text.contains("# TYPE c_info gauge\n"), "{text}");
        assert!(!text.contains("UNIT") && !text.contains("EOF"), "{text}");
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for (text, why) in [
            ("a 1\n# EOF\n", "before its family"),
            ("# TYPE a gauge\na 1\n", "the end is missing"),
            ("# TYPE a gauge\na\n# EOF\n", "no value"),
            ("# EOF\n# EOF\n", "behind the end"),
            ("# NOTE\n", "neither"),
        ] {
            let error = Exposition::default().add("keyd", text).unwrap_err();
            assert!(error.to_string().contains(why), "{text:?}: {error}");
        }
        let mut all = Exposition::default();
        all.add("keyd", "# TYPE b gauge\n# EOF\n").unwrap();
        let error = all.add("moduled", MODULED).unwrap_err();
        assert!(error.to_string().contains("of two kinds"), "{error}");
    }
}
