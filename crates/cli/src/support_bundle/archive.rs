//! The zip: each part is written when it is there, and the whole gets its name when it is
//! complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use edgekeep_core::redaction::Redactor;
use serde_json::{Value, json};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

use super::step::Made;

/// Most bytes of all parts together.
const TOTAL: usize = 64 << 20;

pub(super) struct Archive {
    writer: Option<ZipWriter<File>>,
    /// The file while it is written.
    temporary: PathBuf,
    /// Its name in the end; `None` for standard output.
    to: Option<PathBuf>,
    left: usize,
    parts: Vec<Value>,
}

impl Archive {
    /// A zip that becomes the file `to`, which nobody but this user can read.
    ///
    /// # Errors
    /// If the file is there, or cannot be made.
    pub(super) fn create(to: &Path) -> anyhow::Result<Self> {
        let is_output = to.as_os_str() == "-";
        if !is_output {
            anyhow::ensure!(
                to.symlink_metadata().is_err(),
                "{} is there already; name another file with --output",
                to.display()
            );
        }
        let number = std::process::id();
        let temporary = match is_output {
            true => std::env::temp_dir().join(format!(".edgekeep-bundle-{number}.tmp")),
            false => {
                let mut name = to.as_os_str().to_owned();
                name.push(format!(".{number}.tmp"));
                PathBuf::from(name)
            }
        };
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&temporary).with_context(|| unwritable(to))?;
        if is_output {
            // It has no name from now on: nothing is left of it.
            fs::remove_file(&temporary).with_context(|| unwritable(to))?;
        }
        Ok(Self {
            writer: Some(ZipWriter::new(file)),
            temporary,
            to: (!is_output).then(|| to.to_owned()),
            left: TOTAL,
            parts: Vec::new(),
        })
    }

    /// Adds JSON, without secrets.
    pub(super) fn json(
        &mut self,
        name: &str,
        value: &Value,
        redactor: &Redactor,
    ) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(value)?;
        self.made(name, Made::whole(text), redactor)
    }

    /// Adds a part, without secrets; where there is nothing of it, the reason.
    ///
    /// # Errors
    /// If it cannot be written, as on a full disk.
    pub(super) fn made(
        &mut self,
        name: &str,
        made: Made,
        redactor: &Redactor,
    ) -> anyhow::Result<()> {
        let Made { text, mut reason } = made;
        let mut text = redacted(name, &text, redactor);
        if text.len() > self.left {
            reason = Some("the bundle is full".to_owned());
            text.clear();
        }
        self.left -= text.len();
        let reason = reason.map(|reason| redactor.text(&reason));
        if let Some(reason) = reason.as_ref().filter(|_| text.is_empty()) {
            let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
            self.write(&format!("{stem}_err.txt"), format!("{reason}\n").as_bytes())?;
        } else {
            self.write(name, text.as_bytes())?;
        }
        self.parts.push(json!({ "name": name, "bytes": text.len(), "reason": reason }));
        Ok(())
    }

    fn write(&mut self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .unix_permissions(0o600);
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let written = writer
            .start_file(name, options)
            .map_err(io::Error::other)
            .and_then(|()| writer.write_all(content));
        written.with_context(|| format!("cannot write {name} into the bundle; is the disk full?"))
    }

    /// Writes the list of parts and completes the zip; gives the list.
    ///
    /// # Errors
    /// If it cannot be written. Nothing is left of it then.
    pub(super) fn finish(mut self) -> anyhow::Result<Vec<Value>> {
        let list = serde_json::to_vec_pretty(&json!({
            "edgekeep": env!("CARGO_PKG_VERSION"),
            "note": "secrets are masked by value, by name and by form; a secret under no name in a module's log is not",
            "parts": self.parts,
        }))?;
        self.write("parts.json", &list)?;
        let words = "cannot complete the bundle; is the disk full?";
        let Some(writer) = self.writer.take() else { return Ok(Vec::new()) };
        let mut file = writer.finish().context(words)?;
        match &self.to {
            None => {
                file.rewind().context(words)?;
                let mut out = io::stdout().lock();
                io::copy(&mut file, &mut out).and_then(|_| out.flush())?;
            }
            Some(to) => {
                file.sync_all().context(words)?;
                fs::rename(&self.temporary, to).with_context(|| unwritable(to))?;
                self.to = None;
            }
        }
        Ok(std::mem::take(&mut self.parts))
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if self.to.is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn unwritable(to: &Path) -> String {
    format!("cannot write {}; name a file in a folder of your own with --output", to.display())
}

/// A part without secrets. JSON stays JSON.
fn redacted(name: &str, text: &[u8], redactor: &Redactor) -> String {
    let text = String::from_utf8_lossy(text);
    let is_json = name.ends_with(".json");
    match serde_json::from_str::<Value>(&text) {
        Ok(mut value) if is_json => {
            redactor.redact(&mut value);
            serde_json::to_string_pretty(&value).unwrap_or_default()
        }
        _ => redactor.text(&text),
    }
}
