//! The system calls with which a process makes lie what others measure of it, refused for
//! good.
//!
//! A verdict on a caller rests on two things: the file that the kernel shows as its
//! executable is the one whose code runs, and a connection that the program opens is its
//! own. Two calls undo that, and no look from outside finds out afterwards:
//!
//! - `prctl(PR_SET_MM)` names another file as the executable. It takes a capability,
//!   which every process has in a user namespace of its own; a child there that shares
//!   its parent's memory does it for the parent, and ends.
//! - `seccomp` with `SECCOMP_FILTER_FLAG_NEW_LISTENER` has system calls answered by the
//!   holder of the listener. The filter outlives `execve`, so that the holder answers the
//!   measured program's `socket` with a descriptor of its own.
//!
//! [`filter`] refuses both with `EPERM`. They serve restoring processes from an image and
//! container engines; a host module does not need them. Everything else is let through,
//! programs of the machine's 32-bit predecessor included, for which the compiler of the
//! lists has no numbers: hence instructions by hand.

use seccompiler::{BpfProgram, sock_filter};

use crate::Filter;

/// A call interface of the kernel, and the numbers that the two calls have in it.
#[derive(Debug, Clone, Copy)]
struct Interface {
    /// `AUDIT_ARCH_*` of `linux/audit.h`.
    architecture: u32,
    prctl: u32,
    seccomp: u32,
}

/// Those that a kernel for this architecture serves.
#[cfg(target_arch = "x86_64")]
const INTERFACES: &[Interface] = &[
    Interface { architecture: 0xc000_003e, prctl: 157, seccomp: 317 },
    Interface { architecture: 0x4000_0003, prctl: 172, seccomp: 354 },
];
#[cfg(target_arch = "aarch64")]
const INTERFACES: &[Interface] = &[
    Interface { architecture: 0xc000_00b7, prctl: 167, seccomp: 277 },
    Interface { architecture: 0x4000_0028, prctl: 172, seccomp: 383 },
];
#[cfg(target_arch = "riscv64")]
const INTERFACES: &[Interface] = &[
    Interface { architecture: 0xc000_00f3, prctl: 167, seccomp: 277 },
    Interface { architecture: 0x4000_00f3, prctl: 167, seccomp: 277 },
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const INTERFACES: &[Interface] = &[];

const PR_SET_MM: u32 = 35;
const SECCOMP_SET_MODE_FILTER: u32 = 1;
const SECCOMP_FILTER_FLAG_NEW_LISTENER: u32 = 1 << 3;

/// The bit that x32 adds to a call's number; no other interface has numbers that high.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`; of the arguments the low halves, which are all that
/// the kernel takes.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_0: u32 = if cfg!(target_endian = "big") { 20 } else { 16 };
const ARGUMENT_1: u32 = ARGUMENT_0 + 8;

/// The filter. It is to be put into force before any other, since a list may refuse that
/// more are.
#[must_use]
pub fn filter() -> Filter {
    Filter::of((!INTERFACES.is_empty()).then(|| vec![program()]))
}

fn program() -> BpfProgram {
    let load = |from| sock_filter { code: 0x20, jt: 0, jf: 0, k: from };
    let and = |mask| sock_filter { code: 0x54, jt: 0, jf: 0, k: mask };
    // Goes on with the next instruction if equal, else skips this many.
    let unless_equal = |value, skip| sock_filter { code: 0x15, jt: 0, jf: skip, k: value };
    let finish = |answer| sock_filter { code: 0x06, jt: 0, jf: 0, k: answer };
    let (allow, refuse) =
        (finish(libc::SECCOMP_RET_ALLOW), finish(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    let mut program = vec![load(ARCHITECTURE)];
    for interface in INTERFACES {
        let calls = [
            load(NUMBER),
            and(!X32),
            unless_equal(interface.prctl, 4),
            load(ARGUMENT_0),
            unless_equal(PR_SET_MM, 1),
            refuse.clone(),
            allow.clone(),
            unless_equal(interface.seccomp, 6),
            load(ARGUMENT_0),
            unless_equal(SECCOMP_SET_MODE_FILTER, 4),
            load(ARGUMENT_1),
            and(SECCOMP_FILTER_FLAG_NEW_LISTENER),
            unless_equal(SECCOMP_FILTER_FLAG_NEW_LISTENER, 1),
            refuse.clone(),
            allow.clone(),
        ];
        program.push(unless_equal(interface.architecture, calls.len() as u8));
        program.extend(calls);
    }
    // An interface without numbers here could be any.
    program.push(refuse);
    program
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::syscalls::tests::{ALLOW, REFUSE, data, run};

    fn answer(architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        run(&program(), &data(architecture, number, arguments))
    }

    fn is_forbidden(interface: &Interface, number: u32, arguments: [u64; 6]) -> bool {
        let [first, second] = [arguments[0] as u32, arguments[1] as u32];
        let number = number & !X32;
        number == interface.prctl && first == PR_SET_MM
            || number == interface.seccomp && first == SECCOMP_SET_MODE_FILTER && second & 8 != 0
    }

    proptest! {
        #[test]
        fn just_the_two_calls_are_refused_in_each_interface(
            at in any::<prop::sample::Index>(),
            call in prop_oneof![3 => any::<prop::sample::Index>().prop_map(Some), 1 => Just(None)],
            other in any::<u32>(),
            x32 in any::<bool>(),
            arguments in prop::array::uniform6(prop_oneof![0..40_u64, any::<u64>(), Just(1 << 32 | 35)]),
        ) {
            let interface = at.get(INTERFACES);
            let number = call.map_or(other, |call| *call.get(&[interface.prctl, interface.seccomp]));
            let number = if x32 { number | X32 } else { number };
            let expected = if is_forbidden(interface, number, arguments) { REFUSE } else { ALLOW };
            prop_assert_eq!(answer(interface.architecture, number, arguments), expected);
        }
    }

    #[test]
    fn an_interface_that_is_not_known_makes_no_call() {
        assert_eq!(answer(0x1234, 0, [0; 6]), REFUSE);
    }

    #[test]
    fn the_numbers_are_those_of_this_machines_headers() {
        let own = INTERFACES[0];
        assert_eq!(i64::from(own.prctl), libc::SYS_prctl);
        assert_eq!(i64::from(own.seccomp), libc::SYS_seccomp);
        assert_eq!(i64::from(PR_SET_MM), i64::from(libc::PR_SET_MM));
        assert_eq!(
            u64::from(SECCOMP_FILTER_FLAG_NEW_LISTENER),
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
        );
    }
}
