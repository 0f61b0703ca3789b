//! Finds CNI plugins in `CNI_PATH` and runs them as processes.
//!
//! Runtimes use it to call plugins, and plugins use it to call delegated plugins. [`is_this_program`] lets a caller recognize a
//! plugin that is linked into its own binary.
#![forbid(unsafe_code)]

mod find;
mod process;

pub use find::{FileId, FindError, find_in_path, is_this_program, split_path};
pub use process::{
    Call, Environment, ExecError, Executor, LoggedProcesses, Outcome, Processes, Verb, error_of,
};
