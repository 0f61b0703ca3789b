//! Calls of delegated plugins, such as IPAM plugins (SPEC, "Section 4").

use std::path::Path;

use netloom_invoke::{
    Call, ExecError, Executor, Outcome, Processes, Verb, error_of, find_in_path, is_this_program,
};
use netloom_types::{Attachment, CniError, CniResult, Code, result::v100::Success};

use crate::{Plugin, Request, Sandbox, undo::Undo};

enum Delegate {
    Linked(&'static dyn Plugin),
    Program(std::path::PathBuf),
}

impl Request {
    /// Calls ADD of the delegated plugin `kind`, and registers its DEL as an undo step.
    ///
    /// # Errors
    /// If the delegated plugin fails. Its DEL runs with the other undo steps.
    pub fn delegate_add(&self, kind: &str, sandbox: &Sandbox, undo: &mut Undo) -> Result<Success, CniError> {
        match self.delegate(kind)? {
            Delegate::Linked(plugin) => plugin.add(self, sandbox, undo),
            Delegate::Program(program) => {
                let program_for_undo = program.clone();
                let (environment, stdin) = (self.environment.clone(), self.stdin());
                undo.push(format!("release the resources of {kind}"), move || {
                    run(&program_for_undo, Verb::Del, &environment, &stdin).map(drop)
                })?;
                let outcome = run(&program, Verb::Add, &self.environment, &self.stdin())?;
                let result = CniResult::parse(&outcome.stdout, self.version).map_err(|error| {
                    let shown: String = String::from_utf8_lossy(&outcome.stdout).chars().take(200).collect();
                    CniError::new(
                        Code::Decode,
                        format!("plugin {kind:?} did not answer with a result: {error}"),
                    )
                    .details(format!("it printed {shown:?}"))
                })?;
                Ok(result.into_current())
            }
        }
    }

    /// Calls DEL of the delegated plugin `kind`.
    ///
    /// # Errors
    /// If the delegated plugin fails.
    pub fn delegate_del(&self, kind: &str, sandbox: &Sandbox) -> Result<(), CniError> {
        self.delegate_to(kind, |plugin| plugin.del(self, sandbox))
    }

    /// Calls CHECK of the delegated plugin `kind`.
    ///
    /// # Errors
    /// If the delegated plugin fails.
    pub fn delegate_check(&self, kind: &str, sandbox: &Sandbox) -> Result<(), CniError> {
        self.delegate_to(kind, |plugin| plugin.check(self, sandbox))
    }

    /// Calls STATUS of the delegated plugin `kind`.
    ///
    /// # Errors
    /// If the delegated plugin is not ready.
    pub fn delegate_status(&self, kind: &str) -> Result<(), CniError> {
        self.delegate_to(kind, |plugin| plugin.status(self))
    }

    /// Calls GC of the delegated plugin `kind`.
    ///
    /// # Errors
    /// If the delegated plugin fails.
    pub fn delegate_gc(&self, kind: &str, valid: &[Attachment]) -> Result<(), CniError> {
        self.delegate_to(kind, |plugin| plugin.gc(self, valid))
    }

    fn delegate_to(
        &self,
        kind: &str,
        linked: impl FnOnce(&'static dyn Plugin) -> Result<(), CniError>,
    ) -> Result<(), CniError> {
        match self.delegate(kind)? {
            Delegate::Linked(plugin) => linked(plugin),
            Delegate::Program(program) => {
                run(&program, self.verb, &self.environment, &self.stdin()).map(drop)
            }
        }
    }

    fn delegate(&self, kind: &str) -> Result<Delegate, CniError> {
        let program = find_in_path(kind, &self.path)
            .map_err(|error| CniError::new(Code::Internal, error.to_string()))?;
        let linked = (self.delegates.linked)(kind);
        Ok(match linked {
            Some(plugin) if is_this_program(&program) => Delegate::Linked(plugin),
            _ => Delegate::Program(program),
        })
    }

    /// Renders the configuration for a delegated plugin, with every key as received.
    fn stdin(&self) -> Vec<u8> {
        serde_json::Value::Object(self.config.object.clone()).to_string().into_bytes()
    }
}

fn run(
    program: &Path,
    verb: Verb,
    environment: &netloom_invoke::Environment,
    stdin: &[u8],
) -> Result<Outcome, CniError> {
    let call = Call { program, verb, environment, stdin, timeout: None };
    let outcome = Processes
        .execute(&call)
        .map_err(|error: ExecError| CniError::new(Code::Internal, error.to_string()))?;
    // The log of a delegated plugin is part of its caller's log.
    drop(std::io::Write::write_all(&mut std::io::stderr(), outcome.stderr.as_bytes()));
    if outcome.status.success() {
        return Ok(outcome);
    }
    let mut error = error_of(&Outcome { stderr: String::new(), ..outcome });
    if error.code == Code::Unknown {
        error.code = Code::Internal;
    }
    Err(error)
}
