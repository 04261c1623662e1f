//! Certificates on a token: what is in use of one after each look.

use crate::credentials::Certificate;

/// Outcome of a look at the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// The value of the object.
    Value(Vec<u8>),
    /// The token has no such object, or more than one: why, in words.
    Refused(String),
    /// Nobody has answered: why, in words.
    Silent(String),
}

/// The knowledge of a certificate on a token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// The certificate that is in use.
    pub certificate: Option<Certificate>,
    /// The reason why the last look found none, in words.
    pub problem: Option<String>,
}

impl Known {
    /// Takes in a look. What the token has decides, also if it is nothing of use; while
    /// nobody answers, what was read before stays in use.
    #[must_use]
    pub fn after(self, look: Look) -> Self {
        let gone = |problem: String| Self { certificate: None, problem: Some(problem) };
        match look {
            Look::Value(value) => match Certificate::from_der(&value) {
                Some(certificate) => Self { certificate: Some(certificate), problem: None },
                None => gone(
                    "the object on the token is not one certificate in DER: write it anew (pkcs11-tool --type cert \
                     --write-object FILE.der)"
                        .to_owned(),
                ),
            },
            Look::Refused(why) => gone(why),
            Look::Silent(why) => Self { problem: Some(why), ..self },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate whose names are empty, and whose key and signature are one byte.
    const SMALLEST: &[u8] = &[
        0x30, 0x42, 0x30, 0x37, 0x02, 0x01, 0x01, 0x30, 0x03, 0x06, 0x01, 0x2a, 0x30, 0x00, 0x30,
        0x1e, 0x17, 0x0d, 0x32, 0x36, 0x30, 0x31, 0x30, 0x31, 0x30, 0x30, 0x30, 0x30, 0x30, 0x30,
        0x5a, 0x17, 0x0d, 0x32, 0x36, 0x30, 0x31, 0x30, 0x31, 0x30, 0x30, 0x30, 0x30, 0x30, 0x30,
        0x5a, 0x30, 0x00, 0x30, 0x09, 0x30, 0x03, 0x06, 0x01, 0x2a, 0x03, 0x02, 0x00, 0x01, 0x30,
        0x03, 0x06, 0x01, 0x2a, 0x03, 0x02, 0x00, 0x01,
    ];

    #[test]
    fn what_the_token_has_decides_and_silence_changes_nothing() {
        let read = Known::default().after(Look::Value(SMALLEST.to_vec()));
        assert!(read.certificate.is_some() && read.problem.is_none());
        let silent = read.clone().after(Look::Silent("away".to_owned()));
        assert_eq!(silent.certificate, read.certificate);
        assert_eq!(silent.problem.as_deref(), Some("away"));
        assert_eq!(silent.after(Look::Value(SMALLEST.to_vec())), read);
        let refused = read.clone().after(Look::Refused("two".to_owned()));
        assert_eq!(refused, Known { certificate: None, problem: Some("two".to_owned()) });
        let silent = refused.after(Look::Silent("away".to_owned()));
        assert_eq!(silent.certificate, None, "what is gone does not come back by silence");
        let longer = [SMALLEST, &[0]].concat();
        for junk in [&[][..], &SMALLEST[1..], &longer, b"-----BEGIN CERTIFICATE-----"] {
            let known = read.clone().after(Look::Value(junk.to_vec()));
            assert_eq!(known.certificate, None);
            assert!(known.problem.unwrap().contains("not one certificate in DER"));
        }
    }
}
