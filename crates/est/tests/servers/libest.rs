//! Cisco's libest: its server for our client, its client for the simulated server.

use std::process::Command;

use edgekeep_est::EstError;
use rcgen::PublicKeyData as _;

use super::estserver::{Server, USER, is_alone, program};
use super::*;

/// Returns our client of a server, which says nothing of who it is.
fn client_of(server: &Server) -> Est {
    let url = Server::url().parse().unwrap();
    Est::new(url, Trust::Certificates(certificates(&server.root())))
}

#[tokio::test]
async fn libest_issues_by_password_and_renews_by_the_certificate() {
    if !is_alone("libest::libest_issues_by_password_and_renews_by_the_certificate") {
        return;
    }
    let (server, keys) = (Server::start(&[], ""), Keys::start());
    let asked = client_of(&server).csrattrs().await.unwrap();
    assert!(!asked.asks_for_binding() && asked.ids().len() == 4, "{:?}", asked.ids());
    assert_eq!(client_of(&server).cacerts().await.unwrap().len(), 1);

    let est = client_of(&server).with_basic(Basic::new(USER.0, USER.1));
    let own = enrolled(&est, &keys, "est-id", "ec-p256").await;
    let est = client_of(&server).with_identity(own.clone());
    let device = enrolled(&est, &keys, "device-id", "rsa-2048").await;
    // Over the connection that the RSA key signed for: PKCS#1 or PSS, in TLS 1.2.
    let est = client_of(&server).with_identity(device.clone());
    let next = keys.make("device-id-temp", "ec-p256").await;
    let profile = Profile::client("").renewing(device.leaf().unwrap());
    let csr = Csr::sign(&next, &profile).await.unwrap();
    let renewed = issued(est.reenroll(csr.der()).await.unwrap());
    assert_eq!(renewed[0].public_key(), next.public().info());
    assert_eq!(renewed.len(), 2, "the leaf and the root");

    let wrong = client_of(&server).with_basic(Basic::new(USER.0, "wrong"));
    let error = wrong.enroll(csr.der()).await.unwrap_err();
    assert!(matches!(error, EstError::Credentials { status: 401, .. }), "{error}");
    let other = edgekeep_sim::Authority::named("other").unwrap();
    let url = Server::url().parse().unwrap();
    let est = Est::new(url, Trust::Certificates(certificates(other.certificate_pem())));
    let error = est.cacerts().await.unwrap_err();
    assert!(matches!(error, EstError::Untrusted { .. }), "{error}");
}

#[tokio::test]
async fn libest_issues_to_who_has_a_manufacturers_certificate() {
    if !is_alone("libest::libest_issues_to_who_has_a_manufacturers_certificate") {
        return;
    }
    let maker = edgekeep_sim::Authority::named("maker").unwrap();
    let (server, keys) = (Server::start(&[], maker.certificate_pem()), Keys::start());
    let key = keys.make("est-bootstrap-id", "ec-p256").await;
    let chain = keys::signed_by(&maker, "serial-1", &key);
    let est = client_of(&server).with_identity(ClientIdentity::new(chain, key).unwrap());
    enrolled(&est, &keys, "est-id", "ec-p256").await;

    let forger = edgekeep_sim::Authority::named("forger").unwrap();
    let key = keys.make("forged", "ec-p256").await;
    let chain = keys::signed_by(&forger, "serial-1", &key);
    let est = client_of(&server).with_identity(ClientIdentity::new(chain, key).unwrap());
    let key = keys.make("another", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::client("press-04")).await.unwrap();
    let error = est.enroll(csr.der()).await.unwrap_err();
    assert!(matches!(error, EstError::Untrusted { .. } | EstError::Down { .. }), "{error:?}");
}

#[tokio::test]
async fn libest_issues_a_ca_as_it_was_asked_for() {
    let test = "libest::libest_issues_a_ca_as_it_was_asked_for";
    if !is_alone(test) {
        return;
    }
    let (server, keys) = (Server::start(&[], ""), Keys::start());
    let est = client_of(&server).with_basic(Basic::new(USER.0, USER.1));
    let key = keys.make("aziot-edged-ca", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::edge_ca("press-04 edge ca")).await.unwrap();
    assert!(issued(est.enroll(csr.der()).await.unwrap())[0].is_ca());
}

