//! The conformance vectors of a plugin's `main`, and the guarantees of the crate: one answer, undo on failure.
//!
//! The comment of each test lists its requirements (R) and vectors (V); `cargo xtask spec` reads them.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

use std::{
    io::{self, Read},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use netloom_plugin::{
    Attachment, Code, Console, Error, NO_DELEGATES, Plugin, Request, Sandbox, SpecVersion, Undo, Variables,
    result::v100::Success, serve,
};
use serde_json::Value;

/// A plugin that records the called verbs and behaves as its fields specify.
#[derive(Default)]
struct Fake {
    versions: Option<&'static [SpecVersion]>,
    fails: Option<Error>,
    panics: bool,
    calls: Mutex<Vec<&'static str>>,
    undone: Arc<Mutex<Vec<&'static str>>>,
}

impl Fake {
    fn called(&self, verb: &'static str) -> Result<(), Error> {
        self.calls.lock().unwrap().push(verb);
        self.fails.clone().map_or(Ok(()), Err)
    }
}

impl Plugin for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn about(&self) -> String {
        "AWESOME PLUGIN".into()
    }
    fn versions(&self) -> &'static [SpecVersion] {
        self.versions.unwrap_or(&SpecVersion::ALL)
    }
    fn add(&self, request: &Request, _: &Sandbox, undo: &mut Undo) -> Result<Success, Error> {
        for step in ["first", "second"] {
            let undone = Arc::clone(&self.undone);
            undo.push(step, move || {
                undone.lock().unwrap().push(step);
                Ok(())
            })?;
        }
        assert!(!self.panics, "on purpose");
        self.called("ADD")?;
        Ok(request.prev_result.clone().unwrap_or_default())
    }
    fn del(&self, _: &Request, _: &Sandbox) -> Result<(), Error> {
        self.called("DEL")
    }
    fn check(&self, _: &Request, _: &Sandbox) -> Result<(), Error> {
        self.called("CHECK")
    }
    fn status(&self, _: &Request) -> Result<(), Error> {
        self.called("STATUS")
    }
    fn gc(&self, _: &Request, valid: &[Attachment]) -> Result<(), Error> {
        assert!(valid.len() < 2);
        self.called("GC")
    }
}

struct Answer {
    ok: bool,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn error(&self) -> (u64, String) {
        assert!(!self.ok, "no error: {}", self.stdout);
        let value: Value = serde_json::from_str(&self.stdout).expect(&self.stdout);
        (value["code"].as_u64().unwrap(), value["msg"].as_str().unwrap().to_owned())
    }
}

fn call_with(plugin: &Fake, variables: &[(&str, &str)], stdin: &mut dyn Read, interrupted: bool) -> Answer {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut console = Console {
        stdin,
        stdout: &mut stdout,
        stderr: &mut stderr,
        interrupted: Arc::new(AtomicBool::new(interrupted)),
    };
    let variables: Variables = variables.iter().copied().collect();
    let ok = serve(plugin, &variables, &mut console, NO_DELEGATES);
    Answer { ok, stdout: String::from_utf8(stdout).unwrap(), stderr: String::from_utf8(stderr).unwrap() }
}

fn call(plugin: &Fake, variables: &[(&str, &str)], stdin: &str) -> Answer {
    call_with(plugin, variables, &mut stdin.as_bytes(), false)
}

/// A namespace that exists and is not this thread's network namespace: the file of the mount namespace.
const NETNS: (&str, &str) = ("CNI_NETNS", "/proc/self/ns/mnt");
const ID: (&str, &str) = ("CNI_CONTAINERID", "some-container-id");
const IFNAME: (&str, &str) = ("CNI_IFNAME", "eth0");
const PATH: (&str, &str) = ("CNI_PATH", "/some/cni/path");

fn verb(verb: &str) -> [(&str, &str); 5] {
    [("CNI_COMMAND", verb), ID, NETNS, IFNAME, PATH]
}

const CONF: &str = r#"{"cniVersion":"1.1.0","name":"net","type":"fake","prevResult":{"cniVersion":"1.1.0"},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}"#;

/// R20, R21, R22, R24, R34, R39, R50, R65, V7, V8, V9: the variables that each verb needs.
#[test]
fn variables_of_each_verb() {
    let plugin = Fake::default();
    let missing = |variables: &[(&str, &str)]| call(&plugin, variables, CONF).error();
    assert_eq!(
        missing(&[("CNI_COMMAND", "ADD"), ID]),
        (4, "required env variables [CNI_NETNS,CNI_IFNAME,CNI_PATH] missing".into())
    );
    assert_eq!(
        missing(&[("CNI_COMMAND", "CHECK")]),
        (4, "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing".into())
    );
    assert_eq!(
        missing(&[("CNI_COMMAND", "DEL"), ID, IFNAME]),
        (4, "required env variables [CNI_PATH] missing".into())
    );
    assert!(call(&plugin, &[("CNI_COMMAND", "DEL"), ID, IFNAME, PATH], CONF).ok);
    assert!(call(&plugin, &[("CNI_COMMAND", "GC"), PATH], CONF).ok);
    assert!(call(&plugin, &[("CNI_COMMAND", "STATUS"), PATH], CONF).ok);
    assert!(call(&plugin, &[("CNI_COMMAND", "VERSION")], "").ok);
}

