//! `netloom run` on networks that fail, and `del` beside other runtimes' attachments.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use serde_json::json;
use testkit::Host;

use crate::lab::{NETLOOM, OURS, dual_stack, text};

pub(crate) fn netloom(host: &Host, args: &[&str]) -> Output {
    host.command(NETLOOM).args(args).env("CNI_PATH", &*OURS).output().unwrap()
}

pub(crate) fn write_network(host: &Host) {
    host.sh("rm -rf /etc/cni/net.d; mkdir -p /etc/cni/net.d");
    let list = json!({"cniVersion": "1.1.0", "name": "lab", "plugins": [dual_stack()]});
    fs::write(host.path("/etc/cni/net.d/10-lab.conflist"), list.to_string()).unwrap();
}

/// A plugin that creates something and then fails gets its DEL.
#[test]
fn a_failed_add_is_followed_by_del() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("mkdir -p /run/bin /etc/cni/net.d");
    let script = "#!/bin/sh\ncat >/dev/null\ncase $CNI_COMMAND in ADD) touch /run/made; exit 1;; DEL) rm -f /run/made;; esac\n";
    fs::write(host.path("/run/bin/half"), script).unwrap();
    fs::set_permissions(host.path("/run/bin/half"), fs::Permissions::from_mode(0o755)).unwrap();
    let list = json!({"cniVersion": "1.1.0", "name": "half", "plugins": [{"type": "half"}]});
    fs::write(host.path("/run/half.conflist"), list.to_string()).unwrap();
    let output = host
        .command(NETLOOM)
        .args(["--bin-path", "/run/bin", "run", "--config", "/run/half.conflist", "--", "true"])
        .output()
        .unwrap();
    assert!(!output.status.success(), "{}", text(&output));
    assert!(!host.path("/run/made").exists(), "DEL was not called: {}", text(&output));
}

/// If the DEL after a failed ADD fails too, the error of the ADD comes first, with its hint.
#[test]
fn the_first_error_is_not_hidden() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("mkdir -p /run/bin");
    let plugin = |name: &str, script: &str| {
        let path = host.path(&format!("/run/bin/{name}"));
        fs::write(&path, format!("#!/bin/sh\ncat >/dev/null\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let fail = |what: &str| {
        format!(
            r#"{{ echo '{{"cniVersion":"1.0.0","code":100,"msg":"{what} failed","details":"mend {what}"}}'; exit 1; }}"#
        )
    };
    let result = r#"echo '{"cniVersion":"1.0.0"}'"#;
    plugin("fine", &format!("[ $CNI_COMMAND = ADD ] && {result}"));
    plugin("bad", &format!("[ $CNI_COMMAND = ADD ] && {}; {}", fail("attaching"), fail("detaching")));
    plugin("stuck", &format!("[ $CNI_COMMAND = ADD ] && {result} && exit; {}", fail("detaching")));
    let run = |plugins: &[&str], command: &str| {
        let plugins: Vec<_> = plugins.iter().map(|name| json!({"type": name})).collect();
        let list = json!({"cniVersion": "1.0.0", "name": "bad", "plugins": plugins});
        fs::write(host.path("/run/bad.conflist"), list.to_string()).unwrap();
        let arguments =
            ["--bin-path", "/run/bin", "run", "--config", "/run/bad.conflist", "--", "sh", "-c", command];
        let output = host.command(NETLOOM).args(arguments).output().unwrap();
        (output.status.code(), text(&output))
    };
    for plugins in [&["bad"][..], &["fine", "bad"]] {
        let (code, shown) = run(plugins, "true");
        assert_eq!(code, Some(125), "{shown}");
        let last = shown.rsplit("netloom: ").next().unwrap();
        assert!(
            last.starts_with("plugin type=\"bad\" failed (add): attaching failed"),
            "{plugins:?}: {shown}"
        );
        assert!(
            last.ends_with("\n  mend attaching\n") && shown.contains("detaching failed"),
            "{plugins:?}: {shown}"
        );
    }
    // The exit code of a command that failed is not hidden either; that of one that succeeded is this program's.
    for (command, expected) in [("exit 7", 7), ("true", 125)] {
        let (code, shown) = run(&["stuck"], command);
        assert!(code == Some(expected) && shown.contains("detaching failed"), "{code:?}: {shown}");
    }
}

/// Publishing a port on a network without portmap is refused, and the error names the plugin to add.
#[test]
fn ports_need_a_plugin_with_the_capability() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    write_network(&host);
    let output = netloom(&host, &["run", "--network", "lab", "-p", "8080:80", "--", "true"]);
    let shown = text(&output);
    assert!(
        !output.status.success() && shown.contains("portMappings") && shown.contains("portmap"),
        "{shown}"
    );
}

