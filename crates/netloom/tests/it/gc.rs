//! What `netloom gc` prints, and `netloom gc --dry-run`.

use std::{
    fs,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, OURS, dual_stack};

const PORTS: &str = r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#;

fn netloom(host: &Host, args: &[&str]) -> Output {
    let mut command = host.command(OURS.join("netloom"));
    if args.contains(&"c1") {
        command.env("CAP_ARGS", PORTS);
    }
    command.args(args).env("CNI_PATH", &*OURS).output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    testkit::require_success(output, "netloom");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// A host with the containers c1 and c2 on the network `lab`, whose plugins create links, rules, published ports, files and
/// reservations.
fn lab(version: &str) -> Host {
    let host = Host::new();
    let mut bridge = dual_stack();
    bridge["macspoofchk"] = true.into();
    let list = json!({"cniVersion": version, "name": "lab", "plugins": [
        bridge, {"type": "firewall"}, {"type": "tuning", "mtu": 1400},
        {"type": "portmap", "capabilities": {"portMappings": true}},
        {"type": "bandwidth", "ingressRate": 800_000, "ingressBurst": 80_000, "egressRate": 800_000, "egressBurst": 80_000}]});
    let folder = host.path("/etc/cni/net.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("10-lab.conflist"), list.to_string()).unwrap();
    for name in ["c1", "c2"] {
        host.container(name);
    }
    testkit::require_success(
        &netloom(&host, &["add", "lab", "/run/netns/c1", "--container-id", "c1"]),
        "add",
    );
    host
}

/// Removes the namespace's name. The namespace itself stays, and with it the links that the kernel would remove at some time.
fn forget_c1(host: &Host) {
    host.sh("touch /run/kept; mount --bind /run/netns/c1 /run/kept; ip netns del c1");
}

/// Calls --dry-run and then GC. Both print the same, the first changes nothing, and the second leaves nothing to print.
fn collect(host: &Host) -> Vec<String> {
    let before = host.snapshot();
    let preview = netloom(host, &["gc", "--dry-run"]);
    before.assert_same(&host.snapshot(), "after the dry run");
    assert!(String::from_utf8_lossy(&preview.stderr).contains("dry run: nothing was removed"));
    let removed = lines(&netloom(host, &["gc"]));
    assert_eq!(lines(&preview), removed);
    for arguments in [&["gc"][..], &["gc", "--dry-run"]] {
        assert_eq!(lines(&netloom(host, arguments)), ["nothing to remove"]);
    }
    removed
}

/// On a host that no runtime ever used, both forms say that there is nothing to do, and the dry run creates no file.
#[test]
fn nothing_to_remove() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("rm -rf /etc/cni/net.d");
    let before = host.snapshot();
    assert_eq!(lines(&netloom(&host, &["gc", "--dry-run"])), ["nothing to remove"]);
    before.assert_same(&host.snapshot(), "after the dry run");
    assert_eq!(lines(&netloom(&host, &["gc"])), ["nothing to remove"]);
}

/// Everything of a cached attachment whose namespace is gone, and of one that is not cached, has a line; nothing of a living
/// container has.
#[test]
fn each_removed_thing_is_printed() {
    if !testkit::is_root() {
        return;
    }
    let host = lab("1.1.0");
    testkit::require_success(
        &netloom(&host, &["add", "lab", "/run/netns/c2", "--container-id", "c2"]),
        "add",
    );
    let call = Call { id: "by-hand".into(), ifname: "eth7".into(), ..Call::new(&host, &OURS, "c2") };
    call.add(&dual_stack());
    let published = call.with_ports();
    call.add(&published);
    forget_c1(&host);
    let removed = collect(&host);
    let has = |text: &str| {
        removed.iter().filter(|line| line.starts_with("network lab: ") && line.contains(text)).count()
    };
    assert_eq!(has("attachment eth0 of container c1"), 1, "{removed:#?}");
    assert_eq!(has("link "), 3, "a host end each, and an ifb: {removed:#?}");
    assert_eq!(has("address 10.88.0.2 (eth0 of container c1)"), 1, "{removed:#?}");
    assert_eq!(has("address fd88::2 (eth0 of container c1)"), 1, "{removed:#?}");
    assert_eq!(has("address "), 4, "{removed:#?}");
    assert_eq!(has("published port 8080/tcp to 10.88.0.2:80 (eth0 of container c1)"), 1, "{removed:#?}");
    assert_eq!(has("file /run/cni/tuning/c1_eth0.json"), 1, "{removed:#?}");
    assert_eq!(has("(eth7 of container by-hand)"), 7, "{removed:#?}");
    assert_eq!(has("container c2"), 0, "{removed:#?}");
    assert!(host.sh("ls /var/lib/cni/results").contains("lab-c2-eth0"));
}

/// Below 1.1.0 plugins have no GC: only what belongs to a cached attachment is removed, and printed.
#[test]
fn older_networks_have_no_gc() {
    if !testkit::is_root() {
        return;
    }
    let host = lab("1.0.0");
    let call = Call { id: "by-hand".into(), ..Call::new(&host, &OURS, "c2") };
    let mut conf = dual_stack();
    conf["cniVersion"] = "1.0.0".into();
    call.add(&conf);
    forget_c1(&host);
    let removed = collect(&host);
    assert!(removed.iter().all(|line| line.contains("c1")), "{removed:#?}");
    assert!(removed.len() > 6, "{removed:#?}");
}

/// What the reference plugins created before a migration is printed too, with either of their backends.
#[test]
fn what_the_reference_plugins_made_is_printed() {
    let Some(peers) = testkit::peers().filter(|_| testkit::is_root()) else { return };
    for (backend, expected) in [
        ("iptables", "iptables chains of the reference plugins for container by-hand"),
        ("nftables", "of the reference plugins"),
    ] {
        let host = lab("1.1.0");
        let call = Call { id: "by-hand".into(), ..Call::new(&host, &peers, "c2") };
        let mut conf = dual_stack();
        conf["cniVersion"] = "1.0.0".into();
        conf["ipMasqBackend"] = backend.into();
        call.add(&conf);
        let removed = collect(&host);
        assert!(removed.iter().any(|line| line.contains(expected)), "{backend}: {removed:#?}");
        assert!(removed.iter().any(|line| line.contains("address 10.88.0.3 (eth0 of container by-hand)")));
        assert!(!removed.iter().any(|line| line.contains("container c1")), "{backend}: {removed:#?}");
    }
}

/// The namespace of a killed `run` and its attachment are printed.
#[test]
fn a_killed_run_is_printed() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("rm -rf /etc/cni/net.d");
    let mut child = host
        .command(OURS.join("netloom"))
        .args(["run", "-p", "8080:80", "--", "sh", "-c", "echo $$ >/run/command; exec sleep 1000"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    host.sh("timeout 10 sh -c 'until test -s /run/command; do sleep 0.02; done'");
    assert_eq!(lines(&netloom(&host, &["gc", "--dry-run"])), ["nothing to remove"]);
    let id = format!("netloom-run-{}", child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    host.sh("kill -9 $(cat /run/command)");
    let removed = collect(&host);
    assert_eq!(removed.last().unwrap(), &format!("network namespace /run/netns/{id}"));
    assert_eq!(removed[0], format!("network netloom: attachment eth0 of container {id}"));
    assert!(removed.iter().any(|line| line.contains("published port 8080/tcp")), "{removed:#?}");
    assert_eq!(host.sh("ls /run/netns"), "");
}

/// What a plugin does not remove is not printed as removed.
#[test]
fn what_stays_is_not_printed() {
    if !testkit::is_root() {
        return;
    }
    let host = lab("1.1.0");
    let bin = tempfile::tempdir().unwrap();
    for plugin in ["bridge", "firewall", "tuning", "portmap", "bandwidth"] {
        let script = "#!/bin/sh\ncat >/dev/null\necho '{\"cniVersion\":\"1.1.0\",\"code\":99,\"msg\":\"refused\"}'; exit 1\n";
        let path = bin.path().join(plugin);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    forget_c1(&host);
    let mut command = host.command(OURS.join("netloom"));
    let output = command.args(["gc", "lab"]).env("CNI_PATH", bin.path()).output().unwrap();
    assert!(!output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert!(String::from_utf8_lossy(&output.stderr).contains("refused"));
}

impl Call<'_> {
    /// Returns portmap's configuration with a port, for the addresses that the bridge gave.
    fn with_ports(&self) -> Value {
        json!({"cniVersion": "1.1.0", "name": "lab", "type": "portmap",
            "runtimeConfig": {"portMappings": [{"hostPort": 9090, "containerPort": 90, "protocol": "tcp"}]},
            "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "eth7", "sandbox": self.netns}],
                           "ips": [{"address": "10.88.0.4/16", "interface": 0}]}})
    }
}
