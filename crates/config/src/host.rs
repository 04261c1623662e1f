//! `[host_modules]` and `[host_services]`: programs of the host that have a module's
//! identity.

use std::ops::Range;
use std::path::Path;

use edgekeep_core::digest::Sha256Digest;
use edgekeep_core::host::{
    Capabilities, Capability, Enforcement, HostModule, HostService, Limits, RestartPolicy,
    ScopeUse, SeccompPreset, UnitName,
};
use edgekeep_core::id::ModuleId;

use crate::diagnostic::Code;
use crate::document::{Text, View};
use crate::places::Expected;
use crate::similar::nearest;
use crate::translate::Draft;
use crate::value;

/// Beyond what any machine has; keeps sums in range.
const MAX_MEMORY: u64 = 1 << 50;
/// Less, and not even the loader runs.
const MIN_MEMORY: u64 = 1 << 20;

impl Draft<'_> {
    /// Reads what programs of the host may be modules.
    pub(crate) fn host(&mut self, root: &View<'_>) {
        if let Some(allow) = root.boolean("allow_root_host_modules") {
            self.moduled.allow_root_host_modules = allow;
        }
        if let Some(text) = root.text("host_module_scopes") {
            let choices = [
                ("auto", ScopeUse::Auto),
                ("required", ScopeUse::Required),
                ("off", ScopeUse::Off),
            ];
            self.moduled.host_module_scopes =
                self.choice(&root.key("host_module_scopes"), &text, &choices).unwrap_or_default();
        }
        self.host_module_ids(root);
        let modules = root.table("host_modules");
        let services = root.table("host_services");
        for (view, key_span, name) in modules.iter().flat_map(tables) {
            self.host_module(&view, key_span, name);
        }
        for (view, key_span, name) in services.iter().flat_map(tables) {
            self.host_service(&view, key_span, name);
        }
        if !self.environment.users.is_single() {
            let modules: Vec<_> = modules.iter().flat_map(tables).collect();
            let services: Vec<_> = services.iter().flat_map(tables).collect();
            self.users_apart(&modules, &services);
        }
        // When all names are known.
        for (view, ..) in modules.iter().chain(&services).flat_map(tables) {
            self.known_accounts(&view);
            self.known_targets(&view);
        }
    }

    fn host_module(&mut self, view: &View<'_>, key_span: &Range<usize>, name: &str) {
        // The name stands where an image name does.
        let named = (1..=128).contains(&name.len()) && name.chars().all(|c| c.is_ascii_graphic());
        if !named {
            let message =
                "the name of a host module has 1 to 128 printable characters without blanks";
            self.report.error(Code::BadValue, key_span, &view.path, message);
        }
        let executable = match view.text("executable") {
            Some(path) => self.checked(&view.key("executable"), &path, absolute(path.text)),
            None => self.absent(view, "executable", "the absolute path of the program"),
        };
        let sha256 = match view.text("sha256") {
            Some(text) => self.digest(view, &text),
            None => self.absent(view, "sha256", "the output of `sha256sum` for the program"),
        };
        let (Some(executable), Some(sha256)) = (executable, sha256) else { return };
        self.named_program(view, Path::new(&executable), Some(sha256));
        let mut module = HostModule::new(executable, sha256);
        module.args = view.texts("args").map(|arg| arg.text.to_owned()).collect();
        module.user = account(view, "user");
        module.group = account(view, "group");
        if let (None, Some(_), Some(entry)) = (&module.user, &module.group, view.entry("group")) {
            let message = "`group` takes a `user` beside it";
            self.report.error(Code::Conflict, &entry.key_span, view.key("group"), message);
        }
        if let Some(folder) = view.text("working_dir") {
            let key = view.key("working_dir");
            module.working_dir = self.checked(&key, &folder, absolute(folder.text));
            if let Some(path) = &module.working_dir {
                self.place(&key, &folder, Path::new(path), Expected::Folder);
            }
        }
        self.host_env(view, &mut module);
        module.capabilities = self.capabilities(view);
        module.read = self.folders(view, "read");
        module.write = self.folders(view, "write");
        if let Some(text) = view.text("seccomp") {
            let presets = [
                ("default", SeccompPreset::Default),
                ("strict", SeccompPreset::Strict),
                ("none", SeccompPreset::None),
            ];
            module.seccomp = self.choice(&view.key("seccomp"), &text, &presets).unwrap_or_default();
        }
        module.limits = self.limits_of(view);
        if let Some(text) = view.text("restart") {
            let policies = [
                ("agent", RestartPolicy::Agent),
                ("on-failure", RestartPolicy::OnFailure),
                ("always", RestartPolicy::Always),
            ];
            module.restart =
                self.choice(&view.key("restart"), &text, &policies).unwrap_or_default();
        }
        module.approves = view.texts("approves").map(|name| name.text.to_owned()).collect();
        // Without the socket there is no approving.
        module.management = view.boolean("management").unwrap_or(!module.approves.is_empty());
        if named {
            self.moduled.host_modules.insert(name.to_owned(), module);
        }
    }

    fn host_service(&mut self, view: &View<'_>, key_span: &Range<usize>, name: &str) {
        let id = name.parse::<ModuleId>().map_err(|why| why.to_string()).and_then(|id| {
            let taken = ["edgeAgent", "edgeHub"].contains(&id.name())
                || name.starts_with('$')
                || name.ends_with(".sock");
            if taken {
                Err("a service has a module's name, other than that of a system module".to_owned())
            } else {
                Ok(id)
            }
        });
        let id =
            id.map_err(|why| self.report.error(Code::BadValue, key_span, &view.path, why)).ok();
        if self.moduled.host_modules.contains_key(name) {
            let message =
                format!("`{name}` is in [host_modules] as well: an approval could mean either");
            self.report.error_with(
                Code::Conflict,
                key_span,
                &view.path,
                message,
                "choose another name",
            );
        }
        let unit = view.text("unit").and_then(|text| {
            self.checked(
                &view.key("unit"),
                &text,
                text.text.parse::<UnitName>().map_err(|why| why.to_string()),
            )
        });
        let executable = view
            .text("executable")
            .and_then(|path| self.checked(&view.key("executable"), &path, absolute(path.text)));
        let sha256 = view.text("sha256").and_then(|text| self.digest(view, &text));
        if let Some(executable) = &executable {
            self.named_program(view, Path::new(executable), sha256);
        }
        let user = account(view, "user");
        let of_user = unit.as_ref().is_some_and(UnitName::is_a_users);
        if (of_user || !view.has("unit")) && (user.is_none() || !view.has("sha256")) {
            let missing = if user.is_none() { "user" } else { "sha256" };
            let remedy = if of_user {
                "what a user's own systemd runs has the name that this user gives it: give its `user` and `sha256` as well"
            } else {
                "a service is known by its systemd `unit`, or by its `user` and the `sha256` of its executable"
            };
            self.report.missing(key_span, &view.key(missing), remedy);
        }
        let approves: Vec<String> =
            view.texts("approves").map(|name| name.text.to_owned()).collect();
        let management = view.boolean("management").unwrap_or(!approves.is_empty());
        if let Some(id) = id {
            let service = HostService { unit, user, executable, sha256, management, approves };
            self.moduled.host_services.insert(id, service);
        }
    }

    /// Judges the program that a table names, and its digest.
    fn named_program(&mut self, view: &View<'_>, path: &Path, wanted: Option<Sha256Digest>) {
        let Some(text) = view.text("executable") else { return };
        let digest = view.text("sha256");
        let wanted = wanted.zip(digest.as_ref());
        let wanted = wanted.map(|(wanted, text)| (wanted, text, view.key("sha256")));
        self.program(&view.key("executable"), &text, path, wanted);
    }

    fn digest(&mut self, view: &View<'_>, text: &Text<'_>) -> Option<Sha256Digest> {
        let digest = text.text.parse::<Sha256Digest>().map_err(|why| why.to_string());
        self.checked(&view.key("sha256"), text, digest)
    }

    fn host_env(&mut self, view: &View<'_>, module: &mut HostModule) {
        let Some(env) = view.table("env") else { return };
        for entry in &env.table.entries {
            let why = if entry.key.is_empty() || entry.key.contains(['=', '\0']) {
                "the name of an environment variable is not empty and has no `=`"
            } else if HostModule::changes_loading(&entry.key) {
                "this variable would change what a measured executable runs"
            } else if entry.key.starts_with("IOTEDGE_") {
                "variables that begin with IOTEDGE_ are set by the daemon and the agent"
            } else {
                continue;
            };
            self.report.error(Code::BadValue, &entry.key_span, env.key(&entry.key), why);
        }
        module.env = Self::strings(&env);
    }

    fn capabilities(&mut self, view: &View<'_>) -> Capabilities {
        let path = view.key("capabilities");
        let mut found = Vec::new();
        for text in view.texts("capabilities") {
            match text.text.parse::<Capability>() {
                Ok(capability) => found.push(capability),
                Err(why) => match nearest(text.text, Capability::names().iter().copied()) {
                    Some(name) => {
                        let remedy = format!("did you mean \"{name}\"?");
                        self.report.error_with(
                            Code::BadValue,
                            text.span,
                            &path,
                            why.to_string(),
                            remedy,
                        );
                    }
                    None => self.report.error(Code::BadValue, text.span, &path, why.to_string()),
                },
            }
        }
        found.into_iter().collect()
    }

    fn folders(&mut self, view: &View<'_>, key: &str) -> Option<Vec<String>> {
        if !view.has(key) {
            return None;
        }
        let texts = view.texts(key);
        let mut found = Vec::new();
        for text in texts {
            let Some(path) = self.checked(&view.key(key), &text, absolute(text.text)) else {
                continue;
            };
            self.place(&view.key(key), &text, Path::new(&path), Expected::FileOrFolder);
            found.push(path);
        }
        Some(found)
    }

    fn limits_of(&mut self, view: &View<'_>) -> Limits {
        let mut limits = Limits {
            pids_max: self.count(view, "pids_max", 1, 4_194_304),
            nofile: self.count(view, "nofile", 8, 1_048_576).map(u64::from),
            ..Limits::default()
        };
        limits.memory_max = self.amount(view, "memory_max", |text| {
            let bytes =
                value::bytes(text).filter(|bytes| (MIN_MEMORY..=MAX_MEMORY).contains(bytes));
            bytes.ok_or("expected bytes, at least 1M, like \"64M\" or \"1G\"")
        });
        limits.cpu_quota = self.amount(view, "cpu_quota", |text| {
            let percent = text.strip_suffix('%').unwrap_or(text).parse().ok();
            percent
                .filter(|percent| (1..=100_000).contains(percent))
                .ok_or("expected per cent of one processor, like \"50%\"")
        });
        if let Some(text) = view.text("limits") {
            let choices =
                [("required", Enforcement::Required), ("best-effort", Enforcement::BestEffort)];
            limits.enforcement =
                self.choice(&view.key("limits"), &text, &choices).unwrap_or_default();
        }
        limits
    }

    /// A number with a unit, or a bare one.
    fn amount<T>(
        &mut self,
        view: &View<'_>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        let (text, span) = match (view.text(key), view.integer(key)) {
            (Some(text), _) => (text.text.to_owned(), text.span),
            (None, Some((number, span))) => (number.to_string(), span),
            (None, None) => return None,
        };
        parse(&text).map_err(|why| self.report.error(Code::BadValue, span, view.key(key), why)).ok()
    }

    /// Checks that everything named in `approves` is there. If a name is wrong, an
    /// approval that is hoped for is never given.
    fn known_targets(&mut self, view: &View<'_>) {
        let path = view.key("approves");
        for name in view.texts("approves") {
            let service = name
                .text
                .parse::<ModuleId>()
                .ok()
                .and_then(|id| self.moduled.host_services.get(&id));
            if self.moduled.host_modules.contains_key(name.text) {
                continue;
            }
            let message = match service {
                Some(service) if service.executable.is_some() && service.sha256.is_some() => continue,
                Some(_) => "a service whose executable is to be approved has an `executable` and a `sha256`".to_owned(),
                None => "there is no such name in [host_modules] and [host_services]".to_owned(),
            };
            self.report.error(Code::BadValue, name.span, &path, message);
        }
    }
}

/// The tables in a table, with their keys.
fn tables<'a>(view: &View<'a>) -> Vec<(View<'a>, &'a Range<usize>, &'a str)> {
    let table = |entry: &'a crate::document::Entry| {
        Some((view.table_of(entry)?, &entry.key_span, entry.key.as_str()))
    };
    view.table.entries.iter().filter_map(table).collect()
}

/// A user or group, by name or number.
pub(crate) fn account(view: &View<'_>, key: &str) -> Option<String> {
    let number = || view.integer(key).map(|(number, _)| number.to_string());
    view.text(key).map(|text| text.text.to_owned()).or_else(number)
}

fn absolute(path: &str) -> Result<String, String> {
    let plain =
        path.starts_with('/') && !path.split('/').any(|part| part == "..") && !path.contains('\0');
    if plain {
        Ok(path.to_owned())
    } else {
        Err("expected an absolute path without `..`".to_owned())
    }
}
