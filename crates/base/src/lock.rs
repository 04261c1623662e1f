//! Locks that a panic does not close for good.
//!
//! A panic of a thread that holds a lock poisons it. Every daemon is built to end with
//! the process at a panic (`panic = "abort"`), and what the locks hold is changed by
//! steps that each leave it whole. So a poisoned lock is taken like any other: to refuse
//! it would turn one failed request into a failed daemon.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Takes a mutex, poisoned or not.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lock for reading, poisoned or not.
pub fn read<T: ?Sized>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lock for writing, poisoned or not.
pub fn write<T: ?Sized>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// The result of waiting on a condition, whatever became of the lock meanwhile.
pub fn waited<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_a_panic_left_is_taken_with_what_it_holds() {
        let mutex = Mutex::new(1);
        let shared = RwLock::new(1);
        std::thread::scope(|scope| {
            let panicked = scope
                .spawn(|| {
                    let _guards = (lock(&mutex), write(&shared));
                    panic!("on purpose");
                })
                .join();
            assert!(panicked.is_err());
        });
        assert!(mutex.is_poisoned() && shared.is_poisoned());
        *lock(&mutex) += 1;
        *write(&shared) += 1;
        assert_eq!((*lock(&mutex), *read(&shared)), (2, 2));
    }
}
