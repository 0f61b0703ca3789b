//! What a configuration may say to any plugin: whether DEL waits until the kernel has let go of everything.

use netloom_plugin::{
    Attachment, Code, Error, Plugin, Request, Sandbox, SpecVersion, Undo, result::v100::Success,
};
use netloom_types::json;
use serde_json::Value;

/// A plugin that heeds `waitForRemoval` of its configuration, as `NETLOOM_WAIT=1` asks for all.
#[derive(Clone, Copy)]
pub struct WaitForRemoval(pub &'static dyn Plugin);

/// The key.
pub(crate) const KEY: &str = "waitForRemoval";

fn is_asked(request: &Request) -> Result<bool, Error> {
    match json::lookup(&request.config.object, KEY) {
        None => Ok(false),
        Some(Value::Bool(asked)) => Ok(*asked),
        Some(other) => Err(Error::new(
            Code::Decode,
            format!("`{KEY}`: expected true or false, found {}", json::kind_of(other)),
        )),
    }
}

/// By itself a removal leaves the kernel's grace periods to a child.
fn heed(request: &Request) {
    // What ADD would refuse must not stop a removal.
    if is_asked(request).unwrap_or(false) {
        kernel::deferred::wait_always();
    }
}

impl Plugin for WaitForRemoval {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn about(&self) -> String {
        self.0.about()
    }

    fn versions(&self) -> &'static [SpecVersion] {
        self.0.versions()
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        is_asked(request)?;
        self.0.add(request, sandbox, undo)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        heed(request);
        self.0.del(request, sandbox)
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        self.0.check(request, sandbox)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        is_asked(request)?;
        self.0.status(request)
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        heed(request);
        self.0.gc(request, valid)
    }
}
