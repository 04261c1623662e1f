//! A real container engine, if the tests are given one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// The variable that names it: `unix:///path`.
pub const ENGINE_VARIABLE: &str = "EDGEKEEP_TEST_ENGINE";

/// The engine at [`ENGINE_VARIABLE`].
#[derive(Debug, Clone)]
pub struct Engine {
    uri: String,
    /// Which test of this process it is for.
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
        let engine =
            std::env::var(ENGINE_VARIABLE).ok().map(|uri| Self { uri, number: COUNT.fetch_add(1, Ordering::Relaxed) });
        if engine.is_none() {
            eprintln!("skipped: {ENGINE_VARIABLE} does not name a container engine");
        }
        engine
    }

    /// Its socket as a URI.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Name of a network for this test alone: two devices that make one network at the same time make two of one name.
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
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A name that no other test uses at this engine.
    #[must_use]
    pub fn name(&self, name: &str) -> String {
        format!("ek{}-{}-{name}", std::process::id(), self.number)
    }

    /// An image with these programs and their libraries in `/bin`; the first is what it runs. `mark` makes its content
    /// its own.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn import(&self, programs: &[PathBuf], mark: &str) -> Image {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let image = Image { engine: self.clone(), name: format!("edgekeep-suite-{}:{number}", std::process::id()) };
        self.import_as(programs, mark, &image.name);
        image
    }

    /// As [`Self::import`], under a name that may be another image's by now.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn import_as(&self, programs: &[PathBuf], mark: &str, name: &str) {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let root = folder.path().join("root");
        for place in ["bin", "tmp", "var/run"] {
            std::fs::create_dir_all(root.join(place)).expect("own folder");
        }
        std::fs::write(root.join("mark"), mark).expect("own folder");
        for program in programs {
            copy(program, &root.join("bin").join(program.file_name().expect("a program has a name")));
            for library in libraries(program) {
                copy(&library, &root.join(library.strip_prefix("/").expect("absolute")));
            }
        }
        let archive = folder.path().join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&archive).arg("-C").arg(&root).arg(".");
        assert!(tar.status().expect("tar is installed").success(), "the image cannot be packed");
        let first = programs.first().and_then(|program| program.file_name()).expect("a program").to_string_lossy();
        let entry = format!("ENTRYPOINT [\"/bin/{first}\"]");
        let _ = self.says(&["import", "-c", &entry, &archive.display().to_string(), name]);
    }
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
    std::fs::copy(from, to).unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
}

/// The loader and the libraries that a program is linked to.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}