/// V10, V11, V12: an invalid name is reported before missing variables, and ignored by verbs that do not use it.
#[test]
fn invalid_names() {
    let plugin = Fake::default();
    let bad_id = call(&plugin, &[("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "%%")], CONF);
    assert_eq!(bad_id.error(), (4, "invalid characters in containerID".into()));
    let bad_name = call(&plugin, &[("CNI_COMMAND", "ADD"), ID, ("CNI_IFNAME", "a/b"), PATH], CONF);
    assert_eq!(bad_name.error(), (4, "interface name contains / or : or whitespace characters".into()));
    for ignoring in ["GC", "VERSION"] {
        let variables = [("CNI_COMMAND", ignoring), ("CNI_CONTAINERID", "%%"), ("CNI_IFNAME", ".."), PATH];
        assert!(call(&plugin, &variables, CONF).ok, "{ignoring}");
    }
}

/// V13: a plugin that is called without `CNI_COMMAND` prints its description.
#[test]
fn about() {
    let plugin = Fake { versions: Some(&[SpecVersion::V0_1_0, SpecVersion::V1_0_0]), ..Fake::default() };
    let answer = call(&plugin, &[], "");
    assert!(answer.ok && answer.stdout.is_empty());
    assert_eq!(answer.stderr, "AWESOME PLUGIN\nCNI protocol versions supported: 0.1.0, 1.0.0\n");
}

/// V14, V15: unknown commands and standard input that cannot be read.
#[test]
fn unknown_commands_and_broken_input() {
    let plugin = Fake::default();
    for unknown in ["NOPE", "add"] {
        let answer = call(&plugin, &verb(unknown), CONF);
        assert_eq!(answer.error(), (4, format!("unknown CNI_COMMAND: {unknown}")));
    }
    assert_eq!(call(&plugin, &verb("NOPE"), "x").error().0, 6);
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("banana"))
        }
    }
    let answer = call_with(&plugin, &verb("ADD"), &mut Broken, false);
    assert_eq!(answer.error(), (5, "error reading from stdin: banana".into()));
    assert!(plugin.calls.lock().unwrap().is_empty());
}

