//! A module as a developer would write one: trust bundle, server certificate, token, a
//! message to the hub.
//!
//! Environment: `IOTEDGE_*` as every module gets it, and
//! - `EDGEKEEP_DEMO_REPORT`: a file to which each step is appended as a line of JSON;
//! - `EDGEKEEP_DEMO_PERIOD`: seconds between rounds, 10 unless given; 0 is one round,
//!   then waiting for SIGTERM;
//! - `EDGEKEEP_DEMO_HUB_CA`: a PEM file; when set, the token is presented to the hub over
//!   TLS, trusting only it;
//! - `EDGEKEEP_DEMO_HUB_ADDRESS`: `host:port` to connect to in place of the hub's name.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgekeep_test_modules::{
    answered, encode, end_on_signal, exit_code, http, now, pause, say, socket_path, variable,
    wait_for_signal,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::{Value, json};

/// Lifetime of a token, in seconds.
const TOKEN_LIFETIME: u64 = 3600;
/// Longest time to connect to the hub, to read, or to write.
const PATIENCE: Duration = Duration::from_secs(30);

/// Facts that the module knows from its environment.
struct Module {
    socket: PathBuf,
    version: String,
    hub: String,
    device: String,
    module: String,
    generation: String,
    host: String,
    report: Option<PathBuf>,
    provider: Arc<CryptoProvider>,
}

fn main() -> ExitCode {
    answered("thermometer").unwrap_or_else(|| exit_code(run()))
}

fn run() -> anyhow::Result<()> {
    end_on_signal()?;
    let module = Module::from_environment()?;
    let period = match std::env::var("EDGEKEEP_DEMO_PERIOD") {
        Ok(text) => text.parse().context("EDGEKEEP_DEMO_PERIOD is not a number of seconds")?,
        Err(_) => 10,
    };
    for round in 1_u64.. {
        module.round(round);
        if period == 0 {
            break;
        }
        pause(Duration::from_secs(period));
    }
    wait_for_signal()
}

impl Module {
    fn from_environment() -> anyhow::Result<Self> {
        let module = variable("IOTEDGE_MODULEID")?;
        // A system module's `$` cannot stand in a host name.
        let name = module.trim_start_matches('$').to_owned();
        Ok(Self {
            socket: socket_path(&variable("IOTEDGE_WORKLOADURI")?)?,
            version: variable("IOTEDGE_APIVERSION")?,
            hub: variable("IOTEDGE_IOTHUBHOSTNAME")?,
            device: variable("IOTEDGE_DEVICEID")?,
            generation: variable("IOTEDGE_MODULEGENERATIONID")?,
            host: variable("IOTEDGE_GATEWAYHOSTNAME").unwrap_or(name),
            report: std::env::var_os("EDGEKEEP_DEMO_REPORT").map(PathBuf::from),
            provider: Arc::new(aws_lc_rs::default_provider()),
            module,
        })
    }

    fn round(&self, round: u64) {
        let bundle = self.step(round, "trust-bundle", self.trust_bundle());
        let issued = self.step(round, "certificate/server", self.certificate());
        if let (Some(bundle), Some(issued)) = (bundle, issued) {
            self.step(round, "verify chain", self.verify(&bundle, &issued));
        }
        let token = self.step(round, "sign", self.token());
        if let (Some(token), Ok(ca)) = (token, variable("EDGEKEEP_DEMO_HUB_CA")) {
            self.step(round, "hub", self.send(&ca, &token));
        }
    }

    /// Prints and reports the outcome of a step; its value if it worked. Values are shown
    /// as a short description only.
    fn step<T>(&self, round: u64, step: &str, outcome: anyhow::Result<(String, T)>) -> Option<T> {
        let (ok, detail, value) = match outcome {
            Ok((detail, value)) => (true, detail, Some(value)),
            Err(error) => (false, format!("{error:#}"), None),
        };
        let word = if ok { "ok" } else { "failed" };
        say(&format!("{} round {round}: {step}: {word}: {detail}", self.module));
        if let Some(report) = &self.report {
            let line = json!({ "module": self.module, "round": round, "step": step, "ok": ok, "detail": detail });
            let written = OpenOptions::new().create(true).append(true).open(report);
            if let Err(error) = written.and_then(|mut file| writeln!(file, "{line}")) {
                say(&format!("{}: cannot write {}: {error}", self.module, report.display()));
            }
        }
        value
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let target = format!("{path}?api-version={}", self.version);
        let answer = http::call(&self.socket, method, &target, body)
            .with_context(|| format!("{method} on {}", self.socket.display()))?;
        answer.into_json()
    }

