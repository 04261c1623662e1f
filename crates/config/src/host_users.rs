//! The users of host modules: one each, which is nobody else's.

use std::collections::BTreeMap;
use std::ops::Range;

use edgekeep_core::host::IdRange;

use crate::diagnostic::Code;
use crate::document::View;
use crate::host::account;
use crate::similar::nearest;
use crate::translate::Draft;

/// A table, where its key stands, and its name.
type Named<'a> = (View<'a>, &'a Range<usize>, &'a str);

impl Draft<'_> {
    /// Reads out of which ids host modules get users of their own. Where all daemons are
    /// one user, none, unless it is asked for.
    pub(crate) fn host_module_ids(&mut self, root: &View<'_>) {
        let single = self.environment.users.is_single();
        self.moduled.host_module_ids = match root.text("host_module_ids") {
            None => (!single).then(IdRange::default),
            Some(text) if text.text == "off" => None,
            Some(text) => {
                let range =
                    text.text.parse::<IdRange>().map_err(|why| why.to_string()).and_then(|range| {
                        match self.environment.uids.iter().find(|(_, uid)| range.contains(**uid)) {
                            Some((name, uid)) => Err(format!(
                                "user `{name}` has the id {uid}; choose ids that nobody has"
                            )),
                            None => Ok(range),
                        }
                    });
                self.checked(&root.key("host_module_ids"), &text, range)
            }
        };
    }

    /// Refuses what would let one module, or a module and a daemon, into each other's
    /// memory and files. Services may share a user among themselves: whoever starts them
    /// has decided that.
    pub(crate) fn users_apart(&mut self, modules: &[Named<'_>], services: &[Named<'_>]) {
        let users = self.environment.users;
        let daemons =
            [("keyd", users.keyd), ("identityd", users.identityd), ("moduled", users.moduled)];
        let mut seen: BTreeMap<u32, String> =
            daemons.into_iter().map(|(name, uid)| (uid, format!("edgekeep-{name}"))).collect();
        let mut of_modules = Vec::new();
        for (view, key_span, name) in modules {
            let Some(user) = account(view, "user") else {
                if self.moduled.host_module_ids.is_none() {
                    let remedy = "with host_module_ids = \"off\" it would run as edgekeep-moduled: give it a user, or take \
                                  `host_module_ids` out";
                    self.report.missing(key_span, &view.key("user"), remedy);
                }
                continue;
            };
            let Some(uid) = self.uid(&user) else { continue };
            if self.moduled.host_module_ids.is_some_and(|range| range.contains(uid)) {
                let message = format!(
                    "`user` is {uid}, one of host_module_ids, which modules without `user` get"
                );
                self.refuse_user(view, message);
            } else if let Some(other) = seen.get(&uid) {
                let message = format!(
                    "`{name}` and `{other}` would be one user, {uid}, and could change each other's memory and files"
                );
                self.refuse_user(view, message);
            } else if uid != 0 {
                // Root is over all others, and allow_root_host_modules decides about it.
                seen.insert(uid, (*name).to_owned());
                of_modules.push(uid);
            }
        }
        for (view, _, name) in services {
            let uid = account(view, "user")
                .and_then(|user| self.uid(&user))
                .filter(|uid| of_modules.contains(uid));
            if let Some((uid, other)) = uid.and_then(|uid| Some((uid, seen.get(&uid)?))) {
                let message = format!(
                    "`{name}` and `{other}` would be one user, {uid}, and could change each other's memory and files"
                );
                self.refuse_user(view, message);
            }
        }
    }

    /// Tells of a user or group that this device does not have. A directory service may
    /// know it, so it is no error.
    pub(crate) fn known_accounts(&mut self, view: &View<'_>) {
        // Every device has groups; nothing is known of one that is not looked at.
        if self.environment.group_names.is_empty() {
            return;
        }
        for (key, word) in [("user", "user"), ("group", "group")] {
            let Some(name) = view.text(key) else { continue };
            let known: Vec<&str> = match key {
                "user" => self.environment.uids.keys().map(String::as_str).collect(),
                _ => self.environment.group_names.iter().map(String::as_str).collect(),
            };
            if name.text.parse::<u32>().is_ok() || known.contains(&name.text) {
                continue;
            }
            let meant = nearest(name.text, known);
            let message = format!("this device has no {word} `{}`: nothing runs as it", name.text);
            let remedy = match meant {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => format!("make the {word}, or name another one"),
            };
            self.report.notice(Code::Unusual, name.span, view.key(key), message, Some(&remedy));
        }
    }

    fn uid(&self, user: &str) -> Option<u32> {
        user.parse().ok().or_else(|| self.environment.uids.get(user).copied())
    }

    fn refuse_user(&mut self, view: &View<'_>, message: String) {
        if let Some(entry) = view.entry("user") {
            let remedy = "leave `user` out, and the module has one for itself, or name another one";
            self.report.error_with(
                Code::Conflict,
                &entry.key_span,
                view.key("user"),
                message,
                remedy,
            );
        }
    }
}
