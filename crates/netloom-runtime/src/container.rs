//! What a runtime attaches to a network.

use netloom_types::Object;

/// The container that is attached.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// Its ID.
    pub id: String,
    /// The path of its network namespace; empty at DEL when it is gone.
    pub netns: String,
    /// The interface to make in it.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What is offered to plugins that declare the capability of the same name.
    pub capability_args: Object,
}

impl Container {
    /// Creates a container with interface `eth0` and no arguments.
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
