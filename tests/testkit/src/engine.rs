//! A real container engine, if the tests are given one.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::caller::Caller;
use crate::wait::wait_for;

/// The variable that names it: `unix:///path`.
pub const ENGINE_VARIABLE: &str = "EDGEKEEP_TEST_ENGINE";

/// The engine at [`ENGINE_VARIABLE`].
#[derive(Debug, Clone)]
pub struct Engine {
    uri: String,
    /// Number of the test of this process that it is for.
    number: u32,
}

/// An image made for one test; removed with it.
#[derive(Debug)]
pub struct Image {
    engine: Engine,
    name: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Engine {
    /// The engine; without one it is said that the test is skipped.
    #[must_use]
    pub fn or_skip() -> Option<Self> {
        let engine = std::env::var(ENGINE_VARIABLE).ok().map(|uri| Self::at(&uri));
        if engine.is_none() {
            eprintln!("skipped: {ENGINE_VARIABLE} does not name a container engine");
        }
        engine
    }

    /// The engine at this URI.
    pub(crate) fn at(uri: &str) -> Self {
        Self { uri: uri.to_owned(), number: COUNT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Its socket as a URI.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Name of a network for this test alone: two devices that make one network at the
    /// same time make two of one name.
    #[must_use]
    pub fn network(&self) -> String {
        format!("edgekeep-test-{}-{}", std::process::id(), self.number)
    }

    /// Its socket as a path.
    ///
    /// # Panics
    /// The URI has another scheme.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.uri.strip_prefix("unix://").expect("the engine's URI is unix:///path").into()
    }

    /// Runs the engine's own command line.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn docker(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("docker");
        command.args(["-H", &self.uri]).args(arguments);
        command.output().expect("the docker command line is installed: apt-get install docker.io")
    }

    /// Runs the engine's own command line and gives what it says.
    ///
    /// # Panics
    /// It fails.
    #[must_use]
    pub fn says(&self, arguments: &[&str]) -> String {
        let output = self.docker(arguments);
        assert!(
            output.status.success(),
            "docker {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A process in a container with this program as its first argument, by its pid on
    /// the host. Engines differ in which pids their own lists show.
    ///
    /// # Panics
    /// There is no such container.
    #[must_use]
    pub fn process_in(&self, container: &str, program: &str) -> Option<u32> {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let wanted = namespace(&self.says(&["inspect", "-f", "{{.State.Pid}}", container]))?;
        let mut pids = std::fs::read_dir("/proc")
            .ok()?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        let runs = |pid: &str| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|byte| *byte == 0).next() == Some(program.as_bytes())
        };
        pids.find(|pid| runs(pid) && namespace(pid).as_ref() == Some(&wanted))?.parse().ok()
    }

    /// Runs a script by the engine's `exec` in a caller's container, and returns the
    /// output of the intruder that the script starts with `--json`. The script sends this
    /// output to `/calls/said`, for Podman at times loses the output of an exec, or tells
    /// another exit code.
    ///
    /// # Panics
    /// It does not come to its end.
    #[must_use]
    pub fn brought_in(&self, container: &str, caller: &Caller, script: &str) -> String {
        let file = caller.folder().join("said");
        let _ = std::fs::remove_file(&file);
        let _ = self.docker(&["exec", container, "/bin/sh", "-c", script]);
        wait_for("the outcome of all tries", || {
            std::fs::read_to_string(&file).ok().filter(|said| said.contains("{\"outcome\":"))
        })
    }

    /// A name that no other test uses at this engine.
    #[must_use]
    pub fn name(&self, name: &str) -> String {
        format!("ek{}-{}-{name}", std::process::id(), self.number)
    }

    /// An image with these programs and their libraries in `/bin`; the first is what it
    /// runs. `mark` makes its content its own.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn import(&self, programs: &[PathBuf], mark: &str) -> Image {
        let image = self.new_image();
        self.import_as(programs, mark, &image.name);
        image
    }

    /// An image with these files of the host, and the libraries that they and `entry`
    /// need, all where the host has them. Symbolic links become what they point to. It
    /// runs `entry`.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn import_in_place(&self, files: &[PathBuf], entry: &Path) -> Image {
        let image = self.new_image();
        let shared =
            files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "so"));
        let libraries = libraries(shared.map(PathBuf::as_path).chain([entry]));
        let mut list = Vec::new();
        for file in files
            .iter()
            .map(PathBuf::as_path)
            .chain([entry])
            .chain(libraries.iter().map(PathBuf::as_path))
        {
            list.extend_from_slice(
                file.strip_prefix("/").expect("absolute").as_os_str().as_bytes(),
            );
            list.push(0);
        }
        let names = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        std::fs::write(names.path(), list).expect("own file");
        let mut tar = Command::new("tar");
        tar.args(["--dereference", "--directory=/", "--null", "--files-from"]).arg(names.path());
        self.import_packed(tar, entry, &image.name);
        image
    }

    /// As [`Self::import`], under a name that may be another image's by now.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn import_as(&self, programs: &[PathBuf], mark: &str, name: &str) {
        let first = programs.first().and_then(|program| program.file_name()).expect("a program");
        let archive = packed(programs, mark);
        self.import_archive(archive.path(), &Path::new("/bin").join(first), name);
    }

    /// An image of this test's own that is still to be made.
    fn new_image(&self) -> Image {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Image {
            engine: self.clone(),
            name: format!("edgekeep-suite-{}:{number}", std::process::id()),
        }
    }

    /// Makes an image of what `tar` is told to pack.
    fn import_packed(&self, tar: Command, entry: &Path, name: &str) {
        let archive = archived(tar);
        self.import_archive(archive.path(), entry, name);
    }

    fn import_archive(&self, archive: &Path, entry: &Path, name: &str) {
        let entry = format!("ENTRYPOINT [{:?}]", entry.display().to_string());
        let _ = self.says(&["import", "-c", &entry, &archive.display().to_string(), name]);
    }
}

/// A layer with these programs and their libraries in `/bin`.
pub(crate) fn packed(programs: &[PathBuf], mark: &str) -> tempfile::NamedTempFile {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let root = folder.path().join("root");
    for place in ["bin", "tmp", "var/run"] {
        std::fs::create_dir_all(root.join(place)).expect("own folder");
    }
    std::fs::write(root.join("mark"), mark).expect("own folder");
    for program in programs {
        copy(program, &root.join("bin").join(program.file_name().expect("a program has a name")));
        for library in libraries([program]) {
            copy(&library, &root.join(library.strip_prefix("/").expect("absolute")));
        }
    }
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&root).arg(".");
    archived(tar)
}

fn archived(mut tar: Command) -> tempfile::NamedTempFile {
    let archive = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    tar.arg("--create").arg("--file").arg(archive.path());
    assert!(tar.status().expect("tar is installed").success(), "the image cannot be packed");
    archive
}

impl Image {
    /// Its name, with the tag.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = self.engine.docker(&["rmi", "-f", &self.name]);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().expect("in a folder")).expect("own folder");
    std::fs::copy(from, to)
        .unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
}

/// The loader and the libraries that programs, and libraries themselves, are linked to.
fn libraries(linked: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Vec<PathBuf> {
    let output = Command::new("ldd").args(linked).output().expect("ldd is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Of several files each has its own name and a colon before its list.
    let listed =
        text.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    // Most need the same ones.
    listed.map(PathBuf::from).collect::<BTreeSet<_>>().into_iter().collect()
}
