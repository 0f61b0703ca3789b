//! `netloom install` and `uninstall` beside foreign plugins.

use std::path::Path;

use serde_json::Value;
use testkit::Host;

use crate::lab::{Call, NETLOOM, dual_stack, netloom, text};

const BIN: &str = "/opt/cni/bin";

/// Overwriting one plugin in place leaves the others intact, and `list` and `status` name the foreign file.
#[test]
fn overwriting_one_plugin_leaves_the_others() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    testkit::require_success(&netloom(&host, &["install", "--with-default-network"]), "install");
    host.sh("echo foreign >/run/bridge; cp -f /run/bridge /opt/cni/bin/bridge");
    assert!(host.sh("CNI_COMMAND=VERSION /opt/cni/bin/host-local").contains("1.1.0"));
    assert_eq!(host.sh("stat -c %h /opt/cni/bin/host-local").trim(), "1");
    let shown = text(&netloom(&host, &["list"]));
    assert!(shown.contains("/opt/cni/bin/bridge is foreign or damaged"), "{shown}");
    assert!(!shown.contains("host-local is foreign"), "{shown}");
    let shown = text(&netloom(&host, &["status", "netloom"]));
    assert!(shown.contains("/opt/cni/bin/bridge is foreign or damaged"), "{shown}");
    testkit::require_success(&netloom(&host, &["uninstall"]), "uninstall");
    assert_eq!(host.sh("ls -A /opt/cni/bin; cat /opt/cni/bin/bridge"), "bridge\nforeign\n");
}

/// Installed copies delegate to IPAM in process, without `execve`. A foreign IPAM plugin is executed.
#[test]
fn installed_copies_delegate_in_process() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    testkit::require_success(&netloom(&host, &["install"]), "install");
    let call = Call::new(&host, Path::new(BIN), "c1");
    let conf = dual_stack();
    if testkit::can_trace() {
        let environment = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", BIN),
        ];
        let bridge = Path::new("/opt/cni/bin/bridge");
        let traced = host.trace(bridge, &environment, conf.to_string().as_bytes(), None);
        assert!(traced.status.success(), "{}", traced.stdout);
        let executed = traced.syscalls.iter().any(|call| call.by_child && call.number.name() == "execve");
        assert!(!executed, "host-local was executed as a process");
        call.del(&conf, &Value::Null);
    }
    let result = call.add(&conf);
    assert!(result["ips"].as_array().is_some_and(|ips| ips.len() == 2), "{result}");
    call.del(&conf, &result);
    host.sh("printf '#!/bin/sh\\ntouch /run/executed\\ncat >/dev/null\\necho {}\\n' >/run/foreign; cp -f /run/foreign /opt/cni/bin/host-local");
    drop(call.call("ADD", &conf));
    assert!(host.path("/run/executed").exists(), "the foreign host-local was not executed");
    call.del(&conf, &Value::Null);
}

/// A second foreign plugin of one name does not lose its backup, and an unedited network file is removed.
#[test]
fn forcing_twice_keeps_both_backups() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("rm -rf /etc/cni/net.d; mkdir -p /opt/cni/bin; echo first >/opt/cni/bin/bridge");
    let install = ["install", "--force", "--with-default-network"];
    testkit::require_success(&netloom(&host, &install), "install over the first");
    host.sh("echo second >/run/second; mv /run/second /opt/cni/bin/bridge");
    testkit::require_success(&netloom(&host, &install), "install over the second");
    testkit::require_success(&netloom(&host, &["uninstall"]), "uninstall");
    assert_eq!(host.sh("cat /opt/cni/bin/bridge /opt/cni/bin/.netloom-replaced/bridge.1"), "second\nfirst\n");
    assert_eq!(host.sh("ls /etc/cni/net.d"), "");
}

/// A network file that was edited survives `uninstall`.
#[test]
fn uninstall_keeps_an_edited_network() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("rm -rf /etc/cni/net.d");
    testkit::require_success(&netloom(&host, &["install", "--with-default-network"]), "install");
    host.sh("echo >>/etc/cni/net.d/87-netloom.conflist");
    testkit::require_success(&netloom(&host, &["uninstall"]), "uninstall");
    assert_eq!(host.sh("ls /etc/cni/net.d").trim(), "87-netloom.conflist");
}

/// With `--for` the plugins go where the runtimes look by their configurations, and a runtime that looks elsewhere is named with
/// what to type.
#[test]
fn runtimes_are_told_apart() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, content: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    for program in ["containerd", "crio", "podman", "nomad"] {
        write(&format!("usr/bin/{program}"), "");
    }
    write(
        "etc/containerd/config.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = '/usr/lib/cni'\n",
    );
    write("etc/crio/crio.conf", "[crio.network]\nplugin_dirs = ['/usr/libexec/cni', '/opt/cni/bin']\n");
    write("usr/libexec/cni/bridge", "foreign");
    write("etc/containers/containers.conf", "[network]\nnetwork_backend = 'netavark'\n");
    let install = |args: &[&str]| {
        let mut command = std::process::Command::new(NETLOOM);
        command.arg("install").args(args).arg("--root").arg(root.path()).output().unwrap()
    };
    let output = install(&[]);
    testkit::require_success(&output, "install");
    let shown: Vec<String> = text(&output).lines().skip(1).map(str::to_owned).collect();
    assert_eq!(
        shown,
        [
            "containerd does not use these plugins: it looks in /usr/lib/cni; type `netloom install --for containerd` to install there",
            "CRI-O looks in /usr/libexec/cni first and uses the plugins there: bridge; type `netloom install --for crio --force` to replace them",
            "podman calls netavark, not CNI plugins, by /etc/containers/containers.conf",
            "Nomad uses these plugins",
        ]
    );
    let output = install(&["--for", "containerd", "--for", "crio", "--force"]);
    testkit::require_success(&output, "install --for");
    assert!(root.path().join("usr/lib/cni/host-local").is_file());
    assert!(root.path().join("usr/libexec/cni/.netloom-replaced/bridge").is_file());
    let shown = text(&output);
    assert!(shown.contains("containerd uses these plugins\nCRI-O uses these plugins\n"), "{shown}");
    assert!(shown.contains("type `netloom install --for nomad` to install there"), "{shown}");

    let refused = install(&["--for", "podman"]);
    assert!(!refused.status.success() && text(&refused).contains("netavark"), "{}", text(&refused));
    write("etc/containerd/config.toml", "= wrong");
    let refused = install(&["--for", "containerd"]);
    assert!(
        !refused.status.success() && text(&refused).contains("/etc/containerd/config.toml"),
        "{}",
        text(&refused)
    );
    let refused = install(&["--for", "nomad", "--bin-dir", "/x"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
}
