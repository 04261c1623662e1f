//! The clock of a device, moved: by libfaketime, a program of others, under all three
//! daemons.
//!
//! Every daemon gets its wall clock from a file that the test writes. The monotonic clock
//! stays as it is, which is what a real step looks like. No timer of the kernel tells of
//! such a step, so what is shown here is that a device comes right without being told.
//! The sandboxes of the daemons are off: a preloaded library reads its file at
//! every look at the clock, which these daemons have given up the right to.
//!
//! `EDGEKEEP_CLOCK_STEPS` is the number of steps, `EDGEKEEP_CLOCK_SEED` where they begin.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use edgekeep_core::layout::Daemon;
use edgekeep_sim::Faults;
use edgekeep_testkit::{Builder, Caller, Device, base64, http, wait_for};
use serde_json::{Value, json};
use x509_parser::pem::Pem;

use crate::wait_for_edge_ca;

const V: &str = "api-version=2020-07-07";
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;
/// The beginning of 2099. Certificates that begin then still end in a year with four
/// digits.
const FAR: i64 = 4_070_908_800;
/// Longest time to a right answer. On a machine that is busy with other things it is
/// longer: by as much as the slowest call before the first step says.
const LIMIT: Duration = Duration::from_secs(2);
const TIMES_SLOWEST: u32 = 10;
/// Steps that a run of all tests has time for.
const STEPS: u64 = 80;

/// The wall clock of the daemons.
pub(crate) struct Clock {
    folder: tempfile::TempDir,
    library: PathBuf,
}

