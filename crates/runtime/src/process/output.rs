//! A host module's log: two files of bounded size in the engine's framing, each line with
//! its time.
//!
//! The module writes into named pipes that moduled keeps open at both ends, so a restart
//! of moduled neither ends the module's output nor loses what is in the pipe; only a
//! module that writes more than a pipe holds waits for moduled.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{FileType, Mode, OFlags};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use tokio::net::unix::pipe;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::logs::{HEADER, LogQuery, LogStream, OutputStream, frame, parse_header};

/// Size at which a log file is set aside as the previous one; at most twice this is kept.
const FILE_LIMIT: u64 = 5 * 1024 * 1024;

/// Longer lines are cut into pieces.
const MAX_LINE: usize = 16 * 1024;

/// Frames that a slow follower may be behind.
const FOLLOWER_LAG: usize = 1024;

/// Pieces on their way to a client.
const CLIENT_QUEUE: usize = 16;

/// The engine's time format: always nine digits of a second.
const STAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");

#[derive(Debug, Clone)]
enum Live {
    Frame(Bytes),
    End,
}

/// The log of one module.
#[derive(Debug)]
pub(super) struct ModuleLog {
    folder: PathBuf,
    limit: u64,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    file: File,
    size: u64,
    failing: bool,
    /// Only while somebody follows: its queue takes tens of KiB, also when empty, and
    /// nearly all modules have no follower.
    live: Option<broadcast::Sender<Live>>,
}

impl Writer {
    fn tell(&mut self, live: Live) {
        self.live = self.live.take().filter(|followers| followers.send(live).is_ok());
    }

    fn follow(&mut self) -> broadcast::Receiver<Live> {
        self.live.get_or_insert_with(|| broadcast::channel(FOLLOWER_LAG).0).subscribe()
    }
}

