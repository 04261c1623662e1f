//! The certificates service (wire facts 5.6): copies all extensions of a request and sets
//! serial number 0.

use std::sync::Arc;

use edgekeep_daemon::server::Router;
use http::Method;
use serde_json::json;

use super::keys::{self, Key, Named};
use super::{Asked, Reply, Services, answered, openssl, refused};

const FIRST: &str = "2020-09-01";

/// The published routes.
pub(super) fn router(services: &Arc<Services>) -> Router<Services> {
    Router::new(Arc::clone(services), &["2020-09-01"])
        .route(Method::POST, "/certificates", FIRST, |s, r| answered(s, r, create))
        .route(Method::GET, "/certificates/{id}", FIRST, |s, r| answered(s, r, read))
        .route(Method::PUT, "/certificates/{id}", FIRST, |s, r| answered(s, r, import))
        .route(Method::DELETE, "/certificates/{id}", FIRST, |s, r| answered(s, r, delete))
}

fn create(services: &Services, asked: &Asked) -> Reply {
    let (id, csr) = (asked.text("certId")?, asked.text("csr")?);
    let internal = || refused(500, "internal error");
    let file = |name: &str, text: &str| {
        let path = services.folder().join(name);
        std::fs::write(path, text).map_err(|_| internal())
    };
    let run = |arguments: &[&str]| openssl::run(services.folder(), arguments, &[]);
    let mut state = services.state();
    file("request.csr", csr)?;
    run(&["req", "-in", "request.csr", "-noout", "-verify"])
        .map_err(|_| refused(400, "invalid parameter: csr"))?;
    let issue =
        ["x509", "-req", "-in", "request.csr", "-copy_extensions", "copyall", "-set_serial", "0"];
    let (issued, chain) = if let Some(issuer) = asked.body.get("issuer") {
        let ca = issuer["certId"].as_str().and_then(|id| state.certificates.get(id)).cloned();
        let ca =
            ca.ok_or_else(|| refused(400, "parameter \"issuer.certId\" has an invalid value"))?;
        // What goes wrong in the keys service is hidden.
        let handle = issuer["privateKeyHandle"].as_str().unwrap_or_default();
        let Ok(Named::Pair { file: key, .. }) = keys::named(&state, handle) else {
            return Err(internal());
        };
        file("issuer.pem", &ca)?;
        let signer = ["-CA", "issuer.pem", "-CAkey", &key, "-days", "30"];
        (run(&[&issue[..], &signer].concat()), ca)
    } else {
        if !state.issuance.contains(id) {
            return Err(internal());
        }
        let Some(Key::Pair { file: key, .. }) = state.keys.get(id).cloned() else {
            return Err(internal());
        };
        (run(&[&issue[..], &["-signkey", &key, "-days", "90"]].concat()), String::new())
    };
    let issued = String::from_utf8(issued.map_err(|_| internal())?).map_err(|_| internal())?;
    let pem = format!("{issued}{chain}");
    state.certificates.insert(id.to_owned(), pem.clone());
    Ok((201, json!({ "pem": pem })))
}

fn read(services: &Services, asked: &Asked) -> Reply {
    let state = services.state();
    // The bundle is a list of others in the configuration.
    let id =
        if asked.segment == "aziot-edged-trust-bundle" { "aziot-edged-ca" } else { &asked.segment };
    let pem = state
        .certificates
        .get(id)
        .ok_or_else(|| refused(400, "parameter \"id\" has an invalid value"))?;
    Ok((200, json!({ "pem": pem })))
}

fn import(services: &Services, asked: &Asked) -> Reply {
    let pem = asked.text("pem")?;
    services.state().certificates.insert(asked.segment.clone(), pem.to_owned());
    Ok((201, json!({ "pem": pem })))
}

fn delete(services: &Services, asked: &Asked) -> Reply {
    services.state().certificates.remove(&asked.segment);
    Ok((204, json!(null)))
}
