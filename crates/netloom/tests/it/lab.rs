//! Plugin calls as a runtime makes them.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

use serde_json::{Value, json};
use testkit::Host;

/// The binary under test.
pub(crate) const NETLOOM: &str = env!("CARGO_BIN_EXE_netloom");

pub(crate) const PLUGINS: [&str; 18] = [
    "loopback",
    "bridge",
    "ptp",
    "macvlan",
    "ipvlan",
    "vlan",
    "dummy",
    "tap",
    "host-device",
    "host-local",
    "static",
    "dhcp",
    "portmap",
    "firewall",
    "tuning",
    "bandwidth",
    "sbr",
    "vrf",
];

/// A folder with the plugins under test, kept between test runs.
pub(crate) static OURS: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("plugins");
    fs::create_dir_all(&dir).unwrap();
    for name in PLUGINS.iter().chain(&["cnitool", "netloom"]) {
        let (link, fresh) = (dir.join(name), dir.join(format!(".{name}.{}", std::process::id())));
        let _ = fs::remove_file(&fresh);
        fs::hard_link(NETLOOM, &fresh).unwrap();
        fs::rename(&fresh, &link).unwrap();
        let _ = fs::remove_file(&fresh);
    }
    dir
});

/// The outcome of a plugin call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub(crate) fn result(self, what: &str) -> Value {
        assert!(self.ok, "{what}: {self:?}");
        if self.stdout.is_empty() { Value::Null } else { self.json() }
    }

    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.ok, "no error: {self:?}");
        let value = self.json();
        (value["code"].as_u64().unwrap(), format!("{} | {}", value["msg"], value["details"]))
    }
}

/// An attachment, and the folder of the plugins to call for it.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub(crate) host: &'a Host,
    pub(crate) bin: &'a Path,
    pub(crate) id: String,
    pub(crate) netns: String,
    pub(crate) ifname: String,
    pub(crate) args: String,
}

impl<'a> Call<'a> {
    pub(crate) fn new(host: &'a Host, bin: &'a Path, name: &str) -> Self {
        Self {
            host,
            bin,
            id: name.to_owned(),
            netns: format!("/run/netns/{name}"),
            ifname: "eth0".into(),
            args: String::new(),
        }
    }

    pub(crate) fn run(&self, verb: &str, plugin: &str, stdin: &[u8]) -> Answer {
        let mut command = Command::new(self.bin.join(plugin));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", &self.ifname)
            .env("CNI_ARGS", &self.args)
            .env("CNI_PATH", self.bin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.host.spawn(&mut command);
        let mut pipe = child.stdin.take().unwrap();
        let output: Output = std::thread::scope(|scope| {
            // A plugin may exit without reading all of stdin.
            scope.spawn(move || drop(pipe.write_all(stdin)));
            child.wait_with_output().unwrap()
        });
        Answer {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn call(&self, verb: &str, conf: &Value) -> Answer {
        self.run(verb, conf["type"].as_str().unwrap(), conf.to_string().as_bytes())
    }

    pub(crate) fn add(&self, conf: &Value) -> Value {
        self.call("ADD", conf).result(&format!("ADD {conf}"))
    }

    pub(crate) fn check(&self, conf: &Value, prev: &Value) {
        self.call("CHECK", &with_prev(conf, prev)).result(&format!("CHECK {conf}"));
    }

    pub(crate) fn del(&self, conf: &Value, prev: &Value) {
        self.call("DEL", &with_prev(conf, prev)).result(&format!("DEL {conf}"));
    }
}

pub(crate) fn with_prev(conf: &Value, prev: &Value) -> Value {
    let mut conf = conf.clone();
    if !prev.is_null() {
        conf["prevResult"] = prev.clone();
    }
    conf
}

/// Returns the configuration of a bridge network with addresses of both families.
pub(crate) fn dual_stack() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "lab", "type": "bridge", "bridge": "br0",
        "isDefaultGateway": true, "ipMasq": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]]}
    })
}

/// Runs the command line on a host.
pub(crate) fn netloom(host: &Host, args: &[&str]) -> Output {
    host.command(NETLOOM).args(args).output().unwrap()
}

/// Returns what a program wrote to both outputs.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// On a host that drops what it forwards: the demo succeeds, and a container of ours reaches another host behind this one.
pub(crate) fn reach_another_host(host: &Host, through: &str) {
    let output = netloom(host, &["demo"]);
    testkit::require_success(&output, &format!("demo on a host with {through}"));
    assert!(text(&output).contains("filters forwarded packets"), "{through}: {}", text(&output));
    host.container("far");
    host.sh(
        "ip link add up0 type veth peer name up0 netns far; ip link set up0 up; ip addr add 192.0.2.1/24 dev up0; \
         ip -n far link set up0 up; ip -n far addr add 192.0.2.2/24 dev up0",
    );
    let output = netloom(host, &["run", "--", "ping", "-c", "1", "-W", "2", "192.0.2.2"]);
    testkit::require_success(&output, &format!("run on a host with {through}"));
}
