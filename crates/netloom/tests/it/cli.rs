//! The command line: `demo`, `run`, cnitool's verbs, `install`, and generated pages.

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::Value;
use testkit::Host;

use crate::lab::{NETLOOM, OURS, netloom, reach_another_host, text};

/// The demo succeeds on a bare host, prints each step with its duration, and leaves nothing behind.
#[test]
fn demo() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let before = host.snapshot();
    let output = netloom(&host, &["demo"]);
    testkit::require_success(&output, "demo");
    let shown = text(&output);
    for step in [
        "ADD a",
        "ADD b",
        "a pings b",
        "b pings a",
        "published port, from the host",
        "CHECK a",
        "DEL b",
        "nothing is left",
    ] {
        assert!(
            shown
                .lines()
                .any(|line| line.starts_with("  ok") && line.contains(step) && line.contains(" ms ")),
            "{step}: {shown}"
        );
    }
    let mut after = host.snapshot();
    // The symbolic links to the plugins and the empty tables stay.
    for kind in ["files", "ruleset"] {
        after.0.insert(kind.into(), before.0[kind].clone());
    }
    before.assert_same(&after, "after the demo");
    assert!(!host.sh("nft list ruleset").contains("elements ="));
}

/// The embedded network works on hosts that drop what they forward, as Docker, ufw and firewalld set them up.
#[test]
fn demo_and_run_work_on_hosts_that_drop() {
    if !testkit::is_root() {
        return;
    }
    let docker = |iptables: &str| {
        format!(
            "{iptables} -P FORWARD DROP; {iptables} -N DOCKER-USER; {iptables} -A DOCKER-USER -j RETURN; \
             {iptables} -N DOCKER-FORWARD; {iptables} -A FORWARD -j DOCKER-USER; {iptables} -A FORWARD -j DOCKER-FORWARD"
        )
    };
    let ufw = "iptables -P FORWARD DROP; iptables -N ufw-before-forward; iptables -N ufw-reject-forward; \
               iptables -A FORWARD -j ufw-before-forward; iptables -A FORWARD -j ufw-reject-forward; \
               iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
               ip6tables -P FORWARD DROP";
    let rejecting = "nft add table inet filters; \
         nft 'add chain inet filters filter_FORWARD { type filter hook forward priority 10; policy accept; }'; \
         nft add rule inet filters filter_FORWARD ct state established,related accept; \
         nft add rule inet filters filter_FORWARD reject with icmpx admin-prohibited";
    let plain = "nft add table inet filter; \
         nft 'add chain inet filter forward { type filter hook forward priority 0; policy drop; }'";
    let layouts = [
        ("Docker", docker("iptables-nft")),
        ("Docker with iptables-legacy", docker("iptables-legacy")),
        ("ufw", ufw.to_owned()),
        ("nftables that rejects", rejecting.to_owned()),
        ("nftables", plain.to_owned()),
    ];
    for (name, setup) in layouts {
        let host = Host::new();
        host.sh(&setup);
        // Bridged packets meet the same rules where the kernel has br_netfilter.
        host.sh("for f in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do [ ! -e $f ] || echo 1 >$f; done");
        reach_another_host(&host, name);
    }
}

/// `run` passes the command's output and exit code through, uses the embedded network and leaves nothing behind.
#[test]
fn run_gives_a_command_a_network() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("rm -rf /etc/cni/net.d; mkdir -p /etc/cni/net.d");
    let output = netloom(
        &host,
        &[
            "run",
            "--dns",
            "9.9.9.9",
            "--",
            "sh",
            "-c",
            "ip -br -4 addr show eth0; cat /etc/resolv.conf; ls /sys/class/net; exit 7",
        ],
    );
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(7), "{shown}");
    assert!(shown.contains("using the embedded one") && shown.contains("10.89.64.2/20"), "{shown}");
    assert!(shown.contains("nameserver 9.9.9.9") && shown.contains("eth0\nlo"), "{shown}");
    assert!(!host.sh("cat /etc/resolv.conf || true").contains("9.9.9.9"));
    assert_eq!(host.sh("ls /run/netns; ls /var/lib/cni/results; ls /var/lib/cni/netloom/run; ip -br link | grep veth || true"), "");
    let missing = netloom(&host, &["run", "--", "no-such-program"]);
    assert!(!missing.status.success() && text(&missing).contains("no-such-program"), "{}", text(&missing));
    assert_eq!(host.sh("ls /run/netns; ls /var/lib/cni/results"), "");
    let unknown = netloom(&host, &["run", "--network", "nope", "--", "true"]);
    assert!(
        text(&unknown).contains("no net configuration") && text(&unknown).contains("netloom list"),
        "{}",
        text(&unknown)
    );
}