#[tokio::test]
async fn libest_turns_away_who_does_not_say_who_it_is_and_what_is_no_request() {
    if !is_alone("libest::libest_turns_away_who_does_not_say_who_it_is_and_what_is_no_request") {
        return;
    }
    let (server, keys) = (Server::start(&[], ""), Keys::start());
    let key = keys.make("est-id", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::client("press-04")).await.unwrap();
    let error = client_of(&server).enroll(csr.der()).await.unwrap_err();
    assert!(matches!(error, EstError::Credentials { status: 401, .. }), "{error}");
    // A request that was changed after it was signed.
    let mut forged = csr.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let est = client_of(&server).with_basic(Basic::new(USER.0, USER.1));
    let error = est.enroll(&forged).await.unwrap_err();
    assert!(matches!(error, EstError::Refused { .. }), "{error:?}");
    assert_eq!(issued(est.enroll(csr.der()).await.unwrap()).len(), 2);
}

#[tokio::test]
async fn libest_says_later_and_then_issues() {
    if !is_alone("libest::libest_says_later_and_then_issues") {
        return;
    }
    let (server, keys) = (Server::start(&["-m", "1"], ""), Keys::start());
    let est = client_of(&server).with_basic(Basic::new(USER.0, USER.1));
    let key = keys.make("est-id", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::client("press-04")).await.unwrap();
    let later = est.enroll(csr.der()).await.unwrap();
    assert_eq!(later, Enrolment::Later(Duration::from_secs(3600)));
    // An operator's approval is a second of waiting there.
    let begun = std::time::Instant::now();
    let mut answer = later;
    while matches!(answer, Enrolment::Later(_)) && begun.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        answer = est.enroll(csr.der()).await.unwrap();
    }
    assert_eq!(issued(answer).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_libest_enrols_and_renews_at_the_simulated_server() {
    let test = "libest::the_client_of_libest_enrols_and_renews_at_the_simulated_server";
    if !is_alone(test) {
        return;
    }
    // It asks for the password in a header whose name must be in one case, which no HTTP
    // library of ours writes; so it comes with a manufacturer's certificate.
    let maker = edgekeep_sim::Authority::named("maker").unwrap();
    let server = simulator(maker.certificate_pem()).await;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let roots = [server.ca_pem(), &server.est_root_pem(None).unwrap()].concat();
    std::fs::write(at.join("roots.pem"), roots).unwrap();
    let key = KeyPair::generate().unwrap();
    let own = maker.client_certificate_pem("serial-1", &key.subject_public_key_info()).unwrap();
    std::fs::write(at.join("own.pem"), own).unwrap();
    std::fs::write(at.join("own.key"), key.serialize_pem()).unwrap();
    let client = |arguments: &[&str]| {
        let done = program("estclient")
            .args(arguments)
            .args(["-s", "localhost", "-p", &server.port().to_string(), "-o", "."])
            .env("EST_OPENSSL_CACERT", "roots.pem")
            .current_dir(at)
            .output()
            .unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let said = client(&["-e", "--common-name", "press-04", "-c", "own.pem", "-k", "own.key"]);
    assert!(at.join("cert-0-0.pkcs7").exists(), "{said}");
    let unpack = "tr -d '\\r' < cert-0-0.pkcs7 | base64 -d | openssl pkcs7 -inform DER -print_certs -out new.pem";
    let made = Command::new("sh")
        .args(["-ec", &format!("{unpack}; openssl x509 -in new.pem -noout -subject")])
        .current_dir(at)
        .output()
        .unwrap();
    let subject = String::from_utf8_lossy(&made.stdout);
    assert!(subject.contains("CN = press-04"), "{made:?}");
    let said = client(&["-r", "-c", "new.pem", "-k", "key-x-x.pem"]);
    let calls = server.state().calls;
    assert_eq!((calls.est_enroll, calls.est_reenroll), (1, 1), "{said}");
    for asked in ["-g", "-a"] {
        let said = client(&[asked, "-c", "own.pem", "-k", "own.key"]);
        assert!(!said.contains("ERROR") && !said.contains("failed"), "{said}");
    }
    // One that nobody knows is turned away.
    let other = edgekeep_sim::Authority::named("other").unwrap();
    let own = other.client_certificate_pem("serial-1", &key.subject_public_key_info()).unwrap();
    std::fs::write(at.join("own.pem"), own).unwrap();
    std::fs::remove_file(at.join("cert-0-0.pkcs7")).unwrap();
    let said = client(&["-e", "--common-name", "press-05", "-c", "own.pem", "-k", "own.key"]);
    assert!(!at.join("cert-0-0.pkcs7").exists() && said.contains("EST_ERR_AUTH_FAIL"), "{said}");
}
