//! Finds a plugin and calls it: as a process, or as a function that is linked into this binary.
//!
//! Runtimes call plugins with it, and plugins call the ones that they delegate to. It knows nothing of what a
//! plugin does.
#![forbid(unsafe_code)]

mod find;
mod process;

pub use find::{FileId, FindError, find_in_path, is_this_program, split_path};
pub use process::{Call, Environment, ExecError, Executor, Outcome, Processes, Verb, error_of};
