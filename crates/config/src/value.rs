//! Values that are more than their TOML type: keys, names, addresses, times. Each check
//! says what is wrong in words that hold nothing of the value itself, since it may be a
//! secret.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use edgekeep_core::authority::{Authority, check_name};
use edgekeep_core::id::DeviceId;

use crate::secret::SecretBytes;

/// Longest key that is imported, in bytes.
const MAX_KEY_BYTES: usize = 4096;

/// A symmetric key in base64, with or without padding.
pub(crate) fn key(text: &str) -> Result<SecretBytes, String> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let bytes =
        SecretBytes::new(ENGINE.decode(text).map_err(|_| "the key is not base64".to_owned())?);
    match bytes.expose().len() {
        0 => Err("the key is empty".into()),
        length if length > MAX_KEY_BYTES => {
            Err(format!("the key is longer than {MAX_KEY_BYTES} bytes"))
        }
        _ => Ok(bytes),
    }
}

/// The content of a device connection string.
pub(crate) struct ConnectionString {
    pub(crate) hub: String,
    pub(crate) device_id: DeviceId,
    pub(crate) key: SecretBytes,
    /// Parts that are not used.
    pub(crate) ignored: Vec<String>,
}

/// `HostName=..;DeviceId=..;SharedAccessKey=..`
pub(crate) fn connection_string(text: &str) -> Result<ConnectionString, String> {
    let (mut hub, mut device_id, mut shared_key, mut ignored) = (None, None, None, Vec::new());
    for part in text.split(';').filter(|part| !part.trim().is_empty()) {
        let Some((name, value)) = part.split_once('=') else {
            return Err("the connection string has a part without `=`".into());
        };
        let slot = match name.trim() {
            "HostName" => &mut hub,
            "DeviceId" => &mut device_id,
            "SharedAccessKey" => &mut shared_key,
            "SharedAccessKeyName" => {
                return Err(
                    "this is a connection string of a service policy, not of a device".into()
                );
            }
            "ModuleId" => {
                return Err("this is a connection string of a module, not of a device".into());
            }
            "GatewayHostName" => {
                ignored.push("GatewayHostName".to_owned());
                continue;
            }
            _ => {
                ignored.push("an unknown part".to_owned());
                continue;
            }
        };
        if slot.replace(value.trim()).is_some() {
            return Err(format!("the connection string names {} twice", name.trim()));
        }
    }
    let hub = hub.ok_or("the connection string lacks HostName")?;
    let device_id = device_id.ok_or("the connection string lacks DeviceId")?;
    let shared_key = shared_key.ok_or("the connection string lacks SharedAccessKey")?;
    Ok(ConnectionString {
        hub: host(hub).map_err(|why| format!("HostName in the connection string: {why}"))?,
        device_id: device_id
            .parse()
            .map_err(|why| format!("DeviceId in the connection string: {why}"))?,
        key: key(shared_key)
            .map_err(|why| format!("SharedAccessKey in the connection string: {why}"))?,
        ignored,
    })
}

/// A host name or address, with a port or without, and nothing else of a URL.
pub(crate) fn host(text: &str) -> Result<String, String> {
    if text.contains("://") {
        return Err("expected a host name, not a URL: leave the scheme out".into());
    }
    text.parse::<Authority>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// A host name or an IP address.
pub(crate) fn hostname(text: &str) -> Result<(), String> {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    check_name(text).map_err(|error| error.to_string())
}

/// An `https://` URL without user, query and fragment; a `/` at its end is dropped.
pub(crate) fn https_url(text: &str) -> Result<String, String> {
    let Some(rest) = text.strip_prefix("https://") else {
        return Err("expected a URL that starts with https://".into());
    };
    if rest.contains(['?', '#', '@', ' ', '\\']) || rest.chars().any(char::is_control) {
        return Err("expected a URL without user, query and fragment".into());
    }
    host(rest.split('/').next().unwrap_or_default())?;
    Ok(text.trim_end_matches('/').to_owned())
}

/// The absolute path that a `file:///path` URI (or `file:/path`) names, percent-decoded.
pub(crate) fn file_uri(text: &str) -> Result<String, String> {
    let rest =
        text.strip_prefix("file:").ok_or("expected a URI of the form file:///path/to/file")?;
    let path = match rest.strip_prefix("//") {
        Some(after) => after.strip_prefix("localhost").unwrap_or(after),
        None => rest,
    };
    if !path.starts_with('/') || path.contains(['?', '#']) {
        return Err("expected a URI of the form file:///path/to/file".into());
    }
    let path = percent_decode(path).ok_or("the URI has a bad percent escape")?;
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err("the path must be absolute and without `..`".into());
    }
    Ok(path)
}

