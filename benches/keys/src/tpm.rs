//! A TPM, through the backend and by commands with an empty password on keys that are
//! loaded.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use edgekeep_hsm::tpm::TpmBackend;
use edgekeep_tpm::{Tcti, Tpm, TpmOptions};

use crate::{DIGEST, MESSAGE, Pair, ecdsa, hmac, keys, serve};

const CREATE_PRIMARY: u32 = 0x131;
const HMAC: u32 = 0x155;
const SIGN: u32 = 0x15d;
const OWNER: u32 = 0x4000_0001;
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, sign.
const SIGNING_KEY: [u8; 4] = 0x0004_0472_u32.to_be_bytes();

pub(crate) fn measure(bare: &Tcti, backend: Tcti, folder: &Path) -> anyhow::Result<()> {
    let backend = TpmBackend::open(Tpm::open(TpmOptions::new(backend))?, folder)?;
    let (key, pair) = keys(&backend)?;
    let key = key.context("the TPM keeps no HMAC key")?;

    let Tcti::SwtpmTcp { host, port } = bare else { bail!("expected swtpm:host=HOST,port=PORT") };
    let stream = TcpStream::connect((host.as_str(), *port))?;
    stream.set_nodelay(true)?;
    let stream = RefCell::new(stream);
    let keyed_hash = [&[0, 8, 0, 11][..], &SIGNING_KEY, &[0, 0, 0, 5, 0, 11, 0, 0]].concat();
    let ecc =
        [&[0, 0x23, 0, 11][..], &SIGNING_KEY, &[0, 0, 0, 0x10, 0, 0x10, 0, 3, 0, 0x10, 0, 0, 0, 0]]
            .concat();
    let secret = create_primary(&mut stream.borrow_mut(), &keyed_hash)?;
    let private = create_primary(&mut stream.borrow_mut(), &ecc)?;
    let mac = command(HMAC, secret, &[&sized(&MESSAGE)?[..], &[0, 11]].concat())?;
    // ECDSA with SHA-256, and no proof that the TPM made the digest.
    let scheme = [0, 0x18, 0, 11, 0x80, 0x24, 0x40, 0, 0, 7, 0, 0];
    let signature = command(SIGN, private, &[&sized(&DIGEST)?[..], &scheme].concat())?;
    let bare = |command: Vec<u8>| {
        let stream = &stream;
        move || exchange(&mut stream.borrow_mut(), &command).map(drop)
    };
    let waited = || backend.with_tpm(Tpm::waited);
    let mut pairs = [
        Pair {
            operation: "HMAC-SHA256",
            bare: Box::new(bare(mac)),
            backend: Box::new(|| hmac(&backend, &key)),
            waited: Some(Box::new(waited)),
        },
        Pair {
            operation: "ECDSA P-256",
            bare: Box::new(bare(signature)),
            backend: Box::new(|| ecdsa(&backend, &pair)),
            waited: Some(Box::new(waited)),
        },
    ];
    serve(&mut pairs)
}

fn sized(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    Ok([&u16::try_from(bytes.len())?.to_be_bytes(), bytes].concat())
}

/// A command with one handle, authorized by an empty password.
fn command(code: u32, handle: u32, parameters: &[u8]) -> anyhow::Result<Vec<u8>> {
    let password = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 1, 0, 0];
    let body = [&handle.to_be_bytes()[..], &password, parameters].concat();
    let length = u32::try_from(10 + body.len())?;
    Ok([&[0x80, 2][..], &length.to_be_bytes(), &code.to_be_bytes(), &body].concat())
}

/// Makes a key that stays loaded; its handle.
fn create_primary(stream: &mut TcpStream, public: &[u8]) -> anyhow::Result<u32> {
    let parameters = [&[0, 4, 0, 0, 0, 0][..], &sized(public)?, &[0, 0, 0, 0, 0, 0]].concat();
    let answer = exchange(stream, &command(CREATE_PRIMARY, OWNER, &parameters)?)?;
    let handle = answer.get(10..14).context("no handle")?;
    Ok(u32::from_be_bytes(handle.try_into()?))
}

fn exchange(stream: &mut TcpStream, command: &[u8]) -> anyhow::Result<Vec<u8>> {
    stream.write_all(command)?;
    let mut answer = vec![0; 4096];
    let mut length = stream.read(&mut answer)?;
    while length < 10 || length < usize::try_from(u32::from_be_bytes(answer[2..6].try_into()?))? {
        match stream.read(&mut answer[length..])? {
            0 => bail!("the TPM closed the connection"),
            count => length += count,
        }
    }
    answer.truncate(length);
    ensure!(answer[6..10] == [0; 4], "the TPM refuses a bare command: {:02x?}", &answer[6..10]);
    Ok(answer)
}
