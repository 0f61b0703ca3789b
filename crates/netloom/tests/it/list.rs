//! `netloom list`: attachments that other runtimes cached, and problems of the configuration.

use std::{fs, process::Output};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{NETLOOM, OURS, dual_stack};

fn list(host: &Host, args: &[&str]) -> Output {
    host.command(NETLOOM).arg("list").args(args).env("CNI_PATH", &*OURS).output().unwrap()
}

fn printed(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn write(host: &Host, name: &str, content: &Value) {
    let folder = host.path("/etc/cni/net.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), content.to_string()).unwrap();
}

/// podman passes `aliases` as an object, where the convention has an array. The published ports are listed nevertheless.
#[test]
fn podmans_ports_are_listed() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let cached = json!({
        "kind": "cniCacheV1", "containerId": "c1", "ifName": "eth0", "networkName": "podman", "config": "e30=",
        "netns": "/run/netns/none",
        "capabilityArgs": {
            "aliases": {"podman": ["web", "0123456789ab"]},
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
                "unknown",
                {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "127.0.0.1"},
            ],
        },
    });
    fs::create_dir_all(host.path("/var/lib/cni/results")).unwrap();
    fs::write(host.path("/var/lib/cni/results/podman-c1-eth0"), cached.to_string()).unwrap();
    let listed: Value = serde_json::from_slice(&list(&host, &["--json"]).stdout).unwrap();
    assert_eq!(listed["attachments"][0]["ports"], json!(["8080->80/tcp", "127.0.0.1:53->5353/udp"]));
    let shown = printed(&list(&host, &[]).stdout);
    assert!(shown.contains("8080->80/tcp") && shown.contains("127.0.0.1:53->5353/udp"), "{shown}");
}

/// Plugins that cannot be found, invalid files and files with the same network name are named, in both forms of the output.
#[test]
fn problems_of_the_configuration_are_listed() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("rm -rf /etc/cni/net.d");
    let lab = json!({"cniVersion": "1.1.0", "name": "lab", "plugins": [dual_stack()]});
    write(&host, "10-lab.conflist", &lab);
    let none: Value = serde_json::from_slice(&list(&host, &["--json"]).stdout).unwrap();
    assert_eq!(none["problems"], json!([]));
    assert_eq!(printed(&list(&host, &[]).stderr), "");

    write(&host, "10-lab.conf", &dual_stack());
    write(&host, "20-lab.conflist", &lab);
    write(&host, "30-other.conflist", &json!({"cniVersion": "1.1.0", "name": "other", "plugins": 1}));
    write(&host, "40-other.conf", &json!({"cniVersion": "1.1.0", "name": "other", "type": "bridge"}));
    let tools = json!([{"type": "flannel", "ipam": {"type": "whereabouts"}}, {"type": "tuning"}]);
    write(&host, "50-third.conflist", &json!({"cniVersion": "1.1.0", "name": "third", "plugins": tools}));
    let listed: Value = serde_json::from_slice(&list(&host, &["--json"]).stdout).unwrap();
    let problems: Vec<&str> =
        listed["problems"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let expected = [
        "20-lab.conflist:1:30: network `lab` has several files: Netloom uses 10-lab.conflist and ignores 20-lab.conflist, \
         10-lab.conf; runtimes that go by file name alone (containerd, CRI-O, podman) use 10-lab.conf: keep one of them"
            .to_owned(),
        "30-other.conflist:1:48: `plugins` must be an array, not a number: ".to_owned(),
        "40-other.conf:1:30: network `other` has several files and cannot be used: 30-other.conflist comes first and is \
         invalid, so 40-other.conf is ignored: keep one of them"
            .to_owned(),
        format!("no plugin `flannel` in {}: ", OURS.display()),
        format!("no plugin `whereabouts` in {}: ", OURS.display()),
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (found, expected) in problems.iter().zip(&expected) {
        assert!(found.contains(expected.as_str()), "{found}\n{expected}");
    }
    let output = list(&host, &[]);
    let warned = printed(&output.stderr);
    assert_eq!(warned.lines().count(), expected.len(), "{warned}");
    for problem in problems {
        assert!(warned.contains(&format!("netloom: {problem}\n")), "{warned}\n{problem}");
    }
    // What is said of the order is so.
    host.container("c1");
    let call = |network: &str| {
        let mut command = host.command(NETLOOM);
        printed(&command.args(["status", network]).env("CNI_PATH", &*OURS).output().unwrap().stderr)
    };
    assert_eq!(call("lab"), "");
    assert!(call("other").contains("30-other.conflist"), "{}", call("other"));
}
