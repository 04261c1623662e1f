//! Create options of containers: judged without a panic, and in the engine's spelling
//! after the first pass.
#![no_main]

use edgekeep_core::create_options::{
    Found, Grant, Judge, OwnState, PublishedPorts, canonical, paths_to_resolve, volumes_to_look_at,
    without_elevation, without_self_removal,
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

fuzz_target!(|content: &[u8]| {
    let Ok(options) = serde_json::from_slice::<Map<String, Value>>(content) else { return };
    let Ok(mut options) = canonical(&options) else { return };
    assert_eq!(canonical(&options).as_ref(), Ok(&options));
    let grant = Grant::default();
    let own = ["/run/edgekeep".to_owned(), "/var/lib/edgekeep".to_owned()];
    let module = "module".parse().expect("a module's name");
    for elevated in [false, true] {
        for own_state in [OwnState::Hide, OwnState::Refuse] {
            let judge = Judge {
                module: &module,
                grant: &grant,
                elevated,
                ports: PublishedPorts::Granted,
                own_state,
                present: &own,
                own: &own,
                open: &[],
            };
            let found = Found::default();
            let _ = judge.judge(&options, &found);
            let _ = judge.hidden(&options, &found);
        }
    }
    let _ = volumes_to_look_at(&options);
    let _ = paths_to_resolve(&options, &Default::default(), &grant);
    let _ = without_self_removal(&mut options);
    let _ = without_elevation(&mut options, &grant);
});
