//! What others wrote never reaches a terminal as more than text.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    process::{Command, Output},
};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::NETLOOM;

/// Clears the screen, begins a line and reverses the rest of it.
const HOSTILE: &str = "x\u{1b}[2J\nok \u{202e}y\u{9b}";
const ESCAPED: &str = r"x\u{1b}[2J\nok \u{202e}y\u{9b}";

fn netloom(host: &Host, args: &[&str]) -> Output {
    host.command(NETLOOM).args(args).env("CNI_PATH", "/run/bin").output().unwrap()
}

/// Returns both outputs, which must contain neither a control character nor one that a terminal does not show.
fn shown(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap() + str::from_utf8(&output.stderr).unwrap();
    let is_unsafe = |char: char| char != '\n' && (char.is_control() || char == '\u{202e}');
    assert!(!text.contains(is_unsafe), "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("ok")), "a line of its own: {text:?}");
    text
}

/// Names in the cache, in configurations and of files are escaped in tables and warnings. JSON has the same values.
#[test]
fn list_shows_names_as_text() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("rm -rf /etc/cni/net.d; mkdir -p /etc/cni/net.d /var/lib/cni/results");
    let cached = json!({
        "kind": "cniCacheV1", "containerId": HOSTILE, "ifName": HOSTILE, "networkName": HOSTILE, "config": "e30=",
        "netns": HOSTILE, "capabilityArgs": {"portMappings": [{"hostPort": 1, "containerPort": 2, "protocol": HOSTILE}]},
    });
    fs::write(host.path("/var/lib/cni/results/a"), cached.to_string()).unwrap();
    let conf = json!({"cniVersion": HOSTILE, "name": HOSTILE, "plugins": [{"type": "none"}]}).to_string();
    for name in [format!("10-{HOSTILE}.conflist"), "20.conflist".to_owned()] {
        fs::write(host.path("/etc/cni/net.d").join(name), &conf).unwrap();
    }
    fs::write(host.path("/etc/cni/net.d").join(format!("30-{HOSTILE}.conflist")), "wrong").unwrap();
    let text = shown(&netloom(&host, &["list"]));
    for expected in [
        format!(
            "netloom: /etc/cni/net.d/20.conflist:1:43: network `{ESCAPED}` has several files and cannot be used: 10-{ESCAPED}.conflist"
        ),
        format!("netloom: /etc/cni/net.d/30-{ESCAPED}.conflist:1:1: "),
        format!("1->2/{ESCAPED}"),
        format!("{ESCAPED} (gone)"),
    ] {
        assert!(text.contains(&expected), "{expected}\n{text}");
    }
    assert_eq!(text.matches(ESCAPED).count(), 18, "{text}");
    let output = netloom(&host, &["list", "--json"]);
    shown(&output);
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed["attachments"][0]["containerID"], HOSTILE);
    assert_eq!(listed["networks"][0]["name"], HOSTILE);
}

/// A plugin's message, details and log, and the arguments of the command line, are escaped.
#[test]
fn errors_are_text() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let bin = host.path("/run/bin");
    fs::create_dir_all(&bin).unwrap();
    let error = json!({"cniVersion": "1.1.0", "code": 100, "msg": HOSTILE, "details": HOSTILE}).to_string();
    fs::write(bin.join("error.json"), error).unwrap();
    fs::write(bin.join("log"), format!("{HOSTILE}\n")).unwrap();
    let script = "#!/bin/sh\ncat >/dev/null; cat /run/bin/log >&2; cat /run/bin/error.json; exit 1\n";
    fs::write(bin.join("hostile"), script).unwrap();
    fs::set_permissions(bin.join("hostile"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(host.path("/etc/cni/net.d")).unwrap();
    let conf = json!({"cniVersion": "1.1.0", "name": "lab", "type": "hostile"});
    fs::write(host.path("/etc/cni/net.d/10-lab.conf"), conf.to_string()).unwrap();
    host.container("c1");
    let output = netloom(&host, &["add", "lab", "/run/netns/c1"]);
    assert!(!output.status.success());
    // The log and the details keep their lines, each behind something that is not the plugin's.
    let text = String::from_utf8(output.stderr).unwrap();
    let [log, log2, message, details, details2] = text.lines().collect::<Vec<_>>()[..] else {
        panic!("{text}")
    };
    assert_eq!((log, log2), (r"hostile: x\u{1b}[2J", r"hostile: ok \u{202e}y\u{9b}"));
    assert!(message.starts_with("netloom: ") && message.contains(ESCAPED), "{text}");
    assert_eq!((details, details2), (r"  x\u{1b}[2J", r"  ok \u{202e}y\u{9b}"));

    let unknown = shown(&netloom(&host, &["status", HOSTILE]));
    assert!(unknown.contains("no net configuration"), "{unknown}");
    let hostile = HOSTILE.replace('\n', "");
    let unexpected = shown(&netloom(&host, &["list", "a", &hostile]));
    assert!(unexpected.contains(r"ok \u{202e}y\u{9b}"), "{unexpected}");
}

/// What a store says of other nodes is escaped.
#[test]
fn cluster_shows_names_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let daemon = UnixListener::bind(&socket).unwrap();
    let status = json!({
        "node": HOSTILE, "store": {"kind": HOSTILE, "refused": [HOSTILE]}, "problems": [HOSTILE], "notes": [HOSTILE],
        "networks": [{"name": HOSTILE, "mode": HOSTILE, "mtu": 1500}],
        "blocks": [{"prefix": HOSTILE, "size": 1}],
        "peers": [{"name": HOSTILE, "path": HOSTILE, "addresses": [HOSTILE, "z"], "blocks": [HOSTILE], "problem": HOSTILE}],
    });
    let served = status.clone();
    let thread = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = daemon.accept().unwrap();
            stream.read_exact(&mut [0; 24]).unwrap();
            stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{served}").as_bytes()).unwrap();
        }
    });
    let cluster = |args: &[&str]| {
        let mut command = Command::new(NETLOOM);
        command.arg("cluster").args(args).env("NETLOOMD_SOCKET", &socket).output().unwrap()
    };
    let text = shown(&cluster(&[]));
    assert_eq!(text.matches(ESCAPED).count(), 13, "{text}");
    let output = cluster(&["--json"]);
    shown(&output);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), status);
    thread.join().unwrap();
}
