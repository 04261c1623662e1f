//! As much MQTT 3.1.1 as an unmodified device SDK needs to open a session with a module's
//! token and to send messages.
//!
//! CONNECT is judged as the hub would; PINGREQ, SUBSCRIBE, UNSUBSCRIBE and PUBLISH are
//! acknowledged; nothing is ever published to the client.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::server::{BODY_LIMIT, PATIENCE, Shared};
use crate::world::World;

/// Reason for the end of a session before the client's DISCONNECT.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MqttError {
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("nothing came for too long")]
    Silence(#[from] tokio::time::error::Elapsed),
    #[error("a malformed packet: {0}")]
    Malformed(&'static str),
    #[error("closed as the faults say")]
    Dropped,
}

/// A CONNECT packet's content.
#[derive(Debug, PartialEq, Eq)]
struct Connect<'a> {
    keep_alive_sec: u16,
    username: &'a str,
    password: &'a str,
}

/// The server's reaction to a packet inside a session.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Answer(Vec<u8>),
    Message { answer: Vec<u8> },
    Silent,
    End,
}

pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, shared: Arc<Shared>) {
    match session(&mut stream, &shared).await {
        Ok(()) => tracing::info!("MQTT session ended"),
        Err(error) => tracing::info!(%error, "MQTT session ended"),
    }
}

async fn session<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    shared: &Shared,
) -> Result<(), MqttError> {
    let (first, packet) = tokio::time::timeout(PATIENCE, read_packet(stream)).await??;
    if first != 0x10 {
        return Err(MqttError::Malformed("the first packet is not CONNECT"));
    }
    let connect = parse_connect(&packet)?;
    let fault = {
        let mut world = shared.world();
        world.calls.mqtt_connect += 1;
        world.faults.hub.hit()
    };
    shared.changed.send_replace(());
    tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;
    if fault.drop {
        return Err(MqttError::Dropped);
    }
    let now = shared.clock();
    let admitted = match fault.status {
        Some(_) => Err(3),                                          // server unavailable
        None => admit(&mut shared.world(), &connect, now).ok_or(5), // not authorised
    };
    shared.changed.send_replace(());
    let code = admitted.as_ref().err().copied().unwrap_or(0);
    stream.write_all(&[0x20, 2, 0, code]).await?;
    stream.flush().await?;
    let Ok((device, module)) = admitted else {
        // Politely, so that the client surely sees the code before the end.
        stream.shutdown().await?;
        return Ok(());
    };
    tracing::info!(device, module, "MQTT session opened");

    // The standard's one and a half keep-alive periods; 0 means that the client promises
    // nothing.
    let silence = match connect.keep_alive_sec {
        0 => Duration::from_secs(3600),
        seconds => Duration::from_millis(u64::from(seconds) * 1500),
    };
    loop {
        let (first, packet) = tokio::time::timeout(silence, read_packet(stream)).await??;
        let answer = match step(first, &packet)? {
            Step::End => return Ok(()),
            Step::Silent => continue,
            Step::Answer(answer) => answer,
            Step::Message { answer } => {
                shared.world().count_message(&device, &module);
                shared.changed.send_replace(());
                answer
            }
        };
        stream.write_all(&answer).await?;
        stream.flush().await?;
    }
}

/// Reads one packet: its first byte and its content, at most [`BODY_LIMIT`] bytes.
async fn read_packet<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(u8, Vec<u8>), MqttError> {
    let first = stream.read_u8().await?;
    let mut length = 0_usize;
    for shift in [0, 7, 14, 21] {
        let byte = stream.read_u8().await?;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            if length > BODY_LIMIT {
                return Err(MqttError::Malformed("longer than 256 KiB"));
            }
            let mut packet = vec![0; length];
            stream.read_exact(&mut packet).await?;
            return Ok((first, packet));
        }
    }
    Err(MqttError::Malformed("a length of more than four bytes"))
}

/// Reads fields off the front of a packet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], MqttError> {
        let (head, tail) =
            self.0.split_at_checked(count).ok_or(MqttError::Malformed("it ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, MqttError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn text(&mut self) -> Result<&'a str, MqttError> {
        let length = usize::from(self.u16()?);
        std::str::from_utf8(self.take(length)?)
            .map_err(|_| MqttError::Malformed("a text that is not UTF-8"))
    }
}

fn parse_connect(packet: &[u8]) -> Result<Connect<'_>, MqttError> {
    let mut fields = Fields(packet);
    if (fields.text()?, fields.take(1)?) != ("MQTT", &[4]) {
        return Err(MqttError::Malformed("not MQTT 3.1.1"));
    }
    let flags = fields.take(1)?[0];
    let keep_alive_sec = fields.u16()?;
    fields.text()?; // the client id: the username says the same
    if flags & 0x04 != 0 {
        fields.text()?; // will topic
        let length = usize::from(fields.u16()?);
        fields.take(length)?; // will message
    }
    if flags & 0xc0 != 0xc0 {
        return Err(MqttError::Malformed("no username or no password"));
    }
    Ok(Connect { keep_alive_sec, username: fields.text()?, password: fields.text()? })
}

