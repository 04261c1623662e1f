//! Every kind of wrong answer is refused, with one reason.

use std::time::Instant;

use edgekeep_sim::{EstAnswer, EstFaults, Faults, RouteFaults};

use super::*;

/// Wrong answers with what is said about them.
const WRONG: [(EstAnswer, &str); 15] = [
    (EstAnswer::Html, "it is text/html, not application/pkcs7-mime"),
    (EstAnswer::OtherType, "it is application/octet-stream, not application/pkcs7-mime"),
    (EstAnswer::WrongKey, "none of its certificates belongs to the key of the request"),
    (EstAnswer::Expired, "its certificate ended at 2"),
    (EstAnswer::NotYetValid, "its certificate is valid from 2"),
    (EstAnswer::WrongChain, "its certificate does not chain to the configured roots"),
    (EstAnswer::Empty, "there is no certificate in it"),
    (EstAnswer::Signed, "it is signed, where only certificates are expected"),
    (EstAnswer::Junk, "it is not PKCS#7 in DER"),
    (EstAnswer::NotBase64, "its body is not base64"),
    (EstAnswer::Oversized, "it is larger than 262144 bytes"),
    (EstAnswer::Endless, "it is larger than 262144 bytes"),
    (EstAnswer::Slow, "did not answer within 3 s"),
    (EstAnswer::Cut, "cannot be reached ("),
    (EstAnswer::Redirect, "sends to another URL (status 302); configure that one"),
];

#[tokio::test]
async fn every_wrong_answer_is_refused_with_its_own_reason() {
    let (server, keys) = (simulator("").await, Keys::start());
    let key = keys.make("est-id", "ec-p256").await;
    let csr = Csr::sign(&key, &Profile::client("press-04")).await.unwrap();
    for (answer, reason) in WRONG {
        let limit = if answer == EstAnswer::Slow { 3 } else { 20 };
        let est = with_password(&server).with_limit(Duration::from_secs(limit));
        let faults = EstFaults { enroll: Some(answer), ..EstFaults::default() };
        server.faults(Faults { est: faults, ..Faults::default() }).unwrap();
        let error = est.enroll(csr.der()).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{answer:?}: {error}");
        let is_of_a_leaf = matches!(
            answer,
            EstAnswer::WrongKey
                | EstAnswer::Expired
                | EstAnswer::NotYetValid
                | EstAnswer::WrongChain
        );
        if !is_of_a_leaf {
            let faults = EstFaults { cacerts: Some(answer), ..EstFaults::default() };
            server.faults(Faults { est: faults, ..Faults::default() }).unwrap();
            let before = server.state().calls.est_enroll;
            let error = est.enroll(csr.der()).await.unwrap_err().to_string();
            assert!(error.contains(reason), "{answer:?} to cacerts: {error}");
            assert_eq!(server.state().calls.est_enroll, before, "no certificate is lost");
        }
    }
    server.faults(Faults::default()).unwrap();
    assert_eq!(issued(with_password(&server).enroll(csr.der()).await.unwrap()).len(), 3);
}

#[tokio::test]
async fn a_server_in_trouble_is_told_from_one_that_refuses() {
    let server = simulator("").await;
    for (status, transient) in [(500, true), (503, true), (429, true), (400, false), (403, false)] {
        let route = RouteFaults { retry_after_sec: Some(77), ..RouteFaults::status(status) };
        let est = EstFaults { route, ..EstFaults::default() };
        server.faults(Faults { est, ..Faults::default() }).unwrap();
        let error = with_password(&server).cacerts().await.unwrap_err();
        assert_eq!(error.is_transient(), transient, "{error}");
        let wait = transient.then_some(Duration::from_secs(77));
        assert_eq!(error.retry_after(), wait, "{error}");
    }
    let est = EstFaults { route: RouteFaults::dropped(), ..EstFaults::default() };
    server.faults(Faults { est, ..Faults::default() }).unwrap();
    let error = with_password(&server).cacerts().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    let server = simulator("").await;
    let route = RouteFaults { delay_ms: 600_000, ..RouteFaults::default() };
    let est = EstFaults { route, ..EstFaults::default() };
    server.faults(Faults { est, ..Faults::default() }).unwrap();
    let begun = Instant::now();
    let est = with_password(&server).with_limit(Duration::from_secs(1));
    let error = est.cacerts().await.unwrap_err().to_string();
    assert!(error.contains("did not answer within 1 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}
