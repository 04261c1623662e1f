//! `images`: what becomes of the images of former modules.

use std::process::ExitCode;

use edgekeep_api::management::{ImageLine, ImagePlan, ManagementClient};

use crate::arguments::Context;
use crate::failure;
use crate::output::{self, printable};

pub(crate) async fn run(context: &Context, collect: bool) -> anyhow::Result<ExitCode> {
    let client = ManagementClient::new(&context.management);
    let plan = if collect { client.collect_images().await } else { client.images().await };
    let plan = failure::of_our_own_route(plan)?;
    // What was to go and is still there: the daemon's log says why.
    let left = collect && plan.images.iter().any(|image| image.remove && !image.removed);
    if context.json {
        output::print_json(&plan)?;
    } else {
        output::print(&render(&plan, collect))?;
    }
    Ok(if left { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn render(plan: &ImagePlan, collected: bool) -> String {
    let mut text = String::new();
    for image in &plan.images {
        let fate = match (image.remove, image.removed) {
            (_, true) => "removed",
            (true, false) if collected => "failed",
            (true, false) => "remove",
            (false, false) => "keep",
        };
        text.push_str(&format!(
            "{fate:<7}  {:<17}  {:>9}  {:>9}  {}\n",
            printable(&image.reason),
            image.unused_seconds.map_or_else(|| "-".to_owned(), time),
            size(image.bytes),
            printable(&name(image)),
        ));
    }
    if let Some(disk) = plan.disk {
        text.push_str(&format!(
            "disk {} % full; above {} % the longest unused go until {} %\n",
            disk.used_percent, disk.high_percent, disk.low_percent
        ));
    }
    if !plan.clock_plausible {
        text.push_str("the clock cannot be right: nothing is removed for its age\n");
    }
    if !plan.enabled {
        text.push_str(
            "images are removed only when asked: [image_garbage_collection] enabled = false\n",
        );
    }
    text
}

fn name(image: &ImageLine) -> String {
    if image.names.is_empty() { image.id.to_string() } else { image.names.join(", ") }
}

/// Operating time, in the largest unit that leaves a number.
fn time(seconds: u64) -> String {
    match seconds {
        0..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes / 1000),
        1_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use edgekeep_api::management::ImageDisk;
    use edgekeep_core::digest::Sha256Digest;

    use super::*;

    #[test]
    fn each_image_has_a_line_with_its_reason() {
        let image = |names: &[&str], remove, reason: &str, unused_seconds| ImageLine {
            id: Sha256Digest::new([7; 32]),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            bytes: 12_345_678,
            unused_seconds,
            remove,
            reason: reason.to_owned(),
            removed: false,
        };
        let plan = ImagePlan {
            enabled: true,
            clock_plausible: true,
            unused_limit_seconds: 1,
            disk: Some(ImageDisk { used_percent: 90, high_percent: 85, low_percent: 75 }),
            images: vec![
                image(&["a:1", "b:1"], true, "unused", Some(700_000)),
                image(&[], false, "not-ours", None),
            ],
        };
        let expected = format!(
            "remove   unused                8 days      12 MB  a:1, b:1\n\
             keep     not-ours                   -      12 MB  sha256:{}\n\
             disk 90 % full; above 85 % the longest unused go until 75 %\n",
            "07".repeat(32)
        );
        assert_eq!(render(&plan, false), expected);
    }
}
