//! Images that modules may be made from: `[image_policy]`.

use std::path::{Path, PathBuf};

use edgekeep_core::image_policy::{ImagePolicy, ImageRule};

use crate::diagnostic::Code;
use crate::document::View;
use crate::places::Expected;
use crate::translate::Draft;
use crate::value;

/// The keys that the policy names: they become part of the settings, so that a key that
/// is exchanged later counts only once the configuration is applied.
pub(crate) fn key_files(root: &View<'_>) -> Vec<PathBuf> {
    let images = root.table("image_policy").and_then(|policy| policy.table("images"));
    let rules = images.iter().flat_map(|images| {
        images.table.entries.iter().filter_map(|entry| images.table_of(entry)).collect::<Vec<_>>()
    });
    let keys = rules.flat_map(|rule| rule.texts("keys").collect::<Vec<_>>());
    keys.filter_map(|key| value::file_uri(key.text).ok().map(PathBuf::from)).collect()
}

impl Draft<'_> {
    /// Reads the policy on images.
    pub(crate) fn image_policy(&mut self, root: &View<'_>) {
        let Some(view) = root.table("image_policy") else { return };
        let mut policy = ImagePolicy::default();
        if let Some(unmatched) = view.text("unmatched") {
            let choices = [("accept", false), ("refuse", true)];
            policy.refuse_unmatched =
                self.choice("image_policy.unmatched", &unmatched, &choices).unwrap_or(true);
        }
        if let Some(folder) = view.text("signatures") {
            let absolute = folder.text.starts_with('/') && !folder.text.contains('\0');
            let checked = if absolute {
                Ok(folder.text.to_owned())
            } else {
                Err("expected an absolute path".to_owned())
            };
            policy.signatures =
                self.checked("image_policy.signatures", &folder, checked).unwrap_or_default();
            if absolute {
                let path = Path::new(folder.text);
                self.place("image_policy.signatures", &folder, path, Expected::Folder);
            }
        }
        if let Some(images) = view.table("images") {
            for entry in &images.table.entries {
                let Some(rule) = images.table_of(entry) else { continue };
                if let Some(keys) = self.image_rule(&rule, view.has("signatures")) {
                    policy.rules.push(ImageRule { images: entry.key.clone(), keys });
                }
            }
        }
        self.moduled.image_policy = Some(policy);
    }

    /// The keys of one rule; none if no signature is asked for.
    fn image_rule(&mut self, rule: &View<'_>, has_folder: bool) -> Option<Vec<String>> {
        let path = rule.key("keys");
        let mut keys = Vec::new();
        for uri in rule.texts("keys") {
            let Some(file) = self.checked(&path, &uri, value::file_uri(uri.text)) else { continue };
            let file = PathBuf::from(file);
            let Some(content) = self.file(&path, &file, uri.span) else { continue };
            keys.extend(self.public_key(&path, &file, &uri, &content));
        }
        match rule.boolean("signed") {
            Some(false) if rule.has("keys") => {
                let span = rule.entry("signed").map_or(0..0, |entry| entry.key_span.clone());
                self.report.error_with(
                    Code::Conflict,
                    &span,
                    rule.key("signed"),
                    "keys are for signed images",
                    "keep one",
                );
                None
            }
            Some(false) => Some(Vec::new()),
            _ if !rule.has("keys") => {
                self.absent(rule, "keys", "keys = [\"file:///path/to/key.pem\"], or signed = false")
            }
            _ if !has_folder => {
                let span = rule.entry("keys").map_or(0..0, |entry| entry.key_span.clone());
                let remedy = "signatures = \"/etc/edgekeep/signatures\" in [image_policy]";
                self.report.missing(&span, "image_policy.signatures", remedy);
                None
            }
            // A key that could not be read has been reported.
            _ => Some(keys),
        }
    }
}
