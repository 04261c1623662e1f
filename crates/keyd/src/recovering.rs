//! A backend whose hardware may be absent: opened at the first use that finds it there.

use std::sync::{Arc, Mutex, OnceLock};

use edgekeep_base::lock::lock;
use edgekeep_hsm::backend::Delegate;
use edgekeep_hsm::{KeyBackend, KeyError};

type Open<B> = dyn Fn() -> Result<B, KeyError> + Send + Sync;

/// Opens a backend, and answers with the error of opening it until that succeeds. From
/// then on the backend itself deals with what comes and goes.
pub(crate) struct Recovering<B> {
    name: &'static str,
    open: Box<Open<B>>,
    opened: OnceLock<Arc<B>>,
    /// Held while it is opened.
    opening: Mutex<()>,
}

impl<B> Recovering<B> {
    pub(crate) fn new(
        name: &'static str,
        open: impl Fn() -> Result<B, KeyError> + Send + Sync + 'static,
    ) -> Self {
        Self { name, open: Box::new(open), opened: OnceLock::new(), opening: Mutex::default() }
    }

    /// The backend, opened if it was not yet.
    pub(crate) fn get(&self) -> Result<&Arc<B>, KeyError> {
        if let Some(backend) = self.opened.get() {
            return Ok(backend);
        }
        let _opening = lock(&self.opening);
        if let Some(backend) = self.opened.get() {
            return Ok(backend);
        }
        let backend = Arc::new((self.open)()?);
        Ok(self.opened.get_or_init(|| backend))
    }
}

impl<B: KeyBackend> Delegate for Recovering<B> {
    type To = B;

    fn delegate_name(&self) -> &'static str {
        self.name
    }

    fn delegate(&self) -> Result<&B, KeyError> {
        self.get().map(Arc::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use edgekeep_core::id::KeyId;
    use edgekeep_hsm::KeyKind;
    use edgekeep_hsm::pkcs11::TokenError;

    use super::*;

    struct Present;

    impl KeyBackend for Present {
        fn name(&self) -> &'static str {
            "present"
        }

        fn kind(&self, _id: &KeyId) -> Result<Option<KeyKind>, KeyError> {
            Ok(None)
        }
    }

    #[test]
    fn what_cannot_be_opened_is_tried_again_and_what_is_open_stays_so() {
        let attempts = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&attempts);
        let backend = Recovering::new("t", move || match counted.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Err(TokenError::NoLibrary.into()),
            _ => Ok(Present),
        });
        let id: KeyId = "k".parse().unwrap();
        for _ in 0..2 {
            let error = backend.kind(&id).unwrap_err();
            assert!(matches!(error.cause(), Some(TokenError::NoLibrary)), "{error:?}");
        }
        for _ in 0..3 {
            assert_eq!(backend.kind(&id).unwrap(), None);
        }
        assert_eq!(attempts.load(Ordering::Relaxed), 3);
    }
}
