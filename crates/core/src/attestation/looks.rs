//! Cases in which an earlier look at a caller still serves. Each look costs system calls,
//! so a look is left out where its answer is known. A look must not be left out if a
//! change would then go unseen that the look would have seen.

use super::{Ancestor, ProcessInstance, Snapshot};

impl Snapshot {
    /// Returns true if a later snapshot is of the same process with the same program,
    /// user, cgroup and tracer.
    ///
    /// Namespaces and filters are not compared: a program may give up rights after it
    /// connected. The verdict takes those of the later snapshot.
    #[must_use]
    pub fn is_of_same_caller(&self, later: &Self) -> bool {
        let own = (&self.process, &self.executable, self.executable_mount, &self.cgroup);
        let others = (&later.process, &later.executable, later.executable_mount, &later.cgroup);
        own == others && (self.uid, self.gid, self.tracer) == (later.uid, later.gid, later.tracer)
    }
}

/// Decides whether a chain of ancestors up to `stop_at`, found earlier in the life of its
/// first process, still is what a new walk would find, by the parent's process id now.
///
/// A process gets another parent only when the parent ends, and that one is an ancestor
/// of the former: every ancestor is older than its descendants. So a parent with the same
/// number is the same process: another one with that number would be younger. Of longer
/// chains a link further up may have gone, which the number does not tell.
#[must_use]
pub fn chain_stands(chain: &[Ancestor], stop_at: &ProcessInstance, parent: u32) -> bool {
    match chain {
        [own] => own.process == *stop_at,
        [_, above] => above.process == *stop_at && above.process.pid == parent,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attestation::ExecutableFile;

    fn snapshot() -> Snapshot {
        Snapshot {
            process: ProcessInstance { pid: 7, start_time: 70 },
            uid: 1000,
            gid: 1000,
            executable: ExecutableFile { device: 1, inode: 2, size: 3, ctime_ns: 4 },
            executable_mount: 5,
            cgroup: "/docker/x".into(),
            pid_namespace: 6,
            user_namespace: 7,
            tracer: 0,
            filters: Some(1),
        }
    }

    #[test]
    fn a_caller_is_another_with_each_of_program_user_group_cgroup_and_tracer() {
        let before = snapshot();
        let changes: [fn(&mut Snapshot); 9] = [
            |now| now.process.pid += 1,
            |now| now.process.start_time += 1,
            |now| now.executable.inode += 1,
            |now| now.executable.ctime_ns += 1,
            |now| now.executable_mount += 1,
            |now| now.cgroup.push('/'),
            |now| now.uid += 1,
            |now| now.gid += 1,
            |now| now.tracer += 1,
        ];
        for change in changes {
            let mut now = before.clone();
            change(&mut now);
            assert!(!before.is_of_same_caller(&now), "{now:?}");
        }
        let more = Snapshot { user_namespace: 8, filters: Some(2), ..before.clone() };
        assert!(before.is_of_same_caller(&more), "these are for the verdict");
    }

    /// Processes as a kernel keeps them, which gives a free number again at once.
    struct Kernel(Vec<Process>);

    #[derive(Clone, Copy)]
    struct Process {
        pid: u32,
        parent: usize,
        adopts: bool,
        lives: bool,
    }

    impl Kernel {
        fn new() -> Self {
            Self(vec![Process { pid: 1, parent: 0, adopts: true, lives: true }])
        }

        fn fork(&mut self, parent: usize) {
            let taken = |pid| self.0.iter().any(|one| one.lives && one.pid == pid);
            let pid = (2..).find(|pid| !taken(*pid)).expect("a free number");
            self.0.push(Process { pid, parent, adopts: false, lives: true });
        }

        fn end(&mut self, one: usize) {
            if one == 0 {
                return;
            }
            self.0[one].lives = false;
            let mut heir = self.0[one].parent;
            while !self.0[heir].adopts {
                heir = self.0[heir].parent;
            }
            for child in self.0.iter_mut().filter(|child| child.parent == one) {
                child.parent = heir;
            }
        }

        fn living(&self, choice: usize) -> usize {
            let living: Vec<_> = (0..self.0.len()).filter(|one| self.0[*one].lives).collect();
            living[choice % living.len()]
        }

        fn instance(&self, one: usize) -> ProcessInstance {
            ProcessInstance { pid: self.0[one].pid, start_time: one as u64 }
        }

        fn chain(&self, one: usize, stop_at: usize) -> Vec<Ancestor> {
            let mut chain = Vec::new();
            let mut at = one;
            loop {
                chain.push(Ancestor { process: self.instance(at), session: 1 });
                if at == stop_at || at == 0 {
                    return chain;
                }
                at = self.0[at].parent;
            }
        }
    }

    proptest! {
        #[test]
        fn a_chain_that_stands_is_what_a_walk_finds_however_processes_end_and_numbers_come_back(
            before in prop::collection::vec((0_u8..4, any::<usize>()), 1..40),
            after in prop::collection::vec((0_u8..4, any::<usize>()), 0..40),
            (choice, up) in (any::<usize>(), 0_usize..3),
        ) {
            let mut kernel = Kernel::new();
            let step = |kernel: &mut Kernel, (what, choice): (u8, usize)| {
                let one = kernel.living(choice);
                match what {
                    0 | 1 => kernel.fork(one),
                    2 => kernel.end(one),
                    _ => kernel.0[one].adopts = true,
                }
            };
            before.into_iter().for_each(|event| step(&mut kernel, event));
            let caller = kernel.living(choice);
            let stop_at = (0..up).fold(caller, |at, _| kernel.0[at].parent);
            let (chain, init) = (kernel.chain(caller, stop_at), kernel.instance(stop_at));
            for event in after {
                step(&mut kernel, event);
                if !kernel.0[caller].lives {
                    break;
                }
                let parent = kernel.0[kernel.0[caller].parent].pid;
                if chain_stands(&chain, &init, parent) {
                    prop_assert_eq!(&kernel.chain(caller, stop_at), &chain);
                }
            }
        }
    }
}