/// `del` by namespace path refuses another runtime's attachment without `--force`; `check` and `list` find it by name.
#[test]
fn del_protects_attachments_of_other_runtimes() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    write_network(&host);
    host.container("c1");
    let id = "4f1d0c9ab7e2";
    testkit::require_success(
        &netloom(
            &host,
            &[
                "add",
                "lab",
                "/run/netns/c1",
                "--container-id",
                id,
                "--args",
                "IgnoreUnknown=1;K8S_POD_NAME=webfront",
            ],
        ),
        "add as another runtime",
    );
    let refused = netloom(&host, &["del", "lab", "/run/netns/c1"]);
    assert!(!refused.status.success() && text(&refused).contains(id), "{}", text(&refused));
    host.sh("ip -n c1 link show eth0");
    for name in ["/run/netns/c1", "c1", id, &id[..6], "webfront"] {
        testkit::require_success(&netloom(&host, &["check", "lab", name]), name);
        assert!(text(&netloom(&host, &["list", name])).contains(id), "{name}");
    }
    // Nor does another network's name, or an ID that nothing has: the plugin would remove the interface by its name.
    let mut other = dual_stack();
    other["name"] = json!("other");
    other["bridge"] = json!("br9");
    let list = json!({"cniVersion": "1.1.0", "name": "other", "plugins": [other]});
    fs::write(host.path("/etc/cni/net.d/20-other.conflist"), list.to_string()).unwrap();
    for arguments in [
        &["del", "other", "/run/netns/c1"][..],
        &["del", "lab", "/run/netns/c1", "--container-id", "zzz"],
        &["del", "other", "/run/netns/c1", "--container-id", "zzz"],
    ] {
        let refused = netloom(&host, arguments);
        assert!(
            !refused.status.success() && text(&refused).contains(id),
            "{arguments:?}: {}",
            text(&refused)
        );
        host.sh("ip -n c1 link show eth0");
    }
    let unknown = netloom(&host, &["del", "lab", "nope"]);
    assert!(
        !unknown.status.success() && text(&unknown).contains("no attachment matches"),
        "{}",
        text(&unknown)
    );
    testkit::require_success(&netloom(&host, &["del", "lab", &id[..6], "--force"]), "del --force");
    host.sh("! ip -n c1 link show eth0 2>/dev/null");
}

/// The exit code says who failed, as that of `docker run` does.
#[test]
fn exit_codes_are_dockers() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    for (arguments, code) in [
        (&["run", "--", "sh", "-c", "exit 7"][..], 7),
        (&["run", "--", "sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["run", "--", "no-such-program"], 127),
        (&["run", "--", "/etc"], 126),
        (&["run", "--network", "none-such", "--", "true"], 125),
        (&["run", "true"], 0),
    ] {
        let output = netloom(&host, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
    }
}

/// The command gets name servers that it can reach where the host's own is systemd-resolved, and a note where there are none.
#[test]
fn name_servers_are_reachable() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let run = || text(&netloom(&host, &["run", "--", "cat", "/etc/resolv.conf"]));
    host.sh("printf 'nameserver 127.0.0.53\\noptions edns0\\n' >/run/resolv; mount --bind /run/resolv /etc/resolv.conf");
    let shown = run();
    assert!(shown.contains("name one with --dns") && shown.contains("127.0.0.53"), "{shown}");
    host.sh("mkdir -p /run/systemd/resolve; printf 'nameserver 192.0.2.53\\nsearch example.org\\n' >/run/systemd/resolve/resolv.conf");
    let shown = run();
    assert!(shown.contains("nameserver 192.0.2.53") && shown.contains("search example.org"), "{shown}");
    assert!(!shown.contains("127.0.0.53") && !shown.contains("--dns"), "{shown}");
    host.sh("printf 'nameserver 192.0.2.1\\n' >/run/resolv");
    assert!(run().contains("nameserver 192.0.2.1\n"), "{}", run());
}

/// A namespace is given by path, by name, or by a process in it.
#[test]
fn a_namespace_has_several_names() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    write_network(&host);
    host.container("c1");
    let mut process = host.spawn(Command::new("ip").args(["netns", "exec", "c1", "sleep", "infinity"]));
    let pid = process.id().to_string();
    let path = format!("/proc/{pid}/ns/net");
    // The program that enters the namespace is there before the one that it becomes.
    let inside = || fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n");
    while !inside() {
        std::thread::yield_now();
    }
    for netns in ["/run/netns/c1", "c1", &pid, &path] {
        testkit::require_success(&netloom(&host, &["add", "lab", netns]), &format!("add {netns}"));
        host.sh("ip -n c1 link show eth0");
        testkit::require_success(&netloom(&host, &["check", "lab", netns]), &format!("check {netns}"));
        testkit::require_success(&netloom(&host, &["del", "lab", netns]), &format!("del {netns}"));
        host.sh("! ip -n c1 link show eth0 2>/dev/null");
    }
    drop(process.kill());
    drop(process.wait());
}
