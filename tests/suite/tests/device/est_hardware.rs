//! A manufacturer's certificate whose key is in a token or in the TPM: it opens the door
//! of the EST server, and no file has the key.

use std::path::Path;
use std::process::Command;

use edgekeep_sim::{Authority, EstOptions};
use edgekeep_test_plant::Plant;
use edgekeep_testkit::{Builder, Device, wait_for};
use serde_json::Value;

use crate::{parts, swtpm, wait_for_edge_ca};

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Has a CA of manufacturers certify the key of `public.pem` in a folder, and returns its
/// root.
fn certify(folder: &Path) -> String {
    let maker = Authority::named("maker").unwrap();
    let read = Command::new("openssl")
        .args(["pkey", "-pubin", "-in", "public.pem", "-outform", "DER"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(read.status.success(), "{read:?}");
    let pem = maker.client_certificate_pem("serial-1", &read.stdout).unwrap();
    std::fs::write(folder.join("maker.pem"), pem).unwrap();
    maker.certificate_pem().to_owned()
}

/// A device that shows that certificate to the EST server, and its key's place.
fn device(folder: &Path, key: &str, roots: String) -> Builder {
    let tables = format!(
        "[edge_ca]\nmethod = \"est\"\ncommon_name = \"edge CA\"\n\
         [cert_issuance.est]\ntrusted_certs = [\"file://{{root}}/est-roots.pem\"]\n\
         [cert_issuance.est.urls]\ndefault = \"{{est}}\"\n\
         [cert_issuance.est.auth]\nbootstrap_identity_cert = \"file://{}/maker.pem\"\n\
         bootstrap_identity_pk = \"{key}\"\n",
        folder.display()
    );
    let provisioning = "[provisioning]\nsource = \"dps\"\nglobal_endpoint = \"{dps}\"\n\
         id_scope = \"0ne00000001\"\n\
         [provisioning.attestation]\nmethod = \"x509\"\nregistration_id = \"press-04\"\n\
         [provisioning.attestation.identity_cert]\nmethod = \"est\"\n";
    let est = EstOptions { clients_pem: roots, ..EstOptions::default() };
    Device::builder().provisioning(provisioning).tables(&tables).est(est)
}

/// Waits until the device has all that it gets by that certificate, and uses it.
fn until_it_works(device: &Device) {
    let line = |id: &str| {
        let output = device.edgekeep(&["certs", "list", "--json"]);
        let list: Value = serde_json::from_slice(&output.stdout).ok()?;
        list["certificates"].as_array()?.iter().find(|line| line["id"] == id).cloned()
    };
    for id in ["est-id", "device-id"] {
        let line = wait_for(id, || line(id).filter(|line| line["renewal"] == "planned"));
        assert!(line["lastError"].is_null(), "{line}");
    }
    wait_for_edge_ca(device);
    let module = device.add_caller("m1");
    let _ = module.sign().expect(200);
    assert_eq!(device.cloud().state().refusals, Vec::<String>::new());
}

#[test]
fn with_its_manufacturers_key_in_a_token_a_device_gets_all_its_certificates_by_est() {
    if parts::missing(&["softhsm2-util", SOFTHSM]) {
        return;
    }
    let plant = Plant::new();
    let folder = plant.folder();
    plant.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out maker.p8");
    plant.openssl("pkey -in maker.p8 -pubout -out public.pem");
    std::fs::create_dir(folder.join("tokens")).unwrap();
    let conf = folder.join("softhsm2.conf");
    let tokens = format!("directories.tokendir = {}\n", folder.join("tokens").display());
    std::fs::write(&conf, tokens).unwrap();
    for arguments in [
        "--init-token --free --label edge --pin 1234 --so-pin 5678",
        "--import maker.p8 --token edge --label maker --id 07 --pin 1234",
    ] {
        let done = Command::new("softhsm2-util")
            .args(arguments.split_whitespace())
            .current_dir(folder)
            .env("SOFTHSM2_CONF", &conf)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    // The token alone has it from now on.
    std::fs::remove_file(folder.join("maker.p8")).unwrap();
    let roots = certify(folder);
    let device = device(folder, "pkcs11:token=edge;object=maker?pin-value=1234", roots)
        .tables(&format!(
            "[aziot_keys]\npkcs11_lib_path = \"{SOFTHSM}\"\nsandbox_paths = [\"{}\"]\n",
            folder.display()
        ))
        .variable("SOFTHSM2_CONF", &conf.display().to_string())
        .start();
    until_it_works(&device);
}

#[test]
fn with_its_manufacturers_key_in_the_tpm_a_device_gets_all_its_certificates_by_est() {
    if swtpm::skip() {
        return;
    }
    let tpm = swtpm::Swtpm::start();
    let folder = tpm.folder("tools");
    let tool = |name: &str, arguments: &str| {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        let _ = tpm.tool_ok(&folder, name, &arguments);
        let _ = tpm.tool_ok(&folder, "tpm2_flushcontext", &["-t"]);
    };
    tool("tpm2_createprimary", "-C o -G ecc -c root.ctx");
    tool(
        "tpm2_create",
        "-C root.ctx -G ecc:ecdsa -u k.pub -r k.priv -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign",
    );
    tool("tpm2_load", "-C root.ctx -u k.pub -r k.priv -c k.ctx");
    tool("tpm2_evictcontrol", "-C o -c k.ctx 0x81000010");
    tool("tpm2_readpublic", "-c 0x81000010 -f pem -o public.pem");
    let roots = certify(&folder);
    let device = device(&folder, "tpm:handle=0x81000010", roots)
        .tables(&format!("[tpm]\ntcti = \"{}\"\n", tpm.tcti()))
        .start();
    until_it_works(&device);
}