/// `run` cleans up after SIGTERM. After SIGKILL the next `gc` does.
#[test]
fn run_that_is_ended_leaves_nothing() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("rm -rf /etc/cni/net.d");
    // `host.command` executes netloom in the started process, whose PID is therefore netloom's.
    let start = || {
        let child = host
            .command(NETLOOM)
            .args(["run", "-p", "8080:80", "--", "sh", "-c", "echo $$ >/run/command; exec sleep 1000"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        host.sh("timeout 10 sh -c 'until test -s /run/command; do sleep 0.02; done'");
        child
    };
    let signal = |pid: u32, signal| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    };
    let mut child = start();
    signal(child.id(), rustix::process::Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    let empty = "ls /run/netns; ls /var/lib/cni/results; ip -br link | grep veth || true; nft list map ip netloom ports 2>/dev/null | grep elements || true";
    assert_eq!(host.sh(empty), "");

    host.sh("rm /run/command");
    let mut child = start();
    signal(child.id(), rustix::process::Signal::KILL);
    child.wait().unwrap();
    assert_ne!(host.sh(empty), "");
    // The orphaned command still runs in the namespace.
    let orphan: u32 = host.sh("cat /run/command").trim().parse().unwrap();
    signal(orphan, rustix::process::Signal::KILL);
    testkit::require_success(&netloom(&host, &["gc"]), "gc");
    assert_eq!(host.sh(empty), "");
    assert_eq!(
        host.sh("ls /var/lib/cni/netloom/run; ls /var/lib/cni/networks/netloom | grep -e 10 -e : || true"),
        ""
    );
}

/// cnitool's verbs, arguments, variables and output work under both names.
#[test]
fn cnitools_verbs() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    fs::create_dir_all(host.path("/run/net.d")).unwrap();
    let conf = crate::lab::dual_stack();
    let list = serde_json::json!({"cniVersion": "1.1.0", "name": "lab", "plugins": [conf, {"type": "portmap", "capabilities": {"portMappings": true}}]});
    fs::write(host.path("/run/net.d/10-lab.conflist"), list.to_string()).unwrap();
    host.container("c1");
    let before = host.snapshot();
    for tool in ["cnitool", "netloom"] {
        let call = |args: &[&str]| {
            let mut command = host.command(OURS.join(tool));
            command
                .args(args)
                .env("NETCONFPATH", "/run/net.d")
                .env("CNI_PATH", &*OURS)
                .env("CNI_IFNAME", "net0");
            command.env(
                "CAP_ARGS",
                r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#,
            );
            command.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=x");
            command.output().unwrap()
        };
        let added = call(&["add", "lab", "/run/netns/c1"]);
        testkit::require_success(&added, "add");
        let result: Value = serde_json::from_slice(&added.stdout).unwrap();
        assert_eq!(result["interfaces"][2]["name"], "net0");
        let listed: Value = serde_json::from_slice(&call(&["list", "--json"]).stdout).unwrap_or_default();
        if tool == "netloom" {
            assert_eq!(listed["attachments"][0]["ports"][0], "8080->80/tcp");
            let shown = text(&call(&["list"]));
            assert!(
                shown.contains("ADDRESSES")
                    && shown.contains("8080->80/tcp")
                    && shown.contains("bridge portmap"),
                "{shown}"
            );
            assert!(text(&call(&["version", "lab"])).contains("portmap: 0.1.0, 0.2.0"));
        }
        for args in [
            ["check", "lab", "/run/netns/c1"],
            ["status", "lab", "/run/netns/c1"],
            ["gc", "lab", "/run/netns/c1"],
        ] {
            if tool == "netloom" && args[0] == "gc" {
                testkit::require_success(&call(&args[..2]), "gc");
            } else {
                testkit::require_success(&call(&args), args[0]);
            }
        }
        let again = call(&["add", "lab", "/run/netns/c1"]);
        assert!(!again.status.success() && text(&again).contains("delete it first"), "{}", text(&again));
        testkit::require_success(&call(&["check", "lab", "/run/netns/c1"]), "check");
        for _ in 0..2 {
            testkit::require_success(&call(&["del", "lab", "/run/netns/c1"]), "del");
        }
        let unknown = call(&["add", "nope", "/run/netns/c1"]);
        assert!(text(&unknown).contains("no net configuration with name \"nope\" in /run/net.d"));
    }
    host.sh("ip link del br0");
    let after = host.snapshot();
    assert_eq!(before.0["links"], after.0["links"]);
    assert_eq!(before.0["files"], after.0["files"]);
}

