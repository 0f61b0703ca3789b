//! Plugins that are linked into a program, so that it can call them without starting a process.

use crate::Plugin;

/// The plugins that are linked into this program, by type.
///
/// A delegated plugin is looked up in `CNI_PATH` as usual. If the file found is this program (the same inode, or an installed copy
/// beside it) and the type is among the linked plugins, its function is called instead of a process.
#[derive(Debug, Clone, Copy)]
pub struct Delegates {
    /// Returns the linked plugin of a type.
    pub linked: fn(&str) -> Option<&'static dyn Plugin>,
}

/// No linked plugins: every delegated plugin is a process.
pub const NO_DELEGATES: Delegates = Delegates { linked: |_| None };
