//! `logs`: what a module wrote, its two streams kept apart.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use edgekeep_api::management::ManagementClient;
use edgekeep_api::path_segment;
use http_body_util::BodyExt as _;
use serde_json::json;

use crate::arguments::{Context, LogsOptions};
use crate::frames::{Frames, Stream};

/// Longest line that `--json` holds back until its end comes.
const MAX_LINE: usize = 64 * 1024;

pub(crate) async fn run(context: &Context, options: LogsOptions) -> anyhow::Result<ExitCode> {
    let client = ManagementClient::new(&context.management);
    let mut body = client.logs(&options.module, &query(&options)).await?.into_body();
    let mut frames = Frames::new();
    let mut lines = Lines::default();
    let (mut out, mut error) = (io::stdout().lock(), io::stderr().lock());
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the log ended early")?;
        let Some(bytes) = frame.data_ref() else { continue };
        let mut written = Ok(());
        frames.push(bytes, |stream, text| {
            let write = if context.json {
                lines.push(stream, text, &mut out)
            } else {
                match stream {
                    Stream::Out => out.write_all(text),
                    Stream::Error => error.write_all(text),
                }
            };
            if written.is_ok() {
                written = write;
            }
        });
        written?;
        out.flush()?;
    }
    lines.end(&mut out)?;
    Ok(ExitCode::SUCCESS)
}

fn query(options: &LogsOptions) -> String {
    let mut query = format!("&follow={}&timestamps={}", options.follow, options.timestamps);
    for (name, value) in
        [("tail", &options.tail), ("since", &options.since), ("until", &options.until)]
    {
        if let Some(value) = value {
            query.push_str(&format!("&{name}={}", path_segment(value)));
        }
    }
    query
}

/// Puts lines together and writes each as one JSON object.
#[derive(Debug, Default)]
struct Lines {
    out: Vec<u8>,
    error: Vec<u8>,
}

impl Lines {
    fn push(&mut self, stream: Stream, text: &[u8], to: &mut impl io::Write) -> io::Result<()> {
        let held = match stream {
            Stream::Out => &mut self.out,
            Stream::Error => &mut self.error,
        };
        for part in text.split_inclusive(|byte| *byte == b'\n') {
            held.extend_from_slice(part);
            if held.ends_with(b"\n") || held.len() >= MAX_LINE {
                write_line(stream, held, to)?;
                held.clear();
            }
        }
        Ok(())
    }

    fn end(&mut self, to: &mut impl io::Write) -> io::Result<()> {
        for (stream, held) in [(Stream::Out, &self.out), (Stream::Error, &self.error)] {
            if !held.is_empty() {
                write_line(stream, held, to)?;
            }
        }
        Ok(())
    }
}

fn write_line(stream: Stream, line: &[u8], to: &mut impl io::Write) -> io::Result<()> {
    let stream = if stream == Stream::Out { "stdout" } else { "stderr" };
    let line = String::from_utf8_lossy(line);
    writeln!(to, "{}", json!({ "stream": stream, "line": line.trim_end_matches(['\n', '\r']) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_names_what_was_asked_for_encoded() {
        let mut options = LogsOptions {
            module: "m".into(),
            follow: true,
            tail: Some("5".into()),
            since: Some("2026-07-01T00:00:00+02:00".into()),
            until: None,
            timestamps: false,
        };
        assert_eq!(
            query(&options),
            "&follow=true&timestamps=false&tail=5&since=2026-07-01T00%3A00%3A00%2B02%3A00"
        );
        options.since = Some("1h&follow=false".into());
        assert!(!query(&options).contains("&follow=false"));
    }

    #[test]
    fn json_lines_are_whole_lines_of_one_stream() {
        let mut lines = Lines::default();
        let mut to = Vec::new();
        lines.push(Stream::Out, b"one\ntw", &mut to).unwrap();
        lines.push(Stream::Error, b"bad\n", &mut to).unwrap();
        lines.push(Stream::Out, b"o\nthree", &mut to).unwrap();
        lines.end(&mut to).unwrap();
        let text = String::from_utf8(to).unwrap();
        let expected =
            [("stdout", "one"), ("stderr", "bad"), ("stdout", "two"), ("stdout", "three")]
                .map(|(stream, line)| format!("{{\"stream\":\"{stream}\",\"line\":\"{line}\"}}\n"));
        assert_eq!(text, expected.concat());
    }
}
