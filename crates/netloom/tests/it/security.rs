//! Tests for the threats of docs/security.md that no other file covers.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use serde_json::{Value, json};
use testkit::Host;

use crate::lab::{Call, NETLOOM, OURS, dual_stack, with_prev};

/// Returns a chain of all plugins that write files or change rules.
fn chain() -> Vec<Value> {
    let ports = json!([{"hostPort": 8053, "containerPort": 53, "protocol": "udp"}]);
    let mut chain = vec![
        dual_stack(),
        json!({"type": "tuning", "mtu": 1400}),
        json!({"type": "portmap", "runtimeConfig": {"portMappings": ports}}),
        json!({"type": "firewall"}),
        json!({"type": "bandwidth", "egressRate": 8_000_000, "egressBurst": 800_000}),
    ];
    for conf in &mut chain {
        conf["cniVersion"] = json!("1.1.0");
        conf["name"] = json!("lab");
    }
    chain
}

/// Plugins ignore a hostile environment: programs with well-known names first in `PATH`, a preloaded library, and an empty
/// part of `CNI_PATH`.
#[test]
fn nothing_is_run_by_what_the_environment_says() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    host.sh("mkdir /run/evil; for name in ip nft iptables iptables-save ip6tables tc conntrack sysctl modprobe dhcp host-local sh; do
                 printf '#!/bin/busybox sh\\necho \"$0\" >>/run/evil/ran\\n' >/run/evil/$name; chmod +x /run/evil/$name; done
             echo no library >/run/evil/evil.so");
    for conf in chain() {
        let plugin = OURS.join(conf["type"].as_str().unwrap());
        let prev = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}],
            "ips": [{"address": "10.88.0.2/16", "interface": 0}]});
        let conf = if conf["type"] == "bridge" { conf } else { with_prev(&conf, &prev) };
        for verb in ["ADD", "CHECK", "DEL", "STATUS"] {
            let stdin = host.path("/run/stdin");
            fs::write(&stdin, with_prev(&conf, &prev).to_string()).unwrap();
            host.command("/usr/bin/env")
                // An empty part of CNI_PATH must not mean the working directory.
                .arg(format!("CNI_PATH=:{}:", OURS.display()))
                .args(["PATH=/run/evil:.", "LD_LIBRARY_PATH=/run/evil", "LD_PRELOAD=/run/evil/evil.so"])
                .arg(&plugin)
                .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")])
                .env("CNI_NETNS", "/run/netns/c1")
                .stdin(fs::File::open(&stdin).unwrap())
                .output()
                .unwrap();
        }
    }
    assert!(!host.path("/run/evil/ran").exists(), "{}", host.sh("cat /run/evil/ran"));
    // Without a program header of type PT_INTERP (elf(5)) the kernel starts no loader, which would obey LD_*.
    // A plain `cargo build` has a loader; the binary that is packaged has none.
    let Some(release) = std::env::var_os("NETLOOM_RELEASE") else {
        testkit::say_skipped("NETLOOM_RELEASE does not name a release binary whose headers are to be read");
        return;
    };
    let binary = fs::read(release).unwrap();
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([binary[at], binary[at + 1]]));
    let (first, size, count) =
        (binary[32..40].try_into().map(usize::from_le_bytes).unwrap(), u16_at(54), u16_at(56));
    assert!((0..count).all(|index| binary[first + index * size] != 3), "the binary asks for a loader");
}

/// Only the owner can access files and folders, whatever the caller's umask. Exceptions are the folders that the reference
/// host-local also creates with mode 755.
#[test]
fn files_are_the_owners_alone() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    host.sh("mkdir -p /etc/cni/net.d");
    fs::write(
        host.path("/etc/cni/net.d/lab.conflist"),
        json!({"cniVersion": "1.1.0", "name": "lab", "plugins": chain()}).to_string(),
    )
    .unwrap();
    let netloom = |args: &str| {
        let line = format!("umask 0; CNI_PATH={} CNI_CONTAINERID=c1 {NETLOOM} {args}", OURS.display());
        host.sh(&format!("export NETCONFPATH=/etc/cni/net.d; {line}"))
    };
    netloom("add lab /run/netns/c1");
    let modes = host.sh("find /var/lib/cni /run/cni -printf '%m %y %p\\n'");
    let mut seen = BTreeMap::new();
    for line in modes.lines() {
        let [mode, kind, path] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let mode = u32::from_str_radix(mode, 8).unwrap();
        *seen.entry(kind.to_owned()).or_insert(0) += 1;
        let shared = ["/var/lib/cni", "/var/lib/cni/networks", "/var/lib/cni/networks/lab", "/run/cni"];
        let most = match kind {
            "d" if shared.contains(&path) => 0o755,
            "d" => 0o700,
            _ => 0o600,
        };
        assert_eq!(mode & !most, 0, "{path} has mode {mode:o}");
    }
    assert!(seen["f"] >= 5 && seen["d"] >= 3, "{modes}");
    netloom("del lab /run/netns/c1");
}

