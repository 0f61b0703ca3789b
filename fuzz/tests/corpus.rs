//! What was found before, and good examples cut short and disturbed: none makes a door panic.

use std::{fs, path::Path};

#[test]
fn what_was_found_before_breaks_nothing() {
    for (name, target) in fuzz::TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut seeds = 0;
        for entry in fs::read_dir(&dir).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            seeds += 1;
            target(&bytes);
            // At most some dozens of places: a long example's first bytes are not all worth a run.
            let step = (bytes.len() / 40).max(1);
            for at in (0..bytes.len()).step_by(step) {
                target(&bytes[..at]);
                for disturbance in [0x00, 0xff, b'"'] {
                    let mut disturbed = bytes.clone();
                    disturbed[at] = disturbance;
                    target(&disturbed);
                }
            }
        }
        assert!(seeds > 0, "{} has no example", dir.display());
    }
}
