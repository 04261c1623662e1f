use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::*;

/// A folder with one of each thing that may stand at a path.
struct Zoo {
    folder: tempfile::TempDir,
    _listener: UnixListener,
}

impl Zoo {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .expect("fifo");
        fs::create_dir(at("folder")).expect("folder");
        let listener = UnixListener::bind(at("socket")).expect("socket");
        File::create(at("sparse")).and_then(|file| file.set_len(2 << 30)).expect("sparse");
        fs::write(at("file"), "content").expect("file");
        fs::set_permissions(at("file"), fs::Permissions::from_mode(0o600)).expect("mode");
        for name in ["fifo", "folder", "socket", "sparse", "file", "nothing"] {
            symlink(at(name), at(&format!("link-to-{name}"))).expect("link");
        }
        symlink("/dev/zero", at("link-to-device")).expect("link");
        Self { folder, _listener: listener }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn set_mode(&self, mode: u32) {
        fs::set_permissions(self.at("file"), fs::Permissions::from_mode(mode)).expect("mode");
    }
}

fn fault(path: &Path, rules: Rules) -> FileFault {
    let error = read(path, rules).expect_err("refused");
    FileFault::of(&error).unwrap_or_else(|| panic!("{}: {error:?}", path.display()))
}

#[test]
fn nothing_but_a_file_is_opened_whichever_way_the_path_leads_there() {
    let zoo = Zoo::new();
    for rules in [Rules::own(100), Rules::named(100)] {
        for prefix in ["", "link-to-"] {
            for (name, kind) in [("fifo", "a FIFO"), ("folder", "a folder"), ("socket", "a socket")]
            {
                let path = zoo.at(&format!("{prefix}{name}"));
                assert_eq!(fault(&path, rules), FileFault::NotAFile { kind }, "{}", path.display());
            }
            let path = zoo.at(&format!("{prefix}sparse"));
            assert_eq!(fault(&path, rules), FileFault::TooLong { limit: 100 });
        }
        assert_eq!(
            fault(&zoo.at("link-to-device"), rules),
            FileFault::NotAFile { kind: "a device" }
        );
        assert_eq!(fault(Path::new("/dev/zero"), rules), FileFault::NotAFile { kind: "a device" });
        for name in ["nothing", "link-to-nothing"] {
            assert_eq!(
                read(&zoo.at(name), rules).expect_err("none").kind(),
                io::ErrorKind::NotFound
            );
        }
        assert_eq!(read(&zoo.at("link-to-file"), rules).expect("read"), b"content");
    }
}

#[test]
fn a_file_of_exactly_the_limit_is_read_and_one_byte_more_is_not() {
    let zoo = Zoo::new();
    assert_eq!(read(&zoo.at("file"), Rules::own(7)).expect("read"), b"content");
    assert_eq!(fault(&zoo.at("file"), Rules::own(6)), FileFault::TooLong { limit: 6 });
}

#[test]
fn a_file_that_says_it_is_empty_is_read_no_further_than_the_limit() {
    // Such files have no size: only what is read counts.
    let error = read(Path::new("/proc/self/smaps"), Rules::named(64)).expect_err("longer");
    assert_eq!(FileFault::of(&error), Some(FileFault::TooLong { limit: 64 }));
}

#[test]
fn a_file_that_others_may_write_is_nobodys_word_unless_they_cannot_reach_it_or_the_operator_named_it()
 {
    let zoo = Zoo::new();
    for (folder, mode, counts) in [
        (0o755, 0o620, true),
        (0o755, 0o602, true),
        (0o755, 0o666, true),
        (0o700, 0o666, false),
        (0o750, 0o602, false),
        (0o701, 0o620, false),
        (0o755, 0o644, false),
    ] {
        fs::set_permissions(zoo.folder.path(), fs::Permissions::from_mode(folder)).expect("mode");
        zoo.set_mode(mode);
        let own = read(&zoo.at("file"), Rules::own(100));
        let found = own.as_ref().err().and_then(FileFault::of);
        assert_eq!(found, counts.then_some(FileFault::Writable { mode }), "{folder:o} {mode:o}");
        assert_eq!(own.is_ok(), !counts, "{folder:o} {mode:o}");
        assert!(read(&zoo.at("file"), Rules::named(100)).is_ok());
    }
}

#[test]
fn a_file_that_is_open_to_others_says_so_and_can_be_closed() {
    let zoo = Zoo::new();
    for (mode, shown) in [(0o600, None), (0o640, Some(0o640)), (0o604, Some(0o604)), (0o400, None)]
    {
        zoo.set_mode(mode);
        let content = open(&zoo.at("file"), Rules::own(100)).expect("read");
        assert_eq!(content.open_to_others(), shown, "{mode:o}");
        content.close_to_others().expect("closed");
        assert_eq!(fs::metadata(zoo.at("file")).expect("there").mode() & 0o777, mode & 0o700);
    }
}

