//! Memory for secrets that stay: one set of pages, so that a hundred keys of 32 bytes
//! cost one page and not a hundred.
//!
//! On a kernel with `memfd_secret` the pages are in this process's memory map alone, and
//! not in the kernel's. So neither a debugger nor `/proc/PID/mem`, even for root, nor a
//! core dump, swap or hibernation has them. On other kernels the pages are locked in
//! memory and kept out of core dumps. If even that is not allowed, the log says so once.
//!
//! Each secret takes whole slots and is wiped when it goes. When the pages are used up,
//! more are mapped, up to a bound; beyond it secrets are in ordinary memory, which is
//! wiped all the same.
#![allow(unsafe_code, reason = "maps pages and hands out parts of them")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Mutex;

use rustix::fs::ftruncate;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous};
use zeroize::Zeroize as _;

use crate::lock::lock;

/// Bytes mapped at a time. The kernel gives a page only when it is touched.
const REGION_LEN: usize = 32 * 1024;
/// Bytes given out at a time: the most frequent secret is a key of 32 bytes.
const SLOT_LEN: usize = 32;
const SLOTS: usize = REGION_LEN / SLOT_LEN;
/// Regions at most: 1 MiB, far more than the keys that are held ready take.
const REGION_LIMIT: usize = 32;

/// Degree of protection of the pages against other processes, core dumps and swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretMemory {
    /// Out of everybody's reach but this process's own.
    Secret,
    /// Locked in memory, and not in core dumps.
    Locked,
    /// Not in core dumps.
    Swappable,
    /// No pages could be mapped: secrets are in ordinary memory.
    Ordinary,
}

/// Pages, and which of their slots are taken.
struct Region {
    start: NonNull<u8>,
    taken: [bool; SLOTS],
    memory: SecretMemory,
}

// SAFETY: the pages are mapped for the rest of the process and are reached only through
// `Locked`, whose slots are its own.
unsafe impl Send for Region {}

impl Region {
    /// Maps pages, the best that there are.
    fn map() -> io::Result<Self> {
        Self::map_secret().or_else(|error| {
            tracing::info!(%error, "no memfd_secret: keys are in locked pages, which root can read");
            Self::map_locked()
        })
    }

    fn map_secret() -> io::Result<Self> {
        // SAFETY: takes no pointers; the result is checked.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        let fd =
            i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the descriptor was just made and is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        ftruncate(&fd, REGION_LEN as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that
        // is mapped already.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                REGION_LEN,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        Self::over(start, SecretMemory::Secret)
    }

    fn map_locked() -> io::Result<Self> {
        // SAFETY: as above.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                REGION_LEN,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        // SAFETY: these are the pages that were just mapped, all of them.
        let (locked, hidden) = unsafe {
            (mlock(start, REGION_LEN), madvise(start, REGION_LEN, Advice::LinuxDontDump))
        };
        if let Err(error) = hidden {
            tracing::warn!(%error, "pages for secrets are not kept out of core dumps");
        }
        let memory = match locked {
            Ok(()) => SecretMemory::Locked,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "keys cannot be locked in memory and may reach a swap device: raise LimitMEMLOCK of the service"
                );
                SecretMemory::Swappable
            }
        };
        Self::over(start, memory)
    }

    fn over(start: *mut c_void, memory: SecretMemory) -> io::Result<Self> {
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the pages that were just mapped, all of them. A child process has no
        // use for them; that it would get them anyway is no reason to stop.
        let _ = unsafe { madvise(start.as_ptr().cast(), REGION_LEN, Advice::LinuxDontFork) };
        Ok(Self { start, taken: [false; SLOTS], memory })
    }

    /// Takes so many slots in a row; the first one's number.
    fn take(&mut self, slots: usize) -> Option<usize> {
        let first = self.taken.windows(slots).position(|row| row.iter().all(|taken| !taken))?;
        self.taken[first..first + slots].fill(true);
        Some(first)
    }
}

struct Arena {
    regions: Vec<Region>,
    /// True if the lack of pages for secrets was already reported.
    said_full: bool,
    map: fn() -> io::Result<Region>,
}

/// Never dropped, so its pages are mapped for the rest of the process.
static ARENA: Mutex<Arena> = Mutex::new(Arena::new(Region::map));

impl Arena {
    const fn new(map: fn() -> io::Result<Region>) -> Self {
        Self { regions: Vec::new(), said_full: false, map }
    }

    /// Slots for so many bytes: region, first slot.
    fn take(&mut self, len: usize) -> Option<(usize, usize)> {
        let slots = len.div_ceil(SLOT_LEN);
        if slots == 0 || slots > SLOTS {
            return None;
        }
        let found = self
            .regions
            .iter_mut()
            .enumerate()
            .find_map(|(at, region)| Some((at, region.take(slots)?)));
        if found.is_some() || self.regions.len() >= REGION_LIMIT {
            return found;
        }
        match (self.map)() {
            Ok(mut region) => {
                let first = region.take(slots)?;
                self.regions.push(region);
                Some((self.regions.len() - 1, first))
            }
            Err(error) => {
                if !std::mem::replace(&mut self.said_full, true) {
                    tracing::warn!(%error, "no more pages for secrets; further keys are in ordinary memory");
                }
                None
            }
        }
    }

    fn memory(&self) -> SecretMemory {
        self.regions.first().map_or(SecretMemory::Ordinary, |region| region.memory)
    }
}

/// Returns the degree of protection of this process's long-lived secrets.
#[must_use]
pub fn secret_memory() -> SecretMemory {
    let mut arena = lock(&ARENA);
    if arena.regions.is_empty() && arena.take(1).is_some() {
        arena.regions[0].taken.fill(false);
    }
    arena.memory()
}

