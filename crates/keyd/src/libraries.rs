//! Known needs of tokens' libraries: the files that a library needs, by the name of the
//! library. The libraries run in this process and inside its sandbox. A file that is not
//! known here has to be named by `sandbox_paths`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use edgekeep_core::hardware::KnownLibrary;
use edgekeep_tpm::Tcti;

/// The surroundings of the process, as functions, so that deciding is apart from looking.
pub(crate) struct Surroundings<'a> {
    /// A variable of the environment.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The content of a configuration file.
    pub(crate) text: &'a dyn Fn(&Path) -> Option<String>,
    /// Returns true if there is such a file or folder.
    pub(crate) exists: &'a dyn Fn(&Path) -> bool,
    /// Returns the place that a path leads to, links followed.
    pub(crate) real: &'a dyn Fn(&Path) -> PathBuf,
}

/// The needs of a library.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Configuration.
    pub(crate) read: Vec<PathBuf>,
    /// Places of the tokens.
    pub(crate) write: Vec<PathBuf>,
    /// The address of the TPM behind the library, if there is one.
    pub(crate) tpm: Option<Tcti>,
}

/// Paths where SoftHSM looks for its configuration and its tokens unless told otherwise.
const SOFTHSM_CONFIG: &str = "/etc/softhsm";
const SOFTHSM_TOKENS: &str = "/var/lib/softhsm";

/// Returns the known needs of the library at `path`.
pub(crate) fn needs(path: &Path, around: &Surroundings<'_>) -> Needs {
    let mut needs = match KnownLibrary::of(path) {
        Some(KnownLibrary::SoftHsm) => softhsm(around),
        Some(KnownLibrary::Tpm2Pkcs11) => tpm2_pkcs11(around),
        Some(KnownLibrary::OpenSc) => Needs {
            read: vec!["/etc/opensc".into(), "/usr/share/opensc".into()],
            ..Needs::default()
        },
        None => Needs::default(),
    };
    // It, and those that come with it.
    let real = (around.real)(path);
    needs.read.extend(path.parent().map(Path::to_owned));
    needs
        .read
        .extend(real.parent().filter(|folder| path.parent() != Some(folder)).map(Path::to_owned));
    needs
}

fn path_in(around: &Surroundings<'_>, variable: &str) -> Option<PathBuf> {
    (around.variable)(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn softhsm(around: &Surroundings<'_>) -> Needs {
    let home = path_in(around, "HOME").map(|home| home.join(".config/softhsm2/softhsm2.conf"));
    let named =
        path_in(around, "SOFTHSM2_CONF").or_else(|| home.filter(|file| (around.exists)(file)));
    let file = named.clone().unwrap_or_else(|| Path::new(SOFTHSM_CONFIG).join("softhsm2.conf"));
    let text = (around.text)(&file).unwrap_or_default();
    let value = |line: &str| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "directories.tokendir").then(|| PathBuf::from(value.trim()))
    };
    let tokens = text.lines().rev().find_map(value).filter(|path| path.is_absolute());
    Needs {
        read: vec![named.unwrap_or_else(|| SOFTHSM_CONFIG.into())],
        write: vec![tokens.unwrap_or_else(|| SOFTHSM_TOKENS.into())],
        tpm: None,
    }
}

fn tpm2_pkcs11(around: &Surroundings<'_>) -> Needs {
    // The order in which the library looks.
    let store = path_in(around, "TPM2_PKCS11_STORE")
        .or_else(|| {
            Some("/etc/tpm2_pkcs11".into()).filter(|store: &PathBuf| (around.exists)(store))
        })
        .or_else(|| path_in(around, "HOME").map(|home| home.join(".tpm2_pkcs11")));
    let tcti =
        (around.variable)("TPM2_PKCS11_TCTI").or_else(|| (around.variable)("TPM2TOOLS_TCTI"));
    let tcti = tcti.and_then(|tcti| tcti.into_string().ok()).unwrap_or_else(|| "device".to_owned());
    // `mssim` speaks of host and port as `swtpm` does.
    let tcti = tcti.strip_prefix("mssim").map(|rest| format!("swtpm{rest}")).unwrap_or(tcti);
    Needs {
        read: vec!["/etc/tpm2-tss".into()],
        write: store.into_iter().collect(),
        tpm: tcti.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(library: &str, variables: &[(&str, &str)], text: &str) -> Needs {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        };
        let text = |_: &Path| Some(text.to_owned());
        let around = Surroundings {
            variable: &variable,
            text: &text,
            exists: &|_| false,
            real: &Path::to_owned,
        };
        needs(Path::new(library), &around)
    }

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn softhsm_has_its_configuration_and_the_token_folder_named_there() {
        let text =
            "# directories.tokendir = /no\ndirectories.tokendir = /srv/tokens/\nlog.level = INFO\n";
        let found =
            known("/usr/lib/softhsm/libsofthsm2.so", &[("SOFTHSM2_CONF", "/srv/s.conf")], text);
        assert_eq!(found.read, paths(&["/srv/s.conf", "/usr/lib/softhsm"]));
        assert_eq!(found.write, paths(&["/srv/tokens/"]));
        let found = known("/usr/lib/softhsm/libsofthsm2.so", &[], "");
        assert_eq!(found.read, paths(&["/etc/softhsm", "/usr/lib/softhsm"]));
        assert_eq!(found.write, paths(&["/var/lib/softhsm"]));
        let relative =
            known("/l/libsofthsm2.so", &[("SOFTHSM2_CONF", "/s")], "directories.tokendir = ../x");
        assert_eq!(relative.write, paths(&["/var/lib/softhsm"]));
    }

    #[test]
    fn tpm2_pkcs11_has_its_store_and_the_tpm_that_the_environment_names() {
        let library = "/usr/lib/x86_64-linux-gnu/libtpm2_pkcs11.so.1";
        let variables = [
            ("TPM2_PKCS11_STORE", "/srv/store"),
            ("TPM2_PKCS11_TCTI", "mssim:host=127.0.0.1,port=99"),
        ];
        let found = known(library, &variables, "");
        assert_eq!(found.write, paths(&["/srv/store"]));
        assert_eq!(found.tpm, Some(Tcti::SwtpmTcp { host: "127.0.0.1".into(), port: 99 }));
        let found = known(library, &[("HOME", "/home/k")], "");
        assert_eq!(found.write, paths(&["/home/k/.tpm2_pkcs11"]));
        assert_eq!(found.tpm, Some(Tcti::Device("/dev/tpmrm0".into())));
    }

    #[test]
    fn nothing_is_guessed_of_other_libraries() {
        let found = known("/opt/vendor/lib.so", &[("HOME", "/home/k")], "x");
        assert_eq!(found, Needs { read: paths(&["/opt/vendor"]), ..Needs::default() });
    }
}