/// `install` leaves other files alone and backs up what it replaces; `uninstall` restores it.
#[test]
fn install_and_uninstall() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("mkdir -p /opt/cni/bin; echo stranger >/opt/cni/bin/bridge; echo other >/opt/cni/bin/flannel; rm -rf /etc/cni/net.d");
    let refused = netloom(&host, &["install"]);
    assert!(!refused.status.success());
    assert!(
        text(&refused).contains("not Netloom's: bridge") && text(&refused).contains("--force"),
        "{}",
        text(&refused)
    );
    assert_eq!(host.sh("ls -A /opt/cni/bin"), "bridge\nflannel\n");
    for _ in 0..2 {
        testkit::require_success(
            &netloom(&host, &["install", "--force", "--with-default-network"]),
            "install",
        );
    }
    let mut expected: Vec<&str> = crate::lab::PLUGINS.into_iter().chain(["netloom", "flannel"]).collect();
    expected.sort_unstable();
    assert_eq!(host.sh("ls /opt/cni/bin").lines().collect::<Vec<_>>(), expected);
    assert_eq!(host.sh("ls -A /opt/cni/bin | grep '^\\.'").trim(), ".netloom-replaced");
    assert_ne!(host.sh("stat -c %i /opt/cni/bin/bridge"), host.sh("stat -c %i /opt/cni/bin/netloom"));
    host.sh("cmp /opt/cni/bin/bridge /opt/cni/bin/netloom");
    assert!(host.sh("CNI_COMMAND=VERSION /opt/cni/bin/host-local").contains("1.1.0"));
    let shown = text(&netloom(&host, &["list"]));
    assert!(shown.contains("netloom") && shown.contains("87-netloom.conflist"), "{shown}");
    testkit::require_success(&netloom(&host, &["uninstall"]), "uninstall");
    assert_eq!(host.sh("ls -A /opt/cni/bin; cat /opt/cni/bin/bridge"), "bridge\nflannel\nstranger\n");
    assert!(text(&netloom(&host, &["uninstall"])).contains("not installed"));
}

/// A plugin that is called in a loop during upgrades is always found.
#[test]
fn installing_leaves_no_moment_without_plugin() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    testkit::require_success(&netloom(&host, &["install"]), "install");
    let mut caller: Command = host.command("sh");
    let loops = "n=0; while test ! -e /run/stop; do CNI_COMMAND=VERSION /opt/cni/bin/bridge >/dev/null || exit 1; n=$((n+1)); echo $n >/run/count; done";
    let mut caller = caller.args(["-c", loops]).spawn().unwrap();
    // Without debug information, because every plugin is a copy.
    host.sh(&format!("strip -o /run/stripped {NETLOOM}; /run/stripped install --force >/dev/null"));
    for _ in 0..20 {
        // A new file each time, as in an upgrade.
        host.sh("cp /run/stripped /run/new; /run/new install >/dev/null");
    }
    host.sh("touch /run/stop");
    assert!(caller.wait().unwrap().success());
    assert!(host.sh("cat /run/count").trim().parse::<u32>().unwrap() > 20);
}

/// Help, completions and man pages contain every command.
#[test]
fn pages() {
    let run = |args: &[&str]| text(&Command::new(NETLOOM).args(args).output().unwrap());
    let help = run(&["--help"]);
    let dir = tempfile::tempdir().unwrap();
    run(&["man", dir.path().to_str().unwrap()]);
    let completions = run(&["completions", "bash"]);
    for command in [
        "run",
        "add",
        "del",
        "check",
        "status",
        "gc",
        "version",
        "list",
        "lint",
        "demo",
        "install",
        "uninstall",
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{help}");
        assert!(completions.contains(command));
        assert!(dir.path().join(format!("netloom-{command}.1")).exists(), "{command}");
    }
}
