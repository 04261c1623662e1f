//! Turns at the threads that wait for disks, tokens and the TPM, or compute for long.
//!
//! There are few of them, for everybody. A uid that asks for many slow things at once,
//! like RSA keys of 4096 bits, waits for its own; others still find a thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use edgekeep_base::lock::lock;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Uids that are remembered before those without anything under way are forgotten.
const UIDS: usize = 64;

/// Turns at slow things: how many of them each uid has under way.
pub(crate) struct Turns {
    share: usize,
    by_uid: Mutex<HashMap<u32, Weak<Semaphore>>>,
}

impl Turns {
    /// `share` is how many things a uid may have under way at a time.
    pub(crate) fn new(share: usize) -> Self {
        Self { share, by_uid: Mutex::default() }
    }

    /// Waits for this uid's turn, which is over when what is returned is dropped.
    pub(crate) async fn take(&self, uid: u32) -> Option<OwnedSemaphorePermit> {
        let turns = self.of(uid);
        // It is never closed.
        turns.acquire_owned().await.ok()
    }

    fn of(&self, uid: u32) -> Arc<Semaphore> {
        let mut by_uid = lock(&self.by_uid);
        if let Some(turns) = by_uid.get(&uid).and_then(Weak::upgrade) {
            return turns;
        }
        if by_uid.len() >= UIDS {
            by_uid.retain(|_, turns| turns.strong_count() > 0);
        }
        let turns = Arc::new(Semaphore::new(self.share));
        by_uid.insert(uid, Arc::downgrade(&turns));
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_uid_waits_for_its_own_and_for_nobody_elses() {
        let turns = Turns::new(2);
        let (one, two) = (turns.take(7).await, turns.take(7).await);
        let mut third = Box::pin(turns.take(7));
        assert!(is_pending(&mut third), "a third has to wait");
        assert!(turns.take(8).await.is_some());
        drop(one);
        assert!(third.await.is_some());
        drop(two);
        for uid in 0..1000 {
            drop(turns.take(uid).await);
        }
        assert!(turns.by_uid.lock().unwrap().len() <= UIDS);
    }

    /// Returns true if a future is not done yet.
    fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::Pin::new(future).poll(&mut context).is_pending()
    }
}
