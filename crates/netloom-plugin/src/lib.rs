//! What it takes to write a CNI plugin.
//!
//! Implement [`Plugin`], hand it to [`main`], and the rest is done: the environment is read and checked verb by
//! verb, the configuration and `prevResult` are parsed, VERSION and the "about" text are answered, results are
//! printed in the version of the configuration, errors as JSON on standard output. What an ADD has done is
//! undone when it fails, panics or is ended by a signal, as far as the plugin said how ([`Undo`]).
//!
//! A whole plugin, chained behind others, that only notes what it saw:
//!
//! ```no_run
//! use netloom_plugin::{Error, Plugin, Request, Sandbox, Undo, result::v100::Success};
//!
//! struct Note;
//!
//! impl Plugin for Note {
//!     fn name(&self) -> &'static str {
//!         "note"
//!     }
//!     fn add(&self, request: &Request, sandbox: &Sandbox, _: &mut Undo) -> Result<Success, Error> {
//!         eprintln!("{} joins {}", sandbox.container_id, request.config.name);
//!         request.require_prev_result()
//!     }
//!     fn del(&self, _: &Request, _: &Sandbox) -> Result<(), Error> {
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     netloom_plugin::main(&Note)
//! }
//! ```
//!
//! `examples/myplugin1.rs` is a complete one with configuration, CHECK and GC.
#![forbid(unsafe_code)]

mod delegate;
mod linked;
mod request;
mod serve;
mod undo;

pub use linked::{Delegates, NO_DELEGATES};
pub use netloom_invoke::{Environment, Verb};
pub use netloom_types::{
    Attachment, CniArgs, CniError as Error, Code, RequestConfig, RuntimeConfig, SpecVersion, capability,
    result,
};
pub use request::{Request, Sandbox, Variables};
pub use serve::{Console, main, main_with, serve};
pub use undo::Undo;

use netloom_types::result::v100::Success;

/// A plugin. Errors carry the specification's code; what `add` returns is printed in the version of
/// the configuration.
pub trait Plugin: Sync {
    /// Returns the plugin's type, for messages.
    fn name(&self) -> &'static str;

    /// Returns the text for a person who runs the plugin by hand.
    fn about(&self) -> String {
        format!("CNI {} plugin", self.name())
    }

    /// Lists the versions that a configuration may have.
    fn versions(&self) -> &'static [SpecVersion] {
        &SpecVersion::ALL
    }

    /// Returns whether the plugin enters the container's namespace. If not, as an IPAM plugin that only manages addresses, ADD and
    /// CHECK do not require that `CNI_NETNS` exists.
    fn uses_netns(&self) -> bool {
        true
    }

    /// Attaches the container to the network, or adjusts what `prevResult` lists.
    ///
    /// Push onto `undo` how to take back each step before the next one: on any failure the steps are taken
    /// back in reverse.
    ///
    /// # Errors
    /// If the container cannot be put on the network.
    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error>;

    /// Takes the container off the network. Must succeed when there is nothing (left) to do, when the
    /// namespace is gone, and without `prevResult` (SPEC, "DEL").
    ///
    /// # Errors
    /// If something is left that could not be removed.
    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error>;

    /// Compares the container's network with what ADD made.
    ///
    /// # Errors
    /// If something is missing or different.
    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let _ = (request, sandbox);
        Ok(())
    }

    /// Returns an error if ADD would not work.
    ///
    /// # Errors
    /// Code 50 when it would not, 51 when containers may have lost connectivity too.
    fn status(&self, request: &Request) -> Result<(), Error> {
        let _ = request;
        Ok(())
    }

    /// Removes everything of this network that belongs to no attachment in `valid`.
    ///
    /// # Errors
    /// If something could not be removed; the rest must be removed all the same.
    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        let _ = (request, valid);
        Ok(())
    }
}
