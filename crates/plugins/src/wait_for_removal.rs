//! The key `waitForRemoval`, which every plugin accepts: DEL waits until the kernel has released everything.

use netloom_plugin::{
    Attachment, Code, Error, Plugin, Request, Sandbox, SpecVersion, Undo, result::v100::Success,
};
use netloom_types::json;
use serde_json::Value;

/// A plugin with support for `waitForRemoval`, and with the release in its about text.
///
/// `NETLOOM_WAIT=1` has the effect of the key for every configuration.
#[derive(Clone, Copy)]
pub struct WaitForRemoval(pub &'static dyn Plugin);

/// The key's name.
pub(crate) const KEY: &str = "waitForRemoval";

/// Returns whether the key is true.
fn is_set(request: &Request) -> Result<bool, Error> {
    match json::lookup(&request.config.object, KEY) {
        None => Ok(false),
        Some(Value::Bool(set)) => Ok(*set),
        Some(other) => Err(Error::new(
            Code::Decode,
            format!("`{KEY}`: expected true or false, found {}", json::kind_of(other)),
        )
        .details(format!("set `{KEY}` to true or false, without quotes, or leave it out"))),
    }
}

/// Makes removals wait for the kernel's grace periods, which they otherwise leave to a child process.
fn apply(request: &Request) {
    // A value that ADD refuses must not stop a removal.
    if is_set(request).unwrap_or(false) {
        kernel::deferred::wait_always();
    }
}

impl Plugin for WaitForRemoval {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn about(&self) -> String {
        format!("{} v{} (Netloom)", self.0.about(), env!("CARGO_PKG_VERSION"))
    }

    fn uses_netns(&self) -> bool {
        self.0.uses_netns()
    }

    fn checks_result(&self) -> bool {
        self.0.checks_result()
    }

    fn versions(&self) -> &'static [SpecVersion] {
        self.0.versions()
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        is_set(request)?;
        self.0.add(request, sandbox, undo)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        apply(request);
        self.0.del(request, sandbox)
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        self.0.check(request, sandbox)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        is_set(request)?;
        self.0.status(request)
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        apply(request);
        self.0.gc(request, valid)
    }
}