impl Clock {
    /// A clock that is right. `None`, and a line that says so, where libfaketime is
    /// missing.
    pub(crate) fn new() -> Option<Self> {
        let places = [
            format!("/usr/lib/{}-linux-gnu/faketime", std::env::consts::ARCH),
            "/usr/lib64/faketime".into(),
        ];
        let library = places
            .iter()
            .map(|place| Path::new(place).join("libfaketimeMT.so.1"))
            .find(|path| path.exists());
        let Some(library) = library else {
            eprintln!("skipped: needs libfaketime: apt-get install faketime");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let clock = Self { folder, library };
        clock.set_ahead(0);
        Some(clock)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    /// Returns the variables by which a program has this clock.
    pub(crate) fn variables(&self) -> [(&'static str, String); 6] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }

    pub(crate) fn device(&self) -> Builder {
        self.variables()
            .iter()
            .fold(Device::builder(), |device, (name, value)| device.variable(name, value))
            .tables("[aziot_keys]\nsandbox = false\n[identityd]\nsandbox = false\n[moduled]\nsandbox = false")
    }

    /// Puts the clock so many seconds ahead of the true time.
    pub(crate) fn set_ahead(&self, seconds: i64) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    pub(crate) fn set(&self, to: i64) {
        self.set_ahead(to - true_time());
    }

    /// Returns how many seconds the clock is ahead of the true time.
    pub(crate) fn ahead(&self) -> i64 {
        std::fs::read_to_string(self.file()).unwrap().trim().parse().unwrap()
    }

    pub(crate) fn now(&self) -> i64 {
        true_time() + self.ahead()
    }
}

fn true_time() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// Numbers that look random and are the same for the same seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn within(&mut self, from: i64, to: i64) -> i64 {
        let width = u64::try_from(to - from).unwrap();
        from + i64::try_from((self.next() >> 11) % width).unwrap()
    }

    fn signed(&mut self, from: i64, to: i64) -> i64 {
        let size = self.within(from, to);
        if self.next() >> 63 == 0 { size } else { -size }
    }
}

/// A moment to step to. Certificates have edges, and these are stepped on.
fn moment(random: &mut Random, now: i64, ca: (i64, i64)) -> (i64, &'static str) {
    let (begin, end) = ca;
    let (to, kind) = match random.next() >> 11 {
        at if at % 10 == 0 => (now + random.signed(MINUTE, 2 * HOUR), "minutes"),
        at if at % 10 == 1 => (now + random.signed(HOUR, 49 * HOUR), "hours"),
        at if at % 10 == 2 => (now + random.signed(DAY, 40 * DAY), "days"),
        at if at % 10 == 3 => (now + random.signed(40 * DAY, 3 * YEAR), "months"),
        at if at % 10 == 4 => (now + random.signed(YEAR, 30 * YEAR), "years"),
        at if at % 10 == 5 => (random.within(MINUTE, DAY), "boot in 1970"),
        at if at % 10 == 6 => (true_time(), "the true time"),
        at if at % 10 == 7 => {
            ([begin - 1, begin, begin + 1][usize::try_from(at % 3).unwrap()], "begin of the CA")
        }
        at if at % 10 == 8 => {
            ([end - 1, end, end + 1][usize::try_from(at % 3).unwrap()], "end of the CA")
        }
        _ => (begin + (end - begin) * 4 / 5 + random.within(0, 100), "renewal of the CA"),
    };
    (to.clamp(MINUTE, FAR), kind)
}

fn run_openssl(arguments: &[&str]) -> (bool, String) {
    let output =
        Command::new("openssl").args(arguments).output().expect("openssl: apt-get install openssl");
    (
        output.status.success(),
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
    )
}

/// A module, and what it got.
pub(crate) struct Module<'a> {
    caller: &'a Caller,
    folder: PathBuf,
    digest: Value,
    ciphertext: Value,
    slowest: Duration,
    limit: Duration,
}

/// A certificate as a module gets it.
pub(crate) struct Served {
    chain: String,
    bundle: String,
    /// Begin and end of the one that signed.
    pub(crate) ca: (i64, i64),
}

impl<'a> Module<'a> {
    pub(crate) fn new(device: &Device, caller: &'a Caller) -> Self {
        let folder = device.root().path().join("check");
        std::fs::create_dir(&folder).unwrap();
        let digest = caller.sign().expect(200)["digest"].clone();
        let body = json!({ "plaintext": base64(b"kept"), "initializationVector": base64(b"iv") });
        let ciphertext =
            caller.call("POST", &format!("/modules/{{m}}/genid/{{g}}/encrypt?{V}"), Some(body));
        let ciphertext = ciphertext.expect(200)["ciphertext"].clone();
        let mut module = Self {
            caller,
            folder,
            digest,
            ciphertext,
            slowest: Duration::ZERO,
            limit: Duration::MAX,
        };
        for _ in 0..3 {
            let _ = module.lives();
        }
        module.limit = LIMIT.max(module.slowest * TIMES_SLOWEST);
        module.slowest = Duration::ZERO;
        module
    }

    /// One call, whose first answer must be right, in time.
    fn asks(
        &mut self,
        what: &str,
        ask: impl FnOnce(&Caller) -> http::Answer,
        status: u16,
    ) -> Value {
        let begin = Instant::now();
        let answer = ask(self.caller);
        let took = begin.elapsed();
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        self.slowest = self.slowest.max(took);
        assert!(took < self.limit, "{what} took {took:?}");
        answer.json()
    }

