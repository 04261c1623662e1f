//! The ciphertexts that modules keep (wire facts 3.3).
//!
//! ```text
//! 81 | nonce, 16 bytes | ciphertext of the keys API      under a key of this module and generation
//! 82 | nonce, 16 bytes | ciphertext of the keys API      the same, derived from the device's key for modules' data
//! anything below 80                                      a ciphertext of the keys API, under the device's one key
//! ```
//! The first is written, and the second where the keys service has no key for the first
//! (a compatible one). Their nonce is drawn here for each ciphertext; the caller's IV,
//! which existing clients use over and over, is only authenticated. Bytes below 80 belong
//! to the keys API, which numbers its own layouts from 01 on (wire facts 5.5), those from
//! 80 on to this one: so neither takes the other's ciphertext for its own. Who knows only
//! the device's key (this program before it had keys of modules, and existing services)
//! passes an 81 on to the keys API, which refuses it as an unknown version.

use crate::identity::keys::Base;

/// Version bytes of ciphertexts under a module's own key, by what that is derived from.
const MODULE_KEY: u8 = 0x81;
const MODULE_KEY_OF_DEVICE_KEY: u8 = 0x82;

fn version(base: Base) -> u8 {
    match base {
        Base::ModuleData => MODULE_KEY,
        Base::DeviceData => MODULE_KEY_OF_DEVICE_KEY,
    }
}

/// The first byte that is not the keys API's.
const OURS: u8 = 0x80;
/// GCM makes 16 bytes of any nonce that has not 12, so more would not help: two alike
/// among 2^40 ciphertexts of one module are less likely than one in 2^48.
pub(crate) const NONCE_LEN: usize = 16;
/// Most bytes of plaintext and IV together: what is encrypted has to fit into a request
/// to decrypt it, of 1 MiB in base64, here and at the keys API.
pub(crate) const PLAINTEXT_LIMIT: usize = 750 * 1024;

/// A ciphertext, by the key that it is encrypted under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form<'a> {
    /// The module's own key.
    ModuleKey { base: Base, nonce: &'a [u8; NONCE_LEN], sealed: &'a [u8] },
    /// The device's one key.
    DeviceKey { sealed: &'a [u8] },
}

/// A ciphertext that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LayoutError {
    /// No version byte, or no whole nonce.
    #[error("the ciphertext is cut off")]
    Short,
    /// Made by a later version.
    #[error("the ciphertext has the unknown version {0}: it needs a later edgekeep")]
    Version(u8),
}

/// Finds the parts of a ciphertext.
pub(crate) fn parse(ciphertext: &[u8]) -> Result<Form<'_>, LayoutError> {
    match ciphertext.split_first().ok_or(LayoutError::Short)? {
        (first @ &(MODULE_KEY | MODULE_KEY_OF_DEVICE_KEY), rest) => {
            let (nonce, sealed) = rest.split_first_chunk().ok_or(LayoutError::Short)?;
            let base = if *first == MODULE_KEY { Base::ModuleData } else { Base::DeviceData };
            Ok(Form::ModuleKey { base, nonce, sealed })
        }
        (version, _) if *version < OURS => Ok(Form::DeviceKey { sealed: ciphertext }),
        (version, _) => Err(LayoutError::Version(*version)),
    }
}

/// A ciphertext under a module's own key.
pub(crate) fn compose(base: Base, nonce: &[u8; NONCE_LEN], sealed: &[u8]) -> Vec<u8> {
    [&[version(base)], nonce.as_slice(), sealed].concat()
}

/// Returns the data that a module's key is derived for: the module and its generation.
pub(crate) fn derivation_data(module: &str, generation: &str) -> Vec<u8> {
    fields(&[b"edgekeep module data key", module.as_bytes(), generation.as_bytes()])
}

/// Returns the additional data that is authenticated beside the plaintext under a
/// module's own key.
pub(crate) fn additional_data(base: Base, module: &str, generation: &str, iv: &[u8]) -> Vec<u8> {
    let layout: &[u8] = match base {
        Base::ModuleData => b"edgekeep module data 81",
        Base::DeviceData => b"edgekeep module data 82",
    };
    fields(&[layout, module.as_bytes(), generation.as_bytes(), iv])
}

/// The same under the device's key: without a separator, as existing ciphertexts have it.
pub(crate) fn device_additional_data(module: &str, generation: &str) -> Vec<u8> {
    [module, generation].concat().into_bytes()
}

/// Each field behind its length, so that no two lists have the same bytes.
fn fields(fields: &[&[u8]]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(fields.iter().map(|field| 8 + field.len()).sum());
    for field in fields {
        encoded.extend_from_slice(&(field.len() as u64).to_be_bytes());
        encoded.extend_from_slice(field);
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_composed_is_found_again(
            own: bool, nonce: [u8; NONCE_LEN], sealed in vec(any::<u8>(), 0..200),
        ) {
            let base = if own { Base::ModuleData } else { Base::DeviceData };
            let ciphertext = compose(base, &nonce, &sealed);
            prop_assert_eq!(parse(&ciphertext), Ok(Form::ModuleKey { base, nonce: &nonce, sealed: &sealed }));
            prop_assert_eq!(ciphertext.len(), 1 + NONCE_LEN + sealed.len());
        }

        #[test]
        fn no_bytes_make_parsing_panic_and_none_are_of_both_forms(ciphertext in vec(any::<u8>(), 0..60)) {
            match parse(&ciphertext) {
                Ok(Form::ModuleKey { base, nonce, sealed }) => prop_assert_eq!(compose(base, nonce, sealed), ciphertext),
                // The keys API's layouts 01 and 02 among them, whole.
                Ok(Form::DeviceKey { sealed }) => prop_assert!(sealed == ciphertext && ciphertext[0] < 0x80),
                Err(LayoutError::Version(version)) => prop_assert!(version == 0x80 || version > 0x82),
                Err(LayoutError::Short) => prop_assert!(ciphertext.len() <= NONCE_LEN),
            }
        }

        #[test]
        fn other_modules_generations_and_ivs_are_never_the_same_bytes(
            one in ("[a-z0-9$:]{0,4}", "[a-z0-9$:]{0,4}", vec(any::<u8>(), 0..4)),
            other in ("[a-z0-9$:]{0,4}", "[a-z0-9$:]{0,4}", vec(any::<u8>(), 0..4)),
        ) {
            let of = |(module, generation, iv): &(String, String, Vec<u8>)| additional_data(Base::ModuleData, module, generation, iv);
            prop_assert_eq!(of(&one) == of(&other), one == other);
            let key = |(module, generation, _): &(String, String, Vec<u8>)| derivation_data(module, generation);
            prop_assert_eq!(key(&one) == key(&other), (&one.0, &one.1) == (&other.0, &other.1));
            prop_assert_ne!(of(&one), key(&other));
        }
    }

    #[test]
    fn a_module_whose_name_ends_in_digits_is_told_from_one_whose_generation_begins_with_them() {
        assert_eq!(
            device_additional_data("m1", "23"),
            device_additional_data("m", "123"),
            "what this is about"
        );
        let of = |module, generation| additional_data(Base::ModuleData, module, generation, b"");
        assert_ne!(of("m1", "23"), of("m", "123"));
        assert_ne!(of("m", "1"), additional_data(Base::DeviceData, "m", "1", b""));
        assert_ne!(derivation_data("m1", "23"), derivation_data("m", "123"));
    }
}