/// Bytes in those pages, wiped when dropped.
pub(crate) struct Locked {
    start: NonNull<u8>,
    len: usize,
    region: usize,
    first: usize,
    arena: &'static Mutex<Arena>,
}

// SAFETY: the slots are this value's alone, and writing to them needs it mutably.
unsafe impl Send for Locked {}
// SAFETY: as above.
unsafe impl Sync for Locked {}

impl Locked {
    /// A copy of these bytes; `None` if there is no room, or there are none.
    pub(crate) fn copy_of(bytes: &[u8]) -> Option<Self> {
        Self::copy_into(&ARENA, bytes)
    }

    fn copy_into(arena: &'static Mutex<Arena>, bytes: &[u8]) -> Option<Self> {
        let (region, first, start) = {
            let mut arena = lock(arena);
            let (region, first) = arena.take(bytes.len())?;
            // SAFETY: `take` gave slots within the region, as many as the bytes need.
            (region, first, unsafe { arena.regions[region].start.add(first * SLOT_LEN) })
        };
        // SAFETY: the slots are mapped, writable, long enough, and nobody else's; `bytes`
        // are elsewhere.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr(), bytes.len()) };
        Some(Self { start, len: bytes.len(), region, first, arena })
    }

    pub(crate) fn expose(&self) -> &[u8] {
        // SAFETY: written when this was made, and mapped for the rest of the process.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: as in `expose`; nobody else has a reference while it is dropped.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }.zeroize();
        let slots = self.len.div_ceil(SLOT_LEN);
        lock(self.arena).regions[self.region].taken[self.first..self.first + slots].fill(false);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use proptest::prelude::*;

    use super::*;

    fn arena(map: fn() -> io::Result<Region>) -> &'static Mutex<Arena> {
        Box::leak(Box::new(Mutex::new(Arena::new(map))))
    }

    /// Returns the kernel's flags for the mapping that has this address.
    fn flags(address: usize) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let number = |text| usize::from_str_radix(text, 16).ok();
            if let Some((Some(from), Some(to))) = range.map(|(from, to)| (number(from), number(to)))
            {
                inside = (from..to).contains(&address);
            } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        panic!("no mapping has {address:x}");
    }

    /// Returns true if the kernel has `memfd_secret`. Panics if `memfd_secret` fails for
    /// another reason than that the kernel lacks it.
    fn has_secret_memory() -> bool {
        let mapped = Region::map_secret().map(drop);
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::Unsupported;
        assert!(mapped.as_ref().err().is_none_or(missing), "{mapped:?}");
        mapped.is_ok()
    }

    #[test]
    fn secrets_are_in_locked_pages_that_no_core_dump_has() {
        for map in [Region::map, Region::map_locked] {
            let secret = Locked::copy_into(arena(map), b"secret").unwrap();
            let flags = flags(secret.start.as_ptr() as usize);
            for flag in ["lo", "dd", "dc"] {
                assert!(flags.iter().any(|found| found == flag), "{flag} is not among {flags:?}");
            }
            assert_eq!(secret.expose(), b"secret");
        }
    }

    #[test]
    fn secret_pages_are_not_read_through_the_kernel() {
        let read = |secret: &Locked| {
            let mut bytes = [0; 6];
            File::open("/proc/self/mem")
                .unwrap()
                .read_exact_at(&mut bytes, secret.start.as_ptr() as u64)
                .map(|()| bytes)
        };
        let locked = Locked::copy_into(arena(Region::map_locked), b"secret").unwrap();
        assert_eq!(&read(&locked).unwrap(), b"secret", "the way in works where it is open");
        if has_secret_memory() {
            let secret = Locked::copy_into(arena(Region::map), b"secret").unwrap();
            assert!(read(&secret).is_err());
        }
    }

    #[test]
    fn a_secret_that_went_leaves_nothing_and_its_place_is_used_again() {
        let arena = arena(Region::map_locked);
        let secret = Locked::copy_into(arena, &[7; 100]).unwrap();
        let start = secret.start;
        drop(secret);
        // SAFETY: the pages are mapped for the rest of the process, and nobody else uses
        // this arena.
        assert_eq!(unsafe { std::slice::from_raw_parts(start.as_ptr(), 100) }, [0; 100]);
        assert_eq!(Locked::copy_into(arena, &[8; 100]).unwrap().start, start);
    }

    #[test]
    fn without_pages_there_is_no_place_and_that_is_no_panic() {
        let arena = arena(|| Err(io::ErrorKind::OutOfMemory.into()));
        assert!(Locked::copy_into(arena, b"secret").is_none());
        assert_eq!(lock(arena).memory(), SecretMemory::Ordinary);
        assert!(Locked::copy_of(&vec![1; REGION_LEN + 1]).is_none(), "larger than a region");
        assert!(Locked::copy_of(b"").is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn no_two_secrets_share_a_byte(lengths in prop::collection::vec((1_usize..3000, any::<bool>()), 1..120)) {
            static SHARED: Mutex<Arena> = Mutex::new(Arena::new(Region::map_locked));
            let mut kept: Vec<(u8, usize, Locked)> = Vec::new();
            for (number, (len, forget)) in lengths.into_iter().enumerate() {
                let fill = (number % 251) as u8 + 1;
                kept.push((fill, len, Locked::copy_into(&SHARED, &vec![fill; len]).unwrap()));
                if forget {
                    kept.swap_remove(number % kept.len());
                }
                for (fill, len, secret) in &kept {
                    prop_assert!(secret.expose() == vec![*fill; *len]);
                }
            }
        }
    }
}
