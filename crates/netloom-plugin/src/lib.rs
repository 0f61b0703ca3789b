//! A library for writing CNI plugins.
//!
//! A plugin implements [`Plugin`] and passes it to [`main`]. The crate reads the variables and checks them verb by verb, parses
//! the configuration and `prevResult`, and answers VERSION and calls without `CNI_COMMAND`. It prints results in the version of
//! the configuration, and errors as JSON on standard output. If an ADD fails, panics or is interrupted by a signal, the crate
//! runs the undo steps that the plugin registered ([`Undo`]).
//!
//! A complete chained plugin that only logs each attachment:
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
//! `examples/myplugin1.rs` is a plugin with configuration, CHECK and GC.
#![forbid(unsafe_code)]

mod caller;
mod delegate;
mod linked;
mod request;
mod serve;
mod undo;

pub use caller::is_abandoned;
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

/// A plugin. Errors carry a code of the specification or of the plugin. The result of [`Self::add`] is printed in the version of
/// the configuration.
pub trait Plugin: Sync {
    /// Returns the plugin's type, for messages.
    fn name(&self) -> &'static str;

    /// Returns the description that is printed if the plugin is called without `CNI_COMMAND`.
    fn about(&self) -> String {
        format!("CNI {} plugin", self.name())
    }

    /// Returns the supported configuration versions.
    fn versions(&self) -> &'static [SpecVersion] {
        &SpecVersion::ALL
    }

    /// Returns whether the plugin enters the container's namespace. If not, as an IPAM plugin that only manages addresses, ADD and
    /// CHECK do not require that `CNI_NETNS` exists.
    fn uses_netns(&self) -> bool {
        true
    }

    /// Returns whether CHECK compares with the result of ADD. If not, CHECK does not require `prevResult`.
    fn checks_result(&self) -> bool {
        true
    }

    /// Attaches the container to the network, or adjusts what `prevResult` lists.
    ///
    /// After each step, push its undo step onto `undo`. If the ADD fails, the undo steps run in reverse order.
    ///
    /// # Errors
    /// If the container cannot be attached to the network.
    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error>;

    /// Detaches the container from the network. Must succeed if there is nothing to remove, if the namespace no longer exists,
    /// and without `prevResult` (SPEC, "DEL").
    ///
    /// # Errors
    /// If an object of the attachment cannot be removed.
    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error>;

    /// Checks that the attachment still matches the result of ADD.
    ///
    /// # Errors
    /// If an object of the attachment is missing or differs.
    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        let _ = (request, sandbox);
        Ok(())
    }

    /// Checks that the plugin can service ADD.
    ///
    /// # Errors
    /// Code 50 if it cannot, 51 if existing containers may also have limited connectivity.
    fn status(&self, request: &Request) -> Result<(), Error> {
        let _ = request;
        Ok(())
    }

    /// Removes everything of this network that belongs to no attachment in `valid`.
    ///
    /// # Errors
    /// If an object cannot be removed. The plugin must still remove the others.
    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        let _ = (request, valid);
        Ok(())
    }
}
