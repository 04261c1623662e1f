//! Ways to a TPM: the kernel's device, and swtpm's data port. Named by the strings that
//! the TPM tools take.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use zeroize::{Zeroize as _, Zeroizing};

use crate::wire::MESSAGE_LIMIT;

/// The device with the kernel's resource manager, which keeps users of the TPM apart.
const DEFAULT_DEVICE: &str = "/dev/tpmrm0";
/// Address at which swtpm listens by default.
const DEFAULT_SWTPM: (&str, u16) = ("127.0.0.1", 2321);
/// Tag, size and code.
const HEADER_LEN: usize = 10;

/// The address of a TPM: `device[:/dev/tpmrm0]`, `swtpm[:host=H,port=P]` or
/// `swtpm:path=/socket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tcti {
    /// A character device of the kernel.
    Device(PathBuf),
    /// swtpm's data port.
    SwtpmTcp {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// swtpm's data socket.
    SwtpmUnix(PathBuf),
}

/// A TCTI string that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TctiError {
    /// Another kind of TPM access.
    #[error(
        "tcti {found:?} is not supported: use \"device:/dev/tpmrm0\", or \"swtpm:host=HOST,port=PORT\""
    )]
    Kind {
        /// The word before the colon.
        found: String,
    },
    /// A parameter that does not belong there.
    #[error(
        "tcti parameter {found:?} is not understood: swtpm takes host=HOST,port=PORT or path=SOCKET"
    )]
    Parameter {
        /// The parameter.
        found: String,
    },
    /// A path that is not absolute.
    #[error("tcti path {found:?} is not absolute")]
    Path {
        /// The path.
        found: String,
    },
}

impl FromStr for Tcti {
    type Err = TctiError;

    fn from_str(text: &str) -> Result<Self, TctiError> {
        let absolute = |path: &str| {
            if path.starts_with('/') {
                Ok(PathBuf::from(path))
            } else {
                Err(TctiError::Path { found: path.to_owned() })
            }
        };
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "device" if rest.is_empty() => Ok(Self::Device(DEFAULT_DEVICE.into())),
            "device" => absolute(rest).map(Self::Device),
            "swtpm" => {
                let (mut host, mut port) = (DEFAULT_SWTPM.0.to_owned(), DEFAULT_SWTPM.1);
                for parameter in rest.split(',').filter(|parameter| !parameter.is_empty()) {
                    let wrong = || TctiError::Parameter { found: parameter.to_owned() };
                    match parameter.split_once('=') {
                        Some(("host", value)) if !value.is_empty() => host = value.to_owned(),
                        Some(("port", value)) => port = value.parse().map_err(|_| wrong())?,
                        // A socket is neither host nor port.
                        Some(("path", value)) if parameter == rest => {
                            return absolute(value).map(Self::SwtpmUnix);
                        }
                        _ => return Err(wrong()),
                    }
                }
                Ok(Self::SwtpmTcp { host, port })
            }
            _ => Err(TctiError::Kind { found: kind.to_owned() }),
        }
    }
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => write!(f, "device:{}", path.display()),
            Self::SwtpmTcp { host, port } => write!(f, "swtpm:host={host},port={port}"),
            Self::SwtpmUnix(path) => write!(f, "swtpm:path={}", path.display()),
        }
    }
}

impl Tcti {
    /// Returns true if nobody else can have objects in the TPM while this connection is
    /// open. Objects that are found there are then leftovers of an earlier user. The
    /// kernel's resource manager shows each user only the user's own objects.
    pub(crate) fn is_exclusive(&self) -> bool {
        match self {
            Self::Device(path) => {
                !path.as_os_str().as_encoded_bytes().windows(5).any(|part| part == b"tpmrm")
            }
            Self::SwtpmTcp { .. } | Self::SwtpmUnix(_) => true,
        }
    }

    /// Opens the way. `timeout` bounds each answer from swtpm; the kernel has limits of
    /// its own for the device.
    pub(crate) fn connect(&self, timeout: Duration) -> io::Result<Box<dyn Transport>> {
        match self {
            Self::Device(path) => {
                let device = OpenOptions::new().read(true).write(true).open(path)?;
                if !device.metadata()?.file_type().is_char_device() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "not a character device",
                    ));
                }
                Ok(Box::new(Device(device)))
            }
            Self::SwtpmTcp { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, timeout) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_read_timeout(Some(timeout))?;
                            stream.set_write_timeout(Some(timeout))?;
                            return Ok(Box::new(Stream::new(stream)));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            Self::SwtpmUnix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                Ok(Box::new(Stream::new(stream)))
            }
        }
    }
}

/// Carries one command to the TPM and its answer back.
pub(crate) trait Transport: Send {
    fn transmit(&mut self, command: &[u8]) -> io::Result<Zeroizing<Vec<u8>>>;
}

struct Device(File);

