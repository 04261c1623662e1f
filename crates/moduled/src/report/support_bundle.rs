//! The support bundle: one zip with what a person who helps wants to see, and no secret
//! (wire facts 2.8).

use std::io::{Cursor, Write as _};
use std::sync::Arc;
use std::time::Duration;

use edgekeep_api::management::Refusal;
use edgekeep_api::operations::ProblemList;
use edgekeep_core::id::ModuleId;
use edgekeep_runtime::logs::LogQuery;
use serde_json::{Value, json};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

use crate::modules::error::ModuleError;
use crate::modules::shown::remove_agents_copies;
use crate::report::Report;
use crate::report::health;

/// Time for one module's log.
const STEP: Duration = Duration::from_secs(10);
/// Largest part of one module's log, from its beginning in the asked time.
const LOG_LIMIT: usize = 4 << 20;
/// Largest sum of all logs.
const TOTAL_LIMIT: usize = 32 << 20;

/// Reason for which there is no bundle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SupportBundleError {
    /// Another one is being made, in memory.
    #[error("another support bundle is being made; try again when it is done")]
    Busy,
    /// The zip cannot be written.
    #[error("cannot write the bundle: {0}")]
    Zip(#[from] zip::result::ZipError),
}

/// Makes the bundle: a zip. A step that fails or takes too long leaves a line with the
/// reason in its place. `query` says of which time the logs are, `runtime_only` whether
/// they are those of the agent and the hub alone.
///
/// # Errors
/// See [`SupportBundleError`].
pub(crate) async fn make(
    report: &Arc<Report>,
    query: &LogQuery,
    runtime_only: bool,
    refusals: (Vec<Refusal>, u64),
) -> Result<Vec<u8>, SupportBundleError> {
    let _one_at_a_time =
        report.support_bundle.try_acquire().map_err(|_| SupportBundleError::Busy)?;
    let mut budget = TOTAL_LIMIT;
    let mut entries: Vec<(String, Vec<u8>)> = Vec::new();
    let modules = match report.modules.list().await {
        Ok(list) => list.modules,
        Err(error) => {
            entries.push(("logs/_err.txt".into(), error.to_string().into_bytes()));
            Vec::new()
        }
    };
    for module in modules
        .iter()
        .filter(|module| !runtime_only || matches!(&*module.name, "edgeAgent" | "edgeHub"))
    {
        let Ok(id) = module.name.parse::<ModuleId>() else { continue };
        let limit = LOG_LIMIT.min(budget);
        let log = match tokio::time::timeout(STEP, read_log(report, &id, query, limit)).await {
            Ok(Ok(log)) => {
                budget -= log.len().min(budget);
                log
            }
            Ok(Err(error)) => error.to_string().into_bytes(),
            Err(_) => format!("the log did not come within {} s", STEP.as_secs()).into_bytes(),
        };
        entries.push((format!("logs/{}_log.txt", module.name), log));
        // The listing has no environment and no credentials, unlike the engine's own
        // inspection; but agents keep copies of both in labels.
        let mut shown = serde_json::to_value(module).unwrap_or_default();
        if let Some(settings) = shown.pointer_mut("/config/settings") {
            remove_agents_copies(settings);
        }
        let shown = serde_json::to_vec_pretty(&shown).unwrap_or_default();
        entries.push((format!("inspect/{}.json", module.name), shown));
    }
    let (refusals, refusal_count) = refusals;
    let overview: Value = json!({
        "version": report.system_info.version,
        "kernel": report.system_info.kernel_release,
        "health": ProblemList::from(&health::of_device(report).await),
        "refusals": refusals,
        "refusalCount": refusal_count,
    });
    entries.push(("check.json".into(), serde_json::to_vec_pretty(&overview).unwrap_or_default()));
    Ok(zipped(&entries)?)
}

async fn read_log(
    report: &Report,
    module: &ModuleId,
    query: &LogQuery,
    limit: usize,
) -> Result<Vec<u8>, ModuleError> {
    let mut stream = report.modules.logs(module, query).await?;
    let mut framed = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| ModuleError::Device(error.to_string()))?;
        if framed.len() + piece.len() > limit {
            break;
        }
        framed.extend_from_slice(&piece);
    }
    Ok(without_frames(&framed))
}

/// The text of a framed log; a frame that is cut off is left out.
fn without_frames(mut framed: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(framed.len());
    while let Some((header, rest)) = framed.split_at_checked(8) {
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        text.extend_from_slice(payload);
        framed = rest;
    }
    text
}

fn zipped(entries: &[(String, Vec<u8>)]) -> zip::result::ZipResult<Vec<u8>> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, content) in entries {
        writer.start_file(name, options)?;
        writer.write_all(content)?;
    }
    Ok(writer.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_from_logs_and_a_cut_frame_is_left_out() {
        let framed = [
            &[1, 0, 0, 0, 0, 0, 0, 2][..],
            b"ab",
            &[2, 0, 0, 0, 0, 0, 0, 1],
            b"c",
            &[1, 0, 0, 0, 0, 0, 0, 9],
        ];
        assert_eq!(without_frames(&framed.concat()), b"abc");
    }

    #[test]
    fn the_bundle_is_a_zip_that_reads_back() {
        let bytes = zipped(&[("logs/a_log.txt".into(), b"hello".to_vec())]).unwrap();
        let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut archive.by_name("logs/a_log.txt").unwrap(), &mut text)
            .unwrap();
        assert_eq!(text, "hello");
    }
}