impl ModuleLog {
    /// Opens or makes the log in `folder`.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        Self::open_with_limit(folder, FILE_LIMIT)
    }

    fn open_with_limit(folder: &Path, limit: u64) -> io::Result<Self> {
        let mut file = open_file(&folder.join("log"))?;
        // A crash can leave half a frame at the end.
        let mut reader = FrameReader::new(BufReader::new(&file));
        while reader.next().is_some() {}
        let size = reader.whole;
        file.set_len(size)?;
        file.seek(SeekFrom::Start(size))?;
        let writer = Mutex::new(Writer { file, size, failing: false, live: None });
        Ok(Self { folder: folder.to_owned(), limit, writer })
    }

    fn write(&self, stream: OutputStream, line: &[u8], now: OffsetDateTime) {
        let stamp = now.format(STAMP).unwrap_or_default();
        let bytes = frame(stream, &[stamp.as_bytes(), b" ", line]);
        let mut writer = self.writer();
        if let Err(error) = self.append(&mut writer, &bytes) {
            if !writer.failing {
                tracing::warn!(folder = %self.folder.display(), %error, "a module's output is being lost");
            }
            writer.failing = true;
        } else {
            writer.failing = false;
        }
        writer.tell(Live::Frame(bytes));
    }

    fn append(&self, writer: &mut Writer, bytes: &[u8]) -> io::Result<()> {
        if writer.size + bytes.len() as u64 > self.limit && writer.size > 0 {
            std::fs::rename(self.folder.join("log"), self.folder.join("log.1"))?;
            writer.file = open_file(&self.folder.join("log"))?;
            writer.size = 0;
        }
        if let Err(error) = writer.file.write_all(bytes) {
            writer.file.set_len(writer.size)?;
            writer.file.seek(SeekFrom::Start(writer.size))?;
            return Err(error);
        }
        writer.size += bytes.len() as u64;
        Ok(())
    }

    /// Tells followers that the module has ended.
    pub(super) fn end(&self) {
        self.writer().tell(Live::End);
    }

    /// The log as asked for; it is only followed while the module runs.
    pub(super) fn read(&self, query: LogQuery, running: bool) -> io::Result<LogStream> {
        let (sender, receiver) = mpsc::channel(CLIENT_QUEUE);
        // What is on disk up to here and what comes live from here on belong together.
        let (backlog, live) = {
            let mut writer = self.writer();
            let files = Backlog {
                previous: File::open(self.folder.join("log.1")).ok(),
                current: File::open(self.folder.join("log"))?,
                size: writer.size,
            };
            (files, (query.follow && running).then(|| writer.follow()))
        };
        tokio::spawn(async move {
            let backlog_sender = sender.clone();
            let sent =
                tokio::task::spawn_blocking(move || backlog.send(&query, &backlog_sender)).await;
            if let (Ok(Ok(())), Some(live)) = (sent, live) {
                follow(live, &query, &sender).await;
            }
        });
        Ok(LogStream::from_channel(receiver))
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// A frame as it is stored: the payload begins with its time.
#[derive(Debug, PartialEq, Eq)]
struct Stored {
    stream: OutputStream,
    payload: Vec<u8>,
}

impl Stored {
    fn time(&self) -> Option<OffsetDateTime> {
        let stamp = self.payload.split(|&byte| byte == b' ').next()?;
        OffsetDateTime::parse(std::str::from_utf8(stamp).ok()?, &Rfc3339).ok()
    }

    fn is_wanted(&self, query: &LogQuery) -> bool {
        if query.since == 0 && query.until.is_none() {
            return true;
        }
        self.time().is_some_and(|time| {
            let seconds = time.unix_timestamp();
            seconds >= query.since && query.until.is_none_or(|until| seconds < until)
        })
    }

    fn render(&self, query: &LogQuery) -> Bytes {
        let text = if query.timestamps {
            &self.payload[..]
        } else {
            let start =
                self.payload.iter().position(|&byte| byte == b' ').map_or(0, |blank| blank + 1);
            &self.payload[start..]
        };
        frame(self.stream, &[text])
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        FrameReader::new(bytes).next()
    }
}

/// Reads whole frames; ends at the first thing that is not one.
struct FrameReader<R> {
    source: R,
    whole: u64,
}

impl<R: Read> FrameReader<R> {
    fn new(source: R) -> Self {
        Self { source, whole: 0 }
    }

    fn next(&mut self) -> Option<Stored> {
        let mut header = [0; HEADER];
        self.source.read_exact(&mut header).ok()?;
        let (stream, length) = parse_header(&header)?;
        if length > 2 * MAX_LINE {
            return None;
        }
        let mut payload = vec![0; length];
        self.source.read_exact(&mut payload).ok()?;
        self.whole += (HEADER + length) as u64;
        Some(Stored { stream, payload })
    }
}

struct Backlog {
    previous: Option<File>,
    current: File,
    size: u64,
}

impl Backlog {
    fn send(
        mut self,
        query: &LogQuery,
        client: &mpsc::Sender<io::Result<Bytes>>,
    ) -> Result<(), ()> {
        let mut skip = 0;
        if let Some(tail) = query.tail {
            let mut lines = 0_u64;
            let _ = self.each(query, &mut |_| {
                lines += 1;
                Ok(())
            });
            skip = lines.saturating_sub(tail);
        }
        self.each(query, &mut |stored| {
            if skip > 0 {
                skip -= 1;
                return Ok(());
            }
            client.blocking_send(Ok(stored.render(query))).map_err(drop)
        })
    }

    fn each(
        &mut self,
        query: &LogQuery,
        visit: &mut dyn FnMut(&Stored) -> Result<(), ()>,
    ) -> Result<(), ()> {
        let parts = [
            self.previous.as_mut().map(|file| (file, u64::MAX)),
            Some((&mut self.current, self.size)),
        ];
        for (file, limit) in parts.into_iter().flatten() {
            if file.seek(SeekFrom::Start(0)).is_err() {
                continue;
            }
            let mut reader = FrameReader::new(BufReader::new(file.take(limit)));
            while let Some(stored) = reader.next() {
                if stored.is_wanted(query) {
                    visit(&stored)?;
                }
            }
        }
        Ok(())
    }
}

async fn follow(
    mut live: broadcast::Receiver<Live>,
    query: &LogQuery,
    client: &mpsc::Sender<io::Result<Bytes>>,
) {
    loop {
        let next = tokio::select! {
            next = live.recv() => next,
            () = client.closed() => return,
        };
        match next {
            Ok(Live::Frame(bytes)) => {
                let Some(stored) = Stored::parse(&bytes) else { continue };
                let past = query
                    .until
                    .zip(stored.time())
                    .is_some_and(|(until, time)| time.unix_timestamp() >= until);
                if past
                    || (stored.is_wanted(query)
                        && client.send(Ok(stored.render(query))).await.is_err())
                {
                    return;
                }
            }
            Ok(Live::End) | Err(broadcast::error::RecvError::Closed) => return,
            Err(broadcast::error::RecvError::Lagged(lines)) => {
                let error =
                    io::Error::other(format!("{lines} lines came faster than they were read"));
                let _ = client.send(Err(error)).await;
                return;
            }
        }
    }
}

/// Cuts output into lines, keeping their ends.
#[derive(Debug, Default)]
struct LineSplitter(Vec<u8>);

impl LineSplitter {
    fn push(&mut self, mut bytes: &[u8], emit: &mut dyn FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.0.len();
            let piece = bytes
                .iter()
                .position(|&byte| byte == b'\n')
                .map_or(bytes.len(), |end| end + 1)
                .min(room);
            self.0.extend_from_slice(&bytes[..piece]);
            bytes = &bytes[piece..];
            if self.0.ends_with(b"\n") || self.0.len() == MAX_LINE {
                self.flush(emit);
            }
        }
    }

    fn flush(&mut self, emit: &mut dyn FnMut(&[u8])) {
        if !self.0.is_empty() {
            emit(&self.0);
            self.0.clear();
        }
    }
}