impl Transport for Device {
    fn transmit(&mut self, command: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        // The driver takes a command in one write and gives its answer in one read.
        let written = self.0.write(command)?;
        if written != command.len() {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "the device took part of a command",
            ));
        }
        let mut answer = Zeroizing::new(vec![0; MESSAGE_LIMIT]);
        let len = self.0.read(&mut answer)?;
        answer.truncate(len);
        Ok(answer)
    }
}

struct Stream<S> {
    stream: S,
    /// Buffer for answers. After each answer the used bytes are wiped, since wiping the
    /// whole buffer costs more than an HMAC.
    arrived: Zeroizing<Vec<u8>>,
}

impl<S: io::Read + io::Write> Stream<S> {
    fn new(stream: S) -> Self {
        Self { stream, arrived: Zeroizing::new(vec![0; MESSAGE_LIMIT]) }
    }

    /// Reads one answer into `arrived`, as much as there is at once: it comes in one
    /// piece, unless the way splits it. Its length; on the way there `read` is how much
    /// arrived.
    fn receive(&mut self, read: &mut usize) -> io::Result<usize> {
        let invalid =
            || io::Error::new(io::ErrorKind::InvalidData, "an answer of impossible length");
        loop {
            if let Some(header) = self.arrived[..*read].first_chunk::<HEADER_LEN>() {
                let len = u32::from_be_bytes([header[2], header[3], header[4], header[5]]);
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                // More than one answer to one command: what else came belongs to nobody.
                if !(HEADER_LEN..=MESSAGE_LIMIT).contains(&len) || *read > len {
                    return Err(invalid());
                }
                if *read == len {
                    return Ok(len);
                }
            }
            match self.stream.read(&mut self.arrived[*read..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => *read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl<S: io::Read + io::Write + Send> Transport for Stream<S> {
    fn transmit(&mut self, command: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        self.stream.write_all(command)?;
        let mut read = 0;
        let answer =
            self.receive(&mut read).map(|len| Zeroizing::new(self.arrived[..len].to_vec()));
        self.arrived[..read].zeroize();
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcti_strings_of_the_tpm_tools_are_read() {
        let swtpm = |host: &str, port| Ok(Tcti::SwtpmTcp { host: host.to_owned(), port });
        for (text, expected) in [
            ("device", Ok(Tcti::Device("/dev/tpmrm0".into()))),
            ("device:/dev/tpm1", Ok(Tcti::Device("/dev/tpm1".into()))),
            ("swtpm", swtpm("127.0.0.1", 2321)),
            ("swtpm:host=localhost,port=1234", swtpm("localhost", 1234)),
            ("swtpm:port=1234", swtpm("127.0.0.1", 1234)),
            ("swtpm:path=/run/tpm.sock", Ok(Tcti::SwtpmUnix("/run/tpm.sock".into()))),
            ("device:tpm0", Err(TctiError::Path { found: "tpm0".to_owned() })),
            ("swtpm:port=70000", Err(TctiError::Parameter { found: "port=70000".to_owned() })),
            ("swtpm:hots=a", Err(TctiError::Parameter { found: "hots=a".to_owned() })),
            ("swtpm:path=/a,port=1", Err(TctiError::Parameter { found: "path=/a".to_owned() })),
            ("tabrmd:bus_name=x", Err(TctiError::Kind { found: "tabrmd".to_owned() })),
            ("", Err(TctiError::Kind { found: String::new() })),
        ] {
            assert_eq!(text.parse::<Tcti>(), expected, "{text:?}");
            if let Ok(tcti) = expected {
                assert_eq!(tcti.to_string().parse(), Ok(tcti));
            }
        }
    }

    /// Gives these pieces, one with each read, and takes everything.
    struct Pieces(Vec<Vec<u8>>);

    impl io::Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    impl io::Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_answer_is_taken_whole_however_it_arrives_and_nothing_of_it_stays_behind() {
        let answer = [&[0x80, 1, 0, 0, 0, 14, 0, 0, 0, 0][..], b"data"].concat();
        for at in 1..answer.len() {
            let mut stream =
                Stream::new(Pieces(vec![answer[..at].to_vec(), answer[at..].to_vec()]));
            assert_eq!(*stream.transmit(b"command").unwrap(), answer, "{at}");
            assert!(stream.arrived.iter().all(|byte| *byte == 0));
            let mut cut = Stream::new(Pieces(vec![answer[..at].to_vec()]));
            assert_eq!(
                cut.transmit(b"command").unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof,
                "{at}"
            );
            assert!(cut.arrived.iter().all(|byte| *byte == 0));
        }
        for wrong in [
            [&answer[..], b"more"].concat(),
            [&[0x80, 1, 0, 0, 0, 9][..], &[0; 8]].concat(),
            vec![0xff; 14],
        ] {
            let error = Stream::new(Pieces(vec![wrong])).transmit(b"command").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn only_the_resource_managers_device_is_shared() {
        assert!(!Tcti::Device("/dev/tpmrm0".into()).is_exclusive());
        assert!(Tcti::Device("/dev/tpm0".into()).is_exclusive());
        assert!("swtpm".parse::<Tcti>().unwrap().is_exclusive());
    }
}
