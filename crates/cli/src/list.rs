//! `list`: the modules and how they are.

use std::process::ExitCode;

use edgekeep_api::management::{ManagementClient, ModuleDetails};
use serde::Serialize;
use time::OffsetDateTime;

use crate::arguments::Context;
use crate::output::{self, Columns, Hue, Style, age, moment};

pub(crate) async fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let modules = ManagementClient::new(&context.management).list_modules().await?;
    let lines = lines(&modules, OffsetDateTime::now_utc());
    if context.json {
        output::print_json(&lines)?;
    } else {
        let advice: String = advice(&lines).into_iter().map(|line| line + "\n").collect();
        output::print(&table(&lines, Style::stdout(), ""))?;
        output::print_error(&advice);
    }
    Ok(ExitCode::SUCCESS)
}

/// A module as one line shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    pub(crate) name: String,
    #[serde(rename = "type")]
    kind: String,
    pub(crate) status: String,
    pub(crate) description: String,
    image: String,
    start_time: Option<String>,
    exit_time: Option<String>,
    exit_code: Option<String>,
}

/// Returns advice about modules that do not run as they should: one line for those that
/// nobody registered, one for each other.
pub(crate) fn advice(lines: &[Line]) -> Vec<String> {
    let strange = |line: &&Line| line.kind == "docker" && line.status == "dead";
    let names: Vec<String> =
        lines.iter().filter(strange).map(|line| output::printable(&line.name)).collect();
    let mut advice = Vec::new();
    if let Some(first) = names.first() {
        let which = match names.len() {
            1 => format!("module {first} is"),
            count @ 2..=5 => format!("{count} modules ({}) are", names.join(", ")),
            count => format!("{count} modules ({}, ...) are", names[..5].join(", ")),
        };
        advice.push(format!(
            "{which} dead: made by something else than this daemon, or cut off while it was made, so without identity. This \
             device's agent removes such containers, or replaces them if its deployment names them; if they are of \
             another device, give each device an engine of its own"
        ));
    }
    let others = lines
        .iter()
        .filter(|line| !strange(line) && !matches!(line.status.as_str(), "running" | "stopped"));
    advice.extend(others.filter(|line| line.name != "edgeAgent").map(|line| {
        let (name, status) = (output::printable(&line.name), output::printable(&line.status));
        match line.status.as_str() {
            "paused" => format!(
                "module {name} is paused: the engine was told to freeze it, and its log knows nothing of that; the agent \
                 has it go on, and so does edgekeep restart {name}"
            ),
            _ => format!("module {name} is {status}: edgekeep logs {name} says why"),
        }
    }));
    advice
}

/// The modules in the order of their names.
pub(crate) fn lines(modules: &[ModuleDetails], now: OffsetDateTime) -> Vec<Line> {
    let mut lines: Vec<Line> = modules.iter().map(|module| line(module, now)).collect();
    lines.sort_by(|a, b| a.name.cmp(&b.name));
    lines
}

fn line(module: &ModuleDetails, now: OffsetDateTime) -> Line {
    let status = &module.status;
    let exit = status.exit_status.as_ref();
    let since =
        |text: Option<&String>| text.and_then(|text| moment(text)).map(|from| age(from, now));
    let ended = since(exit.map(|exit| &exit.exit_time))
        .map(|age| format!(" {age} ago"))
        .unwrap_or_default();
    let mut description = match status.runtime_status.status.as_str() {
        "running" => since(status.start_time.as_ref())
            .map_or_else(|| "Up".to_owned(), |age| format!("Up {age}")),
        "stopped" => format!("Stopped{ended}"),
        "failed" => {
            let code = exit.map(|exit| format!(" ({})", exit.status_code)).unwrap_or_default();
            format!("Failed{code}{ended}")
        }
        "paused" => "Paused".to_owned(),
        "dead" => "Dead".to_owned(),
        _ => "Unknown".to_owned(),
    };
    if let Some(why) = &status.runtime_status.description {
        description.push_str(&format!(": {why}"));
    }
    let image =
        module.config.settings.get("image").and_then(serde_json::Value::as_str).unwrap_or_default();
    Line {
        name: module.name.clone(),
        kind: module.kind.clone(),
        status: status.runtime_status.status.clone(),
        description,
        image: image.to_owned(),
        start_time: status.start_time.clone(),
        exit_time: exit.map(|exit| exit.exit_time.clone()),
        exit_code: exit.map(|exit| exit.status_code.clone()),
    }
}

