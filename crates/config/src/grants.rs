//! Grants of single modules, beyond what any module may have: `[modules.NAME.grant]`.

use edgekeep_core::create_options::{
    Grant, NAMESPACES, OwnState, PortGrant, PublishedPorts, ULIMITS, option_names,
};
use edgekeep_core::host::Capability;

use crate::diagnostic::Code;
use crate::document::{Text, View};
use crate::similar::nearest;
use crate::translate::Draft;

impl Draft<'_> {
    /// Reads the grants, and says so where none are needed because everything is open.
    pub(crate) fn grants(&mut self, root: &View<'_>) {
        const SWITCH: &str = "allow_elevated_docker_permissions";
        if self.moduled.engine.is_some() && !root.has(SWITCH) && !self.report.has_errors() {
            let message = "deployments may give modules everything that root can do, as with existing services";
            let remedy = format!(
                "write `{SWITCH} = false`, and grant single modules what they need; or `true`"
            );
            self.report.notice(Code::Unusual, &(0..0), SWITCH, message, Some(&remedy));
        }
        self.whole_device(root);
        let Some(modules) = root.table("modules") else { return };
        for entry in &modules.table.entries {
            let Some(view) = modules.table_of(entry).and_then(|module| module.table("grant"))
            else {
                continue;
            };
            let id = self.module_id(&modules, &entry.key, &entry.key_span);
            let grant = self.grant(&view);
            if let Some(id) = id {
                self.moduled.grants.insert(id, grant);
            }
        }
    }

    /// Reads the settings that hold for all modules.
    fn whole_device(&mut self, root: &View<'_>) {
        if let Some(text) = root.text("published_ports") {
            let choices = [("any", PublishedPorts::Any), ("granted", PublishedPorts::Granted)];
            self.moduled.published_ports =
                self.choice("published_ports", &text, &choices).unwrap_or_default();
            if self.moduled.published_ports == PublishedPorts::Granted
                && self.moduled.allow_elevated_permissions
            {
                let message =
                    "modules have elevated permissions, with which they may publish any port";
                let remedy = "set allow_elevated_docker_permissions = false at the top level";
                self.report.notice(
                    Code::NoEffect,
                    text.span,
                    "published_ports",
                    message,
                    Some(remedy),
                );
            }
        }
        if let Some(text) = root.text("own_state_in_mounts") {
            let choices =
                [("hide", OwnState::Hide), ("refuse", OwnState::Refuse), ("show", OwnState::Show)];
            self.moduled.own_state_in_mounts =
                self.choice("own_state_in_mounts", &text, &choices).unwrap_or_default();
            if self.moduled.own_state_in_mounts == OwnState::Show {
                let message =
                    "a module that mounts `/` or `/run` sees the sockets and keys of these daemons";
                self.report.notice(Code::Unusual, text.span, "own_state_in_mounts", message, None);
            }
        }
    }

    fn grant(&mut self, view: &View<'_>) -> Grant {
        Grant {
            privileged: view.boolean("privileged").unwrap_or(false),
            capabilities: self.granted(view, "capabilities", capability),
            binds: self
                .granted(view, "binds", |text| path(text.strip_suffix(":ro").unwrap_or(text))),
            volumes: self.granted(view, "volumes", volume_name),
            devices: self.granted(view, "devices", path),
            namespaces: self
                .granted(view, "namespaces", |text| word(text, NAMESPACES))
                .into_iter()
                .collect(),
            ports: self.granted(view, "ports", |text| {
                PortGrant::parse(text).map(drop).map_err(str::to_owned)
            }),
            ulimits: self.granted(view, "ulimits", |text| word(text, ULIMITS)),
            sysctls: self.granted(view, "sysctls", |_| Ok(())),
            runtimes: self.granted(view, "runtimes", |_| Ok(())),
            options: self.granted_options(view),
        }
    }

    /// Members of create options; engines of the future may have others, but hardly ones
    /// that look like a slip.
    fn granted_options(&mut self, view: &View<'_>) -> Vec<String> {
        let known: Vec<String> = option_names().collect();
        self.granted(view, "options", |text| {
            let near = || nearest(text, known.iter().map(String::as_str));
            match known.iter().any(|known| known == text) {
                true => Ok(()),
                false => near().map_or(Ok(()), |meant| {
                    Err(format!("no such option; did you mean \"{meant}\"?"))
                }),
            }
        })
    }

    fn granted(
        &mut self,
        view: &View<'_>,
        key: &str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Vec<String> {
        let texts: Vec<Text<'_>> = view.texts(key).collect();
        let path = view.key(key);
        let right = |text: &Text<'_>| {
            self.checked(&path, text, check(text.text)).map(|()| text.text.to_owned())
        };
        texts.iter().filter_map(right).collect()
    }
}

/// One of a few words.
fn word(text: &str, words: &[&str]) -> Result<(), String> {
    match (words.contains(&text), nearest(text, words.iter().copied())) {
        (true, _) => Ok(()),
        (false, Some(meant)) => {
            Err(format!("expected one of {}; did you mean \"{meant}\"?", words.join(", ")))
        }
        (false, None) => Err(format!("expected one of {}", words.join(", "))),
    }
}

/// A capability, in any case, with or without `CAP_`.
fn capability(text: &str) -> Result<(), String> {
    match (text.parse::<Capability>(), nearest(text, Capability::names().iter().copied())) {
        (Ok(_), _) => Ok(()),
        (Err(why), None) => Err(why.to_string()),
        (Err(why), Some(meant)) => Err(format!("{why}; did you mean \"{meant}\"?")),
    }
}

fn volume_name(text: &str) -> Result<(), String> {
    let plain = !text.is_empty() && !text.starts_with('.') && !text.contains(['/', ':', '\0']);
    if plain { Ok(()) } else { Err("expected the name of a volume".to_owned()) }
}

fn path(text: &str) -> Result<(), String> {
    let plain = text.starts_with('/')
        && !text.contains([':', '\0'])
        && !text.split('/').any(|part| part == "..");
    if plain { Ok(()) } else { Err("expected an absolute path without `..` and `:`".to_owned()) }
}