/// Moves the module's output from its pipes into its log, until dropped.
#[derive(Debug)]
pub(super) struct OutputPump {
    drains: Vec<mpsc::Sender<oneshot::Sender<()>>>,
}

const PIPES: [(&str, OutputStream); 2] =
    [("stdout", OutputStream::Stdout), ("stderr", OutputStream::Stderr)];

impl OutputPump {
    /// Opens or makes the pipes in `folder`.
    pub(super) fn start(folder: &Path, log: &Arc<ModuleLog>) -> io::Result<Self> {
        let mut drains = Vec::new();
        for (name, stream) in PIPES {
            let path = folder.join(name);
            make_pipe(&path)?;
            // Open for writing too, so that the pipe has no end when the module is
            // replaced.
            let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&path)?;
            let (drain, drain_requests) = mpsc::channel(1);
            drains.push(drain);
            tokio::spawn(pump(receiver, stream, Arc::clone(log), drain_requests));
        }
        Ok(Self { drains })
    }

    /// Waits until everything that was written so far is in the log.
    pub(super) async fn drain(&self) {
        for drain in &self.drains {
            let (done, finished) = oneshot::channel();
            if drain.send(done).await.is_ok() {
                let _ = finished.await;
            }
        }
    }
}

/// The module's ends of the pipes in `folder`: standard output and standard error.
pub(super) fn module_ends(folder: &Path) -> io::Result<[OwnedFd; 2]> {
    let open = |name: &str| {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::open(folder.join(name), flags, Mode::empty())
            .map_err(|errno| io::Error::other(format!("cannot open its pipe {name}: {errno}")))
    };
    Ok([open(PIPES[0].0)?, open(PIPES[1].0)?])
}