pub(crate) fn table(lines: &[Line], style: Style, indent: &str) -> String {
    let mut columns = Columns::with_head(&["NAME", "STATUS", "DESCRIPTION", "CONFIG"]);
    for line in lines {
        let hue = match line.status.as_str() {
            "running" => Hue::Good,
            "stopped" => Hue::Warning,
            _ => Hue::Bad,
        };
        let plain = |text: &str| (Hue::Plain, text.to_owned());
        columns.row(vec![
            plain(&line.name),
            (hue, line.status.clone()),
            plain(&line.description),
            plain(&line.image),
        ]);
    }
    columns.render(style, indent)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    fn modules() -> Vec<ModuleDetails> {
        let module = |name: &str, status: serde_json::Value| {
            let details = json!({
                "id": "id", "name": name, "type": "docker", "status": status,
                "config": { "settings": { "image": "registry.example/a:1" }, "env": [] },
            });
            serde_json::from_value(details).unwrap()
        };
        vec![
            module(
                "thermometer",
                json!({ "startTime": "2026-07-01T11:55:00Z", "runtimeStatus": { "status": "running" } }),
            ),
            module(
                "edgeHub",
                json!({
                    "exitStatus": { "exitTime": "2026-07-01T11:59:50Z", "statusCode": "137" },
                    "runtimeStatus": { "status": "failed", "description": "out of memory" },
                }),
            ),
            module("a", json!({ "runtimeStatus": { "status": "stopped" } })),
            module("b", json!({ "runtimeStatus": { "status": "paused\u{1b}[2J" } })),
        ]
    }

    #[test]
    fn the_table_is_sorted_aligned_and_says_how_long_in_words() {
        let lines = lines(&modules(), datetime!(2026-07-01 12:00 UTC));
        let expected = "\
NAME         STATUS        DESCRIPTION                              CONFIG
a            stopped       Stopped                                  registry.example/a:1
b            paused\u{fffd}[2J  Unknown                                  registry.example/a:1
edgeHub      failed        Failed (137) 10 seconds ago: out of memory  registry.example/a:1
thermometer  running       Up 5 minutes                             registry.example/a:1
";
        let shown = table(&lines, Style::plain(), "");
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&shown), squeeze(expected));
        let columns: Vec<usize> = shown
            .lines()
            .map(|line| {
                line.chars()
                    .collect::<Vec<_>>()
                    .windows(8)
                    .position(|w| w.iter().collect::<String>() == "registry")
                    .unwrap_or(0)
            })
            .collect();
        assert!(columns[1..].iter().all(|column| *column == columns[1]), "{shown}");
    }

    #[test]
    fn advice_names_the_strangers_in_one_line_and_each_other_module_in_its_own() {
        let mut lines = lines(&modules(), datetime!(2026-07-01 12:00 UTC));
        let before = advice(&lines);
        assert!(before.len() == 2 && before[1].contains("edgekeep logs edgeHub"), "{before:?}");
        for number in 0..50 {
            lines.push(Line {
                name: format!("idle{number}"),
                status: "dead".into(),
                ..lines[0].clone()
            });
        }
        let after = advice(&lines);
        assert!(
            after.len() == 3
                && after[0]
                    .starts_with("50 modules (idle0, idle1, idle2, idle3, idle4, ...) are dead")
        );
        assert!(
            after[0].contains("agent removes such containers"),
            "what is lost if nobody acts: {after:?}"
        );
    }

    #[test]
    fn json_has_the_raw_times_and_code() {
        let lines = lines(&modules(), datetime!(2026-07-01 12:00 UTC));
        let hub = serde_json::to_value(&lines[2]).unwrap();
        assert_eq!(hub["exitCode"], "137");
        assert_eq!(hub["exitTime"], "2026-07-01T11:59:50Z");
        assert_eq!(hub["type"], "docker");
    }
}