    fn of_module(&self, rest: &str) -> String {
        format!("/modules/{}/genid/{}/{rest}", encode(&self.module), encode(&self.generation))
    }

    fn trust_bundle(&self) -> anyhow::Result<(String, Vec<CertificateDer<'static>>)> {
        let answer = self.call("GET", "/trust-bundle", None)?;
        let bundle = certificates(&answer["certificate"])?;
        Ok((format!("{} CA certificate(s)", bundle.len()), bundle))
    }

    fn certificate(&self) -> anyhow::Result<(String, CertifiedKey)> {
        // Some servers ignore the time; those that do not need one in the future.
        let body = json!({ "commonName": self.host, "expiration": "2099-01-01T00:00:00Z" });
        let answer = self.call("POST", &self.of_module("certificate/server"), Some(&body))?;
        let chain = certificates(&answer["certificate"])?;
        let key =
            answer["privateKey"]["bytes"].as_str().context("no privateKey.bytes in the answer")?;
        let key =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the private key is not PEM")?;
        let key = self
            .provider
            .key_provider
            .load_private_key(key)
            .context("the private key cannot be used")?;
        let issued = CertifiedKey::new(chain, key);
        issued.keys_match().context("the private key is not that of the certificate")?;
        let expiration = answer["expiration"].as_str().context("no expiration in the answer")?;
        Ok((
            format!("{} certificate(s) for {}, until {expiration}", issued.cert.len(), self.host),
            issued,
        ))
    }

    /// As a client of this module would, trusting only the bundle.
    fn verify(
        &self,
        bundle: &[CertificateDer<'static>],
        issued: &CertifiedKey,
    ) -> anyhow::Result<(String, ())> {
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots(bundle)?, Arc::clone(&self.provider))
                .build()?;
        let [leaf, issuers @ ..] = issued.cert.as_slice() else { bail!("the chain is empty") };
        let name =
            ServerName::try_from(self.host.as_str()).context("the host name cannot be verified")?;
        verifier.verify_server_cert(leaf, issuers, &name, &[], UnixTime::now())?;
        Ok((format!("{} is trusted by the bundle", self.host), ()))
    }

    fn token(&self) -> anyhow::Result<(String, String)> {
        let audience =
            encode(&format!("{}/devices/{}/modules/{}", self.hub, self.device, self.module));
        let expiry = now() + TOKEN_LIFETIME;
        let data = STANDARD.encode(format!("{audience}\n{expiry}"));
        let body = json!({ "keyId": "primary", "algo": "HMACSHA256", "data": data });
        let answer = self.call("POST", &self.of_module("sign"), Some(&body))?;
        let digest = answer["digest"].as_str().context("no digest in the answer")?;
        ensure!(
            STANDARD.decode(digest).is_ok_and(|bytes| bytes.len() == 32),
            "the digest is not 32 bytes in base64"
        );
        let token =
            format!("SharedAccessSignature sr={audience}&sig={}&se={expiry}", encode(digest));
        Ok((format!("a token for {TOKEN_LIFETIME} s"), token))
    }

    fn send(&self, ca: &str, token: &str) -> anyhow::Result<(String, ())> {
        let pem = std::fs::read(ca).with_context(|| format!("cannot read {ca}"))?;
        let ca = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .context("the hub's CA is not PEM")?;
        let (host, port) = self.hub.rsplit_once(':').unwrap_or((&self.hub, "443"));
        let address =
            variable("EDGEKEEP_DEMO_HUB_ADDRESS").unwrap_or_else(|_| format!("{host}:{port}"));
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(&ca)?)
            .with_no_client_auth();
        let session =
            ClientConnection::new(Arc::new(config), ServerName::try_from(host.to_owned())?)?;
        let stream =
            TcpStream::connect(&address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let target = format!(
            "/devices/{}/modules/{}/messages/events?api-version=2020-03-13",
            encode(&self.device),
            encode(&self.module)
        );
        let headers = [format!("Authorization: {token}")];
        let temperature = 20 + now() % 10;
        let request = http::request(
            "POST",
            &target,
            &self.hub,
            &headers,
            Some(&json!({ "temperature": temperature })),
        );
        http::exchange(StreamOwned::new(session, stream), &request)
            .with_context(|| format!("no answer from {address}"))?
            .into_json()?;
        Ok((format!("accepted {temperature} degrees"), ()))
    }
}

fn certificates(pem: &Value) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = pem.as_str().context("no certificate in the answer")?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("the certificate is not PEM")?;
    ensure!(!found.is_empty(), "the answer holds no certificate");
    Ok(found)
}

fn roots(certificates: &[CertificateDer<'static>]) -> anyhow::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).context("a CA certificate cannot be used")?;
    }
    Ok(Arc::new(roots))
}
