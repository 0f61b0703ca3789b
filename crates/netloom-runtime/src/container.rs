//! The container that a runtime attaches to a network.

use netloom_types::Object;

/// A container and its interface.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// The container's ID.
    pub id: String,
    /// The path of the network namespace; may be empty at DEL if the namespace no longer exists.
    pub netns: String,
    /// The name of the interface in the container.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// The values for plugins that declare the capability of the same name.
    pub capability_args: Object,
}

impl Container {
    /// Creates a container with interface `eth0`, without arguments.
    pub fn new(id: impl Into<String>, netns: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            netns: netns.into(),
            ifname: "eth0".into(),
            args: Vec::new(),
            capability_args: Object::new(),
        }
    }
}
