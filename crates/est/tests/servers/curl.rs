//! curl and openssl as clients of the simulated server.

use std::process::Command;

use super::*;

fn run(folder: &std::path::Path, script: &str) -> String {
    let done = Command::new("sh").args(["-ec", script]).current_dir(folder).output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{script}: {told}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_enrols_renews_and_openssl_verifies_the_chain() {
    let server = simulator("").await;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("tls.pem"), server.ca_pem()).unwrap();
    std::fs::write(at.join("root.pem"), server.est_root_pem(None).unwrap()).unwrap();
    run(
        at,
        "openssl req -new -newkey rsa:2048 -nodes -keyout key.pem -subj /CN=press-04 -outform DER | base64 > csr",
    );
    let url = server.est_url();
    let curl = "curl -sS --fail --cacert tls.pem -H 'Content-Type: application/pkcs10'";
    let unpack = "tr -d '\\r' | base64 -d | openssl pkcs7 -inform DER -print_certs";
    run(at, &format!("curl -sS --fail --cacert tls.pem {url}/cacerts | {unpack} -out cas.pem"));
    run(
        at,
        &format!(
            "{curl} -u '{NAME}:{PASSWORD}' --data-binary @csr {url}/simpleenroll | {unpack} -out leaf.pem"
        ),
    );
    let verify = "openssl verify -CAfile root.pem -untrusted cas.pem leaf.pem";
    assert!(run(at, verify).contains("leaf.pem: OK"));
    run(
        at,
        &format!(
            "{curl} --cert leaf.pem --key key.pem --data-binary @csr {url}/simplereenroll | {unpack} -out leaf.pem"
        ),
    );
    assert!(run(at, verify).contains("leaf.pem: OK"));
    // Without a word of who it is, curl is refused too.
    let status = run(
        at,
        &format!(
            "curl -sS -o /dev/null -w '%{{http_code}}' --cacert tls.pem -H 'Content-Type: application/pkcs10' --data-binary @csr {url}/simpleenroll"
        ),
    );
    assert_eq!(status, "401");
}
