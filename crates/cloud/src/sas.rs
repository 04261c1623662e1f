//! Shared access signatures (wire facts 6.4): the text is made here, the signature
//! elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::SignerError;

/// Characters that are encoded in an audience: those that the path of a URL cannot hold,
/// and those that would change its meaning.
const AUDIENCE: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'=')
    .add(b'%')
    .add(b'+');
/// One segment of a path: as above, and no separator. `$` stays: system modules have it
/// and every server takes it.
const SEGMENT: &AsciiSet = &AUDIENCE.add(b'/').add(b'&').add(b'\\').add(b'^').add(b'|');
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Lifetime of a token, in seconds: long enough for a slow network and for clocks that
/// differ a little.
pub(crate) const LIFETIME: i64 = 300;

/// Something that signs with the device's symmetric key, which this crate never sees.
pub trait Signer: Send + Sync {
    /// HMAC-SHA256 of `data`.
    fn sign(&self, data: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, SignerError>> + Send;
}

impl<S: Signer> Signer for &S {
    fn sign(&self, data: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, SignerError>> + Send {
        (**self).sign(data)
    }
}

impl<S: Signer> Signer for std::sync::Arc<S> {
    fn sign(&self, data: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, SignerError>> + Send {
        (**self).sign(data)
    }
}

/// Encodes one path segment.
pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// Audience of a token in plain text, and the name of the key if the service wants one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Audience {
    pub(crate) resource: String,
    pub(crate) key_name: Option<&'static str>,
}

impl Audience {
    /// Returns true if the audience is the provisioning service.
    pub(crate) fn is_registration(&self) -> bool {
        self.key_name.is_some()
    }

    /// The value of the Authorization header, good until `expiry` (seconds since the
    /// epoch).
    pub(crate) async fn token(
        &self,
        signer: &impl Signer,
        expiry: i64,
    ) -> Result<String, SignerError> {
        let resource = utf8_percent_encode(&self.resource.to_lowercase(), AUDIENCE).to_string();
        let signature = signer.sign(format!("{resource}\n{expiry}").into_bytes()).await?;
        let signature = STANDARD.encode(signature);
        let name = self.key_name.map(|name| format!("&skn={name}")).unwrap_or_default();
        Ok(format!(
            "SharedAccessSignature sr={resource}&sig={}&se={expiry}{name}",
            utf8_percent_encode(&signature, FORM)
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use proptest::prelude::*;

    use super::*;

    /// Answers with bytes whose base64 needs encoding, and notes nothing.
    struct FixedSigner;

    impl Signer for FixedSigner {
        fn sign(&self, data: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, SignerError>> + Send {
            assert_eq!(data, b"hub.test/devices/press%23-04\n1700000000");
            ready(Ok(vec![0xfb, 0xff, 0xfe, 0xff]))
        }
    }

    #[tokio::test]
    async fn a_token_names_the_lower_case_audience_its_signature_and_its_expiry() {
        let audience = Audience {
            resource: "Hub.test/devices/Press#-04".into(),
            key_name: Some("registration"),
        };
        let token = audience.token(&FixedSigner, 1_700_000_000).await.unwrap();
        assert_eq!(
            token,
            "SharedAccessSignature sr=hub.test/devices/press%23-04&sig=%2B%2F%2F%2B%2Fw%3D%3D&se=1700000000&skn=registration"
        );
    }

    proptest! {
        #[test]
        fn an_encoded_segment_is_one_segment_and_decodes_to_what_it_was(text in "\\PC{0,40}") {
            let encoded = segment(&text);
            prop_assert!(!encoded.contains(['/', '?', '#', '\\', ' ', '&']));
            prop_assert_eq!(percent_encoding::percent_decode_str(&encoded).decode_utf8().unwrap(), text);
        }
    }
}
