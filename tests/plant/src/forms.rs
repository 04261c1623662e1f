//! The forms, with what has to come of each.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::Plant;

/// The words that are due about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// Nothing.
    Nothing,
    /// An error with this in it.
    Error(&'static str),
}

/// A file of certificates.
#[derive(Debug)]
pub struct CertificateForm {
    /// The form's name.
    pub name: &'static str,
    /// The file's content.
    pub content: Vec<u8>,
    /// The strict PEM that is due to go out.
    pub goes_out: String,
    /// The words that are due about the file.
    pub says: Says,
}

/// A file of a key.
#[derive(Debug)]
pub struct KeyForm {
    /// The form's name.
    pub name: &'static str,
    /// The file's content.
    pub content: Vec<u8>,
    /// The words that are due about the file; with none it is the key `root.key`.
    pub says: Says,
}

fn block(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

impl Plant {
    /// Files of certificates in every form that people have them in: roots unless the
    /// name says otherwise.
    ///
    /// # Panics
    /// If openssl fails.
    #[must_use]
    pub fn certificate_forms(&self) -> Vec<CertificateForm> {
        let (root, other) = (self.text("root.pem"), self.text("other.pem"));
        let (ca, server, key) =
            (self.text("ca.pem"), self.text("server.pem"), self.text("root.key"));
        let run = |line: &str| String::from_utf8(self.openssl(line)).unwrap_or_default();
        let both = format!("{root}{other}");
        let is_key = Says::Error("it is a private key");
        // Other bytes at the end of the signature make another certificate that nobody
        // has signed.
        let mut der = self.der("root");
        let many: Vec<String> = (0..150u8)
            .map(|number| {
                let last = der.len() - 1;
                der[last] = number;
                block(&der)
            })
            .collect();
        let mut cut: Vec<&str> = ca.lines().collect();
        cut.truncate(5);
        let cut = cut.join("\n");
        let p12 = "pkcs12 -export -inkey root.key -in root.pem -passout pass:x";
        let p12_text = "pkcs12 -in root.p12 -passin pass:x -nodes";
        std::fs::write(self.folder().join("root.p12"), self.openssl(p12)).unwrap_or_default();
        let form = |name, content: Vec<u8>, goes_out: &str, says| CertificateForm {
            name,
            content,
            goes_out: goes_out.to_owned(),
            says,
        };
        let good =
            |name, content: Vec<u8>, goes_out: &str| form(name, content, goes_out, Says::Nothing);
        vec![
            good("PEM", root.clone().into(), &root),
            good("DER", self.der("root"), &root),
            form(
                "PKCS#1 key beside it",
                (root.clone() + &run("genrsa -traditional 2048")).into(),
                &root,
                is_key,
            ),
            form("PKCS#8 key beside it", format!("{key}{root}").into(), &root, is_key),
            form("SEC1 key beside it", (run("ec -in root.key") + &root).into(), &root, is_key),
            form(
                "encrypted key",
                (run("pkcs8 -topk8 -in root.key -passout pass:x") + &root).into(),
                &root,
                is_key,
            ),
            form(
                "PKCS#12",
                self.file("root.p12"),
                "",
                Says::Error("openssl pkcs12 -in FILE -nokeys"),
            ),
            good("glued", format!("{}{other}", root.trim_end()).into(), &both),
            good("byte order mark", format!("\u{feff}{root}").into(), &root),
            good("CRLF", both.replace('\n', "\r\n").into(), &both),
            good("indented", indented(&both).into(), &both),
            form("bag attributes", run(p12_text).into(), &root, is_key),
            good("text before", self.openssl("x509 -in root.pem -text"), &root),
            form("empty", Vec::new(), "", Says::Error("the file is empty")),
            good("150 certificates", many.concat().into(), &many.concat()),
            good(
                "wrong order",
                format!("{root}{ca}{server}").into(),
                &format!("{server}{ca}{root}"),
            ),
            good(
                "trusted",
                self.openssl("x509 -in root.pem -addtrust serverAuth -trustout"),
                &root,
            ),
            good("twice", format!("{root}{root}{other}").into(), &both),
            form(
                "cut off",
                format!("{root}{cut}\n{other}").into(),
                &both,
                Says::Error("block 2: the END line is missing"),
            ),
            form("a key alone", key.into(), "", is_key),
            form(
                "something else",
                b"hello\n".to_vec(),
                "",
                Says::Error("nothing in the file is PEM or DER"),
            ),
        ]
    }

    /// The key `root.key` in every form that people have it in.
    ///
    /// # Panics
    /// If openssl fails.
    #[must_use]
    pub fn key_forms(&self) -> Vec<KeyForm> {
        let (key, root) = (self.text("root.key"), self.text("root.pem"));
        let run = |line: &str| self.openssl(line);
        let p12 = "pkcs12 -export -inkey root.key -in root.pem -passout pass:x";
        std::fs::write(self.folder().join("root.p12"), self.openssl(p12)).unwrap_or_default();
        let good = |name, content| KeyForm { name, content, says: Says::Nothing };
        let bad = |name, content, part| KeyForm { name, content, says: Says::Error(part) };
        let (encrypted, password) =
            ("pkcs8 -topk8 -in root.key -passout pass:x", "take the password off: openssl pkey");
        vec![
            good("PKCS#8 in PEM", key.clone().into()),
            good("PKCS#8 in DER", run("pkcs8 -topk8 -nocrypt -in root.key -outform DER")),
            good("SEC1 in PEM", run("ec -in root.key")),
            good("SEC1 in DER", run("ec -in root.key -outform DER")),
            good(
                "SEC1 with parameters",
                [run("ecparam -name prime256v1"), run("ec -in root.key")].concat(),
            ),
            bad("PKCS#12", run(p12), "openssl pkcs12 -in FILE -nocerts"),
            bad("encrypted", run(encrypted), password),
            bad("encrypted in DER", run(&format!("{encrypted} -outform DER")), password),
            bad(
                "encrypted in the old way",
                run("ec -in root.key -aes128 -passout pass:x"),
                password,
            ),
            good("glued to its certificate", format!("{}{root}", key.trim_end()).into()),
            good("byte order mark", format!("\u{feff}{key}").into()),
            good("CRLF", key.replace('\n', "\r\n").into()),
            good("indented", indented(&key).into()),
            good("bag attributes", run("pkcs12 -in root.p12 -passin pass:x -nodes")),
            good("text before", format!("the key of the plant's root\n{key}").into()),
            bad("empty", Vec::new(), "the key is empty"),
            bad("cut off", key.as_bytes()[..120].to_vec(), "the END line is missing"),
            bad("a certificate", root.into(), "it is a certificate, and a key is asked for"),
            bad("a public key", run("pkey -in root.key -pubout"), "it is a public key"),
            bad(
                "another curve",
                run("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp521r1"),
                "neither EC P-256",
            ),
            bad(
                "two keys",
                [self.file("root.key"), self.file("ca.key")].concat(),
                "it is a second key",
            ),
        ]
    }
}
