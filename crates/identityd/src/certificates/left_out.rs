//! Faults of the operator's certificate files, put on the board of problems as they are
//! met.

use std::io;
use std::path::Path;

use edgekeep_core::credentials::{Findings, Purpose};
use edgekeep_core::health::{Code, Subject};
use edgekeep_core::id::CertId;
use edgekeep_daemon::board::Board;

#[derive(Debug)]
pub(super) struct LeftOut(pub(super) Board);

impl LeftOut {
    /// The file was read; `findings` is what could not be used of it.
    pub(super) fn found(&self, id: &CertId, path: &Path, findings: &Findings) {
        let subject = Subject::certificate(id.as_str());
        let Some(worst) = findings.gravest() else {
            return self.0.clear(Code::CertificateFile, &subject);
        };
        let others = findings.list().len() - 1 + findings.more();
        let more = if others > 0 { format!(" (and {others} more)") } else { String::new() };
        let remedy = worst.fault.remedy(Purpose::Certificates);
        self.0.raise(
            Code::CertificateFile,
            &subject,
            format!("{}: {worst}{more}; {remedy}", path.display()),
        );
    }

    /// The file could not be read.
    pub(super) fn unreadable(&self, id: &CertId, path: &Path, error: &io::Error) {
        // The sandbox knows files, not names: one that was replaced is another file.
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "; if the file was replaced, restart edgekeep-identityd"
            }
            _ => "",
        };
        let detail = format!("{} cannot be read: {error}{hint}", path.display());
        self.0.raise(Code::CertificateFile, &Subject::certificate(id.as_str()), detail);
    }
}
