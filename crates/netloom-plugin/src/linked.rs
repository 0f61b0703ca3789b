//! Plugins that are linked into a program, which can call them without starting a process.

use crate::Plugin;

/// The plugins that are linked into this program, by type.
///
/// A delegated plugin is looked up in `CNI_PATH` as usual. If the file is this program (the same inode, or an installed copy
/// beside it) and its type is a linked plugin, the linked function is called and no process is started.
#[derive(Debug, Clone, Copy)]
pub struct Delegates {
    /// A function that returns the linked plugin of a type.
    pub linked: fn(&str) -> Option<&'static dyn Plugin>,
}

/// No linked plugins: every delegated plugin runs as a process.
pub const NO_DELEGATES: Delegates = Delegates { linked: |_| None };
