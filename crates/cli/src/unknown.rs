//! Words that are no verb here, and the verb that does what they mean.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Words of the compatible tools and of habit, and what to use.
const POINTERS: [(&str, &str); 22] = [
    ("apply", "edgekeep config apply"),
    ("backup", "edgekeep keys backup"),
    ("bundle", "edgekeep support-bundle"),
    ("cert", "edgekeep certs list"),
    ("certificates", "edgekeep certs list"),
    ("dashboard", "edgekeep status"),
    ("doctor", "edgekeep check, and edgekeep keys doctor for a token or TPM"),
    (
        "import",
        "edgekeep migrate for a device of version 1.2 or newer. A config.yaml of 1.0 or 1.1 is not read: write a config.toml \
         (edgekeep config explain), with imported_master_encryption_key for what modules have encrypted",
    ),
    ("info", "edgekeep status, and edgekeep identity show"),
    (
        "mp",
        "edgekeep config apply, with these lines in config.toml: [provisioning], source = \"manual\", connection_string = \"...\"",
    ),
    ("problems", "edgekeep status"),
    ("ps", "edgekeep list"),
    ("reload", "edgekeep config apply, and edgekeep system restart"),
    ("renew", "edgekeep certs renew"),
    ("reprovision", "edgekeep identity reprovision"),
    ("restore", "edgekeep keys restore"),
    ("rollback", "edgekeep config rollback"),
    ("set-log-level", "edgekeep system set-log-level"),
    ("start", "edgekeep system restart for the daemons, edgekeep restart MODULE for a module"),
    ("stop", "edgekeep system stop"),
    ("undo", "edgekeep migrate --undo, or edgekeep config rollback"),
    ("verify", "edgekeep audit verify"),
];

/// The verb that does what was meant, where one does.
pub(crate) fn pointer(error: &clap::Error) -> Option<&'static str> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    POINTERS.iter().find(|(known, _)| known == word).map(|(_, pointer)| *pointer)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::arguments::Arguments;

    fn told(words: &[&str]) -> Option<&'static str> {
        pointer(&Arguments::try_parse_from(words).unwrap_err())
    }

    #[test]
    fn words_of_other_tools_lead_to_the_right_verb() {
        assert_eq!(told(&["edgekeep", "reprovision"]), Some("edgekeep identity reprovision"));
        assert_eq!(told(&["iotedge", "stop", "x"]), Some("edgekeep system stop"));
        assert!(
            told(&["aziotctl", "config", "mp", "-c", "x"]).unwrap().contains("connection_string")
        );
        assert!(told(&["iotedge", "config", "import"]).unwrap().contains("edgekeep migrate"));
        assert_eq!(told(&["edgekeep", "nonsense"]), None);
        assert_eq!(told(&["edgekeep", "list", "--nonsense"]), None);
    }

    #[test]
    fn each_pointer_begins_with_a_verb_that_there_is() {
        for (word, pointer) in POINTERS {
            let verbs: Vec<&str> =
                pointer.split([' ', ',']).take_while(|part| !part.is_empty()).take(3).collect();
            let mut command = &<Arguments as clap::CommandFactory>::command();
            for verb in verbs.iter().skip(1).take(1) {
                command = command.find_subcommand(verb).unwrap_or_else(|| panic!("{word}: {verb}"));
            }
        }
    }
}
