//! A provisioning service, played by the TPM tools on a second TPM.

use std::fs;

use crate::swtpm::Swtpm;

/// Returns a provisioning service's message for a TPM with these public keys, and the
/// HMACs of `messages` under the key in it.
pub(crate) fn import_blob(
    service: &Swtpm,
    endorsement_key: &[u8],
    storage_root_key: &[u8],
    messages: &[&[u8]],
) -> (Vec<u8>, Vec<Vec<u8>>) {
    let folder = service.folder("service");
    fs::write(folder.join("ek.pub"), endorsement_key).unwrap();
    fs::write(folder.join("srk.pub"), storage_root_key).unwrap();
    let run = |name: &str, arguments: &[&str]| {
        service.tool_ok(&folder, name, arguments);
        // The tools keep what they need in files, and leave it loaded as well.
        service.tool_ok(&folder, "tpm2_flushcontext", &["-t"]);
    };
    let read = |name: &str| fs::read(folder.join(name)).unwrap();

    // A key that may leave its TPM with an inner and an outer wrap.
    run("tpm2_startauthsession", &["-S", "trial.ctx"]);
    run("tpm2_policycommandcode", &["-S", "trial.ctx", "-L", "dup.policy", "TPM2_CC_Duplicate"]);
    run("tpm2_flushcontext", &["trial.ctx"]);
    run("tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", "primary.ctx"]);
    let attributes = "sensitivedataorigin|sign|userwithauth|encryptedduplication|noda";
    let key_files = ["-u", "key.pub", "-r", "key.priv", "-c", "key.ctx"];
    let create = [
        &["-C", "primary.ctx", "-G", "hmac", "-L", "dup.policy", "-a", attributes][..],
        &key_files,
    ]
    .concat();
    run("tpm2_create", &create);
    let macs = messages.iter().map(|message| {
        fs::write(folder.join("message"), message).unwrap();
        run("tpm2_hmac", &["-c", "key.ctx", "-g", "sha256", "-o", "mac", "message"]);
        read("mac")
    });
    let macs = macs.collect();
    fs::write(folder.join("inner"), [0x42; 16]).unwrap();
    run("tpm2_startauthsession", &["--policy-session", "-S", "policy.ctx"]);
    run("tpm2_policycommandcode", &["-S", "policy.ctx", "TPM2_CC_Duplicate"]);
    run("tpm2_loadexternal", &["-C", "n", "-u", "srk.pub", "-c", "parent.ctx"]);
    let outputs = ["-r", "dup.priv", "-s", "dup.seed"];
    let duplicate = [
        &[
            "-C",
            "parent.ctx",
            "-c",
            "key.ctx",
            "-G",
            "aes",
            "-i",
            "inner",
            "-p",
            "session:policy.ctx",
        ][..],
        &outputs,
    ];
    run("tpm2_duplicate", &duplicate.concat());
    run("tpm2_flushcontext", &["policy.ctx"]);

    let name = {
        run(
            "tpm2_loadexternal",
            &["-C", "n", "-u", "srk.pub", "-c", "parent.ctx", "-n", "srk.name"],
        );
        read("srk.name").iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    run("tpm2_makecredential", &["-e", "ek.pub", "-s", "inner", "-n", &name, "-o", "credential"]);
    // The tool puts a mark and a version in front of the two structures.
    let credential = read("credential")[8..].to_vec();
    (
        [
            credential,
            read("dup.priv"),
            read("dup.seed"),
            read("key.pub"),
            b"what the service appends".to_vec(),
        ]
        .concat(),
        macs,
    )
}
