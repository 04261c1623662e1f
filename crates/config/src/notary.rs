//! `[aziot_keys]`: what keys may be used for, for how long, and who may see that they
//! were.

use edgekeep_core::key_use::Purpose;
use edgekeep_core::settings::PurposeRule;

use crate::diagnostic::Code;
use crate::document::{Node, Text, Value, View};
use crate::translate::Draft;
use crate::value;

/// Shortest and longest life of a handle, in seconds. Clients keep handles for minutes; a
/// year is no bound any more.
const LIFETIME: std::ops::RangeInclusive<u64> = 60..=366 * 86_400;

const PURPOSES: [(&str, Purpose); 5] = [
    ("identity", Purpose::Identity),
    ("ca", Purpose::Ca),
    ("tls", Purpose::Tls),
    ("seal", Purpose::Seal),
    ("sign", Purpose::Sign),
];

impl Draft<'_> {
    pub(crate) fn notary(&mut self, root: &View<'_>) {
        let Some(keys) = root.table("aziot_keys") else { return };
        for rule in keys.list("purpose").unwrap_or_default() {
            let Value::Table(table) = &rule.value else { continue };
            self.purpose(&View { table, span: rule.span.clone(), path: keys.key("purpose") });
        }
        for auditor in keys.list("auditors").unwrap_or_default() {
            self.auditor(&keys.key("auditors"), auditor);
        }
        if let Some(word) = keys.text("compat")
            && self.choice("aziot_keys.compat", &word, &[("handles-any-uid", ())]).is_some()
        {
            self.keyd.handles_any_uid = true;
            let message = "whoever has a handle may use the key, for ever; leave this out once all clients are of one kind";
            self.report.notice(Code::Unusual, word.span, "aziot_keys.compat", message, None);
        }
        if let Some(text) = keys.text("handle_lifetime") {
            let seconds = value::duration(text.text).and_then(|seconds| {
                if LIFETIME.contains(&seconds) {
                    Ok(seconds)
                } else {
                    Err("expected 1 minute to 366 days".to_owned())
                }
            });
            self.keyd.handle_lifetime_sec =
                self.checked("aziot_keys.handle_lifetime", &text, seconds);
        }
        self.keyd.keys_per_uid = self.count(&keys, "keys_per_uid", 1, 1_000_000);
        if let Some(log) = keys.table("audit_log") {
            self.keyd.audit_log.entries_per_uid_hour =
                self.count(&log, "entries_per_uid_hour", 60, 100_000_000);
            self.keyd.audit_log.size_mib = self.count(&log, "size_mib", 1, 4096);
            self.keyd.audit_log.sync_ms = self.count(&log, "sync_ms", 10, 60_000);
            self.keyd.audit_log.checkpoint_sec = self.count(&log, "checkpoint_sec", 1, 3600);
        }
    }

    fn purpose(&mut self, rule: &View<'_>) {
        let missing = |key| (!rule.has(key)).then(|| rule.key(key));
        for path in [missing("keys"), missing("purpose")].into_iter().flatten() {
            self.report.missing(&rule.span, &path, "each rule names keys and what they are for");
        }
        let (Some(keys), Some(word)) = (rule.text("keys"), rule.text("purpose")) else { return };
        let fits = if (1..=256).contains(&keys.text.len()) {
            Ok(())
        } else {
            Err("expected a key id, or a pattern of ids with `*` and `?`".to_owned())
        };
        let fits = self.checked(&rule.key("keys"), &keys, fits);
        let purpose = self.choice(&rule.key("purpose"), &word, &PURPOSES);
        if let (Some(()), Some(purpose)) = (fits, purpose) {
            self.keyd.purposes.push(PurposeRule { keys: keys.text.to_owned(), purpose });
        }
    }

    fn auditor(&mut self, path: &str, node: &Node) {
        let uid = match &node.value {
            Value::Integer(number) => {
                u32::try_from(*number).map_err(|_| "expected a user id".to_owned())
            }
            Value::Text(name) => {
                let known = self.environment.uids.get(name).copied();
                if known.is_none() {
                    let meant = crate::similar::nearest(
                        name,
                        self.environment.uids.keys().map(String::as_str),
                    );
                    let text = Text { text: name, span: &node.span };
                    let message = "this device has no such user".to_owned();
                    match meant {
                        Some(meant) => {
                            let remedy = format!("did you mean \"{meant}\"?");
                            self.report.error_with(
                                Code::BadValue,
                                text.span,
                                path,
                                message,
                                remedy,
                            );
                        }
                        None => {
                            let remedy = "create the user first, or name a user id";
                            self.report.error_with(
                                Code::BadValue,
                                text.span,
                                path,
                                message,
                                remedy,
                            );
                        }
                    }
                }
                let Some(uid) = known else { return };
                Ok(uid)
            }
            // Of a wrong type, and reported as that.
            _ => return,
        };
        match uid {
            Ok(uid) => self.keyd.auditors.push(uid),
            Err(why) => self.report.error(Code::BadValue, &node.span, path, why),
        }
    }
}