/// Plugins do not write through symbolic links in state folders.
#[test]
fn symbolic_links_lead_nowhere() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let dir = host.path("/var/lib/cni/networks/lab");
    fs::create_dir_all(&dir).unwrap();
    fs::create_dir_all(host.path("/run/cni/tuning")).unwrap();
    let precious = host.path("/run/precious");
    fs::write(&precious, "precious").unwrap();
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o644)).unwrap();
    for name in
        ["10.88.0.2", "last_reserved_ip.0", "last_reserved_ip.1", ".netloom-index", ".netloom-index.new"]
    {
        symlink("/run/precious", dir.join(name)).unwrap();
    }
    symlink("/run/precious", host.path("/run/cni/tuning/c1_eth0.json")).unwrap();
    let call = Call::new(&host, &OURS, "c1");
    let chain = chain();
    // The plugins may refuse or succeed.
    let mut prev = Value::Null;
    for conf in &chain {
        let answer = call.call("ADD", &with_prev(conf, &prev));
        if !answer.ok {
            break;
        }
        prev = answer.json();
    }
    for conf in chain.iter().rev() {
        call.call("DEL", &with_prev(conf, &prev));
    }
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    // A lock file that is a symbolic link is refused.
    fs::remove_dir_all(&dir).unwrap();
    fs::create_dir_all(&dir).unwrap();
    symlink("/run/precious", dir.join("lock")).unwrap();
    let (_, message) = call.call("ADD", &chain[0]).error();
    assert!(message.contains("lock"), "{message}");
    assert!(
        host.sh("ip -br link").lines().all(|line| !line.starts_with("veth")),
        "{}",
        host.sh("ip -br link")
    );
}

/// Root in the container renames its interface, moves it to another namespace, deletes it or changes its addresses. DEL
/// succeeds and leaves nothing behind on the host or in the container's namespace.
#[test]
fn a_container_that_hides_its_interface() {
    if !testkit::is_root() {
        return;
    }
    let tricks = [
        "ip -n c1 link set eth0 down; ip -n c1 link set eth0 name gone; ip -n c1 link set gone up",
        "ip -n c1 link set eth0 down; ip -n c1 link set eth0 name gone; ip -n c1 link add eth0 type veth peer name x",
        "ip netns add inner; ip -n c1 link set eth0 netns inner; ip -n inner link set eth0 up",
        "ip -n c1 link del eth0",
        "ip -n c1 addr flush dev eth0; ip -n c1 addr add 10.88.0.200/16 dev eth0",
    ];
    let macvlan = json!({"cniVersion": "1.1.0", "name": "lab", "type": "macvlan", "master": "up0", "ipam": dual_stack()["ipam"]});
    let mut ptp = dual_stack();
    ptp["type"] = json!("ptp");
    for trick in tricks {
        for conf in [dual_stack(), ptp.clone(), macvlan.clone()] {
            let host = Host::new();
            host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up");
            host.container("c1");
            // The operational state follows the carrier with a delay.
            let links = || {
                let seen: Value = serde_json::from_str(&host.sh("ip -j link show type veth")).unwrap();
                let links = seen.as_array().unwrap().iter();
                let mut links: Vec<Value> =
                    links.filter(|link| link["ifname"].is_string()).cloned().collect();
                for link in &mut links {
                    testkit::remove_carrier(link);
                }
                links
            };
            let before = links();
            let call = Call::new(&host, &OURS, "c1");
            let result = call.add(&conf);
            host.sh(trick);
            call.del(&conf, &result);
            let what = format!("{} after {trick}", conf["type"]);
            assert_eq!(links(), before, "{what}");
            let left = host.sh("ls /var/lib/cni/networks/lab | grep -e : -e ^10 || true");
            assert_eq!(left, "", "{what}");
            assert!(!host.sh("nft list ruleset").contains("elements ="), "{what}");
            // DEL does not know the inner namespace: the interface exists until that namespace ends.
            if !trick.contains("inner") {
                let inside =
                    host.sh("ip -n c1 -br link show type macvlan; ip -n c1 -br link show up type veth");
                assert_eq!(inside, "", "{what}");
            }
        }
    }
}

/// A delegated plugin that prints without end is an error and cannot exhaust memory.
#[test]
fn a_plugin_that_floods() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.container("c1");
    let bin = host.path("/run/bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("flood"), "#!/bin/sh\ncat >/dev/null\ntest $CNI_COMMAND = DEL && exit 0\nhead -c 100000000 /dev/zero | tr '\\0' x\n").unwrap();
    fs::set_permissions(bin.join("flood"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(NETLOOM, bin.join("bridge")).unwrap();
    let mut conf = dual_stack();
    conf["ipam"] = json!({"type": "flood"});
    let call = Call::new(&host, Path::new("/run/bin"), "c1");
    let stdin = host.path("/run/stdin");
    fs::write(&stdin, conf.to_string()).unwrap();
    let output = host
        .command("sh")
        // In KiB, enough for the program and the largest accepted output.
        .args(["-c", "ulimit -v 131072; exec /run/bin/bridge"])
        .stdin(fs::File::open(&stdin).unwrap())
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")])
        .envs([("CNI_NETNS", "/run/netns/c1"), ("CNI_PATH", "/run/bin")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        !output.status.success() && text.contains("flood") && text.len() < 10_000,
        "{}",
        &text[..text.len().min(2000)]
    );
    call.del(&conf, &Value::Null);
    assert!(!host.sh("ip -br link").contains("veth"));
}