    /// Everything that a module lives on, right after a step.
    pub(crate) fn lives(&mut self) -> Served {
        let signed = self.asks("sign", Caller::sign, 200);
        assert_eq!(signed["digest"], self.digest, "the same key");
        let body = json!({ "ciphertext": self.ciphertext, "initializationVector": base64(b"iv") });
        let decrypt = format!("/modules/{{m}}/genid/{{g}}/decrypt?{V}");
        let decrypted =
            self.asks("decrypt", |caller| caller.call("POST", &decrypt, Some(body)), 200);
        assert_eq!(decrypted["plaintext"], base64(b"kept"));
        let server = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{V}");
        let body = json!({ "commonName": "press-04.plant7", "expiration": "2100-01-01T00:00:00Z" });
        let issued =
            self.asks("certificate/server", |caller| caller.call("POST", &server, Some(body)), 201);
        let bundle = self.asks(
            "trust-bundle",
            |caller| caller.call("GET", &format!("/trust-bundle?{V}"), None),
            200,
        );
        let text = |value: &Value| value["certificate"].as_str().unwrap().to_owned();
        let (chain, bundle) = (text(&issued), text(&bundle));
        let parsed: Vec<Pem> =
            Pem::iter_from_buffer(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
        let ca = parsed[1].parse_x509().unwrap().validity().clone();
        Served { chain, bundle, ca: (ca.not_before.timestamp(), ca.not_after.timestamp()) }
    }

    /// Asks openssl whether the certificate is valid at this time.
    pub(crate) fn verified(&self, served: &Served, at: i64) -> (bool, String) {
        let file = |name: &str, text: &str| {
            let path = self.folder.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (bundle, chain) =
            (file("bundle.pem", &served.bundle), file("chain.pem", &served.chain));
        let at = at.to_string();
        let verify = ["verify", "-x509_strict", "-purpose", "sslserver", "-attime", &at];
        run_openssl(&[&verify[..], &["-CAfile", &bundle, "-untrusted", &chain, &chain]].concat())
    }
}

#[test]
fn after_any_step_of_the_clock_every_call_of_a_module_is_answered_rightly_at_once() {
    let Some(clock) = Clock::new() else { return };
    let number =
        |name: &str, otherwise| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let (steps, seed) =
        (number("EDGEKEEP_CLOCK_STEPS", STEPS), number("EDGEKEEP_CLOCK_SEED", 20_261_129));
    let mut random = Random(seed | 1);
    let device = clock.device().start();
    let (m1, m2) = (device.add_caller("m1"), device.add_caller("m2"));
    wait_for_edge_ca(&device);
    let pids = Daemon::ALL.map(|daemon| device.pid(daemon));
    let mut module = Module::new(&device, &m1);
    let mut served = module.lives();
    assert!(module.verified(&served, clock.now()).0);
    let quiet = module.slowest;
    for step in 0..steps {
        let before = clock.now();
        let (to, kind) = moment(&mut random, before, served.ca);
        let said = format!("step {step} of seed {seed}: {} s ({kind}), to {to}", to - before);
        if random.next() >> 62 == 0 {
            asks_while_moving(&clock, &mut random, &m2, served.ca, (&said, module.limit));
        }
        clock.set(to);
        served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| module.lives()))
            .unwrap_or_else(|panic| {
                eprintln!("{said}");
                std::panic::resume_unwind(panic)
            });
        let (good, why) = module.verified(&served, clock.now());
        assert!(good, "{said}: {why}");
        // The same certificate does not do for another time: openssl does judge it by
        // this.
        for other in [served.ca.0 - HOUR, served.ca.1 + HOUR] {
            assert!(
                other < 0 || !module.verified(&served, other).0,
                "{said}: also valid at {other}"
            );
        }
    }
    assert_eq!(Daemon::ALL.map(|daemon| device.pid(daemon)), pids, "nothing was started anew");
    let made = device.log(Daemon::Moduled).matches("Edge CA certificate issued").count();
    let slowest = module.slowest;
    eprintln!(
        "{steps} steps of seed {seed}: slowest answer {slowest:?}, quiet {quiet:?}, {made} Edge CA certificates"
    );
    clock.set_ahead(0);
    served = module.lives();
    assert!(module.verified(&served, true_time()).0);
}

/// Moves the clock several times while a module asks, so that steps fall into the making
/// of its certificate and of the Edge CA's. Nobody can say what is valid at which time
/// then. But each call is answered with success.
fn asks_while_moving(
    clock: &Clock,
    random: &mut Random,
    caller: &Caller,
    ca: (i64, i64),
    told: (&str, Duration),
) {
    let (said, limit) = told;
    let moving = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let server = format!("/modules/{{m}}/genid/{{g}}/certificate/server?{V}");
            let mut answers = Vec::new();
            while moving.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let issued =
                    caller.call("POST", &server, Some(json!({ "commonName": "press-04.plant7" })));
                answers.push((issued.status, issued.text(), begin.elapsed()));
                answers.push((caller.sign().status + 1, String::new(), Duration::ZERO));
            }
            answers
        });
        for _ in 0..3 {
            let (to, _) = moment(random, clock.now(), ca);
            clock.set(to);
            // As long as an issuance takes, so that the next step falls into one.
            std::thread::park_timeout(Duration::from_millis(
                u64::try_from(random.within(1, 60)).unwrap(),
            ));
        }
        moving.store(false, Ordering::Relaxed);
        for (status, text, took) in asking.join().unwrap() {
            assert_eq!(status, 201, "while moving, {said}: {text}");
            assert!(took < limit, "while moving, {said}: {took:?}");
        }
    });
}