fn make_pipe(path: &Path) -> io::Result<()> {
    match rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
    {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

async fn pump(
    pipe: pipe::Receiver,
    stream: OutputStream,
    log: Arc<ModuleLog>,
    mut drain_requests: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let mut lines = LineSplitter::default();
    // Writing to the log is a write into the page cache: short enough for an async
    // thread.
    let mut emit = |line: &[u8]| log.write(stream, line, OffsetDateTime::now_utc());
    loop {
        let drained = tokio::select! {
            ready = pipe.readable() => match ready {
                Ok(()) => None,
                Err(_) => return,
            },
            request = drain_requests.recv() => match request {
                Some(done) => Some(done),
                None => return lines.flush(&mut emit),
            },
        };
        if let Some(done) = drained {
            // Read directly: tokio answers "would block" until its driver has seen the
            // last write.
            while take_up(&mut lines, &mut emit, |buffer| Ok(rustix::io::read(&pipe, buffer)?)) {}
            lines.flush(&mut emit);
            let _ = done.send(());
        } else {
            take_up(&mut lines, &mut emit, |buffer| pipe.try_read(buffer));
        }
    }
}

/// Reads once; whether there was something. The buffer is on the stack for as long as
/// that takes: one for each pipe would be most of what an idle module costs this daemon.
fn take_up(
    lines: &mut LineSplitter,
    emit: &mut dyn FnMut(&[u8]),
    read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
) -> bool {
    let mut buffer = [0; 16 * 1024];
    let Ok(length @ 1..) = read(&mut buffer) else { return false };
    lines.push(&buffer[..length], emit);
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).expect("in range")
    }

    async fn text(log: &ModuleLog, query: LogQuery) -> String {
        let mut stream = log.read(query, false).expect("readable");
        let mut text = String::new();
        while let Some(piece) = stream.next().await {
            let piece = piece.expect("no error");
            text.push(if piece[0] == 1 { 'o' } else { 'e' });
            text.push_str(std::str::from_utf8(&piece[HEADER..]).expect("text"));
        }
        text
    }

    fn filled(folder: &Path) -> ModuleLog {
        let log = ModuleLog::open(folder).expect("writable");
        log.write(OutputStream::Stdout, b"one\n", at(1));
        log.write(OutputStream::Stderr, b"two\n", at(2));
        log.write(OutputStream::Stdout, b"three\n", at(3));
        log
    }

    #[test]
    fn a_log_that_nobody_follows_any_more_keeps_no_queue() {
        let folder = tempfile::tempdir().expect("temp folder");
        let log = filled(folder.path());
        let mut follower = log.writer().follow();
        log.write(OutputStream::Stdout, b"seen\n", at(9));
        assert!(matches!(follower.try_recv(), Ok(Live::Frame(_))));
        drop(follower);
        log.write(OutputStream::Stdout, b"unseen\n", at(10));
        assert!(log.writer().live.is_none());
    }

    #[tokio::test]
    async fn the_log_is_answered_by_stream_tail_and_time() {
        let folder = tempfile::tempdir().expect("temp folder");
        let log = filled(folder.path());
        let all = LogQuery::default();
        assert_eq!(text(&log, all).await, "oone\netwo\nothree\n");
        assert_eq!(text(&log, LogQuery { tail: Some(1), ..all }).await, "othree\n");
        assert_eq!(text(&log, LogQuery { tail: Some(0), ..all }).await, "");
        assert_eq!(text(&log, LogQuery { since: 2, until: Some(3), ..all }).await, "etwo\n");
        let stamped = LogQuery { tail: Some(1), timestamps: true, ..all };
        assert_eq!(text(&log, stamped).await, "o1970-01-01T00:00:03.000000000Z three\n");
    }

    #[tokio::test]
    async fn half_a_frame_left_by_a_crash_is_cut_off() {
        let folder = tempfile::tempdir().expect("temp folder");
        drop(filled(folder.path()));
        let path = folder.path().join("log");
        let mut bytes = std::fs::read(&path).expect("written");
        bytes.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 9, b'x']);
        std::fs::write(&path, bytes).expect("written");
        let log = ModuleLog::open(folder.path()).expect("readable");
        log.write(OutputStream::Stdout, b"four\n", at(4));
        assert_eq!(text(&log, LogQuery::default()).await, "oone\netwo\nothree\nofour\n");
    }

    #[tokio::test]
    async fn at_the_limit_the_file_becomes_the_previous_one_and_the_one_before_goes() {
        let folder = tempfile::tempdir().expect("temp folder");
        let log = ModuleLog::open_with_limit(folder.path(), 100).expect("writable");
        for number in 0..20 {
            log.write(OutputStream::Stdout, format!("{number}\n").as_bytes(), at(number));
        }
        let kept = text(&log, LogQuery::default()).await;
        assert!(kept.ends_with("o18\no19\n") && !kept.contains("o5\n"), "{kept}");
        let sizes = ["log", "log.1"]
            .map(|name| std::fs::metadata(folder.path().join(name)).expect("exists").len());
        assert!(sizes.iter().all(|&size| size <= 100), "{sizes:?}");
    }

    #[tokio::test]
    async fn a_follower_gets_what_was_and_what_comes_until_the_end() {
        let folder = tempfile::tempdir().expect("temp folder");
        let log = filled(folder.path());
        let mut stream = log
            .read(LogQuery { follow: true, tail: Some(1), ..LogQuery::default() }, true)
            .expect("open");
        log.write(OutputStream::Stdout, b"four\n", at(4));
        log.end();
        let mut lines = Vec::new();
        while let Some(piece) = stream.next().await {
            lines.push(piece.expect("no error").slice(HEADER..));
        }
        assert_eq!(lines, ["three\n", "four\n"]);
    }

    #[tokio::test]
    async fn what_was_written_while_nobody_read_is_there_later() {
        let folder = tempfile::tempdir().expect("temp folder");
        let log = Arc::new(ModuleLog::open(folder.path()).expect("writable"));
        PIPES.iter().for_each(|(name, _)| make_pipe(&folder.path().join(name)).expect("made"));
        let [stdout, stderr] = module_ends(folder.path()).expect("open");
        let mut ends = (File::from(stdout), File::from(stderr));
        ends.0.write_all(b"half a li").expect("pipe has room");
        let pump = OutputPump::start(folder.path(), &log).expect("pipes");
        ends.0.write_all(b"ne\nrest").expect("pipe has room");
        ends.1.write_all(b"oops\n").expect("pipe has room");
        pump.drain().await;
        let all = text(&log, LogQuery::default()).await;
        for part in ["ohalf a line\n", "orest", "eoops\n"] {
            assert!(all.contains(part), "{all}");
        }
    }

    proptest! {
        #[test]
        fn lines_put_together_are_the_output_however_it_was_cut(pieces in prop::collection::vec("[ab\n]{0,9}", 0..9)) {
            let mut splitter = LineSplitter::default();
            let mut lines: Vec<Vec<u8>> = Vec::new();
            let mut emit = |line: &[u8]| lines.push(line.to_vec());
            pieces.iter().for_each(|piece| splitter.push(piece.as_bytes(), &mut emit));
            splitter.flush(&mut emit);
            prop_assert_eq!(lines.concat(), pieces.concat().into_bytes());
            prop_assert!(lines.iter().all(|line| line.iter().rev().skip(1).all(|&byte| byte != b'\n')));
        }
    }
}
