//! Modules that are scripts: what a module's own code may try, step by step.

use std::path::{Path, PathBuf};

use edgekeep_testkit::{Builder, Device, sha256_of, wait_for};
use serde_json::json;

/// Beginning of each script: `$req` is a request to sign with the script's own identity.
const PRELUDE: &str = r#"
use strict; use warnings; use IO::Socket::UNIX; $| = 1; $SIG{PIPE} = 'IGNORE';
my $body = '{"keyId":"primary","algo":"HMACSHA256","data":"ZGF0YQ=="}';
my $req = "POST /modules/$ENV{IOTEDGE_MODULEID}/genid/$ENV{IOTEDGE_MODULEGENERATIONID}/sign?api-version=2020-07-07 HTTP/1.1\r\n"
    . "Host: localhost\r\nConnection: close\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
my ($path) = $ENV{IOTEDGE_WORKLOADURI} =~ m{^unix://(.*)};
sub dial { my $s = IO::Socket::UNIX->new(Peer => $path) or die "connect: $!"; $s }
sub report { open(my $f, '>>', $ENV{REPORT}) or die; syswrite $f, "$_[0]\n"; close $f }
sub status { my $s = shift; my $line = <$s>; $line //= 'closed'; $line =~ s/\r?\n//; report($line) }
sub pause { select undef, undef, undef, 0.01 }
"#;

/// The executable that scripts need, as a host module.
pub(crate) fn with_perl(builder: Builder) -> Builder {
    builder.host_module("perl", perl())
}

/// The same with more in its entry in the configuration than an ordinary host module has.
pub(crate) fn with_perl_granted(builder: Builder, more: &str) -> Builder {
    let (path, sha256) = (perl(), sha256_of(&perl()));
    builder.tables(&format!(
        "[host_modules.perl]\nexecutable = {path:?}\nsha256 = \"{sha256}\"\n{more}\n"
    ))
}

fn perl() -> PathBuf {
    // Part of every Debian system.
    PathBuf::from("/usr/bin/perl")
}

/// A script that runs as a module.
pub(crate) struct Script {
    report: PathBuf,
}

impl Script {
    /// Starts `script` as the module `module`, which gets an identity. It should end by
    /// waiting: `sleep`.
    pub(crate) fn start(device: &Device, module: &str, script: &str) -> Self {
        let generation = device.create_identity(module);
        let report = device.root().path().join(format!("{module}.report"));
        let mut spec = device.spec(module, "perl", &generation);
        spec["config"]["settings"]["createOptions"] = json!({
            "Cmd": ["-e", format!("{PRELUDE}\n{script}")],
            "Env": [
                format!("REPORT={}", report.display()),
                format!("SHARED={}", device.root().legacy_workload_socket().display()),
            ],
        });
        device.create_and_start(spec);
        Self { report }
    }

    /// The file that its reports go to.
    pub(crate) fn report(&self) -> &Path {
        &self.report
    }

    /// The lines reported so far, as soon as there are `count`.
    pub(crate) fn lines(&self, count: usize) -> Vec<String> {
        wait_for(&format!("{count} lines in {}", self.report.display()), || {
            let text = std::fs::read_to_string(&self.report).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() >= count && text.ends_with('\n')).then_some(lines)
        })
    }
}