/// The same file in the form `file:///path`, which every daemon takes.
pub(crate) fn plain_file_uri(text: &str) -> String {
    let rest = text.strip_prefix("file:").unwrap_or(text);
    let path = rest.strip_prefix("//").unwrap_or(rest);
    format!("file://{}", path.strip_prefix("localhost").unwrap_or(path))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let digit = |c: u8| char::from(c).to_digit(16);
            let value = digit(rest.next()?)? << 4 | digit(rest.next()?)?;
            u8::try_from(value).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(bytes).ok()
}

/// An id scope or registration id: the characters that the provisioning service allows.
pub(crate) fn dps_name(text: &str, what: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
    if text.is_empty() {
        Err(format!("the {what} is empty"))
    } else if text.len() > 128 {
        Err(format!("the {what} is longer than 128 characters"))
    } else if !text.chars().all(allowed) {
        Err(format!("the {what} may hold letters, digits, '-', '.', '_' and ':' only"))
    } else {
        Ok(text.to_owned())
    }
}

/// A sum of counts with units, like `7d` or `1h 30m`.
pub(crate) fn duration(text: &str) -> Result<u64, String> {
    const UNITS: [(&[&str], u64); 5] = [
        (&["s", "sec", "secs", "second", "seconds"], 1),
        (&["m", "min", "mins", "minute", "minutes"], 60),
        (&["h", "hr", "hrs", "hour", "hours"], 3600),
        (&["d", "day", "days"], 86_400),
        (&["w", "week", "weeks"], 604_800),
    ];
    let mut seconds = 0_u64;
    let mut rest = text.trim();
    let fault = || "expected a duration like \"7d\" or \"1h 30m\"".to_owned();
    if rest.is_empty() {
        return Err(fault());
    }
    while !rest.is_empty() {
        let digits =
            rest.find(|c: char| !c.is_ascii_digit()).filter(|&at| at > 0).ok_or_else(fault)?;
        let after = rest[digits..].trim_start();
        let unit = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let number: u32 = rest[..digits].parse().map_err(|_| fault())?;
        let (_, each) =
            UNITS.iter().find(|(words, _)| words.contains(&&after[..unit])).ok_or_else(fault)?;
        seconds = seconds.saturating_add(u64::from(number) * each);
        rest = after[unit..].trim_start();
    }
    Ok(seconds)
}

/// A number of bytes, plain or with a binary unit: `64M` is 64 MiB.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let units = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];
    let (digits, shift) = units
        .iter()
        .find_map(|(unit, shift)| {
            let rest = text.strip_suffix("iB").unwrap_or(text);
            Some((rest.strip_suffix(unit)?, *shift))
        })
        .unwrap_or((text, 0));
    let number: u64 = digits
        .trim_end()
        .parse()
        .ok()
        .filter(|_| digits.starts_with(|c: char| c.is_ascii_digit()))?;
    number.checked_mul(1 << shift)
}

