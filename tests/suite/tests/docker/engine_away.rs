//! The container engine goes away and comes back, as it does when it is restarted: between the daemon and the engine
//! stands a door that the test opens and closes.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use edgekeep_core::attestation::DenyReason;
use edgekeep_core::layout::Daemon;
use edgekeep_testkit::{Device, Engine, VERSION, wait_for};

use crate::image;

/// A socket in front of the engine's.
struct Door {
    path: PathBuf,
    engine: PathBuf,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Door {
    fn new(path: PathBuf, engine: PathBuf) -> Self {
        let door = Self { path, engine, open: Arc::default() };
        door.open();
        door
    }

    fn open(&self) {
        let listener = UnixListener::bind(&self.path).unwrap();
        let (engine, open) = (self.engine.clone(), Arc::clone(&self.open));
        let own = std::fs::metadata(&self.path).unwrap();
        let path = self.path.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // Closed meanwhile: the last connection is the one that woke this thread.
                if !is_same(&path, &own) {
                    return;
                }
                let Ok(server) = UnixStream::connect(&engine) else { continue };
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server.try_clone().unwrap(), client.try_clone().unwrap()),
                ] {
                    std::thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Write);
                    });
                }
                open.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
            }
        });
    }

    /// Ends all connections and lets no new one in.
    fn close(&self) {
        let waker = UnixStream::connect(&self.path);
        std::fs::remove_file(&self.path).unwrap();
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        drop(waker);
    }
}

fn is_same(path: &Path, own: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).is_ok_and(|now| now.ino() == own.ino())
}

#[test]
fn without_the_engine_containers_are_refused_and_host_modules_are_served() {
    let Some(engine) = Engine::or_skip() else { return };
    let (image, name) = (image(&engine), engine.name("m1"));
    let folder = tempfile::tempdir().unwrap();
    let door = Door::new(folder.path().join("engine.sock"), engine.socket());
    let mut device = Device::builder().engine(&engine, &format!("unix://{}", door.path.display())).start();
    let (m1, spec) = device.container_caller(&name, image.name());
    device.create_and_start(spec);
    let digest = m1.sign().expect(200);
    let host = device.add_caller("host");

    door.close();
    let problem = wait_for("the problem to be told", || {
        let status = device.status();
        let away = status.engine.as_ref().is_some_and(|engine| !engine.reachable);
        away.then(|| status.problems.join("; "))
    });
    assert!(problem.contains("container engine"), "{problem}");
    // Not waved through: it may have been replaced meanwhile.
    device.assert_refused(&m1.sign(), &name, DenyReason::FactsUnknown);
    let _ = host.sign().expect(200);
    let _ = device.agent().sign().expect(200);
    // A list without the containers would say that they are gone.
    assert_eq!(device.ask("GET", &format!("/modules?{VERSION}"), None).status, 500);
    let stopped = device.agent().manage("POST", &format!("/modules/{name}/stop?{VERSION}"), None);
    assert!(stopped.status >= 500, "{}", stopped.text());

    // A daemon that starts meanwhile knows nothing either.
    device.kill(Daemon::Moduled);
    device.start(Daemon::Moduled);
    device.assert_refused(&m1.sign(), &name, DenyReason::FactsUnknown);
    let _ = host.sign().expect(200);

    door.open();
    wait_for("the container to be served again", || (m1.sign().status == 200).then_some(()));
    assert_eq!(m1.sign().expect(200), digest);
    let _ = device.ask("GET", &format!("/modules?{VERSION}"), None).expect(200);
}