#[test]
fn a_device_that_boots_in_1970_is_provisioned_when_its_clock_is_set() {
    let Some(clock) = Clock::new() else { return };
    clock.set(5 * MINUTE);
    // Three polls, and the clock moves between them as well.
    let faults = Faults { polls_assigning: 3, poll_after_sec: Some(1), ..Faults::default() };
    let device = clock.device().faults(faults).start();
    wait_for("the refusal of the cloud's certificate", || {
        device.log(Daemon::Identityd).contains("could not be provisioned").then_some(())
    });
    wait_for("the problem of the clock", || clock_problem(&device));
    // From here on the clock is right: nobody asks the device to try again.
    clock.set_ahead(0);
    device.wait_for_cloud(|state| state.calls.dps_register > 0);
    for ahead in [-HOUR, HOUR, 0] {
        clock.set_ahead(ahead);
        std::thread::park_timeout(Duration::from_millis(700));
    }
    wait_for("an identity", || {
        device.log(Daemon::Identityd).contains("the device has an identity").then_some(())
    });
    let caller = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let mut module = Module::new(&device, &caller);
    let served = module.lives();
    assert!(module.verified(&served, clock.now()).0);
    wait_for("the end of that problem", || clock_problem(&device).is_none().then_some(()));
    // What the services told is remembered: another time is told from the right one, also
    // if a clock could show that.
    clock.set_ahead(3 * DAY);
    let words = wait_for("the problem of the clock", || clock_problem(&device));
    assert_eq!(words, "it is 3 days ahead of the clock of a service in the cloud");
}

/// Returns identityd's words about the clock, if there is something wrong with it.
fn clock_problem(device: &Device) -> Option<String> {
    let socket = device.root().path().join("run/edgekeep/identityd.metrics.sock");
    let problems = http::call(&socket, "GET", "/problems", None).unwrap().expect(200);
    let problem = problems["problems"]
        .as_array()?
        .iter()
        .find(|problem| problem["code"] == "clock-implausible")?;
    Some(problem["detail"].as_str().unwrap().to_owned())
}

#[test]
fn state_that_was_written_by_a_clock_that_was_ahead_stops_no_later_start() {
    let Some(clock) = Clock::new() else { return };
    clock.set_ahead(0);
    let mut device = clock.device().start();
    let caller = device.add_caller("m1");
    wait_for_edge_ca(&device);
    let digest = caller.sign().expect(200)["digest"].clone();
    for ahead in [20 * YEAR, 0, -20 * YEAR, 400 * DAY, -true_time() + MINUTE, 0] {
        clock.set_ahead(ahead);
        for daemon in [Daemon::Moduled, Daemon::Identityd, Daemon::Keyd] {
            let status = device.stop(daemon);
            assert!(status.success(), "{daemon:?} ended with {status}, {ahead} s ahead");
        }
        device.start_daemons();
        wait_for("the module's signature", || {
            caller.try_signed().filter(|answer| answer.json()["digest"] == digest).map(drop)
        });
        let verified = device.edgekeep(&["audit", "verify"]);
        assert!(
            verified.status.success(),
            "{ahead}: {}",
            String::from_utf8_lossy(&verified.stdout)
        );
    }
}
