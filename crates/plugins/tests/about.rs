//! What a plugin says when it is run by hand, without a verb.

use netloom_plugin::Plugin;

/// The first line names the plugin and the release that it belongs to.
#[test]
fn every_about_text_has_the_version() {
    for plugin in plugins::ALL {
        let about = plugins::WaitForRemoval(plugin).about();
        let name = plugin.name();
        assert_eq!(about, format!("CNI {name} plugin v{} (Netloom)", env!("CARGO_PKG_VERSION")));
    }
}