/// Returns the device and the module that the session belongs to, if the token is good.
/// The username is `<hub>/<device>/<module>/?api-version=...`.
fn admit(world: &mut World, connect: &Connect<'_>, now: u64) -> Option<(String, String)> {
    let mut parts = connect.username.split('/');
    let (Some(hub), Some(device), Some(module), Some(rest)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        world.note_refusal(
            "MQTT: the username is not <hub>/<device>/<module>/?api-version=...".to_owned(),
        );
        return None;
    };
    if !rest.starts_with("?api-version=") {
        world.note_refusal(format!(
            "MQTT: module {device}/{module}: no api-version in the username"
        ));
        return None;
    }
    if let Some(known) = world.devices.get(device).map(|found| found.hub.clone())
        && !known.eq_ignore_ascii_case(hub)
    {
        world.note_refusal(format!(
            "MQTT: module {device}/{module}: hub \"{hub}\" is not \"{known}\""
        ));
        return None;
    }
    world.admit_module(device, module, Some(connect.password), now).ok()?;
    Some((device.to_owned(), module.to_owned()))
}

fn step(first: u8, packet: &[u8]) -> Result<Step, MqttError> {
    let mut fields = Fields(packet);
    match first {
        0xc0 => Ok(Step::Answer(vec![0xd0, 0])), // PINGREQ
        0xe0 => Ok(Step::End),                   // DISCONNECT
        0x82 => {
            let id = fields.u16()?.to_be_bytes();
            let mut granted = Vec::new();
            while !fields.0.is_empty() {
                fields.text()?;
                granted.push(fields.take(1)?[0].min(1));
            }
            // At most 3 bytes a topic came in, so the length fits wherever the request's
            // did; one byte suffices for 125.
            let length = u8::try_from(granted.len() + 2).ok().filter(|length| *length < 0x80);
            let length = length.ok_or(MqttError::Malformed("more than 125 topics at once"))?;
            Ok(Step::Answer([&[0x90, length], &id[..], &granted].concat()))
        }
        0xa2 => {
            let id = fields.u16()?.to_be_bytes();
            Ok(Step::Answer(vec![0xb0, 2, id[0], id[1]]))
        }
        0x30..=0x3f => {
            fields.text()?;
            match (first >> 1) & 3 {
                0 => Ok(Step::Message { answer: Vec::new() }),
                1 => {
                    let id = fields.u16()?.to_be_bytes();
                    Ok(Step::Message { answer: vec![0x40, 2, id[0], id[1]] })
                }
                _ => Err(MqttError::Malformed("the hub has no QoS 2")),
            }
        }
        0x40 => Ok(Step::Silent), // PUBACK
        _ => Err(MqttError::Malformed("a packet that no session of the hub has")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn connect(flags: u8, texts: &[&str]) -> Vec<u8> {
        let mut packet = vec![0, 4, b'M', b'Q', b'T', b'T', 4, flags, 0, 60];
        for text in texts {
            packet.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
            packet.extend(text.as_bytes());
        }
        packet
    }

    #[test]
    fn username_and_password_are_found_behind_a_will() {
        let plain = connect(0xc2, &["d/m", "user", "token"]);
        let expected = Connect { keep_alive_sec: 60, username: "user", password: "token" };
        assert_eq!(parse_connect(&plain).unwrap(), expected);
        let with_will = connect(0xc6, &["d/m", "topic", "message", "user", "token"]);
        assert_eq!(parse_connect(&with_will).unwrap(), expected);
    }

    #[test]
    fn a_connect_without_password_or_of_another_version_is_malformed() {
        let without = parse_connect(&connect(0x82, &["d/m", "user"])).unwrap_err();
        assert_eq!(without.to_string(), "a malformed packet: no username or no password");
        let mut five = connect(0xc2, &["d/m", "user", "token"]);
        five[6] = 5;
        assert_eq!(
            parse_connect(&five).unwrap_err().to_string(),
            "a malformed packet: not MQTT 3.1.1"
        );
    }

    #[test]
    fn each_packet_of_a_session_has_its_acknowledgement() {
        let topic = [0, 1, b't'];
        let subscribe = [&[0, 7][..], &topic, &[1], &topic, &[2]].concat();
        assert_eq!(step(0x82, &subscribe).unwrap(), Step::Answer(vec![0x90, 4, 0, 7, 1, 1]));
        assert_eq!(step(0xa2, &[0, 9, 0, 1, b't']).unwrap(), Step::Answer(vec![0xb0, 2, 0, 9]));
        assert_eq!(step(0x30, &topic).unwrap(), Step::Message { answer: vec![] });
        let publish = [&topic[..], &[0, 8]].concat();
        assert_eq!(step(0x32, &publish).unwrap(), Step::Message { answer: vec![0x40, 2, 0, 8] });
        assert_eq!(step(0xc0, &[]).unwrap(), Step::Answer(vec![0xd0, 0]));
        assert_eq!(step(0xe0, &[]).unwrap(), Step::End);
        assert_eq!(
            step(0x34, &publish).unwrap_err().to_string(),
            "a malformed packet: the hub has no QoS 2"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(first: u8, packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_connect(&packet);
            if let Ok(Step::Answer(answer) | Step::Message { answer }) = step(first, &packet) {
                prop_assert!(answer.len() < 130);
            }
        }
    }
}
