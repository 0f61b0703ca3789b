//! Whether the names in `crates/netloom/hot.ld` still exist, read from the linker's map of a build.

/// Returns a line about the names of `hot.ld` that match nothing in the map of a build, or `None` if nearly all match.
///
/// Functions that were renamed or inlined lose their place: the program still works and starts a little slower.
pub(crate) fn stale(map: &str) -> Option<String> {
    // Some functions are inlined in one build and not in another.
    const ENOUGH_PERCENT: usize = 97;
    let (found, listed) = matched(map)?;
    (found * 100 < listed * ENOUGH_PERCENT).then(|| {
        format!("hot.ld is stale: {found} of its {listed} names are in the binary; update it with `cargo xtask hot`")
    })
}

/// Counts the patterns of `hot.ld` that match a section in the map of GNU ld, and all its patterns.
fn matched(map: &str) -> Option<(usize, usize)> {
    let (_, block) = map.split_once("\n.text.hot ")?;
    let (mut found, mut listed, mut is_open) = (0, 0, false);
    for line in block.lines().skip(1).take_while(|line| line.starts_with(' ')) {
        if line.starts_with(" *") && line.contains("(.text") {
            listed += 1;
            is_open = true;
        } else if line.starts_with(" .text") && is_open {
            found += 1;
            is_open = false;
        }
    }
    (listed > 0).then_some((found, listed))
}
