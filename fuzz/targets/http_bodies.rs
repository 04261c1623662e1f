//! Bodies of requests and answers of all interfaces: what is read is written, and that is
//! read as the same.
#![no_main]

use edgekeep_api::{certd, identityd, keyd, management, operations, tpmd, workload};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn reads_back<T: Serialize + DeserializeOwned>(content: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(content) else { return };
    let written = serde_json::to_value(&value).expect("written");
    let again: T = serde_json::from_value(written.clone()).expect("what was written is read");
    assert_eq!(serde_json::to_value(&again).expect("written"), written);
}

fn read<T: DeserializeOwned>(content: &[u8]) {
    let _ = serde_json::from_slice::<T>(content);
}

fuzz_target!(|content: &[u8]| {
    reads_back::<management::ModuleSpec>(content);
    reads_back::<management::ModuleList>(content);
    read::<management::ModuleSettings>(content);
    reads_back::<management::SystemInfo>(content);
    reads_back::<management::Approvals>(content);
    reads_back::<identityd::Identity>(content);
    reads_back::<identityd::CreateModuleIdentity>(content);
    read::<identityd::ProvisioningInfo>(content);
    reads_back::<certd::CreateCertificate>(content);
    reads_back::<keyd::Sign>(content);
    reads_back::<keyd::Encrypt>(content);
    reads_back::<keyd::Decrypt>(content);
    reads_back::<keyd::CreateDerivedKey>(content);
    read::<keyd::AuditEntries>(content);
    reads_back::<keyd::Measurement>(content);
    reads_back::<keyd::IntegrityLog>(content);
    reads_back::<workload::Sign>(content);
    reads_back::<workload::Encrypt>(content);
    reads_back::<workload::ServerCertificate>(content);
    read::<tpmd::SignWithAuthKey>(content);
    read::<operations::ProblemList>(content);
});
