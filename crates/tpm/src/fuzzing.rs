//! The readers of what a TPM or a provisioning service says, for fuzz targets. No other
//! build has this module.

use crate::device::response_code;
use crate::nv::area_is_counter;
use crate::nv_register::area_is_register;
use crate::objects::read_ecdsa;
use crate::pcr::read_one;
use crate::provisioning::ImportBlob;
use crate::public::Public;
use crate::session::{Prepared, accept};
use crate::wire::{Code, Reader};

/// Reads these bytes as each kind of answer.
pub fn read(bytes: &[u8]) {
    let prepared = Prepared { bytes: Vec::new().into(), attributes: Vec::new() };
    for code in [Code::CreatePrimary, Code::Quote, Code::GetCapability] {
        let _ = accept(code, &prepared, &mut [], bytes);
    }
    let _ = response_code(bytes);
    let _ = area_is_counter(0x0180_0000, bytes);
    let _ = area_is_register(0x0180_0000, bytes);
    let _ = read_one(bytes, 13);
    let _ = read_ecdsa(&mut Reader::new(bytes));
    let _ = ImportBlob::read(bytes);
    let _ = Public::read(bytes);
}