#[test]
fn what_is_written_to_is_a_file_and_no_reader_is_waited_for() {
    let zoo = Zoo::new();
    for open in [open_to_append, open_to_lock] {
        for (name, kind) in [("fifo", "a FIFO"), ("folder", "a folder"), ("socket", "a socket")] {
            let error = open(&zoo.at(name), 0o600).expect_err("refused");
            assert_eq!(FileFault::of(&error), Some(FileFault::NotAFile { kind }));
        }
        let error = open(&zoo.at("link-to-file"), 0o600).expect_err("refused");
        assert_eq!(FileFault::of(&error), Some(FileFault::Link));
    }
    let path = zoo.at("log");
    for line in ["a", "b"] {
        io::Write::write_all(&mut open_to_append(&path, 0o600).expect("opened"), line.as_bytes())
            .expect("written");
    }
    assert_eq!(fs::read(&path).expect("read"), b"ab");
    assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
}

#[test]
fn a_link_is_refused_where_only_a_file_may_stand() {
    let zoo = Zoo::new();
    assert_eq!(fault(&zoo.at("link-to-file"), Rules::own(100).without_links()), FileFault::Link);
    assert!(read(&zoo.at("file"), Rules::own(100).without_links()).is_ok());
}

/// Needs root, to make files of others.
#[test]
fn a_file_or_link_of_a_stranger_is_refused_and_one_of_the_folders_owner_is_read_by_root() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let zoo = Zoo::new();
    let (file, link) = (zoo.at("file"), zoo.at("link-to-file"));
    std::os::unix::fs::chown(&file, Some(4242), None).expect("chown");
    assert_eq!(
        fault(&file, Rules::own(100)),
        FileFault::Owner { what: "file", owner: 4242, expected: 0 }
    );
    assert!(read(&file, Rules::named(100)).is_ok());
    std::os::unix::fs::chown(zoo.folder.path(), Some(4242), None).expect("chown");
    assert!(read(&file, Rules::own(100)).is_ok(), "the folder's owner wrote it");
    // The folder's owner can put a link to anything there, and must not have root follow
    // it.
    std::os::unix::fs::lchown(&link, Some(4242), None).expect("chown");
    assert_eq!(
        fault(&link, Rules::own(100)),
        FileFault::Owner { what: "link", owner: 4242, expected: 0 }
    );
}

#[test]
fn text_that_is_not_utf8_is_an_error_that_says_so() {
    let zoo = Zoo::new();
    fs::write(zoo.at("file"), [0xff, 0xfe]).expect("written");
    let error = read_text(&zoo.at("file"), Rules::own(100)).expect_err("not text");
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (io::ErrorKind::InvalidData, "the file is not UTF-8 text")
    );
}

#[test]
fn an_obeyed_file_is_refused_when_others_may_write_it_or_replace_it() {
    let zoo = Zoo::new();
    let set = |name: &str, mode| {
        fs::set_permissions(zoo.at(name), fs::Permissions::from_mode(mode)).expect("mode");
    };
    fs::create_dir_all(zoo.at("way/below")).expect("folders");
    fs::write(zoo.at("way/below/file"), "content").expect("file");
    let read = || read(&zoo.at("way/below/file"), Rules::obeyed(100));
    let found = || FileFault::of(&read().expect_err("refused")).expect("a fault of the file");
    set("way/below/file", 0o640);
    assert_eq!(read().expect("nobody else writes it"), b"content");
    set("way/below/file", 0o660);
    assert_eq!(found(), FileFault::Writable { mode: 0o660 });
    set("way/below/file", 0o600);
    assert_eq!(fault(&zoo.at("link-to-file"), Rules::obeyed(100)), FileFault::Link);
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for folder in ["way/below", "way"] {
        set(folder, 0o777);
        assert!(matches!(found(), FileFault::Replaceable { .. }), "{folder}");
        set(folder, 0o1777);
        assert!(read().is_ok(), "{folder} is sticky");
        set(folder, 0o755);
    }
    for name in ["way", "way/below"] {
        std::os::unix::fs::chown(zoo.at(name), Some(4242), None).expect("chown");
        assert_eq!(found(), FileFault::Replaceable { owner: 4242 });
        std::os::unix::fs::chown(zoo.at(name), Some(0), None).expect("chown");
    }
    std::os::unix::fs::chown(zoo.at("way/below/file"), Some(4242), None).expect("chown");
    assert_eq!(found(), FileFault::Owner { what: "file", owner: 4242, expected: 0 });
}