/// R28, V16, V17, V19: invalid configurations, each with its code.
#[test]
fn configurations_that_are_none() {
    let plugin = Fake::default();
    for (stdin, code, text) in [
        ("", 6, "error unmarshall network config: unexpected end of JSON input"),
        ("{}", 7, "missing network name"),
        ("null", 7, "missing network name"),
        (r#"{"name":null}"#, 7, "missing network name"),
        (r#"{"name":5}"#, 6, "error unmarshall network config: `name`"),
        (r#"{"name":"-a"}"#, 7, "invalid characters found in network name"),
        (r#"{"name":"a"} x"#, 6, "error unmarshall network config: "),
        ("[]", 6, "error unmarshall network config: "),
        ("\u{feff}{}", 6, "error unmarshall network config: "),
        (r#"{"name":"a","cniVersion":"1.1"}"#, 1, "incompatible CNI versions"),
        (r#"{"name":"a","cniVersion":"v1.1.0"}"#, 1, "incompatible CNI versions"),
        (r#"{"name":"a","cniVersion":1}"#, 6, "decoding version from network config: "),
    ] {
        let (found, msg) = call(&plugin, &verb("ADD"), stdin).error();
        assert_eq!(found, code, "{stdin}: {msg}");
        assert!(msg.starts_with(text), "{stdin}: {msg}");
    }
    for named in ["CHECK", "GC"] {
        let stdin = r#"{"name":"te%%st","cniVersion":"1.1.0"}"#;
        assert_eq!(call(&plugin, &verb(named), stdin).error().0, 7, "{named}");
    }
}

/// V18, V20, V21, V22: the versions that allow each verb.
#[test]
fn version_gates() {
    const OLD: &[SpecVersion] = &[SpecVersion::V0_1_0, SpecVersion::V0_2_0, SpecVersion::V0_3_0];
    let conf = |version: &str| format!(r#"{{"name":"n","cniVersion":"{version}","prevResult":{{}}}}"#);
    let error = |versions, named: &str, version: &str| {
        let plugin = Fake { versions, ..Fake::default() };
        let error = call(&plugin, &verb(named), &conf(version)).error();
        assert!(plugin.calls.lock().unwrap().is_empty());
        error
    };
    let oldest = Fake { versions: Some(&[SpecVersion::V0_1_0]), ..Fake::default() };
    assert!(call(&oldest, &verb("DEL"), r#"{"name":"n"}"#).ok);
    let newest = Fake { versions: Some(&[SpecVersion::V1_1_0]), ..Fake::default() };
    let answer = call(&newest, &verb("ADD"), r#"{"name":"n"}"#);
    assert_eq!(answer.error(), (1, "incompatible CNI versions".into()));
    assert!(
        answer.stdout.contains(r#"config is \"0.1.0\", plugin supports [\"1.1.0\"]"#),
        "{}",
        answer.stdout
    );
    for (versions, named, version, code, msg) in [
        (None, "CHECK", "0.3.0", 1, "config version does not allow CHECK"),
        (Some(OLD), "CHECK", "0.4.0", 1, "plugin version does not allow CHECK"),
        (None, "CHECK", "0.9.0", 1, "incompatible CNI versions"),
        (None, "CHECK", "2.0.0", 1, "plugin version does not allow CHECK"),
        (None, "CHECK", "abc", 6, "failed to convert major version part `abc` to a number"),
        (None, "GC", "1.0.0", 1, "config version does not allow GC"),
        (None, "STATUS", "1.0.0", 1, "config version does not allow STATUS"),
        (None, "STATUS", "1.1.0-rc1", 6, "failed to convert micro version part `0-rc1` to a number"),
    ] {
        let found = error(versions, named, version);
        assert_eq!((found.0, found.1.as_str()), (code, msg), "{named} {version}");
    }
}

/// V23: an error is printed with its code; R94: and with the version of the configuration.
#[test]
fn errors_are_printed_as_they_are() {
    let plugin =
        Fake { fails: Some(Error::new(Code::Other(1234), "insufficient something")), ..Fake::default() };
    let answer = call(&plugin, &verb("DEL"), CONF);
    assert_eq!(answer.error(), (1234, "insufficient something".into()));
    assert!(answer.stdout.contains(r#""cniVersion": "1.1.0""#));
}

/// R56, R57, V24: VERSION is answered without reading standard input.
#[test]
fn version_reads_nothing() {
    struct Untouched;
    impl Read for Untouched {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("read");
        }
    }
    let answer = call_with(&Fake::default(), &[("CNI_COMMAND", "VERSION")], &mut Untouched, false);
    assert!(answer.ok);
    let value: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(value["cniVersion"], "1.1.0");
    assert_eq!(value["supportedVersions"].as_array().unwrap().len(), 7);
}

/// V26: the host's namespace is refused before anything is changed, unless `CNI_NETNS_OVERRIDE` allows it.
#[test]
fn own_namespace_is_refused() {
    let own = ("CNI_NETNS", "/proc/thread-self/ns/net");
    for named in ["ADD", "DEL"] {
        let plugin = Fake::default();
        let variables = [("CNI_COMMAND", named), ID, own, IFNAME, PATH];
        assert_eq!(call(&plugin, &variables, CONF).error().0, 8, "{named}");
        assert!(plugin.calls.lock().unwrap().is_empty());
        for allow in ["1", "TRUE"] {
            let allowed = [&variables[..], &[("CNI_NETNS_OVERRIDE", allow)]].concat();
            assert!(call(&plugin, &allowed, CONF).ok, "{named}");
        }
    }
    assert!(call(&Fake::default(), &[("CNI_COMMAND", "CHECK"), ID, own, IFNAME, PATH], CONF).ok);
}

/// A namespace that does not exist is an invalid variable at ADD and is accepted at DEL (R37).
#[test]
fn missing_namespace() {
    let gone = ("CNI_NETNS", "/nowhere/at/all");
    let plugin = Fake::default();
    let (code, msg) = call(&plugin, &[("CNI_COMMAND", "ADD"), ID, gone, IFNAME, PATH], CONF).error();
    assert!(code == 4 && msg.contains("CNI_NETNS") && msg.contains("/nowhere/at/all"), "{msg}");
    assert!(call(&plugin, &[("CNI_COMMAND", "DEL"), ID, gone, IFNAME, PATH], CONF).ok);
}

/// R30, R31, R93, R104, V64: prevResult is parsed in any version and printed in that of the configuration.
#[test]
fn prev_results() {
    let conf =
        |version: &str, prev: &str| format!(r#"{{"name":"n","cniVersion":"{version}","prevResult":{prev}}}"#);
    let plugin = Fake::default();
    let add = |stdin: String| call(&plugin, &verb("ADD"), &stdin);
    let old = add(conf("0.4.0", r#"{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24"}]}"#));
    assert_eq!(
        serde_json::from_str::<Value>(&old.stdout).unwrap(),
        serde_json::json!({"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}],"dns":{}})
    );
    // The reference plugins refuse a result in the format of other versions; this crate converts it.
    let mixed = add(conf("1.1.0", r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}"#));
    assert!(mixed.stdout.contains("10.0.0.2/24"), "{}", mixed.stdout);
    let (code, msg) = add(conf("1.1.0", r#"{"cniVersion":"5678.456"}"#)).error();
    assert!(code == 6 && msg.starts_with("could not parse prevResult: "), "{msg}");
    assert_eq!(add(conf("1.1.0", "[]")).error().0, 6);
    assert!(add(conf("1.1.0", "null")).ok && add(conf("1.1.0", "{}")).ok);
    let index = add(conf(
        "1.1.0",
        r#"{"interfaces":[{"name":"a"}],"ips":[{"address":"10.0.0.2/24","interface":0},{"address":"10.0.0.3/24"}]}"#,
    ));
    let value: Value = serde_json::from_str(&index.stdout).unwrap();
    assert_eq!(value["ips"][0]["interface"], 0);
    assert!(value["ips"][1].get("interface").is_none());
}

/// R36: DEL works without a usable prevResult. R40, R48: CHECK needs one.
#[test]
fn prev_result_at_del_and_check() {
    let plugin = Fake::default();
    for prev in ["", r#","prevResult":[]"#, r#","prevResult":{"cniVersion":"9"}"#] {
        let conf = format!(r#"{{"name":"n","cniVersion":"1.1.0"{prev}}}"#);
        assert!(call(&plugin, &verb("DEL"), &conf).ok, "{conf}");
        assert!(!call(&plugin, &verb("CHECK"), &conf).ok, "{conf}");
    }
}

/// R59, R63: GC without a list of attachments is refused; with an empty list the plugin is called.
#[test]
fn gc_needs_a_list() {
    let plugin = Fake::default();
    assert_eq!(call(&plugin, &verb("GC"), r#"{"name":"n","cniVersion":"1.1.0"}"#).error().0, 7);
    assert!(plugin.calls.lock().unwrap().is_empty());
    let empty = r#"{"name":"n","cniVersion":"1.1.0","cni.dev/attachments":[]}"#;
    assert!(call(&plugin, &verb("GC"), empty).ok);
}

/// On any failure of an ADD its undo steps run in reverse order.
#[test]
fn failed_adds_are_undone() {
    let fails = Fake { fails: Some(Error::new(Code::Internal, "potato")), ..Fake::default() };
    assert_eq!(call(&fails, &verb("ADD"), CONF).error(), (999, "potato".into()));
    let panics = Fake { panics: true, ..Fake::default() };
    let (code, msg) = call(&panics, &verb("ADD"), CONF).error();
    assert!(code == 999 && msg.contains("panicked: on purpose"), "{msg}");
    let unprintable = Fake::default();
    let no_address = r#"{"name":"n","cniVersion":"0.2.0"}"#;
    assert_eq!(call(&unprintable, &verb("ADD"), no_address).error().0, 999);
    for plugin in [fails, panics, unprintable] {
        assert_eq!(*plugin.undone.lock().unwrap(), ["second", "first"]);
    }
    let works = Fake::default();
    assert!(call(&works, &verb("ADD"), CONF).ok);
    assert!(works.undone.lock().unwrap().is_empty());
}

/// A signal stops an ADD at its next step, and the undo steps run.
#[test]
fn interrupted_adds_are_undone() {
    let plugin = Fake::default();
    let answer = call_with(&plugin, &verb("ADD"), &mut CONF.as_bytes(), true);
    assert_eq!(answer.error(), (11, "interrupted by a signal".into()));
    assert_eq!(*plugin.undone.lock().unwrap(), ["first"]);
}

/// An ADD fails if its answer cannot be written: the runtime would not know that the container is attached.
#[test]
fn unwritable_answers_are_undone() {
    struct Closed(Arc<AtomicBool>);
    impl io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0.store(true, Ordering::Relaxed);
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let plugin = Fake::default();
    let tried = Arc::new(AtomicBool::new(false));
    let mut console = Console {
        stdin: &mut CONF.as_bytes(),
        stdout: &mut Closed(Arc::clone(&tried)),
        stderr: &mut Vec::new(),
        interrupted: Arc::default(),
    };
    let variables: Variables = verb("ADD").into_iter().collect();
    assert!(!serve(&plugin, &variables, &mut console, NO_DELEGATES));
    assert!(tried.load(Ordering::Relaxed));
    assert_eq!(*plugin.undone.lock().unwrap(), ["second", "first"]);
}

/// Endless input is refused at the size limit.
#[test]
fn endless_input_is_refused() {
    let answer = call_with(&Fake::default(), &verb("ADD"), &mut io::repeat(b' '), false);
    assert_eq!(answer.error().0, 6);
}
