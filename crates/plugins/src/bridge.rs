//! `bridge`: a veth pair whose host end is a port of a bridge.

mod conf;
mod device;
mod gateway;
mod port;
mod verbs;

pub(crate) use conf::Written;

use netloom_plugin::{Attachment, Error, Plugin, Request, Sandbox, Undo, result::v100::Success};

/// The plugin.
#[derive(Debug)]
pub struct Bridge;

impl Plugin for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn add(&self, request: &Request, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        verbs::add(request, sandbox, undo)
    }

    fn del(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        verbs::del(request, sandbox)
    }

    fn check(&self, request: &Request, sandbox: &Sandbox) -> Result<(), Error> {
        verbs::check(request, sandbox)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        verbs::status(request)
    }

    fn gc(&self, request: &Request, valid: &[Attachment]) -> Result<(), Error> {
        verbs::gc(request, valid)
    }
}