/// A time of day, `HH:MM`, as minutes since midnight.
pub(crate) fn time_of_day(text: &str) -> Result<u16, String> {
    let parts = text.split_once(':').and_then(|(hour, minute)| {
        let two = |part: &str, limit: u16| {
            let digits = part.len() == 2 && part.bytes().all(|c| c.is_ascii_digit());
            part.parse::<u16>().ok().filter(|number| digits && *number < limit)
        };
        Some(two(hour, 24)? * 60 + two(minute, 60)?)
    });
    parts.ok_or_else(|| "expected a time of day like \"03:30\"".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_base64_with_or_without_padding() {
        assert_eq!(key("a2V5MQ==").unwrap().expose(), b"key1");
        assert_eq!(key("a2V5MQ").unwrap().expose(), b"key1");
        assert_eq!(key("").unwrap_err(), "the key is empty");
        for text in ["a", "a2V5MQ==x", "not base64!", "a2V5_Q"] {
            assert_eq!(key(text).unwrap_err(), "the key is not base64", "{text}");
        }
    }

    #[test]
    fn a_connection_string_gives_hub_device_and_key() {
        let parsed =
            connection_string("HostName=h.example;DeviceId=press-04;SharedAccessKey=a2V5MQ==;x=1")
                .unwrap();
        assert_eq!((parsed.hub.as_str(), parsed.device_id.as_str()), ("h.example", "press-04"));
        assert_eq!(parsed.key.expose(), b"key1");
        assert_eq!(parsed.ignored, ["an unknown part"]);
    }

    #[test]
    fn a_connection_string_with_a_fault_is_refused_without_showing_it() {
        for (text, why) in [
            ("", "lacks HostName"),
            ("HostName=h;DeviceId=d", "lacks SharedAccessKey"),
            ("HostName=h;DeviceId=d;SharedAccessKey=geheim!", "not base64"),
            ("HostName=https://h;DeviceId=d;SharedAccessKey=a2V5", "leave the scheme out"),
            ("HostName=h;DeviceId=a/b;SharedAccessKey=a2V5", "not allowed at position 1"),
            ("HostName=h;HostName=i;DeviceId=d;SharedAccessKey=a2V5", "HostName twice"),
            ("HostName=h;SharedAccessKeyName=owner;SharedAccessKey=a2V5", "service policy"),
            ("HostName=h;geheim", "without `=`"),
        ] {
            let error = connection_string(text).err().unwrap();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn hosts_may_have_a_port_and_nothing_else() {
        for text in ["hub", "hub.example:8443", "127.0.0.1:1", "[::1]:443", "::1"] {
            assert_eq!(host(text).as_deref(), Ok(text));
        }
        for text in [
            "",
            "https://hub",
            "hub/x",
            "hub:0",
            "hub:99999",
            "a..b",
            "-a",
            "hub x",
            "hub:",
            "1",
            "0x7f000001",
        ] {
            assert!(host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn file_uris_name_absolute_paths() {
        assert_eq!(file_uri("file:///var/a%20b").as_deref(), Ok("/var/a b"));
        assert_eq!(file_uri("file:/var/a").as_deref(), Ok("/var/a"));
        for text in ["file:/var/a%20b", "file:///var/a%20b", "file://localhost/var/a%20b"] {
            assert_eq!(plain_file_uri(text), "file:///var/a%20b");
        }
        for text in [
            "/var/a",
            "file://host/var/a",
            "file:var",
            "file:///a/../b",
            "file:///a%0",
            "file:///a%00",
            "file:///a?x",
        ] {
            assert!(file_uri(text).is_err(), "{text}");
        }
    }

    #[test]
    fn endpoints_are_https_and_lose_a_slash_at_the_end() {
        assert_eq!(https_url("https://dps.example/").as_deref(), Ok("https://dps.example"));
        for text in [
            "http://dps.example",
            "https://",
            "https://u@dps.example",
            "https://dps.example?x",
            "dps.example",
        ] {
            assert!(https_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_has_its_seconds() {
        for (text, expected) in
            [("90s", 90), ("1h 30m", 5400), ("2 days", 172_800), ("1week", 604_800), ("5min", 300)]
        {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        assert_eq!(duration("4294967295 weeks"), Ok(4_294_967_295 * 604_800));
        for text in ["", "12", "h", "1 fortnight", "-1h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_have_binary_units_and_no_others() {
        for (text, number) in
            [("1", 1), ("2K", 2048), ("64M", 64 << 20), ("1GiB", 1 << 30), ("3 T", 3 << 40)]
        {
            assert_eq!(bytes(text), Some(number), "{text}");
        }
        for text in ["", "M", "1.5G", "-1", "+1", "1MB", "1m", "99999999999T", "1iB"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn times_follow_their_grammar() {
        for (text, seconds) in
            [("7d", 604_800), ("1h 30m", 5400), ("90 minutes", 5400), ("1d12h", 129_600)]
        {
            assert_eq!(duration(text), Ok(seconds), "{text}");
        }
        for text in ["", "7", "d", "7x", "1h 30", "99999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!((time_of_day("00:00"), time_of_day("23:59")), (Ok(0), Ok(1439)));
        for text in ["+1:00", "24:00", "1:00", "00:60", "", "0000"] {
            assert!(time_of_day(text).is_err(), "{text}");
        }
    }
}
