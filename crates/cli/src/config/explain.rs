//! `config explain`: the meaning of a key, in words.

use std::process::ExitCode;

use anyhow::bail;
use edgekeep_config::{Explanation, explain, top_level};

use crate::arguments::Context;
use crate::output;

pub(crate) fn run(context: &Context, key: Option<&str>) -> anyhow::Result<ExitCode> {
    let Some(asked) = key else {
        let all = top_level();
        if context.json {
            output::print_json(&all)?;
        } else {
            output::print(&list(&all))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let found = match explain(asked) {
        Ok(found) => found,
        Err(Some(meant)) => {
            bail!("no key is called {}; did you mean {meant}?", output::printable(asked));
        }
        Err(None) => bail!(
            "no key is called {}; `edgekeep config explain` lists those of the top level",
            output::printable(asked)
        ),
    };
    if context.json {
        output::print_json(&found)?;
    } else {
        let texts: Vec<String> = found.iter().map(in_full).collect();
        output::print(&texts.join("\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One line a key.
fn list(keys: &[Explanation]) -> String {
    let width = keys.iter().map(|key| key.key.len()).max().unwrap_or(0);
    let line = |key: &Explanation| format!("{:<width$}  {}\n", key.key, key.meaning);
    keys.iter().map(line).collect()
}

fn in_full(key: &Explanation) -> String {
    let mut text = format!("{}\n  {}\n  takes {}\n", key.key, key.meaning, key.takes);
    if let Some(remark) = &key.remark {
        text.push_str(&format!("  {remark}\n"));
    }
    if !key.aliases.is_empty() {
        text.push_str(&format!("  also written {}\n", key.aliases.join(", ")));
    }
    if let Some(example) = &key.example {
        text.push_str(&format!("  example: {example}\n"));
    }
    if !key.keys.is_empty() {
        text.push_str(&format!("  keys: {}\n", key.keys.join(", ")));
    }
    text
}
