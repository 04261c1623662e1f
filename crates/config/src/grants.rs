//! What single modules are granted beyond what any module may have: `[modules.NAME.grant]`.

use edgekeep_core::create_options::{Grant, NAMESPACES};

use crate::diagnostic::Code;
use crate::document::{Text, View};
use crate::translate::Draft;

impl Draft<'_> {
    /// Reads the grants, and says so where none are needed because everything is open.
    pub(crate) fn grants(&mut self, root: &View<'_>) {
        const SWITCH: &str = "allow_elevated_docker_permissions";
        if self.moduled.engine.is_some() && !root.has(SWITCH) && !self.report.has_errors() {
            let message = "deployments may give modules everything that root can do, as with existing services";
            let remedy = format!("write `{SWITCH} = false`, and grant single modules what they need; or `true`");
            self.report.notice(Code::Unusual, &(0..0), SWITCH, message, Some(&remedy));
        }
        let Some(modules) = root.table("modules") else { return };
        for entry in &modules.table.entries {
            let Some(view) = modules.table(&entry.key).and_then(|module| module.table("grant")) else { continue };
            let id = self.module_id(&modules, &entry.key, &entry.key_span);
            let grant = self.grant(&view);
            if let Some(id) = id {
                self.moduled.grants.insert(id, grant);
            }
        }
    }

    fn grant(&mut self, view: &View<'_>) -> Grant {
        let namespace = |text: &str| {
            let known = NAMESPACES.contains(&text);
            if known { Ok(()) } else { Err(format!("expected one of {}", NAMESPACES.join(", "))) }
        };
        Grant {
            privileged: view.boolean("privileged").unwrap_or(false),
            capabilities: self.granted(view, "capabilities", |_| Ok(())),
            binds: self.granted(view, "binds", |text| path(text.strip_suffix(":ro").unwrap_or(text))),
            volumes: self.granted(view, "volumes", volume_name),
            devices: self.granted(view, "devices", path),
            namespaces: self.granted(view, "namespaces", namespace).into_iter().collect(),
            sysctls: self.granted(view, "sysctls", |_| Ok(())),
            runtimes: self.granted(view, "runtimes", |_| Ok(())),
            options: self.granted(view, "options", |_| Ok(())),
        }
    }

    fn granted(&mut self, view: &View<'_>, key: &str, check: impl Fn(&str) -> Result<(), String>) -> Vec<String> {
        let texts: Vec<Text<'_>> = view.texts(key).collect();
        let path = view.key(key);
        let right = |text: &Text<'_>| self.checked(&path, text, check(text.text)).map(|()| text.text.to_owned());
        texts.iter().filter_map(right).collect()
    }
}

fn volume_name(text: &str) -> Result<(), String> {
    let plain = !text.is_empty() && !text.starts_with('.') && !text.contains(['/', ':', '\0']);
    if plain { Ok(()) } else { Err("expected the name of a volume".to_owned()) }
}

fn path(text: &str) -> Result<(), String> {
    let plain = text.starts_with('/') && !text.contains([':', '\0']) && !text.split('/').any(|part| part == "..");
    if plain { Ok(()) } else { Err("expected an absolute path without `..` and `:`".to_owned()) }
}
